//! What serving costs beside computing: processor time per streamed token, the price of idle connections and of a full queue, and
//! how long `/health` takes while a long prompt is read.
//!
//!     cargo bench --bench load -- [FILE.gguf]
//!
//! Runs the release binary on a free port of the loopback, on a machine that does nothing else. The first two parts use the
//! demo model, whose steps are so short that everything around them shows; the third reads a prompt of 4095 tokens with FILE and is left out
//! without one. Medians with the smallest and the largest; exit code 1 when a limit is missed.
//!
//! Overhead per token: processor time of both processes over a streamed answer (`--threads 1`), less that of the same forward
//! passes made in this process; sampling counts as overhead.

use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use bitnet_model::engine::Engine;
use bitnet_model::graph::Entry;
use bitnet_model::protocol::{EngineConfig, HeadMode, KvType, ModelSource, Overrides, WeightsHome};
use bitnet_model::sampler::Want;
use serde_json::{Value, json};

const ROUNDS: usize = 9;
/// Tokens of the measured answers; the demo model has room for 1024.
const ANSWER_TOKENS: usize = 900;
const CONTEXT: usize = 1024;
const SLOTS: usize = 2;
const IDLE_CONNECTIONS: usize = 200;
const QUEUED_REQUESTS: usize = 64;
/// One token less than what 2B-4T has room for.
const PROMPT_TOKENS: usize = 4095;
const HEALTH_PAUSE: Duration = Duration::from_millis(5);
const DEADLINE: Duration = Duration::from_secs(300);

/// What must hold.
const OVERHEAD_LIMIT_US: f64 = 100.0;
const SLOWDOWN_LIMIT: f64 = 0.03;
const HEALTH_LIMIT_MS: f64 = 10.0;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let file = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .map(PathBuf::from);
    match run(file.as_deref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: Option<&Path>) -> Outcome<bool> {
    println!("medians (smallest-largest)");
    let mut kept = overhead()?;
    kept &= crowd()?;
    match file {
        Some(file) => kept &= health(file)?,
        None => println!("skipped: `/health` during a long prompt, no model file was given"),
    }
    Ok(kept)
}

/// Prints a row; whether the median keeps the limit.
fn row(name: &str, mut values: Vec<f64>, limit: f64) -> bool {
    values.sort_by(f64::total_cmp);
    let (low, median, high) = (
        values[0],
        values[values.len() / 2],
        values[values.len() - 1],
    );
    let verdict = if median <= limit { "kept" } else { "MISSED" };
    println!("{name:<58} {median:>8.2}  ({low:.2}-{high:.2})  limit {limit}: {verdict}");
    median <= limit
}

// Overhead

fn overhead() -> Outcome<bool> {
    let args = ["--threads", "1", "--parallel", "1", "--head", "full"];
    let server = Server::start(&args)?;
    let mut alone = Alone::load()?;
    let mut overheads = Vec::new();
    for _ in 0..ROUNDS {
        let before = server.cpu_us();
        server.answer()?;
        let served = server.cpu_us() - before;
        let computed = alone.decode_us();
        overheads.push((served - computed) / ANSWER_TOKENS as f64);
    }
    Ok(row(
        "overhead per streamed token, us of both processes",
        overheads,
        OVERHEAD_LIMIT_US,
    ))
}

/// The demo model in this process, on one thread.
struct Alone(Engine);

impl Alone {
    fn load() -> Outcome<Alone> {
        let config = EngineConfig {
            model: ModelSource::File(demo_model()),
            kernel: bitnet_kernels::Kernel::available()[0].to_string(),
            decode_cpus: vec![0],
            prefill_cpus: vec![0],
            pin: false,
            slots: 1,
            slot_context: CONTEXT,
            prefill_batch: 128,
            kv_type: KvType::F16,
            head: HeadMode::Full,
            draft_max: 0,
            weights: WeightsHome::HugePages,
            mlock: false,
            overrides: Overrides::default(),
        };
        let mut engine = Engine::load(&config, || None)?;
        engine.prepare(Duration::MAX);
        Ok(Alone(engine))
    }

    /// Microseconds of processor time for as many forward passes as an answer has tokens.
    fn decode_us(&mut self) -> f64 {
        self.0.kv_mut().truncate(0, 0);
        let before = cpu_us(std::process::id());
        for i in 0..ANSWER_TOKENS {
            let token = (i * 7 % self.0.model().n_vocab()) as u32;
            let entry = Entry {
                slot: 0,
                token,
                wants_logits: true,
            };
            let want = Want::Best { k: 1, also: &[] };
            black_box(self.0.forward_for(&[entry], &[want]).count());
        }
        cpu_us(std::process::id()) - before
    }
}

// Idle connections and a full queue

fn crowd() -> Outcome<bool> {
    let slots = SLOTS.to_string();
    let server = Server::start(&["--parallel", &slots])?;
    server.full_house()?;
    let (mut idle, mut queued) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let quiet = server.full_house()?;
        let visitors = (0..IDLE_CONNECTIONS)
            .map(|_| server.visitor())
            .collect::<Outcome<Vec<_>>>()?;
        idle.push(100.0 * (quiet / server.full_house()? - 1.0));
        drop(visitors);
        let quiet = server.full_house()?;
        queued.push(100.0 * (quiet / server.full_house_with_queue()? - 1.0));
    }
    let limit = 100.0 * SLOWDOWN_LIMIT;
    let idle = row(
        &format!("slower with {IDLE_CONNECTIONS} idle connections, %"),
        idle,
        limit,
    );
    let queued = row(
        &format!("slower with {QUEUED_REQUESTS} requests waiting, %"),
        queued,
        limit,
    );
    Ok(idle && queued)
}

// Health

fn health(file: &Path) -> Outcome<bool> {
    let context = (PROMPT_TOKENS + 1).to_string();
    let file = file.to_string_lossy();
    let server = Server::start(&["--model", &file, "--parallel", "1", "--ctx-size", &context])?;
    let prompt: Vec<u32> = (0..PROMPT_TOKENS as u32)
        .map(|i| 40 + i * 7 % 200)
        .collect();
    let body = json!({"prompt": prompt, "n_predict": 1, "cache_prompt": false, "temperature": 0});
    let busy = Arc::new(AtomicBool::new(true));
    let asked = thread::spawn({
        let (busy, port) = (Arc::clone(&busy), server.port);
        move || {
            let timings = ask(port, &body).map_err(|error| error.to_string());
            busy.store(false, Ordering::Relaxed);
            timings
        }
    });
    let mut times_ms = Vec::new();
    while busy.load(Ordering::Relaxed) {
        let began = Instant::now();
        get(server.port, "/health")?;
        times_ms.push(began.elapsed().as_secs_f64() * 1e3);
        sleep(HEALTH_PAUSE);
    }
    let reply = asked.join().expect("asking does not panic")?;
    times_ms.sort_by(f64::total_cmp);
    let at = |share: f64| times_ms[((times_ms.len() - 1) as f64 * share) as usize];
    let (median, p99, most) = (at(0.5), at(0.99), at(1.0));
    let verdict = if p99 <= HEALTH_LIMIT_MS {
        "kept"
    } else {
        "MISSED"
    };
    println!(
        "`/health` while {} tokens are read ({:.1} s), ms: median {median:.2}, 99 % {p99:.2}, largest {most:.2} of {}  limit {HEALTH_LIMIT_MS} for 99 %: {verdict}",
        reply["timings"]["prompt_n"],
        reply["timings"]["prompt_ms"].as_f64().unwrap_or(f64::NAN) / 1e3,
        times_ms.len(),
    );
    Ok(p99 <= HEALTH_LIMIT_MS)
}

// The program under load

/// A server that ends with its owner.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(args: &[&str]) -> Outcome<Server> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let child = Command::new(env!("CARGO_BIN_EXE_bitnet-launch"))
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Server { child, port };
        let began = Instant::now();
        while get(port, "/health").is_err() {
            if began.elapsed() > DEADLINE {
                return Err("the server did not get ready".into());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Streams one answer to its end.
    fn answer(&self) -> Outcome<Value> {
        last_frame(self.stream(ANSWER_TOKENS)?)
    }

    fn stream(&self, tokens: usize) -> Outcome<TcpStream> {
        let body = json!({
            "prompt": "Once", "n_predict": tokens, "ignore_eos": true, "temperature": 0,
            "cache_prompt": false, "stream": true,
        });
        send(self.port, "/completion", &body)
    }

    /// Fills all slots with streams of the same length; tokens per second of the slowest.
    fn full_house(&self) -> Outcome<f64> {
        let streams: Vec<TcpStream> = (0..SLOTS)
            .map(|_| self.stream(ANSWER_TOKENS))
            .collect::<Outcome<_>>()?;
        slowest(streams)
    }

    /// The same, with requests waiting behind them that give up once the measured ones have ended.
    fn full_house_with_queue(&self) -> Outcome<f64> {
        let streams: Vec<TcpStream> = (0..SLOTS)
            .map(|_| self.stream(ANSWER_TOKENS))
            .collect::<Outcome<_>>()?;
        let waiting: Vec<TcpStream> = (0..QUEUED_REQUESTS)
            .map(|_| self.stream(1))
            .collect::<Outcome<_>>()?;
        let speed = slowest(streams);
        drop(waiting);
        self.until_idle()?;
        speed
    }

    fn until_idle(&self) -> Outcome<()> {
        let began = Instant::now();
        while get(self.port, "/slots")?.contains("\"is_processing\":true") {
            if began.elapsed() > DEADLINE {
                return Err("the slots did not get free".into());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A connection that has asked once and stays.
    fn visitor(&self) -> Outcome<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut head = [0; 15];
        stream.read_exact(&mut head)?;
        Ok(stream)
    }

    fn cpu_us(&self) -> f64 {
        cpu_us(self.child.id())
    }
}

/// Processor time of a process and its children in microseconds, from each thread's `schedstat`.
fn cpu_us(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ns: f64 = text
                .split(' ')
                .next()
                .and_then(|ns| ns.parse().ok())
                .unwrap_or(0.0);
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let pids = children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok());
            ns / 1e3 + pids.map(cpu_us).sum::<f64>()
        })
        .sum()
}

fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bitnet-demo.gguf")
}

// HTTP

fn get(port: u16, path: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    match reply.starts_with("HTTP/1.1 200") {
        true => Ok(reply),
        false => Err(reply.lines().next().unwrap_or("no answer").into()),
    }
}

fn send(port: u16, path: &str, body: &Value) -> Outcome<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let body = body.to_string();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream)
}

fn ask(port: u16, body: &Value) -> Outcome<Value> {
    let mut reply = String::new();
    send(port, "/completion", body)?.read_to_string(&mut reply)?;
    let from = reply.find("\r\n\r\n").ok_or("no answer")?;
    let body = reply[from..].trim();
    match reply.starts_with("HTTP/1.1 200") {
        true => Ok(serde_json::from_str(body)?),
        false => Err(body.into()),
    }
}

/// Reads a stream to its end; its last frame.
fn last_frame(stream: TcpStream) -> Outcome<Value> {
    let mut last = None;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(data) = line.strip_prefix("data: ") {
            last = Some(data.to_owned());
        }
    }
    Ok(serde_json::from_str(&last.ok_or("no frame")?)?)
}

fn slowest(streams: Vec<TcpStream>) -> Outcome<f64> {
    let readers: Vec<_> = streams
        .into_iter()
        .map(|stream| thread::spawn(move || last_frame(stream).map_err(|error| error.to_string())))
        .collect();
    let mut slowest = f64::INFINITY;
    for reader in readers {
        let frame = reader.join().expect("reading does not panic")?;
        let speed = frame["timings"]["predicted_per_second"].as_f64();
        slowest = slowest.min(speed.ok_or("no timings")?);
    }
    Ok(slowest)
}
