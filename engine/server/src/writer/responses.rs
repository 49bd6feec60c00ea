//! The forms of OpenAI's Responses API. Every event has its number, and says which item and part it belongs to.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{AnswerWriter, Frame, Framing, logprobs};
use crate::clock;
use crate::error::ApiError;
use crate::generate::{Outcome, Step, StopType};
use crate::model::Model;
use crate::parts::{Look, Part, PartReader};
use crate::reply::{object, random_id};
use crate::request::Params;
use crate::values::timings_json;

/// Settings of the request that the response repeats, and what stands there when the request is silent.
fn echoed(body: &Map<String, Value>, params: &Params) -> Map<String, Value> {
    let given = |name: &str, otherwise: Value| match body.get(name) {
        None | Some(Value::Null) => otherwise,
        Some(value) => value.clone(),
    };
    object(json!({
        "instructions": given("instructions", Value::Null),
        "max_output_tokens": given("max_output_tokens", Value::Null),
        "metadata": given("metadata", json!({})),
        "parallel_tool_calls": given("parallel_tool_calls", json!(true)),
        "previous_response_id": null,
        "reasoning": given("reasoning", json!({ "effort": null, "summary": null })),
        "service_tier": given("service_tier", json!("default")),
        "store": false,
        "temperature": given("temperature", json!(params.sampling.temperature)),
        "text": match body.get("text") {
            Some(Value::Object(text)) if text.get("format").is_some_and(Value::is_object) => json!(text),
            _ => json!({ "format": { "type": "text" } }),
        },
        "tool_choice": given("tool_choice", json!("auto")),
        "tools": given("tools", json!([])),
        "top_p": given("top_p", json!(params.sampling.top_p)),
        "truncation": "disabled",
        "user": given("user", Value::Null),
    }))
}

/// Writes one response.
pub(crate) struct ResponsesWriter {
    model: Arc<Model>,
    id: String,
    created: u64,
    echoed: Map<String, Value>,
    reader: PartReader,
    /// Number of the next event.
    sequence: u64,
    begun: bool,
    /// The output so far; the last item may be open.
    items: Vec<Item>,
    /// Of tokens whose text is not out yet, where they were asked for.
    logprobs: Vec<Value>,
    frames: Vec<Frame>,
}

/// One item of the output.
struct Item {
    id: String,
    kind: Kind,
    /// Text, or arguments.
    text: String,
    /// Of its tokens, if it is a message.
    logprobs: Vec<Value>,
}

enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, name: String },
}

impl Item {
    fn json(&self, status: &str) -> Value {
        let Item { id, text, .. } = self;
        match &self.kind {
            Kind::Reasoning => json!({
                "id": id, "type": "reasoning", "summary": [], "status": status,
                "content": [{ "type": "reasoning_text", "text": text }],
            }),
            Kind::Message => json!({
                "id": id, "type": "message", "role": "assistant", "status": status,
                "content": if status == "in_progress" { json!([]) } else { json!([self.part()]) },
            }),
            Kind::Call { call_id, name } => json!({
                "id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": text, "status": status,
            }),
        }
    }

    /// Its one content part.
    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({ "type": "reasoning_text", "text": self.text }),
            _ => {
                json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs })
            }
        }
    }
}

impl ResponsesWriter {
    pub(crate) fn new(
        body: &Map<String, Value>,
        params: &Params,
        model: &Arc<Model>,
        look: Look,
    ) -> Self {
        ResponsesWriter {
            model: Arc::clone(model),
            id: format!("resp_{}", random_id(32)),
            created: clock::unix_s(),
            echoed: echoed(body, params),
            reader: PartReader::new(look),
            sequence: 0,
            begun: false,
            items: Vec::new(),
            logprobs: Vec::new(),
            frames: Vec::new(),
        }
    }

    fn event(&mut self, name: &'static str, fields: Value) {
        let mut data = object(json!({ "type": name, "sequence_number": self.sequence }));
        data.extend(object(fields));
        self.sequence += 1;
        self.frames.push(Frame {
            event: Some(name),
            data: Value::Object(data),
        });
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            let response = self.response("in_progress", None);
            self.event("response.created", json!({ "response": response }));
            self.event("response.in_progress", json!({ "response": response }));
        }
    }

    fn response(&self, status: &str, outcome: Option<&Outcome>) -> Value {
        let output: Vec<Value> = match outcome {
            None => Vec::new(),
            Some(_) => self
                .items
                .iter()
                .map(|item| item.json("completed"))
                .collect(),
        };
        let mut response = object(json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": outcome.map(|_| clock::unix_s()),
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": if status == "incomplete" { json!({ "reason": "max_output_tokens" }) } else { Value::Null },
            "model": self.model.id,
            "output": output,
            "usage": outcome.map(usage),
        }));
        response.extend(self.echoed.clone());
        if let Some(outcome) = outcome {
            response.insert("timings".into(), timings_json(&outcome.timings));
        }
        Value::Object(response)
    }

    fn take(&mut self, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Text(text) => {
                    if !matches!(
                        self.items.last(),
                        Some(Item {
                            kind: Kind::Message,
                            ..
                        })
                    ) {
                        self.open("msg_", Kind::Message);
                    }
                    self.add(text, "response.output_text.delta");
                }
                Part::Reasoning(text) => {
                    if !matches!(
                        self.items.last(),
                        Some(Item {
                            kind: Kind::Reasoning,
                            ..
                        })
                    ) {
                        self.open("rs_", Kind::Reasoning);
                    }
                    self.add(text, "response.reasoning_text.delta");
                }
                Part::Call { id, name } => self.open("fc_", Kind::Call { call_id: id, name }),
                Part::Arguments(text) => self.add(text, "response.function_call_arguments.delta"),
            }
        }
    }

    /// Begins an item, after ending the one before.
    fn open(&mut self, prefix: &str, kind: Kind) {
        self.close();
        let item = Item {
            id: format!("{prefix}{}", random_id(32)),
            kind,
            text: String::new(),
            logprobs: Vec::new(),
        };
        let index = self.items.len();
        let mut added = item.json("in_progress");
        if let Kind::Reasoning = item.kind {
            added["content"] = json!([]);
        }
        self.event(
            "response.output_item.added",
            json!({ "output_index": index, "item": added }),
        );
        if !matches!(item.kind, Kind::Call { .. }) {
            let part = json!({ "item_id": item.id, "output_index": index, "content_index": 0, "part": item.part() });
            self.event("response.content_part.added", part);
        }
        self.items.push(item);
    }

    fn add(&mut self, text: String, event: &'static str) {
        let index = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last_mut() else {
            return;
        };
        item.text.push_str(&text);
        let mut delta = object(json!({ "item_id": item.id, "output_index": index, "delta": text }));
        if !matches!(item.kind, Kind::Call { .. }) {
            delta.insert("content_index".into(), json!(0));
        }
        if let Kind::Message = item.kind {
            let logprobs = std::mem::take(&mut self.logprobs);
            delta.insert("logprobs".into(), json!(logprobs));
            item.logprobs.extend(logprobs);
        }
        self.event(event, Value::Object(delta));
    }

    /// Ends the last item.
    fn close(&mut self) {
        let index = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last() else {
            return;
        };
        let logprobs = item.logprobs.clone();
        let (id, text, part, done) = (
            item.id.clone(),
            item.text.clone(),
            item.part(),
            item.json("completed"),
        );
        match &item.kind {
            Kind::Call { name, .. } => {
                let fields = json!({ "item_id": id, "output_index": index, "name": name, "arguments": text });
                self.event("response.function_call_arguments.done", fields);
            }
            kind => {
                let mut fields = object(
                    json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text }),
                );
                let name = match kind {
                    Kind::Reasoning => "response.reasoning_text.done",
                    _ => {
                        fields.insert("logprobs".into(), json!(logprobs));
                        "response.output_text.done"
                    }
                };
                self.event(name, Value::Object(fields));
                let fields = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part });
                self.event("response.content_part.done", fields);
            }
        }
        self.event(
            "response.output_item.done",
            json!({ "output_index": index, "item": done }),
        );
    }

    /// Ends the output; a response has at least one item.
    fn end(&mut self, tail: &str, outcome: &Outcome) -> Value {
        let mut parts = self.reader.push(tail);
        parts.extend(self.reader.finish());
        self.take(parts);
        if !self
            .items
            .iter()
            .any(|item| !matches!(item.kind, Kind::Reasoning))
        {
            self.open("msg_", Kind::Message);
        }
        self.close();
        let status = match outcome.stop {
            StopType::Limit => "incomplete",
            StopType::Eos | StopType::Word(_) => "completed",
        };
        self.response(status, Some(outcome))
    }
}

impl AnswerWriter for ResponsesWriter {
    fn frames(&mut self, step: Step) -> Vec<Frame> {
        self.begin();
        match step {
            Step::Progress { .. } => {}
            Step::Token { delta, .. } => {
                if let Some(probs) = &delta.probs {
                    let one = logprobs::entry(&self.model, delta.token, probs, false);
                    self.logprobs.push(one);
                }
                let parts = self.reader.push(&delta.text);
                self.take(parts);
            }
            Step::End { outcome, .. } => {
                let response = self.end(&outcome.tail, &outcome);
                let name = match outcome.stop {
                    StopType::Limit => "response.incomplete",
                    StopType::Eos | StopType::Word(_) => "response.completed",
                };
                self.event(name, json!({ "response": response }));
            }
        }
        std::mem::take(&mut self.frames)
    }

    fn last_frames(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    fn error_frame(&mut self, error: &ApiError) -> Frame {
        let mut data = object(json!({
            "type": "error",
            "sequence_number": self.sequence,
            "code": error.kind,
            "message": error.message,
            "param": null,
        }));
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
        let probs = outcome.probs.iter();
        let probs = probs.map(|(token, probs)| logprobs::entry(&self.model, *token, probs, false));
        self.logprobs = probs.collect();
        self.end(&outcome.text, &outcome)
    }

    fn framing(&self) -> Framing {
        Framing::Events
    }
}

fn usage(outcome: &Outcome) -> Value {
    let (input, output) = (outcome.prompt.len(), outcome.timings.predicted_n);
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": outcome.timings.cached },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": input + output,
    })
}
