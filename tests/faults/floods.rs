//! Clients that are too many, too slow, too large or not clients at all.
//!
//! `BITNET_FAULT_REQUESTS` says how many malformed requests are sent; 10,000 take some seconds with the release binary.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use super::count;
use crate::common::{LONG, Server, wait_for};

const REQUESTS: usize = 2000;
const SEED: u64 = 20_261_123;

fn story() -> Value {
    json!({"prompt": "Once upon a time", "seed": 6, "n_predict": 60, "ignore_eos": true})
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// What comes until the other side closes.
fn rest_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Resident memory of the server process.
fn resident_kb(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// This process opens as many sockets as the server, and as many again.
fn more_files() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(4096)), hard).unwrap();
}

#[test]
fn five_hundred_connections() {
    more_files();
    let server = Server::ready(&["--threads", "1"]);
    let wanted = server.complete(&story());
    let request = b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n";
    let mut connections: Vec<_> = (0..500).map(|_| connect(&server)).collect();
    for _ in 0..2 {
        for connection in &mut connections {
            connection.write_all(request).unwrap();
        }
        for connection in &mut connections {
            let mut head = [0; 12];
            connection.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200");
        }
        assert_eq!(server.complete(&story()), wanted);
        // The rest of the answers.
        for connection in &mut connections {
            connection.set_nonblocking(true).unwrap();
            let mut rest = [0; 8192];
            while connection.read(&mut rest).is_ok_and(|n| n > 0) {}
            connection.set_nonblocking(false).unwrap();
        }
    }
    drop(connections);
    assert_eq!(server.complete(&story()), wanted);
}

#[test]
fn far_more_connections_than_there_is_room_for() {
    more_files();
    let server = Server::ready(&["--threads", "1"]);
    let wanted = server.complete(&story());
    let mut connections: Vec<_> = (0..900).map(|_| connect(&server)).collect();
    for connection in &mut connections {
        // Some are closed already.
        let _ = connection
            .write_all(b"GET /v1/models HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    }
    let (mut served, mut refused, mut closed) = (0, 0, 0);
    for connection in &mut connections {
        match rest_of(connection).get(9..12) {
            Some("200") => served += 1,
            Some("503") => refused += 1,
            Some(other) => panic!("status {other}"),
            None => closed += 1,
        }
    }
    assert!(
        served >= 500 && served + refused + closed == 900,
        "{served} {refused} {closed}"
    );
    drop(connections);
    assert_eq!(server.complete(&story()), wanted);
}

#[test]
fn hundreds_of_requests_at_once() {
    more_files();
    let server = Server::ready(&["--threads", "1", "--max-queue", "100", "--parallel", "4"]);
    let wanted = server.complete(&story());
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..300 {
            scope.spawn(|| {
                let mut body = story();
                body["return_tokens"] = json!(true);
                let reply = server.post("/completion", &body);
                match reply.status {
                    200 => {
                        assert_eq!(reply.json()["content"], json!(wanted.0));
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    429 => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    other => panic!("status {other}: {}", reply.body),
                }
            });
        }
    });
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    assert!(answered >= 100, "{answered} answered, {refused} refused");
}

#[test]
fn slow_loris() {
    let server = Server::ready(&["--threads", "1", "--timeout", "2"]);
    let wanted = server.complete(&story());
    let began = Instant::now();
    let heads = [
        "GET /health HTTP/1.1\r\nX-A: ",
        "POST /completion HTTP/1.1\r\nContent-Length: 9999\r\n\r\n",
        "",
    ];
    let mut slow: Vec<_> = (0..120)
        .map(|n| {
            let mut stream = connect(&server);
            stream.write_all(heads[n % heads.len()].as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            Some(stream)
        })
        .collect();
    // A byte per connection and round until all are cut off. Others are served meanwhile.
    while slow.iter().any(Option::is_some) {
        assert!(
            began.elapsed() < LONG,
            "{} are still served",
            slow.iter().flatten().count()
        );
        for connection in &mut slow {
            let Some(stream) = connection else { continue };
            let is_open = match stream.read(&mut [0; 512]) {
                Ok(n) => n > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
            if !is_open || stream.write_all(b"a").is_err() {
                *connection = None;
            }
        }
        assert_eq!(server.complete(&story()), wanted);
        thread::sleep(Duration::from_millis(100));
    }
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[test]
fn oversized_bodies() {
    let server = Server::ready(&["--threads", "1", "--max-body", "1"]);
    let wanted = server.complete(&story());
    let before = resident_kb(&server);
    let piece = vec![b'x'; 1 << 20];
    thread::scope(|scope| {
        for client in 0..8 {
            let (server, piece) = (&server, &piece);
            scope.spawn(move || {
                let mut stream = connect(server);
                let chunked = client % 2 == 0;
                let framing = if chunked {
                    "Transfer-Encoding: chunked"
                } else {
                    "Content-Length: 67108864"
                };
                write!(
                    stream,
                    "POST /completion HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{framing}\r\n\r\n"
                )
                .unwrap();
                for _ in 0..64 {
                    if chunked {
                        write!(stream, "{:x}\r\n", piece.len()).unwrap();
                    }
                    stream.write_all(piece).unwrap();
                    if chunked {
                        write!(stream, "\r\n").unwrap();
                    }
                }
                if chunked {
                    write!(stream, "0\r\n\r\n").unwrap();
                }
                let answer = rest_of(&mut stream);
                // Chunks announce nothing: others may have taken the memory before it is known how many there are.
                let status = answer.get(9..12).unwrap_or("none");
                assert!(status == "413" || chunked && status == "503", "{answer}");
            });
        }
    });
    let grown = resident_kb(&server).saturating_sub(before);
    assert!(grown < 60_000, "{grown} KB more for 512 MB of bodies");
    assert_eq!(server.complete(&story()), wanted);
}

/// A generator of numbers from a seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides.max(1)
    }
}

fn proper_requests() -> Vec<Vec<u8>> {
    let user = json!([{"role": "user", "content": "Hi, Grüße!"}]);
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let bodies = [
        (
            "/completion",
            json!({"prompt": "Once", "n_predict": 3, "stream": true, "logit_bias": [[5, 1.5]], "stop": ["x"]}),
        ),
        (
            "/completion",
            json!({"prompt": [1, 2, "x"], "n_predict": 2, "grammar": "root ::= [a-z]+ | \"x\"{2,3}", "n_probs": 2}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 2, "echo": true}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": user, "max_tokens": 3, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": user, "max_tokens": 9, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        ),
        (
            "/v1/responses",
            json!({"input": "x", "max_output_tokens": 3, "stream": true}),
        ),
        (
            "/v1/messages",
            json!({"messages": user, "max_tokens": 3, "system": "s"}),
        ),
        (
            "/v1/embeddings",
            json!({"input": ["a", [1, 2]], "encoding_format": "base64"}),
        ),
        (
            "/tokenize",
            json!({"content": "a<s>b", "with_pieces": true}),
        ),
        ("/detokenize", json!({"tokens": [1, 2, 3]})),
        ("/apply-template", json!({"messages": user})),
        (
            "/api/chat",
            json!({"messages": user, "options": {"num_predict": 2}}),
        ),
    ];
    let post = |(path, body): &(&str, Value)| {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        format!("{head}{body}").into_bytes()
    };
    let mut requests: Vec<_> = bodies.iter().map(post).collect();
    for path in [
        "/health",
        "/slots?fail_on_no_slot=1",
        "/v1/models",
        "/metrics",
        "/",
        "/status",
    ] {
        requests.push(
            format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").into_bytes(),
        );
    }
    requests.push(b"POST /tokenize HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"conten\r\n7\r\nt\":\"a\"}\r\n0\r\n\r\n".to_vec());
    requests
}

/// One to four changes: bytes flipped, cut, doubled, put in; numbers made large; pieces of two requests joined.
fn spoil(requests: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    const SPICES: [&[u8]; 14] = [
        b"\0",
        b"\r\n",
        b"\r\n\r\n",
        b"\"",
        b"{",
        b"[[[[[[[[",
        b"999999999999999999999",
        b"-1",
        b"1e400",
        b"null",
        b"\xff\xfe",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\\ud800",
    ];
    let mut request = requests[dice.roll(requests.len())].clone();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(request.len());
        let until = at + dice.roll(20).min(request.len() - at);
        match dice.roll(7) {
            0 => request[at] ^= 1 << dice.roll(8),
            1 => drop(request.drain(at..until)),
            2 => {
                let piece = request[at..until].to_vec();
                let n = 1 + dice.roll(40);
                request.splice(at..at, piece.repeat(n));
            }
            3 => drop(request.splice(at..at, SPICES[dice.roll(SPICES.len())].iter().copied())),
            4 => request.truncate(at.max(1)),
            5 => {
                let other = &requests[dice.roll(requests.len())];
                let from = dice.roll(other.len());
                request.truncate(at);
                request.extend_from_slice(&other[from..]);
            }
            _ => request[at] = dice.roll(256) as u8,
        }
        if request.is_empty() {
            request.push(b' ');
        }
    }
    request
}

#[test]
fn malformed_requests() {
    let total = count("BITNET_FAULT_REQUESTS", REQUESTS);
    let flags = ["--threads", "1", "--timeout", "1", "--max-tokens-cap", "60"];
    let server = Server::ready(&flags);
    let wanted = server.post("/completion", &story()).json()["content"].clone();
    let before = resident_kb(&server);
    let (next, requests) = (AtomicUsize::new(0), proper_requests());
    let statuses = std::sync::Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= total {
                        return;
                    }
                    let mut dice = Dice(SEED + (n as u64) * 7919 + 1);
                    let request = spoil(&requests, &mut dice);
                    let status = exchange(&server, &request);
                    let allowed = [
                        "none", "200", "400", "404", "405", "408", "413", "414", "415", "417",
                        "429", "431", "501", "505",
                    ];
                    // 503: sixteen clients can't be too many, the model is loaded, and nothing drains.
                    assert!(
                        allowed.contains(&status.as_str()),
                        "number {n}: {status} to {:?}",
                        String::from_utf8_lossy(&request)
                    );
                    *statuses.lock().unwrap().entry(status).or_default() += 1;
                }
            });
        }
    });
    eprintln!(
        "{total} malformed requests in {:.1} s: {:?}",
        began.elapsed().as_secs_f64(),
        statuses.into_inner().unwrap()
    );
    assert_eq!(
        server.post("/completion", &story()).json()["content"],
        wanted
    );
    let log = server.log();
    let bad: Vec<_> = log
        .iter()
        .filter(|line| line.contains("panicked") || line.contains(" ended: "))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let grown = resident_kb(&server).saturating_sub(before);
    assert!(grown < 100_000, "{grown} KB more");
    wait_for("connections to end", || {
        let files = fs::read_dir(format!("/proc/{}/fd", server.pid()))
            .unwrap()
            .count();
        (files < 60).then_some(())
    });
}

/// The status of the answer, or `none`. A request whose end the server may wait for is ended after a moment.
fn exchange(server: &Server, request: &[u8]) -> String {
    let mut stream = connect(server);
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    stream
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    let mut waited = 0;
    loop {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                waited += 1;
                if waited == 1 {
                    let _ = stream.shutdown(Shutdown::Write);
                }
                assert!(
                    waited < 800,
                    "no end of the answer to {:?}",
                    String::from_utf8_lossy(request)
                );
            }
            Err(_) => break,
        }
    }
    match answer.get(9..12) {
        Some(status) => String::from_utf8_lossy(status).into_owned(),
        None => "none".to_owned(),
    }
}
