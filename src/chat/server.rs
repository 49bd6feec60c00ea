//! The server that `chat` starts for itself: on a free loopback port, behind a random key, gone when the chat is.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use crate::cli::ChatArgs;
use crate::interrupt::{self, Interrupt};

/// Lines of its log that are kept for the case that it fails.
const LOG_LINES: usize = 12;
/// A model that takes longer to load isn't going to be talked to.
const START_LIMIT: Duration = Duration::from_secs(600);
/// Time for a polite end.
const END_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks at something that takes its time.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running server; ends when dropped.
pub(super) struct OwnServer {
    child: Child,
    port: u16,
    key: String,
}

impl OwnServer {
    /// Started and ready.
    ///
    /// # Errors
    /// When it fails to start, with what it said, or somebody asked to stop.
    pub(super) fn start(args: &ChatArgs, interrupt: &Interrupt) -> anyhow::Result<OwnServer> {
        let key: String = (0..4)
            .map(|_| format!("{:016x}", rand::random::<u64>()))
            .collect();
        let program = std::env::current_exe().context("cannot find this program's file")?;
        let mut command = Command::new(program);
        command
            .arg("chat-server")
            .args(args.model.iter().flat_map(|model| ["--model", model]))
            .args(["--parallel", "1", "--no-ui"])
            .args(&args.serve)
            .args(["--host", "127.0.0.1", "--port", "0", "--api-prefix", ""])
            .args([
                "--no-reuse-port",
                "--ssl-cert-file",
                "",
                "--ssl-key-file",
                "",
            ])
            .args([
                "--log-level",
                "info",
                "--log-format",
                "text",
                "--log-file",
                "",
            ])
            .env("LLAMA_API_KEY", &key)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal is for the chat alone.
            .process_group(0);
        let mut child = command.spawn().context("cannot start the server")?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (found, port) = channel();
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            thread::Builder::new().name("log".into()).spawn(move || {
                follow(stderr, &log, |port| {
                    let _ = found.send(port);
                });
            })?;
        }
        let mut server = OwnServer {
            child,
            port: 0,
            key,
        };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match port.recv_timeout(LOOK_AGAIN) {
                Ok(port) => {
                    server.port = port;
                    break;
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    server.check(&log, deadline, interrupt)?;
                }
            }
        }
        let client = Client::new(&server.url(), None);
        while client.check().is_err() {
            server.check(&log, deadline, interrupt)?;
            thread::sleep(LOOK_AGAIN);
        }
        Ok(server)
    }

    /// Where it listens.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it asks for.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Whether waiting goes on making sense.
    fn check(
        &mut self,
        log: &Mutex<VecDeque<String>>,
        deadline: Instant,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            // The last words may still be on their way.
            thread::sleep(LOOK_AGAIN * 5);
            bail!(last_words(log));
        }
        if interrupt.asked() {
            bail!("stopped while the model was loading");
        }
        if Instant::now() > deadline {
            bail!("the server was not ready after {} s", START_LIMIT.as_secs());
        }
        Ok(())
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        }
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

/// For the server itself: the kernel ends it should the chat die without a word.
///
/// # Errors
/// When the system refuses, or the chat is gone already.
pub(crate) fn end_with_parent() -> anyhow::Result<()> {
    interrupt::unblock();
    let parent = nix::unistd::getppid();
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).context("cannot ask to end with the chat")?;
    if nix::unistd::getppid() != parent {
        bail!("the chat is gone");
    }
    Ok(())
}

/// Keeps the last lines; tells the port once.
fn follow(stderr: impl Read, log: &Mutex<VecDeque<String>>, found: impl Fn(u16)) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Some((_, rest)) =
            line.split_once("HTTP server is listening, hostname: 127.0.0.1, port: ")
            && let Ok(port) = rest
                .split(|c: char| !c.is_ascii_digit())
                .next()
                .unwrap_or("")
                .parse()
        {
            found(port);
        }
        if let Ok(mut log) = log.lock() {
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
    }
}

/// The server's error if it named one, else the end of its log.
fn last_words(log: &Mutex<VecDeque<String>>) -> String {
    let Ok(log) = log.lock() else {
        return "the server ended".to_owned();
    };
    let from = log.iter().position(|line| line.starts_with("error: "));
    match from {
        Some(from) => {
            let words: Vec<&str> = log.iter().skip(from).map(String::as_str).collect();
            words.join("\n").trim_start_matches("error: ").to_owned()
        }
        None => {
            let words: Vec<&str> = log.iter().map(String::as_str).collect();
            format!("the server ended; its last words:\n{}", words.join("\n"))
        }
    }
}
