//! What is left of the vocabulary, and the stages of the chain that cut it.
//!
//! The vocabulary is never sorted as a whole: top-k keeps a floor while it reads the logits once, the other stages order
//! only as many of the best candidates as they need.

use std::cmp::Ordering;

use super::logits::Logits;
use super::penalties::Change;
use super::{bounded, is_cold};
use crate::protocol::{SamplingParams, TokenProbs};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
}

/// Higher logit first, lower id among equals.
fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The first `n_sorted` are the best ones, best first; the rest is in no particular order.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) items: Vec<Candidate>,
    n_sorted: usize,
}

impl Candidates {
    pub(super) fn take_all(&mut self, logits: &Logits<'_>) {
        self.items.clear();
        self.n_sorted = 0;
        let all = logits.values().iter().enumerate();
        let all = all.map(|(place, &logit)| Candidate {
            token: logits.token(place),
            logit,
        });
        self.items
            .extend(all.filter(|candidate| candidate.logit > f32::NEG_INFINITY));
    }

    /// The `k >= 1` best, in order.
    pub(super) fn take_best(&mut self, logits: &Logits<'_>, k: usize) {
        match logits {
            Logits::All(logits) => self.take_best_of_all(logits, k),
            Logits::Best { .. } => {
                self.take_all(logits);
                self.keep_best(k);
            }
        }
    }

    /// The `k >= 1` best of all, in order. One pass: whatever does not exceed the k-th best so far is skipped by blocks.
    pub(super) fn take_best_of_all(&mut self, logits: &[f32], k: usize) {
        const BLOCK: usize = 64;
        let full = k.saturating_mul(2).max(k.saturating_add(256));
        self.items.clear();
        self.n_sorted = 0;
        // Ids ascend, so a logit equal to the k-th best comes after it: only greater ones matter.
        let mut floor = f32::NEG_INFINITY;
        for (block, first) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            if !block
                .iter()
                .fold(false, |any, &logit| any | (logit > floor))
            {
                continue;
            }
            let all = (first..)
                .zip(block)
                .map(|(token, &logit)| Candidate { token, logit });
            self.items
                .extend(all.filter(|candidate| candidate.logit > floor));
            if self.items.len() >= full {
                self.items.select_nth_unstable_by(k - 1, better);
                self.items.truncate(k);
                floor = self.items[k - 1].logit;
                if floor == 0.0 {
                    // 0 is better than -0.
                    floor = -f32::MIN_POSITIVE;
                }
            }
        }
        self.keep_best(k);
    }

    pub(super) fn keep_best(&mut self, k: usize) {
        self.sort_first(k);
        self.truncate(k);
    }

    fn truncate(&mut self, len: usize) {
        self.items.truncate(len);
        self.n_sorted = self.n_sorted.min(self.items.len());
    }

    /// Makes the first `n` candidates the best `n`, best first.
    fn sort_first(&mut self, n: usize) {
        let n = n.min(self.items.len());
        if n <= self.n_sorted {
            return;
        }
        let rest = &mut self.items[self.n_sorted..];
        let wanted = n - self.n_sorted;
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted - 1, better);
        }
        rest[..wanted].sort_unstable_by(better);
        self.n_sorted = n;
    }

    fn max_logit(&self) -> f32 {
        match self.n_sorted {
            0 => self
                .items
                .iter()
                .fold(f32::NEG_INFINITY, |max, it| max.max(it.logit)),
            _ => self.items[0].logit,
        }
    }

    /// exp(logit - max), and their sum.
    pub(super) fn weights(&self) -> (impl Fn(&Candidate) -> f64 + use<>, f64) {
        let max = f64::from(self.max_logit());
        let weight = move |it: &Candidate| (f64::from(it.logit) - max).exp();
        let sum = self.items.iter().map(weight).sum();
        (weight, sum)
    }

    /// Changes single tokens; `changes` ascend by token.
    pub(super) fn change(&mut self, changes: &[Change], params: &SamplingParams) {
        for candidate in &mut self.items {
            let place = changes.binary_search_by_key(&candidate.token, |change| change.token);
            if let Ok(place) = place {
                candidate.logit = changes[place].apply(candidate.logit, params);
            }
        }
        self.n_sorted = 0;
    }

    /// Replaces the logits, one for each candidate.
    pub(super) fn set_logits(&mut self, logits: impl Iterator<Item = f32>) {
        for (it, logit) in self.items.iter_mut().zip(logits) {
            it.logit = logit;
        }
        self.n_sorted = 0;
    }

    /// The best, at most `n`, best first.
    pub(super) fn best(&mut self, n: usize) -> &[Candidate] {
        self.sort_first(n);
        &self.items[..n.min(self.items.len())]
    }

    /// Top-n-sigma (Tang et al. 2024): keeps the logits from `n` standard deviations below the best one on.
    pub(super) fn top_n_sigma(&mut self, n: f32) {
        if self.items.len() < 2 {
            return;
        }
        let logits = || self.items.iter().map(|it| f64::from(it.logit));
        let len = self.items.len() as f64;
        let mean = logits().sum::<f64>() / len;
        let variance = logits().map(|logit| (logit - mean).powi(2)).sum::<f64>() / len;
        let floor = f64::from(self.max_logit()) - f64::from(n) * variance.sqrt();
        self.items.retain(|it| f64::from(it.logit) >= floor);
        self.n_sorted = 0;
    }

    /// Exclude top choices: of those with at least the probability `threshold` only the least likely stays.
    pub(super) fn xtc(&mut self, threshold: f32, min_keep: usize) {
        let (weight, sum) = self.weights();
        let wanted = f64::from(threshold) * sum;
        let mut n_likely = 0;
        while n_likely < self.items.len() {
            if n_likely == self.n_sorted {
                self.sort_first((4 * n_likely).max(64));
            }
            if weight(&self.items[n_likely]) < wanted {
                break;
            }
            n_likely += 1;
        }
        let excluded = n_likely.saturating_sub(1);
        if self.items.len() - excluded.min(self.items.len()) >= min_keep {
            self.items.drain(..excluded);
            self.n_sorted -= excluded;
        }
    }

    /// Keeps what has at most `bits` of surprise, and the best in any case.
    pub(super) fn keep_unsurprising(&mut self, bits: f64) {
        let (weight, sum) = self.weights();
        let is_kept = |it: &Candidate| -(weight(it) / sum).log2() <= bits;
        let n_kept = self.items.iter().filter(|it| is_kept(it)).count();
        self.keep_best(n_kept.max(1));
    }

    /// The probability of a token among what is left.
    pub(super) fn prob(&self, token: u32) -> f64 {
        let (weight, sum) = self.weights();
        let found = self.items.iter().find(|it| it.token == token);
        found.map_or(0.0, |it| weight(it) / sum)
    }

    /// Keeps the shortest run of the best whose probability reaches `p`.
    pub(super) fn top_p(&mut self, p: f32, min_keep: usize) {
        let (weight, sum) = self.weights();
        let wanted = f64::from(p) * sum;
        let (mut reached, mut n_kept) = (0.0, 0);
        while n_kept < self.items.len() {
            self.sort_first((4 * n_kept).max(64));
            while n_kept < self.n_sorted {
                reached += weight(&self.items[n_kept]);
                n_kept += 1;
                if reached >= wanted && n_kept >= min_keep {
                    return self.truncate(n_kept);
                }
            }
        }
    }

    /// Keeps what is at least `p` times as likely as the best.
    pub(super) fn min_p(&mut self, p: f32, min_keep: usize) {
        let floor = self.max_logit() + p.ln();
        let n_kept = self.items.iter().filter(|it| it.logit >= floor).count();
        if n_kept < min_keep {
            return self.keep_best(min_keep);
        }
        if self.n_sorted >= n_kept {
            return self.truncate(n_kept);
        }
        self.items.retain(|it| it.logit >= floor);
        self.n_sorted = 0;
    }

    /// Locally typical sampling (Meister et al. 2022): keeps the shortest run, ordered by how close its information is to the
    /// entropy, whose probability exceeds `p`.
    pub(super) fn typical(&mut self, p: f32, min_keep: usize) {
        let (weight, sum) = self.weights();
        let log_prob = |it: &Candidate| (weight(it) / sum).max(f64::MIN_POSITIVE).ln();
        let entropy: f64 = self
            .items
            .iter()
            .map(|it| -(weight(it) / sum) * log_prob(it))
            .sum();
        let mut order: Vec<(f64, Candidate)> = Vec::with_capacity(self.items.len());
        order.extend(
            self.items
                .iter()
                .map(|it| ((-log_prob(it) - entropy).abs(), *it)),
        );
        let closer = |a: &(f64, Candidate), b: &(f64, Candidate)| {
            a.0.total_cmp(&b.0).then(better(&a.1, &b.1))
        };
        let (mut reached, mut n_kept, mut n_sorted) = (0.0, 0, 0);
        while n_kept < order.len() {
            if n_kept == n_sorted {
                n_sorted = (4 * n_kept).clamp(64.min(order.len()), order.len());
                let rest = &mut order[n_kept..];
                if n_sorted - n_kept < rest.len() {
                    rest.select_nth_unstable_by(n_sorted - n_kept - 1, closer);
                }
                rest[..n_sorted - n_kept].sort_unstable_by(closer);
            }
            reached += weight(&order[n_kept].1) / sum;
            n_kept += 1;
            if reached > f64::from(p) && n_kept >= min_keep {
                break;
            }
        }
        self.items.clear();
        self.items.extend(order[..n_kept].iter().map(|(_, it)| *it));
        self.n_sorted = 0;
    }

    /// Divides by the temperature; with a dynamic range, by one that grows with the entropy.
    pub(super) fn temperature(&mut self, params: &SamplingParams) {
        let temperature = match params.dynatemp_range > 0.0 && self.items.len() > 1 {
            true => self.dynamic_temperature(params),
            false => params.temperature,
        };
        if is_cold(temperature) {
            return self.keep_best(1);
        }
        // From the best downwards, so that a tiny temperature can't turn the best into an infinity.
        let max = self.max_logit();
        for it in &mut self.items {
            it.logit = bounded((it.logit - max) / temperature);
        }
    }

    fn dynamic_temperature(&self, params: &SamplingParams) -> f32 {
        let lowest = (params.temperature - params.dynatemp_range).max(0.0);
        let highest = params.temperature + params.dynatemp_range;
        let (weight, sum) = self.weights();
        let probs = self.items.iter().map(|it| weight(it) / sum);
        let entropy: f64 = probs.filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
        let share = entropy / (self.items.len() as f64).ln();
        lowest + (highest - lowest) * share.powf(f64::from(params.dynatemp_exponent)) as f32
    }

    /// The candidate in which `u`, from [0, 1), falls when they lie side by side as wide as they are likely.
    pub(super) fn draw(&mut self, u: f64) -> u32 {
        // An order that does not depend on how the candidates were found; a long list is left in the one it has.
        if self.items.len() <= 4096 {
            self.sort_first(self.items.len());
        }
        let (weight, sum) = self.weights();
        let wanted = u * sum;
        let mut reached = 0.0;
        let drawn = self.items.iter().find(|it| {
            reached += weight(it);
            reached > wanted
        });
        drawn.unwrap_or(&self.items[0]).token
    }

    /// Probabilities among what is left; those that round to zero are not listed.
    pub(super) fn probs(&mut self, token: u32, n: usize) -> TokenProbs {
        self.sort_first(n);
        let (weight, sum) = self.weights();
        let log_prob = |it: &Candidate| (weight(it) / sum).ln() as f32;
        let top = self.items[..n.min(self.items.len())].iter();
        let top = top
            .map(|it| (it.token, log_prob(it)))
            .filter(|(_, log_prob)| log_prob.is_finite());
        let chosen = self.items.iter().find(|it| it.token == token);
        TokenProbs {
            logprob: chosen.map_or(f32::MIN, |it| bounded(log_prob(it))),
            top: top.collect(),
        }
    }
}
