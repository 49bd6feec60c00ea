//! A real server for a test: own directory, free port, empty environment, log kept; and a small HTTP client.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing takes this long on a machine that works, however busy.
pub const LONG: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);

/// The demo model's file.
pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bitnet-demo.gguf")
}

/// The program, with nothing of this machine's settings.
pub fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-launch"));
    command
        .env_clear()
        .current_dir(dir)
        .env("HOME", dir)
        .stdin(Stdio::null());
    command
}

/// Runs the program to its end; exit code, standard error.
pub fn run(args: &[&str]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let output = program(dir.path()).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

/// Polls until `found` finds something.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(PAUSE);
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub port: u16,
    log: Arc<Mutex<Vec<String>>>,
    pub dir: TempDir,
}

impl Server {
    /// Started, socket bound, model perhaps not loaded yet.
    pub fn start(args: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut command = program(dir.path());
        command
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(args);
        Server::launch(command, dir, |_| {})
    }

    /// A command that becomes a server on a port of this machine; `born` is told its process id at once.
    pub fn launch(mut command: Command, dir: TempDir, born: impl FnOnce(Pid)) -> Server {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        born(Pid::from_raw(child.id() as i32));
        let log = child.stderr.take().unwrap();
        Server::of(child, log, dir)
    }

    /// A process that becomes a server, and what it writes its log to.
    pub fn of(child: Child, log: impl Read + Send + 'static, dir: TempDir) -> Server {
        let mut server = Server {
            child,
            port: 0,
            log: follow(log),
            dir,
        };
        let port = server.wait_for_log(|line| {
            let (_, rest) =
                line.split_once("HTTP server is listening, hostname: 127.0.0.1, port: ")?;
            rest.split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse()
                .ok()
        });
        server.port = port;
        server
    }

    /// Started and healthy.
    pub fn ready(args: &[&str]) -> Server {
        let server = Server::start(args);
        server.wait_until_ready();
        server
    }

    pub fn wait_until_ready(&self) {
        wait_for("health", || {
            (self.get("/health").status == 200).then_some(())
        });
    }

    /// The first value `found` makes of a log line, old or new.
    pub fn wait_for_log<T>(&self, found: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        loop {
            let log = self.log();
            if let Some(value) = log.iter().find_map(|line| found(line)) {
                return value;
            }
            assert!(
                Instant::now() < deadline,
                "not in the log:\n{}",
                log.join("\n")
            );
            thread::sleep(PAUSE);
        }
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The engine started last, from the log.
    pub fn engine(&self) -> Pid {
        wait_for("an engine", || self.engines().pop())
    }

    /// All engines started so far.
    pub fn engines(&self) -> Vec<Pid> {
        let pid = |line: &String| {
            let (_, rest) = line.split_once("engine process ")?;
            rest.strip_suffix(" started")?
                .parse()
                .ok()
                .map(Pid::from_raw)
        };
        self.log().iter().filter_map(pid).collect()
    }

    /// SIGKILL to the engine; returns when another one runs.
    pub fn kill_engine(&self) {
        let before = self.engines();
        kill(*before.last().unwrap(), Signal::SIGKILL).unwrap();
        wait_for("another engine", || {
            (self.engines().len() > before.len()).then_some(())
        });
    }

    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the end", || child.try_wait().unwrap())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn get(&self, path: &str) -> Reply {
        Reply::read(agent().get(&self.url(path)).call().unwrap())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, &body.to_string())
    }

    pub fn post_text(&self, path: &str, body: &str) -> Reply {
        Reply::read(agent().post(&self.url(path)).send(body).unwrap())
    }

    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        let reply = agent()
            .post(&self.url(path))
            .send(body.to_string())
            .unwrap();
        assert_eq!(reply.status(), 200);
        Stream(BufReader::new(Box::new(reply.into_body().into_reader())))
    }

    /// Content and tokens of a whole answer.
    pub fn complete(&self, body: &Value) -> (String, Vec<u64>) {
        let mut body = body.clone();
        body["return_tokens"] = json!(true);
        let reply = self.post("/completion", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        text_of(&reply.json())
    }

    /// The same by a stream.
    pub fn complete_streamed(&self, body: &Value) -> (String, Vec<u64>) {
        let mut body = body.clone();
        body["stream"] = json!(true);
        self.stream("/completion", &body).collect_text()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of the server:\n{}", self.log().join("\n"));
        }
    }
}

fn follow(log: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            kept.lock().unwrap().push(line);
        }
    });
    lines
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(LONG))
        .max_idle_connections(0)
        .build()
        .into()
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Ends a process by this signal. Rust's own handler takes the first SIGSEGV for a guard page's, and leaves the next one alone.
pub fn end_by(pid: Pid, signal: Signal) {
    wait_for("the end by a signal", || {
        let _ = kill(pid, signal);
        (!is_alive(pid)).then_some(())
    });
}

/// An answer.
pub struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    fn read(mut reply: ureq::http::Response<ureq::Body>) -> Reply {
        Reply {
            status: reply.status().as_u16(),
            body: reply.body_mut().read_to_string().unwrap(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status and type of an error.
    pub fn error(&self) -> (u16, String) {
        let kind = self.json()["error"]["type"].as_str().map(str::to_owned);
        (
            self.status,
            kind.unwrap_or_else(|| panic!("no error: {}", self.body)),
        )
    }
}

/// Server-sent events; yields what follows `data: `.
pub struct Stream(BufReader<Box<dyn Read + Send>>);

impl Iterator for Stream {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Some(data.to_owned());
            }
            assert!(
                line.trim().is_empty() || line.starts_with(':'),
                "not a server-sent event: {line}"
            );
        }
    }
}

impl Stream {
    pub fn next_json(&mut self) -> Option<Value> {
        self.next().map(|data| serde_json::from_str(&data).unwrap())
    }

    /// Reads this many frames.
    pub fn take_frames(&mut self, n: usize) -> Vec<Value> {
        (0..n).map_while(|_| self.next_json()).collect()
    }

    /// Content and tokens until the frame that says stop.
    pub fn collect_text(self) -> (String, Vec<u64>) {
        self.collect_after(vec![])
    }

    /// The same, after these frames.
    pub fn collect_after(self, mut frames: Vec<Value>) -> (String, Vec<u64>) {
        frames.extend(self.map(|data| serde_json::from_str::<Value>(&data).unwrap()));
        let last = frames.last().expect("a stream has frames");
        assert_eq!(last["stop"], json!(true), "{last}");
        let (mut content, mut tokens) = (String::new(), vec![]);
        for frame in &frames {
            assert!(frame["error"].is_null(), "{frame}");
            let (text, more) = text_of(frame);
            content += &text;
            if frame["stop"] == json!(false) {
                tokens.extend(more);
            }
        }
        (content, tokens)
    }
}

/// `content` and `tokens` of a frame or reply.
fn text_of(value: &Value) -> (String, Vec<u64>) {
    let content = value["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no content: {value}"));
    let tokens = value["tokens"].as_array().into_iter().flatten();
    (
        content.to_owned(),
        tokens.filter_map(Value::as_u64).collect(),
    )
}
