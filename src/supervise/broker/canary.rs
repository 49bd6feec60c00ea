//! The canary: a short greedy generation that every engine answers alike.
//!
//! The first engine of a model answers it as soon as requests can come and none does, so that no request waits for it; its
//! tokens are the golden ones. Every later engine of that model has to answer it with them before it gets a job: a changed
//! model file or a broken kernel must not continue anybody's text. The first engine of another model has to answer it at all.

use std::time::{Duration, Instant};

use bitnet_model::protocol::{Carried, Finish, SamplingParams, Submit, ToEngine};

use super::line::Line;
use crate::supervise::state::{Event, Failure, Phase};

/// The first canary flies when there was no work for this long after the start.
const QUIET: Duration = Duration::from_millis(20);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Canary {
    /// Token ids.
    pub(crate) prompt: Vec<u32>,
    /// Tokens to answer.
    pub(crate) n: u32,
}

impl Canary {
    /// For a vocabulary of this size: ids from all over it.
    pub(crate) fn of_vocabulary(n_vocab: usize) -> Canary {
        let id = |part: usize| (n_vocab / 5 * part + 1) as u32 % n_vocab.max(1) as u32;
        Canary {
            prompt: vec![id(0), id(1), id(3)],
            n: 3,
        }
    }

    fn submission(&self, id: u64) -> ToEngine {
        ToEngine::Submit(Box::new(Submit {
            id,
            tokens: self.prompt.clone(),
            max_tokens: self.n,
            eog_tokens: Vec::new(),
            cache_prompt: false,
            slot: None,
            sampling: SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            carried: Carried::default(),
            prompt_probs: None,
            draft_max: None,
        }))
    }
}

/// A canary on its way.
pub(super) struct Flight {
    pub(super) id: u64,
    pub(super) tokens: Vec<u32>,
    /// Somebody needed its slot.
    is_recalled: bool,
}

impl Line {
    /// The engine has loaded: it is ready, or has to pass the test first.
    pub(super) fn loaded(&mut self) {
        let has_to_pass = self.golden.is_some() || self.on_trial;
        match &self.config.canary {
            Some(_) if has_to_pass => self.fly(),
            _ => self.passed(),
        }
    }

    fn passed(&mut self) {
        if let Some(running) = &mut self.running {
            running.ready = true;
        }
        self.event(Event::Ready);
    }

    fn fly(&mut self) {
        let (Some(canary), Some(running)) = (&self.config.canary, &mut self.running) else {
            return;
        };
        let id = self.ground.shared.next_id();
        running.progress_at = Instant::now();
        let _ = running.frames.send(canary.submission(id));
        self.flight = Some(Flight {
            id,
            tokens: Vec::new(),
            is_recalled: false,
        });
    }

    /// When the first engine's canary may fly.
    pub(super) fn flies_at(&self) -> Option<Instant> {
        let is_due = self.golden.is_none()
            && self.flight.is_none()
            && self.is_open
            && self.config.canary.is_some()
            && !self.has_work();
        match self.state.phase {
            Phase::Ready { .. } if is_due => Some(self.idle_since + QUIET),
            _ => None,
        }
    }

    pub(super) fn fly_if_quiet(&mut self) {
        if self.flies_at().is_some_and(|at| at <= Instant::now()) {
            self.fly();
        }
    }

    /// A job needs the canary's slot.
    pub(super) fn recall_canary(&mut self) {
        let is_free = self.jobs() < self.config.engine.slots;
        let (Some(flight), Some(running)) = (&mut self.flight, &self.running) else {
            return;
        };
        if !is_free && running.ready && !flight.is_recalled {
            flight.is_recalled = true;
            let _ = running.frames.send(ToEngine::Cancel { id: flight.id });
        }
    }

    /// True when the token was the canary's.
    pub(super) fn canary_token(&mut self, id: u64, token: u32) -> bool {
        let flight = self.flight.as_mut().filter(|flight| flight.id == id);
        flight.map(|flight| flight.tokens.push(token)).is_some()
    }

    /// The canary's end. True when it was one.
    pub(super) fn canary_done(&mut self, id: u64, finish: &Finish) -> bool {
        let Some(flight) = self.flight.take_if(|flight| flight.id == id) else {
            return false;
        };
        let is_waited_for = !matches!(self.state.phase, Phase::Ready { .. });
        match self.judge(flight.tokens, finish) {
            Ok(()) if is_waited_for => self.passed(),
            Ok(()) => {}
            Err(why) => self.event(Event::Unfit(why)),
        }
        true
    }

    fn judge(&mut self, tokens: Vec<u32>, finish: &Finish) -> Result<(), Failure> {
        match (finish, &self.golden) {
            (Finish::Limit | Finish::ContextFull, None) => {
                self.golden = Some(tokens);
                Ok(())
            }
            (Finish::Limit | Finish::ContextFull, Some(golden)) if *golden == tokens => Ok(()),
            (Finish::Limit | Finish::ContextFull, Some(golden)) => Err(self.wrong(golden, &tokens)),
            (Finish::Cancelled, _) => Ok(()),
            (other, _) => Err(Failure::new(format!(
                "the engine's test answer failed: {}",
                match other {
                    Finish::Error(why) | Finish::Refused(why) | Finish::Unserved(why) =>
                        why.as_str(),
                    Finish::Eos | Finish::Limit | Finish::ContextFull | Finish::Cancelled => {
                        "it ended early"
                    }
                }
            ))),
        }
    }

    fn wrong(&self, golden: &[u32], found: &[u32]) -> Failure {
        let changed = self
            .config
            .model_file
            .as_ref()
            .is_some_and(|file| file.has_changed());
        Failure {
            reason: format!(
                "the engine's test answer is {found:?}, expected {golden:?} as from the one before"
            ),
            hint: Some(match changed {
                true => "the model file was replaced: `bitnet-launch reload` serves the new one".to_owned(),
                false => "the model file is damaged, or kernel and CPU disagree; look at `bitnet-launch inspect --verify FILE` and try `--kernel i2_s/scalar`".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_fit_any_vocabulary() {
        for n_vocab in [1, 2, 5, 32_000, 128_256] {
            let canary = Canary::of_vocabulary(n_vocab);
            assert!(canary.prompt.iter().all(|id| (*id as usize) < n_vocab));
        }
        assert_ne!(
            Canary::of_vocabulary(32_000),
            Canary::of_vocabulary(128_256)
        );
    }
}
