//! Probabilities of tokens: llama-server's entries, which OpenAI's chat has too, and OpenAI's older lists for text completions.

use bitnet_model::protocol::TokenProbs;
use serde_json::{Map, Value, json};

use crate::generate::Outcome;
use crate::model::Model;
use crate::reply::{finite, object};

/// A token with its probabilities; the first token of a prompt has none.
#[derive(Debug, Clone)]
pub(super) struct Likely {
    pub(super) token: u32,
    pub(super) probs: Option<TokenProbs>,
    /// It belongs to the prompt.
    pub(super) is_prompt: bool,
}

impl Likely {
    pub(super) fn answered(token: u32, probs: TokenProbs) -> Self {
        Likely {
            token,
            probs: Some(probs),
            is_prompt: false,
        }
    }

    /// All tokens of a prompt, if their probabilities were asked for.
    pub(super) fn prompt(tokens: &[u32], probs: &[TokenProbs]) -> Vec<Self> {
        if probs.is_empty() {
            return Vec::new();
        }
        let probs = std::iter::once(None).chain(probs.iter().cloned().map(Some));
        let all = tokens.iter().zip(probs);
        let all = all.map(|(&token, probs)| Likely {
            token,
            probs,
            is_prompt: true,
        });
        all.collect()
    }

    /// Of a whole answer, behind its prompt's.
    pub(super) fn all_of(outcome: &Outcome) -> Vec<Self> {
        let mut all = Likely::prompt(&outcome.prompt, &outcome.prompt_probs);
        let answered = outcome.probs.iter();
        all.extend(answered.map(|(token, probs)| Likely::answered(*token, probs.clone())));
        all
    }
}

/// One entry of `completion_probabilities` or `logprobs.content`. `after`: probabilities behind the samplers.
pub(super) fn entry(model: &Model, token: u32, probs: &TokenProbs, after: bool) -> Value {
    let one = |token: u32, logprob: f32| {
        let bytes = model.tokenizer().piece(token);
        let mut one = object(json!({
            "id": token,
            "token": String::from_utf8_lossy(bytes),
            "bytes": bytes,
        }));
        match after {
            true => one.insert("prob".into(), json!(finite(f64::from(logprob).exp()))),
            false => one.insert("logprob".into(), json!(finite(f64::from(logprob)))),
        };
        one
    };
    let shown = |(_, logprob): &&(u32, f32)| !after || f64::from(*logprob).exp() > 0.0;
    let top = probs.top.iter().filter(shown);
    let top: Vec<Map<String, Value>> = top.map(|(token, p)| one(*token, *p)).collect();
    let mut whole = one(token, probs.logprob);
    let name = if after { "top_probs" } else { "top_logprobs" };
    whole.insert(name.into(), json!(top));
    Value::Object(whole)
}

/// `content`, as llama-server has it: the answer's tokens.
pub(super) fn content(model: &Model, all: &[Likely], after: bool) -> Value {
    let answered = all.iter().filter(|it| !it.is_prompt);
    answered
        .filter_map(|it| Some(entry(model, it.token, it.probs.as_ref()?, after)))
        .collect()
}

/// OpenAI's lists for text completions: prompt, if echoed, and answer. `offset` is where the first token's text stands, in
/// characters, and moves on.
pub(super) fn lists(model: &Model, all: &[Likely], offset: &mut usize) -> Map<String, Value> {
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    let (mut tops, mut offsets) = (Vec::new(), Vec::new());
    let logprob = |value: f32| json!(finite(f64::from(value)));
    for Likely {
        token,
        probs,
        is_prompt,
    } in all
    {
        tokens.push(name(model, *token));
        offsets.push(*offset);
        // The beginning of a sequence is no text.
        let is_text = !(*is_prompt && model.tokenizer().bos() == Some(*token));
        if is_text {
            *offset += text(model, *token).chars().count();
        }
        let Some(probs) = probs else {
            logprobs.push(Value::Null);
            tops.push(Value::Null);
            continue;
        };
        logprobs.push(logprob(probs.logprob));
        let mut top = Map::new();
        for (other, value) in probs.top.iter().chain([&(*token, probs.logprob)]) {
            top.entry(name(model, *other))
                .or_insert_with(|| logprob(*value));
        }
        tops.push(Value::Object(top));
    }
    object(json!({
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }))
}

fn text(model: &Model, token: u32) -> String {
    String::from_utf8_lossy(model.tokenizer().piece(token)).into_owned()
}

/// A token's text, or its bytes in OpenAI's notation where it is a part of a character.
fn name(model: &Model, token: u32) -> String {
    let bytes = model.tokenizer().piece(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", escaped.collect::<String>())
        }
    }
}
