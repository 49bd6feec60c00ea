//! What a client may ask for: every field of the generation routes, its names, type, range and default, in one place.
//!
//! `null` counts as absent, unknown fields are ignored, a wrong type is 400. Fields of features this server does not
//! have are accepted at the values that change nothing and refused otherwise: [`NEUTRAL_ONLY`].

use std::time::Duration;

use bitnet_model::protocol::{SamplerKind, SamplingParams};
use rand::Rng;
use serde_json::{Map, Value, json};

use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::model::Model;
use crate::schema::{self, requests};

/// Alternatives reported per token, at most.
const MAX_PROBS: u32 = 1000;
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
        let slots = model.card.slots;
        Ok(Params {
            sampling: read_sampling(&fields, dialect, config, model)?,
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
            echo: fields.bool("echo")?.unwrap_or(false),
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

/// A sampling number: names (the first is the one in `generation_settings`), range, and where it lives.
struct Number {
    names: &'static [&'static str],
    low: f64,
    high: f64,
    /// Outside the range: 400 instead of the nearest bound.
    hard: bool,
    integer: bool,
    get: fn(&SamplingParams) -> f64,
    set: fn(&mut SamplingParams, f64),
}

macro_rules! number {
    ($names:expr, $low:expr, $high:expr, $rule:ident, f32 $field:ident) => {
        Number {
            names: &$names,
            low: $low,
            high: $high,
            hard: number!(@$rule),
            integer: false,
            get: |s| f64::from(s.$field),
            set: |s, value| s.$field = value as f32,
        }
    };
    ($names:expr, $low:expr, $high:expr, $rule:ident, u32 $field:ident) => {
        Number {
            names: &$names,
            low: $low,
            high: $high,
            hard: number!(@$rule),
            integer: true,
            get: |s| f64::from(s.$field),
            set: |s, value| s.$field = value as u32,
        }
    };
    (@hard) => { true };
    (@clamp) => { false };
}

const ANY: f64 = f32::MAX as f64;
const U32: f64 = u32::MAX as f64;

/// All sampling numbers except the seed.
const NUMBERS: &[Number] = &[
    // 0 or less is greedy.
    number!(["temperature"], 0.0, ANY, clamp, f32 temperature),
    number!(["dynatemp_range"], 0.0, ANY, clamp, f32 dynatemp_range),
    number!(["dynatemp_exponent"], -ANY, ANY, clamp, f32 dynatemp_exponent),
    // 0 is the whole vocabulary.
    number!(["top_k"], 0.0, U32, clamp, u32 top_k),
    number!(["top_p"], 0.0, 1.0, clamp, f32 top_p),
    number!(["min_p"], 0.0, 1.0, clamp, f32 min_p),
    number!(["typical_p", "typ_p"], 0.0, 1.0, clamp, f32 typical_p),
    // Tokens looked back at; -1 is the whole context.
    Number {
        names: &["repeat_last_n"],
        low: -1.0,
        high: U32,
        hard: true,
        integer: true,
        get: |s| match s.repeat_last_n {
            u32::MAX => -1.0,
            n => f64::from(n),
        },
        set: |s, value| s.repeat_last_n = if value < 0.0 { u32::MAX } else { value as u32 },
    },
    number!(["repeat_penalty"], f32::MIN_POSITIVE as f64, ANY, hard, f32 repeat_penalty),
    number!(["frequency_penalty"], -ANY, ANY, hard, f32 frequency_penalty),
    number!(["presence_penalty"], -ANY, ANY, hard, f32 presence_penalty),
    number!(["min_keep"], 0.0, U32, hard, u32 min_keep),
];

/// Fields of features that are not here: name, whether a value asks for nothing, and why it is refused otherwise.
type NeutralOnly = (&'static str, fn(&Value) -> bool, &'static str);

const NEUTRAL_ONLY: &[NeutralOnly] = &[
    ("grammar", is_empty, "grammars are not available"),
    ("json_schema", is_empty, "schemas are not available"),
    (
        "response_format",
        is_text_format,
        "only the type `text` is available",
    ),
    ("functions", is_empty, "function calls are not available"),
    ("mirostat", is_zero, "mirostat is not available"),
    (
        "xtc_probability",
        not_positive,
        "the XTC sampler is not available",
    ),
    (
        "dry_multiplier",
        is_zero,
        "the DRY sampler is not available",
    ),
    (
        "adaptive_target",
        is_negative,
        "adaptive sampling is not available",
    ),
    (
        "top_n_sigma",
        not_positive,
        "the top-n-sigma sampler is not available",
    ),
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

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn is_text_format(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.get("type").is_none_or(|kind| kind == "text"),
        _ => false,
    }
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn not_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number <= 0.0)
}

fn is_negative(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number < 0.0)
}

fn at_most_one(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number <= 1.0)
}

fn read_sampling(
    fields: &Fields<'_>,
    dialect: Dialect,
    config: &ServerConfig,
    model: &Model,
) -> Result<SamplingParams, ApiError> {
    let mut sampling = config.sampling.clone();
    for number in NUMBERS {
        if let Some(value) = fields.in_range(number)? {
            (number.set)(&mut sampling, value);
        }
    }
    sampling.seed = read_seed(fields, config)?;
    sampling.n_probs = read_n_probs(fields, dialect)?
        .unwrap_or(sampling.n_probs)
        .min(MAX_PROBS);
    sampling.post_sampling_probs = fields
        .bool("post_sampling_probs")?
        .unwrap_or(sampling.post_sampling_probs);
    sampling.ignore_eos = fields.bool("ignore_eos")?.unwrap_or(sampling.ignore_eos);
    if let Some((name, value)) = fields.get(&["logit_bias"]) {
        sampling
            .logit_bias
            .extend(read_logit_bias(name, value, model)?);
    }
    if let Some((name, value)) = fields.get(&["samplers"]) {
        sampling.samplers = read_samplers(name, value)?;
    }
    Ok(sampling)
}

/// Negative and 2^32 - 1 are random; larger numbers lose their upper bits.
fn read_seed(fields: &Fields<'_>, config: &ServerConfig) -> Result<u32, ApiError> {
    let asked = fields.int(&["seed"], i64::MIN, i64::MAX)?;
    let asked = asked.filter(|seed| *seed >= 0 && *seed as u32 != u32::MAX);
    let given = asked.map(|seed| seed as u32).or(config.seed);
    Ok(given.unwrap_or_else(|| rand::rng().random_range(0..u32::MAX)))
}

/// Native and text: `n_probs`, or `logprobs` as a number. Chat: `logprobs` as a switch with `top_logprobs`.
fn read_n_probs(fields: &Fields<'_>, dialect: Dialect) -> Result<Option<u32>, ApiError> {
    let limit = i64::from(u32::MAX);
    if let Some(n) = fields.int(&["n_probs"], 0, limit)? {
        return Ok(Some(n as u32));
    }
    if dialect != Dialect::Chat {
        return match fields.get(&["logprobs"]) {
            Some((_, Value::Bool(on))) => Ok(Some(u32::from(*on))),
            _ => Ok(fields.int(&["logprobs"], 0, limit)?.map(|n| n as u32)),
        };
    }
    let top = fields.int(&["top_logprobs"], 0, limit)?;
    let on = match fields.get(&["logprobs"]) {
        Some((_, Value::Number(_))) => fields.int(&["logprobs"], 0, limit)?.is_some_and(|n| n > 0),
        _ => fields.bool("logprobs")?.unwrap_or(false),
    };
    match (on, top) {
        (false, Some(n)) if n > 0 => Err(ApiError::field(
            "top_logprobs",
            "needs `logprobs` to be true",
        )),
        (false, _) => Ok(None),
        // OpenAI's form asks for the chosen token alone; the engine reports it with at least one alternative.
        (true, top) => Ok(Some(top.unwrap_or(0).max(1) as u32)),
    }
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

/// `[[id or text, number or false], ..]` or `{"id or text": number or false}`; entries that make no sense are skipped.
fn read_logit_bias(name: &str, value: &Value, model: &Model) -> Result<Vec<(u32, f32)>, ApiError> {
    let entries: Vec<(Value, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, bias)| {
                (
                    key.parse::<u64>()
                        .map_or_else(|_| json!(key), |id| json!(id)),
                    bias,
                )
            })
            .collect(),
        Value::Array(items) => items
            .iter()
            .filter_map(|item| match item.as_array().map(Vec::as_slice) {
                Some([key, bias]) => Some((key.clone(), bias)),
                _ => None,
            })
            .collect(),
        _ => return Err(ApiError::field(name, "expected an array or an object")),
    };
    let mut biases = Vec::new();
    for (key, bias) in entries {
        let bias = match bias {
            Value::Bool(false) => f32::MIN,
            Value::Number(bias) => (bias.as_f64().unwrap_or(0.0) as f32).clamp(f32::MIN, f32::MAX),
            _ => continue,
        };
        let tokens = match &key {
            Value::String(text) => model.tokenizer().encode(text, false, false),
            Value::Number(id) => id
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .into_iter()
                .collect(),
            _ => continue,
        };
        let known = |token: &u32| (*token as usize) < model.tokenizer().n_vocab();
        biases.extend(tokens.into_iter().filter(known).map(|token| (token, bias)));
    }
    Ok(biases)
}

/// Samplers by name; the second column is their letter, the last whether it exists here.
const SAMPLERS: &[(&[&str], char, Option<SamplerKind>)] = &[
    (&["penalties"], 'e', Some(SamplerKind::Penalties)),
    (&["dry"], 'd', Some(SamplerKind::Dry)),
    (&["top_n_sigma"], 's', Some(SamplerKind::TopNSigma)),
    (&["top_k"], 'k', Some(SamplerKind::TopK)),
    (
        &["typ_p", "typical_p", "typical", "typ"],
        'y',
        Some(SamplerKind::TypP),
    ),
    (&["top_p", "nucleus"], 'p', Some(SamplerKind::TopP)),
    (&["min_p"], 'm', Some(SamplerKind::MinP)),
    (&["xtc"], 'x', Some(SamplerKind::Xtc)),
    (
        &["temperature", "temp"],
        't',
        Some(SamplerKind::Temperature),
    ),
];

/// The sampler of this name, in snake, kebab or run-together case; `None` for unknown ones and those not here.
fn sampler(name: &str) -> Option<SamplerKind> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let found = SAMPLERS
        .iter()
        .find(|(names, ..)| names.iter().any(|known| plain(known) == plain(name)));
    found.and_then(|(.., kind)| *kind)
}

fn read_samplers(name: &str, value: &Value) -> Result<Vec<SamplerKind>, ApiError> {
    let kinds: Vec<Option<SamplerKind>> = match value {
        Value::String(letters) => letters
            .chars()
            .map(|letter| {
                SAMPLERS
                    .iter()
                    .find(|(_, known, _)| *known == letter)
                    .and_then(|(.., kind)| *kind)
            })
            .collect(),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().and_then(sampler))
            .collect(),
        _ => {
            return Err(ApiError::field(
                name,
                "expected an array of names or a string of letters",
            ));
        }
    };
    if kinds.contains(&None) {
        tracing::warn!("`samplers` names samplers that are not available; they are skipped");
    }
    Ok(kinds.into_iter().flatten().collect())
}

/// The name in `generation_settings`.
pub(crate) fn sampler_name(kind: SamplerKind) -> &'static str {
    match SAMPLERS.iter().find(|(.., known)| *known == Some(kind)) {
        Some((names, ..)) => names[0],
        None => "unknown",
    }
}

/// All sampling numbers, as `generation_settings` shows them.
pub(crate) fn sampling_numbers(sampling: &SamplingParams) -> Map<String, Value> {
    let shown = |number: &Number| {
        let value = (number.get)(sampling);
        let value = if number.integer {
            json!(value as i64)
        } else {
            json!(value)
        };
        (number.names[0].to_owned(), value)
    };
    NUMBERS.iter().map(shown).collect()
}

fn is_sampling(name: &str) -> bool {
    NUMBERS.iter().any(|number| number.names.contains(&name))
        || NEUTRAL_ONLY.iter().any(|(known, ..)| *known == name)
}

/// The sampling numbers as properties of a JSON schema.
pub(crate) fn number_schemas() -> Map<String, Value> {
    let mut out = Map::new();
    for number in NUMBERS {
        for name in number.names {
            let kind = if number.integer { "integer" } else { "number" };
            let mut schema = json!({ "type": [kind, "null"] });
            let bounded = |bound: f64| number.hard && bound.abs() < ANY;
            match number.low {
                low if low == f64::from(f32::MIN_POSITIVE) => schema["exclusiveMinimum"] = json!(0),
                low if bounded(low) => schema["minimum"] = json!(low),
                _ => {}
            }
            if bounded(number.high) {
                schema["maximum"] = json!(number.high);
            }
            if !number.hard && number.high < U32 {
                let range = number.range();
                schema["description"] = json!(format!("{range}; the nearest bound beyond it"));
            }
            out.insert((*name).into(), schema);
        }
    }
    out
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

    fn in_range(&self, number: &Number) -> Result<Option<f64>, ApiError> {
        let Some((name, value)) = self.get(number.names) else {
            return Ok(None);
        };
        let found = match number.integer {
            true => whole(value).map(|n| n as f64),
            false => value.as_f64(),
        };
        let wanted = if number.integer {
            "an integer"
        } else {
            "a number"
        };
        let found = found.ok_or_else(|| ApiError::field(name, expected(wanted, value)))?;
        let nearest = found.clamp(number.low, number.high);
        if number.hard && nearest != found {
            return Err(ApiError::field(
                name,
                format!("found {found}, expected {}", number.range()),
            ));
        }
        Ok(Some(nearest))
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

impl Number {
    fn range(&self) -> String {
        match (self.low, self.high) {
            (low, _) if low == f64::from(f32::MIN_POSITIVE) => "more than 0".into(),
            (low, high) if high >= U32 => format!("{low} to {}", high as u64),
            (low, high) => format!("{low} to {high}"),
        }
    }
}

/// Whole numbers, also written as `5.0`; beyond 64 bits the nearest.
fn whole(value: &Value) -> Option<i64> {
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
