//! A generation in its slot: what its sampler wants of a step, and the tokens it takes from it.

use std::ops::Range;
use std::time::Instant;

use crate::cpu_time::Laps;
use crate::grammar::GrammarError;
use crate::graph::{Entry, Model};
use crate::pooling::Pooler;
use crate::protocol::{Draft, EMBEDDING_PART_VALUES, Finish, FromEngine, Submit};
use crate::sampler::{SampleError, Sampled, Sampler, Want};
use crate::speculation::{Acceptance, Guess, Offer};

/// A generation in its slot, or a text to embed: then nothing is generated.
pub(super) struct Job {
    pub(super) submit: Submit,
    pub(super) pooler: Option<Pooler>,
    /// Tokens of the prompt; those in `submit.tokens` behind them were sampled here.
    pub(super) n_prompt: usize,
    pub(super) sampler: Sampler,
    /// The next token, if it is known before its step.
    pub(super) forced: Option<u32>,
    /// Where the drafts of the next step come from.
    pub(super) guess: Option<Guess>,
    pub(super) acceptance: Acceptance,
    pub(super) cached: usize,
    pub(super) prefill_began: Option<Instant>,
    /// Its share of the CPU time so far.
    pub(super) cpu_ms: Option<f64>,
}

/// What a job meets when it takes tokens.
pub(super) struct Around<'a, S> {
    /// Positions of its slot.
    pub(super) context: usize,
    pub(super) cpu: &'a mut Laps,
    pub(super) send: &'a mut S,
}

/// What samplers need of the logits of a batch, in the order of the entries that want some.
#[derive(Default)]
pub(super) struct Wanted {
    /// How many of the best, and which of `named`; `None`: all.
    wants: Vec<Option<(usize, Range<usize>)>>,
    named: Vec<u32>,
}

impl Wanted {
    pub(super) fn clear(&mut self) {
        self.wants.clear();
        self.named.clear();
    }

    pub(super) fn push(&mut self, want: Want<'_>) {
        let start = self.named.len();
        self.wants.push(match want {
            Want::All => None,
            Want::Best { k, also } => {
                self.named.extend_from_slice(also);
                Some((k, start..self.named.len()))
            }
        });
    }

    pub(super) fn all(&self) -> Vec<Want<'_>> {
        let wants = self.wants.iter().map(|want| match want {
            None => Want::All,
            Some((k, named)) => Want::Best {
                k: *k,
                also: &self.named[named.clone()],
            },
        });
        wants.collect()
    }
}

impl Job {
    pub(super) fn is_generating(&self) -> bool {
        self.submit.tokens.len() > self.n_prompt
    }

    /// Milliseconds since its first prefill step began.
    fn ms(&self) -> f64 {
        self.prefill_began
            .map_or(0.0, |began| began.elapsed().as_secs_f64() * 1e3)
    }

    pub(super) fn progress(&self, slot: usize, processed: usize) -> FromEngine {
        FromEngine::Prefill {
            id: self.submit.id,
            slot,
            total: self.n_prompt,
            cached: self.cached,
            processed,
            ms: self.ms(),
            cpu_ms: self.cpu_ms,
        }
    }

    /// Reports how likely the prompt's tokens behind `entries` of the last batch are; `processed` tokens are in the cache now.
    pub(super) fn score(
        &self,
        model: &mut Model,
        entries: Range<usize>,
        processed: usize,
        send: &mut impl FnMut(FromEngine),
    ) -> Result<(), Finish> {
        let first = processed - entries.len() + 1;
        let next =
            &self.submit.tokens[first.min(self.n_prompt)..(processed + 1).min(self.n_prompt)];
        let n_top = self.submit.prompt_probs.unwrap_or(0) as usize;
        let entries = entries.start..entries.start + next.len();
        match model.score(entries, next, n_top) {
            Some(probs) if probs.is_empty() => {}
            Some(probs) => {
                let id = self.submit.id;
                send(FromEngine::PromptProbs { id, first, probs });
            }
            None => {
                let reason = "the logits of the prompt are not numbers";
                return Err(Finish::Error(reason.to_owned()));
            }
        }
        Ok(())
    }

    pub(super) fn charge(&mut self, cpu_ms: Option<f64>) {
        self.cpu_ms = self.cpu_ms.zip(cpu_ms).map(|(sum, more)| sum + more);
    }

    /// Looks for a guess about what follows, unless it is known.
    pub(super) fn look_ahead(&mut self, draft_max: usize, context: usize) {
        self.forced = self.sampler.forced();
        let is_open = self.forced.is_none() && self.most_drafts(draft_max, context) > 0;
        let found = is_open.then(|| Guess::look_up(&self.submit.tokens));
        self.guess = found.flatten();
    }

    /// What it offers to be guessed in the next step.
    pub(super) fn offer(&self, draft_max: usize, context: usize) -> Option<Offer<'_>> {
        self.guess.map(|guess| Offer {
            guess,
            acceptance: &self.acceptance,
            most: self.most_drafts(draft_max, context),
        })
    }

    /// Guesses beyond the last token that may be drawn, or the last position of the slot, would be checked for nothing.
    fn most_drafts(&self, draft_max: usize, context: usize) -> usize {
        let Submit {
            tokens,
            max_tokens,
            draft_max: asked,
            ..
        } = &self.submit;
        let n_left = (*max_tokens as usize).saturating_sub(tokens.len() - self.n_prompt);
        draft_max
            .min(asked.unwrap_or(usize::MAX))
            .min(n_left.saturating_sub(1))
            .min(context.saturating_sub(tokens.len()))
    }

    /// The first `n` guessed tokens; with none the guess is dropped.
    pub(super) fn drafts(&mut self, n: usize) -> impl Iterator<Item = u32> {
        if n == 0
            && let Some(unused) = self.guess.take()
        {
            self.acceptance.pass(unused);
        }
        let tokens = &self.submit.tokens;
        let guess = self.guess.into_iter();
        guess.flat_map(move |guess| guess.tokens(tokens, n))
    }

    /// Notes what the sampler needs behind its last token, and behind each draft if those before it are right.
    pub(super) fn want(&mut self, drafts: &[Entry], wanted: &mut Wanted) {
        let n_tokens = self.submit.tokens.len();
        wanted.push(self.sampler.wants(&self.submit.tokens));
        for draft in drafts {
            self.submit.tokens.push(draft.token);
            wanted.push(self.sampler.wants(&self.submit.tokens));
        }
        self.submit.tokens.truncate(n_tokens);
    }

    /// Takes the tokens that a step yields, each drawn as if it came alone: one, and another behind each draft that turned out right.
    /// `places` are those of its entries among all that want logits.
    pub(super) fn advance(
        &mut self,
        model: &mut Model,
        places: Range<usize>,
        drafts: &[Entry],
        around: &mut Around<'_, impl FnMut(FromEngine)>,
    ) -> Option<Finish> {
        if let Some(token) = self.forced.take() {
            let sampled = self.sampler.take_forced(token);
            return self.take(sampled, Draft::default(), around.context, around.send);
        }
        let mut n_right = 0;
        for place in places {
            let sampled = self.draw(model, place);
            self.charge(around.cpu.lap());
            let draft = Draft {
                n: if n_right == 0 { drafts.len() as u32 } else { 0 },
                place: n_right as u32,
            };
            let finish = self.take(sampled, draft, around.context, around.send);
            if finish.is_some() {
                return finish;
            }
            let last = self.submit.tokens.last();
            if drafts.get(n_right).map(|draft| &draft.token) != last {
                break;
            }
            n_right += 1;
        }
        if let Some(guess) = self.guess.take() {
            self.acceptance.observe(guess, drafts.len(), n_right);
        }
        None
    }

    fn draw(&mut self, model: &mut Model, place: usize) -> Result<Sampled, SampleError> {
        let logits = model.logits().nth(place);
        let mut logits = logits.expect("every entry that wants logits has some");
        match self.sampler.draw(&mut logits, &self.submit.tokens)? {
            Some(sampled) => Ok(sampled),
            None => self.draw_allowed(model, place),
        }
    }

    /// Draws again, from what the grammar allows: it refused the first token. `place`: among the entries that want logits.
    fn draw_allowed(&mut self, model: &mut Model, place: usize) -> Result<Sampled, SampleError> {
        let tokens = &self.submit.tokens;
        let mut logits = match self.sampler.wants_allowed(tokens)? {
            Some((want, allowed)) => model.logits_among(place, want, allowed),
            None => return Err(SampleError::NothingLeft),
        };
        self.sampler.draw_allowed(&mut logits, tokens)
    }

    /// Takes the next token and reports it; says so when it is the last.
    fn take(
        &mut self,
        sampled: Result<Sampled, SampleError>,
        draft: Draft,
        context: usize,
        send: &mut impl FnMut(FromEngine),
    ) -> Option<Finish> {
        let ms = self.ms();
        let Submit { id, tokens, .. } = &mut self.submit;
        let sampled = match sampled {
            Ok(sampled) => sampled,
            Err(error) => return Some(finish_of(&error)),
        };
        let n_cached = tokens.len();
        tokens.push(sampled.token);
        send(FromEngine::Token {
            id: *id,
            token: sampled.token,
            probs: sampled.probs,
            mirostat_mu: sampled.mirostat_mu,
            draft,
            ms,
            cpu_ms: self.cpu_ms,
        });
        let n_new = (tokens.len() - self.n_prompt) as u32;
        if self.submit.eog_tokens.contains(&sampled.token) {
            Some(Finish::Eos)
        } else if n_new >= self.submit.max_tokens {
            Some(Finish::Limit)
        } else if n_cached >= context {
            Some(Finish::ContextFull)
        } else {
            None
        }
    }
}

/// Takes the vectors of some entries of the last batch, and sends what is ready.
pub(super) fn embed(
    id: u64,
    pooler: &mut Pooler,
    model: &Model,
    entries: Range<usize>,
    is_last: bool,
    hidden: &mut [f32],
    send: &mut impl FnMut(FromEngine),
) -> Result<(), Finish> {
    for entry in entries {
        if !pooler.needs_next() {
            pooler.skip();
            continue;
        }
        model.hidden(entry, hidden);
        if !hidden.iter().all(|x| x.is_finite()) {
            let reason = "the model's vectors are not numbers";
            return Err(Finish::Error(reason.to_owned()));
        }
        pooler.take(hidden);
        if pooler.n_waiting() + hidden.len() > EMBEDDING_PART_VALUES {
            let vectors = pooler.pooled();
            send(FromEngine::Embedding { id, vectors });
        }
    }
    let vectors = if is_last { pooler.pooled() } else { Vec::new() };
    if !vectors.is_empty() {
        send(FromEngine::Embedding { id, vectors });
    }
    Ok(())
}

/// How a generation ends whose sampler is at a loss.
pub(super) fn finish_of(error: &SampleError) -> Finish {
    let message = error.to_string();
    match error {
        SampleError::NotFinite { .. } | SampleError::Grammar(GrammarError::Vocabulary(_)) => {
            Finish::Error(message)
        }
        SampleError::NothingLeft | SampleError::Grammar(_) => Finish::Refused(message),
    }
}
