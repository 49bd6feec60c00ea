//! How surprised a model is by a text: llama.cpp's measure, chunk by chunk, so that numbers can be compared.
//!
//! The tokens are cut into chunks of `n_ctx`, a rest is left out. The first token of a chunk is replaced by BOS where the
//! tokenizer puts one. Each chunk is evaluated from an empty cache; the predictions made at positions `n_ctx / 2` to `n_ctx - 2` are
//! scored. Same model, text and `n_ctx`, same number, whatever the threads, the kernel or the batch.

use crate::engine::Engine;
use crate::graph::Entry;

/// Most predictions computed in one pass.
pub const SCORED_BATCH: usize = 64;
/// Fewest tokens of a chunk.
pub const MIN_CONTEXT: usize = 8;

/// Negative log-likelihoods so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scores {
    /// Predictions scored.
    pub n_scored: usize,
    /// Chunks evaluated.
    pub n_chunks: usize,
    sum: f64,
    sum_squares: f64,
}

/// Why a chunk has no score.
#[derive(Debug, thiserror::Error)]
#[error("the logits behind token {position} of chunk {chunk} are not numbers")]
pub struct NotNumbers {
    chunk: usize,
    position: usize,
}

impl Scores {
    /// Their exponential mean.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Standard error of [`Scores::perplexity`]; 0 for a single score.
    pub fn error(&self) -> f64 {
        let n = self.n_scored as f64;
        let variance = self.sum_squares / n - self.mean() * self.mean();
        if self.n_scored < 2 || variance <= 0.0 {
            return 0.0;
        }
        (variance / (n - 1.0)).sqrt() * self.perplexity()
    }

    fn mean(&self) -> f64 {
        self.sum / self.n_scored as f64
    }

    fn add(&mut self, nll: f64) {
        self.n_scored += 1;
        self.sum += nll;
        self.sum_squares += nll * nll;
    }
}

/// Chunks of `n_ctx` in a text of `n_tokens`.
pub fn n_chunks(n_tokens: usize, n_ctx: usize) -> usize {
    n_tokens / n_ctx
}

/// Scores the next chunk of `tokens`, which has at least [`MIN_CONTEXT`]; `bos` takes the place of its first token.
/// The engine's first slot is used; it must hold the chunk, and the engine must be loaded with room for
/// [`SCORED_BATCH`] logits.
///
/// # Errors
/// When a prediction is not a number.
pub fn score_chunk(
    engine: &mut Engine,
    tokens: &[u32],
    bos: Option<u32>,
    scores: &mut Scores,
) -> Result<(), NotNumbers> {
    let n_ctx = tokens.len();
    let first = n_ctx / 2;
    let entry = |position: usize| Entry {
        slot: 0,
        token: bos.filter(|_| position == 0).unwrap_or(tokens[position]),
        wants_logits: position >= first,
    };
    engine.kv_mut().truncate(0, 0);
    let longest = engine.prefill_batch();
    let mut position = 0;
    // The last token predicts nothing that is scored.
    while position + 1 < n_ctx {
        let end = match position < first {
            true => first.min(position + longest),
            false => (n_ctx - 1).min(position + longest.min(SCORED_BATCH)),
        };
        let batch: Vec<Entry> = (position..end).map(entry).collect();
        let n_vocab = engine.model().n_vocab();
        let logits = engine.forward(&batch).chunks_exact(n_vocab);
        for (place, logits) in (position.max(first)..).zip(logits) {
            let nll = surprise(logits, tokens[place + 1]);
            if !nll.is_finite() {
                let chunk = scores.n_chunks;
                return Err(NotNumbers {
                    chunk,
                    position: place,
                });
            }
            scores.add(nll);
        }
        position = end;
    }
    scores.n_chunks += 1;
    Ok(())
}

/// Minus the logarithm of a token's probability.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let below = |logit: f32| f64::from(logit) - f64::from(largest);
    let sum: f64 = logits.iter().map(|&logit| below(logit).exp()).sum();
    sum.ln() - below(logits[token as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_minus_the_log_of_the_softmax() {
        let logits = [1.0, 2.0, 900.0, 899.0];
        let e = std::f64::consts::E;
        assert!((surprise(&logits, 2) - (1.0 + 1.0 / e).ln()).abs() < 1e-12);
        assert!((surprise(&logits, 3) - (1.0 + e).ln()).abs() < 1e-12);
        assert!(surprise(&[f32::NAN, 1.0], 1).is_nan());
    }

    #[test]
    fn mean_and_standard_error() {
        let mut scores = Scores::default();
        [1.0, 2.0, 3.0].into_iter().for_each(|nll| scores.add(nll));
        assert!((scores.perplexity() - 2f64.exp()).abs() < 1e-12);
        // Variance 2/3 over 2, of the mean.
        let error = (1f64 / 3.0).sqrt() * 2f64.exp();
        assert!((scores.error() - error).abs() < 1e-9);
    }
}
