//! Timings, progress and settings as clients see them.

use bitnet_model::protocol::SamplingParams;
use serde_json::{Map, Value, json};

use crate::constraint;
use crate::generate::{Progress, Timings};
use crate::metrics::ratio;
use crate::model::Model;
use crate::reply::{finite, object};
use crate::request::Params;
use crate::sampling::sampling_numbers;

pub(crate) fn progress_json(progress: &Progress) -> Value {
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
    let mut out = json!({
        "cache_n": timings.cached,
        "prompt_n": timings.prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": ratio(prompt_ms, prompt_n),
        "prompt_per_second": ratio(1e3 * prompt_n, prompt_ms),
        "predicted_n": timings.predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": ratio(predicted_ms, steps),
        "predicted_per_second": ratio(1e3 * steps, predicted_ms),
    });
    if timings.draft_n > 0 {
        out["draft_n"] = timings.draft_n.into();
        out["draft_n_accepted"] = timings.draft_n_accepted.into();
    }
    let n_tokens = (timings.prompt_n + timings.predicted_n) as f64;
    let per_token = timings.joules.map(|joules| ratio(joules, n_tokens));
    for (name, value) in [
        ("cpu_ms", timings.cpu_ms),
        ("joules", timings.joules),
        ("joules_per_token", per_token),
    ] {
        if let Some(value) = value {
            out[name] = finite(value).into();
        }
    }
    out
}

/// What a sampling is made of, as `/slots`, `/props` and `generation_settings` show it.
pub(crate) fn sampling_json(sampling: &SamplingParams) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("seed".into(), json!(sampling.seed));
    out.extend(sampling_numbers(sampling));
    let samplers: Vec<&str> = sampling.samplers.iter().map(|kind| kind.name()).collect();
    let grammar = sampling.grammar.as_ref();
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
        "grammar": constraint::shown(grammar),
        "grammar_lazy": grammar.is_some_and(|grammar| grammar.triggers.is_some()),
        "grammar_triggers": constraint::shown_triggers(grammar),
        "dry_sequence_breakers": sampling.dry_sequence_breakers,
        "tfs_z": 1.0,
        "penalize_nl": false,
    })));
    out
}

/// `generation_settings`: the request's parameters as they were used.
pub(crate) fn settings_json(params: &Params, seed: u32, model: &Model) -> Value {
    let mut out = sampling_json(&params.sampling);
    let max_tokens = params.max_tokens.map_or(-1, i64::from);
    let draft_max = params.draft_max.unwrap_or(usize::MAX);
    let draft_max = draft_max.min(model.card.draft_max);
    out.extend(object(json!({
        "n_predict": max_tokens,
        "max_tokens": max_tokens,
        "seed": seed,
        "seed_cur": seed,
        "stop": params.stop,
        "n_keep": params.n_keep,
        "n_discard": 0,
        "stream": params.stream,
        "preserved_tokens": [],
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": false,
        "generation_prompt": "",
        "speculative.types": match draft_max {
            0 => "none",
            _ => "ngram-simple",
        },
        "speculative.n_max": draft_max,
        "timings_per_token": params.timings_per_token,
        "backend_sampling": false,
        "lora": [],
        "cache_prompt": params.cache_prompt,
        "n_ctx": model.card.slot_context,
        "model": model.id,
    })));
    Value::Object(out)
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
            cpu_ms: Some(150.0),
            joules: Some(1.8),
            draft_n: 3,
            draft_n_accepted: 2,
        };
        let json = timings_json(&timings);
        assert_eq!(json["predicted_per_second"], 50.0);
        assert_eq!(json["predicted_per_token_ms"], 20.0);
        assert_eq!(json["prompt_per_second"], 200.0);
        assert_eq!(json["cpu_ms"], 150.0);
        assert_eq!(
            (&json["joules"], &json["joules_per_token"]),
            (&json!(1.8), &json!(0.2))
        );
        assert_eq!(
            (&json["draft_n"], &json["draft_n_accepted"]),
            (&json!(3), &json!(2))
        );
        let one = timings_json(&Timings {
            predicted_n: 1,
            ..Timings::default()
        });
        assert_eq!(
            (&one["predicted_per_second"], &one["predicted_per_token_ms"]),
            (&json!(0.0), &json!(0.0))
        );
        // What nobody measured is not there.
        for name in [
            "cpu_ms",
            "joules",
            "joules_per_token",
            "draft_n",
            "draft_n_accepted",
        ] {
            assert_eq!(one.get(name), None);
        }
    }
}
