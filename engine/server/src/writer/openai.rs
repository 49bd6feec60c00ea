//! OpenAI's shapes: text completions, which carry some native keys too, and chat completions.

use serde_json::{Map, Value, json};

use super::logprobs::Likely;
use super::{Ended, Writer};
use crate::generate::{Outcome, Step, StopType};
use crate::parts::{Look, Part, PartReader};
use crate::reply::object;
use crate::values::{progress_json, timings_json};

/// Text completions.
impl Writer {
    pub(super) fn text_reply(&self, outcomes: &[(usize, Outcome)]) -> Value {
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

    pub(super) fn text_frames(&mut self, step: Step) -> Vec<Value> {
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
                let prompt = Likely::prompt(&outcome.prompt, &outcome.prompt_probs);
                self.choices[index].logprobs.extend(prompt);
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
}

/// Chat completions.
impl Writer {
    pub(super) fn chat_reply(&self, outcomes: &[(usize, Outcome)]) -> Value {
        let choice = |(index, one): &(usize, Outcome)| {
            let (message, called) = message(self.look, &one.text);
            let mut choice = object(json!({
                "finish_reason": if called { "tool_calls" } else { finish_reason(&one.stop) },
                "index": index,
                "message": message,
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

    pub(super) fn chat_frames(&mut self, step: Step) -> Vec<Value> {
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
                let parts = self.choices[index].reader.push(&delta.text);
                for part in parts {
                    let mut chunk = self.chat_part(index, part);
                    if self.params.timings_per_token {
                        chunk.insert("timings".into(), timings_json(&delta.timings));
                    }
                    frames.push(chunk);
                }
            }
            Step::End { outcome, .. } => {
                self.choices[index].ended = Some(Ended::of(&outcome));
                let reader = &mut self.choices[index].reader;
                let mut parts = reader.push(&outcome.tail);
                parts.extend(reader.finish());
                let called = reader.called();
                for part in parts {
                    frames.push(self.chat_part(index, part));
                }
                if !self.choices[index].logprobs.is_empty() {
                    frames.push(self.chat_delta(index, json!({ "content": "" })));
                }
                let reason = if called {
                    "tool_calls"
                } else {
                    finish_reason(&outcome.stop)
                };
                let mut chunk = self.chat_chunk(index, json!({}), Some(reason));
                chunk.insert("timings".into(), timings_json(&outcome.timings));
                self.add_verbose(&mut chunk, &[(index, *outcome)]);
                frames.push(chunk);
            }
        }
        frames.into_iter().map(Value::Object).collect()
    }

    fn chat_part(&mut self, index: usize, part: Part) -> Map<String, Value> {
        let delta = match part {
            Part::Text(text) => json!({ "content": text }),
            Part::Reasoning(text) => json!({ "reasoning_content": text }),
            Part::Call { id, name } => {
                self.choices[index].calls += 1;
                json!({ "tool_calls": [{
                    "index": self.choices[index].calls - 1,
                    "id": id,
                    "type": "function",
                    "function": { "name": name, "arguments": "" },
                }] })
            }
            Part::Arguments(piece) => json!({ "tool_calls": [{
                "index": self.choices[index].calls.saturating_sub(1),
                "function": { "arguments": piece },
            }] }),
        };
        self.chat_delta(index, delta)
    }

    fn chat_delta(&mut self, index: usize, delta: Value) -> Map<String, Value> {
        let logprobs = self.take_logprobs(index);
        let mut chunk = self.chat_chunk(index, delta, None);
        if !logprobs.is_null() {
            chunk["choices"][0]["logprobs"] = logprobs;
        }
        chunk
    }

    fn chat_chunk(&self, index: usize, delta: Value, finish: Option<&str>) -> Map<String, Value> {
        self.chunk(json!([{ "finish_reason": finish, "index": index, "delta": delta }]))
    }
}

/// An answer as OpenAI's message, and whether it calls tools.
fn message(look: Look, text: &str) -> (Value, bool) {
    let mut content = String::new();
    let mut reasoning = String::new();
    let mut calls: Vec<Value> = Vec::new();
    for part in PartReader::read(look, text) {
        match part {
            Part::Text(text) => content.push_str(&text),
            Part::Reasoning(text) => reasoning.push_str(&text),
            Part::Call { id, name } => calls.push(json!({
                "id": id,
                "type": "function",
                "function": { "name": name, "arguments": "" },
            })),
            Part::Arguments(text) => {
                if let Some(call) = calls.last_mut() {
                    call["function"]["arguments"] = json!(text);
                }
            }
        }
    }
    let mut message = object(json!({ "role": "assistant", "content": content }));
    if !reasoning.is_empty() {
        message.insert("reasoning_content".into(), json!(reasoning));
    }
    let called = !calls.is_empty();
    if called {
        if content.is_empty() {
            message.insert("content".into(), Value::Null);
        }
        message.insert("tool_calls".into(), Value::Array(calls));
    }
    (Value::Object(message), called)
}

fn finish_reason(stop: &StopType) -> &'static str {
    match stop {
        StopType::Eos | StopType::Word(_) => "stop",
        StopType::Limit => "length",
    }
}
