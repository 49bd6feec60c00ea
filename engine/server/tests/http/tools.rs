//! Tool calls in OpenAI's chat form: what the model is told, what clients get.

use bitnet_server::ServerConfig;
use serde_json::{Value, json};

use crate::backend::Script;
use crate::server::Server;

const CALL: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>";

fn tools() -> Value {
    json!([{ "type": "function", "function": {
        "name": "weather", "description": "Weather of a city", "strict": false,
        "parameters": { "$schema": "x", "type": "object", "properties": { "city": { "type": "string" } }, "additionalProperties": false },
    } }])
}

fn body() -> Value {
    json!({ "messages": [{ "role": "user", "content": "How is it?" }], "tools": tools() })
}

fn chatml() -> Server {
    Server::with(ServerConfig {
        chat_template: Some("chatml".into()),
        ..ServerConfig::default()
    })
}

#[test]
fn a_call_in_a_reply() {
    let server = chatml();
    server.says(CALL);
    let json = server.post("/v1/chat/completions", body()).json();
    let choice = &json["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(
        (&call["type"], &call["function"]),
        (
            &json!("function"),
            &json!({ "name": "weather", "arguments": "{\"city\": \"Köln\"}" })
        )
    );

    server.says(&format!("I look. {CALL}\n{CALL}"));
    let json = server.post("/v1/chat/completions", body()).json();
    let message = &json["choices"][0]["message"];
    assert_eq!(message["content"], "I look.");
    let calls = message["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    server.says("It is fine.");
    let json = server.post("/v1/chat/completions", body()).json();
    let choice = &json["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]),
        (
            &json!("stop"),
            &json!({ "role": "assistant", "content": "It is fine." })
        )
    );
}

#[test]
fn a_call_in_a_stream() {
    let server = chatml();
    server.says(&format!("Ok. {CALL}"));
    let mut body = body();
    body["stream"] = json!(true);
    let frames = server.post("/v1/chat/completions", body).frames();
    assert_eq!(frames.last().unwrap(), "[DONE]");
    let deltas: Vec<&Value> = frames[..frames.len() - 1]
        .iter()
        .map(|frame| &frame["choices"][0]["delta"])
        .collect();
    let content: String = deltas
        .iter()
        .filter_map(|delta| delta["content"].as_str())
        .collect();
    assert_eq!(content, "Ok.");
    let calls: Vec<&Value> = deltas
        .iter()
        .filter_map(|delta| delta["tool_calls"].get(0))
        .collect();
    assert_eq!(
        (&calls[0]["index"], &calls[0]["type"]),
        (&json!(0), &json!("function"))
    );
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(
        calls[0]["function"],
        json!({ "name": "weather", "arguments": "" })
    );
    let mut arguments = String::new();
    for piece in &calls[1..] {
        assert_eq!(
            piece.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["index", "function"]
        );
        assert_eq!(piece["function"].as_object().unwrap().len(), 1);
        arguments += piece["function"]["arguments"].as_str().unwrap();
    }
    assert!(calls.len() > 5, "arguments come in pieces");
    assert_eq!(arguments, "{\"city\": \"Köln\"}");
    let end = &frames[frames.len() - 2]["choices"][0];
    assert_eq!(
        (&end["finish_reason"], &end["delta"]),
        (&json!("tool_calls"), &json!({}))
    );
}

#[test]
fn no_tools_no_calls() {
    let server = chatml();
    server.says(CALL);
    for choice in [
        json!({ "tools": [] }),
        json!({ "tools": tools(), "tool_choice": "none" }),
    ] {
        let mut body = body();
        body.as_object_mut()
            .unwrap()
            .extend(choice.as_object().unwrap().clone());
        let message =
            server.post("/v1/chat/completions", body).json()["choices"][0]["message"].clone();
        assert_eq!(
            (message.get("tool_calls"), &message["content"]),
            (None, &json!(CALL))
        );
    }
}

#[test]
fn a_cut_call_stays_a_call() {
    let server = chatml();
    server.plays(Script {
        tokens: server.byte_tokens(&CALL.as_bytes()[..60]),
        ..Script::default()
    });
    let json = server.post("/v1/chat/completions", body()).json();
    let arguments = &json["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    assert!(arguments.as_str().unwrap().starts_with("{\"city"), "{json}");
}

#[test]
fn the_model_is_told() {
    let server = chatml();
    let prompt = |body: &Value| {
        server.post("/apply-template", body.clone()).json()["prompt"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let text = prompt(&body());
    assert!(
        text.starts_with("<|im_start|>system\n") && text.contains("\"name\":\"weather\""),
        "{text}"
    );
    assert!(text.contains("<tool_call>") && text.contains("when it helps"));
    let mut forced = body();
    forced["tool_choice"] = json!({ "type": "function", "function": { "name": "weather" } });
    assert!(prompt(&forced).contains("a call of the function weather"));

    let mut turns = body();
    turns["messages"] = json!([
        { "role": "user", "content": "How is it?" },
        { "role": "assistant", "content": "", "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":\"Rom\"}" } },
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
    ]);
    let text = prompt(&turns);
    let expected = "<|im_start|>assistant\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\"Rom\"}}\n</tool_call><|im_end|>\n\
<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn a_template_that_knows_tools_gets_them() {
    let template = "{% if tools %}{{ tools[0].function.name }} as <tool_call>;{% endif %}\
{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments.city }}{% endfor %};{% endfor %}";
    let server = Server::with(ServerConfig {
        chat_template: Some(template.into()),
        ..ServerConfig::default()
    });
    let mut body = body();
    body["messages"].as_array_mut().unwrap().extend([
        json!({ "role": "assistant", "content": null, "tool_calls": [
            { "function": { "name": "weather", "arguments": "{\"city\":\"Rom\"}" } },
        ] }),
        json!({ "role": "tool", "content": "sunny" }),
    ]);
    let prompt = server.post("/apply-template", body).json()["prompt"].clone();
    assert_eq!(
        prompt,
        "weather as <tool_call>;user:How is it?;assistant:Rom;tool:sunny;"
    );
    let caps = server.get("/props").json()["chat_template_caps"].clone();
    assert_eq!(caps["supports_tools"], true);
}

#[test]
fn thoughts_are_split_off_when_asked() {
    let server = chatml();
    server.says("<think>\nhm\n</think>\n\nYes.");
    let body =
        json!({ "messages": [{ "role": "user", "content": "x" }], "reasoning_format": "deepseek" });
    let message =
        server.post("/v1/chat/completions", body.clone()).json()["choices"][0]["message"].clone();
    assert_eq!(
        message,
        json!({ "role": "assistant", "content": "Yes.", "reasoning_content": "hm" })
    );
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let frames = server.post("/v1/chat/completions", streamed).frames();
    let joined = |key: &str| -> String {
        frames
            .iter()
            .filter_map(|frame| frame["choices"][0]["delta"][key].as_str())
            .collect()
    };
    assert_eq!(
        (
            joined("reasoning_content").trim(),
            joined("content").as_str()
        ),
        ("hm", "Yes.")
    );
    let mut kept = body;
    kept["reasoning_format"] = json!("none");
    let message = server.post("/v1/chat/completions", kept).json()["choices"][0]["message"].clone();
    assert_eq!(message["content"], "<think>\nhm\n</think>\n\nYes.");
}
