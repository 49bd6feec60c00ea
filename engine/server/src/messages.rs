//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's Messages API.
//!
//! The request is translated into the form of `/v1/chat/completions`. Thoughts of earlier turns and tools that Anthropic
//! runs itself are left out.

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
use crate::responses::add_call;
use crate::schema::{self, requests};
use crate::writer::MessagesWriter;

/// Tokens of an answer where the request does not say.
const MAX_TOKENS: i64 = 4096;
/// Fields that are read here and mean something else, or nothing, in a chat request.
const OWN: &[&str] = &[
    "max_tokens",
    "messages",
    "n",
    "response_format",
    "stop",
    "stop_sequences",
    "stream_options",
    "system",
    "tool_choice",
    "tools",
];

/// `POST /v1/messages`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    completion::answer(app, body, read).await
}

/// `POST /v1/messages/count_tokens`
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    let n = completion::count(app, body, to_chat).await?;
    Ok(reply::ok(&json!({ "input_tokens": n })))
}

fn read(body: &Map<String, Value>, model: &Arc<Model>) -> Result<Asked, ApiError> {
    schema::check(body, requests::GENERATION)?;
    let AskedChat {
        params,
        prompts,
        look,
        ..
    } = completion::read_chat(&to_chat(body)?, model)?;
    Ok(Asked {
        params,
        prompts,
        writer: Box::new(MessagesWriter::new(model, look)),
    })
}

/// The same request, as a chat request.
fn to_chat(body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    schema::check(body, requests::MESSAGES)?;
    let fields = Fields(body);
    let mut chat: Map<String, Value> = body
        .iter()
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut messages = Vec::new();
    if let Some((name, system)) = fields.get(&["system"]) {
        let text = text_of(name, system)?;
        messages.push(json!({ "role": "system", "content": text }));
    }
    let Some(given) = fields.array("messages")? else {
        return Err(ApiError::field("messages", "is missing"));
    };
    if given.is_empty() {
        return Err(ApiError::field("messages", "must not be empty"));
    }
    for (i, message) in given.iter().enumerate() {
        read_message(&format!("messages[{i}]"), message, &mut messages)?;
    }
    chat.insert("messages".into(), Value::Array(messages));
    let n = fields
        .int(&["max_tokens"], 0, i64::MAX)?
        .unwrap_or(MAX_TOKENS);
    chat.insert("max_tokens".into(), json!(n));
    if let Some(words) = fields.strings("stop_sequences")? {
        chat.insert("stop".into(), json!(words));
    }
    if let Some(tools) = fields.array("tools")? {
        chat.insert("tools".into(), read_tools(tools)?);
    }
    if let Some(choice) = fields.object("tool_choice")? {
        chat.insert("tool_choice".into(), json!(choice));
        if let Some(one) = Fields(choice).bool("disable_parallel_tool_use")? {
            chat.insert("parallel_tool_calls".into(), json!(!one));
        }
    }
    Ok(chat)
}

/// A string, or the text of text blocks.
fn text_of(at: &str, content: &Value) -> Result<String, ApiError> {
    let blocks = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        other => {
            return Err(ApiError::field(
                at,
                expected("a string or an array of blocks", other),
            ));
        }
    };
    let texts: Vec<&str> = blocks
        .iter()
        .map(
            |block| match (block["type"].as_str(), block["text"].as_str()) {
                (Some("text") | None, Some(text)) => Ok(text),
                (kind, _) => Err(no_such_block(at, kind)),
            },
        )
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

fn no_such_block(at: &str, kind: Option<&str>) -> ApiError {
    let problem = match kind {
        Some("image") => "image input is not supported: the model reads text".to_owned(),
        Some("document") => "documents are not supported: the model reads text".to_owned(),
        Some("text") => "`text` is missing, a string".to_owned(),
        Some(kind) => format!("blocks of the type `{kind}` are not supported here"),
        None => "a block needs a `type`".to_owned(),
    };
    ApiError::field(at, problem)
}

/// Adds what a message says: results of tools, then text and calls.
fn read_message(at: &str, message: &Value, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let Value::Object(map) = message else {
        return Err(ApiError::field(at, expected("an object", message)));
    };
    let Some(role) = map.get("role").and_then(Value::as_str) else {
        return Err(ApiError::field(at, "`role` is missing"));
    };
    let at = format!("{at}.content");
    let blocks = match map.get("content") {
        Some(Value::Array(blocks)) => blocks,
        Some(Value::String(text)) => {
            messages.push(json!({ "role": role, "content": text }));
            return Ok(());
        }
        Some(other) => {
            return Err(ApiError::field(
                &at,
                expected("a string or an array of blocks", other),
            ));
        }
        None => return Err(ApiError::field(&at, "is missing")),
    };
    let mut texts = Vec::new();
    let mut calls = Vec::new();
    for block in blocks {
        match block["type"].as_str() {
            Some("text") => match block["text"].as_str() {
                Some(text) => texts.push(text),
                None => return Err(no_such_block(&at, Some("text"))),
            },
            Some("tool_use") => match block["name"].as_str() {
                Some(name) => calls.push(json!({
                    "id": block["id"],
                    "type": "function",
                    "function": { "name": name, "arguments": block["input"] },
                })),
                None => return Err(ApiError::field(&at, "a `tool_use` needs a `name`")),
            },
            Some("tool_result") => {
                let content = match &block["content"] {
                    Value::Null => String::new(),
                    content => text_of(&at, content)?,
                };
                let content = if block["is_error"] == true {
                    format!("Error: {content}")
                } else {
                    content
                };
                messages.push(json!({ "role": "tool", "tool_call_id": block["tool_use_id"], "content": content }));
            }
            Some("thinking" | "redacted_thinking") => {}
            kind => return Err(no_such_block(&at, kind)),
        }
    }
    let results_only =
        texts.is_empty() && messages.last().is_some_and(|last| last["role"] == "tool");
    if !(results_only && role == "user") {
        messages.push(json!({ "role": role, "content": texts.join("\n") }));
    }
    for call in calls {
        add_call(messages, call);
    }
    Ok(())
}

/// To OpenAI's form; tools that Anthropic runs itself are left out.
fn read_tools(tools: &[Value]) -> Result<Value, ApiError> {
    let mut out = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        let Value::Object(map) = tool else {
            return Err(ApiError::field(
                &format!("tools[{i}]"),
                expected("an object", tool),
            ));
        };
        match map.get("type").and_then(Value::as_str) {
            None | Some("custom") => {}
            Some(kind) => {
                tracing::debug!("a tool of the type `{kind}` is left out");
                continue;
            }
        }
        let mut function = Map::new();
        for (theirs, ours) in [
            ("name", "name"),
            ("description", "description"),
            ("input_schema", "parameters"),
        ] {
            if let Some(value) = map.get(theirs) {
                function.insert(ours.into(), value.clone());
            }
        }
        out.push(json!({ "type": "function", "function": function }));
    }
    Ok(Value::Array(out))
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
            "system": [{ "type": "text", "text": "Be brief." }],
            "messages": [
                { "role": "user", "content": "hi" },
                { "role": "assistant", "content": [
                    { "type": "thinking", "thinking": "hm", "signature": "" },
                    { "type": "text", "text": "Let me see." },
                    { "type": "tool_use", "id": "toolu_1", "name": "f", "input": { "a": 1 } },
                ] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "toolu_1", "content": [{ "type": "text", "text": "one" }] },
                ] },
            ],
            "tools": [{ "name": "f", "input_schema": { "type": "object" } }, { "type": "web_search_20250305", "name": "web_search" }],
            "tool_choice": { "type": "tool", "name": "f", "disable_parallel_tool_use": true },
            "stop_sequences": ["END"], "top_k": 3,
        }))
        .unwrap();
        let messages = body["messages"].as_array().unwrap();
        let roles: Vec<&str> = messages
            .iter()
            .filter_map(|message| message["role"].as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(
            messages[2]["tool_calls"][0]["function"]["arguments"],
            json!({ "a": 1 })
        );
        assert_eq!(
            body["tools"],
            json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }])
        );
        assert_eq!(
            (
                &body["max_tokens"],
                &body["parallel_tool_calls"],
                &body["stop"],
                &body["top_k"]
            ),
            (&json!(4096), &json!(false), &json!(["END"]), &json!(3))
        );
    }

    #[test]
    fn refusals() {
        for (body, part) in [
            (json!({}), "'messages': is missing"),
            (json!({ "messages": [] }), "must not be empty"),
            (
                json!({ "messages": [{ "content": "x" }] }),
                "`role` is missing",
            ),
            (
                json!({ "messages": [{ "role": "user" }] }),
                "`content` is missing",
            ),
            (
                json!({ "messages": [{ "role": "user", "content": [{ "type": "image" }] }] }),
                "image input",
            ),
            (
                json!({ "messages": [{ "role": "user", "content": "x" }], "system": 3 }),
                "'system'",
            ),
            (
                json!({ "messages": [{ "role": "user", "content": "x" }], "tool_choice": "auto" }),
                "'tool_choice'",
            ),
        ] {
            let message = chat(body.clone()).unwrap_err().message;
            assert!(message.contains(part), "{body}: {message}");
        }
    }
}
