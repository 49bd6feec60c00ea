//! Adaptive sampling (llama.cpp's `adaptive_p`): prefers tokens near a probability, and moves that probability so that those of
//! the chosen tokens come to the target on average.
//!
//! What is left behind the chain gets new logits, highest where a token's probability is the wanted one: a parabola near it,
//! straight lines further away. The state is the decaying sum of the chosen tokens' probabilities; the sum of the weights
//! in it begins at its limit 1 / (1 - decay) and stays there.

use super::candidates::{Candidate, Candidates};
use crate::protocol::{MirostatMu, SamplerKind, SamplingParams};

/// Probability over which preference falls from its peak.
const WIDTH: f64 = 0.3;
/// Logit of a token at the wanted probability.
const PEAK: f64 = 5.0;
/// How steeply logits fall away from it.
const SHARPNESS: f64 = 10.0;
const MOST_DECAY: f64 = 0.99;

/// Whether the request asks for it.
pub(super) fn is_asked_for(params: &SamplingParams) -> bool {
    params.adaptive_target >= 0.0 && params.samplers.contains(&SamplerKind::AdaptiveP)
}

/// What was left, with its probabilities before it was changed.
pub(super) struct Likely(Vec<(u32, f64)>);

/// Gives what is left new logits.
pub(super) fn adapt(
    params: &SamplingParams,
    carried: Option<MirostatMu>,
    candidates: &mut Candidates,
) -> Likely {
    let (weight, all) = candidates.weights();
    let prob = |it: &Candidate| weight(it) / all;
    let likely = candidates.items.iter().map(|it| (it.token, prob(it)));
    let likely: Vec<(u32, f64)> = likely.collect();
    let wanted = wanted(params, carried);
    candidates.set_logits(likely.iter().map(|(_, prob)| {
        let distance = ((prob - wanted) / WIDTH).abs();
        (PEAK - SHARPNESS * distance * distance / (1.0 + distance)) as f32
    }));
    Likely(likely)
}

impl Likely {
    /// The state after `token`.
    pub(super) fn next(
        &self,
        params: &SamplingParams,
        carried: Option<MirostatMu>,
        token: u32,
    ) -> MirostatMu {
        let chosen = self.0.iter().find(|(it, _)| *it == token);
        let prob = chosen.map_or(0.0, |(_, prob)| *prob);
        let sum = prob + decay(params) * sum(params, carried);
        MirostatMu((sum as f32).to_bits())
    }
}

/// The probability that makes up for those of the tokens before.
fn wanted(params: &SamplingParams, carried: Option<MirostatMu>) -> f64 {
    let mean = sum(params, carried) * (1.0 - decay(params));
    (2.0 * target(params) - mean).clamp(0.0, 1.0)
}

fn sum(params: &SamplingParams, carried: Option<MirostatMu>) -> f64 {
    match carried {
        Some(MirostatMu(bits)) => f64::from(f32::from_bits(bits)),
        None => target(params) / (1.0 - decay(params)),
    }
}

fn target(params: &SamplingParams) -> f64 {
    f64::from(params.adaptive_target).clamp(0.0, 1.0)
}

fn decay(params: &SamplingParams) -> f64 {
    f64::from(params.adaptive_decay).clamp(0.0, MOST_DECAY)
}
