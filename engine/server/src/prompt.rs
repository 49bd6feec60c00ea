//! Prompts: text, token ids, both mixed, or several of them, to token ids.

use serde_json::Value;

use crate::error::ApiError;
use crate::model::Model;
use crate::request::expected;

/// What to do with special tokens in text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Special {
    /// Add those a text begins and ends with.
    pub(crate) add: bool,
    /// Read `<|name|>` in the text as the token.
    pub(crate) parse: bool,
}

const IN_PROMPTS: Special = Special {
    add: true,
    parse: true,
};

/// Reads `prompt`; one entry per prompt, none empty, all shorter than a slot's context.
pub(crate) fn read(value: Option<&Value>, model: &Model) -> Result<Vec<Vec<u32>>, ApiError> {
    let value = match value {
        None | Some(Value::Null) => return Err(ApiError::field("prompt", "is missing")),
        Some(value) => value,
    };
    several("prompt", value, model)?
        .into_iter()
        .map(|tokens| checked(tokens, model))
        .collect()
}

/// Reads texts to embed under the name of their field; none is empty, all fit into a slot's context. With `cut` longer ones lose
/// their ends, otherwise they are an error.
pub(crate) fn read_texts(
    name: &str,
    value: &Value,
    model: &Model,
    cut: bool,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let is_empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    if is_empty(value)
        || value
            .as_array()
            .is_some_and(|items| items.iter().any(is_empty))
    {
        return Err(ApiError::field(name, "must not be empty"));
    }
    let n_ctx = model.card.slot_context;
    let mut texts = several(name, value, model)?;
    if cut {
        texts.iter_mut().for_each(|tokens| tokens.truncate(n_ctx));
    }
    match texts.iter().map(Vec::len).find(|n| *n == 0 || *n > n_ctx) {
        None => Ok(texts),
        Some(0) => Err(ApiError::field(name, "must not be empty")),
        Some(n) => Err(ApiError::exceeds_context(n, n_ctx)),
    }
}

/// With a number in it, an array is one prompt; else each element is.
fn several(name: &str, value: &Value, model: &Model) -> Result<Vec<Vec<u32>>, ApiError> {
    match value {
        Value::Array(items) if items.is_empty() => Ok(vec![Vec::new()]),
        Value::Array(items) if !items.iter().any(Value::is_number) => items
            .iter()
            .map(|item| tokens_of(name, item, model))
            .collect(),
        one => Ok(vec![tokens_of(name, one, model)?]),
    }
}

/// One prompt: a string, an array of strings and ids, or an object with `prompt_string`.
fn tokens_of(name: &str, value: &Value, model: &Model) -> Result<Vec<u32>, ApiError> {
    match value {
        Value::String(text) => Ok(model.tokenizer().encode(text, true, true)),
        Value::Array(items) => mixed(name, items, model, IN_PROMPTS),
        Value::Object(map) => match (map.get("prompt_string"), map.get("multimodal_data")) {
            (Some(Value::String(text)), data)
                if data.is_none_or(|data| data.as_array().is_some_and(Vec::is_empty)) =>
            {
                Ok(model.tokenizer().encode(text, true, true))
            }
            (Some(Value::String(_)), _) => {
                Err(ApiError::unsupported_field(name, "the model reads text"))
            }
            _ => Err(ApiError::field(name, "an object needs `prompt_string`")),
        },
        other => Err(ApiError::field(
            name,
            expected("a string or an array", other),
        )),
    }
}

/// Strings and ids in a row; only a string at the front gets the tokens a text begins with.
pub(crate) fn mixed(
    name: &str,
    items: &[Value],
    model: &Model,
    special: Special,
) -> Result<Vec<u32>, ApiError> {
    let mut tokens = Vec::new();
    for (i, item) in items.iter().enumerate() {
        match item {
            Value::String(text) => {
                tokens.extend(
                    model
                        .tokenizer()
                        .encode(text, special.add && i == 0, special.parse),
                );
            }
            other => tokens.push(token_id(name, other, model)?),
        }
    }
    Ok(tokens)
}

/// An id inside the vocabulary.
pub(crate) fn token_id(name: &str, value: &Value, model: &Model) -> Result<u32, ApiError> {
    let n_vocab = model.tokenizer().n_vocab();
    match value.as_u64() {
        Some(id) if id < n_vocab as u64 => Ok(id as u32),
        Some(id) => Err(ApiError::field(
            name,
            format!("token {id} is outside the vocabulary of {n_vocab} tokens"),
        )),
        None => Err(ApiError::field(name, expected("a token id", value))),
    }
}

/// Gives an empty prompt its beginning-of-sequence token, and checks the length.
pub(crate) fn checked(mut tokens: Vec<u32>, model: &Model) -> Result<Vec<u32>, ApiError> {
    if tokens.is_empty() {
        tokens.extend(model.tokenizer().bos());
    }
    let n_ctx = model.card.slot_context;
    match tokens.len() {
        0 => Err(ApiError::field("prompt", "must not be empty")),
        n if n >= n_ctx => Err(ApiError::exceeds_context(n, n_ctx)),
        _ => Ok(tokens),
    }
}
