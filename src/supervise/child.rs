//! Engine processes: start, watch, kill, reap. The only file that touches processes.
//!
//! The engine is this same binary with the hidden command `engine`; its standard input is one end of a socket pair that
//! carries frames both ways. Each process has two threads here: one relays its standard error to our log, one waits for
//! its end without reaping it, so that the process id stays ours until the owner reaps, and signals never hit a stranger.
//!
//! The kernel sends the engine's parent-death signal when the *thread* that started it ends: the supervisor starts
//! engines from its one long-lived thread.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid};

use super::exit::{Exit, ExitKind};
use crate::host::{Root, oom_kills};
use crate::systemd;

/// Log lines kept for the crash report.
const TAIL_LINES: usize = 200;
/// Longest log line relayed in one piece, in bytes.
const LINE_BYTES: u64 = 16 << 10;
/// How long the last log lines of a dead engine are waited for.
const TAIL_WAIT: Duration = Duration::from_millis(500);

/// Variables that an engine has no business with.
const SECRETS: &[&str] = &["LLAMA_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

/// Starts engines. The broker's tests put a scripted one here.
pub(crate) trait Spawn: Send {
    /// Starts an engine; `exited` is called once, from some thread, when its process has ended.
    ///
    /// # Errors
    /// Those of starting a process.
    fn spawn(&mut self, exited: Box<dyn FnOnce() + Send>) -> io::Result<Box<dyn Engine>>;
}

/// A running engine.
pub(crate) trait Engine: Send {
    /// Process id.
    fn pid(&self) -> u32;
    /// Our end of the control socket.
    fn control(&self) -> &UnixStream;
    /// SIGKILL. Nothing happens to one that has ended already.
    fn kill(&mut self);
    /// How it ended; call it after `exited`.
    fn reap(&mut self) -> Exit;
}

/// Starts `bitnet-launch engine` processes.
#[derive(Debug, Default)]
pub(crate) struct EngineProcesses {
    /// Level of their log lines; `None` leaves `RUST_LOG` as it is.
    pub(crate) log_level: Option<String>,
    /// They keep all rights of the server.
    pub(crate) unconfined: bool,
    /// Folder in which they save slots.
    pub(crate) slot_folder: Option<PathBuf>,
}

impl Spawn for EngineProcesses {
    fn spawn(&mut self, exited: Box<dyn FnOnce() + Send>) -> io::Result<Box<dyn Engine>> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(own_binary()?);
        if let Some(level) = &self.log_level {
            command.env("RUST_LOG", level);
        }
        for name in systemd::VARIABLES.iter().chain(SECRETS) {
            command.env_remove(name);
        }
        command.arg0("bitnet-launch").arg("engine");
        if self.unconfined {
            command.arg("--unconfined");
        }
        if let Some(folder) = &self.slot_folder {
            command.arg("--slot-folder").arg(folder);
        }
        let mut child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let log = child.stderr.take().map(LogTail::follow);
        let pid = Pid::from_raw(child.id() as i32);
        thread::Builder::new()
            .name("engine-wait".into())
            .spawn(move || {
                await_end(pid);
                exited();
            })?;
        Ok(Box::new(EngineProcess {
            child,
            control: ours,
            log,
            oom_kills: oom_kills(&Root::live()),
        }))
    }
}

/// The file we run from, even when it was replaced on disk meanwhile: a restarted engine must speak our protocol.
pub(crate) fn own_binary() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(if path.exists() {
        path
    } else {
        PathBuf::from("/proc/self/exe")
    })
}

/// Returns when the process has ended; leaves the zombie to its owner.
pub(crate) fn await_end(pid: Pid) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), flags) {}
}

struct EngineProcess {
    child: Child,
    control: UnixStream,
    log: Option<LogTail>,
    /// The control group's count when it was started.
    oom_kills: Option<u64>,
}

impl Engine for EngineProcess {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn control(&self) -> &UnixStream {
        &self.control
    }

    fn kill(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        if let Err(error) = signal::kill(pid, Signal::SIGKILL) {
            tracing::debug!("cannot kill engine process {pid}: {error}");
        }
    }

    fn reap(&mut self) -> Exit {
        let kind = match self.child.wait() {
            Ok(status) => exit_kind(status),
            Err(error) => {
                tracing::warn!("cannot wait for the engine: {error}");
                ExitKind::Code(-1)
            }
        };
        let log = self.log.take().map(LogTail::finish).unwrap_or_default();
        let killed = |before| Some(oom_kills(&Root::live())?.saturating_sub(before));
        Exit {
            kind,
            log,
            oom_kills: self.oom_kills.and_then(killed),
        }
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn exit_kind(status: ExitStatus) -> ExitKind {
    match status.signal() {
        Some(signal) => ExitKind::Signal(signal),
        None => ExitKind::Code(status.code().unwrap_or(-1)),
    }
}

/// The last lines of an engine's log.
struct LogTail {
    lines: Arc<Mutex<VecDeque<String>>>,
    closed: Receiver<()>,
}

impl LogTail {
    /// Relays every line to our log from a thread of its own.
    fn follow(stderr: ChildStderr) -> LogTail {
        let lines = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL_LINES)));
        let (close, closed) = mpsc::channel();
        let kept = Arc::clone(&lines);
        let relay = move || {
            relay(BufReader::new(stderr), &kept);
            let _ = close.send(());
        };
        if let Err(error) = thread::Builder::new()
            .name("engine-log".into())
            .spawn(relay)
        {
            tracing::warn!("cannot follow the engine's log: {error}");
        }
        LogTail { lines, closed }
    }

    fn finish(self) -> Vec<String> {
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
        log_line(line);
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == TAIL_LINES {
            kept.pop_front();
        }
        kept.push_back(line.to_owned());
    }
}

/// Repeats an engine's line in our log, at its level: the engine writes `LEVEL message`; anything else is a warning.
fn log_line(line: &str) {
    let (level, message) = line.trim_start().split_once(' ').unwrap_or(("", line));
    let message = message.trim_start();
    match level {
        "ERROR" => tracing::error!("engine: {message}"),
        "WARN" => tracing::warn!("engine: {message}"),
        "INFO" => tracing::info!("engine: {message}"),
        "DEBUG" => tracing::debug!("engine: {message}"),
        "TRACE" => tracing::trace!("engine: {message}"),
        _ => tracing::warn!("engine: {line}"),
    }
}

/// As process 1 of a container, reaps the orphans that became our children; `engines` are left to their owner.
pub(crate) fn reap_orphans(engines: &[u32]) {
    if getpid() != Pid::from_raw(1) {
        return;
    }
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    while let Ok(status) = waitid(Id::All, peek) {
        match status.pid() {
            Some(pid) if !engines.contains(&(pid.as_raw() as u32)) => {
                if let Ok(WaitStatus::StillAlive) | Err(_) =
                    waitpid(pid, Some(WaitPidFlag::WNOHANG))
                {
                    return;
                }
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let text: String = (0..TAIL_LINES + 50)
            .map(|n| format!("INFO {n}\n\n"))
            .collect();
        let kept = Mutex::new(VecDeque::new());
        relay(text.as_bytes(), &kept);
        let kept = kept.into_inner().unwrap();
        assert_eq!(kept.len(), TAIL_LINES);
        assert_eq!(kept.front().unwrap(), "INFO 50");
    }
}
