//! Chooses the next token from logits: llama-server's sampler chain and defaults, with random numbers that are a function of
//! (seed, position) instead of a running state.
//!
//! Chain: logit bias and `ignore_eos`, then the stages of [`SamplingParams::samplers`] in their order, then one draw.
//! A temperature of 0 or less is greedy: the best token after bias and penalties, the lowest id among equals. Everything is a
//! function of the logits, the tokens before, and the parameters, so a continuation elsewhere draws the same tokens.
//!
//! Sums are f64. The vocabulary is never sorted as a whole: top-k keeps a floor while it reads the logits once, the other
//! stages order only as many of the best candidates as they need.

use std::cmp::Ordering;

use crate::protocol::{SamplerKind, SamplingParams, TokenProbs};

/// Why no token can be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The forward pass produced a NaN or an infinity.
    #[error("the logit of token {token} is not a finite number")]
    NotFinite {
        /// First such token.
        token: u32,
    },
    /// `logit_bias` or `ignore_eos` excludes everything.
    #[error("no token is left to choose from")]
    NothingLeft,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// When `n_probs` asks for it.
    pub probs: Option<TokenProbs>,
}

/// Logits to choose from.
#[derive(Debug)]
pub enum Logits<'a> {
    /// `[n_vocab]`
    All(&'a mut [f32]),
    /// Those of some tokens: at least the ones that a [`Want::Best`] names.
    Best {
        /// Ascending.
        tokens: &'a [u32],
        /// One for each of them.
        logits: &'a mut [f32],
    },
}

/// The logits that choosing a token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want<'a> {
    /// Of the whole vocabulary.
    All,
    /// Of these tokens, and of the `k` best of all others: higher logit first, lower id among equals.
    Best {
        /// At least 1.
        k: usize,
        /// In any order, with repetitions and ids beyond the vocabulary, which don't count.
        also: &'a [u32],
    },
}

/// Samples for one sequence; keeps buffers between tokens.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    eog_tokens: Vec<u32>,
    candidates: Candidates,
    /// Logits changed by bias or penalties, as they were.
    originals: Vec<(u32, f32)>,
    recent: Vec<u32>,
    /// Tokens whose logits bias or penalties may change.
    changeable: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: u32,
    logit: f32,
}

/// Higher logit first, lower id among equals.
fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// What is left of the vocabulary. The first `n_sorted` are the best ones, best first; the rest is in no particular order.
#[derive(Debug, Default)]
struct Candidates {
    items: Vec<Candidate>,
    n_sorted: usize,
}

impl Sampler {
    /// `eog_tokens` are those that `ignore_eos` excludes.
    pub fn new(params: SamplingParams, eog_tokens: Vec<u32>) -> Self {
        Sampler {
            params,
            eog_tokens,
            candidates: Candidates::default(),
            originals: Vec::new(),
            recent: Vec::new(),
            changeable: Vec::new(),
        }
    }

    /// The logits that [`Sampler::choose`] needs after `history`. Tokens whose logits may change are named one by one, so that
    /// of the others the best stay the best.
    pub fn wants(&mut self, history: &[u32]) -> Want<'_> {
        let Some(k) = self.n_best() else {
            return Want::All;
        };
        self.changeable.clear();
        let biased = self.params.logit_bias.iter().map(|&(token, _)| token);
        self.changeable.extend(biased);
        if self.params.ignore_eos {
            self.changeable.extend_from_slice(&self.eog_tokens);
        }
        if has_penalties(&self.params) {
            let n = (self.params.repeat_last_n as usize).min(history.len());
            self.changeable
                .extend_from_slice(&history[history.len() - n..]);
        }
        Want::Best {
            k,
            also: &self.changeable,
        }
    }

    /// How many of the best logits the chain looks at; `None`: at all.
    fn n_best(&self) -> Option<usize> {
        let params = &self.params;
        if params.n_probs > 0 && !params.post_sampling_probs {
            return None;
        }
        if is_cold(params.temperature) {
            return Some(1);
        }
        let mut cuts = params.samplers.iter();
        let first =
            cuts.find(|&&stage| stage != SamplerKind::Penalties && is_active(stage, params));
        let k = (params.top_k as usize).max(params.min_keep as usize);
        (first == Some(&SamplerKind::TopK)).then_some(k)
    }

    /// Chooses the token that follows `history` (prompt and tokens so far). `logits: [n_vocab]` is left changed.
    ///
    /// # Errors
    /// [`SampleError`]; the sampler stays usable.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<Sampled, SampleError> {
        self.choose(&mut Logits::All(logits), history)
    }

    /// The same from no more logits than it [wants](Sampler::wants): gives the token that all of them would give.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn choose(
        &mut self,
        logits: &mut Logits<'_>,
        history: &[u32],
    ) -> Result<Sampled, SampleError> {
        check_finite(logits)?;
        let raw = self.raw_probs(logits);
        self.originals.clear();
        self.apply_bias(logits);
        let greedy = is_cold(self.params.temperature);
        self.run_chain(logits, history, greedy);
        let token = self.draw(history.len() as u64)?;
        let probs = raw.map(|raw| match self.params.post_sampling_probs {
            false => raw.finish(self.original_logit(logits, token)),
            true => self.candidates.probs(token, self.params.n_probs as usize),
        });
        Ok(Sampled { token, probs })
    }

    fn raw_probs(&self, logits: &Logits<'_>) -> Option<RawProbs> {
        let n = self.params.n_probs as usize;
        (n > 0).then(|| {
            RawProbs::new(
                logits.values(),
                if self.params.post_sampling_probs {
                    0
                } else {
                    n
                },
            )
        })
    }

    fn original_logit(&self, logits: &mut Logits<'_>, token: u32) -> f32 {
        let changed = self.originals.iter().find(|(changed, _)| *changed == token);
        match changed {
            Some(&(_, original)) => original,
            None => *logits
                .get_mut(token)
                .expect("the token was chosen from these"),
        }
    }

    fn apply_bias(&mut self, logits: &mut Logits<'_>) {
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token) {
                self.originals.push((token, *logit));
                *logit = if bias <= f32::MIN {
                    f32::NEG_INFINITY
                } else {
                    bounded(*logit + bias)
                };
            }
        }
        if self.params.ignore_eos {
            for &token in &self.eog_tokens {
                if let Some(logit) = logits.get_mut(token) {
                    self.originals.push((token, *logit));
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn run_chain(&mut self, logits: &mut Logits<'_>, history: &[u32], greedy: bool) {
        // Stages before the first cut work on the logits; it turns them into candidates.
        let mut is_cut = false;
        for stage in 0..self.params.samplers.len() {
            let stage = self.params.samplers[stage];
            if stage == SamplerKind::Penalties {
                self.penalize(logits, history, is_cut);
                continue;
            }
            if greedy || !is_active(stage, &self.params) {
                continue;
            }
            let min_keep = self.params.min_keep as usize;
            if stage == SamplerKind::TopK {
                let k = (self.params.top_k as usize).max(min_keep);
                match is_cut {
                    false => self.candidates.take_best(logits, k),
                    true => self.candidates.keep_best(k),
                }
                is_cut = true;
                continue;
            }
            if !is_cut {
                self.candidates.take_all(logits);
                is_cut = true;
            }
            match stage {
                SamplerKind::TypP => self.candidates.typical(self.params.typical_p, min_keep),
                SamplerKind::TopP => self.candidates.top_p(self.params.top_p, min_keep),
                SamplerKind::MinP => self.candidates.min_p(self.params.min_p, min_keep),
                SamplerKind::Temperature => self.candidates.temperature(&self.params),
                SamplerKind::Penalties
                | SamplerKind::TopK
                | SamplerKind::Dry
                | SamplerKind::TopNSigma
                | SamplerKind::Xtc => {}
            }
        }
        if greedy {
            self.candidates.take_best(logits, 1);
        } else if !is_cut {
            self.candidates.take_all(logits);
        }
    }

    /// llama.cpp's formula: divide or multiply by the repeat penalty, then subtract frequency and presence.
    fn penalize(&mut self, logits: &mut Logits<'_>, history: &[u32], is_cut: bool) {
        let SamplingParams {
            repeat_penalty,
            frequency_penalty,
            presence_penalty,
            ..
        } = self.params;
        let n = (self.params.repeat_last_n as usize).min(history.len());
        if n == 0 || !has_penalties(&self.params) {
            return;
        }
        self.recent.clear();
        self.recent.extend_from_slice(&history[history.len() - n..]);
        self.recent.sort_unstable();
        let penalized = |logit: f32, count: usize| {
            let scaled = if logit <= 0.0 {
                logit * repeat_penalty
            } else {
                logit / repeat_penalty
            };
            bounded(scaled - count as f32 * frequency_penalty - presence_penalty)
        };
        if is_cut {
            for candidate in &mut self.candidates.items {
                let before = self
                    .recent
                    .partition_point(|&token| token < candidate.token);
                let upto = self
                    .recent
                    .partition_point(|&token| token <= candidate.token);
                if upto > before {
                    candidate.logit = penalized(candidate.logit, upto - before);
                }
            }
            self.candidates.n_sorted = 0;
            return;
        }
        for run in self.recent.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(run[0]) else {
                continue;
            };
            if *logit > f32::NEG_INFINITY {
                self.originals.push((run[0], *logit));
                *logit = penalized(*logit, run.len());
            }
        }
    }

    fn draw(&mut self, position: u64) -> Result<u32, SampleError> {
        match self.candidates.items[..] {
            [] => Err(SampleError::NothingLeft),
            [only] => Ok(only.token),
            _ => Ok(self.candidates.draw(uniform(self.params.seed, position))),
        }
    }
}

/// Nothing to divide by.
fn is_cold(temperature: f32) -> bool {
    temperature <= 0.0 || temperature.is_nan()
}

fn has_penalties(params: &SamplingParams) -> bool {
    params.repeat_penalty != 1.0
        || params.frequency_penalty != 0.0
        || params.presence_penalty != 0.0
}

fn is_active(stage: SamplerKind, params: &SamplingParams) -> bool {
    match stage {
        SamplerKind::Penalties => true,
        SamplerKind::TopK => params.top_k > 0,
        SamplerKind::Dry | SamplerKind::TopNSigma | SamplerKind::Xtc => false,
        SamplerKind::TypP => params.typical_p < 1.0,
        SamplerKind::TopP => params.top_p < 1.0,
        SamplerKind::MinP => params.min_p > 0.0,
        SamplerKind::Temperature => params.temperature != 1.0 || params.dynatemp_range > 0.0,
    }
}

impl Logits<'_> {
    /// In the order of their tokens.
    fn values(&self) -> &[f32] {
        match self {
            Logits::All(logits) => logits,
            Logits::Best { logits, .. } => logits,
        }
    }

    fn get_mut(&mut self, token: u32) -> Option<&mut f32> {
        match self {
            Logits::All(logits) => logits.get_mut(token as usize),
            Logits::Best { tokens, logits } => {
                let place = tokens.binary_search(&token).ok()?;
                logits.get_mut(place)
            }
        }
    }

    /// The token of the `place`-th value.
    fn token(&self, place: usize) -> u32 {
        match self {
            Logits::All(_) => place as u32,
            Logits::Best { tokens, .. } => tokens[place],
        }
    }
}

impl Candidates {
    fn take_all(&mut self, logits: &Logits<'_>) {
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
    fn take_best(&mut self, logits: &Logits<'_>, k: usize) {
        match logits {
            Logits::All(logits) => self.take_best_of_all(logits, k),
            Logits::Best { .. } => {
                self.take_all(logits);
                self.keep_best(k);
            }
        }
    }

    /// The `k >= 1` best of all, in order. One pass: whatever does not exceed the k-th best so far is skipped by blocks.
    fn take_best_of_all(&mut self, logits: &[f32], k: usize) {
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

    fn keep_best(&mut self, k: usize) {
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
    fn weights(&self) -> (impl Fn(&Candidate) -> f64 + use<>, f64) {
        let max = f64::from(self.max_logit());
        let weight = move |it: &Candidate| (f64::from(it.logit) - max).exp();
        let sum = self.items.iter().map(weight).sum();
        (weight, sum)
    }

    /// Keeps the shortest run of the best whose probability reaches `p`.
    fn top_p(&mut self, p: f32, min_keep: usize) {
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
    fn min_p(&mut self, p: f32, min_keep: usize) {
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
    fn typical(&mut self, p: f32, min_keep: usize) {
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
    fn temperature(&mut self, params: &SamplingParams) {
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
    fn draw(&mut self, u: f64) -> u32 {
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
    fn probs(&mut self, token: u32, n: usize) -> TokenProbs {
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

/// Log-softmax of the logits before any sampler: its normaliser and its best entries.
struct RawProbs {
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl RawProbs {
    fn new(logits: &[f32], n: usize) -> Self {
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

    fn finish(self, logit: f32) -> TokenProbs {
        TokenProbs {
            logprob: (f64::from(logit) - self.log_sum) as f32,
            top: self.top,
        }
    }
}

fn bounded(value: f32) -> f32 {
    value.clamp(f32::MIN, f32::MAX)
}

fn check_finite(logits: &Logits<'_>) -> Result<(), SampleError> {
    // Exponent bits all ones: infinity or NaN. A maximum of integers, because that is one instruction per vector.
    let values = logits.values();
    let largest = values
        .iter()
        .fold(0, |max: u32, logit| max.max(logit.to_bits() & 0x7fff_ffff));
    if largest < f32::INFINITY.to_bits() {
        return Ok(());
    }
    let place = values
        .iter()
        .position(|logit| !logit.is_finite())
        .unwrap_or(0);
    Err(SampleError::NotFinite {
        token: logits.token(place),
    })
}

/// A number in [0, 1) with 53 random bits, a function of its arguments: the finaliser of splitmix64 (Steele, Lea and Flood
/// 2014) over the seed, then over the result and the position.
pub fn uniform(seed: u32, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let stream = mix(u64::from(seed).wrapping_add(1).wrapping_mul(GOLDEN));
    let bits = mix(stream.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use SamplerKind::{MinP, Penalties, Temperature, TopK, TopP, TypP};

    /// Everything off: the whole distribution.
    fn plain() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..SamplingParams::default()
        }
    }

    fn random_logits(n: usize, seed: u32) -> Vec<f32> {
        let gauss = |i: u64| (0..6).map(|j| uniform(seed, 6 * i + j) - 0.5).sum::<f64>();
        (0..n as u64).map(|i| (gauss(i) * 4.0) as f32).collect()
    }

    fn sample(params: &SamplingParams, logits: &[f32], history: &[u32]) -> u32 {
        let mut sampler = Sampler::new(params.clone(), vec![2]);
        sampler.sample(&mut logits.to_vec(), history).unwrap().token
    }

    /// Tokens left after the chain with their probabilities, most likely first.
    fn left(params: &SamplingParams, logits: &[f32], history: &[u32]) -> Vec<(u32, f64)> {
        let mut sampler = Sampler::new(params.clone(), vec![2]);
        let mut logits = logits.to_vec();
        let mut logits = Logits::All(&mut logits);
        sampler.apply_bias(&mut logits);
        sampler.run_chain(&mut logits, history, false);
        let (weight, sum) = sampler.candidates.weights();
        let mut left: Vec<_> = sampler
            .candidates
            .items
            .iter()
            .map(|it| (it.token, weight(it) / sum))
            .collect();
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        left
    }

    /// The textbook version of every cut: sort everything, then walk.
    fn naive(params: &SamplingParams, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut items: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&l| f64::from(l))).collect();
        items.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let softmax = |items: &[(u32, f64)]| {
            let max = items.iter().fold(f64::MIN, |max, it| max.max(it.1));
            let sum: f64 = items.iter().map(|it| (it.1 - max).exp()).sum();
            items
                .iter()
                .map(|it| (it.1 - max).exp() / sum)
                .collect::<Vec<f64>>()
        };
        let min_keep = params.min_keep as usize;
        for stage in &params.samplers {
            let probs = softmax(&items);
            match stage {
                Penalties => {}
                TopK if params.top_k > 0 => items.truncate((params.top_k as usize).max(min_keep)),
                TypP if params.typical_p < 1.0 => {
                    let entropy: f64 = probs.iter().map(|p| -p * p.ln()).sum();
                    let mut order: Vec<usize> = (0..items.len()).collect();
                    order.sort_by(|&a, &b| {
                        let score = |i: usize| (-probs[i].ln() - entropy).abs();
                        score(a).total_cmp(&score(b)).then(a.cmp(&b))
                    });
                    let mut sum = 0.0;
                    let last = order.iter().enumerate().position(|(n, &i)| {
                        sum += probs[i];
                        sum > f64::from(params.typical_p) && n + 1 >= min_keep
                    });
                    order.truncate(last.map_or(order.len(), |last| last + 1));
                    items = order.iter().map(|&i| items[i]).collect();
                    items.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                }
                TopP if params.top_p < 1.0 => {
                    let mut sum = 0.0;
                    let last = probs.iter().enumerate().position(|(n, p)| {
                        sum += p;
                        sum >= f64::from(params.top_p) && n + 1 >= min_keep
                    });
                    items.truncate(last.map_or(items.len(), |last| last + 1));
                }
                MinP if params.min_p > 0.0 => {
                    let n = probs
                        .iter()
                        .filter(|&&p| p >= f64::from(params.min_p) * probs[0])
                        .count();
                    items.truncate(n.max(min_keep));
                }
                Temperature => items
                    .iter_mut()
                    .for_each(|it| it.1 /= f64::from(params.temperature)),
                _ => {}
            }
        }
        let probs = softmax(&items);
        items.iter().zip(probs).map(|(it, p)| (it.0, p)).collect()
    }

    fn assert_same(found: &[(u32, f64)], expected: &[(u32, f64)], what: &str) {
        let by_token = |list: &[(u32, f64)]| {
            let mut list = list.to_vec();
            list.sort_by_key(|it| it.0);
            list
        };
        assert_eq!(found.len(), expected.len(), "{what}");
        for (a, b) in by_token(found).iter().zip(by_token(expected)) {
            assert!(
                a.0 == b.0 && (a.1 - b.1).abs() < 1e-5 * b.1.max(1e-3),
                "{what}: {a:?} instead of {b:?}"
            );
        }
    }

    #[test]
    fn every_stage_equals_the_textbook() {
        let base = plain();
        let cases = [
            SamplingParams {
                top_k: 1,
                ..base.clone()
            },
            SamplingParams {
                top_k: 40,
                ..base.clone()
            },
            SamplingParams {
                top_k: 100_000,
                ..base.clone()
            },
            SamplingParams {
                top_p: 0.0,
                ..base.clone()
            },
            SamplingParams {
                top_p: 0.5,
                ..base.clone()
            },
            SamplingParams {
                top_p: 0.999,
                ..base.clone()
            },
            SamplingParams {
                min_p: 0.05,
                ..base.clone()
            },
            SamplingParams {
                min_p: 1.0,
                ..base.clone()
            },
            SamplingParams {
                typical_p: 0.2,
                ..base.clone()
            },
            SamplingParams {
                typical_p: 0.9,
                ..base.clone()
            },
            SamplingParams {
                temperature: 0.3,
                ..base.clone()
            },
            SamplingParams {
                top_k: 3,
                top_p: 0.1,
                min_p: 0.9,
                typical_p: 0.1,
                min_keep: 9,
                ..base.clone()
            },
            SamplingParams {
                samplers: vec![Temperature, MinP, TypP, TopP, TopK],
                min_p: 0.01,
                top_k: 7,
                ..base.clone()
            },
            SamplingParams::default(),
            SamplingParams {
                typical_p: 0.7,
                top_k: 300,
                ..SamplingParams::default()
            },
        ];
        for (case, params) in cases.iter().enumerate() {
            for (n_vocab, seed) in [(3, 1), (50, 2), (1000, 3), (20_011, 4)] {
                let logits = random_logits(n_vocab, seed);
                let what = format!("case {case}, {n_vocab} tokens, seed {seed}");
                assert_same(&left(params, &logits, &[]), &naive(params, &logits), &what);
            }
        }
    }

    #[test]
    fn equal_logits_go_by_id() {
        let logits = [1.0, 3.0, 3.0, 2.0, 3.0];
        assert_eq!(
            sample(
                &SamplingParams {
                    temperature: 0.0,
                    ..plain()
                },
                &logits,
                &[]
            ),
            1
        );
        let kept = left(
            &SamplingParams {
                top_k: 2,
                ..plain()
            },
            &logits,
            &[],
        );
        assert_eq!(kept.iter().map(|it| it.0).collect::<Vec<_>>(), [1, 2]);
        let many = vec![0.5; 5000];
        let kept = left(
            &SamplingParams {
                top_k: 3,
                ..plain()
            },
            &many,
            &[],
        );
        assert_eq!(kept.iter().map(|it| it.0).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits: Vec<f32> = [0.5f32, 0.2, 0.15, 0.1, 0.05]
            .iter()
            .map(|p| p.ln())
            .collect();
        for seed in [0, 1, 42, u32::MAX] {
            let n = 20_000;
            let mut sampler = Sampler::new(SamplingParams { seed, ..plain() }, Vec::new());
            let mut counts = [0.0f64; 5];
            let history = vec![0; n];
            for position in 0..n {
                let token = sampler
                    .sample(&mut logits.clone(), &history[..position])
                    .unwrap()
                    .token;
                counts[token as usize] += 1.0;
            }
            let expected = [0.5, 0.2, 0.15, 0.1, 0.05].map(|p| p * n as f64);
            let chi2: f64 = counts
                .iter()
                .zip(expected)
                .map(|(c, e)| (c - e).powi(2) / e)
                .sum();
            // 4 degrees of freedom: 23.5 is exceeded once in 10,000.
            assert!(chi2 < 23.5, "seed {seed}: chi2 {chi2}, {counts:?}");
        }
    }

    #[test]
    fn random_numbers_are_even_and_unrelated_between_seeds_and_positions() {
        let mut cells = [[0u32; 16]; 16];
        for seed in 0..256 {
            for position in 0..256 {
                let (a, b) = (uniform(seed, position), uniform(seed + 1, position + 1));
                cells[(a * 16.0) as usize][(b * 16.0) as usize] += 1;
            }
        }
        let expected = 65536.0 / 256.0;
        let chi2: f64 = cells
            .iter()
            .flatten()
            .map(|&c| (f64::from(c) - expected).powi(2) / expected)
            .sum();
        assert!(
            (170.0..350.0).contains(&chi2),
            "chi2 {chi2} at 255 degrees of freedom"
        );
        assert_eq!(uniform(7, 9), uniform(7, 9));
        assert!((0..1000).all(|position| (0.0..1.0).contains(&uniform(1, position))));
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_only() {
        let logits = random_logits(500, 5);
        let params = SamplingParams {
            seed: 11,
            ..SamplingParams::default()
        };
        let history: Vec<u32> = (0..40).collect();
        let mut sampler = Sampler::new(params.clone(), Vec::new());
        let all: Vec<u32> = (0..40)
            .map(|n| {
                sampler
                    .sample(&mut logits.clone(), &history[..n])
                    .unwrap()
                    .token
            })
            .collect();
        assert!(all.iter().any(|&token| token != all[0]));
        for n in [39, 3, 17] {
            assert_eq!(sample(&params, &logits, &history[..n]), all[n]);
        }
    }

    /// What a [`Want`] names, and some more, out of all logits.
    fn wanted(want: Want<'_>, all: &[f32], more: impl Fn(u32) -> bool) -> Option<Vec<u32>> {
        let Want::Best { k, also } = want else {
            return None;
        };
        let mut order: Vec<u32> = (0..all.len() as u32)
            .filter(|token| !also.contains(token))
            .collect();
        let logit = |token: &u32| all[*token as usize];
        order.sort_by(|a, b| logit(b).total_cmp(&logit(a)).then(a.cmp(b)));
        order.truncate(k);
        let mut tokens: Vec<u32> = (0..all.len() as u32).filter(|&token| more(token)).collect();
        tokens.extend(order);
        tokens.extend(also.iter().filter(|&&token| (token as usize) < all.len()));
        tokens.sort_unstable();
        tokens.dedup();
        Some(tokens)
    }

    #[test]
    fn the_logits_it_wants_give_the_token_that_all_would() {
        const N: usize = 900;
        let mut n_best = 0;
        for seed in 0..3000 {
            let draw = |i: u64| uniform(seed, 1_000_000 + i);
            let pick = |i: u64, choices: &[f32]| choices[(draw(i) * choices.len() as f64) as usize];
            let mut samplers = vec![Penalties, TopK, TypP, TopP, MinP, Temperature];
            if draw(0) < 0.3 {
                samplers.rotate_left((draw(1) * 6.0) as usize);
            }
            let id = |i: u64| (draw(i) * 1.1 * N as f64) as u32;
            let params = SamplingParams {
                seed,
                temperature: pick(2, &[0.0, 0.7, 1.0, 1.5]),
                dynatemp_range: pick(3, &[0.0, 0.0, 0.3]),
                top_k: pick(4, &[0.0, 1.0, 5.0, 40.0, 100.0]) as u32,
                top_p: pick(5, &[1.0, 0.95, 0.5]),
                min_p: pick(6, &[0.0, 0.05]),
                typical_p: pick(7, &[1.0, 1.0, 0.8]),
                repeat_last_n: pick(8, &[0.0, 4.0, 64.0]) as u32,
                repeat_penalty: pick(9, &[1.0, 1.0, 1.3, 0.7]),
                frequency_penalty: pick(10, &[0.0, 0.0, 0.5, -0.5]),
                presence_penalty: pick(11, &[0.0, 0.0, 0.5]),
                logit_bias: match draw(12) < 0.5 {
                    true => Vec::new(),
                    false => vec![(id(13), 8.0), (id(14), f32::MIN), (id(15), -3.0)],
                },
                ignore_eos: draw(16) < 0.2,
                n_probs: pick(17, &[0.0, 0.0, 3.0]) as u32,
                post_sampling_probs: draw(18) < 0.8,
                min_keep: pick(19, &[0.0, 0.0, 7.0]) as u32,
                samplers,
                ..SamplingParams::default()
            };
            // Rounded, so that there are equals.
            let all: Vec<f32> = random_logits(N, seed)
                .iter()
                .map(|logit| (logit * 16.0).round() / 16.0)
                .collect();
            let history: Vec<u32> = (0..50).map(|i| (draw(100 + i) * N as f64) as u32).collect();
            let mut sampler = Sampler::new(params.clone(), vec![2, 800]);
            let more = |token: u32| draw(10_000 + u64::from(token)) < 0.01;
            let Some(tokens) = wanted(sampler.wants(&history), &all, more) else {
                continue;
            };
            n_best += 1;
            let mut logits: Vec<f32> = tokens.iter().map(|&token| all[token as usize]).collect();
            let mut some = Logits::Best {
                tokens: &tokens,
                logits: &mut logits,
            };
            let found = sampler.choose(&mut some, &history);
            let expected = sampler.sample(&mut all.clone(), &history);
            assert_eq!(found, expected, "seed {seed}, {params:?}");
        }
        assert!(n_best > 1000, "{n_best} of 3000 need few logits");
    }

    #[test]
    fn who_needs_every_logit_says_so() {
        let of = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            let mut sampler = Sampler::new(params, vec![2]);
            match sampler.wants(&[5, 6, 7]) {
                Want::All => None,
                Want::Best { k, also } => Some((k, also.to_vec())),
            }
        };
        assert_eq!(of(&|_| {}), Some((40, vec![])));
        assert_eq!(of(&|p| p.temperature = 0.0), Some((1, vec![])));
        assert_eq!(of(&|p| p.min_keep = 50), Some((50, vec![])));
        assert_eq!(of(&|p| p.top_k = 0), None);
        assert_eq!(of(&|p| p.n_probs = 1), None);
        assert_eq!(of(&|p| p.samplers = vec![TypP, TopK]), Some((40, vec![])));
        assert_eq!(of(&|p| p.samplers = vec![TopP, TopK]), None);
        assert_eq!(of(&|p| p.samplers = vec![]), None);
        let post = |p: &mut SamplingParams| (p.n_probs, p.post_sampling_probs) = (1, true);
        assert_eq!(of(&post), Some((40, vec![])));
        let bias = |p: &mut SamplingParams| {
            p.logit_bias = vec![(9, 1.0)];
            p.ignore_eos = true;
            p.repeat_penalty = 1.1;
            p.repeat_last_n = 2;
        };
        assert_eq!(of(&bias), Some((40, vec![9, 2, 6, 7])));
    }

    #[test]
    fn penalties_count_what_was_said() {
        let params = SamplingParams {
            repeat_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            repeat_last_n: 4,
            ..plain()
        };
        let before = [2.0, -2.0, 1.0, 0.0];
        let history = [3, 3, 1, 0, 0, 1];
        let apply = |params: &SamplingParams| {
            let mut sampler = Sampler::new(params.clone(), Vec::new());
            let mut logits = before;
            sampler.run_chain(&mut Logits::All(&mut logits), &history, false);
            let mut left = std::mem::take(&mut sampler.candidates.items);
            left.sort_by_key(|it| it.token);
            left.iter().map(|it| it.logit).collect::<Vec<f32>>()
        };
        // Token 3 lies outside the last four.
        let expected = [2.0 / 2.0 - 1.25, -2.0 * 2.0 - 1.25, 1.0, 0.0];
        assert_eq!(apply(&params), expected);
        let late = SamplingParams {
            samplers: vec![TopK, Penalties],
            top_k: 4,
            ..params.clone()
        };
        assert_eq!(apply(&late), expected);
        assert_eq!(
            apply(&SamplingParams {
                repeat_last_n: 0,
                ..params.clone()
            }),
            before
        );
        assert_eq!(
            apply(&SamplingParams {
                samplers: Vec::new(),
                ..params
            }),
            before
        );
    }

    #[test]
    fn extreme_parameters_stay_numbers() {
        let logits = random_logits(100, 6);
        for params in [
            SamplingParams {
                repeat_penalty: 1e-38,
                frequency_penalty: f32::MAX,
                ..plain()
            },
            SamplingParams {
                presence_penalty: f32::MIN,
                frequency_penalty: f32::MIN,
                ..plain()
            },
            SamplingParams {
                temperature: 1e-40,
                ..plain()
            },
            SamplingParams {
                temperature: f32::MAX,
                ..plain()
            },
            SamplingParams {
                logit_bias: vec![(1, f32::MAX), (2, 1e38), (4_000_000_000, 1.0)],
                ..plain()
            },
            SamplingParams {
                top_k: u32::MAX,
                min_keep: u32::MAX,
                top_p: 0.0,
                min_p: 2.0,
                typical_p: 0.0,
                ..plain()
            },
            SamplingParams {
                dynatemp_range: 5.0,
                dynatemp_exponent: 0.0,
                n_probs: 10,
                post_sampling_probs: true,
                ..plain()
            },
        ] {
            let mut sampler = Sampler::new(params.clone(), Vec::new());
            let sampled = sampler.sample(&mut logits.clone(), &[5, 5, 6]).unwrap();
            assert!(sampled.token < 100, "{params:?}");
        }
        let cold = SamplingParams {
            temperature: 1e-40,
            ..plain()
        };
        let greedy = SamplingParams {
            temperature: 0.0,
            ..plain()
        };
        assert_eq!(sample(&cold, &logits, &[]), sample(&greedy, &logits, &[]));
    }

    #[test]
    fn bias_bans_and_forces() {
        let logits = [5.0, 1.0, 4.0, 0.0];
        let greedy = SamplingParams {
            temperature: 0.0,
            ..plain()
        };
        let with = |logit_bias: Vec<(u32, f32)>| SamplingParams {
            logit_bias,
            ..greedy.clone()
        };
        assert_eq!(sample(&with(vec![(3, 5.5)]), &logits, &[]), 3);
        assert_eq!(sample(&with(vec![(0, f32::MIN)]), &logits, &[]), 2);
        let no_eos = SamplingParams {
            ignore_eos: true,
            ..with(vec![(0, f32::MIN)])
        };
        assert_eq!(sample(&no_eos, &logits, &[]), 1);
        let nothing = with((0..4).map(|token| (token, f32::MIN)).collect());
        let mut sampler = Sampler::new(nothing, Vec::new());
        assert_eq!(
            sampler.sample(&mut logits.clone(), &[]),
            Err(SampleError::NothingLeft)
        );
    }

    #[test]
    fn numbers_that_are_not_are_refused() {
        let mut sampler = Sampler::new(SamplingParams::default(), Vec::new());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![0.0; 300];
            logits[257] = bad;
            assert_eq!(
                sampler.sample(&mut logits, &[]),
                Err(SampleError::NotFinite { token: 257 })
            );
        }
        assert!(sampler.sample(&mut [0.0; 300], &[]).is_ok());
    }

    #[test]
    fn raw_probabilities_ignore_the_chain() {
        let logits = random_logits(200, 8);
        let params = SamplingParams {
            n_probs: 5,
            top_k: 1,
            logit_bias: vec![(17, 50.0)],
            ..SamplingParams::default()
        };
        let sampled = Sampler::new(params, Vec::new())
            .sample(&mut logits.clone(), &[])
            .unwrap();
        let all = naive(
            &SamplingParams {
                samplers: Vec::new(),
                ..plain()
            },
            &logits,
        );
        let log_prob = |token: u32| all.iter().find(|it| it.0 == token).unwrap().1.ln() as f32;
        let probs = sampled.probs.unwrap();
        assert_eq!(sampled.token, 17);
        assert!((probs.logprob - log_prob(17)).abs() < 1e-4);
        assert_eq!(probs.top.len(), 5);
        for (found, expected) in probs.top.iter().zip(&all) {
            assert_eq!(found.0, expected.0);
            assert!((found.1 - log_prob(found.0)).abs() < 1e-4);
        }
    }

    #[test]
    fn probabilities_after_the_chain() {
        let params = SamplingParams {
            n_probs: 5,
            post_sampling_probs: true,
            top_k: 3,
            ..plain()
        };
        let mut sampler = Sampler::new(params.clone(), Vec::new());
        let probs = sampler
            .sample(&mut random_logits(200, 8), &[])
            .unwrap()
            .probs
            .unwrap();
        let sum: f32 = probs.top.iter().map(|it| it.1.exp()).sum();
        assert_eq!(probs.top.len(), 3);
        assert!((sum - 1.0).abs() < 1e-5);
        let greedy = SamplingParams {
            temperature: 0.0,
            ..params
        };
        let sampled = Sampler::new(greedy, Vec::new())
            .sample(&mut random_logits(200, 8), &[])
            .unwrap();
        assert_eq!(
            sampled.probs.unwrap(),
            TokenProbs {
                logprob: 0.0,
                top: vec![(sampled.token, 0.0)]
            }
        );
    }

    #[test]
    fn dynamic_temperature_follows_the_entropy() {
        let params = |temperature, dynatemp_range| SamplingParams {
            temperature,
            dynatemp_range,
            ..plain()
        };
        // An even distribution has all the entropy there is, so the highest temperature applies; it stays even.
        let even = left(&params(1.0, 0.5), &[1.0; 4], &[]);
        assert!(even.iter().all(|it| (it.1 - 0.25).abs() < 1e-9));
        // For two tokens: entropy of (0.9, 0.1) over ln 2, computed by hand.
        let logits = [0.9f32.ln(), 0.1f32.ln()];
        let share = (-(0.9f64 * 0.9f64.ln()) - 0.1 * 0.1f64.ln()) / 2f64.ln();
        let expected = left(&params((0.5 + share) as f32, 0.0), &logits, &[]);
        assert_same(
            &left(&params(1.0, 0.5), &logits, &[]),
            &expected,
            "dynatemp",
        );
    }
}
