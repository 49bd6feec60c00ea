//! The newer routes on the real binary: they say what the older ones say, and slots survive in files.

mod common;

use common::Server;
use serde_json::{Value, json};

const QUESTION: &str = "What is BitNet?";

/// What `/v1/chat/completions` answers; every other dialect has to answer the same.
fn expected(server: &Server) -> (String, u64) {
    let reply = server
        .post(
            "/v1/chat/completions",
            &json!({"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0}),
        )
        .json();
    let text = reply["choices"][0]["message"]["content"].as_str();
    let prompt_tokens = reply["usage"]["prompt_tokens"].as_u64();
    (
        text.expect("a text").to_owned(),
        prompt_tokens.expect("a number"),
    )
}

#[test]
fn every_dialect_gives_the_same_answer() {
    let server = Server::ready(&[]);
    let (text, n_prompt) = expected(&server);
    assert!(!text.is_empty());

    let response = json!({"input": QUESTION, "max_output_tokens": 24, "temperature": 0});
    let reply = server.post("/v1/responses", &response).json();
    assert_eq!(
        reply["output"][0]["content"][0]["text"],
        text.as_str(),
        "{reply}"
    );
    assert_eq!(reply["usage"]["input_tokens"], n_prompt);

    let messages = json!([{"role": "user", "content": QUESTION}]);
    let message = json!({"messages": messages, "max_tokens": 24, "temperature": 0});
    let reply = server.post("/v1/messages", &message).json();
    assert_eq!(reply["content"][0]["text"], text.as_str(), "{reply}");
    let counted = server.post("/v1/messages/count_tokens", &message).json();
    assert_eq!(counted["input_tokens"], n_prompt);

    let options = json!({"num_predict": 24, "temperature": 0});
    let chat = json!({"messages": messages, "options": options, "stream": false});
    let reply = server.post("/api/chat", &chat).json();
    assert_eq!(reply["message"]["content"], text.as_str(), "{reply}");
    let streamed = server.post(
        "/api/generate",
        &json!({"prompt": QUESTION, "options": options}),
    );
    let lines = streamed.body.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["response"].as_str().unwrap_or_default().to_owned()
    });
    assert_eq!(lines.collect::<String>(), text);

    let created = server.get("/v1/models").json()["data"][0]["created"].as_u64();
    assert!(
        created.unwrap() > 1_700_000_000,
        "the bundled model is as old as the program"
    );
    let described = server.get("/openapi.json").json();
    assert!(described["paths"]["/v1/responses"]["post"].is_object());
}

#[test]
fn embeddings_beside_completions() {
    let server = Server::ready(&["--pooling", "mean"]);
    let embed = |input: Value| {
        let reply = server
            .post("/v1/embeddings", &json!({"input": input}))
            .json();
        let numbers = |entry: &Value| -> Vec<f64> {
            let numbers = entry["embedding"].as_array().expect("numbers");
            numbers.iter().filter_map(Value::as_f64).collect()
        };
        reply["data"]
            .as_array()
            .expect("a list")
            .iter()
            .map(numbers)
            .collect::<Vec<_>>()
    };
    let one_by_one = [embed(json!("a cat")), embed(json!("a dog"))].concat();
    let together = embed(json!(["a cat", "a dog", "a cat"]));
    assert_eq!(together[..2], one_by_one);
    assert_eq!(together[2], together[0]);
    assert_ne!(together[0], together[1]);
    for vector in &together {
        let length: f64 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
    }
    let n_embd = server.get("/v1/models").json()["data"][0]["meta"]["n_embd"].clone();
    assert_eq!(json!(together[0].len()), n_embd);
    assert!(!expected(&server).0.is_empty());
}

#[test]
fn a_slot_survives_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    let flags = ["--slot-save-path", path, "--parallel", "1"];
    let prompt = json!({"prompt": "Once upon a time there was a little girl who", "n_predict": 4, "temperature": 0});
    let file = json!({"filename": "story.slot"});

    let server = Server::ready(&flags);
    let first = server.post("/completion", &prompt).json();
    let saved = server.post("/slots/0?action=save", &file);
    assert_eq!(saved.status, 200, "{}", saved.body);
    let n_saved = saved.json()["n_saved"].as_u64().expect("a number");
    assert!(n_saved > 5);
    drop(server);

    let server = Server::ready(&flags);
    let restored = server.post("/slots/0?action=restore", &file);
    assert_eq!(restored.status, 200, "{}", restored.body);
    assert_eq!(restored.json()["n_restored"], n_saved);
    let second = server.post("/completion", &prompt).json();
    assert_eq!(second["content"], first["content"]);
    assert_eq!(second["timings"]["prompt_n"], 1, "{}", second["timings"]);
    let erased = server.post("/slots/0?action=erase", &json!({})).json();
    assert!(erased["n_erased"].as_u64().expect("a number") > 0);
    let third = server.post("/completion", &prompt).json();
    assert_eq!(third["timings"]["cache_n"], 0, "{}", third["timings"]);

    for (name, status) in [("../story.slot", 400), ("no-such.slot", 400)] {
        let reply = server.post("/slots/0?action=restore", &json!({"filename": name}));
        assert_eq!(reply.status, status, "{}", reply.body);
    }
}

/// A request may do without guesses; the text stays what it was.
#[test]
fn a_request_switches_guesses_off() {
    let server = Server::ready(&["--parallel", "1", "--spec", "ngram"]);
    let mut body = json!({
        "prompt": "The cat sat on the mat. The dog ran to the park. ".repeat(4),
        "n_predict": 200, "ignore_eos": true, "temperature": 0, "cache_prompt": false,
    });
    let guessed = server.post("/completion", &body).json();
    assert!(
        guessed["timings"]["draft_n"].as_u64() > Some(0),
        "{guessed}"
    );
    body["speculative.n_max"] = json!(0);
    let drawn = server.post("/completion", &body).json();
    assert_eq!(drawn["content"], guessed["content"]);
    assert_eq!(drawn["timings"]["draft_n"].as_u64().unwrap_or(0), 0);
}
