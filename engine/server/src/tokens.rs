//! `POST /tokenize` and `/detokenize`, in llama-server's words and in vLLM's, and `GET /tokenizer_info`: with them lm-eval
//! needs no tokenizer of its own.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::body::RawBody;
use crate::error::ApiError;
use crate::model::Model;
use crate::prompt;
use crate::reply;
use crate::request::{Fields, expected};
use crate::schema::{self, requests};

/// `{content, add_special, parse_special, with_pieces}` to `{tokens}`; vLLM's `{prompt, add_special_tokens}` as well.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let answer = app
        .prepare(move || tokens_of(&body.object()?, &model))
        .await?;
    Ok(reply::ok(&answer))
}

/// `{tokens}` to `{content}`, which is `prompt` to vLLM's clients.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let answer = app
        .prepare(move || text_of(&body.object()?, &model))
        .await?;
    Ok(reply::ok(&answer))
}

/// `GET /tokenizer_info`: what a tokenizer in the client would know.
pub(crate) async fn info(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(reply::ok(&json!({
        "bos_token": named(&model.bos_text),
        "eos_token": named(&model.eos_text),
        "pad_token": null,
        "chat_template": model.template.text(),
    })))
}

fn tokens_of(body: &Map<String, Value>, model: &Model) -> Result<Value, ApiError> {
    schema::check(body, requests::TOKENIZE)?;
    let fields = Fields(body);
    let asked = fields.get(&["content", "prompt"]);
    let said = fields.bool("add_special")?;
    let add_special = said
        .or(fields.bool("add_special_tokens")?)
        .unwrap_or(matches!(asked, Some(("prompt", _))));
    let parse_special = fields.bool("parse_special")?.unwrap_or(true);
    let with_pieces = fields.bool("with_pieces")?.unwrap_or(false);
    let tokens = match asked {
        None => Vec::new(),
        Some((_, Value::String(text))) => {
            model.tokenizer().encode(text, add_special, parse_special)
        }
        Some((name, Value::Array(items))) => {
            let special = prompt::Special {
                add: add_special,
                parse: parse_special,
            };
            prompt::mixed(name, items, model, special)?
        }
        Some((name, other)) => {
            return Err(ApiError::field(
                name,
                expected("a string or an array", other),
            ));
        }
    };
    Ok(match with_pieces {
        false => json!({ "tokens": tokens }),
        true => {
            json!({ "tokens": tokens.iter().map(|id| with_piece(*id, model)).collect::<Vec<_>>() })
        }
    })
}

/// The piece is a string where it is UTF-8, else its bytes.
fn with_piece(id: u32, model: &Model) -> Value {
    let bytes = model.tokenizer().piece(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "id": id, "piece": text }),
        Err(_) => json!({ "id": id, "piece": bytes }),
    }
}

fn text_of(body: &Map<String, Value>, model: &Model) -> Result<Value, ApiError> {
    schema::check(body, requests::DETOKENIZE)?;
    let tokens = Fields(body)
        .array("tokens")?
        .map(Vec::as_slice)
        .unwrap_or_default();
    let tokens: Vec<u32> = tokens
        .iter()
        .map(|id| prompt::token_id("tokens", id, model))
        .collect::<Result<_, _>>()?;
    let text = model.text_with_specials(&tokens);
    Ok(json!({ "content": text, "prompt": text }))
}
