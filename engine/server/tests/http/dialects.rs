//! The Responses API, the Messages API and Ollama's routes: replies, and streams event by event.

use bitnet_model::protocol::Finish;
use bitnet_server::ServerConfig;
use serde_json::{Value, json};

use crate::backend::Script;
use crate::client::Reply;
use crate::server::{SLOT_CONTEXT, Server};

const CALL: &str =
    "Let me see. <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";

/// Names and data of an event stream.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let text = reply.text();
    let blocks = text
        .split("\n\n")
        .filter(|block| !block.is_empty() && !block.starts_with(':'));
    blocks
        .map(|block| {
            let (event, data) = block.split_once('\n').expect("two lines");
            let event = event.strip_prefix("event: ").expect("a name").to_owned();
            let data: Value =
                serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
            assert_eq!(data["type"], event.as_str(), "{data}");
            (event, data)
        })
        .collect()
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}

fn chatml() -> Server {
    Server::with(ServerConfig {
        chat_template: Some("chatml".into()),
        ..ServerConfig::default()
    })
}

fn cut(server: &Server, text: &str) {
    server.plays(Script {
        tokens: server.byte_tokens(text.as_bytes()),
        finish: Finish::Limit,
        cached: 3,
        ..Script::default()
    });
}

#[test]
fn a_response() {
    let server = chatml();
    server.says("Hello");
    for path in ["/v1/responses", "/responses"] {
        let json = server
            .post(
                path,
                json!({ "model": "gpt", "instructions": "Be brief.", "input": "Hi", "text": {}, "store": true }),
            )
            .json();
        assert!(json["id"].as_str().unwrap().starts_with("resp_"));
        assert_eq!(
            (&json["object"], &json["status"], &json["model"]),
            (&json!("response"), &json!("completed"), &json!("tiny.gguf"))
        );
        let item = &json["output"][0];
        assert!(item["id"].as_str().unwrap().starts_with("msg_"));
        assert_eq!(
            item["content"],
            json!([{ "type": "output_text", "text": "Hello", "annotations": [], "logprobs": [] }])
        );
        let n_prompt = server.backend.last_job().prompt.len();
        assert_eq!(
            (
                &json["usage"]["input_tokens"],
                &json["usage"]["output_tokens"],
                &json["usage"]["total_tokens"]
            ),
            (&json!(n_prompt), &json!(6), &json!(n_prompt + 6))
        );
    }
    cut(&server, "Hel");
    let json = server
        .post(
            "/v1/responses",
            json!({ "input": "Hi", "max_output_tokens": 3 }),
        )
        .json();
    assert_eq!(
        (&json["status"], &json["incomplete_details"]),
        (
            &json!("incomplete"),
            &json!({ "reason": "max_output_tokens" })
        )
    );
    assert_eq!(json["usage"]["input_tokens_details"]["cached_tokens"], 3);
    assert_eq!(server.backend.last_job().max_tokens, Some(3));
}

#[test]
fn a_response_as_a_stream() {
    let server = chatml();
    server.says(CALL);
    let tools = json!([{ "type": "function", "name": "f", "parameters": {}, "strict": false }]);
    let reply = server.post(
        "/v1/responses",
        json!({ "input": [{ "type": "message", "role": "user", "content": "Hi" }], "tools": tools, "stream": true }),
    );
    let events = events(&reply);
    assert_eq!(
        names(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let mut item_id = Value::Null;
    for (i, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], i, "{data}");
        if name == "response.output_item.added" {
            item_id = data["item"]["id"].clone();
        }
        if name.contains("item") || name.contains("part") || name.contains("delta") {
            assert!(data["output_index"].is_number(), "{data}");
        }
        if name.contains("text") || name.contains("part") {
            assert_eq!(data["content_index"], 0, "{data}");
        }
        if let Some(id) = data.get("item_id") {
            assert_eq!(id, &item_id);
        }
    }
    let joined = |name: &str| -> String {
        events
            .iter()
            .filter(|(event, _)| event == name)
            .filter_map(|(_, data)| data["delta"].as_str())
            .collect()
    };
    assert_eq!(joined("response.output_text.delta"), "Let me see.");
    assert_eq!(
        joined("response.function_call_arguments.delta"),
        "{\"a\": 1}"
    );
    let output = &events.last().unwrap().1["response"]["output"];
    assert_eq!(output[0]["content"][0]["text"], "Let me see.");
    assert_eq!(
        (
            &output[1]["type"],
            &output[1]["name"],
            &output[1]["arguments"]
        ),
        (&json!("function_call"), &json!("f"), &json!("{\"a\": 1}"))
    );
    assert!(output[1]["call_id"].as_str().unwrap().starts_with("call_"));
    assert!(!reply.text().contains("[DONE]"));
}

#[test]
fn what_a_response_refuses() {
    let server = chatml();
    server.says("x");
    for (body, part) in [
        (
            json!({ "input": "x", "previous_response_id": "resp_1" }),
            "previous_response_id",
        ),
        (json!({}), "'input': is missing"),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }),
            "image input",
        ),
    ] {
        let (status, kind, message) = server.post("/v1/responses", body).error();
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
        assert!(message.contains(part), "{message}");
    }
    let json = server
        .post("/v1/responses/input_tokens", json!({ "input": "x" }))
        .json();
    assert_eq!(json["object"], "response.input_tokens");
    assert!(json["input_tokens"].as_u64().unwrap() > 1);
}

#[test]
fn a_message() {
    let server = chatml();
    server.says("Hello");
    let body = json!({ "model": "claude", "max_tokens": 50, "system": "Be brief.",
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hi" }] }] });
    let json = server.post("/v1/messages", body.clone()).json();
    assert!(json["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        json["content"],
        json!([{ "type": "text", "text": "Hello" }])
    );
    assert_eq!(
        (
            &json["type"],
            &json["role"],
            &json["stop_reason"],
            &json["stop_sequence"]
        ),
        (
            &json!("message"),
            &json!("assistant"),
            &json!("end_turn"),
            &Value::Null
        )
    );
    let n_prompt = server.backend.last_job().prompt.len();
    assert_eq!(json["usage"]["input_tokens"], n_prompt);
    let counted = server
        .post("/v1/messages/count_tokens", body.clone())
        .json();
    assert_eq!(counted, json!({ "input_tokens": n_prompt }));

    let mut stopped = body.clone();
    stopped["stop_sequences"] = json!(["ll"]);
    let json = server.post("/v1/messages", stopped).json();
    assert_eq!(
        (
            &json["stop_reason"],
            &json["stop_sequence"],
            &json["content"][0]["text"]
        ),
        (&json!("stop_sequence"), &json!("ll"), &json!("He"))
    );
    cut(&server, "Hel");
    assert_eq!(
        server.post("/v1/messages", body).json()["stop_reason"],
        "max_tokens"
    );
    let (status, _, message) = server
        .post("/v1/messages", json!({ "max_tokens": 5 }))
        .error();
    assert!(status == 400 && message.contains("'messages'"), "{message}");
}

#[test]
fn a_message_as_a_stream() {
    let server = chatml();
    server.says(CALL);
    let reply = server.post(
        "/v1/messages",
        json!({ "messages": [{ "role": "user", "content": "Hi" }], "stream": true,
            "tools": [{ "name": "f", "input_schema": { "type": "object" } }] }),
    );
    let events = events(&reply);
    assert_eq!(
        names(&events),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    assert!(
        events[0].1["message"]["usage"]["input_tokens"]
            .as_u64()
            .unwrap()
            > 0
    );
    let joined = |index: u64, key: &str| -> String {
        events
            .iter()
            .filter(|(_, data)| data["index"] == index)
            .filter_map(|(_, data)| data["delta"][key].as_str())
            .collect()
    };
    assert_eq!(joined(0, "text"), "Let me see.");
    assert_eq!(joined(1, "partial_json"), "{\"a\": 1}");
    let block = events
        .iter()
        .find(|(_, data)| data["content_block"]["type"] == "tool_use")
        .expect("a call");
    assert_eq!(
        (&block.1["index"], &block.1["content_block"]["name"]),
        (&json!(1), &json!("f"))
    );
    let (_, delta) = &events[events.len() - 2];
    assert_eq!(delta["delta"]["stop_reason"], "tool_use");
    assert!(delta["usage"]["output_tokens"].as_u64().unwrap() > 10);
}

#[test]
fn late_errors_have_their_dialects_form() {
    let server = chatml();
    server.plays(Script {
        tokens: server.byte_tokens(b"ab"),
        finish: Finish::Error("logits are not numbers".into()),
        ..Script::default()
    });
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    for (path, body) in [
        ("/v1/responses", json!({ "input": "Hi", "stream": true })),
        (
            "/v1/messages",
            json!({ "messages": messages, "stream": true }),
        ),
    ] {
        let reply = server.post(path, body);
        let (name, data) = events(&reply).pop().unwrap();
        assert_eq!(
            (name.as_str(), &data["error"]["type"]),
            ("error", &json!("server_error")),
            "{path}"
        );
    }
    let reply = server.post("/api/chat", json!({ "messages": messages }));
    let last = reply.text().lines().last().unwrap().to_owned();
    assert_eq!(last, r#"{"error":"logits are not numbers"}"#);
}

#[test]
fn ollamas_embeddings() {
    let server = Server::start();
    let embed = |body: Value| server.post("/api/embed", body);
    let one = embed(json!({ "model": "m", "input": "x" })).json();
    let vector = one["embeddings"][0].as_array().expect("numbers");
    let length: f64 = vector.iter().filter_map(Value::as_f64).map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-6, "{one}");
    let two = embed(json!({ "input": ["x", "y"] })).json();
    assert_eq!(two["embeddings"].as_array().unwrap().len(), 2);
    assert_eq!(two["embeddings"][0], one["embeddings"][0]);

    let long = "x ".repeat(3 * SLOT_CONTEXT);
    let cut = embed(json!({ "input": long })).json();
    assert_eq!(cut["prompt_eval_count"], SLOT_CONTEXT);
    let refused = embed(json!({ "input": long, "truncate": false }));
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].is_string());
    assert_eq!(embed(json!({ "input": [] })).status, 400);
}

#[test]
fn ollamas_routes() {
    let server = chatml();
    server.says(CALL);
    assert!(server.get("/api/version").json()["version"].is_string());
    let tags = server.get("/api/tags").json();
    assert_eq!(tags["models"][0]["name"], "tiny.gguf");
    assert_eq!(tags["models"][0]["modified_at"], "2023-11-14T22:13:20Z");

    let running = server.get("/api/ps").json();
    assert_eq!(running["models"][0]["context_length"], SLOT_CONTEXT);
    let shown = server.post("/api/show", json!({ "model": "m" })).json();
    assert_eq!(
        shown["model_info"]["bitnet-b1.58.block_count"], 2,
        "{shown}"
    );

    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": {} } });
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "Hi" }], "tools": [tool],
        "options": { "num_predict": 200, "temperature": 0, "num_ctx": 64 } });
    let reply = server.post("/api/chat", body.clone());
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> = reply
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let content: String = lines
        .iter()
        .filter_map(|line| line["message"]["content"].as_str())
        .collect();
    assert_eq!(content, "Let me see.");
    let calls: Vec<&Value> = lines
        .iter()
        .filter_map(|line| line["message"]["tool_calls"].get(0))
        .collect();
    assert_eq!(
        calls,
        [&json!({ "function": { "name": "f", "arguments": { "a": 1 } } })]
    );
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("stop"))
    );
    assert!(last["eval_count"].as_u64().unwrap() > 10 && last["total_duration"].is_u64());
    assert!(
        lines[..lines.len() - 1]
            .iter()
            .all(|line| line["done"] == false)
    );
    assert_eq!(server.backend.last_job().max_tokens, Some(200));
    assert_eq!(server.backend.last_job().sampling.temperature, 0.0);

    let mut whole = body;
    whole["stream"] = json!(false);
    let json = server.post("/api/chat", whole).json();
    assert_eq!(
        json["message"]["tool_calls"][0]["function"]["arguments"],
        json!({ "a": 1 })
    );

    server.says("Hello");
    let json = server
        .post(
            "/api/generate",
            json!({ "prompt": "Hi", "system": "S", "stream": false }),
        )
        .json();
    assert_eq!(
        (&json["response"], &json["done"]),
        (&json!("Hello"), &json!(true))
    );
    let raw = server.post(
        "/api/generate",
        json!({ "prompt": "Hi", "raw": true, "stream": false }),
    );
    assert_eq!(raw.json()["response"], "Hello");
    assert_eq!(
        server.backend.last_job().prompt,
        server.tokenizer.encode("Hi", true, true)
    );
    let json = server.post("/api/generate", json!({ "model": "m" })).json();
    assert_eq!(
        (&json["done_reason"], &json["response"]),
        (&json!("load"), &json!(""))
    );
    let reply = server.post(
        "/api/generate",
        json!({ "prompt": "x", "images": ["aGk="] }),
    );
    assert!(reply.status == 400 && reply.json()["error"].as_str().unwrap().contains("image"));
}

#[test]
fn embeddings() {
    let server = Server::start();
    let json = server
        .post(
            "/v1/embeddings",
            json!({ "model": "m", "input": ["a", "bc", [5, 6]], "dimensions": 9 }),
        )
        .json();
    assert_eq!(
        (&json["object"], &json["model"]),
        (&json!("list"), &json!("tiny.gguf"))
    );
    assert_eq!(
        json["usage"]["prompt_tokens"],
        json["usage"]["total_tokens"]
    );
    let data = json["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    for (i, entry) in data.iter().enumerate() {
        assert_eq!(
            (&entry["index"], &entry["object"]),
            (&json!(i), &json!("embedding"))
        );
        let sum: f64 = entry["embedding"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap().powi(2))
            .sum();
        assert!((sum - 1.0).abs() < 1e-6, "{entry}");
    }
    let exact = json!({ "input": [[1]], "embd_normalize": -1 });
    let json = server.post("/v1/embeddings", exact.clone()).json();
    assert_eq!(json["data"][0]["embedding"], json!([4.0, 4.0]));
    let mut coded = exact;
    coded["encoding_format"] = json!("base64");
    let json = server.post("/v1/embeddings", coded).json();
    assert_eq!(json["data"][0]["embedding"], "AACAQAAAgEA=");

    for path in ["/embedding", "/embeddings"] {
        let json = server
            .post(
                path,
                json!({ "content": [1, 2], "pooling": "none", "embd_normalize": -1 }),
            )
            .json();
        assert_eq!(
            json,
            json!([{ "index": 0, "embedding": [[4.0, 4.0], [5.0, 4.0]] }])
        );
    }
    assert!(
        server
            .post("/v1/embeddings", json!({ "content": "x" }))
            .json()
            .is_array()
    );
    for body in [
        json!({}),
        json!({ "input": "" }),
        json!({ "input": [] }),
        json!({ "input": ["a", ""] }),
        json!({ "input": [-1] }),
        json!({ "input": "x", "encoding_format": "hex" }),
        json!({ "input": "x", "pooling": "none" }),
        json!({ "input": "x", "pooling": "rank" }),
        json!({ "input": "word ".repeat(2000) }),
    ] {
        let reply = server.post("/v1/embeddings", body.clone());
        assert_eq!(reply.error().0, 400, "{body}");
    }
}

#[test]
fn slots_to_files() {
    let server = Server::start();
    assert_eq!(
        server.post("/slots/0?action=erase", json!({})).error().0,
        501,
        "without a folder"
    );
    let server = Server::with(ServerConfig {
        slot_save_path: Some("/srv/slots".into()),
        ..ServerConfig::default()
    });
    let saved = server
        .post("/slots/1?action=save", json!({ "filename": "a.bin" }))
        .json();
    assert_eq!(
        saved,
        json!({ "id_slot": 1, "filename": "a.bin", "n_saved": 5, "n_written": 1234, "timings": { "save_ms": 2.5 } })
    );
    let restored = server
        .post("/slots/0?action=restore", json!({ "filename": "a.bin" }))
        .json();
    assert_eq!(
        (&restored["n_restored"], &restored["n_read"]),
        (&json!(5), &json!(1234))
    );
    let erased = server.post_text("/slots/0?action=erase", "").json();
    assert_eq!(erased, json!({ "id_slot": 0, "n_erased": 5 }));
    assert_eq!(server.backend.actions.lock().unwrap().len(), 3);
    for (path, body, message) in [
        (
            "/slots/0?action=save",
            json!({ "filename": "../a" }),
            "Invalid filename",
        ),
        ("/slots/0?action=save", json!({}), "Invalid filename"),
        ("/slots/0?action=dance", json!({}), "Invalid action"),
        ("/slots/0", json!({}), "Invalid action"),
        ("/slots/9?action=erase", json!({}), "Invalid slot ID"),
        ("/slots/x?action=erase", json!({}), "Invalid slot ID"),
    ] {
        let found = server.post(path, body).error();
        assert_eq!(
            found,
            (400, "invalid_request_error".into(), message.into()),
            "{path}"
        );
    }
}
