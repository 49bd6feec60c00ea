//! A scripted llama-server: a shell script that becomes this test program in a mode of its own. What it does, requests say.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// `--help` of bitnet.cpp's server of 2024, as far as it matters.
const OLD_HELP: &str = "\
-m,    --model FNAME            model path
-t,    --threads N              number of threads
-tb,   --threads-batch N        number of threads for prompts
-c,    --ctx-size N             size of the prompt context
-np,   --parallel N             number of parallel sequences
-cb,   --cont-batching          continuous batching
       --temp N                 temperature
--host HOST                     ip address to listen (default: 127.0.0.1)
--port PORT                     port to listen
--api-key KEY                   API key (env: LLAMA_API_KEY)
--api-key-file FNAME            API keys from a file
--metrics                       enable prometheus metrics
";
/// What newer ones have besides.
const NEW_HELP: &str = "\
--host HOST                     ip address to listen, or bind to an UNIX socket if the address ends with .sock
--slots                         slots endpoint
-a,    --alias STRING           alias
";

/// The script and its files.
pub struct Fake {
    pub dir: TempDir,
}

impl Fake {
    /// Like bitnet.cpp's of 2024: TCP only.
    pub fn old() -> Fake {
        Fake::make("old", "llama-server")
    }

    /// Like today's llama.cpp: listens on a Unix socket.
    pub fn new() -> Fake {
        Fake::make("new", "llama-server")
    }

    fn make(kind: &str, name: &str) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let exe = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\nFAKE_DIR='{}' FAKE_KIND={kind} FAKE_ARGV=\"$(printf '%s\\037' \"$@\")\" \\\n  exec '{}' --exact fake_llama_server --nocapture\n",
            dir.path().display(),
            exe.display()
        );
        let path = dir.path().join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Fake { dir }
    }

    pub fn path(&self) -> String {
        self.dir.path().join("llama-server").display().to_string()
    }

    /// Switches something on: `broken`, `slow`.
    pub fn set(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    pub fn unset(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    /// Another file in the program's place, as after a build.
    pub fn rebuild(&self) {
        let (path, new) = (self.path(), self.dir.path().join("rebuilt"));
        fs::copy(&path, &new).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// What it noted.
    pub fn note(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.path().join(name)).ok()
    }
}

/// The mode of the test program; returns at once when it isn't meant.
pub fn run_if_asked() {
    let Ok(dir) = std::env::var("FAKE_DIR") else {
        return;
    };
    let argv = std::env::var("FAKE_ARGV").unwrap();
    let args: Vec<String> = argv.split_terminator('\u{1f}').map(str::to_owned).collect();
    let is_new = std::env::var("FAKE_KIND").unwrap() == "new";
    if args.iter().any(|arg| arg == "--help") {
        print!("{OLD_HELP}{}", if is_new { NEW_HELP } else { "" });
        std::process::exit(0);
    }
    let engine = Engine {
        dir: PathBuf::from(dir),
        args,
        started: Instant::now(),
        spins: AtomicBool::new(false),
    };
    engine.serve();
}

struct Engine {
    dir: PathBuf,
    args: Vec<String>,
    started: Instant,
    /// Its loop never comes round again.
    spins: AtomicBool,
}

static ENGINE: OnceLock<Engine> = OnceLock::new();

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Engine {
    fn value(&self, flag: &str) -> Option<&str> {
        let at = self.args.iter().position(|arg| arg == flag)?;
        self.args.get(at + 1).map(String::as_str)
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    fn number(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    fn note(&self, name: &str, text: impl ToString) {
        let partial = self.dir.join(format!("{name}.partial"));
        fs::write(&partial, text.to_string()).unwrap();
        fs::rename(partial, self.dir.join(name)).unwrap();
    }

    fn serve(self) -> ! {
        if self.has("bad-model") {
            eprintln!("error loading model: the file is bad");
            std::process::exit(1);
        }
        if self.has("broken") {
            std::process::abort();
        }
        eprintln!("the fake engine serves");
        let engine = ENGINE.get_or_init(|| self);
        let host = engine.value("--host").unwrap_or("127.0.0.1");
        if host.ends_with(".sock") {
            let listener = UnixListener::bind(host).unwrap();
            loop {
                let (stream, _) = listener.accept().unwrap();
                thread::spawn(move || engine.talk(stream.try_clone().unwrap(), stream));
            }
        }
        let port = engine.value("--port").unwrap();
        let listener = match TcpListener::bind(format!("{host}:{port}")) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("couldn't bind HTTP server socket: {error}");
                std::process::exit(1);
            }
        };
        loop {
            let (stream, _) = listener.accept().unwrap();
            thread::spawn(move || engine.talk(stream.try_clone().unwrap(), stream));
        }
    }

    fn talk(&self, reader: impl Read, mut stream: impl Stream) {
        let Some(request) = read_request(BufReader::new(reader)) else {
            return;
        };
        let _ = self.answer(&request, &mut stream);
    }

    fn answer(&self, request: &Request, out: &mut dyn Stream) -> io::Result<()> {
        let loading = self.started.elapsed() < Duration::from_millis(self.number("load-ms"));
        let path = request.path.split('?').next().unwrap();
        match path {
            _ if loading => json_answer(
                out,
                503,
                &json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
            ),
            "/health" => json_answer(out, 200, &json!({"status": "ok"})),
            "/metrics" | "/slots" | "/completion" if self.spins.load(Ordering::Relaxed) => loop {
                thread::sleep(Duration::from_secs(1));
            },
            "/rights" => json_answer(out, 200, &rights(request)),
            "/" => plain(out, "text/html", "the engine's page"),
            "/metrics" => plain(out, "text/plain", "llamacpp:fake_total 7\n"),
            "/completion" | "/v1/messages" => self.complete(request, out),
            "/facts" => json_answer(out, 200, &self.facts()),
            _ => json_answer(
                out,
                200,
                &json!({"method": request.method, "path": request.path, "headers": request.headers, "body": request.body}),
            ),
        }
    }

    fn facts(&self) -> Value {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let cpus = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let env: BTreeMap<String, String> = std::env::vars().collect();
        let cmdline = fs::read_to_string("/proc/self/cmdline").unwrap_or_default();
        json!({"args": self.args, "env": env, "cpus": cpus.unwrap().trim(), "pid": std::process::id(), "cmdline": cmdline})
    }

    /// The prompt says what to do.
    fn complete(&self, request: &Request, out: &mut dyn Stream) -> io::Result<()> {
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let number = |name: &str, default: u64| body[name].as_u64().unwrap_or(default);
        match body["prompt"].as_str().unwrap_or_default() {
            "crash once" if !self.has("crashed") => {
                self.note("crashed", "");
                std::process::abort();
            }
            "crash" => std::process::abort(),
            "spin once" if !self.has("spun") => {
                self.note("spun", "");
                self.spins.store(true, Ordering::Relaxed);
                loop {
                    std::hint::spin_loop();
                }
            }
            "helper" => {
                let script = "sleep 600 >/dev/null 2>&1 & echo $!";
                let output = Command::new("sh").args(["-c", script]).output()?;
                let pid = String::from_utf8_lossy(&output.stdout)
                    .trim()
                    .parse::<u32>();
                return json_answer(out, 200, &json!({"content": "", "pid": pid.unwrap_or(0)}));
            }
            "refuse" => {
                return json_answer(
                    out,
                    400,
                    &json!({"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}),
                );
            }
            "wait" => {
                self.note("waiting", "");
                let mut byte = [0];
                let _ = out.read(&mut byte);
                self.note("gone", "");
                return Ok(());
            }
            "cut" => {
                out.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"content\":")?;
                out.flush()?;
                thread::sleep(Duration::from_millis(100));
                std::process::abort();
            }
            _ => {}
        }
        if body["stream"] != json!(true) {
            thread::sleep(Duration::from_millis(number("pause_ms", 0)));
            return json_answer(
                out,
                200,
                &json!({"content": "whole", "stop": true, "pid": std::process::id()}),
            );
        }
        head(out, 200, "text/event-stream", None)?;
        if let Some(megabytes) = body["flood_mb"].as_u64() {
            return self.flood(megabytes, out);
        }
        let (chunks, pause) = (number("chunks", 3), number("pause_ms", 0));
        for n in 0..chunks {
            if n > 0 {
                thread::sleep(Duration::from_millis(pause));
            }
            if body["crash_at"] == json!(n) {
                chunk(out, "data: {\"content\":\"half an ev")?;
                thread::sleep(Duration::from_millis(100));
                std::process::abort();
            }
            self.note("sent", n);
            chunk(
                out,
                &format!("data: {{\"content\":\"{n} \",\"stop\":false}}\n\n"),
            )?;
        }
        chunk(out, "data: {\"content\":\"\",\"stop\":true}\n\n")?;
        out.write_all(b"0\r\n\r\n")
    }

    /// Writes until it is done or nobody takes it, and notes how far it came.
    fn flood(&self, megabytes: u64, out: &mut dyn Stream) -> io::Result<()> {
        let event = format!(
            "data: {{\"content\":\"{}\",\"stop\":false}}\n\n",
            "x".repeat(1000)
        );
        let mut sent = 0;
        while sent < megabytes << 20 {
            for _ in 0..100 {
                if let Err(error) = chunk(out, &event) {
                    self.note("flood-ended", sent);
                    return Err(error);
                }
                sent += event.len() as u64;
            }
            self.note("flooded", sent);
        }
        chunk(out, "data: {\"content\":\"\",\"stop\":true}\n\n")?;
        out.write_all(b"0\r\n\r\n")
    }
}

/// What this process may do, found out by doing it.
fn rights(request: &Request) -> Value {
    let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let listener = TcpListener::bind("127.0.0.1:0");
    let here = listener.as_ref().ok().and_then(|it| it.local_addr().ok());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    json!({
        "writes": fs::write(body["file"].as_str().unwrap_or_default(), "x").is_ok(),
        "writes_temporary_files": tempfile::tempfile().is_ok(),
        "connects": here.is_some_and(|here| TcpStream::connect(here).is_ok()),
        "makes_udp_sockets": UdpSocket::bind("127.0.0.1:0").is_ok(),
        "gains_privileges": !status.contains("NoNewPrivs:\t1"),
    })
}

fn head(out: &mut dyn Stream, status: u16, kind: &str, length: Option<usize>) -> io::Result<()> {
    let framing = match length {
        Some(length) => format!("Content-Length: {length}"),
        None => "Transfer-Encoding: chunked".to_owned(),
    };
    write!(
        out,
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nAccess-Control-Allow-Origin: engine\r\nX-Engine: fake\r\n{framing}\r\n\r\n"
    )?;
    out.flush()
}

fn chunk(out: &mut dyn Stream, text: &str) -> io::Result<()> {
    write!(out, "{:x}\r\n{text}\r\n", text.len())?;
    out.flush()
}

fn json_answer(out: &mut dyn Stream, status: u16, body: &Value) -> io::Result<()> {
    let text = body.to_string();
    head(
        out,
        status,
        "application/json; charset=utf-8",
        Some(text.len()),
    )?;
    out.write_all(text.as_bytes())
}

fn plain(out: &mut dyn Stream, kind: &str, text: &str) -> io::Result<()> {
    head(out, 200, kind, Some(text.len()))?;
    out.write_all(text.as_bytes())
}

fn read_request(mut reader: impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        path,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}
