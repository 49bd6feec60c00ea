//! Answers bound to a grammar, through the real server and the demo model: form, ends, and engines that die on the way.

mod common;

use common::{Server, wait_for};
use serde_json::{Value, json};

fn server() -> Server {
    Server::ready(&["--threads", "1", "--parallel", "2"])
}

fn chat(server: &Server, more: Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Describe a cat." }],
        "max_tokens": 400, "seed": 5,
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["choices"][0].clone()
}

fn animal() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": { "enum": ["cat", "dog"] },
            "legs": { "type": "integer", "minimum": 0, "maximum": 9 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 8 }, "maxItems": 2 },
        },
        "required": ["kind", "legs", "tags"],
        "additionalProperties": false,
    })
}

fn assert_is_animal(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let map = value.as_object().unwrap_or_else(|| panic!("{text}"));
    assert_eq!(map.len(), 3, "{text}");
    assert!(
        ["cat", "dog"].contains(&value["kind"].as_str().unwrap()),
        "{text}"
    );
    assert!(value["legs"].as_u64().unwrap() <= 9, "{text}");
    let tags = value["tags"].as_array().unwrap();
    let is_short = |tag: &Value| tag.as_str().is_some_and(|tag| tag.chars().count() <= 8);
    assert!(tags.len() <= 2 && tags.iter().all(is_short), "{text}");
}

/// Blanks only inside strings, and one behind a `,` or `:`; the text may be cut off.
fn assert_has_no_runs_of_blanks(text: &str) {
    let (mut in_string, mut is_escaped, mut before) = (false, false, '{');
    for c in text.chars() {
        let is_separated = c == ' ' && matches!(before, ',' | ':');
        assert!(
            in_string || is_separated || !c.is_whitespace(),
            "a blank behind `{before}`: {text}"
        );
        if c == '"' && !is_escaped {
            in_string = !in_string;
        }
        is_escaped = in_string && c == '\\' && !is_escaped;
        before = c;
    }
}

#[test]
fn answers_take_the_form_asked_for() {
    let server = server();
    let format = json!({ "type": "json_schema", "json_schema": { "name": "animal", "strict": true, "schema": animal() } });
    for seed in 0..3 {
        let choice = chat(
            &server,
            json!({ "response_format": format, "seed": seed, "temperature": 1.2 }),
        );
        assert_eq!(choice["finish_reason"], "stop");
        let text = choice["message"]["content"].as_str().unwrap();
        assert_is_animal(text);
        assert_has_no_runs_of_blanks(text);
    }
    for (more, expected) in [
        (
            json!({ "response_format": { "type": "json_object", "schema": { "const": "42" } } }),
            "\"42\"",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "const": "foooooo" } } } }),
            "\"foooooo\"",
        ),
        (json!({ "json_schema": { "const": "42" } }), "\"42\""),
        (json!({ "grammar": "root ::= \"a\"{5,5}" }), "aaaaa"),
        (
            json!({ "grammar": "%llguidance {}\nstart: \"x\" \"y\"" }),
            "xy",
        ),
    ] {
        let choice = chat(&server, more);
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(expected), &json!("stop"))
        );
    }
    let object = chat(
        &server,
        json!({ "response_format": { "type": "json_object" }, "max_tokens": 600 }),
    );
    let text = object["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text}");
    assert_has_no_runs_of_blanks(text);
    if object["finish_reason"] == "stop" {
        assert!(
            serde_json::from_str::<Value>(text).unwrap().is_object(),
            "{text}"
        );
    }
    let native = server.post("/completion", &json!({
        "prompt": "Is water wet?", "grammar": "root ::= \"yes\" | \"no\"", "n_predict": 20, "temperature": 0,
    }));
    let native = native.json();
    assert!(
        ["yes", "no"].contains(&native["content"].as_str().unwrap()),
        "{native}"
    );
    assert_eq!(native["stop_type"], "eos");
    assert_eq!(
        native["generation_settings"]["grammar"],
        "root ::= \"yes\" | \"no\""
    );
}

#[test]
fn a_grammar_that_leads_nowhere_is_the_request_s_fault() {
    let server = server();
    let nothing_left = server.post(
        "/completion",
        &json!({
            "prompt": "x", "grammar": "root ::= \"a\"", "n_predict": 5, "ignore_eos": true,
        }),
    );
    assert_eq!(nothing_left.status, 400, "{}", nothing_left.body);
    let doubling = server.post("/completion", &json!({
        "prompt": "x", "n_predict": 100, "grammar": "root ::= \"a\" root \"b\" | \"a\" root \"c\"",
    }));
    assert_eq!(doubling.status, 400, "{}", doubling.body);
    assert!(doubling.body.contains("too much work"), "{}", doubling.body);
    let fine = server.complete(&json!({ "prompt": "Once upon a time", "n_predict": 5 }));
    assert_eq!(fine.1.len(), 5);
}

#[test]
fn required_calls_are_calls() {
    let server = server();
    let tools = json!([
        { "type": "function", "function": { "name": "look", "parameters": animal() } },
        { "type": "function", "function": { "name": "wait" } },
    ]);
    for choice in [
        json!("required"),
        json!({ "type": "function", "function": { "name": "look" } }),
    ] {
        let reply = chat(
            &server,
            json!({ "tools": tools, "tool_choice": choice, "parallel_tool_calls": false }),
        );
        assert_eq!(reply["finish_reason"], "tool_calls", "{reply}");
        let calls = reply["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{reply}");
        let function = &calls[0]["function"];
        let arguments = function["arguments"].as_str().unwrap();
        match function["name"].as_str().unwrap() {
            "look" => assert_is_animal(arguments),
            "wait" if choice == "required" => assert!(arguments.starts_with('{'), "{reply}"),
            other => panic!("{other}"),
        }
    }
    let auto = chat(
        &server,
        json!({ "tools": tools, "temperature": 0, "max_tokens": 30 }),
    );
    assert!(auto["message"].get("tool_calls").is_none() || auto["finish_reason"] == "tool_calls");
}

#[test]
fn a_constrained_stream_outlives_its_engine() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1"]);
    let grammar = r#"root ::= (word " ")* 
word ::= [a-z]+ | "<" word ">" | [0-9]{1,3}"#;
    let samplings = [
        json!({ "grammar": grammar, "dry_multiplier": 0.8, "xtc_probability": 0.3 }),
        json!({ "grammar": grammar, "mirostat": 2 }),
        json!({ "mirostat": 1 }),
        json!({ "json_schema": { "type": "array", "items": animal(), "minItems": 40 } }),
    ];
    let mut hits = 0;
    for sampling in samplings {
        let mut body = json!({ "prompt": "Once", "seed": 3, "n_predict": 300, "ignore_eos": sampling.get("json_schema").is_none() });
        body.as_object_mut()
            .unwrap()
            .extend(sampling.as_object().unwrap().clone());
        let wanted = server.complete(&body);
        assert!(wanted.1.len() > 100, "{sampling}: {wanted:?}");
        body["stream"] = json!(true);
        let before = server.engines().len();
        let mut stream = server.stream("/completion", &body);
        let first = stream.take_frames(7);
        server.kill_engine();
        assert_eq!(stream.collect_after(first), wanted, "{sampling}");
        wait_for("health", || {
            (server.get("/health").status == 200).then_some(())
        });
        hits += usize::from(server.engines().len() > before);
    }
    assert!(hits > 0, "no kill hit a running stream");
}
