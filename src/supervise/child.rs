//! Engine processes: start, watch, kill, reap.
//!
//! The engine is this same binary with the hidden command `engine`; its standard input is one end of a socket pair that
//! carries frames both ways. Each process has two threads here: one relays its standard error to our log, one waits for
//! its end without reaping it, so that the process id stays ours until the owner reaps, and signals never hit a stranger.
//!
//! The kernel sends the engine's parent-death signal when the *thread* that started it ends: the supervisor starts
//! engines from its one long-lived thread.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid};

use super::exit::{Exit, ExitKind};
use super::log_tail::LogTail;
use crate::host::{Root, oom_kills};
use crate::systemd;

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
    /// Their nice value.
    pub(crate) nice: i32,
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
        if self.nice != 0 {
            command.arg(format!("--nice={}", self.nice));
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
        let stderr = child
            .stderr
            .take()
            .map(|pipe| LogTail::follow(pipe, log_line));
        let watched = Watched::new(child, stderr.transpose()?, exited)?;
        Ok(Box::new(EngineProcess {
            watched,
            control: ours,
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

/// A child whose end is told, and explained: for engines of any kind. Killed with its group when dropped.
pub(crate) struct Watched {
    child: Child,
    log: Option<LogTail>,
    /// The control group's count when it was started.
    oom_kills: Option<u64>,
    /// Its id may be a stranger's by now.
    is_reaped: bool,
}

impl Watched {
    /// `exited` is called once, from a thread of its own, when the process has ended; the zombie is left to us, so its id stays ours.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn new(
        child: Child,
        log: Option<LogTail>,
        exited: impl FnOnce() + Send + 'static,
    ) -> io::Result<Watched> {
        let watched = Watched {
            child,
            log,
            oom_kills: oom_kills(&Root::live()),
            is_reaped: false,
        };
        let pid = Pid::from_raw(watched.pid() as i32);
        thread::Builder::new()
            .name("engine-wait".into())
            .spawn(move || {
                await_end(pid);
                exited();
            })?;
        Ok(watched)
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Nothing happens to one that has ended already: it is ours until it is reaped.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32);
        if let Err(error) = signal::kill(pid, signal) {
            tracing::debug!("cannot send {signal} to engine process {pid}: {error}");
        }
    }

    /// The same for it and all it started.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32);
        if signal::killpg(pid, signal).is_err() {
            self.signal(signal);
        }
    }

    /// How it ended; waits for that.
    pub(crate) fn reap(&mut self) -> Exit {
        self.is_reaped = true;
        let kind = match self.child.wait() {
            Ok(status) => exit_kind(status),
            Err(error) => {
                tracing::warn!("cannot wait for the engine: {error}");
                ExitKind::Code(-1)
            }
        };
        let log = self.log.as_ref().map(LogTail::finish).unwrap_or_default();
        let killed = |before| Some(oom_kills(&Root::live())?.saturating_sub(before));
        Exit {
            kind,
            log,
            oom_kills: self.oom_kills.and_then(killed),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.signal_group(Signal::SIGKILL);
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

struct EngineProcess {
    watched: Watched,
    control: UnixStream,
}

impl Engine for EngineProcess {
    fn pid(&self) -> u32 {
        self.watched.pid()
    }

    fn control(&self) -> &UnixStream {
        &self.control
    }

    fn kill(&mut self) {
        self.watched.signal(Signal::SIGKILL);
    }

    fn reap(&mut self) -> Exit {
        self.watched.reap()
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
