//! Server-sent events.

use std::io::{BufReader, Write};
use std::time::Duration;

use bitnet_model::protocol::Finish;
use bitnet_server::ServerConfig;
use serde_json::{Value, json};

use crate::backend::Script;
use crate::client::{connect, raw_request, read_chunk, read_head};
use crate::server::Server;

fn joined(frames: &[Value]) -> String {
    frames
        .iter()
        .filter_map(|frame| frame["content"].as_str())
        .collect()
}

#[test]
fn native_stream_is_the_same_text() {
    let server = Server::start();
    let text = "Grüße, 日本 🙂!";
    server.says(text);
    let reply = server.post(
        "/completion",
        json!({ "prompt": "p", "stream": true, "timings_per_token": true }),
    );
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    let frames = reply.frames();
    let (last, partial) = frames.split_last().unwrap();
    assert_eq!(joined(partial), text);
    assert_eq!(
        partial.len(),
        text.len() + 1,
        "a frame per token, the end token included"
    );
    for (i, frame) in partial.iter().enumerate() {
        assert_eq!(frame["tokens"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&frame["stop"], &frame["tokens_predicted"]),
            (&json!(false), &json!(i + 1))
        );
        assert!(
            frame["timings"].is_object()
                && !frame["content"].as_str().unwrap().contains('\u{fffd}')
        );
    }
    assert_eq!(
        (&last["content"], &last["stop"], &last["stop_type"]),
        (&json!(""), &json!(true), &json!("eos"))
    );
    assert_eq!(last["generation_settings"]["stream"], true);
    assert!(!reply.text().contains("[DONE]"));
}

#[test]
fn probabilities_one_per_frame() {
    let server = Server::start();
    server.says("ab");
    let frames = server
        .post(
            "/completion",
            json!({ "prompt": "p", "stream": true, "n_probs": 3 }),
        )
        .frames();
    let (last, partial) = frames.split_last().unwrap();
    assert!(
        partial
            .iter()
            .all(|frame| frame["completion_probabilities"].as_array().unwrap().len() == 1)
    );
    assert!(last.get("completion_probabilities").is_none());
}

#[test]
fn stop_words_never_show() {
    let server = Server::start();
    server.says("one </s two </s> three");
    let frames = server
        .post(
            "/completion",
            json!({ "prompt": "p", "stream": true, "stop": ["</s>"] }),
        )
        .frames();
    assert_eq!(joined(&frames), "one </s two ");
    let last = frames.last().unwrap();
    assert_eq!(
        (&last["stop_type"], &last["stopping_word"]),
        (&json!("word"), &json!("</s>"))
    );

    server.plays(Script {
        tokens: server.byte_tokens(b"ends </s"),
        finish: Finish::Limit,
        ..Script::default()
    });
    let frames = server
        .post(
            "/completion",
            json!({ "prompt": "p", "stream": true, "stop": ["</s>"] }),
        )
        .frames();
    assert_eq!(
        joined(&frames),
        "ends </s",
        "what was withheld comes at the end"
    );
    assert_eq!(frames.last().unwrap()["stop_type"], "limit");
}

#[test]
fn chat_stream() {
    let server = Server::start();
    server.says("Hé!");
    let body = json!({
        "messages": [{ "role": "user", "content": "x" }], "stream": true, "stream_options": { "include_usage": true },
    });
    let frames = server.post("/v1/chat/completions", body).frames();
    assert_eq!(frames.last().unwrap(), "[DONE]");
    let chunks = &frames[..frames.len() - 1];
    for chunk in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&chunks[0]["id"], &chunks[0]["created"])
        );
    }
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": null })
    );
    let deltas: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["content"])
        .collect();
    assert_eq!(deltas[1..4], ["H", "é", "!"], "no empty ones");
    let (usage, end) = (&chunks[chunks.len() - 1], &chunks[chunks.len() - 2]);
    assert_eq!(
        (
            &end["choices"][0]["finish_reason"],
            &end["choices"][0]["delta"]
        ),
        (&json!("stop"), &json!({}))
    );
    assert!(end["timings"].is_object() && end.get("usage").is_none());
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"]),
        (&json!([]), &json!(5))
    );
}

#[test]
fn openai_text_stream_with_two_answers() {
    let server = Server::start();
    server.says("ok");
    let frames = server
        .post(
            "/v1/completions",
            json!({ "prompt": "p", "n": 2, "stream": true }),
        )
        .frames();
    assert_eq!(frames.last().unwrap(), "[DONE]");
    for index in 0..2 {
        let of_it = || {
            frames
                .iter()
                .filter(|frame| frame["choices"][0]["index"] == index)
        };
        let text: String = of_it()
            .filter_map(|frame| frame["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(text, "ok");
        assert_eq!(
            of_it()
                .filter(|frame| frame["choices"][0]["finish_reason"] == "stop")
                .count(),
            1
        );
    }
}

#[test]
fn progress_comes_first() {
    let server = Server::start();
    server.plays(Script {
        tokens: server.byte_tokens(b"x"),
        cached: 1,
        ..Script::default()
    });
    let frames = server
        .post(
            "/completion",
            json!({ "prompt": "some prompt", "stream": true, "return_progress": true }),
        )
        .frames();
    let progress = &frames[0]["prompt_progress"];
    assert_eq!(
        (&progress["processed"], &progress["cache"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        frames[1]["prompt_progress"]["processed"],
        frames[1]["prompt_progress"]["total"]
    );
}

#[test]
fn pings_in_silence() {
    let server = Server::with(ServerConfig {
        sse_ping: Duration::from_millis(60),
        ..ServerConfig::default()
    });
    let script = Script {
        tokens: server.byte_tokens(b"x"),
        prefill: Duration::from_millis(400),
        ..Script::default()
    };
    server.plays(script);
    let reply = server.post("/completion", json!({ "prompt": "p", "stream": true }));
    assert!(reply.text().starts_with(":\n\n"), "{}", reply.text());
    assert_eq!(joined(&reply.frames()), "x");
    let server = Server::with(ServerConfig {
        sse_ping: Duration::ZERO,
        ..ServerConfig::default()
    });
    server.says("never");
    let reply = server.post("/completion", json!({ "prompt": "p", "stream": true }));
    assert!(!reply.text().contains(":\n\n"), "{}", reply.text());
}

#[test]
fn an_early_error_is_plain_http_a_late_one_a_frame() {
    let server = Server::start();
    let finish = Finish::Error("logits are not numbers".into());
    server.plays(Script {
        finish: finish.clone(),
        ..Script::default()
    });
    let body = json!({ "prompt": "p", "stream": true });
    let reply = server.post("/completion", body.clone());
    assert_eq!(
        reply.error(),
        (500, "server_error".into(), "logits are not numbers".into())
    );

    server.plays(Script {
        tokens: server.byte_tokens(b"ab"),
        finish,
        ..Script::default()
    });
    let reply = server.post("/completion", body);
    assert_eq!(reply.status, 200);
    let frames = reply.frames();
    assert_eq!(frames.last().unwrap()["error"]["type"], "server_error");
    assert_eq!(
        server.post("/completion", json!({ "prompt": "p" })).status,
        500
    );
}

#[test]
fn leaving_cancels() {
    let server = Server::start();
    let tokens = server.byte_tokens(&[b'x'; 4000]);
    server.plays(Script {
        tokens,
        per_token: Duration::from_millis(5),
        ..Script::default()
    });
    for (n, stream) in [(1, true), (2, false)] {
        let mut client = connect(server.address);
        let body = json!({ "prompt": "p", "stream": stream }).to_string();
        client
            .write_all(&raw_request("POST", "/completion", &[], body.as_bytes()))
            .unwrap();
        if stream {
            let mut reader = BufReader::new(client.try_clone().unwrap());
            assert_eq!(read_head(&mut reader).0, 200);
            read_chunk(&mut reader).expect("a frame");
        }
        server.until("the job runs", |server| server.backend.running() == 1);
        drop(client);
        server.until("the job is cancelled", |server| {
            server.backend.running() == 0
                && server
                    .backend
                    .cancelled
                    .load(std::sync::atomic::Ordering::SeqCst)
                    == n
        });
    }
}

#[test]
fn time_limit_leaves_a_whole_line() {
    let server = Server::start();
    let tokens = server.byte_tokens(b"one\ntwo\nthree\nfour\n");
    server.plays(Script {
        tokens,
        per_token: Duration::from_millis(20),
        ..Script::default()
    });
    let json = server
        .post(
            "/completion",
            json!({ "prompt": "p", "t_max_predict_ms": 100 }),
        )
        .json();
    assert_eq!(json["stop_type"], "limit");
    assert!(json["content"].as_str().unwrap().len() < 12, "{json}");
}
