//! Mirostat 1 and 2 (Basu et al. 2020): a limit of surprise that follows a target. It takes the place of the chain.
//!
//! The limit after a token depends on that token's probability, which can't be had again from tokens alone; so it is sent
//! with every token and comes back with a continuation.

use super::candidates::Candidates;
use crate::protocol::{MirostatMu, SamplingParams};

/// Candidates from which version 1 estimates how steeply probabilities fall.
const ESTIMATED_FROM: usize = 100;

/// The limit that the next token meets.
pub(super) fn mu(params: &SamplingParams, carried: Option<MirostatMu>) -> f32 {
    match carried {
        Some(MirostatMu(bits)) => f32::from_bits(bits),
        None => 2.0 * params.mirostat_tau,
    }
}

/// Keeps what version `params.mirostat` keeps at the limit `mu`; at least the best. `candidates` are all of the vocabulary
/// of `n_vocab`.
pub(super) fn cut(params: &SamplingParams, mu: f32, n_vocab: usize, candidates: &mut Candidates) {
    match params.mirostat {
        1 => {
            let k = kept_by_zipf(f64::from(mu), n_vocab, candidates);
            candidates.keep_best(k);
        }
        _ => candidates.keep_unsurprising(f64::from(mu)),
    }
}

/// How many of the best have, under Zipf's law with the exponent estimated here, at most the surprise `mu`.
fn kept_by_zipf(mu: f64, n_vocab: usize, candidates: &mut Candidates) -> usize {
    let best = candidates.best(ESTIMATED_FROM);
    let (mut products, mut squares) = (0.0, 0.0);
    for (i, pair) in best.windows(2).enumerate() {
        let t = ((i + 2) as f64 / (i + 1) as f64).ln();
        let b = f64::from(pair[0].logit) - f64::from(pair[1].logit);
        products += t * b;
        squares += t * t;
    }
    let s = products / squares;
    let epsilon = s - 1.0;
    let k = (epsilon * mu.exp2() / (1.0 - (n_vocab as f64).powf(-epsilon))).powf(1.0 / s);
    // Not a number, when there is one candidate or all are alike: 0.
    (k as usize).max(1)
}

/// The limit after a token of this probability (among what was left).
pub(super) fn next(params: &SamplingParams, mu: f32, prob: f64) -> MirostatMu {
    let surprise = -(prob.max(f64::MIN_POSITIVE).log2()) as f32;
    let next = mu - params.mirostat_eta * (surprise - params.mirostat_tau);
    MirostatMu(if next.is_finite() { next } else { mu }.to_bits())
}
