//! The forms of Anthropic's Messages API: content in blocks, events with names.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{AnswerWriter, Frame, Framing};
use crate::error::ApiError;
use crate::generate::{Outcome, Step, StopType, Timings};
use crate::model::Model;
use crate::parts::{Look, Part, PartReader};
use crate::reply::{object, random_id};
use crate::values::timings_json;

/// Writes one message.
pub(crate) struct MessagesWriter {
    model: Arc<Model>,
    id: String,
    reader: PartReader,
    begun: bool,
    /// Blocks begun in the stream; the last may be open.
    blocks: usize,
    open: Option<Open>,
    frames: Vec<Frame>,
}

/// The kind of the open block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    Call,
}

impl MessagesWriter {
    pub(crate) fn new(model: &Arc<Model>, look: Look) -> Self {
        MessagesWriter {
            model: Arc::clone(model),
            id: format!("msg_{}", random_id(24)),
            reader: PartReader::new(look),
            begun: false,
            blocks: 0,
            open: None,
            frames: Vec::new(),
        }
    }

    fn message(&self, content: Value, stop: Option<&StopType>, usage: Value) -> Map<String, Value> {
        let (reason, word) = stop.map_or((Value::Null, Value::Null), |stop| self.reason(stop));
        object(json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.model.id,
            "stop_reason": reason,
            "stop_sequence": word,
            "usage": usage,
        }))
    }

    fn reason(&self, stop: &StopType) -> (Value, Value) {
        match stop {
            _ if self.reader.called() => (json!("tool_use"), Value::Null),
            StopType::Eos => (json!("end_turn"), Value::Null),
            StopType::Word(word) => (json!("stop_sequence"), json!(word)),
            StopType::Limit => (json!("max_tokens"), Value::Null),
        }
    }

    fn event(&mut self, name: &'static str, fields: Value) {
        let mut data = object(json!({ "type": name }));
        data.extend(object(fields));
        self.frames.push(Frame {
            event: Some(name),
            data: Value::Object(data),
        });
    }

    fn begin(&mut self, n_prompt: usize, cached: usize) {
        if !std::mem::replace(&mut self.begun, true) {
            let message = self.message(json!([]), None, usage(n_prompt, cached, 0));
            self.event("message_start", json!({ "message": message }));
        }
    }

    fn take(&mut self, parts: Vec<Part>) {
        for part in parts {
            let delta = match part {
                Part::Text(text) => {
                    self.open_as(Open::Text, json!({ "type": "text", "text": "" }));
                    json!({ "type": "text_delta", "text": text })
                }
                Part::Reasoning(text) => {
                    let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                    self.open_as(Open::Thinking, block);
                    json!({ "type": "thinking_delta", "thinking": text })
                }
                Part::Call { id, name } => {
                    self.close();
                    let block = json!({ "type": "tool_use", "id": tool_id(&id), "name": name, "input": {} });
                    self.open_as(Open::Call, block);
                    continue;
                }
                Part::Arguments(text) => {
                    json!({ "type": "input_json_delta", "partial_json": text })
                }
            };
            let index = self.blocks.saturating_sub(1);
            self.event(
                "content_block_delta",
                json!({ "index": index, "delta": delta }),
            );
        }
    }

    /// Begins a block, unless one of its kind is open.
    fn open_as(&mut self, kind: Open, block: Value) {
        if self.open == Some(kind) {
            return;
        }
        self.close();
        self.event(
            "content_block_start",
            json!({ "index": self.blocks, "content_block": block }),
        );
        self.blocks += 1;
        self.open = Some(kind);
    }

    fn close(&mut self) {
        let index = self.blocks.saturating_sub(1);
        let Some(kind) = self.open.take() else {
            return;
        };
        if kind == Open::Thinking {
            let delta = json!({ "type": "signature_delta", "signature": "" });
            self.event(
                "content_block_delta",
                json!({ "index": index, "delta": delta }),
            );
        }
        self.event("content_block_stop", json!({ "index": index }));
    }
}

impl AnswerWriter for MessagesWriter {
    fn frames(&mut self, step: Step) -> Vec<Frame> {
        match step {
            Step::Progress { progress, .. } => self.begin(progress.total, progress.cached),
            Step::Token { delta, .. } => {
                self.begin(delta.n_prompt, delta.timings.cached);
                let parts = self.reader.push(&delta.text);
                self.take(parts);
            }
            Step::End { outcome, .. } => {
                let Timings {
                    cached,
                    predicted_n,
                    ..
                } = outcome.timings;
                let n_prompt = outcome.prompt.len();
                self.begin(n_prompt, cached);
                let mut parts = self.reader.push(&outcome.tail);
                parts.extend(self.reader.finish());
                self.take(parts);
                if self.blocks == 0 {
                    self.open_as(Open::Text, json!({ "type": "text", "text": "" }));
                }
                self.close();
                let (reason, word) = self.reason(&outcome.stop);
                self.event(
                    "message_delta",
                    json!({
                        "delta": { "stop_reason": reason, "stop_sequence": word },
                        "usage": usage(n_prompt, cached, predicted_n),
                        "timings": timings_json(&outcome.timings),
                    }),
                );
                self.event("message_stop", json!({}));
            }
        }
        std::mem::take(&mut self.frames)
    }

    fn last_frames(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    fn error_frame(&mut self, error: &ApiError) -> Frame {
        let mut data = object(json!({ "type": "error" }));
        data.extend(object(error.body()));
        Frame {
            event: Some("error"),
            data: Value::Object(data),
        }
    }

    fn reply(&mut self, mut outcomes: Vec<(usize, Outcome)>) -> Value {
        let Some((_, outcome)) = outcomes.pop() else {
            return Value::Null;
        };
        let mut parts = self.reader.push(&outcome.text);
        parts.extend(self.reader.finish());
        let content = blocks(parts);
        let Timings {
            cached,
            predicted_n,
            ..
        } = outcome.timings;
        let usage = usage(outcome.prompt.len(), cached, predicted_n);
        let mut message = self.message(content, Some(&outcome.stop), usage);
        message.insert("timings".into(), timings_json(&outcome.timings));
        Value::Object(message)
    }

    fn framing(&self) -> Framing {
        Framing::Events
    }
}

/// The blocks of a whole answer, at least one.
fn blocks(parts: Vec<Part>) -> Value {
    let mut blocks: Vec<Value> = Vec::new();
    let mut arguments = String::new();
    for part in parts {
        match part {
            Part::Text(text) => match blocks.last_mut().filter(|last| last["type"] == "text") {
                Some(last) => {
                    last["text"] = json!(format!(
                        "{}{text}",
                        last["text"].as_str().unwrap_or_default()
                    ))
                }
                None => blocks.push(json!({ "type": "text", "text": text })),
            },
            Part::Reasoning(text) => {
                blocks.push(json!({ "type": "thinking", "thinking": text, "signature": "" }));
            }
            Part::Call { id, name } => {
                arguments.clear();
                blocks.push(
                    json!({ "type": "tool_use", "id": tool_id(&id), "name": name, "input": {} }),
                );
            }
            Part::Arguments(text) => {
                arguments.push_str(&text);
                // Arguments that were cut off can't be an object.
                let input: Value = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
                if let Some(last) = blocks.last_mut() {
                    last["input"] = input;
                }
            }
        }
    }
    if blocks.is_empty() {
        blocks.push(json!({ "type": "text", "text": "" }));
    }
    Value::Array(blocks)
}

/// Anthropic's ids begin like this.
fn tool_id(call_id: &str) -> String {
    format!("toolu_{}", call_id.trim_start_matches("call_"))
}

fn usage(n_prompt: usize, cached: usize, output: usize) -> Value {
    json!({
        "input_tokens": n_prompt.saturating_sub(cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    })
}
