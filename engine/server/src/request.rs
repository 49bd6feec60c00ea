//! What a client may ask for: every field of the generation routes, its names, type, range and default, in one place.
//!
//! `null` counts as absent, unknown fields are ignored, a wrong type is 400. Fields of features this server does not
//! have are accepted at the values that change nothing and refused otherwise: [`NEUTRAL_ONLY`].

use std::time::Duration;

use bitnet_model::protocol::SamplingParams;
use serde_json::{Map, Value};

use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::model::Model;
use crate::sampling::{self, is_number};
use crate::schema::{self, requests};

/// Answers one request may ask for.
const MAX_CHOICES: usize = 1024;
/// Stop strings per request, and their bytes in all.
const MAX_STOPS: usize = 256;
const MAX_STOP_BYTES: usize = 16 << 10;

/// A generation request, the prompt aside.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    /// `seed` is concrete.
    pub(crate) sampling: SamplingParams,
    /// `None`: until the context is full.
    pub(crate) max_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
    /// Answers per prompt; the k-th has the seed plus k.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) cache_prompt: bool,
    pub(crate) slot: Option<usize>,
    /// -1: the whole prompt.
    pub(crate) n_keep: i64,
    pub(crate) return_tokens: bool,
    pub(crate) return_progress: bool,
    pub(crate) timings_per_token: bool,
    /// Ends after this time, once there is a whole line.
    pub(crate) max_predict: Option<Duration>,
    pub(crate) response_fields: Vec<String>,
    pub(crate) verbose: bool,
    pub(crate) echo: bool,
    /// Report how likely each token of the prompt is, with this many alternatives.
    pub(crate) prompt_probs: Option<u32>,
    /// Most tokens to guess ahead.
    pub(crate) draft_max: Option<usize>,
    pub(crate) sse_ping: Duration,
}

/// Which route's dialect a request is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// llama-server's `/completion`.
    Native,
    /// OpenAI's `/v1/completions`.
    Text,
    /// OpenAI's `/v1/chat/completions`.
    Chat,
}

impl Params {
    /// Reads all fields but the prompt and the messages.
    ///
    /// # Errors
    /// 400 naming the field.
    pub(crate) fn read(
        body: &Map<String, Value>,
        dialect: Dialect,
        config: &ServerConfig,
        model: &Model,
    ) -> Result<Self, ApiError> {
        schema::check(body, requests::GENERATION)?;
        let fields = Fields(body);
        refuse_what_is_missing(&fields)?;
        warn_of_what_is_ignored(&fields);
        let slots = model.card.slots;
        let sampling = sampling::read(&fields, dialect, config, model)?;
        let echo = fields.bool("echo")?.unwrap_or(false) && dialect == Dialect::Text;
        Ok(Params {
            prompt_probs: (echo && sampling.n_probs > 0).then_some(sampling.n_probs),
            draft_max: fields
                .int(&["speculative.n_max"], i64::MIN, i64::MAX)?
                .map(|n| n.max(0) as usize),
            echo,
            sampling,
            max_tokens: read_max_tokens(&fields, config)?,
            stop: read_stop(&fields, config)?,
            n: fields
                .int(&["n_cmpl", "n"], 1, slots.max(1) as i64)?
                .unwrap_or(1) as usize,
            stream: fields.bool("stream")?.unwrap_or(false),
            include_usage: match fields.object("stream_options")? {
                Some(options) => Fields(options).bool("include_usage")?.unwrap_or(false),
                None => false,
            },
            cache_prompt: fields.bool("cache_prompt")?.unwrap_or(config.cache_prompt),
            slot: match fields.int(&["id_slot"], -1, slots as i64 - 1)? {
                Some(slot) if slot >= 0 => Some(slot as usize),
                _ => None,
            },
            n_keep: fields
                .int(&["n_keep"], -1, i64::MAX)?
                .unwrap_or(config.n_keep),
            return_tokens: fields.bool("return_tokens")?.unwrap_or(false),
            return_progress: fields.bool("return_progress")?.unwrap_or(false),
            timings_per_token: fields.bool("timings_per_token")?.unwrap_or(false),
            max_predict: match fields.int(&["t_max_predict_ms"], i64::MIN, i64::MAX)? {
                Some(ms) if ms > 0 => Some(Duration::from_millis(ms as u64)),
                _ => None,
            },
            response_fields: fields.strings("response_fields")?.unwrap_or_default(),
            verbose: fields.bool("verbose")?.unwrap_or(false),
            sse_ping: match fields.int(&["sse_ping_interval"], -1, i64::MAX)? {
                Some(seconds) if seconds > 0 => Duration::from_secs(seconds as u64),
                Some(_) => Duration::MAX,
                None if config.sse_ping.is_zero() => Duration::MAX,
                None => config.sse_ping,
            },
        })
    }

    /// Refuses more answers than anybody means.
    pub(crate) fn check_choices(&self, prompts: usize) -> Result<(), ApiError> {
        match prompts.saturating_mul(self.n) {
            0..=MAX_CHOICES => Ok(()),
            found => Err(ApiError::field(
                "prompt",
                format!("{found} answers asked for, at most {MAX_CHOICES} are allowed"),
            )),
        }
    }
}

/// Fields of features that are not here: name, whether a value asks for nothing, and why it is refused otherwise.
type NeutralOnly = (&'static str, fn(&Value) -> bool, &'static str);

const NEUTRAL_ONLY: &[NeutralOnly] = &[
    ("functions", is_empty, "function calls are not available"),
    (
        "n_indent",
        not_positive,
        "stopping at an indentation is not available",
    ),
    (
        "lora",
        is_empty,
        "adapters cannot be applied to ternary weights",
    ),
    ("image_data", is_empty, "the model reads text"),
    (
        "suffix",
        is_empty,
        "the model has no fill-in-the-middle tokens",
    ),
    ("best_of", at_most_one, "answers are not ranked; use `n`"),
];

fn refuse_what_is_missing(fields: &Fields<'_>) -> Result<(), ApiError> {
    for (name, is_neutral, why) in NEUTRAL_ONLY {
        if let Some((name, value)) = fields.get(&[name])
            && !is_neutral(value)
        {
            return Err(ApiError::unsupported_field(name, why));
        }
    }
    Ok(())
}

/// Samplers that llama-server dropped, too.
fn warn_of_what_is_ignored(fields: &Fields<'_>) {
    let is_set = |name, neutral: fn(&Value) -> bool| {
        fields
            .get(&[name])
            .is_some_and(|(_, value)| !neutral(value))
    };
    if is_set("tfs_z", |value| value.as_f64().is_some_and(|z| z >= 1.0)) {
        tracing::warn!(
            "`tfs_z` has no effect: tail-free sampling was dropped by llama-server, too"
        );
    }
    if is_set("penalize_nl", |value| value.as_bool() == Some(true)) {
        tracing::debug!("`penalize_nl` has no effect: newlines are penalized like other tokens");
    }
    for name in ["speculative.n_min", "speculative.p_min"] {
        if is_set(name, not_positive) {
            tracing::debug!("`{name}` has no effect: how many guesses pay is measured");
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn not_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number <= 0.0)
}

fn at_most_one(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number <= 1.0)
}

fn read_max_tokens(fields: &Fields<'_>, config: &ServerConfig) -> Result<Option<u32>, ApiError> {
    let asked = fields.int(
        &["n_predict", "max_completion_tokens", "max_tokens"],
        -1,
        i64::MAX,
    )?;
    let wanted = match asked {
        Some(-1) => None,
        Some(n) => Some(u32::try_from(n).unwrap_or(u32::MAX)),
        None => config.max_tokens,
    };
    Ok(match (wanted, config.max_tokens_cap) {
        (Some(wanted), Some(cap)) => Some(wanted.min(cap)),
        (wanted, cap) => wanted.or(cap),
    })
}

/// One string or an array of them; empty ones are dropped.
fn read_stop(fields: &Fields<'_>, config: &ServerConfig) -> Result<Vec<String>, ApiError> {
    let words = match fields.get(&["stop"]) {
        None => return Ok(config.stop.clone()),
        Some((_, Value::String(word))) => vec![word.clone()],
        Some(_) => fields.strings("stop")?.unwrap_or_default(),
    };
    let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let bytes: usize = words.iter().map(String::len).sum();
    if words.len() > MAX_STOPS || bytes > MAX_STOP_BYTES {
        let problem =
            format!("at most {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes in all are allowed");
        return Err(ApiError::field("stop", problem));
    }
    Ok(if words.is_empty() {
        config.stop.clone()
    } else {
        words
    })
}

fn is_sampling(name: &str) -> bool {
    is_number(name) || NEUTRAL_ONLY.iter().any(|(known, ..)| *known == name)
}

/// Typed access to a JSON object's fields.
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The first of `names` that is there and not `null`.
    pub(crate) fn get<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        debug_assert!(
            names
                .iter()
                .all(|name| is_sampling(name) || schema::is_known(name)),
            "{names:?} stand in no table"
        );
        names.iter().find_map(|name| match self.0.get(*name) {
            None | Some(Value::Null) => None,
            Some(value) => Some((*name, value)),
        })
    }

    pub(crate) fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "a boolean", Value::as_bool)
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.typed(name, "an object", Value::as_object)
    }

    pub(crate) fn array(&self, name: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.typed(name, "an array", Value::as_array)
    }

    pub(crate) fn strings(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        self.typed(name, "an array of strings", |value| {
            value
                .as_array()?
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect()
        })
    }

    /// A whole number in `low..=high`, else 400. `5.0` is one.
    pub(crate) fn int(&self, names: &[&str], low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        let Some((name, value)) = self.get(names) else {
            return Ok(None);
        };
        let number =
            whole(value).ok_or_else(|| ApiError::field(name, expected("an integer", value)))?;
        if (low..=high).contains(&number) {
            return Ok(Some(number));
        }
        let bound = if number < low {
            format!("at least {low}")
        } else {
            format!("at most {high}")
        };
        Err(ApiError::field(
            name,
            format!("found {number}, expected {bound}"),
        ))
    }

    fn typed<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        match self.get(&[name]) {
            None => Ok(None),
            Some((_, value)) => match read(value) {
                Some(typed) => Ok(Some(typed)),
                None => Err(ApiError::field(name, expected(wanted, value))),
            },
        }
    }
}

/// Whole numbers, also written as `5.0`; beyond 64 bits the nearest.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    (number.fract() == 0.0).then_some(number as i64)
}

/// `found a string, expected an integer`
pub(crate) fn expected(wanted: &str, found: &Value) -> String {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    format!("found {found}, expected {wanted}")
}
