//! `POST /v1/responses`: OpenAI's Responses API, without a memory of earlier responses.
//!
//! The request is translated into the form of `/v1/chat/completions`. Nothing is stored, so what refers to something
//! stored is refused; tools that OpenAI runs itself are left out.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::body::RawBody;
use crate::completion::{self, Asked, AskedChat};
use crate::error::ApiError;
use crate::model::Model;
use crate::reply;
use crate::request::{Fields, expected};
use crate::schema::{self, requests};
use crate::writer::ResponsesWriter;

/// Fields that are read here and mean something else, or nothing, in a chat request.
const OWN: &[&str] = &[
    "input",
    "instructions",
    "max_output_tokens",
    "n",
    "text",
    "tools",
    "prompt",
    "messages",
    "stop",
    "response_format",
    "stream_options",
    "include",
    "logprobs",
];
/// What `include` says when the answer's tokens shall come with their probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";
/// Fields that ask for something stored, and what to do instead.
const STORED: &[(&str, &str)] = &[
    (
        "previous_response_id",
        "responses are not stored; send the whole conversation in `input`",
    ),
    (
        "prompt",
        "prompts are not stored; send `instructions` and `input`",
    ),
];

/// `POST /v1/responses`, `/responses`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    completion::answer(app, body, read).await
}

/// `POST /v1/responses/input_tokens`
pub(crate) async fn input_tokens(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    let n = completion::count(app, body, to_chat).await?;
    Ok(reply::ok(
        &json!({ "object": "response.input_tokens", "input_tokens": n }),
    ))
}

fn read(body: &Map<String, Value>, model: &Arc<Model>) -> Result<Asked, ApiError> {
    schema::check(body, requests::GENERATION)?;
    let AskedChat {
        params,
        prompts,
        look,
        ..
    } = completion::read_chat(&to_chat(body)?, model)?;
    let writer = ResponsesWriter::new(body, &params, model, look);
    Ok(Asked {
        params,
        prompts,
        writer: Box::new(writer),
    })
}

/// The same request, as a chat request.
fn to_chat(body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    schema::check(body, requests::RESPONSES)?;
    let fields = Fields(body);
    for (name, why) in STORED {
        if fields.get(&[name]).is_some() {
            return Err(ApiError::unsupported_field(name, why));
        }
    }
    if fields.bool("background")? == Some(true) {
        let why = "responses are not stored; wait for the answer or stream it";
        return Err(ApiError::unsupported_field("background", why));
    }
    let mut chat: Map<String, Value> = body
        .iter()
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut messages = Vec::new();
    match fields.get(&["instructions"]) {
        None => {}
        Some((_, Value::String(text))) => {
            messages.push(json!({ "role": "system", "content": text }));
        }
        Some((name, other)) => return Err(ApiError::field(name, expected("a string", other))),
    }
    match fields.get(&["input"]) {
        None => return Err(ApiError::field("input", "is missing")),
        Some((_, Value::String(text))) => messages.push(json!({ "role": "user", "content": text })),
        Some((_, Value::Array(items))) => {
            for (i, item) in items.iter().enumerate() {
                read_item(&format!("input[{i}]"), item, &mut messages)?;
            }
        }
        Some((name, other)) => {
            return Err(ApiError::field(
                name,
                expected("a string or an array", other),
            ));
        }
    }
    if messages.is_empty() {
        return Err(ApiError::field("input", "must not be empty"));
    }
    chat.insert("messages".into(), Value::Array(messages));
    if let Some(n) = fields.int(&["max_output_tokens"], 0, i64::MAX)? {
        chat.insert("max_tokens".into(), json!(n));
    }
    // `top_logprobs` alone asks for them, too: nobody wants a number without what it counts.
    let included = fields.strings("include")?.unwrap_or_default();
    let top = fields.int(&["top_logprobs"], 0, i64::MAX)?.unwrap_or(0);
    if top > 0 || included.iter().any(|it| it == LOGPROBS) {
        chat.insert("logprobs".into(), json!(true));
    }
    if let Some(tools) = fields.array("tools")? {
        chat.insert("tools".into(), read_tools(tools)?);
    }
    if let Some(text) = fields.object("text")?
        && let Some(format) = Fields(text).object("format")?
    {
        chat.insert("response_format".into(), read_format(format));
    }
    Ok(chat)
}

/// Adds what an item says to the conversation.
fn read_item(at: &str, item: &Value, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let Value::Object(map) = item else {
        return Err(ApiError::field(at, expected("an object", item)));
    };
    let kind = match map.get("type") {
        None | Some(Value::Null) => "message",
        Some(Value::String(kind)) => kind,
        Some(other) => {
            return Err(ApiError::field(
                &format!("{at}.type"),
                expected("a string", other),
            ));
        }
    };
    match kind {
        "message" => {
            let Some(role) = map.get("role").and_then(Value::as_str) else {
                return Err(ApiError::field(at, "`role` is missing"));
            };
            let content = map.get("content").cloned().unwrap_or_default();
            // Clients put an empty message beside an answer's calls.
            let empty = matches!(&content, Value::Array(parts) if parts.is_empty())
                || content == ""
                || content.is_null();
            if !(empty && role == "assistant") {
                messages.push(json!({ "role": role, "content": content }));
            }
        }
        "function_call" => {
            let (Some(name), Some(arguments)) = (
                map.get("name").and_then(Value::as_str),
                map.get("arguments").and_then(Value::as_str),
            ) else {
                return Err(ApiError::field(
                    at,
                    "needs `name` and `arguments`, both strings",
                ));
            };
            let call = json!({
                "id": map.get("call_id").cloned().unwrap_or_default(),
                "type": "function",
                "function": { "name": name, "arguments": arguments },
            });
            add_call(messages, call);
        }
        "function_call_output" => {
            let content = match map.get("output") {
                Some(output @ (Value::String(_) | Value::Array(_))) => output.clone(),
                _ => {
                    return Err(ApiError::field(
                        at,
                        "needs `output`, a string or an array of parts",
                    ));
                }
            };
            let id = map.get("call_id").cloned().unwrap_or_default();
            messages.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
        }
        "reasoning" => {}
        "item_reference" => {
            let why = "responses are not stored; send the item itself";
            return Err(ApiError::unsupported_field(at, why));
        }
        other => {
            let problem = format!("items of the type `{other}` are not supported");
            return Err(ApiError::field(at, problem));
        }
    }
    Ok(())
}

/// Calls stand in the assistant's message before them, or in one of their own.
pub(crate) fn add_call(messages: &mut Vec<Value>, call: Value) {
    if messages
        .last()
        .is_none_or(|last| last["role"] != "assistant")
    {
        messages.push(json!({ "role": "assistant", "content": "" }));
    }
    if let Some(last) = messages.last_mut() {
        match &mut last["tool_calls"] {
            Value::Array(calls) => calls.push(call),
            none => *none = json!([call]),
        }
    }
}

/// From the flat form to the nested one; tools that OpenAI runs itself are left out.
fn read_tools(tools: &[Value]) -> Result<Value, ApiError> {
    let mut out = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        let Value::Object(map) = tool else {
            return Err(ApiError::field(
                &format!("tools[{i}]"),
                expected("an object", tool),
            ));
        };
        let kind = map
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("function");
        if kind != "function" {
            tracing::debug!("a tool of the type `{kind}` is left out");
        } else if map.contains_key("function") {
            out.push(tool.clone());
        } else {
            out.push(json!({ "type": "function", "function": map }));
        }
    }
    Ok(Value::Array(out))
}

/// `{type:"json_schema", name, schema, strict}` to OpenAI's older, nested form.
fn read_format(format: &Map<String, Value>) -> Value {
    if format.get("type").is_some_and(|kind| kind == "json_schema")
        && !format.contains_key("json_schema")
    {
        let mut inner = format.clone();
        inner.remove("type");
        return json!({ "type": "json_schema", "json_schema": inner });
    }
    Value::Object(format.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: Value) -> Result<Value, ApiError> {
        to_chat(body.as_object().unwrap()).map(Value::Object)
    }

    #[test]
    fn conversations() {
        let body = chat(json!({
            "instructions": "Be brief.",
            "input": [
                { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "hi" }] },
                { "type": "reasoning", "summary": [] },
                { "type": "message", "role": "assistant", "content": [] },
                { "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}" },
                { "type": "function_call", "call_id": "call_2", "name": "g", "arguments": "{}" },
                { "type": "function_call_output", "call_id": "call_1", "output": "one" },
                { "role": "user", "content": "go on" },
            ],
            "tools": [{ "type": "function", "name": "f", "parameters": {} }, { "type": "web_search" }],
            "text": { "format": { "type": "json_schema", "name": "n", "schema": { "type": "object" }, "strict": true } },
            "max_output_tokens": 9, "temperature": 0.5, "store": true,
        }))
        .unwrap();
        let roles: Vec<&str> = body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|message| message["role"].as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(
            body["messages"][2]["tool_calls"].as_array().unwrap().len(),
            2
        );
        assert_eq!(
            body["tools"],
            json!([{ "type": "function", "function": { "type": "function", "name": "f", "parameters": {} } }])
        );
        assert_eq!(
            body["response_format"]["json_schema"]["schema"],
            json!({ "type": "object" })
        );
        assert_eq!(
            (&body["max_tokens"], &body["temperature"]),
            (&json!(9), &json!(0.5))
        );
        assert!(
            chat(json!({ "input": "x", "text": {} }))
                .unwrap()
                .get("response_format")
                .is_none()
        );
    }

    #[test]
    fn refusals() {
        for (body, part) in [
            (json!({}), "'input': is missing"),
            (json!({ "input": 7 }), "'input'"),
            (json!({ "input": [] }), "must not be empty"),
            (json!({ "input": [{}] }), "`role` is missing"),
            (json!({ "input": [3] }), "input[0]"),
            (
                json!({ "input": "x", "previous_response_id": "resp_1" }),
                "not stored",
            ),
            (json!({ "input": "x", "background": true }), "not stored"),
            (
                json!({ "input": [{ "type": "item_reference", "id": "x" }] }),
                "not stored",
            ),
            (
                json!({ "input": [{ "type": "function_call" }] }),
                "`arguments`",
            ),
            (
                json!({ "input": [{ "type": "computer_call" }] }),
                "computer_call",
            ),
        ] {
            let message = chat(body.clone()).unwrap_err().message;
            assert!(message.contains(part), "{body}: {message}");
        }
    }
}
