//! The program as a user meets it: serve, ask, stream, stop, and every kind of bad input.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, demo_model, run, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Service managers and containers kill after this.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

fn story(seed: u64) -> Value {
    json!({"prompt": "Once upon a time", "seed": seed, "n_predict": 40, "ignore_eos": true})
}

#[test]
fn serves_the_demo_model() {
    let server = Server::ready(&[]);
    assert_eq!(server.get("/health").json()["status"], "ok");

    let reply = server.post(
        "/completion",
        &json!({"prompt": "BitNet is", "n_predict": 16}),
    );
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(!reply.json()["content"].as_str().unwrap().is_empty());

    let chat =
        json!({"messages": [{"role": "user", "content": "What is BitNet?"}], "max_tokens": 24});
    for path in ["/chat/completions", "/v1/chat/completions"] {
        let reply = server.post(path, &chat);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let reply = reply.json();
        assert!(
            !reply["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .is_empty()
        );
        assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    }
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1);
    let props = server.get("/props").json();
    assert!(props["total_slots"].as_u64().unwrap() >= 1);

    let text = "Hello, world";
    let tokens = server.post("/tokenize", &json!({"content": text})).json();
    let back = server
        .post("/detokenize", &json!({"tokens": tokens["tokens"]}))
        .json();
    assert_eq!(back["content"].as_str().unwrap(), text);

    let log = server.log().join("\n");
    for wanted in [
        "Auto-selected kernel: i2_s",
        "Auto-configured threads: ",
        "model loaded",
        "listening on http://127.0.0.1:",
    ] {
        assert!(log.contains(wanted), "`{wanted}` is not in the log:\n{log}");
    }
}

#[test]
fn chat_streams_end_with_done() {
    let server = Server::ready(&[]);
    let body = json!({
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 24, "seed": 5, "stream": true,
    });
    let frames: Vec<String> = server.stream("/v1/chat/completions", &body).collect();
    assert_eq!(frames.last().unwrap(), "[DONE]");
    let streamed: String = frames[..frames.len() - 1]
        .iter()
        .map(|frame| serde_json::from_str::<Value>(frame).unwrap())
        .filter_map(|frame| {
            frame["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    let mut whole = body;
    whole["stream"] = json!(false);
    let reply = server.post("/v1/chat/completions", &whole).json();
    assert_eq!(reply["choices"][0]["message"]["content"], json!(streamed));
}

#[test]
fn answers_while_loading() {
    let server = Server::start(&[]);
    let reply = server.get("/health");
    if reply.status != 200 {
        assert_eq!(reply.error(), (503, "unavailable_error".into()));
        assert_eq!(reply.json()["error"]["message"], "Loading model");
    }
    server.wait_until_ready();
}

/// The promise: same model, prompt, parameters and seed, same tokens, whatever else happens.
#[test]
fn the_same_tokens_whatever_the_circumstances() {
    let one = Server::ready(&["--threads", "1", "--parallel", "1", "--ctx-size", "256"]);
    let wanted: Vec<_> = (0..4).map(|seed| one.complete(&story(seed))).collect();
    assert!(wanted.iter().all(|(_, tokens)| tokens.len() == 40));
    assert_ne!(wanted[0], wanted[1], "seeds matter");

    let four = Server::ready(&["--threads", "2", "--parallel", "4", "--ctx-size", "1024"]);
    for server in [&one, &four] {
        for (seed, wanted) in (0..).zip(&wanted) {
            let mut uncached = story(seed);
            uncached["cache_prompt"] = json!(false);
            assert_eq!(server.complete(&uncached), *wanted, "uncached, seed {seed}");
            assert_eq!(
                server.complete(&story(seed)),
                *wanted,
                "cached, seed {seed}"
            );
            assert_eq!(
                server.complete_streamed(&story(seed)),
                *wanted,
                "streamed, seed {seed}"
            );
        }
    }
    for round in 0..3 {
        let (four, wanted) = (&four, &wanted);
        thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || {
                    let found = match (seed + round) % 2 {
                        0 => four.complete(&story(seed)),
                        _ => four.complete_streamed(&story(seed)),
                    };
                    assert_eq!(found, wanted[seed as usize], "4 at a time, seed {seed}");
                });
            }
        });
    }
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let server = Server::ready(&["--parallel", "1"]);
    let mut body = story(1);
    body["stream"] = json!(true);
    body["n_predict"] = json!(100_000);
    let mut stream = server.stream("/completion", &body);
    assert_eq!(stream.take_frames(2).len(), 2);
    drop(stream);
    assert_eq!(server.complete(&story(2)).1.len(), 40);
}

#[test]
fn sigterm_ends_it_with_exit_code_0() {
    let mut server = Server::ready(&[]);
    let engine = server.engine();
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(began.elapsed() < EXIT_LIMIT, "{:?}", began.elapsed());
    wait_for("the engine's end", || {
        (!common::is_alive(engine)).then_some(())
    });
}

#[test]
fn sigterm_while_loading() {
    let mut server = Server::start(&[]);
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(began.elapsed() < EXIT_LIMIT, "{:?}", began.elapsed());
}

#[test]
fn sigterm_lets_a_stream_end_properly() {
    let mut server = Server::ready(&["--parallel", "1"]);
    let mut body = story(3);
    body["stream"] = json!(true);
    let mut stream = server.stream("/completion", &body);
    let first = stream.take_frames(2);
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    let (_, tokens) = stream.collect_after(first);
    assert!(!tokens.is_empty());
    assert_eq!(server.wait().code(), Some(0));
    assert!(began.elapsed() < EXIT_LIMIT, "{:?}", began.elapsed());
}

#[test]
fn sigterm_cuts_an_endless_stream_with_a_last_frame() {
    let mut server = Server::ready(&["--parallel", "1", "--context-shift"]);
    let mut body = story(3);
    body["stream"] = json!(true);
    body["n_predict"] = json!(10_000_000);
    let mut stream = server.stream("/completion", &body);
    let first = stream.take_frames(2);
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    let reader = thread::spawn(move || stream.collect_after(first));
    assert_eq!(server.wait().code(), Some(0));
    assert!(began.elapsed() < EXIT_LIMIT, "{:?}", began.elapsed());
    assert!(!reader.join().unwrap().1.is_empty());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::ready(&[
        "--parallel",
        "1",
        "--context-shift",
        "--drain-timeout",
        "100",
    ]);
    let mut body = story(3);
    body["stream"] = json!(true);
    body["n_predict"] = json!(10_000_000);
    let mut stream = server.stream("/completion", &body);
    assert_eq!(stream.take_frames(1).len(), 1);
    server.signal(Signal::SIGTERM);
    server.wait_for_log(|line| line.contains("shutting down").then_some(()));
    let health = server.get("/health");
    assert_eq!(health.error(), (503, "unavailable_error".into()));
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(130));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, text) = run(&["--host", "127.0.0.1", "--port", &port]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&format!("port {port} is in use")), "{text}");
    assert!(text.contains("hint: ") && text.contains("--port"), "{text}");
}

/// Starts with a model file of these bytes; exit code and standard error.
fn start_with(bytes: &[u8]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    run(&[
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "-m",
        path.to_str().unwrap(),
    ])
}

fn assert_one_error(found: (i32, String), wanted: &[&str]) {
    let (code, text) = found;
    assert_eq!(code, 1, "{text}");
    let errors: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(text.contains("model.gguf"), "{text}");
    assert!(
        wanted.iter().all(|part| text.contains(part)),
        "{wanted:?} not in {text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn bad_model_files_are_refused_with_one_error() {
    let missing = run(&["--port", "0", "-m", "/nowhere/model.gguf"]);
    assert_one_error(missing, &["/nowhere/model.gguf"]);
    assert_one_error(start_with(b""), &["empty"]);
    assert_one_error(
        start_with(b"<!DOCTYPE html><html>not found</html>"),
        &["GGUF"],
    );
    assert_one_error(start_with(&[0x42; 10_000]), &["GGUF"]);
    let good = fs::read(demo_model()).unwrap();
    assert_one_error(start_with(&good[..good.len() / 2]), &["file ends after"]);
    assert_one_error(start_with(&good[..500]), &["hint: "]);
    let stranger = replaced(&good, b"bitnet-b1.58", b"kitnet-b1.58");
    assert_one_error(start_with(&stranger), &["architecture `kitnet-b1.58`"]);
    let mut huge = good.clone();
    huge[8..16].fill(0xff);
    assert_one_error(start_with(&huge), &[]);
}

/// All occurrences replaced, at the same length.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        at += 1;
    }
    bytes
}

#[test]
fn bad_requests_get_the_one_clear_error_and_hurt_nobody() {
    let server = Server::ready(&["--parallel", "2", "--ctx-size", "256"]);
    let invalid = (400, "invalid_request_error".to_owned());
    for body in [
        "",
        "{",
        "{\"prompt\": \"a\"",
        "nonsense",
        "[1, 2",
        "\"text\"",
        "{\"prompt\": {}}",
    ] {
        assert_eq!(
            server.post_text("/completion", body).error(),
            invalid,
            "{body}"
        );
    }
    let nested = "[".repeat(1_000_000);
    assert_eq!(server.post_text("/completion", &nested).error(), invalid);
    let long = json!({"prompt": "word ".repeat(5_000), "n_predict": 4});
    let reply = server.post("/completion", &long);
    assert_eq!(reply.error(), (400, "exceed_context_size_error".into()));
    assert!(
        reply.body.contains("exceeds the available context size"),
        "{}",
        reply.body
    );
    let missing = server.get("/no/such/route");
    assert_eq!(missing.error(), (404, "not_found_error".into()));
    assert_eq!(huge_body_status(server.port), 413);
    assert_eq!(server.complete(&story(0)).1.len(), 40);
    assert_eq!(server.engines().len(), 1, "the engine never noticed");
}

/// Announces a body of a terabyte.
fn huge_body_status(port: u16) -> u16 {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = "POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n{\"prompt\": \"";
    socket.write_all(head.as_bytes()).unwrap();
    let mut reply = [0; 12];
    socket.read_exact(&mut reply).unwrap();
    String::from_utf8_lossy(&reply[9..]).parse().unwrap()
}

#[test]
fn wrong_flags_are_wrong_usage() {
    for args in [
        &["--no-such-flag"][..],
        &["--port", "99999999"],
        &["--threads", "many"],
    ] {
        let (code, text) = run(args);
        assert_eq!(code, 2, "{args:?}: {text}");
        assert!(text.contains("error: "), "{text}");
    }
}

#[test]
fn a_copy_of_the_model_on_disk_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.gguf");
    fs::copy(demo_model(), &path).unwrap();
    let embedded = Server::ready(&["--ctx-size", "256"]).complete(&story(9));
    let from_file =
        Server::ready(&["--ctx-size", "256", "-m", path_text(&path)]).complete(&story(9));
    assert_eq!(embedded, from_file);
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}
