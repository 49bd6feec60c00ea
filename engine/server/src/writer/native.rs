//! llama-server's own shape.

use serde_json::{Map, Value, json};

use super::Writer;
use crate::generate::{Outcome, Step, StopType};
use crate::reply::object;
use crate::values::{progress_json, settings_json, timings_json};

impl Writer {
    pub(super) fn native_frames(&mut self, step: Step) -> Vec<Value> {
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

    pub(super) fn native_final(&self, index: usize, outcome: &Outcome, content: &str) -> Value {
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
}

fn slot_number(slot: Option<usize>) -> i64 {
    slot.map_or(-1, |slot| slot as i64)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
