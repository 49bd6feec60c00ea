//! The error table: for each kind of refusal one request, its status, and the object it is answered with, to the letter.

use bitnet_model::protocol::Finish;
use bitnet_server::backend::BackendState;
use bitnet_server::{ApiKeys, ServerConfig};
use serde_json::{Value, json};

use crate::backend::Script;
use crate::client::{Reply, request};
use crate::server::{SLOT_CONTEXT, Server};

/// One row: what is asked, and what has to come back. `{}` as message: any that is not empty.
struct Row {
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Value,
    status: u16,
    kind: &'static str,
    message: &'static str,
}

const INVALID: &str = "invalid_request_error";
const NOT_SUPPORTED: &str = "not_supported_error";
const UNAVAILABLE: &str = "unavailable_error";
const ANY: &str = "{}";

fn get(path: &'static str, status: u16, kind: &'static str, message: &'static str) -> Row {
    Row {
        method: "GET",
        path,
        headers: &[],
        body: Value::Null,
        status,
        kind,
        message,
    }
}

fn post(
    path: &'static str,
    body: Value,
    status: u16,
    kind: &'static str,
    message: &'static str,
) -> Row {
    Row {
        method: "POST",
        body,
        ..get(path, status, kind, message)
    }
}

impl Row {
    fn with(self, headers: &'static [(&'static str, &'static str)]) -> Row {
        Row { headers, ..self }
    }

    fn ask(&self, server: &Server) -> Reply {
        let body = match &self.body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            body => body.to_string(),
        };
        let bytes = body.as_bytes();
        request(server.address, self.method, self.path, self.headers, bytes)
    }

    /// Status, headers, and every byte of the body.
    fn check(&self, server: &Server) {
        let reply = self.ask(server);
        let what = format!("{} {} {}", self.method, self.path, self.body);
        assert_eq!(reply.status, self.status, "{what}: {}", reply.text());
        let message = match self.message {
            ANY => reply.error().2,
            message => message.to_owned(),
        };
        assert!(!message.is_empty(), "{what}");
        let Row { status, kind, .. } = self;
        let wanted = format!(
            "{{\"error\":{{\"code\":{status},\"message\":{},\"type\":\"{kind}\"}}}}",
            json!(message)
        );
        assert_eq!(reply.text(), wanted, "{what}");
        let header = |name| reply.header(name);
        assert_eq!(
            header("content-type"),
            Some("application/json; charset=utf-8"),
            "{what}"
        );
        assert_eq!(header("server"), Some("llama.cpp"), "{what}");
        let retries = matches!(self.status, 429 | 503).then_some("1");
        assert_eq!(header("retry-after"), retries, "{what}");
    }
}

fn check_all(server: &Server, rows: &[Row]) {
    for row in rows {
        row.check(server);
    }
}

fn hello() -> Value {
    json!([{ "role": "user", "content": "Hello" }])
}

/// Routes that generate, with a body that each takes.
fn generating() -> Vec<(&'static str, Value)> {
    vec![
        ("/completion", json!({ "prompt": "x" })),
        ("/completions", json!({ "prompt": "x" })),
        ("/v1/completions", json!({ "prompt": "x" })),
        ("/chat/completions", json!({ "messages": hello() })),
        ("/v1/chat/completions", json!({ "messages": hello() })),
        ("/v1/responses", json!({ "input": "x" })),
        ("/v1/messages", json!({ "messages": hello() })),
    ]
}

#[test]
fn a_400_is_an_invalid_request() {
    let server = Server::start();
    server.says("x");
    for (path, body) in generating() {
        for broken in ["{\"prompt\":", "[1]", "'x'", ""] {
            post(path, json!(broken), 400, INVALID, ANY).check(&server);
        }
        // What other servers call 422.
        for (field, value) in [
            ("temperature", json!("hot")),
            ("top_p", json!([])),
            ("stream", json!(3)),
        ] {
            let mut body = body.clone();
            body[field] = value;
            post(path, body, 400, INVALID, ANY).check(&server);
        }
    }
    let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:," } }] }]);
    let refused = [
        post(
            "/completion",
            json!({}),
            400,
            INVALID,
            "Field 'prompt': is missing",
        ),
        post(
            "/v1/chat/completions",
            json!({}),
            400,
            INVALID,
            "Field 'messages': is missing",
        ),
        post(
            "/v1/chat/completions",
            json!({ "messages": image }),
            400,
            INVALID,
            ANY,
        ),
        post("/v1/messages", json!({}), 400, INVALID, ANY),
        post(
            "/v1/responses",
            json!({ "input": "x", "previous_response_id": "resp_1" }),
            400,
            INVALID,
            ANY,
        ),
        post("/v1/embeddings", json!({ "input": "" }), 400, INVALID, ANY),
        post(
            "/v1/embeddings",
            json!({ "input": "x", "encoding_format": "hex" }),
            400,
            INVALID,
            ANY,
        ),
        post(
            "/v1/embeddings",
            json!({ "input": "x", "pooling": "none" }),
            400,
            INVALID,
            ANY,
        ),
        post(
            "/completion",
            json!({ "prompt": "x", "grammar": "root ::= (" }),
            400,
            INVALID,
            ANY,
        ),
        post(
            "/completion",
            json!({ "prompt": "x", "grammar": "a", "json_schema": {} }),
            400,
            INVALID,
            ANY,
        ),
        post("/infill", json!({}), 501, NOT_SUPPORTED, ANY),
    ];
    check_all(&server, &refused);
}

#[test]
fn a_prompt_that_does_not_fit_has_two_numbers_more() {
    let server = Server::start();
    let tokens = vec![5; SLOT_CONTEXT + 3];
    let long = "x".repeat(40 * SLOT_CONTEXT);
    let chat = json!([{ "role": "user", "content": long }]);
    for (path, body) in [
        ("/completion", json!({ "prompt": tokens })),
        ("/completion", json!({ "prompt": tokens, "stream": true })),
        ("/v1/completions", json!({ "prompt": tokens })),
        ("/v1/chat/completions", json!({ "messages": chat })),
        (
            "/v1/chat/completions",
            json!({ "messages": chat, "stream": true }),
        ),
        ("/v1/responses", json!({ "input": long })),
        ("/v1/messages", json!({ "messages": chat })),
    ] {
        let reply = server.post(path, body);
        let error = reply.json()["error"].clone();
        let n_prompt = error["n_prompt_tokens"].as_u64().expect(path);
        assert!(n_prompt > SLOT_CONTEXT as u64, "{path}");
        let wanted = json!({
            "code": 400,
            "message": format!(
                "request ({n_prompt} tokens) exceeds the available context size ({SLOT_CONTEXT} tokens), try increasing it"
            ),
            "type": "exceed_context_size_error",
            "n_prompt_tokens": n_prompt,
            "n_ctx": SLOT_CONTEXT,
        });
        assert_eq!((reply.status, error), (400, wanted), "{path}");
    }
}

#[test]
fn a_401_says_nothing_else() {
    let server = Server::with(ServerConfig {
        api_keys: ApiKeys(vec!["right".into()]),
        ..ServerConfig::default()
    });
    server.says("x");
    let message = "Invalid API Key";
    for path in [
        "/props",
        "/slots",
        "/metrics",
        "/v1/models",
        "/nothing",
        "/openapi.json",
    ] {
        get(path, 401, "authentication_error", message).check(&server);
    }
    for headers in [
        &[][..],
        &[("Authorization", "Bearer wrong")],
        &[("Authorization", "Bearer ")],
        &[("Authorization", "Basic cmlnaHQ=")],
        &[("X-Api-Key", "wrong")],
    ] {
        for (path, body) in generating() {
            post(path, body, 401, "authentication_error", message)
                .with(headers)
                .check(&server);
        }
    }
}

#[test]
fn a_403_is_for_what_web_pages_may_not_do() {
    let server = Server::start();
    for path in ["/drain", "/reload"] {
        post(path, Value::Null, 403, "permission_error", ANY)
            .with(&[("Origin", "https://a.example")])
            .check(&server);
    }
}

#[test]
fn a_404_405_413_and_414() {
    let server = Server::with(ServerConfig {
        body_limit_bytes: 1000,
        ..ServerConfig::default()
    });
    server.says("x");
    let not_found = "not_found_error";
    let long_path: &'static str = Box::leak(format!("/{}", "a".repeat(9000)).into_boxed_str());
    let rows = [
        get("/nothing", 404, not_found, "File Not Found"),
        post("/v1/nothing", json!({}), 404, not_found, "File Not Found"),
        get(
            "/v1/models/other",
            404,
            not_found,
            "no model `other`, this server has `tiny.gguf`",
        ),
        get(
            "/completion",
            405,
            INVALID,
            "`GET` is not allowed on `/completion`",
        ),
        get(
            long_path,
            414,
            INVALID,
            "the address is longer than 8192 bytes",
        ),
    ];
    check_all(&server, &rows);
    for (path, mut body) in generating() {
        body["filler"] = json!("x".repeat(2000));
        let message = "the request body is larger than 1000 bytes";
        post(path, body, 413, INVALID, message).check(&server);
    }
}

#[test]
fn a_429_when_the_queue_is_full() {
    let server = Server::start();
    server.plays(Script {
        tokens: server.byte_tokens(&[b'x'; 1000]),
        per_token: std::time::Duration::from_millis(20),
        ..Script::default()
    });
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = crate::client::connect(server.address);
            let raw = crate::client::raw_request("POST", "/completion", &[], b"{\"prompt\":\"x\"}");
            std::io::Write::write_all(&mut client, &raw).unwrap();
            client
        })
        .collect();
    server.until("all run", |server| server.backend.running() == 8);
    for (path, mut body) in generating() {
        let message = "the queue is full (8 requests are waiting), try again later";
        for stream in [false, true] {
            body["stream"] = json!(stream);
            post(path, body.clone(), 429, "rate_limit_error", message).check(&server);
        }
    }
    drop(clients);
}

#[test]
fn a_500_is_the_engines_fault_alone() {
    let server = Server::start();
    server.plays(Script {
        finish: Finish::Error("logits are not numbers".into()),
        ..Script::default()
    });
    for (path, mut body) in generating() {
        for stream in [false, true] {
            body["stream"] = json!(stream);
            post(
                path,
                body.clone(),
                500,
                "server_error",
                "logits are not numbers",
            )
            .check(&server);
        }
    }
}

#[test]
fn a_501_names_what_would_switch_it_on() {
    let server = Server::with(ServerConfig {
        slots_endpoint: false,
        metrics_endpoint: false,
        ..ServerConfig::default()
    });
    let rows = [
        get(
            "/slots",
            501,
            NOT_SUPPORTED,
            "This server does not support slots endpoint. Start it without `--no-slots`",
        ),
        get(
            "/metrics",
            501,
            NOT_SUPPORTED,
            "This server does not support metrics endpoint. Start it with `--metrics`",
        ),
        post(
            "/props",
            json!({}),
            501,
            NOT_SUPPORTED,
            "This server does not support changing global properties. Start it with `--props`",
        ),
        post(
            "/slots/0?action=save",
            json!({ "filename": "a" }),
            501,
            NOT_SUPPORTED,
            "This server does not support slots action. Start it with `--slot-save-path`",
        ),
        post(
            "/infill",
            json!({ "input_prefix": "a", "input_suffix": "b" }),
            501,
            NOT_SUPPORTED,
            "This server does not support infill: the model's vocabulary has no fill-in-the-middle tokens",
        ),
        post(
            "/v1/audio/transcriptions",
            json!({}),
            501,
            NOT_SUPPORTED,
            "This server does not support audio: the model reads text",
        ),
    ];
    check_all(&server, &rows);
    for path in ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"] {
        let body = json!({ "query": "a", "documents": ["b"] });
        let message = "This server does not support reranking: the model generates text";
        post(path, body, 501, NOT_SUPPORTED, message).check(&server);
    }
}

#[test]
fn a_503_says_what_is_waited_for() {
    let loading = Server::loading(ServerConfig::default());
    let check = |server: &Server, message: &'static str| {
        for path in ["/health", "/v1/models", "/props"] {
            get(path, 503, UNAVAILABLE, message).check(server);
        }
        for (path, body) in generating() {
            post(path, body, 503, UNAVAILABLE, message).check(server);
        }
    };
    check(&loading, "Loading model");
    get("/nothing", 503, UNAVAILABLE, "Loading model").check(&loading);

    let server = Server::start();
    *server.backend.state.lock().unwrap() = BackendState::Failed("exit code 132".into());
    check(&server, "the engine can't be started: exit code 132");
    let server = Server::start();
    server.plays(Script {
        finish: Finish::Unserved("no slot was free for 1.0 s".into()),
        ..Script::default()
    });
    for (path, body) in generating() {
        post(path, body, 503, UNAVAILABLE, "no slot was free for 1.0 s").check(&server);
    }
}

/// Ollama's clients read `error` as text; the status is the same.
#[test]
fn ollamas_routes_have_the_error_as_text() {
    let server = Server::start();
    server.says("x");
    for (path, body, status) in [
        ("/api/chat", json!({ "messages": 3 }), 400),
        ("/api/generate", json!({ "prompt": 3 }), 400),
        ("/api/chat", json!("{"), 400),
    ] {
        let row = post(path, body, status, INVALID, ANY);
        let reply = row.ask(&server);
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        assert!(
            reply.json()["error"].is_string(),
            "{path}: {}",
            reply.text()
        );
    }
}
