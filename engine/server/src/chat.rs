//! From chat messages to a prompt.

use serde_json::{Map, Value, json};

use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::model::Model;
use crate::parts::Look;
use crate::request::{Fields, expected};
use crate::schema::{self, requests};
use crate::tools::{self, ToolUse};

/// A chat request, read and rendered.
pub(crate) struct Chat {
    pub(crate) prompt: String,
    pub(crate) tools: Option<ToolUse>,
    /// What its answer may be made of.
    pub(crate) look: Look,
}

/// Reads messages and tools, and renders the prompt.
///
/// # Errors
/// 400 for messages that are none, for parts the model can't read, and when the template refuses.
pub(crate) fn read(
    body: &Map<String, Value>,
    config: &ServerConfig,
    model: &Model,
) -> Result<Chat, ApiError> {
    schema::check(body, requests::CHAT)?;
    let fields = Fields(body);
    let tools = ToolUse::read(&fields)?;
    let mut messages = read_messages(&fields)?;
    let continued = continued_answer(&fields, config, &mut messages)?;
    if let Some(system) = &config.system_message
        && !messages.iter().any(|message| message["role"] == "system")
    {
        messages.insert(0, json!({ "role": "system", "content": system }));
    }
    let natively = model.template.knows_tools();
    if !natively {
        messages = tools::into_text(messages);
        if let Some(tools) = &tools {
            tools::inject(&mut messages, tools);
        }
    }
    let wants_answer = fields.bool("add_generation_prompt")?.unwrap_or(true);

    let mut variables = config.template_kwargs.clone();
    if let Some(kwargs) = fields.object("chat_template_kwargs")? {
        variables.extend(kwargs.clone());
    }
    variables.insert("messages".into(), Value::Array(messages));
    variables.insert(
        "add_generation_prompt".into(),
        json!(wants_answer || continued.is_some()),
    );
    variables.insert("bos_token".into(), json!(model.bos_text));
    variables.insert("eos_token".into(), json!(model.eos_text));
    if let Some(tools) = tools.as_ref().filter(|_| natively) {
        variables.insert("tools".into(), tools.list());
    }
    let rendered = model
        .template
        .render(&variables)
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(Chat {
        prompt: rendered + &continued.unwrap_or_default(),
        look: match config.skip_chat_parsing {
            true => Look::default(),
            false => Look {
                tools: tools.is_some(),
                reasoning: splits_reasoning(&fields, config)?,
            },
        },
        tools,
    })
}

/// `reasoning_format`: `none` leaves thoughts in the text, the others split them off.
fn splits_reasoning(fields: &Fields<'_>, config: &ServerConfig) -> Result<bool, ApiError> {
    match fields.get(&["reasoning_format"]) {
        None => Ok(config.split_reasoning),
        Some((_, Value::String(format))) => match format.as_str() {
            "none" => Ok(false),
            "auto" | "deepseek" | "deepseek-legacy" => Ok(true),
            other => {
                let problem = format!("found `{other}`, expected `none`, `auto` or `deepseek`");
                Err(ApiError::field("reasoning_format", problem))
            }
        },
        Some((name, other)) => Err(ApiError::field(name, expected("a string", other))),
    }
}

/// A last message of the assistant is the beginning of the answer: taken off the list, put behind the prompt.
fn continued_answer(
    fields: &Fields<'_>,
    config: &ServerConfig,
    messages: &mut Vec<Value>,
) -> Result<Option<String>, ApiError> {
    let asked = fields.bool("continue_final_message")?;
    if asked == Some(true) && fields.bool("add_generation_prompt")? == Some(true) {
        return Err(ApiError::field(
            "continue_final_message",
            "excludes `add_generation_prompt`",
        ));
    }
    let is_assistant =
        |message: Option<&Value>| message.is_some_and(|message| message["role"] == "assistant");
    let calls = messages
        .last()
        .is_some_and(|message| message.get("tool_calls").is_some());
    if calls || !is_assistant(messages.last()) || !asked.unwrap_or(config.prefill_assistant) {
        return Ok(None);
    }
    if messages.len() >= 2 && is_assistant(messages.get(messages.len() - 2)) {
        return Err(ApiError::field(
            "messages",
            "two assistant messages at the end",
        ));
    }
    let last = messages.pop().unwrap_or_default();
    Ok(last["content"].as_str().map(str::to_owned))
}

fn read_messages(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let Some(messages) = fields.array("messages")? else {
        return Err(ApiError::field("messages", "is missing"));
    };
    if messages.is_empty() {
        return Err(ApiError::field("messages", "must not be empty"));
    }
    messages
        .iter()
        .enumerate()
        .map(|(i, message)| read_message(i, message))
        .collect()
}

/// Keeps the other keys (`name`, ..) for the template.
fn read_message(i: usize, message: &Value) -> Result<Value, ApiError> {
    let at = format!("messages[{i}]");
    let Value::Object(message) = message else {
        return Err(ApiError::field(&at, expected("an object", message)));
    };
    let role = match message.get("role") {
        Some(Value::String(role)) if role == "developer" => "system",
        Some(Value::String(role)) => role,
        None => return Err(ApiError::field(&at, "`role` is missing")),
        Some(other) => {
            return Err(ApiError::field(
                &format!("{at}.role"),
                expected("a string", other),
            ));
        }
    };
    let content = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => join_parts(&at, parts)?,
        None | Some(Value::Null) if role == "assistant" || role == "tool" => String::new(),
        None => return Err(ApiError::field(&at, "`content` is missing")),
        Some(other) => {
            return Err(ApiError::field(
                &format!("{at}.content"),
                expected("a string or an array of parts", other),
            ));
        }
    };
    let mut message = message.clone();
    message.insert("role".into(), json!(role));
    message.insert("content".into(), json!(content));
    match message.remove("tool_calls") {
        None | Some(Value::Null) => {}
        Some(calls) => {
            let calls = tools::read_calls(&at, &calls)?;
            if !calls.is_empty() {
                message.insert("tool_calls".into(), Value::Array(calls));
            }
        }
    }
    Ok(Value::Object(message))
}

/// Text parts, joined by line breaks.
fn join_parts(at: &str, parts: &[Value]) -> Result<String, ApiError> {
    let text_of = |part: &Value| -> Result<String, ApiError> {
        let at = format!("{at}.content");
        match part["type"].as_str() {
            Some("refusal") => Ok(part["refusal"].as_str().unwrap_or_default().to_owned()),
            Some("text" | "input_text" | "output_text") => match &part["text"] {
                Value::String(text) => Ok(text.clone()),
                other => Err(ApiError::field(
                    &at,
                    expected("`text` to be a string", other),
                )),
            },
            Some("image_url" | "input_image") => Err(ApiError::field(
                &at,
                "image input is not supported: the model reads text",
            )),
            Some("input_audio") => Err(ApiError::field(
                &at,
                "audio input is not supported: the model reads text",
            )),
            Some(other) => Err(ApiError::field(
                &at,
                format!("parts of the type `{other}` are not supported"),
            )),
            None => Err(ApiError::field(&at, "a part needs a `type`")),
        }
    };
    let texts: Vec<String> = parts.iter().map(text_of).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}
