//! Ollama's routes that desktop programs and workflow nodes probe and use: tags, ps, show, version, chat, generate and embed.
//!
//! Requests are translated into the form of `/v1/chat/completions`, or of `/completion` for raw prompts. Errors are
//! `{"error": "text"}` there, as Ollama's clients read them.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::body::RawBody;
use crate::clock;
use crate::completion::{self, Asked, AskedChat};
use crate::embeddings;
use crate::error::ApiError;
use crate::model::Model;
use crate::parts::Look;
use crate::prompt;
use crate::props::parameter_size;
use crate::reply::{self, json_response};
use crate::request::{Dialect, Fields, Params, expected};
use crate::schema::{self, requests};
use crate::writer::{OllamaForm, OllamaWriter};

/// Options that have another name here.
const OPTIONS: &[(&str, &str)] = &[("num_predict", "n_predict"), ("num_keep", "n_keep")];

/// When a model is unloaded that stays.
const NEVER: &str = "9999-12-31T23:59:59Z";

/// `GET /api/version`
pub(crate) async fn version(State(app): State<Arc<App>>) -> Response {
    reply::ok(&json!({ "version": app.config.version }))
}

/// `GET /api/tags`: the one model.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Result<Response, Error> {
    let model = app.ready()?;
    let mut entry = entry(&model);
    let modified = clock::rfc3339(model.card.created_unix_s);
    entry.insert("modified_at".into(), json!(modified));
    Ok(reply::ok(&json!({ "models": [entry] })))
}

/// `GET /api/ps`: the same while it is in memory.
pub(crate) async fn loaded(State(app): State<Arc<App>>) -> Result<Response, Error> {
    let model = app.ready()?;
    if app.backend.condition().is_asleep {
        return Ok(reply::ok(&json!({ "models": [] })));
    }
    let mut entry = entry(&model);
    entry.insert("expires_at".into(), json!(NEVER));
    entry.insert("size_vram".into(), json!(0));
    entry.insert("context_length".into(), json!(model.card.slot_context));
    Ok(reply::ok(&json!({ "models": [entry] })))
}

/// `POST /api/show`: what is known of the model, whatever name was asked for.
pub(crate) async fn show(State(app): State<Arc<App>>, body: RawBody) -> Result<Response, Error> {
    let model = app.ready()?;
    schema::check(&body.object()?, requests::OLLAMA_SHOW)?;
    let facts = &model.card.facts;
    let arch = facts.architecture.name();
    let mut info = Map::new();
    let mut number = |key: &str, n: u64| info.insert(key.to_owned(), json!(n));
    number("general.parameter_count", facts.n_params);
    for (suffix, n) in [
        ("context_length", facts.context_length),
        ("block_count", facts.n_layer),
        ("embedding_length", facts.n_embd),
        ("feed_forward_length", facts.n_ff),
        ("attention.head_count", facts.n_head),
        ("attention.head_count_kv", facts.n_head_kv),
        ("vocab_size", facts.n_vocab),
    ] {
        number(&format!("{arch}.{suffix}"), n as u64);
    }
    info.insert("general.architecture".into(), json!(arch));
    Ok(reply::ok(&json!({
        "modelfile": "",
        "parameters": "",
        "template": model.template.text(),
        "details": details(&model),
        "model_info": info,
        "capabilities": ["completion", "tools", "embedding"],
        "modified_at": clock::rfc3339(model.card.created_unix_s),
    })))
}

/// `POST /api/embed`
pub(crate) async fn embed(State(app): State<Arc<App>>, body: RawBody) -> Result<Response, Error> {
    Ok(embeddings::embed(app, body, embeddings::Form::Ollama).await?)
}

fn entry(model: &Model) -> Map<String, Value> {
    reply::object(json!({
        "name": model.id,
        "model": model.id,
        "size": model.card.facts.file_bytes,
        "digest": "",
        "details": details(model),
    }))
}

fn details(model: &Model) -> Value {
    let facts = &model.card.facts;
    let family = facts.architecture.name();
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": parameter_size(facts.n_params),
        "quantization_level": model.file_type(),
    })
}

/// `POST /api/chat`
pub(crate) async fn chat(State(app): State<Arc<App>>, body: RawBody) -> Result<Response, Error> {
    let nothing = |body: &Map<String, Value>| {
        body.get("messages")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
    };
    match loads(&app, &body, nothing, OllamaForm::Chat)? {
        Some(loaded) => Ok(loaded),
        None => Ok(completion::answer(app, body, read_chat).await?),
    }
}

/// `POST /api/generate`
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, Error> {
    let nothing = |body: &Map<String, Value>| match body.get("prompt") {
        None | Some(Value::Null) => true,
        Some(prompt) => prompt == "",
    };
    match loads(&app, &body, nothing, OllamaForm::Text)? {
        Some(loaded) => Ok(loaded),
        None => Ok(completion::answer(app, body, read_generate).await?),
    }
}

/// A request without anything to answer asks to load the model, which it is.
fn loads(
    app: &App,
    body: &RawBody,
    nothing: fn(&Map<String, Value>) -> bool,
    form: OllamaForm,
) -> Result<Option<Response>, ApiError> {
    let model = app.ready()?;
    let body = body.object()?;
    let fields = match form {
        OllamaForm::Chat => requests::OLLAMA_CHAT,
        OllamaForm::Text => requests::OLLAMA_GENERATE,
    };
    schema::check(&body, fields)?;
    Ok(nothing(&body).then(|| reply::ok(&OllamaWriter::loaded(&model, form))))
}

fn read_chat(body: &Map<String, Value>, model: &Arc<Model>) -> Result<Asked, ApiError> {
    let mut chat = common(body)?;
    let mut messages = Fields(body).array("messages")?.cloned().unwrap_or_default();
    for (i, message) in messages.iter_mut().enumerate() {
        no_images(&format!("messages[{i}].images"), message.get("images"))?;
        if let Value::Object(message) = message {
            message.remove("images");
            message.remove("thinking");
        }
    }
    chat.insert("messages".into(), Value::Array(messages));
    if let Some(tools) = body.get("tools") {
        chat.insert("tools".into(), tools.clone());
    }
    asked_chat(&chat, model, OllamaForm::Chat)
}

fn read_generate(body: &Map<String, Value>, model: &Arc<Model>) -> Result<Asked, ApiError> {
    let fields = Fields(body);
    let text = |name: &'static str| match fields.get(&[name]) {
        None => Ok(None),
        Some((_, Value::String(text))) => Ok(Some(text.clone())),
        Some((_, other)) => Err(ApiError::field(name, expected("a string", other))),
    };
    no_images("images", body.get("images"))?;
    for name in ["suffix", "template"] {
        if text(name)?.is_some_and(|text| !text.is_empty()) {
            return Err(ApiError::unsupported_field(
                name,
                "the model's own template is used",
            ));
        }
    }
    let prompt = text("prompt")?.unwrap_or_default();
    let mut request = common(body)?;
    if fields.bool("raw")? == Some(true) {
        let params = Params::read(&request, Dialect::Native, &model.config, model)?;
        let prompts = prompt::read(Some(&json!(prompt)), model)?;
        return Ok(Asked {
            params: Arc::new(params),
            prompts,
            writer: Box::new(OllamaWriter::new(model, OllamaForm::Text, Look::default())),
        });
    }
    let mut messages = Vec::new();
    if let Some(system) = text("system")?.filter(|system| !system.is_empty()) {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": prompt }));
    request.insert("messages".into(), Value::Array(messages));
    asked_chat(&request, model, OllamaForm::Text)
}

fn asked_chat(
    chat: &Map<String, Value>,
    model: &Arc<Model>,
    form: OllamaForm,
) -> Result<Asked, ApiError> {
    let AskedChat {
        params,
        prompts,
        look,
        ..
    } = completion::read_chat(chat, model)?;
    Ok(Asked {
        params,
        prompts,
        writer: Box::new(OllamaWriter::new(model, form, look)),
    })
}

/// Options, format and stream; answers are streamed unless asked otherwise.
fn common(body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let fields = Fields(body);
    let mut out = Map::new();
    for (name, value) in fields.object("options")?.into_iter().flatten() {
        let renamed = OPTIONS.iter().find(|(theirs, _)| theirs == name);
        match (renamed, name.as_str()) {
            (Some((_, "n_predict")), _) if value.as_i64().is_some_and(|n| n < 0) => {
                out.insert("n_predict".into(), json!(-1));
            }
            (Some((_, ours)), _) => {
                out.insert((*ours).into(), value.clone());
            }
            (
                None,
                "n" | "n_probs" | "grammar" | "stream" | "messages" | "prompt" | "tools"
                | "response_format",
            ) => {}
            (None, name) => {
                out.insert(name.into(), value.clone());
            }
        }
    }
    match fields.get(&["format"]) {
        None => {}
        Some((_, Value::String(text))) if text.is_empty() => {}
        Some((_, Value::String(text))) if text == "json" => {
            out.insert("response_format".into(), json!({ "type": "json_object" }));
        }
        Some((_, schema @ Value::Object(_))) => {
            let format = json!({ "type": "json_schema", "json_schema": { "schema": schema } });
            out.insert("response_format".into(), format);
        }
        Some((name, other)) => {
            return Err(ApiError::field(name, expected("`json` or a schema", other)));
        }
    }
    if let Some((_, think)) = fields.get(&["think"]) {
        let splits = !matches!(think, Value::Bool(false));
        out.insert(
            "reasoning_format".into(),
            json!(if splits { "deepseek" } else { "none" }),
        );
    }
    out.insert(
        "stream".into(),
        json!(fields.bool("stream")?.unwrap_or(true)),
    );
    Ok(out)
}

fn no_images(at: &str, images: Option<&Value>) -> Result<(), ApiError> {
    match images {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(images)) if images.is_empty() => Ok(()),
        Some(_) => Err(ApiError::field(
            at,
            "image input is not supported: the model reads text",
        )),
    }
}

/// An error in Ollama's form.
pub(crate) struct Error(ApiError);

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Error(error)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        json_response(self.0.status, &json!({ "error": self.0.message }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sampling_fields() {
        let body = json!({
            "options": { "num_predict": -2, "temperature": 0.1, "num_ctx": 512, "stop": ["x"] },
            "format": { "type": "object" }, "think": true,
        });
        let out = Value::Object(common(body.as_object().unwrap()).unwrap());
        assert_eq!(
            (&out["n_predict"], &out["temperature"]),
            (&json!(-1), &json!(0.1))
        );
        assert_eq!(
            out["response_format"]["json_schema"]["schema"],
            json!({ "type": "object" })
        );
        assert_eq!(
            (&out["stream"], &out["reasoning_format"]),
            (&json!(true), &json!("deepseek"))
        );
        assert!(common(json!({ "format": 3 }).as_object().unwrap()).is_err());
    }
}
