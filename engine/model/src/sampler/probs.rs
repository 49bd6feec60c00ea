//! Probabilities before any sampler, for `n_probs`.

use super::candidates::Candidates;
use crate::protocol::TokenProbs;

/// How likely `token` is by these logits, and the `n` best; `None` when they are not all numbers.
pub fn token_probs(logits: &[f32], token: u32, n: usize) -> Option<TokenProbs> {
    let logit = *logits.get(token as usize)?;
    let raw = RawProbs::new(logits, n.max(1));
    let mut probs = raw.finish(logit);
    probs.top.truncate(n);
    logits.iter().all(|it| it.is_finite()).then_some(probs)
}

/// Log-softmax of the logits before any sampler: its normaliser and its best entries.
pub(super) struct RawProbs {
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl RawProbs {
    pub(super) fn new(logits: &[f32], n: usize) -> Self {
        if n == 0 {
            return RawProbs {
                log_sum: 0.0,
                top: Vec::new(),
            };
        }
        let max = f64::from(
            logits
                .iter()
                .fold(f32::NEG_INFINITY, |max, &logit| max.max(logit)),
        );
        let sum: f64 = logits
            .iter()
            .map(|&logit| (f64::from(logit) - max).exp())
            .sum();
        let log_sum = max + sum.ln();
        let mut best = Candidates::default();
        best.take_best_of_all(logits, n);
        let top = best
            .items
            .iter()
            .map(|it| (it.token, (f64::from(it.logit) - log_sum) as f32));
        RawProbs {
            log_sum,
            top: top.collect(),
        }
    }

    pub(super) fn finish(self, logit: f32) -> TokenProbs {
        TokenProbs {
            logprob: (f64::from(logit) - self.log_sum) as f32,
            top: self.top,
        }
    }
}
