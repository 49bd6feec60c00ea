//! Requests that are wrong, huge or hostile: one clear object each, and the server goes on.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use bitnet_server::ServerConfig;
use serde_json::{Value, json};

use crate::client::{connect, exchange, raw_request, read_reply, request};
use crate::server::{SLOT_CONTEXT, Server};

const INVALID: &str = "invalid_request_error";

#[test]
fn wrong_fields() {
    let server = Server::start();
    server.says("x");
    let chat = "/v1/chat/completions";
    let user = json!([{ "role": "user", "content": "x" }]);
    for (path, body, part) in [
        ("/completion", json!({}), "'prompt': is missing"),
        ("/completion", json!({ "prompt": {} }), "prompt"),
        ("/completion", json!({ "prompt": true }), "found a boolean"),
        ("/completion", json!({ "prompt": [1.5] }), "'prompt[0]'"),
        (
            "/completion",
            json!({ "prompt": [999_999] }),
            "outside the vocabulary",
        ),
        ("/completion", json!({ "prompt": [-1] }), "prompt"),
        (
            "/completion",
            json!({ "prompt": "x", "temperature": "hot" }),
            "'temperature': found a string, expected a number",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "top_k": 1.5 }),
            "'top_k'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "n_predict": -2 }),
            "'n_predict'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "stream": "yes" }),
            "'stream'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "repeat_penalty": 0 }),
            "'repeat_penalty'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "repeat_last_n": -2 }),
            "'repeat_last_n'",
        ),
        ("/completion", json!({ "prompt": "x", "n": 0 }), "'n'"),
        (
            "/completion",
            json!({ "prompt": "x", "n": 1_000_000_000_000_u64 }),
            "'n'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "id_slot": 99 }),
            "'id_slot'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "stop": [1] }),
            "'stop[0]'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "stop": vec!["s"; 1000] }),
            "'stop'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "logit_bias": 3 }),
            "'logit_bias'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "grammar": "root ::= [a" }),
            "'grammar': line 1, column 10: this `[` is never closed",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "grammar": "root ::= b" }),
            "rule `b` is not defined",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "grammar": "%llguidance {}\nstart: nothing" }),
            "'grammar'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "grammar": 5 }),
            "'grammar'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "grammar": "root ::= \"a\"", "json_schema": {} }),
            "'json_schema': excludes `grammar`",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "grammar": "root ::= \"a\"", "grammar_lazy": true }),
            "'grammar_triggers'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "grammar": format!("root ::= {}\"a\"{}", "(".repeat(9999), ")".repeat(9999)) }),
            "groups inside each other",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "json_schema": 123 }),
            "'json_schema'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "json_schema": { "type": "hiccup" } }),
            "'json_schema'",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "user", "content": "x" }], "response_format": { "type": "sound" } }),
            "'response_format': found `sound`",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "user", "content": "x" }], "response_format": { "type": 123 } }),
            "'response_format'",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "user", "content": "x" }], "response_format": { "type": "json_object", "schema": 123 } }),
            "'response_format'",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "user", "content": "x" }], "response_format": { "type": "json_schema", "json_schema": {} } }),
            "`json_schema.schema` is missing",
        ),
        (
            chat,
            json!({
                "messages": [{ "role": "user", "content": "x" }], "grammar": "root ::= \"a\"",
                "tools": [{ "type": "function", "function": { "name": "f" } }],
            }),
            "'grammar': excludes `tools`",
        ),
        (
            chat,
            json!({
                "messages": [{ "role": "user", "content": "x" }],
                "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "x" } } }],
            }),
            "'tools'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "mirostat": 3 }),
            "'mirostat': found 3",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "dry_sequence_breakers": [] }),
            "'dry_sequence_breakers'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "dry_sequence_breakers": "x" }),
            "'dry_sequence_breakers'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "dry_penalty_last_n": -2 }),
            "'dry_penalty_last_n'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "samplers": [1] }),
            "'samplers'",
        ),
        (
            "/completion",
            json!({ "prompt": "x", "adaptive_decay": 1.5 }),
            "'adaptive_decay'",
        ),
        (
            "/completion",
            json!({ "prompt": vec!["x"; 2000] }),
            "2000 answers",
        ),
        (
            "/v1/completions",
            json!({ "prompt": "x", "suffix": "y" }),
            "'suffix'",
        ),
        (chat, json!({}), "'messages': is missing"),
        (chat, json!({ "messages": [] }), "must not be empty"),
        (chat, json!({ "messages": "x" }), "'messages'"),
        (chat, json!({ "messages": ["x"] }), "messages[0]"),
        (chat, json!({ "messages": [{}] }), "`role` is missing"),
        (
            chat,
            json!({ "messages": [{ "role": 1, "content": "x" }] }),
            "role",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "user", "content": 1 }] }),
            "content",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "user" }] }),
            "`content` is missing",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "image input is not supported",
        ),
        (
            chat,
            json!({ "messages": [{ "role": "assistant", "content": "a" }, { "role": "assistant", "content": "b" }] }),
            "two assistant",
        ),
        (
            chat,
            json!({ "messages": user, "top_logprobs": 3 }),
            "'top_logprobs'",
        ),
        (
            chat,
            json!({ "messages": user, "response_format": 7 }),
            "'response_format'",
        ),
        (
            chat,
            json!({ "messages": user, "tools": [{ "type": "function" }] }),
            "'tools[0]'",
        ),
        (
            chat,
            json!({ "messages": user, "tool_choice": "required" }),
            "'tool_choice'",
        ),
        (
            chat,
            json!({ "messages": user, "continue_final_message": true, "add_generation_prompt": true }),
            "continue_final_message",
        ),
        ("/tokenize", json!({ "content": 5 }), "'content'"),
        ("/detokenize", json!({ "tokens": ["x"] }), "'tokens[0]'"),
        ("/detokenize", json!({ "tokens": [1e9] }), "'tokens'"),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            if stream && body.get("stream").is_none() {
                body["stream"] = json!(true);
            }
            let (status, kind, message) = server.post(path, body.clone()).error();
            assert_eq!((status, kind.as_str()), (400, INVALID), "{path} {body}");
            assert!(message.contains(part), "{path} {body}: {message}");
        }
    }
    for fine in [
        json!({ "messages": user, "tools": [], "tool_choice": "auto", "response_format": { "type": "text" } }),
        json!({ "messages": user, "tools": [{}], "tool_choice": "none", "user": "u", "metadata": {}, "store": false }),
        json!({ "messages": user, "max_tokens": null, "stop": null, "temperature": null, "seed": null, "tools": null }),
    ] {
        assert_eq!(server.post(chat, fine.clone()).status, 200, "{fine}");
    }
}

#[test]
fn broken_json() {
    let server = Server::start();
    server.says("x");
    for body in [
        "",
        "{",
        "[]",
        "7",
        "{\"prompt\": \"x\"",
        "{'prompt': 1}",
        "\u{0}",
        "{\"prompt\":\"\\ud800\"}",
    ] {
        let (status, kind, _) = server.post_text("/completion", body).error();
        assert_eq!((status, kind.as_str()), (400, INVALID), "{body:?}");
    }
    let marked = "\u{feff}{\"prompt\":\"x\"}";
    assert_eq!(server.post_text("/completion", marked).status, 200);
    let deep = "[".repeat(100_000);
    assert_eq!(server.post_text("/completion", &deep).status, 400);
    let reply = request(
        server.address,
        "POST",
        "/completion",
        &[],
        b"{\"prompt\":\"\xff\"}",
    );
    assert_eq!(reply.status, 400);
}

#[test]
fn content_type_does_not_matter() {
    let server = Server::start();
    server.says("x");
    for headers in [
        &[][..],
        &[("Content-Type", "text/plain")],
        &[("Content-Type", "application/x-www-form-urlencoded")],
    ] {
        assert_eq!(
            request(
                server.address,
                "POST",
                "/completion",
                headers,
                b"{\"prompt\":\"x\"}"
            )
            .status,
            200
        );
    }
}

#[test]
fn truncated_bodies() {
    let server = Server::with(ServerConfig {
        read_timeout: Duration::from_millis(300),
        ..ServerConfig::default()
    });
    server.says("x");
    // A JavaScript client that counts characters instead of bytes.
    let body = "{\"prompt\":\"Grüße\"}";
    let length = body.chars().count().to_string();
    let raw = raw_request(
        "POST",
        "/completion",
        &[("Content-Length", &length)],
        body.as_bytes(),
    );
    assert_eq!(exchange(server.address, &raw).status, 400);
    // One that announces more than it sends.
    let raw = raw_request(
        "POST",
        "/completion",
        &[("Content-Length", "1000")],
        body.as_bytes(),
    );
    assert_eq!(exchange(server.address, &raw).error().0, 408);
    // One that hangs up meanwhile.
    let mut stream = connect(server.address);
    stream.write_all(&raw).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn slow_heads_are_cut_off() {
    let server = Server::with(ServerConfig {
        read_timeout: Duration::from_millis(200),
        ..ServerConfig::default()
    });
    let mut stream = connect(server.address);
    stream.write_all(b"GET /health HTTP/1.1\r\nHost:").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn junk() {
    let server = Server::start();
    let junk: Vec<u8> = (0..10 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    assert_eq!(
        request(server.address, "POST", "/completion", &[], &junk)
            .error()
            .0,
        400
    );
    let mut stream = connect(server.address);
    let _ = stream.write_all(&junk[..100_000]);
    let _ = stream.shutdown(Shutdown::Write);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn body_limit() {
    let server = Server::with(ServerConfig {
        body_limit_bytes: 1000,
        ..ServerConfig::default()
    });
    let body = json!({ "prompt": "x".repeat(2000) }).to_string();
    assert_eq!(server.post_text("/completion", &body).error().0, 413);
    let chunked = format!(
        "POST /completion HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    assert_eq!(exchange(server.address, chunked.as_bytes()).error().0, 413);
}

#[test]
fn too_long_for_the_context() {
    let server = Server::start();
    let tokens = vec![5; SLOT_CONTEXT];
    for stream in [false, true] {
        let reply = server.post("/completion", json!({ "prompt": tokens, "stream": stream }));
        let (status, kind, message) = reply.error();
        assert_eq!((status, kind.as_str()), (400, "exceed_context_size_error"));
        assert!(message.contains("exceeds the available context size"));
        let error = reply.json()["error"].clone();
        assert_eq!(
            (&error["n_prompt_tokens"], &error["n_ctx"]),
            (&json!(SLOT_CONTEXT), &json!(SLOT_CONTEXT))
        );
    }
    server.says("x");
    assert_eq!(
        server
            .post(
                "/completion",
                json!({ "prompt": vec![5; SLOT_CONTEXT - 1], "n_predict": u64::MAX })
            )
            .status,
        200
    );
}

#[test]
fn unknown_and_unavailable_routes() {
    let server = Server::start();
    for (method, path, expected) in [
        ("GET", "/nothing", (404, "not_found_error")),
        ("POST", "/v1/nothing", (404, "not_found_error")),
        ("GET", "/completion", (405, INVALID)),
        ("POST", "/infill", (501, "not_supported_error")),
        ("POST", "/rerank", (501, "not_supported_error")),
        ("POST", "/props", (501, "not_supported_error")),
        ("POST", "/slots/0?action=save", (501, "not_supported_error")),
        ("POST", "/lora-adapters", (400, INVALID)),
    ] {
        let (status, kind, message) = request(server.address, method, path, &[], b"{}").error();
        assert_eq!((status, kind.as_str()), expected, "{method} {path}");
        if status == 404 {
            assert_eq!(message, "File Not Found");
        }
    }
    let off = Server::with(ServerConfig {
        slots_endpoint: false,
        metrics_endpoint: false,
        page: false,
        ..ServerConfig::default()
    });
    assert_eq!(
        (
            off.get("/slots").error().0,
            off.get("/metrics").error().0,
            off.get("/").error().0
        ),
        (501, 501, 404)
    );
    assert_eq!(off.get("/ui/app.js").error().0, 404);
    assert!(off.get("/status").json()["slots"].is_null());
}

#[test]
fn a_connection_serves_several_requests() {
    let server = Server::start();
    let stream = connect(server.address);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..3 {
        (&stream)
            .write_all(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
            .unwrap();
        let reply = read_reply(&mut reader);
        assert_eq!(reply.json()["status"], Value::from("ok"));
    }
}
