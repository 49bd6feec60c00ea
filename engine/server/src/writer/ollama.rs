//! The forms of Ollama's chat and generate: a JSON object per line, the last with counts and times in nanoseconds.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{AnswerWriter, Frame, Framing};
use crate::clock;
use crate::error::ApiError;
use crate::generate::{Outcome, Step, StopType};
use crate::model::Model;
use crate::parts::{Look, Part, PartReader};
use crate::reply::object;

/// Which route's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OllamaForm {
    /// `/api/chat`
    Chat,
    /// `/api/generate`
    Text,
}

/// Writes one answer.
pub(crate) struct OllamaWriter {
    model: Arc<Model>,
    form: OllamaForm,
    reader: PartReader,
    /// A call whose arguments still come; calls are sent whole.
    call: Option<(String, String)>,
}

#[derive(Debug, Default)]
struct Said {
    text: String,
    thinking: String,
    calls: Vec<Value>,
}

impl OllamaWriter {
    pub(crate) fn new(model: &Arc<Model>, form: OllamaForm, look: Look) -> Self {
        OllamaWriter {
            model: Arc::clone(model),
            form,
            reader: PartReader::new(look),
            call: None,
        }
    }

    /// The reply to a request that asks to load the model.
    pub(crate) fn loaded(model: &Arc<Model>, form: OllamaForm) -> Value {
        let writer = OllamaWriter::new(model, form, Look::default());
        let mut reply = writer.object(Said::default(), true);
        reply.insert("done_reason".into(), json!("load"));
        Value::Object(reply)
    }

    fn object(&self, said: Said, done: bool) -> Map<String, Value> {
        let mut out = object(
            json!({ "model": self.model.id, "created_at": clock::rfc3339(clock::unix_s()) }),
        );
        let add_thinking = |out: &mut Map<String, Value>| {
            if !said.thinking.is_empty() {
                out.insert("thinking".into(), json!(said.thinking));
            }
        };
        match self.form {
            OllamaForm::Chat => {
                let mut message = object(json!({ "role": "assistant", "content": said.text }));
                add_thinking(&mut message);
                if !said.calls.is_empty() {
                    message.insert("tool_calls".into(), json!(said.calls));
                }
                out.insert("message".into(), Value::Object(message));
            }
            OllamaForm::Text => {
                out.insert("response".into(), json!(said.text));
                add_thinking(&mut out);
            }
        }
        out.insert("done".into(), json!(done));
        out
    }

    /// What can be said now: calls when they are whole.
    fn say(&mut self, parts: Vec<Part>, last: bool) -> Said {
        let mut said = Said::default();
        for part in parts {
            if !matches!(part, Part::Arguments(_)) {
                said.calls.extend(self.whole_call());
            }
            match part {
                Part::Text(text) => said.text.push_str(&text),
                Part::Reasoning(text) => said.thinking.push_str(&text),
                Part::Call { name, .. } => self.call = Some((name, String::new())),
                Part::Arguments(text) => {
                    if let Some((_, arguments)) = &mut self.call {
                        arguments.push_str(&text);
                    }
                }
            }
        }
        if last {
            said.calls.extend(self.whole_call());
        }
        said
    }

    /// Arguments are an object here.
    fn whole_call(&mut self) -> Option<Value> {
        let (name, arguments) = self.call.take()?;
        let arguments: Value = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
        Some(json!({ "function": { "name": name, "arguments": arguments } }))
    }

    fn last(&self, said: Said, outcome: &Outcome) -> Value {
        let timings = &outcome.timings;
        let ns = |ms: f64| (ms.max(0.0) * 1e6) as u64;
        let mut out = self.object(said, true);
        out.extend(object(json!({
            "done_reason": match outcome.stop {
                StopType::Limit => "length",
                StopType::Eos | StopType::Word(_) => "stop",
            },
            "total_duration": ns(timings.prompt_ms + timings.predicted_ms),
            "load_duration": 0,
            "prompt_eval_count": outcome.prompt.len(),
            "prompt_eval_duration": ns(timings.prompt_ms),
            "eval_count": timings.predicted_n,
            "eval_duration": ns(timings.predicted_ms),
        })));
        Value::Object(out)
    }
}

impl AnswerWriter for OllamaWriter {
    fn frames(&mut self, step: Step) -> Vec<Frame> {
        match step {
            Step::Progress { .. } => Vec::new(),
            Step::Token { delta, .. } => {
                let parts = self.reader.push(&delta.text);
                let said = self.say(parts, false);
                if said.text.is_empty() && said.thinking.is_empty() && said.calls.is_empty() {
                    return Vec::new();
                }
                vec![Value::Object(self.object(said, false)).into()]
            }
            Step::End { outcome, .. } => {
                let mut parts = self.reader.push(&outcome.tail);
                parts.extend(self.reader.finish());
                let said = self.say(parts, true);
                let mut frames = Vec::new();
                // Clients look for calls in the messages before the last.
                if !said.text.is_empty() || !said.thinking.is_empty() || !said.calls.is_empty() {
                    frames.push(Value::Object(self.object(said, false)).into());
                }
                frames.push(self.last(Said::default(), &outcome).into());
                frames
            }
        }
    }

    fn last_frames(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    fn error_frame(&mut self, error: &ApiError) -> Frame {
        json!({ "error": error.message }).into()
    }

    fn reply(&mut self, mut outcomes: Vec<(usize, Outcome)>) -> Value {
        let Some((_, outcome)) = outcomes.pop() else {
            return Value::Null;
        };
        let mut parts = self.reader.push(&outcome.text);
        parts.extend(self.reader.finish());
        let said = self.say(parts, true);
        self.last(said, &outcome)
    }

    fn framing(&self) -> Framing {
        Framing::Lines
    }
}
