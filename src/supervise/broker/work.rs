//! One accepted job: what it asked for, what the engine has to see of it, and what its client was told.

use std::time::{Duration, Instant};

use bitnet_model::protocol::{
    Carried, Embed, Finish, MirostatMu, Pooling, SamplingParams, Submit, ToEngine,
};
use bitnet_server::backend::{EmbedJob, Job, JobEvent};
use tokio::sync::mpsc::UnboundedSender;

use super::STRIKES;
use super::frames::Progress;

/// One accepted job, wherever it is.
pub(super) struct Work {
    pub(super) id: u64,
    pub(super) job: Job,
    /// What the engine has to see: prompt and tokens produced, less what was shifted out.
    pub(super) window: Vec<u32>,
    /// Tokens produced in all.
    pub(super) produced: usize,
    /// What a continuation needs beside the window.
    pub(super) carried: Carried,
    /// Slot it runs in, as told by the engine.
    pub(super) slot: Option<usize>,
    /// It is a text to embed, pooled like this, and nothing is generated.
    pub(super) embed: Option<Option<Pooling>>,
    /// Vectors of this engine.
    pub(super) vectors: Vec<Vec<f32>>,
    /// Tokens of the prompt in the cache, as reported to the client.
    pub(super) processed: Option<usize>,
    /// When its first prefill was reported, less the milliseconds it had taken by then.
    pub(super) prefill_began: Option<Instant>,
    /// The first token of this engine: when it arrived, and its milliseconds by the engine's clock.
    pub(super) first_token: Option<(Instant, f64)>,
    /// CPU time it took of earlier engines, or before its context was shifted, and of this one so far.
    pub(super) cpu_ms_before: f64,
    pub(super) cpu_ms: Option<f64>,
    /// Given to an engine more than once.
    pub(super) resumed: bool,
    pub(super) shifted: bool,
    pub(super) cancelled: bool,
    pub(super) strikes: u32,
    pub(super) accepted_at: Instant,
    pub(super) events: UnboundedSender<JobEvent>,
}

impl Work {
    pub(super) fn new(id: u64, job: Job, events: UnboundedSender<JobEvent>) -> Work {
        Work {
            id,
            window: job.prompt.clone(),
            job,
            produced: 0,
            carried: Carried::default(),
            slot: None,
            embed: None,
            vectors: Vec::new(),
            processed: None,
            prefill_began: None,
            first_token: None,
            cpu_ms_before: 0.0,
            cpu_ms: None,
            resumed: false,
            shifted: false,
            cancelled: false,
            strikes: 0,
            accepted_at: Instant::now(),
            events,
        }
    }

    pub(super) fn embedding(id: u64, job: EmbedJob, events: UnboundedSender<JobEvent>) -> Work {
        let evaluation = Job {
            prompt: job.tokens,
            max_tokens: Some(0),
            eog_tokens: Vec::new(),
            cache_prompt: false,
            slot: job.slot,
            n_keep: 0,
            sampling: SamplingParams::default(),
            prompt_probs: None,
            draft_max: None,
            tenure: job.tenure,
        };
        Work {
            embed: Some(job.pooling),
            ..Work::new(id, evaluation, events)
        }
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.strikes >= STRIKES
    }

    /// Its client may have been told something.
    pub(super) fn is_begun(&self) -> bool {
        self.resumed || self.processed.is_some() || self.produced > 0
    }

    /// Goes to an engine once more.
    pub(super) fn resume(&mut self) {
        self.slot = None;
        self.first_token = None;
        self.cpu_ms_before += self.cpu_ms.take().unwrap_or(0.0);
        self.vectors.clear();
        self.resumed = true;
    }

    /// When a token was sampled. Tokens that arrive in one burst were not made in one instant: the engine's clock tells.
    pub(super) fn sampled_at(&mut self, ms: f64) -> Instant {
        let (arrived, first_ms) = *self.first_token.get_or_insert((Instant::now(), ms));
        let since_first = Duration::try_from_secs_f64((ms - first_ms) / 1e3).unwrap_or_default();
        arrived.checked_add(since_first).unwrap_or(arrived)
    }

    /// CPU time of all engines. A step that died with its engine is not in it: nobody knows it.
    pub(super) fn cpu_ms_in_all(&self) -> Option<f64> {
        self.cpu_ms.map(|ms| self.cpu_ms_before + ms)
    }

    pub(super) fn remaining(&self) -> Option<usize> {
        self.job
            .max_tokens
            .map(|max| (max as usize).saturating_sub(self.produced))
    }

    /// The end of a job whose last event was lost with the engine.
    pub(super) fn finished_already(&self, slot_context: usize) -> Option<Finish> {
        if self.produced == 0 {
            return None;
        }
        let last = self.window.last()?;
        if self.job.eog_tokens.contains(last) {
            Some(Finish::Eos)
        } else if self.remaining() == Some(0) {
            Some(Finish::Limit)
        } else if self.window.len() > slot_context {
            Some(Finish::ContextFull)
        } else {
            None
        }
    }

    pub(super) fn submission(&self, slot_context: usize) -> ToEngine {
        if let Some(pooling) = self.embed {
            return ToEngine::Embed(Box::new(Embed {
                id: self.id,
                tokens: self.window.clone(),
                pooling,
                slot: self.job.slot,
            }));
        }
        let limit = self.remaining().unwrap_or(slot_context + 1);
        ToEngine::Submit(Box::new(Submit {
            id: self.id,
            tokens: self.window.clone(),
            max_tokens: u32::try_from(limit).unwrap_or(u32::MAX),
            eog_tokens: self.job.eog_tokens.clone(),
            cache_prompt: self.job.cache_prompt,
            slot: self.job.slot,
            sampling: self.job.sampling.clone(),
            carried: self.carried.clone(),
            // All of them were reported before the first token.
            prompt_probs: self.job.prompt_probs.filter(|_| self.produced == 0),
            draft_max: self.job.draft_max,
        }))
    }

    /// Takes a token, and the sampler's state after it.
    pub(super) fn append(&mut self, token: u32, mirostat_mu: Option<MirostatMu>) {
        self.window.push(token);
        self.produced += 1;
        self.carried.mirostat_mu = mirostat_mu;
        if self.job.sampling.grammar.is_some() {
            self.carried.answer.push(token);
        }
    }

    /// Drops the middle of the window: the head of `n_keep` and the last half of the rest stay. False when that is
    /// impossible, or when a job without a limit has filled a whole context with its own tokens.
    pub(super) fn shift(&mut self, slot_context: usize) -> bool {
        if self.job.max_tokens.is_none() && self.produced >= slot_context {
            return false;
        }
        let keep = self.job.n_keep.min(slot_context / 2).min(self.window.len());
        let discard = (self.window.len() - keep) / 2;
        if discard == 0 {
            return false;
        }
        self.window.drain(keep..keep + discard);
        self.shifted = true;
        true
    }

    pub(super) fn send(&self, event: JobEvent) {
        if !self.cancelled {
            let _ = self.events.send(event);
        }
    }

    pub(super) fn done(mut self, finish: Finish) {
        if !self.vectors.is_empty() && finish == Finish::Limit {
            let vectors = std::mem::take(&mut self.vectors);
            self.send(JobEvent::Embedding { vectors });
        }
        let shifted = self.shifted;
        self.send(JobEvent::Done { finish, shifted });
    }

    /// Prompt progress for the client: the first engine's, and a later one's only where it gets further.
    pub(super) fn report_prefill(&mut self, progress: &Progress) {
        let &Progress {
            slot,
            cached,
            processed,
            ms,
            cpu_ms,
            ..
        } = progress;
        self.cpu_ms = cpu_ms;
        let cpu_ms = self.cpu_ms_in_all();
        if self.produced > 0 || self.processed.is_some_and(|seen| processed <= seen) {
            return;
        }
        let began = *self.prefill_began.get_or_insert_with(|| {
            let now = Instant::now();
            now.checked_sub(Duration::from_secs_f64(ms.max(0.0) / 1e3))
                .unwrap_or(now)
        });
        let ms = if self.resumed {
            began.elapsed().as_secs_f64() * 1e3
        } else {
            ms
        };
        self.processed = Some(processed);
        self.send(JobEvent::Prefill {
            slot,
            total: self.job.prompt.len(),
            cached,
            processed,
            ms,
            cpu_ms,
        });
    }
}
