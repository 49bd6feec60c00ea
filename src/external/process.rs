//! A llama-server as a process: start, watch, signal, reap; or this process in its place.
//!
//! It is started by this same binary under the hidden command `engine-exec`, which ties it to our life, puts it on its CPUs and
//! then becomes it, so its process id is the one we know. Its outputs are one pipe with one reader; keys go by environment.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use bitnet_server::proxy::Address;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use super::confine::Rights;
use crate::cli::EngineExecArgs;
use crate::engine_main::OOM_SCORE_ADJ;
use crate::host::CpuSet;
use crate::supervise::child::{Watched, own_binary};
use crate::supervise::exit::{Exit, ExitKind, page_is_gone, signal_name};
use crate::supervise::log_tail::LogTail;
use crate::supervise::state::Failure;

/// Log lines shown with a failure.
const SHOWN_LINES: usize = 3;

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
    /// What it may do; `None`: all that we may.
    pub rights: Option<Rights>,
}

/// Where it is to listen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// For our requests.
    pub(super) address: Address,
    /// For its command line.
    pub(super) args: Vec<OsString>,
    /// Of its Unix socket.
    pub(super) folder: Option<PathBuf>,
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
        place: &Place,
        key: Option<&str>,
        exited: impl FnOnce() + Send + 'static,
    ) -> io::Result<Watched> {
        let (output, input) = io::pipe()?;
        let log = LogTail::follow(output, repeat)?;
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
        if let Some(rights) = &self.rights {
            let rights = match &place.folder {
                Some(folder) => rights.with_socket_in(folder),
                None => rights.clone(),
            };
            command.args(rights.flags());
        }
        let child = command
            .arg("--")
            .arg(&self.program)
            .args(&self.args)
            .args(&place.args)
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input)
            .process_group(0)
            .spawn()?;
        // The pipe ends with the engine, not with us.
        drop(command);
        Watched::new(child, Some(log), exited)
    }
}

/// The engine's line in our log.
fn repeat(line: &str) {
    match speaks_of_an_error(line) {
        true => tracing::warn!("engine: {line}"),
        false => tracing::debug!("engine: {line}"),
    }
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The hidden command `engine-exec`: becomes the program, on these CPUs, and ends with its parent.
///
/// # Errors
/// When the parent is gone already, or the program can't be executed.
pub(crate) fn engine_exec(args: &EngineExecArgs) -> anyhow::Result<ExitCode> {
    let (program, argv) = args.argv.split_first().context("no program to execute")?;
    let _ = set_pdeathsig(Signal::SIGKILL);
    anyhow::ensure!(
        getppid().as_raw() as u32 == args.parent,
        "the server that started this engine is gone"
    );
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    if let Some(cpus) = &args.cpus {
        let cpus = cpus
            .parse()
            .map_err(|_| anyhow::anyhow!("`{cpus}` is no list of CPUs"))?;
        bind_to(&cpus);
    }
    if let Some(rights) = Rights::of(args) {
        for line in rights.take_effect() {
            eprintln!("{line}");
        }
    }
    let error = Command::new(program).args(argv).exec();
    Err(anyhow::Error::new(error)
        .context(format!("cannot execute `{}`", Path::new(program).display())))
}

/// What the system refuses is left out.
fn bind_to(cpus: &CpuSet) {
    if cpus.bind_this_thread().is_err() {
        eprintln!("cannot bind the engine to CPUs {cpus}; it runs where the system puts it");
    }
}

/// One line for people, and what they can do; `model` as it was at the start.
pub(super) fn explain(exit: &Exit, model: Option<(&Path, u64)>) -> Failure {
    let own = |hint: &str| Some(hint.to_owned());
    let (reason, hint) = match exit.kind {
        ExitKind::Code(127) => (
            "exit code 127".to_owned(),
            own("a shared library is missing; look at `ldd` of the program and at LD_LIBRARY_PATH"),
        ),
        ExitKind::Code(code) => (format!("exit code {code}"), None),
        ExitKind::Signal(number) => {
            let reason = signal_name(number);
            match Signal::try_from(number) {
                Ok(Signal::SIGILL) => (
                    reason,
                    own(
                        "this CPU lacks an instruction the program was built with; build it on this machine",
                    ),
                ),
                Ok(Signal::SIGKILL) => exit.killed(reason),
                Ok(Signal::SIGBUS) => page_is_gone(reason, model),
                Ok(Signal::SIGSEGV | Signal::SIGABRT | Signal::SIGFPE) => (
                    reason,
                    own(
                        "this is a fault of that llama-server; `--log-level debug` shows all of its log",
                    ),
                ),
                _ => (reason, None),
            }
        }
    };
    Failure {
        reason: match said(&exit.log) {
            Some(said) => format!("{reason}, it said: {said}"),
            None => reason,
        },
        hint,
    }
}

/// It left by itself: what it was asked to do can't be done.
pub(super) fn gave_up(exit: &Exit) -> bool {
    matches!(exit.kind, ExitKind::Code(_)) && !port_was_taken(&exit.log)
}

/// Another program was faster to take the port that was free.
fn port_was_taken(log: &[String]) -> bool {
    let words = ["couldn't bind", "failed to bind", "address already in use"];
    log.iter().any(|line| {
        let line = line.to_ascii_lowercase();
        words.iter().any(|word| line.contains(word))
    })
}

/// The last lines that speak of errors, else the last one.
fn said(log: &[String]) -> Option<String> {
    let errors = log.iter().filter(|line| speaks_of_an_error(line));
    let mut lines: Vec<&str> = errors
        .rev()
        .take(SHOWN_LINES)
        .map(|line| line.trim())
        .collect();
    lines.reverse();
    match lines.is_empty() {
        true => log.last().map(|line| line.trim().to_owned()),
        false => Some(lines.join(" / ")),
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

    fn exit(kind: ExitKind, log: &[&str]) -> Exit {
        Exit {
            kind,
            log: log.iter().map(|line| (*line).to_owned()).collect(),
            oom_kills: None,
        }
    }

    #[test]
    fn ends_are_explained() {
        let log = [
            "loading",
            "gguf_init: invalid ggml type 36",
            "error loading model",
            "bye",
        ];
        let left = exit(ExitKind::Code(1), &log);
        assert_eq!(
            explain(&left, None).reason,
            "exit code 1, it said: gguf_init: invalid ggml type 36 / error loading model"
        );
        assert!(gave_up(&left));
        let bound = exit(ExitKind::Code(1), &["couldn't bind HTTP server socket"]);
        assert!(!gave_up(&bound));
        for (signal, name, hint) in [
            (9, "signal SIGKILL", "memory"),
            (4, "signal SIGILL", "build it"),
            (11, "signal SIGSEGV", "fault of that llama-server"),
            (7, "signal SIGBUS", "model file changed"),
        ] {
            let found = explain(&exit(ExitKind::Signal(signal), &[]), None);
            assert_eq!(found.reason, name);
            assert!(found.hint.unwrap().contains(hint), "{name}");
        }
        assert!(!gave_up(&exit(ExitKind::Signal(4), &[])));
    }

    #[test]
    fn commands_can_be_typed() {
        let launch = Launch {
            program: "/opt/a b/llama-server".into(),
            args: vec!["-m".into(), "it's.gguf".into(), "".into()],
            env: Vec::new(),
            removed_env: Vec::new(),
            cpus: None,
            rights: None,
        };
        assert_eq!(
            launch.line(),
            r"'/opt/a b/llama-server' -m 'it'\''s.gguf' ''"
        );
    }
}
