//! Chooses the next token from logits: llama-server's sampler chain and defaults, with random numbers that are a function of
//! (seed, position) instead of a running state.
//!
//! Chain: logit bias and `ignore_eos`, then the stages of [`SamplingParams::samplers`] in their order, then one draw.
//! Mirostat takes the place of the stages, temperature excepted; adaptive sampling comes behind them. A temperature of 0 or less is greedy: the best token after
//! bias and penalties, the lowest id among equals. Everything is a function of the logits, the tokens before, the parameters
//! and [`Carried`], so a continuation elsewhere draws the same tokens.
//!
//! With a grammar: a token is drawn without it and checked; if it is refused, one is drawn from what the grammar allows, by
//! the same chain and with a random number of its own ([`Sampler::draw`]).
//!
//! Sums are f64.

mod adaptive;
mod candidates;
mod logits;
mod mirostat;
mod penalties;
mod probs;
mod random;

use std::sync::Arc;

use crate::grammar::{Constraint, GrammarError};
use crate::protocol::{Carried, MirostatMu, SamplerKind, SamplingParams, TokenProbs};
use candidates::Candidates;
pub use logits::{Logits, TokenSet, Want};
pub use penalties::Breakers;
use penalties::{Change, has_dry, has_penalties};
use probs::RawProbs;
pub use probs::token_probs;
pub use random::uniform;
use random::{Purpose, uniform_for};

/// Why no token can be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The forward pass produced a NaN or an infinity.
    #[error("the logit of token {token} is not a finite number")]
    NotFinite {
        /// First such token.
        token: u32,
    },
    /// `logit_bias` or `ignore_eos` excludes everything that the grammar, if there is one, allows.
    #[error(
        "no token is left to choose from: `logit_bias`, `ignore_eos` or the grammar exclude them all"
    )]
    NothingLeft,
    /// The grammar can't go on.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// When `n_probs` asks for it.
    pub probs: Option<TokenProbs>,
    /// With mirostat or adaptive sampling: its state from here on.
    pub mirostat_mu: Option<MirostatMu>,
}

/// Samples for one sequence; keeps buffers between tokens.
pub struct Sampler {
    params: SamplingParams,
    eog_tokens: Vec<u32>,
    constraint: Option<Constraint>,
    breakers: Arc<Breakers>,
    mirostat_mu: Option<MirostatMu>,
    candidates: Candidates,
    /// Logits changed by bias or penalties, as they were.
    originals: Vec<(u32, f32)>,
    recent: Vec<u32>,
    changes: Vec<Change>,
    /// Tokens whose logits bias or penalties may change.
    changeable: Vec<u32>,
}

impl Sampler {
    /// `eog_tokens` are those that `ignore_eos` excludes.
    pub fn new(params: SamplingParams, eog_tokens: Vec<u32>) -> Self {
        Sampler {
            params,
            eog_tokens,
            constraint: None,
            breakers: Arc::default(),
            mirostat_mu: None,
            candidates: Candidates::default(),
            originals: Vec::new(),
            recent: Vec::new(),
            changes: Vec::new(),
            changeable: Vec::new(),
        }
    }

    /// With the token sequences across which DRY sees no repetition.
    pub fn with_breakers(self, breakers: Arc<Breakers>) -> Self {
        Sampler { breakers, ..self }
    }

    /// Bound to a grammar, in the state that the answer so far has brought it to.
    pub fn with_constraint(self, constraint: Option<Constraint>) -> Self {
        Sampler { constraint, ..self }
    }

    /// Goes on where another sampler stopped; the constraint is brought there by its maker.
    pub fn resume(self, carried: &Carried) -> Self {
        let mirostat_mu = carried.mirostat_mu;
        Sampler {
            mirostat_mu,
            ..self
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
        for stage in [SamplerKind::Penalties, SamplerKind::Dry] {
            if !self.has_mirostat() && self.params.samplers.contains(&stage) {
                self.find_changes(stage, history);
                let changed = self.changes.iter().map(|change| change.token);
                self.changeable.extend(changed);
            }
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
        if self.has_mirostat() {
            return None;
        }
        let mut cuts = params.samplers.iter();
        let first = cuts.find(|&&stage| !is_change(stage) && is_active(stage, params));
        let k = (params.top_k as usize).max(params.min_keep as usize);
        (first == Some(&SamplerKind::TopK)).then_some(k)
    }

    fn has_mirostat(&self) -> bool {
        self.params.mirostat > 0
    }

    /// Chooses the token that follows `history` (prompt and tokens so far). `logits: [n_vocab]` is left changed.
    ///
    /// # Errors
    /// [`SampleError`]; the sampler stays usable.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<Sampled, SampleError> {
        self.choose(&mut Logits::All(logits), history)
    }

    /// The same from no more logits than it [wants](Sampler::wants): gives the token that all of them would give. With a
    /// grammar only from all of them; see [`Sampler::draw`].
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn choose(
        &mut self,
        logits: &mut Logits<'_>,
        history: &[u32],
    ) -> Result<Sampled, SampleError> {
        match self.draw(logits, history)? {
            Some(sampled) => Ok(sampled),
            None => self.draw_allowed(logits, history),
        }
    }

    /// Draws a token as if there were no grammar and lets the grammar judge it. `None`: it refuses;
    /// [`Sampler::draw_allowed`] must follow.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn draw(
        &mut self,
        logits: &mut Logits<'_>,
        history: &[u32],
    ) -> Result<Option<Sampled>, SampleError> {
        let drawn = self.draw_one(logits, history, [Purpose::Draw, Purpose::Xtc], false);
        let Some(constraint) = &mut self.constraint else {
            return drawn.map(|sampled| Some(self.take(sampled)));
        };
        let is_allowed = match &drawn {
            Ok(sampled) => constraint.allows(sampled.token)?,
            // What is left may be left to the grammar's choice.
            Err(SampleError::NothingLeft) => false,
            Err(error) => return Err(error.clone()),
        };
        if !is_allowed {
            self.restore(logits);
            return Ok(None);
        }
        let sampled = drawn?;
        constraint.accept(sampled.token)?;
        Ok(Some(self.take(sampled)))
    }

    /// The token that the grammar leaves no choice about, where drawing it would tell nothing more: then its logits are not
    /// needed, nor any others.
    pub fn forced(&mut self) -> Option<u32> {
        let params = &self.params;
        let tells_more =
            params.n_probs > 0 || self.has_mirostat() || adaptive::is_asked_for(params);
        let constraint = self.constraint.as_mut().filter(|_| !tells_more)?;
        // An error comes again when the token is drawn.
        let token = constraint.forced().ok()??;
        let bias = params.logit_bias.iter();
        let is_excluded = bias
            .clone()
            .any(|&(it, bias)| it == token && bias <= f32::MIN);
        (!is_excluded).then_some(token)
    }

    /// Goes on by a token that was [forced](Sampler::forced).
    ///
    /// # Errors
    /// When the grammar is too much work.
    pub fn take_forced(&mut self, token: u32) -> Result<Sampled, SampleError> {
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        Ok(Sampled {
            token,
            probs: None,
            mirostat_mu: None,
        })
    }

    /// What [`Sampler::draw_allowed`] needs: of these tokens, no more logits than this.
    ///
    /// # Errors
    /// When the grammar is too much work.
    pub fn wants_allowed(
        &mut self,
        history: &[u32],
    ) -> Result<Option<(Want<'_>, &TokenSet)>, SampleError> {
        let k = self.n_best();
        self.wants(history);
        let want = match k {
            Some(k) => Want::Best {
                k,
                also: &self.changeable,
            },
            None => Want::All,
        };
        match &mut self.constraint {
            Some(constraint) => Ok(Some((want, constraint.allowed()?))),
            None => Ok(None),
        }
    }

    /// Draws from what the grammar allows; `logits` are at least those it [wants](Sampler::wants) of these tokens.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn draw_allowed(
        &mut self,
        logits: &mut Logits<'_>,
        history: &[u32],
    ) -> Result<Sampled, SampleError> {
        let purposes = [Purpose::Redraw, Purpose::RedrawXtc];
        let sampled = self.draw_one(logits, history, purposes, true)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(sampled.token)?;
        }
        Ok(self.take(sampled))
    }

    fn take(&mut self, sampled: Sampled) -> Sampled {
        self.mirostat_mu = sampled.mirostat_mu;
        sampled
    }

    fn draw_one(
        &mut self,
        logits: &mut Logits<'_>,
        history: &[u32],
        [draw, xtc]: [Purpose; 2],
        only_allowed: bool,
    ) -> Result<Sampled, SampleError> {
        logits.check_finite()?;
        let raw = self.raw_probs(logits);
        self.originals.clear();
        if let (true, Some(constraint)) = (only_allowed, &mut self.constraint) {
            logits.keep_only(constraint.allowed()?);
        }
        self.apply_bias(logits);
        let (seed, position) = (self.params.seed, history.len() as u64);
        let is_greedy = is_cold(self.params.temperature);
        if self.has_mirostat() {
            self.run_mirostat(logits, is_greedy);
        } else {
            let xtc_acts =
                uniform_for(xtc, seed, position) <= f64::from(self.params.xtc_probability);
            self.run_chain(logits, history, is_greedy, xtc_acts);
        }
        let likely = self.adapt();
        let token = match self.candidates.items[..] {
            [] => return Err(SampleError::NothingLeft),
            [only] => only.token,
            _ => self.candidates.draw(uniform_for(draw, seed, position)),
        };
        let mirostat_mu = match likely {
            Some(likely) => Some(likely.next(&self.params, self.mirostat_mu, token)),
            None => self.has_mirostat().then(|| {
                let mu = mirostat::mu(&self.params, self.mirostat_mu);
                mirostat::next(&self.params, mu, self.candidates.prob(token))
            }),
        };
        let probs = raw.map(|raw| match self.params.post_sampling_probs {
            false => raw.finish(self.original_logit(logits, token)),
            true => self.candidates.probs(token, self.params.n_probs as usize),
        });
        Ok(Sampled {
            token,
            probs,
            mirostat_mu,
        })
    }

    fn raw_probs(&self, logits: &Logits<'_>) -> Option<RawProbs> {
        let n = self.params.n_probs as usize;
        let is_raw = !self.params.post_sampling_probs;
        (n > 0).then(|| RawProbs::new(logits.values(), if is_raw { n } else { 0 }))
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

    /// Takes back what bias and penalties did.
    fn restore(&mut self, logits: &mut Logits<'_>) {
        for (token, original) in self.originals.drain(..).rev() {
            if let Some(logit) = logits.get_mut(token) {
                *logit = original;
            }
        }
    }

    fn apply_bias(&mut self, logits: &mut Logits<'_>) {
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token) {
                self.originals.push((token, *logit));
                *logit = if bias <= f32::MIN || *logit == f32::NEG_INFINITY {
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

    /// Lets adaptive sampling have its say about what is left; how likely that was before.
    fn adapt(&mut self) -> Option<adaptive::Likely> {
        let acts = !self.has_mirostat() && adaptive::is_asked_for(&self.params);
        acts.then(|| adaptive::adapt(&self.params, self.mirostat_mu, &mut self.candidates))
    }

    fn run_mirostat(&mut self, logits: &Logits<'_>, is_greedy: bool) {
        if is_greedy {
            return self.candidates.take_best(logits, 1);
        }
        self.candidates.take_all(logits);
        if is_active(SamplerKind::Temperature, &self.params) {
            self.candidates.temperature(&self.params);
        }
        let mu = mirostat::mu(&self.params, self.mirostat_mu);
        let n_vocab = logits.values().len();
        mirostat::cut(&self.params, mu, n_vocab, &mut self.candidates);
    }

    fn run_chain(
        &mut self,
        logits: &mut Logits<'_>,
        history: &[u32],
        is_greedy: bool,
        xtc_acts: bool,
    ) {
        // Stages before the first cut work on the logits; it turns them into candidates.
        let mut is_cut = false;
        for stage in 0..self.params.samplers.len() {
            let stage = self.params.samplers[stage];
            if is_change(stage) {
                self.change(stage, logits, history, is_cut);
                continue;
            }
            if is_greedy || !is_active(stage, &self.params) {
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
                SamplerKind::TopNSigma => self.candidates.top_n_sigma(self.params.top_n_sigma),
                SamplerKind::TypP => self.candidates.typical(self.params.typical_p, min_keep),
                SamplerKind::TopP => self.candidates.top_p(self.params.top_p, min_keep),
                SamplerKind::MinP => self.candidates.min_p(self.params.min_p, min_keep),
                SamplerKind::Xtc if xtc_acts => {
                    self.candidates.xtc(self.params.xtc_threshold, min_keep);
                }
                SamplerKind::Temperature => self.candidates.temperature(&self.params),
                SamplerKind::Xtc
                | SamplerKind::Penalties
                | SamplerKind::Dry
                | SamplerKind::TopK
                | SamplerKind::AdaptiveP => {}
            }
        }
        if is_greedy {
            self.candidates.take_best(logits, 1);
        } else if !is_cut {
            self.candidates.take_all(logits);
        }
    }

    /// What a stage that changes single logits does after `history`, in `changes`.
    fn find_changes(&mut self, stage: SamplerKind, history: &[u32]) {
        let (params, changes) = (&self.params, &mut self.changes);
        match stage {
            SamplerKind::Penalties => {
                penalties::repeats(params, history, &mut self.recent, changes);
            }
            _ => penalties::dry(params, &self.breakers, history, changes),
        }
    }

    fn change(
        &mut self,
        stage: SamplerKind,
        logits: &mut Logits<'_>,
        history: &[u32],
        is_cut: bool,
    ) {
        if !is_active(stage, &self.params) {
            return;
        }
        self.find_changes(stage, history);
        if is_cut {
            return self.candidates.change(&self.changes, &self.params);
        }
        for change in &self.changes {
            let Some(logit) = logits.get_mut(change.token) else {
                continue;
            };
            if *logit > f32::NEG_INFINITY {
                self.originals.push((change.token, *logit));
                *logit = change.apply(*logit, &self.params);
            }
        }
    }
}

/// Nothing to divide by.
fn is_cold(temperature: f32) -> bool {
    temperature <= 0.0 || temperature.is_nan()
}

/// Whether the stage changes the logits of single tokens and cuts nothing.
fn is_change(stage: SamplerKind) -> bool {
    matches!(stage, SamplerKind::Penalties | SamplerKind::Dry)
}

fn is_active(stage: SamplerKind, params: &SamplingParams) -> bool {
    match stage {
        SamplerKind::Penalties => has_penalties(params),
        SamplerKind::Dry => has_dry(params),
        SamplerKind::TopNSigma => params.top_n_sigma > 0.0,
        SamplerKind::TopK => params.top_k > 0,
        SamplerKind::TypP => params.typical_p < 1.0,
        SamplerKind::TopP => params.top_p < 1.0,
        SamplerKind::MinP => params.min_p > 0.0,
        SamplerKind::Xtc => params.xtc_probability > 0.0 && params.xtc_threshold <= 0.5,
        SamplerKind::Temperature => params.temperature != 1.0 || params.dynatemp_range > 0.0,
        // Behind the chain, whatever its place in it.
        SamplerKind::AdaptiveP => false,
    }
}

fn bounded(value: f32) -> f32 {
    value.clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests;
