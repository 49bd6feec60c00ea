//! Loading, draining, full queues, keys, other origins.

use std::thread;
use std::time::{Duration, Instant};

use bitnet_server::backend::BackendState;
use bitnet_server::{ApiKeys, Cors, ServerConfig};
use serde_json::json;

use crate::backend::Script;
use crate::client::{connect, request};
use crate::server::{Server, card};

#[test]
fn loading_then_ready() {
    let server = Server::loading(ServerConfig::default());
    for (method, path) in [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/slots"),
        ("POST", "/completion"),
        ("GET", "/nothing"),
    ] {
        let reply = request(server.address, method, path, &[], b"{}");
        assert_eq!(
            reply.error(),
            (503, "unavailable_error".into(), "Loading model".into()),
            "{path}"
        );
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    assert_eq!(server.get("/metrics").status, 200);
    assert_eq!(server.get("/status").json()["state"], "loading");
    *server.backend.state.lock().unwrap() = BackendState::Loading;
    server.app.set_model(card()).unwrap();
    assert_eq!(server.get("/health").status, 503);
    *server.backend.state.lock().unwrap() = BackendState::Ready;
    assert_eq!(server.get("/health").json()["status"], "ok");
    *server.backend.state.lock().unwrap() = BackendState::Failed("exit code 132".into());
    assert!(server.get("/health").error().2.contains("exit code 132"));
}

#[test]
fn full_queue() {
    let server = Server::start();
    let tokens = server.byte_tokens(&[b'x'; 1000]);
    server.plays(Script {
        tokens,
        per_token: Duration::from_millis(20),
        ..Script::default()
    });
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = connect(server.address);
            let body = json!({ "prompt": "p", "stream": true }).to_string();
            let raw = crate::client::raw_request("POST", "/completion", &[], body.as_bytes());
            std::io::Write::write_all(&mut client, &raw).unwrap();
            client
        })
        .collect();
    server.until("all run", |server| server.backend.running() == 8);
    let started = Instant::now();
    let reply = server.post("/completion", json!({ "prompt": "p" }));
    let (status, kind, _) = reply.error();
    assert_eq!(
        (status, kind.as_str(), reply.header("retry-after")),
        (429, "rate_limit_error", Some("1"))
    );
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(
        server.get("/slots?fail_on_no_slot=1").error().2,
        "no slot available"
    );
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "nothing here waits for the generations"
    );
    drop(clients);
    server.until("all are cancelled", |server| server.backend.running() == 0);
}

#[test]
fn more_answers_than_the_queue_holds_take_turns() {
    let server = Server::start();
    server.says("ok");
    let prompts: Vec<String> = (0..40).map(|i| format!("prompt {i}")).collect();
    let json = server
        .post("/completion", json!({ "prompt": prompts }))
        .json();
    let answers = json.as_array().unwrap();
    assert_eq!(answers.len(), 40);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(
            (&answer["index"], &answer["content"]),
            (&json!(i), &json!("ok"))
        );
        assert!(
            answer["prompt"]
                .as_str()
                .unwrap()
                .ends_with(&format!("prompt {i}"))
        );
    }
}

#[test]
fn draining_finishes_what_runs() {
    let mut server = Server::start();
    let tokens = server.byte_tokens(&[b'x'; 30]);
    server.plays(Script {
        tokens,
        per_token: Duration::from_millis(10),
        ..Script::default()
    });
    let address = server.address;
    let running =
        thread::spawn(move || request(address, "POST", "/completion", &[], b"{\"prompt\":\"p\"}"));
    server.until("it runs", |server| server.backend.running() == 1);
    server.app.drain(Duration::from_secs(5));
    let (status, _, message) = server.get("/health").error();
    assert!(status == 503 && message.contains("draining"), "{message}");
    assert_eq!(
        server.post("/completion", json!({ "prompt": "p" })).status,
        503
    );
    assert_eq!(running.join().unwrap().json()["content"], "x".repeat(30));
    let serving = server.serving.take().unwrap();
    server
        .runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(2), serving).await })
        .expect("ends")
        .unwrap()
        .unwrap();
}

#[test]
fn the_deadline_ends_streams_properly() {
    let mut server = Server::start();
    let tokens = server.byte_tokens(&[b'x'; 5000]);
    server.plays(Script {
        tokens,
        per_token: Duration::from_millis(10),
        ..Script::default()
    });
    let address = server.address;
    let body =
        json!({ "messages": [{ "role": "user", "content": "x" }], "stream": true }).to_string();
    let running = thread::spawn(move || {
        request(
            address,
            "POST",
            "/v1/chat/completions",
            &[],
            body.as_bytes(),
        )
    });
    server.until("it runs", |server| server.backend.running() == 1);
    let started = Instant::now();
    server.app.drain(Duration::from_millis(200));
    let serving = server.serving.take().unwrap();
    server.runtime.block_on(serving).unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    let frames = running.join().unwrap().frames();
    assert_eq!(frames.last().unwrap(), "[DONE]");
    assert_eq!(
        frames[frames.len() - 2]["choices"][0]["finish_reason"],
        "length"
    );
    server.until("the job is cancelled", |server| {
        server.backend.running() == 0
    });
}

#[test]
fn the_deadline_answers_503_before_the_first_token() {
    let mut server = Server::start();
    server.plays(Script {
        tokens: server.byte_tokens(b"late"),
        prefill: Duration::from_secs(30),
        ..Script::default()
    });
    let address = server.address;
    let clients: Vec<_> = [false, true]
        .map(|stream| {
            let body = json!({ "prompt": "x", "stream": stream }).to_string();
            thread::spawn(move || request(address, "POST", "/completion", &[], body.as_bytes()))
        })
        .into();
    server.until("both run", |server| server.backend.running() == 2);
    server.app.drain(Duration::from_millis(200));
    let serving = server.serving.take().unwrap();
    server.runtime.block_on(serving).unwrap().unwrap();
    for client in clients {
        let (status, _, message) = client.join().unwrap().error();
        assert_eq!(status, 503);
        assert!(message.contains("draining"), "{message}");
    }
}

#[test]
fn keys() {
    let config = ServerConfig {
        api_keys: ApiKeys(vec!["k1".into(), "k2".into()]),
        ..ServerConfig::default()
    };
    assert!(!format!("{config:?}").contains("k1"));
    let server = Server::with(config);
    let models =
        |headers: &[(&str, &str)]| request(server.address, "GET", "/v1/models", headers, b"");
    for header in [
        ("Authorization", "Bearer k1"),
        ("Authorization", "k2"),
        ("X-Api-Key", "k1"),
    ] {
        assert_eq!(models(&[header]).status, 200, "{header:?}");
    }
    let (status, kind, message) = models(&[("Authorization", "Bearer wrong")]).error();
    assert_eq!(
        (status, kind.as_str(), message.as_str()),
        (401, "authentication_error", "Invalid API Key")
    );
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(server.get("/status").status, 401);
    assert_eq!(server.get("/ui/app.js").status, 200);
    assert_eq!(server.post("/completion", json!({})).status, 401);
    assert_eq!(
        (
            server.get("/health").status,
            server.get("/v1/health").status,
            server.get("/").status
        ),
        (200, 200, 200)
    );
    assert_eq!(
        request(
            server.address,
            "OPTIONS",
            "/completion",
            &[("Origin", "null")],
            b""
        )
        .status,
        200
    );
}

#[test]
fn other_origins() {
    let server = Server::start();
    for origin in ["null", "http://localhost:3000", "https://web.example"] {
        let reply = request(server.address, "GET", "/health", &[("Origin", origin)], b"");
        assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
        let asked = [
            ("Origin", origin),
            (
                "Access-Control-Request-Headers",
                "authorization, content-type",
            ),
        ];
        let preflight = request(server.address, "OPTIONS", "/any/path", &asked, b"");
        assert_eq!((preflight.status, preflight.body.len()), (200, 0));
        assert_eq!(
            preflight.header("access-control-allow-origin"),
            Some(origin)
        );
        assert_eq!(
            preflight.header("access-control-allow-methods"),
            Some("GET, POST, DELETE, OPTIONS")
        );
        assert_eq!(
            preflight.header("access-control-allow-headers"),
            Some("authorization, content-type")
        );
        assert_eq!(
            preflight.header("access-control-allow-credentials"),
            Some("true")
        );
    }
    let cors = Cors {
        origins: vec!["localhost".into()],
        ..Cors::default()
    };
    let server = Server::with(ServerConfig {
        cors,
        ..ServerConfig::default()
    });
    let reply = request(
        server.address,
        "GET",
        "/health",
        &[("Origin", "https://web.example")],
        b"",
    );
    assert_eq!(
        (reply.status, reply.header("access-control-allow-origin")),
        (200, None)
    );
}

#[test]
fn prefix() {
    let server = Server::with(ServerConfig {
        api_prefix: "/llm".into(),
        ..ServerConfig::default()
    });
    assert_eq!(server.get("/llm/health").status, 200);
    assert_eq!(server.get("/llm/").status, 200);
    assert_eq!(server.get("/llm/v1/models").status, 200);
    assert_eq!(server.get("/v1/models").status, 404);
}

#[test]
fn too_many_connections() {
    let server = Server::with(ServerConfig {
        max_connections: 3,
        ..ServerConfig::default()
    });
    let kept: Vec<_> = (0..3).map(|_| connect(server.address)).collect();
    server.until("the bound is reached", |server| {
        let reply = server.get("/props");
        reply.status == 503 && reply.error().2 == "too many connections"
    });
    assert_eq!(server.get("/health").status, 200, "probes are answered");
    drop(kept);
    server.until("it serves again", |server| {
        server.get("/props").status == 200
    });
}
