//! How a client wants tokens chosen: sampling parameters, their names, ranges and defaults.

use bitnet_model::protocol::{SamplerKind, SamplingParams};
use rand::Rng;
use serde_json::{Map, Value, json};

use crate::config::ServerConfig;
use crate::constraint::{self, Asked};
use crate::error::ApiError;
use crate::model::Model;
use crate::request::{Dialect, Fields, expected, whole};

/// Alternatives reported per token, at most.
const MAX_PROBS: u32 = 1000;
/// Sequence breakers of DRY, and their bytes in all.
const MAX_BREAKERS: usize = 64;
const MAX_BREAKER_BYTES: usize = 4 << 10;

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

fn look_back(n: u32) -> f64 {
    match n {
        u32::MAX => -1.0,
        n => f64::from(n),
    }
}

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
        get: |s| look_back(s.repeat_last_n),
        set: |s, value| s.repeat_last_n = if value < 0.0 { u32::MAX } else { value as u32 },
    },
    number!(["repeat_penalty"], f32::MIN_POSITIVE as f64, ANY, hard, f32 repeat_penalty),
    number!(["frequency_penalty"], -ANY, ANY, hard, f32 frequency_penalty),
    number!(["presence_penalty"], -ANY, ANY, hard, f32 presence_penalty),
    number!(["top_n_sigma"], -ANY, ANY, clamp, f32 top_n_sigma),
    number!(["xtc_probability"], 0.0, 1.0, clamp, f32 xtc_probability),
    number!(["xtc_threshold"], 0.0, 1.0, clamp, f32 xtc_threshold),
    number!(["dry_multiplier"], 0.0, ANY, clamp, f32 dry_multiplier),
    // A base that would reward repetition means the default.
    Number {
        names: &["dry_base"],
        low: -ANY,
        high: ANY,
        hard: false,
        integer: false,
        get: |s| f64::from(s.dry_base),
        set: |s, value| {
            s.dry_base = match value >= 1.0 {
                true => value as f32,
                false => SamplingParams::default().dry_base,
            };
        },
    },
    number!(["dry_allowed_length"], 0.0, U32, clamp, u32 dry_allowed_length),
    // As `repeat_last_n`.
    Number {
        names: &["dry_penalty_last_n"],
        low: -1.0,
        high: U32,
        hard: true,
        integer: true,
        get: |s| look_back(s.dry_penalty_last_n),
        set: |s, value| s.dry_penalty_last_n = if value < 0.0 { u32::MAX } else { value as u32 },
    },
    number!(["mirostat"], 0.0, 2.0, hard, u32 mirostat),
    number!(["mirostat_tau"], -ANY, ANY, clamp, f32 mirostat_tau),
    number!(["mirostat_eta"], -ANY, ANY, clamp, f32 mirostat_eta),
    // Negative is off.
    number!(["adaptive_target"], -ANY, 1.0, clamp, f32 adaptive_target),
    number!(["adaptive_decay"], 0.0, 0.99, hard, f32 adaptive_decay),
    number!(["min_keep"], 0.0, U32, hard, u32 min_keep),
];

/// Reads all of it; a grammar is checked.
///
/// # Errors
/// 400 naming the field.
pub(crate) fn read(
    fields: &Fields<'_>,
    dialect: Dialect,
    config: &ServerConfig,
    model: &Model,
) -> Result<SamplingParams, ApiError> {
    let mut sampling = config.sampling.clone();
    for number in NUMBERS {
        if let Some(value) = number.in_range(fields)? {
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
    if let Some(breakers) = fields.strings("dry_sequence_breakers")? {
        sampling.dry_sequence_breakers = read_breakers(breakers)?;
    }
    match constraint::read(fields)? {
        Asked::Nothing => {}
        Asked::Free => sampling.grammar = None,
        Asked::Bound(name, grammar) => {
            constraint::check(name, &grammar, model)?;
            sampling.grammar = Some(grammar);
        }
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

/// Names, or letters as in `--sampling-seq`; unknown ones are skipped.
fn read_samplers(name: &str, value: &Value) -> Result<Vec<SamplerKind>, ApiError> {
    let wanted = "an array of names or a string of letters";
    let kinds: Vec<Option<SamplerKind>> = match value {
        Value::String(letters) => letters.chars().map(SamplerKind::by_letter).collect(),
        Value::Array(items) => {
            let read = |item: &Value| match item.as_str() {
                Some(name) => Ok(SamplerKind::by_name(name)),
                None => Err(ApiError::field(name, expected("names of samplers", item))),
            };
            items.iter().map(read).collect::<Result<_, _>>()?
        }
        other => return Err(ApiError::field(name, expected(wanted, other))),
    };
    if kinds.contains(&None) {
        tracing::warn!("`samplers` names samplers that are not available; they are skipped");
    }
    Ok(kinds.into_iter().flatten().collect())
}

fn read_breakers(breakers: Vec<String>) -> Result<Vec<String>, ApiError> {
    let bytes: usize = breakers.iter().map(String::len).sum();
    let problem = if breakers.is_empty() {
        "found an empty array, expected strings; `dry_multiplier` 0 switches DRY off".to_owned()
    } else if breakers.len() > MAX_BREAKERS || bytes > MAX_BREAKER_BYTES {
        format!("at most {MAX_BREAKERS} strings of {MAX_BREAKER_BYTES} bytes in all are allowed")
    } else {
        return Ok(breakers);
    };
    Err(ApiError::field("dry_sequence_breakers", problem))
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

/// Whether a sampling number has this name.
pub(crate) fn is_number(name: &str) -> bool {
    NUMBERS.iter().any(|number| number.names.contains(&name))
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

impl Number {
    fn in_range(&self, fields: &Fields<'_>) -> Result<Option<f64>, ApiError> {
        let Some((name, value)) = fields.get(self.names) else {
            return Ok(None);
        };
        let found = match self.integer {
            true => whole(value).map(|n| n as f64),
            false => value.as_f64(),
        };
        let wanted = if self.integer {
            "an integer"
        } else {
            "a number"
        };
        let found = found.ok_or_else(|| ApiError::field(name, expected(wanted, value)))?;
        let nearest = found.clamp(self.low, self.high);
        if self.hard && nearest != found {
            return Err(ApiError::field(
                name,
                format!("found {found}, expected {}", self.range()),
            ));
        }
        Ok(Some(nearest))
    }

    fn range(&self) -> String {
        match (self.low, self.high) {
            (low, _) if low == f64::from(f32::MIN_POSITIVE) => "more than 0".into(),
            (low, high) if high >= U32 => format!("{low} to {}", high as u64),
            (low, high) => format!("{low} to {high}"),
        }
    }
}
