//! Ends of the server, wanted and unwanted: signals while it loads, reads a prompt, or speaks; a port that is taken; engines
//! that die before they are ready.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::{Server, is_alive, program, wait_for};

/// Time that scripts give before they kill.
const POLITE: Duration = Duration::from_secs(5);

fn story(n_predict: usize) -> Value {
    json!({"prompt": "Once upon a time", "seed": 3, "n_predict": n_predict, "ignore_eos": true})
}

/// SIGTERM was sent: the server ends with code 0, soon, and leaves no engine behind.
fn ends_well(mut server: Server) {
    let began = Instant::now();
    let engines = server.engines();
    assert_eq!(server.wait().code(), Some(0));
    assert!(began.elapsed() < POLITE, "{:?}", began.elapsed());
    for engine in engines {
        assert!(!is_alive(engine), "engine {engine} is left");
    }
}

#[test]
fn sigterm_while_loading() {
    for pause_ms in [0, 3, 10, 30] {
        let server = Server::start(&["--threads", "1"]);
        thread::sleep(Duration::from_millis(pause_ms));
        server.signal(Signal::SIGTERM);
        ends_well(server);
    }
}

#[test]
fn sigterm_while_a_prompt_is_read() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1", "--batch-size", "32"]);
    let n_ctx = server.get("/props").json()["default_generation_settings"]["n_ctx"].as_u64();
    let n_prompt = n_ctx.unwrap().min(4096) as usize - 50;
    let prompt: Vec<usize> = (0..n_prompt).map(|n| 300 + n % 700).collect();
    let body = json!({"prompt": prompt, "n_predict": 8, "temperature": 0, "cache_prompt": false, "ignore_eos": true});
    let wanted = server.complete(&body);
    thread::scope(|scope| {
        let client = scope.spawn(|| server.complete(&body));
        wait_for("the prompt", || {
            let slots = server.get("/slots").json();
            (slots[0]["is_processing"] == json!(true)).then_some(())
        });
        server.signal(Signal::SIGTERM);
        assert_eq!(client.join().unwrap(), wanted);
    });
    ends_well(server);
}

#[test]
fn sigterm_while_a_stream_runs() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1"]);
    let mut body = story(200);
    let wanted = server.complete(&body);
    body["stream"] = json!(true);
    let mut stream = server.stream("/completion", &body);
    let first = stream.take_frames(3);
    server.signal(Signal::SIGTERM);
    assert_eq!(stream.collect_after(first), wanted);
    ends_well(server);
}

#[test]
fn sigterm_while_a_stream_runs_that_is_too_long() {
    let flags = [
        "--threads",
        "1",
        "--parallel",
        "1",
        "--context-shift",
        "--drain-timeout",
        "0.5",
    ];
    let server = Server::ready(&flags);
    let mut body = story(10_000_000);
    body["stream"] = json!(true);
    let mut stream = server.stream("/completion", &body);
    let first = stream.take_frames(3);
    server.signal(Signal::SIGTERM);
    let (text, _) = stream.collect_after(first);
    assert!(
        !text.is_empty(),
        "it ends with a proper frame, and what was said"
    );
    ends_well(server);
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let mut server = Server::ready(&["--threads", "1", "--context-shift", "--drain-timeout", "60"]);
    let mut body = story(10_000_000);
    body["stream"] = json!(true);
    let mut stream = server.stream("/completion", &body);
    stream.take_frames(3);
    let engine = server.engine();
    server.signal(Signal::SIGTERM);
    server.wait_for_log(|line| line.contains("shutting down").then_some(()));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(143));
    wait_for("the engine's end", || (!is_alive(engine)).then_some(()));
}

#[test]
fn a_port_that_is_taken() {
    let server = Server::ready(&["--threads", "1"]);
    let dir = tempfile::tempdir().unwrap();
    let port = server.port.to_string();
    let output = program(dir.path())
        .args(["--port", &port])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let named = text.contains(&format!("port {port} is in use")) && text.contains("--port");
    assert!(named, "{text}");
    assert_eq!(server.get("/health").status, 200);
}

/// Children of a process.
fn children(of: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{of}/task"));
    let lists = threads.into_iter().flatten().flatten();
    let pids = lists.map(|thread| fs::read_to_string(thread.path().join("children")));
    let pids: Vec<String> = pids.map(Result::unwrap_or_default).collect();
    let pids = pids.iter().flat_map(|list| list.split_whitespace());
    pids.filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
        .collect()
}

/// Kills this many engines as soon as they are there: they have read no weights yet.
fn kill_at_birth(server: Pid, mut n: usize) {
    let mut killed = Vec::new();
    while n > 0 && is_alive(server) {
        for child in children(server) {
            if !killed.contains(&child) && kill(child, Signal::SIGKILL).is_ok() {
                killed.push(child);
                n -= 1;
            }
        }
    }
}

#[test]
fn engines_that_die_while_they_load_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program(dir.path());
    command.args(["--host", "127.0.0.1", "--port", "0", "--threads", "1"]);
    let server = Server::launch(command, dir, |pid| {
        thread::spawn(move || kill_at_birth(pid, 2));
    });
    server.wait_until_ready();
    assert!(!server.complete(&story(5)).0.is_empty());
    server.signal(Signal::SIGTERM);
    ends_well(server);
}

/// What the server said and how it ended, when no engine lived long enough to get ready. `None`: one did, before it was
/// found and killed, and a server that has worked stays up.
fn die_while_loading() -> Option<(String, ExitStatus)> {
    let dir = tempfile::tempdir().unwrap();
    let mut server = program(dir.path())
        .args(["--host", "127.0.0.1", "--port", "0", "--threads", "1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(server.id() as i32);
    let killer = thread::spawn(move || kill_at_birth(pid, usize::MAX));
    let mut text = String::new();
    let mut was_ready = false;
    for line in BufReader::new(server.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains("model loaded in") {
            was_ready = true;
            kill(pid, Signal::SIGTERM).unwrap();
        }
        text += &format!("{line}\n");
    }
    let status = server.wait().unwrap();
    killer.join().unwrap();
    (!was_ready).then_some((text, status))
}

#[test]
fn engines_that_always_die_while_they_load_end_the_server() {
    let (text, status) = (0..20).find_map(|_| die_while_loading()).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    let said = text.lines().any(|line| {
        line.starts_with("error: ") && line.contains("5 times") && line.contains("SIGKILL")
    });
    assert!(said, "{text}");
}
