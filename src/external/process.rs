//! A llama-server as a process: start, watch, signal, reap; or this process in its place.
//!
//! It is started by this same binary under the hidden command `engine-exec`, which ties it to our life, puts it on its CPUs and
//! then becomes it, so its process id is the one we know. Its outputs are one pipe with one reader; keys go by environment.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CpuSet as Mask, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getppid};

use crate::host::CpuSet;
use crate::supervise::state::Failure;

/// Log lines kept for the crash report.
const TAIL_LINES: usize = 200;
/// Of them, shown with a failure.
const SHOWN_LINES: usize = 3;
/// Longest log line relayed in one piece, in bytes.
const LINE_BYTES: u64 = 16 << 10;
/// How long the last log lines of a dead engine are waited for.
const TAIL_WAIT: Duration = Duration::from_millis(500);
/// Out of memory, the kernel should end the engine, which is replaced, rather than us.
const OOM_SCORE_ADJ: &str = "500";

/// A command, complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables set.
    pub env: Vec<(OsString, OsString)>,
    /// Variables removed.
    pub removed_env: Vec<OsString>,
    /// CPUs it is bound to; `None`: all of ours.
    pub cpus: Option<CpuSet>,
}

impl Launch {
    /// As one would type it.
    pub(crate) fn line(&self) -> String {
        let words = self.args.iter().map(|arg| quoted(&arg.to_string_lossy()));
        let program = quoted(&self.program.to_string_lossy());
        std::iter::once(program)
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Becomes the program.
    ///
    /// # Errors
    /// When it can't be executed; on success this doesn't return.
    pub(crate) fn exec(&self) -> anyhow::Error {
        if let Some(cpus) = &self.cpus {
            bind_to(cpus);
        }
        let mut command = Command::new(&self.program);
        self.equip(&mut command);
        let error = command.args(&self.args).exec();
        anyhow::Error::new(error).context(format!("cannot execute `{}`", self.program.display()))
    }

    fn equip(&self, command: &mut Command) {
        for name in &self.removed_env {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
    }

    /// Starts the program; `exited` is called once, from some thread, when the process has ended.
    ///
    /// # Errors
    /// Those of starting a process.
    pub(super) fn spawn(
        &self,
        further: &[OsString],
        key: Option<&str>,
        exited: impl FnOnce() + Send + 'static,
    ) -> io::Result<Process> {
        let (output, input) = io::pipe()?;
        let mut command = Command::new(own_binary()?);
        self.equip(&mut command);
        if let Some(key) = key {
            command.env("LLAMA_API_KEY", key);
        }
        command
            .arg0("bitnet-launch")
            .args(["engine-exec", "--parent"])
            .arg(std::process::id().to_string());
        if let Some(cpus) = &self.cpus {
            command.args(["--cpus", &cpus.to_string()]);
        }
        let child = command
            .arg("--")
            .arg(&self.program)
            .args(&self.args)
            .args(further)
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input)
            .process_group(0)
            .spawn()?;
        // The pipe ends with the engine, not with us.
        drop(command);
        let log = LogTail::follow(output)?;
        let pid = Pid::from_raw(child.id() as i32);
        thread::Builder::new()
            .name("engine-wait".into())
            .spawn(move || {
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), flags) {}
                exited();
            })?;
        Ok(Process { child, log })
    }
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The file we run from, even when it was replaced on disk meanwhile.
fn own_binary() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(match path.exists() {
        true => path,
        false => PathBuf::from("/proc/self/exe"),
    })
}

/// The hidden command `engine-exec`: becomes the program, on these CPUs, and ends with its parent.
///
/// # Errors
/// When the parent is gone already, or the program can't be executed.
pub(crate) fn engine_exec(
    parent: u32,
    cpus: Option<&str>,
    argv: &[OsString],
) -> anyhow::Result<ExitCode> {
    let (program, args) = argv.split_first().context("no program to execute")?;
    let _ = set_pdeathsig(Signal::SIGKILL);
    anyhow::ensure!(
        getppid().as_raw() as u32 == parent,
        "the server that started this engine is gone"
    );
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    if let Some(cpus) = cpus {
        let cpus = cpus
            .parse()
            .map_err(|_| anyhow::anyhow!("`{cpus}` is no list of CPUs"))?;
        bind_to(&cpus);
    }
    let error = Command::new(program).args(args).exec();
    Err(anyhow::Error::new(error)
        .context(format!("cannot execute `{}`", Path::new(program).display())))
}

/// Children and threads inherit it. What the system refuses is left out.
fn bind_to(cpus: &CpuSet) {
    let mut mask = Mask::new();
    let all = cpus.iter().all(|cpu| mask.set(cpu).is_ok());
    if !all || sched_setaffinity(Pid::from_raw(0), &mask).is_err() {
        eprintln!("cannot bind the engine to CPUs {cpus}; it runs where the system puts it");
    }
}

/// A running engine; killed when dropped.
pub(super) struct Process {
    child: Child,
    log: LogTail,
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to leave, or makes it. Nothing happens to one that has ended already: it is ours until it is reaped.
    pub(super) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32);
        // The whole group: wrappers leave children behind.
        if signal::killpg(pid, signal).is_err() {
            let _ = signal::kill(pid, signal);
        }
    }

    /// How it ended; call it after `exited`.
    pub(super) fn end(&mut self) -> Ended {
        let status = self.child.wait();
        let log = self.log.finish();
        let (code, signal) = match status {
            Ok(status) => (status.code(), status.signal()),
            Err(_) => (None, None),
        };
        Ended { code, signal, log }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// How an engine's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    /// The last lines of its log.
    pub(super) log: Vec<String>,
}

impl Ended {
    /// One line for people, and what they can do.
    pub(super) fn explain(&self) -> Failure {
        let said = self.said();
        let (reason, hint) = match (self.signal, self.code) {
            (Some(number), _) => {
                let signal = Signal::try_from(number).ok();
                let name = signal.map_or_else(|| number.to_string(), |s| s.as_str().to_owned());
                (format!("signal {name}"), signal.and_then(advice))
            }
            (None, Some(127)) => (
                "exit code 127".to_owned(),
                Some(
                    "a shared library is missing; look at `ldd` of the program and at LD_LIBRARY_PATH",
                ),
            ),
            (None, Some(code)) => (format!("exit code {code}"), None),
            (None, None) => ("it ended, nobody knows how".to_owned(), None),
        };
        Failure {
            reason: match said {
                Some(said) => format!("{reason}, it said: {said}"),
                None => reason,
            },
            hint: hint.map(str::to_owned),
        }
    }

    /// It left by itself: what it was asked to do can't be done.
    pub(super) fn gave_up(&self) -> bool {
        self.code.is_some() && !self.port_was_taken()
    }

    /// Another program was faster to take the port that was free.
    fn port_was_taken(&self) -> bool {
        let words = ["couldn't bind", "failed to bind", "address already in use"];
        self.log.iter().any(|line| {
            let line = line.to_ascii_lowercase();
            words.iter().any(|word| line.contains(word))
        })
    }

    /// The last lines that speak of errors, else the last one.
    fn said(&self) -> Option<String> {
        let errors = self.log.iter().filter(|line| speaks_of_an_error(line));
        let mut lines: Vec<&str> = errors
            .rev()
            .take(SHOWN_LINES)
            .map(|line| line.trim())
            .collect();
        lines.reverse();
        match lines.is_empty() {
            true => self.log.last().map(|line| line.trim().to_owned()),
            false => Some(lines.join(" / ")),
        }
    }
}

fn advice(signal: Signal) -> Option<&'static str> {
    match signal {
        Signal::SIGILL => Some(
            "this CPU lacks an instruction the program was built with; build it on this machine",
        ),
        Signal::SIGKILL => Some(
            "if nobody killed it, the system ran out of memory; look at `dmesg` and at the memory limit of the container, or use a smaller `--ctx-size`",
        ),
        Signal::SIGBUS => Some(
            "the model file changed or vanished while it was mapped; replace model files by renaming, not by writing into them",
        ),
        Signal::SIGSEGV | Signal::SIGABRT | Signal::SIGFPE => {
            Some("this is a fault of that llama-server; `--log-level debug` shows all of its log")
        }
        _ => None,
    }
}

/// The last lines of an engine's log.
struct LogTail {
    lines: Arc<Mutex<VecDeque<String>>>,
    closed: Receiver<()>,
}

impl LogTail {
    /// Relays every line to our log from a thread of its own.
    fn follow(output: PipeReader) -> io::Result<LogTail> {
        let lines = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL_LINES)));
        let (close, closed) = mpsc::channel();
        let kept = Arc::clone(&lines);
        thread::Builder::new()
            .name("engine-log".into())
            .spawn(move || {
                relay(BufReader::new(output), &kept);
                let _ = close.send(());
            })?;
        Ok(LogTail { lines, closed })
    }

    fn finish(&self) -> Vec<String> {
        let _ = self.closed.recv_timeout(TAIL_WAIT);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.drain(..).collect()
    }
}

fn relay(mut log: impl BufRead, kept: &Mutex<VecDeque<String>>) {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match log.by_ref().take(LINE_BYTES).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let line = text.trim_end();
        if line.is_empty() {
            continue;
        }
        match speaks_of_an_error(line) {
            true => tracing::warn!("engine: {line}"),
            false => tracing::debug!("engine: {line}"),
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == TAIL_LINES {
            kept.pop_front();
        }
        kept.push_back(line.to_owned());
    }
}

/// llama-servers say so in words; newer ones have a level in front.
fn speaks_of_an_error(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    [
        " e ",
        "error",
        "failed",
        "unable",
        "invalid",
        "terminate called",
        "abort",
    ]
    .iter()
    .any(|word| lower.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: Option<i32>, signal: Option<i32>, log: &[&str]) -> Ended {
        let log = log.iter().map(|line| (*line).to_owned()).collect();
        Ended { code, signal, log }
    }

    #[test]
    fn ends_are_explained() {
        let failure = ended(
            Some(1),
            None,
            &[
                "loading",
                "gguf_init: invalid ggml type 36",
                "error loading model",
                "bye",
            ],
        );
        assert_eq!(
            failure.explain().reason,
            "exit code 1, it said: gguf_init: invalid ggml type 36 / error loading model"
        );
        assert!(failure.gave_up());
        let killed = ended(None, Some(9), &[]).explain();
        assert_eq!(killed.reason, "signal SIGKILL");
        assert!(killed.hint.unwrap().contains("memory"));
        assert!(!ended(None, Some(4), &[]).gave_up());
        assert!(!ended(Some(1), None, &["couldn't bind HTTP server socket"]).gave_up());
        assert!(
            ended(None, Some(4), &[])
                .explain()
                .hint
                .unwrap()
                .contains("build it")
        );
    }

    #[test]
    fn commands_can_be_typed() {
        let launch = Launch {
            program: "/opt/a b/llama-server".into(),
            args: vec!["-m".into(), "it's.gguf".into(), "".into()],
            env: Vec::new(),
            removed_env: Vec::new(),
            cpus: None,
        };
        assert_eq!(
            launch.line(),
            r"'/opt/a b/llama-server' -m 'it'\''s.gguf' ''"
        );
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let text: String = (0..TAIL_LINES + 50).map(|n| format!("{n}\n\n")).collect();
        let kept = Mutex::new(VecDeque::new());
        relay(text.as_bytes(), &kept);
        let kept = kept.into_inner().unwrap();
        assert_eq!(
            (kept.len(), kept.front().unwrap().as_str()),
            (TAIL_LINES, "50")
        );
    }
}
