//! One server as a process: start, log, readiness, signals, end.
//!
//! It says that it serves as any service says so to systemd, on a socket of its own. The kernel sends its parent-death signal when
//! the *thread* that started it ends: servers are started by the main thread.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::share::Share;
use super::{PAUSE, STEADY};
use crate::settings::keys::{self, Shape};
use crate::settings::{Flags, LogFormat, Settings};
use crate::supervise::child::{await_end, own_binary};
use crate::systemd;

/// Longest log line relayed in one piece, in bytes.
const LINE_BYTES: u64 = 64 << 10;
/// Longest message about readiness, in bytes.
const MESSAGE_BYTES: usize = 4096;

/// What the threads that watch a server tell, with its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It serves.
    Ready(usize),
    /// Its process has ended, and is to be reaped.
    Ended(usize),
}

/// Where the servers' log lines go.
#[derive(Clone)]
pub(super) struct Log {
    out: Arc<Mutex<Box<dyn Write + Send>>>,
    format: LogFormat,
}

impl Log {
    /// Where ours go.
    ///
    /// # Errors
    /// When the log file can't be opened.
    pub(super) fn open(settings: &Settings) -> anyhow::Result<Log> {
        let out: Box<dyn Write + Send> = match &settings.log_file.value {
            None => Box::new(io::stderr()),
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Box::new(
                    file.with_context(|| format!("cannot open log file `{}`", path.display()))?,
                )
            }
        };
        Ok(Log {
            out: Arc::new(Mutex::new(out)),
            format: settings.log_format.value,
        })
    }

    fn write(&self, node: usize, line: &[u8]) {
        let marked = marked(self.format, node, line);
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = out.write_all(&marked);
    }
}

/// A log line with its node in front, or as its first field.
fn marked(format: LogFormat, node: usize, line: &[u8]) -> Vec<u8> {
    let line = line.trim_ascii_end();
    match (format, line) {
        (LogFormat::Json, [b'{', rest @ ..]) => {
            let comma = if rest == b"}" { "" } else { "," };
            [format!("{{\"node\":{node}{comma}").as_bytes(), rest, b"\n"].concat()
        }
        _ => [format!("node {node} | ").as_bytes(), line, b"\n"].concat(),
    }
}

/// A server on one node.
pub(super) struct Replica {
    n: usize,
    share: Share,
    args: Vec<String>,
    log: Log,
    /// Name of the socket on which it says that it serves, once there is one.
    notify: Option<String>,
    child: Option<Child>,
    started: Instant,
    was_ready: bool,
    /// Its process has said so.
    serves: bool,
    /// It is to read its settings anew once it serves.
    owes_reload: bool,
    pause: Duration,
    start_at: Option<Instant>,
}

impl Replica {
    /// Not started yet.
    pub(super) fn new(
        n: usize,
        share: Share,
        settings: &Settings,
        flags: &Flags,
        log: Log,
    ) -> Replica {
        let mut args = as_typed(flags);
        args.extend(share.flags(settings));
        // Its lines come to us.
        args.push("--log-file=".to_owned());
        Replica {
            n,
            share,
            args,
            log,
            notify: None,
            child: None,
            started: Instant::now(),
            was_ready: false,
            serves: false,
            owes_reload: false,
            pause: *PAUSE.start(),
            start_at: None,
        }
    }

    pub(super) fn node(&self) -> usize {
        self.share.node.unwrap_or_default()
    }

    /// Starts it.
    ///
    /// # Errors
    /// Those of starting a process.
    pub(super) fn start(&mut self, told: &UnboundedSender<Event>) -> anyhow::Result<()> {
        self.start_at = None;
        let notify = match &self.notify {
            Some(name) => name.clone(),
            None => self.listen(told.clone())?,
        };
        let mut command = Command::new(own_binary()?);
        for name in systemd::VARIABLES {
            command.env_remove(name);
        }
        let mut child = command
            .arg0("bitnet-launch")
            .env("NOTIFY_SOCKET", format!("@{notify}"))
            .args(["node-server", "--node-parent"])
            .arg(std::process::id().to_string())
            .args(["--node-cpus", &self.share.cpus.to_string()])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal is for us, who pass it on.
            .process_group(0)
            .spawn()?;
        let lines = child.stderr.take();
        let pid = Pid::from_raw(child.id() as i32);
        tracing::info!("the server of node {} is process {pid}", self.node());
        self.started = Instant::now();
        self.serves = false;
        let watched = self.watch(pid, lines, told.clone());
        if watched.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        watched?;
        self.child = Some(child);
        Ok(())
    }

    /// Passes its lines on, and tells when it has ended.
    fn watch(
        &self,
        pid: Pid,
        lines: Option<ChildStderr>,
        told: UnboundedSender<Event>,
    ) -> io::Result<()> {
        let (n, node, log) = (self.n, self.node(), self.log.clone());
        let relay = thread::Builder::new()
            .name("node-log".into())
            .spawn(move || {
                if let Some(lines) = lines {
                    relay(lines, |line| log.write(node, line));
                }
            })?;
        thread::Builder::new()
            .name("node-wait".into())
            .spawn(move || {
                await_end(pid);
                // Its last words come first; what it left behind may hold the pipe open, so not for ever.
                let deadline = std::time::Instant::now() + Duration::from_millis(500);
                while !relay.is_finished() && std::time::Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(5));
                }
                let _ = told.send(Event::Ended(n));
            })?;
        Ok(())
    }

    /// Hears for the rest of our life when it serves.
    fn listen(&mut self, told: UnboundedSender<Event>) -> anyhow::Result<String> {
        let name = socket_name(self.node());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)
            .context("cannot hear when a server is ready")?;
        let n = self.n;
        thread::Builder::new()
            .name("node-ready".into())
            .spawn(move || {
                let mut message = [0; MESSAGE_BYTES];
                while let Ok(length) = socket.recv(&mut message) {
                    let lines = message[..length].split(|byte| *byte == b'\n');
                    if lines.into_iter().any(|line| line == b"READY=1")
                        && told.send(Event::Ready(n)).is_err()
                    {
                        return;
                    }
                }
            })?;
        self.notify = Some(name.clone());
        Ok(name)
    }

    /// It serves, for the first time or after a reload.
    pub(super) fn is_ready(&mut self) {
        self.was_ready = true;
        self.serves = true;
        if std::mem::take(&mut self.owes_reload) {
            self.signal(Signal::SIGHUP);
        }
    }

    /// It reads its settings anew: before it serves, SIGHUP could still end it.
    pub(super) fn reload(&mut self) {
        match self.serves {
            true => self.signal(Signal::SIGHUP),
            false => self.owes_reload = true,
        }
    }

    /// Whether it ever served.
    pub(super) fn was_ready(&self) -> bool {
        self.was_ready
    }

    pub(super) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Of its process, while that is ours.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Nothing happens to one that has ended.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = signal::kill(Pid::from_raw(child.id() as i32), signal);
        }
    }

    /// How it ended; to be called after [`Event::Ended`].
    pub(super) fn reap(&mut self) -> Option<ExitStatus> {
        self.child.take()?.wait().ok()
    }

    /// It is to be started again after this pause; the next one is twice as long, unless it ran for long.
    pub(super) fn pause(&mut self, now: Instant) -> Duration {
        let (pause, next) = pauses(self.pause, now.duration_since(self.started));
        self.pause = next;
        self.start_at = Some(now + pause);
        pause
    }

    pub(super) fn start_at(&self) -> Option<Instant> {
        self.start_at
    }
}

/// Abstract names are open to the whole machine, so nobody can take or guess this one.
fn socket_name(node: usize) -> String {
    let (own, secret) = (std::process::id(), rand::random::<u128>());
    format!("bitnet-launch-{own}-node-{node}-{secret:032x}")
}

/// The pause now, and the one after the next end.
fn pauses(planned: Duration, ran: Duration) -> (Duration, Duration) {
    let pause = match ran < STEADY {
        true => planned,
        false => *PAUSE.start(),
    };
    (pause, (2 * pause).min(*PAUSE.end()))
}

/// What the command line said, in full.
fn as_typed(flags: &Flags) -> Vec<String> {
    let said = flags.values.iter();
    said.map(|(name, value, _)| {
        let shape = keys::find(name).map(|key| key.shape);
        match (shape, value.as_str()) {
            (Some(Shape::Switch), "on") => format!("--{name}"),
            (Some(Shape::Switch), _) => format!("--no-{name}"),
            _ => format!("--{name}={value}"),
        }
    })
    .collect()
}

fn relay(from: impl Read, mut to: impl FnMut(&[u8])) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => to(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_their_node() {
        let text =
            |format, line: &str| String::from_utf8(marked(format, 1, line.as_bytes())).unwrap();
        assert_eq!(text(LogFormat::Text, "INFO bye\n"), "node 1 | INFO bye\n");
        assert_eq!(
            text(LogFormat::Json, "{\"level\":\"INFO\"}\n"),
            "{\"node\":1,\"level\":\"INFO\"}\n"
        );
        assert_eq!(text(LogFormat::Json, "{}"), "{\"node\":1}\n");
        assert_eq!(text(LogFormat::Json, "error: x\n"), "node 1 | error: x\n");
    }

    #[test]
    fn pauses_grow_until_a_server_is_steady() {
        let seconds = |s| Duration::from_secs(s);
        let mut planned = *PAUSE.start();
        let mut seen = Vec::new();
        for ran in [0, 1, 2, 1, 1, 1, 1, 61, 0] {
            let (pause, next) = pauses(planned, seconds(ran));
            seen.push(pause.as_secs());
            planned = next;
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 30, 30, 1, 2]);
    }

    #[test]
    fn flags_are_said_again_as_they_were() {
        let said = |name: &'static str, value: &str| (name, value.to_owned(), format!("--{name}"));
        let flags = Flags {
            values: vec![
                said("model", "a b.gguf"),
                said("mlock", "on"),
                said("ui", "off"),
                said("temp", "-1"),
                said("reverse-prompt", "x"),
                said("reverse-prompt", "y"),
            ],
            warnings: Vec::new(),
            offline: false,
        };
        assert_eq!(
            as_typed(&flags),
            [
                "--model=a b.gguf",
                "--mlock",
                "--no-ui",
                "--temp=-1",
                "--reverse-prompt=x",
                "--reverse-prompt=y"
            ]
        );
    }
}
