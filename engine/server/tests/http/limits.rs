//! Clients that are slow, silent, greedy or too many: each is cut off alone, and the server goes on.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use bitnet_server::ServerConfig;
use serde_json::json;

use crate::backend::Script;
use crate::client::{connect, exchange, raw_request, read_reply, request};
use crate::server::Server;

/// Read time of these tests.
const SHORT: Duration = Duration::from_millis(300);
/// Far more than `SHORT`, far less than any default.
const SOON: Duration = Duration::from_secs(8);

fn impatient() -> Server {
    Server::with(ServerConfig {
        read_timeout: SHORT,
        ..ServerConfig::default()
    })
}

/// Sends a byte every few milliseconds until the server closes; the time it took, and what it answered.
fn drip(mut stream: TcpStream, bytes: &[u8]) -> (Duration, String) {
    let began = Instant::now();
    for byte in bytes {
        if began.elapsed() > SOON || stream.write_all(&[*byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    (began.elapsed(), String::from_utf8_lossy(&rest).into_owned())
}

/// Polls for far longer than anything here takes on a busy machine.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < 2 * SOON, "waited for: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

fn has_answer(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let answer = stream.peek(&mut [0; 1]);
    stream.set_nonblocking(false).unwrap();
    !matches!(answer, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_head_that_drips_is_cut_off() {
    let server = impatient();
    let head = format!("GET /health HTTP/1.1\r\nX-Slow: {}", "a".repeat(1000));
    let (took, answer) = drip(connect(server.address), head.as_bytes());
    assert!(took >= SHORT && took < SOON, "{took:?}");
    assert!(!answer.contains("200 OK"), "{answer}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_second_head_that_drips_is_cut_off_too() {
    let server = impatient();
    let stream = connect(server.address);
    (&stream)
        .write_all(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
        .unwrap();
    let reply = read_reply(&mut BufReader::new(stream.try_clone().unwrap()));
    assert_eq!(reply.status, 200);
    // A pause between requests is no slow head.
    thread::sleep(2 * SHORT);
    let (took, _) = drip(stream, "a".repeat(1000).as_bytes());
    assert!(took >= SHORT && took < SOON, "{took:?}");
}

#[test]
fn a_body_that_drips_is_cut_off() {
    let server = impatient();
    server.says("x");
    for framing in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        let mut stream = connect(server.address);
        let head = format!("POST /completion HTTP/1.1\r\nHost: t\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let bytes = match framing {
            "Transfer-Encoding: chunked" => "1\r\na\r\n".repeat(200),
            _ => "a".repeat(1000),
        };
        let began = Instant::now();
        let mut reader = stream.try_clone().unwrap();
        let answer = thread::spawn(move || {
            let mut first = [0; 12];
            reader.read_exact(&mut first).unwrap();
            (Instant::now(), String::from_utf8_lossy(&first).into_owned())
        });
        let (_, _) = drip(stream, bytes.as_bytes());
        let (at, answer) = answer.join().unwrap();
        assert!(answer.ends_with("408"), "{framing}: {answer}");
        assert!(at - began < SOON, "{framing}: {:?}", at - began);
    }
}

/// A slow line is not an attack: what comes at more than the least rate is read to its end, however long it takes.
#[test]
fn a_body_that_comes_slowly_but_steadily_is_read() {
    let server = impatient();
    server.says("x");
    let body = json!({ "prompt": "x".repeat(900), "n_predict": 1 }).to_string();
    let padded = format!("{body}{}", " ".repeat(20_000));
    let mut stream = connect(server.address);
    let raw = raw_request("POST", "/completion", &[], padded.as_bytes());
    for piece in raw.chunks(1024) {
        stream.write_all(piece).unwrap();
        thread::sleep(SHORT / 10);
    }
    assert_eq!(read_reply(&mut BufReader::new(stream)).status, 200);
}

#[test]
fn idle_connections_are_closed() {
    let server = Server::with(ServerConfig {
        idle_timeout: SHORT,
        ..ServerConfig::default()
    });
    let mut silent = connect(server.address);
    let mut served = connect(server.address);
    served
        .write_all(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
        .unwrap();
    let reply = read_reply(&mut BufReader::new(served.try_clone().unwrap()));
    assert_eq!(reply.status, 200);
    let began = Instant::now();
    assert!(is_closed(&mut silent) && is_closed(&mut served));
    assert!(began.elapsed() < SOON);
}

/// The time between two tokens is no idle time.
#[test]
fn an_answer_may_take_longer_than_a_connection_may_idle() {
    let server = Server::with(ServerConfig {
        idle_timeout: SHORT,
        read_timeout: SHORT,
        ..ServerConfig::default()
    });
    server.plays(Script {
        tokens: server.byte_tokens(b"abc"),
        per_token: SHORT + SHORT / 2,
        ..Script::default()
    });
    let reply = server.post("/completion", json!({ "prompt": "x", "stream": true }));
    let frames = reply.frames();
    assert_eq!(frames.last().unwrap()["stop"], true);
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let server = Server::with(ServerConfig {
        write_timeout: SHORT,
        ..ServerConfig::default()
    });
    server.plays(Script {
        tokens: server.byte_tokens(&vec![b'x'; 100_000]),
        ..Script::default()
    });
    let mut stream = connect(server.address);
    let body = json!({ "prompt": "p", "stream": true, "n_probs": 5 }).to_string();
    let raw = raw_request("POST", "/completion", &[], body.as_bytes());
    stream.write_all(&raw).unwrap();
    eventually("it is not served any more", || {
        server.backend.running() == 0 && !server.backend.jobs.lock().unwrap().is_empty()
    });
    assert_eq!(server.get("/health").status, 200);
    drop(stream);
}

#[test]
fn long_heads_and_addresses_are_refused() {
    let server = Server::start();
    for (raw, status) in [
        (
            format!("GET /health?{} HTTP/1.1\r\n\r\n", "a".repeat(10_000)),
            414,
        ),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(40_000)), 414),
        (
            format!("GET / HTTP/1.1\r\nX-A: {}\r\n\r\n", "a".repeat(100_000)),
            431,
        ),
        (
            format!("GET / HTTP/1.1\r\n{}\r\n", "X-A: b\r\n".repeat(1000)),
            431,
        ),
        ("GET /health HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
        ("G\u{0}T /health HTTP/1.1\r\n\r\n".to_owned(), 400),
    ] {
        let mut stream = connect(server.address);
        // The refusal may come before all is sent.
        let _ = stream.write_all(raw.as_bytes());
        let reply = read_reply(&mut BufReader::new(stream));
        assert_eq!(reply.status, status, "{}", &raw[..40]);
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_body_far_too_large_is_refused_and_the_client_reads_why() {
    let server = Server::with(ServerConfig {
        body_limit_bytes: 1 << 20,
        ..ServerConfig::default()
    });
    let huge = vec![b' '; 24 << 20];
    for framing in ["Content-Length", "chunked"] {
        let mut raw = match framing {
            "chunked" => format!(
                "POST /completion HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
                huge.len()
            )
            .into_bytes(),
            _ => raw_request("POST", "/completion", &[("Content-Length", "25165824")], b""),
        };
        raw.extend_from_slice(&huge);
        let (status, _, message) = exchange(server.address, &raw).error();
        assert_eq!(status, 413, "{framing}: {message}");
    }
    // The same where the body isn't even looked at.
    let (status, _, _) = request(server.address, "POST", "/nothing", &[], &huge).error();
    assert_eq!(status, 404);
}

#[test]
fn bodies_of_very_many_values_are_refused() {
    let server = Server::start();
    let body = format!("{{\"prompt\": [{}1]}}", "[],".repeat(2_000_000));
    let (status, _, message) = server.post_text("/completion", &body).error();
    assert_eq!(status, 400);
    assert!(message.contains("JSON values"), "{message}");
}

#[test]
fn large_bodies_share_their_memory() {
    let server = Server::with(ServerConfig {
        body_limit_bytes: 1 << 20,
        ..ServerConfig::default()
    });
    server.says("x");
    let filler = " ".repeat(800 << 10);
    let raw = raw_request(
        "POST",
        "/completion",
        &[("Content-Length", "1000000")],
        filler.as_bytes(),
    );
    let hold = || {
        let mut stream = connect(server.address);
        // The refusal may come before all is sent.
        let _ = stream.write_all(&raw);
        stream
    };
    let mut first = hold();
    let second = format!("{{\"prompt\": \"x\"}}{filler}");
    eventually("there is no room for another", || {
        let is_refused = server.post_text("/completion", &second).status == 503;
        // While the first was being read, the second may have had the room, and the first was the one refused.
        if !is_refused && has_answer(&first) {
            first = hold();
        }
        is_refused
    });
    assert_eq!(
        server.post("/completion", json!({ "prompt": "x" })).status,
        200,
        "small ones need no room"
    );
    drop(first);
    eventually("there is room again", || {
        server.post_text("/completion", &second).status == 200
    });
}

#[test]
fn connections_far_beyond_the_bound_are_told_so() {
    let server = Server::with(ServerConfig {
        max_connections: 3,
        ..ServerConfig::default()
    });
    // Those within the bound, and those that are kept for probes.
    let kept: Vec<_> = (0..3 + 32).map(|_| connect(server.address)).collect();
    let refused: Vec<_> = (0..20)
        .map(|_| exchange(server.address, b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n"))
        .collect();
    for reply in refused {
        assert_eq!(reply.error().2, "too many connections");
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    drop(kept);
    eventually("it serves again", || server.get("/props").status == 200);
}
