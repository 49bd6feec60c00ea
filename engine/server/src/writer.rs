//! Writes the answers of the generation routes: whole replies and stream frames, in each dialect. Pure: steps in, values out.
//!
//! [`Writer`] is llama-server's native form and OpenAI's text and chat forms; the others stand in their own files.

mod logprobs;
mod messages;
mod native;
mod ollama;
mod openai;
mod responses;

use std::sync::Arc;

use bitnet_model::protocol::TokenProbs;
use serde_json::{Map, Value, json};

use crate::clock;
use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::generate::{Delta, Outcome, Step, Timings};
use crate::model::Model;
use crate::parts::{Look, PartReader};
use crate::reply::{object, random_id};
use crate::request::{Dialect, Params};
use crate::values::timings_json;

use logprobs::Likely;
pub(crate) use messages::MessagesWriter;
pub(crate) use ollama::{OllamaForm, OllamaWriter};
pub(crate) use responses::ResponsesWriter;

/// Writes the answers of one request. One per request: ids and times stay the same over a stream.
pub(crate) trait AnswerWriter: Send {
    /// The frames of one step of a stream.
    fn frames(&mut self, step: Step) -> Vec<Frame>;
    /// Frames after the last answer has ended.
    fn last_frames(&mut self) -> Vec<Frame>;
    /// The frame of an error after the stream has begun.
    fn error_frame(&mut self, error: &ApiError) -> Frame;
    /// The reply when nothing is streamed; `outcomes` by index.
    fn reply(&mut self, outcomes: Vec<(usize, Outcome)>) -> Value;
    /// How frames stand in the stream.
    fn framing(&self) -> Framing;
}

/// One frame of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    /// The name of a server-sent event, where the dialect has names.
    pub(crate) event: Option<&'static str>,
    pub(crate) data: Value,
}

impl From<Value> for Frame {
    fn from(data: Value) -> Self {
        Frame { event: None, data }
    }
}

/// How frames stand in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Events,
    /// Server-sent events, and the line `data: [DONE]` at the end.
    EventsThenDone,
    /// A JSON object per line.
    Lines,
}

/// llama-server's and OpenAI's text and chat forms.
pub(crate) struct Writer {
    dialect: Dialect,
    params: Arc<Params>,
    model: Arc<Model>,
    id: String,
    created: u64,
    fingerprint: String,
    /// Several answers were asked for.
    many: bool,
    look: Look,
    /// Per answer.
    choices: Vec<WriterChoice>,
}

struct WriterChoice {
    /// Takes a chat's text apart.
    reader: PartReader,
    /// Calls begun in the stream.
    calls: usize,
    /// Its role, or the echoed prompt, was sent.
    begun: bool,
    /// Probabilities of tokens whose text is not out yet.
    logprobs: Vec<Likely>,
    /// Characters of the text that those sent before stand for.
    offset: usize,
    /// The text of the prompt, for `echo`.
    echo: String,
    /// Its tokens, if they are reported.
    prompt: Vec<u32>,
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
        look: Look,
    ) -> Self {
        let echo_of = |prompt: &Vec<u32>| match params.echo && dialect == Dialect::Text {
            true => model.text_without_bos(prompt),
            false => String::new(),
        };
        let choices = prompts
            .iter()
            .flat_map(|prompt| {
                let echo = echo_of(prompt);
                let prompt = match params.prompt_probs {
                    Some(_) => prompt.clone(),
                    None => Vec::new(),
                };
                (0..params.n).map(move |_| WriterChoice {
                    offset: 0,
                    prompt: prompt.clone(),
                    reader: PartReader::new(look),
                    calls: 0,
                    begun: false,
                    logprobs: Vec::new(),
                    echo: echo.clone(),
                    ended: None,
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
            look,
            choices,
            params,
            model,
        }
    }

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
        let choice = &mut self.choices[index];
        let prompt = Likely::prompt(&choice.prompt, &delta.prompt_probs);
        choice.logprobs.extend(prompt);
        if let Some(probs) = &delta.probs {
            let one = Likely::answered(delta.token, probs.clone());
            choice.logprobs.push(one);
        }
    }

    fn take_logprobs(&mut self, index: usize) -> Value {
        let choice = &mut self.choices[index];
        let all = std::mem::take(&mut choice.logprobs);
        if all.is_empty() {
            return Value::Null;
        }
        let mut offset = choice.offset;
        let logprobs = self.logprobs(&all, &mut offset);
        self.choices[index].offset = offset;
        logprobs
    }

    fn outcome_logprobs(&self, outcome: &Outcome) -> Value {
        match self.params.sampling.n_probs {
            0 => Value::Null,
            _ => self.logprobs(&Likely::all_of(outcome), &mut 0),
        }
    }

    /// `logprobs` of a choice; text completions have OpenAI's older lists beside llama-server's.
    fn logprobs(&self, all: &[Likely], offset: &mut usize) -> Value {
        let after = self.params.sampling.post_sampling_probs;
        let content = logprobs::content(&self.model, all, after);
        let mut out = object(json!({ "content": content }));
        if self.dialect == Dialect::Text {
            out.extend(logprobs::lists(&self.model, all, offset));
        }
        Value::Object(out)
    }

    fn outcome_probs(&self, outcome: &Outcome) -> Value {
        let probs = outcome.probs.iter();
        probs
            .map(|(token, probs)| self.probs_json(*token, probs))
            .collect()
    }

    fn probs_json(&self, token: u32, probs: &TokenProbs) -> Value {
        let after = self.params.sampling.post_sampling_probs;
        logprobs::entry(&self.model, token, probs, after)
    }
}

impl AnswerWriter for Writer {
    fn frames(&mut self, step: Step) -> Vec<Frame> {
        let frames = match self.dialect {
            Dialect::Native => self.native_frames(step),
            Dialect::Text => self.text_frames(step),
            Dialect::Chat => self.chat_frames(step),
        };
        frames.into_iter().map(Frame::from).collect()
    }

    fn last_frames(&mut self) -> Vec<Frame> {
        if self.dialect == Dialect::Native || !self.params.include_usage {
            return Vec::new();
        }
        let mut chunk = self.chunk(json!([]));
        chunk.insert("usage".into(), self.usage());
        chunk.insert("timings".into(), self.first_timings());
        vec![Value::Object(chunk).into()]
    }

    fn error_frame(&mut self, error: &ApiError) -> Frame {
        error.body().into()
    }

    fn reply(&mut self, mut outcomes: Vec<(usize, Outcome)>) -> Value {
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

    fn framing(&self) -> Framing {
        match self.dialect {
            Dialect::Native => Framing::Events,
            Dialect::Text | Dialect::Chat => Framing::EventsThenDone,
        }
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
