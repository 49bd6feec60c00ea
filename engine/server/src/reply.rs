//! JSON answers of the generation routes: llama-server's native objects, OpenAI's text and chat objects, and their
//! stream frames. Pure: steps in, values out.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bitnet_model::protocol::{SamplingParams, TokenProbs};
use rand::Rng;
use rand::distr::Alphanumeric;
use serde_json::{Map, Value, json};
use std::sync::Arc;

use crate::clock;
use crate::config::ServerConfig;
use crate::generate::{Delta, Outcome, Progress, Step, StopType, Timings};
use crate::metrics::ratio;
use crate::model::Model;
use crate::request::{Dialect, Params, sampler_name, sampling_numbers};

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// Compact JSON with llama-server's content type.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// 200 with this body.
pub(crate) fn ok(body: &Value) -> Response {
    json_response(StatusCode::OK, body)
}

/// Letters and digits.
pub(crate) fn random_id(length: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(length)
        .map(char::from)
        .collect()
}

/// Writes the answers of one request in its dialect. One per request: ids and times stay the same over a stream.
pub(crate) struct Writer {
    dialect: Dialect,
    params: Arc<Params>,
    model: Arc<Model>,
    id: String,
    created: u64,
    fingerprint: String,
    /// Several answers were asked for.
    many: bool,
    /// Per answer.
    choices: Vec<WriterChoice>,
}

#[derive(Default)]
struct WriterChoice {
    /// Its role, or the echoed prompt, was sent.
    begun: bool,
    /// Probabilities of tokens whose text is not out yet.
    logprobs: Vec<Value>,
    /// The text of the prompt, for `echo`.
    echo: String,
    ended: Option<Ended>,
}

#[derive(Clone, Copy)]
struct Ended {
    timings: Timings,
    n_prompt: usize,
}

impl Writer {
    pub(crate) fn new(
        dialect: Dialect,
        params: Arc<Params>,
        model: Arc<Model>,
        config: &ServerConfig,
        prompts: &[Vec<u32>],
    ) -> Self {
        let echo_of = |prompt: &Vec<u32>| match params.echo && dialect == Dialect::Text {
            true => model.text_without_bos(prompt),
            false => String::new(),
        };
        let choices = prompts
            .iter()
            .flat_map(|prompt| {
                let echo = echo_of(prompt);
                (0..params.n).map(move |_| WriterChoice {
                    echo: echo.clone(),
                    ..WriterChoice::default()
                })
            })
            .collect::<Vec<_>>();
        let prefix = if dialect == Dialect::Text {
            "cmpl-"
        } else {
            "chatcmpl-"
        };
        Writer {
            dialect,
            id: format!("{prefix}{}", random_id(32)),
            created: clock::unix_s(),
            fingerprint: config.build.clone(),
            many: choices.len() > 1,
            choices,
            params,
            model,
        }
    }

    /// The frames of one step of a stream.
    pub(crate) fn frames(&mut self, step: Step) -> Vec<Value> {
        match self.dialect {
            Dialect::Native => self.native_frames(step),
            Dialect::Text => self.text_frames(step),
            Dialect::Chat => self.chat_frames(step),
        }
    }

    /// Frames after the last answer has ended.
    pub(crate) fn last_frames(&self) -> Vec<Value> {
        if self.dialect == Dialect::Native || !self.params.include_usage {
            return Vec::new();
        }
        let mut chunk = self.chunk(json!([]));
        chunk.insert("usage".into(), self.usage());
        chunk.insert("timings".into(), self.first_timings());
        vec![Value::Object(chunk)]
    }

    /// OpenAI's streams end with this line, native ones do not.
    pub(crate) fn has_done_line(&self) -> bool {
        self.dialect != Dialect::Native
    }

    /// The reply when nothing is streamed; `outcomes` by index.
    pub(crate) fn reply(&mut self, mut outcomes: Vec<(usize, Outcome)>) -> Value {
        outcomes.sort_by_key(|(index, _)| *index);
        for (index, outcome) in &outcomes {
            self.choices[*index].ended = Some(Ended::of(outcome));
        }
        match self.dialect {
            Dialect::Native if self.many => outcomes
                .iter()
                .map(|(index, one)| self.native_final(*index, one, &one.text))
                .collect(),
            Dialect::Native => outcomes.first().map_or(Value::Null, |(index, one)| {
                self.native_final(*index, one, &one.text)
            }),
            Dialect::Text => self.text_reply(&outcomes),
            Dialect::Chat => self.chat_reply(&outcomes),
        }
    }

    // llama-server's own shape ------------------------------------------------------------------------------------

    fn native_frames(&mut self, step: Step) -> Vec<Value> {
        match step {
            Step::Progress { index, progress } if self.params.return_progress => {
                let mut frame =
                    self.native_partial(index, "", &[], Some(progress.slot), 0, progress.total);
                frame.insert("prompt_progress".into(), progress_json(&progress));
                vec![Value::Object(frame)]
            }
            Step::Progress { .. } => Vec::new(),
            Step::Token { index, delta } => {
                let n = delta.timings.predicted_n;
                let mut frame = self.native_partial(
                    index,
                    &delta.text,
                    &[delta.token],
                    delta.slot,
                    n,
                    delta.n_prompt,
                );
                if self.params.timings_per_token {
                    frame.insert("timings".into(), timings_json(&delta.timings));
                }
                if let Some(probs) = &delta.probs {
                    frame.insert(
                        "completion_probabilities".into(),
                        json!([self.probs_json(delta.token, probs)]),
                    );
                }
                vec![Value::Object(frame)]
            }
            Step::End { index, outcome } => {
                let mut frames = Vec::new();
                if !outcome.tail.is_empty() {
                    let n = outcome.timings.predicted_n;
                    let frame = self.native_partial(
                        index,
                        &outcome.tail,
                        &[],
                        outcome.slot,
                        n,
                        outcome.prompt.len(),
                    );
                    frames.push(Value::Object(frame));
                }
                frames.push(self.native_final(index, &outcome, ""));
                frames
            }
        }
    }

    fn native_partial(
        &self,
        index: usize,
        content: &str,
        tokens: &[u32],
        slot: Option<usize>,
        predicted: usize,
        evaluated: usize,
    ) -> Map<String, Value> {
        object(json!({
            "index": index,
            "content": content,
            "tokens": tokens,
            "stop": false,
            "id_slot": slot_number(slot),
            "tokens_predicted": predicted,
            "tokens_evaluated": evaluated,
        }))
    }

    fn native_final(&self, index: usize, outcome: &Outcome, content: &str) -> Value {
        let stop = &outcome.stop;
        let (stop_type, word) = match stop {
            StopType::Eos => ("eos", ""),
            StopType::Word(word) => ("word", word.as_str()),
            StopType::Limit => ("limit", ""),
        };
        let predicted = outcome.timings.predicted_n;
        let mut reply = object(json!({
            "index": index,
            "content": content,
            "tokens": if self.params.stream { &[] } else { outcome.tokens.as_slice() },
            "id_slot": slot_number(outcome.slot),
            "stop": true,
            "model": self.model.id,
            "tokens_predicted": predicted,
            "tokens_evaluated": outcome.prompt.len(),
            "generation_settings": settings_json(&self.params, outcome.seed, &self.model),
            "prompt": self.model.text_with_specials(&outcome.prompt),
            "has_new_line": outcome.text.contains('\n'),
            "truncated": outcome.truncated,
            "stop_type": stop_type,
            "stopped_eos": *stop == StopType::Eos,
            "stopped_word": stop_type == "word",
            "stopped_limit": *stop == StopType::Limit,
            "stopping_word": word,
            "tokens_cached": outcome.prompt.len() + predicted.saturating_sub(1),
            "timings": timings_json(&outcome.timings),
        }));
        if self.params.sampling.n_probs > 0 && !self.params.stream {
            reply.insert(
                "completion_probabilities".into(),
                self.outcome_probs(outcome),
            );
        }
        only_fields(reply, &self.params.response_fields)
    }

    // OpenAI's text shape -----------------------------------------------------------------------------------------

    fn text_reply(&self, outcomes: &[(usize, Outcome)]) -> Value {
        let choice = |(index, one): &(usize, Outcome)| {
            json!({
                "text": format!("{}{}", self.choices[*index].echo, one.text),
                "index": index,
                "logprobs": self.outcome_logprobs(one),
                "finish_reason": finish_reason(&one.stop),
            })
        };
        let mut reply = self.chunk(outcomes.iter().map(choice).collect());
        reply.insert("usage".into(), self.usage());
        reply.insert("timings".into(), self.first_timings());
        if let Some((index, first)) = outcomes.first() {
            // Clients of older servers read the native keys on this route.
            let predicted: usize = outcomes
                .iter()
                .map(|(_, one)| one.timings.predicted_n)
                .sum();
            reply.insert(
                "content".into(),
                json!(format!("{}{}", self.choices[*index].echo, first.text)),
            );
            reply.insert("stop".into(), json!(true));
            reply.insert("tokens_predicted".into(), json!(predicted));
            reply.insert("tokens_evaluated".into(), json!(first.prompt.len()));
        }
        self.add_verbose(&mut reply, outcomes);
        Value::Object(reply)
    }

    fn text_frames(&mut self, step: Step) -> Vec<Value> {
        match step {
            Step::Progress { index, progress } if self.params.return_progress => {
                let mut chunk = self.text_chunk(index, "", Value::Null, Value::Null);
                chunk.insert("prompt_progress".into(), progress_json(&progress));
                vec![Value::Object(chunk)]
            }
            Step::Progress { .. } => Vec::new(),
            Step::Token { index, delta } => {
                self.keep_logprobs(index, &delta);
                let echo = self.take_echo(index);
                if delta.text.is_empty() && echo.is_empty() {
                    return Vec::new();
                }
                let logprobs = self.take_logprobs(index);
                let mut chunk =
                    self.text_chunk(index, &(echo + &delta.text), logprobs, Value::Null);
                if self.params.timings_per_token {
                    chunk.insert("timings".into(), timings_json(&delta.timings));
                }
                vec![Value::Object(chunk)]
            }
            Step::End { index, outcome } => {
                self.choices[index].ended = Some(Ended::of(&outcome));
                let text = self.take_echo(index) + &outcome.tail;
                let logprobs = self.take_logprobs(index);
                let mut chunk =
                    self.text_chunk(index, &text, logprobs, json!(finish_reason(&outcome.stop)));
                chunk.insert("stop".into(), json!(true));
                chunk.insert(
                    "tokens_predicted".into(),
                    json!(outcome.timings.predicted_n),
                );
                chunk.insert("usage".into(), self.usage());
                chunk.insert("timings".into(), timings_json(&outcome.timings));
                vec![Value::Object(chunk)]
            }
        }
    }

    fn text_chunk(
        &self,
        index: usize,
        text: &str,
        logprobs: Value,
        finish: Value,
    ) -> Map<String, Value> {
        let choice =
            json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": finish });
        let mut chunk = self.chunk(json!([choice]));
        chunk.insert("content".into(), json!(text));
        chunk.insert("stop".into(), json!(false));
        chunk
    }

    fn take_echo(&mut self, index: usize) -> String {
        std::mem::take(&mut self.choices[index].echo)
    }

    // OpenAI's chat shape -----------------------------------------------------------------------------------------

    fn chat_reply(&self, outcomes: &[(usize, Outcome)]) -> Value {
        let choice = |(index, one): &(usize, Outcome)| {
            let mut choice = object(json!({
                "finish_reason": finish_reason(&one.stop),
                "index": index,
                "message": { "role": "assistant", "content": one.text },
            }));
            if self.params.sampling.n_probs > 0 {
                choice.insert("logprobs".into(), self.outcome_logprobs(one));
            }
            Value::Object(choice)
        };
        let mut reply = self.chunk(outcomes.iter().map(choice).collect());
        reply.insert("object".into(), json!("chat.completion"));
        reply.insert("usage".into(), self.usage());
        reply.insert("timings".into(), self.first_timings());
        self.add_verbose(&mut reply, outcomes);
        Value::Object(reply)
    }

    fn chat_frames(&mut self, step: Step) -> Vec<Value> {
        let mut frames = Vec::new();
        let index = match &step {
            Step::Progress { .. } if !self.params.return_progress => return Vec::new(),
            Step::Progress { index, .. } | Step::Token { index, .. } | Step::End { index, .. } => {
                *index
            }
        };
        if !std::mem::replace(&mut self.choices[index].begun, true) {
            frames.push(self.chat_chunk(
                index,
                json!({ "role": "assistant", "content": null }),
                None,
            ));
        }
        match step {
            Step::Progress { progress, .. } => {
                let mut chunk = self.chat_chunk(index, json!({}), None);
                chunk.insert("prompt_progress".into(), progress_json(&progress));
                frames.push(chunk);
            }
            Step::Token { delta, .. } => {
                self.keep_logprobs(index, &delta);
                if !delta.text.is_empty() {
                    let mut chunk = self.chat_text(index, &delta.text);
                    if self.params.timings_per_token {
                        chunk.insert("timings".into(), timings_json(&delta.timings));
                    }
                    frames.push(chunk);
                }
            }
            Step::End { outcome, .. } => {
                self.choices[index].ended = Some(Ended::of(&outcome));
                if !outcome.tail.is_empty() || !self.choices[index].logprobs.is_empty() {
                    frames.push(self.chat_text(index, &outcome.tail));
                }
                let mut chunk =
                    self.chat_chunk(index, json!({}), Some(finish_reason(&outcome.stop)));
                chunk.insert("timings".into(), timings_json(&outcome.timings));
                self.add_verbose(&mut chunk, &[(index, *outcome)]);
                frames.push(chunk);
            }
        }
        frames.into_iter().map(Value::Object).collect()
    }

    fn chat_text(&mut self, index: usize, text: &str) -> Map<String, Value> {
        let logprobs = self.take_logprobs(index);
        let mut chunk = self.chat_chunk(index, json!({ "content": text }), None);
        if !logprobs.is_null() {
            chunk["choices"][0]["logprobs"] = logprobs;
        }
        chunk
    }

    fn chat_chunk(&self, index: usize, delta: Value, finish: Option<&str>) -> Map<String, Value> {
        self.chunk(json!([{ "finish_reason": finish, "index": index, "delta": delta }]))
    }

    // Shared --------------------------------------------------------------------------------------------------------

    fn chunk(&self, choices: Value) -> Map<String, Value> {
        let name = match self.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Text | Dialect::Native => "text_completion",
        };
        object(json!({
            "choices": choices,
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": self.fingerprint,
            "object": name,
            "id": self.id,
        }))
    }

    /// Over all answers that have ended; a prompt with several answers counts once.
    fn usage(&self) -> Value {
        let ended = |choice: &WriterChoice| choice.ended;
        let completion: usize = self
            .choices
            .iter()
            .filter_map(ended)
            .map(|one| one.timings.predicted_n)
            .sum();
        let firsts = || self.choices.iter().step_by(self.params.n).filter_map(ended);
        let prompt: usize = firsts().map(|one| one.n_prompt).sum();
        let cached: usize = firsts().map(|one| one.timings.cached).sum();
        json!({
            "completion_tokens": completion,
            "prompt_tokens": prompt,
            "total_tokens": completion + prompt,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }

    fn first_timings(&self) -> Value {
        let first = self.choices.iter().find_map(|choice| choice.ended);
        timings_json(&first.map_or_else(Timings::default, |one| one.timings))
    }

    fn add_verbose(&self, reply: &mut Map<String, Value>, outcomes: &[(usize, Outcome)]) {
        if let Some((index, first)) = outcomes.first()
            && self.params.verbose
        {
            reply.insert(
                "__verbose".into(),
                self.native_final(*index, first, &first.text),
            );
        }
    }

    fn keep_logprobs(&mut self, index: usize, delta: &Delta) {
        if let Some(probs) = &delta.probs {
            let entry = self.probs_json(delta.token, probs);
            self.choices[index].logprobs.push(entry);
        }
    }

    fn take_logprobs(&mut self, index: usize) -> Value {
        match std::mem::take(&mut self.choices[index].logprobs) {
            none if none.is_empty() => Value::Null,
            content => json!({ "content": content }),
        }
    }

    fn outcome_logprobs(&self, outcome: &Outcome) -> Value {
        match self.params.sampling.n_probs {
            0 => Value::Null,
            _ => json!({ "content": self.outcome_probs(outcome) }),
        }
    }

    fn outcome_probs(&self, outcome: &Outcome) -> Value {
        outcome
            .probs
            .iter()
            .map(|(token, probs)| self.probs_json(*token, probs))
            .collect()
    }

    fn probs_json(&self, token: u32, probs: &TokenProbs) -> Value {
        let after = self.params.sampling.post_sampling_probs;
        let entry = |token: u32, logprob: f32| {
            let bytes = self.model.tokenizer().piece(token);
            let mut entry = object(json!({
                "id": token,
                "token": String::from_utf8_lossy(bytes),
                "bytes": bytes,
            }));
            match after {
                true => entry.insert("prob".into(), json!(finite(f64::from(logprob).exp()))),
                false => entry.insert("logprob".into(), json!(finite(f64::from(logprob)))),
            };
            entry
        };
        let shown = |(_, logprob): &&(u32, f32)| !after || f64::from(*logprob).exp() > 0.0;
        let top: Vec<Map<String, Value>> = probs
            .top
            .iter()
            .filter(shown)
            .map(|(token, logprob)| entry(*token, *logprob))
            .collect();
        let mut one = entry(token, probs.logprob);
        one.insert(
            if after { "top_probs" } else { "top_logprobs" }.into(),
            json!(top),
        );
        Value::Object(one)
    }
}

impl Ended {
    fn of(outcome: &Outcome) -> Self {
        Ended {
            timings: outcome.timings,
            n_prompt: outcome.prompt.len(),
        }
    }
}

fn finish_reason(stop: &StopType) -> &'static str {
    match stop {
        StopType::Eos | StopType::Word(_) => "stop",
        StopType::Limit => "length",
    }
}

fn slot_number(slot: Option<usize>) -> i64 {
    slot.map_or(-1, |slot| slot as i64)
}

fn progress_json(progress: &Progress) -> Value {
    json!({
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": progress.ms.max(0.0).round() as u64,
    })
}

/// Generation rates count the steps between tokens: the first token comes with the prompt.
pub(crate) fn timings_json(timings: &Timings) -> Value {
    let prompt_n = timings.prompt_n as f64;
    let steps = timings.predicted_n.saturating_sub(1) as f64;
    let (prompt_ms, predicted_ms) = (finite(timings.prompt_ms), finite(timings.predicted_ms));
    json!({
        "cache_n": timings.cached,
        "prompt_n": timings.prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": ratio(prompt_ms, prompt_n),
        "prompt_per_second": ratio(1e3 * prompt_n, prompt_ms),
        "predicted_n": timings.predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": ratio(predicted_ms, steps),
        "predicted_per_second": ratio(1e3 * steps, predicted_ms),
    })
}

/// What a sampling is made of, as `/slots`, `/props` and `generation_settings` show it.
pub(crate) fn sampling_json(sampling: &SamplingParams) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("seed".into(), json!(sampling.seed));
    out.extend(sampling_numbers(sampling));
    let samplers: Vec<&str> = sampling
        .samplers
        .iter()
        .map(|kind| sampler_name(*kind))
        .collect();
    let biases: Vec<Value> = sampling
        .logit_bias
        .iter()
        .map(|(token, bias)| json!({ "bias": finite(f64::from(*bias)), "token": token }))
        .collect();
    out.extend(object(json!({
        "n_probs": sampling.n_probs,
        "post_sampling_probs": sampling.post_sampling_probs,
        "ignore_eos": sampling.ignore_eos,
        "logit_bias": biases,
        "samplers": samplers,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ["\n", ":", "\"", "*"],
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "tfs_z": 1.0,
        "penalize_nl": false,
    })));
    out
}

/// `generation_settings`: the request's parameters as they were used.
pub(crate) fn settings_json(params: &Params, seed: u32, model: &Model) -> Value {
    let mut out = sampling_json(&params.sampling);
    let max_tokens = params.max_tokens.map_or(-1, i64::from);
    out.extend(object(json!({
        "n_predict": max_tokens,
        "max_tokens": max_tokens,
        "seed": seed,
        "seed_cur": seed,
        "stop": params.stop,
        "n_keep": params.n_keep,
        "n_discard": 0,
        "stream": params.stream,
        "grammar": "",
        "grammar_lazy": false,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": false,
        "generation_prompt": "",
        "speculative.types": "none",
        "timings_per_token": params.timings_per_token,
        "backend_sampling": false,
        "lora": [],
        "cache_prompt": params.cache_prompt,
        "n_ctx": model.card.slot_context,
        "model": model.id,
    })));
    Value::Object(out)
}

/// Keeps `fields`, lifting `a/b` to the root; unknown names are dropped. An empty list keeps everything.
fn only_fields(reply: Map<String, Value>, fields: &[String]) -> Value {
    let reply = Value::Object(reply);
    if fields.is_empty() {
        return reply;
    }
    let find = |field: &String| {
        let found = field
            .split('/')
            .try_fold(&reply, |value, key| value.get(key))?;
        let name = field.rsplit('/').next().unwrap_or(field);
        Some((name.to_owned(), found.clone()))
    };
    Value::Object(fields.iter().filter_map(find).collect())
}

/// The nearest number JSON can write.
fn finite(value: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(f64::from(f32::MIN), f64::MAX)
    }
}

/// The map of a `json!({..})`.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_steps_between_tokens() {
        let timings = Timings {
            cached: 3,
            prompt_n: 4,
            prompt_ms: 20.0,
            predicted_n: 5,
            predicted_ms: 80.0,
        };
        let json = timings_json(&timings);
        assert_eq!(json["predicted_per_second"], 50.0);
        assert_eq!(json["predicted_per_token_ms"], 20.0);
        assert_eq!(json["prompt_per_second"], 200.0);
        let one = timings_json(&Timings {
            predicted_n: 1,
            ..Timings::default()
        });
        assert_eq!(
            (&one["predicted_per_second"], &one["predicted_per_token_ms"]),
            (&json!(0.0), &json!(0.0))
        );
    }

    #[test]
    fn fields_are_lifted() {
        let reply = object(json!({ "a": { "b": 1 }, "c": 2 }));
        let fields: Vec<String> = ["a/b", "c", "d", "a/x"].map(String::from).to_vec();
        assert_eq!(
            only_fields(reply.clone(), &fields).to_string(),
            r#"{"b":1,"c":2}"#
        );
        assert_eq!(
            only_fields(reply, &[]).to_string(),
            r#"{"a":{"b":1},"c":2}"#
        );
    }

    #[test]
    fn numbers_stay_finite() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(json!(finite(value)).is_number());
        }
    }
}
