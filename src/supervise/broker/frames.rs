//! What an engine's frames mean to its jobs, and to those who look on.

use bitnet_model::protocol::{Draft, Finish, FromEngine, TokenProbs};
use bitnet_server::backend::{JobEvent, SlotView};

use super::line::Line;
use crate::supervise::state::{Event, Failure};

/// Prompt progress, as the engine tells it.
pub(super) struct Progress {
    pub(super) slot: usize,
    pub(super) total: usize,
    pub(super) cached: usize,
    pub(super) processed: usize,
    pub(super) ms: f64,
    pub(super) cpu_ms: Option<f64>,
}

impl Line {
    pub(super) fn frame(&mut self, frame: FromEngine) {
        self.heard();
        let Some(running) = &mut self.running else {
            return;
        };
        match frame {
            FromEngine::Ready { load_ms } => {
                running.load_ms = load_ms;
                self.loaded();
            }
            FromEngine::Settled => tracing::debug!("the engine has settled"),
            FromEngine::Failed { message, hint } => {
                let reason = message;
                if self.state.ever_ready {
                    tracing::error!("the engine can't load the model again: {reason}");
                }
                self.event(Event::LoadFailed(Failure { reason, hint }));
            }
            FromEngine::Prefill {
                id,
                slot,
                total,
                cached,
                processed,
                ms,
                cpu_ms,
            } => {
                let progress = Progress {
                    slot,
                    total,
                    cached,
                    processed,
                    ms,
                    cpu_ms,
                };
                self.prefill(id, &progress);
            }
            FromEngine::Token {
                id,
                token,
                probs,
                mirostat_mu,
                draft,
                ms,
                cpu_ms,
            } => {
                if self.canary_token(id, token) {
                    self.ground.shared.view().has_spoken = true;
                    return;
                }
                let is_first = self.is_first_token();
                if let Some(work) = self.active.get_mut(&id) {
                    work.append(token, mirostat_mu);
                    work.cpu_ms = cpu_ms;
                }
                if is_first {
                    self.ground.shared.view().has_spoken = true;
                    self.event(Event::Productive);
                }
                self.token(id, token, probs, draft, ms);
            }
            FromEngine::PromptProbs { id, first, probs } => {
                if let Some(work) = self.active.get(&id) {
                    work.send(JobEvent::PromptProbs { first, probs });
                }
            }
            FromEngine::Embedding { id, vectors } => {
                if let Some(work) = self.active.get_mut(&id) {
                    work.vectors.extend(vectors);
                }
            }
            FromEngine::Slot { id, result } => self.slot_done(id, result),
            FromEngine::Done { id, finish } => self.done(id, finish),
            FromEngine::Heartbeat { steps } => {
                let advanced = steps.saturating_sub(running.steps);
                running.steps += advanced;
                self.ground.shared.view().counters.decode_steps += advanced;
            }
        }
    }

    /// True once per engine.
    fn is_first_token(&mut self) -> bool {
        let running = self.running.as_mut();
        running.is_some_and(|running| !std::mem::replace(&mut running.productive, true))
    }

    fn prefill(&mut self, id: u64, progress: &Progress) {
        let Some(work) = self.active.get_mut(&id) else {
            return;
        };
        work.slot = Some(progress.slot);
        work.report_prefill(progress);
        let shown = SlotView {
            id: progress.slot,
            job: Some(id),
            processing: true,
            state: if progress.processed < progress.total {
                1
            } else {
                2
            },
            prompt_tokens: work.job.prompt.len(),
            prompt_processed: progress.processed.min(work.job.prompt.len()),
            prompt_cached: progress.cached.min(work.job.prompt.len()),
            decoded: work.produced,
            remaining: work.remaining(),
            kv_tokens: progress.processed,
            sampling: Some(work.job.sampling.clone()),
        };
        self.with_slot(Some(progress.slot), |slot| *slot = shown);
    }

    fn token(&mut self, id: u64, token: u32, probs: Option<TokenProbs>, draft: Draft, ms: f64) {
        let Some(work) = self.active.get_mut(&id) else {
            return;
        };
        work.strikes = 0;
        let at = work.sampled_at(ms);
        let cpu_ms = work.cpu_ms_in_all();
        work.send(JobEvent::Token {
            token,
            probs,
            at,
            draft,
            cpu_ms,
        });
        let (slot, decoded, remaining) = (work.slot, work.produced, work.remaining());
        let kv_tokens = work.window.len() - 1;
        self.with_slot(slot, |slot| {
            slot.state = 3;
            slot.decoded = decoded;
            slot.remaining = remaining;
            slot.kv_tokens = kv_tokens;
        });
    }

    fn done(&mut self, id: u64, finish: Finish) {
        if self.canary_done(id, &finish) {
            return;
        }
        if let Some(work) = self.active.remove(&id) {
            self.settle(work, finish);
        }
    }
}
