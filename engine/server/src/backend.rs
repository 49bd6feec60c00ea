//! The HTTP layer's view of whoever runs the engine: submit a generation, watch it, drop it to cancel.
//!
//! The backend owns the queue, each request's tokens and the engine's life; a restart in the middle of a generation
//! shows here as a pause, never as an error. Nothing in this trait waits for a decode step.

use std::time::Instant;

use bitnet_model::protocol::{
    Draft, Finish, Pooling, SamplingParams, SlotAction, SlotFault, SlotReport, TokenProbs,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

/// Whether requests can be served now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendState {
    /// The first engine is not ready yet.
    Loading,
    /// Serving; a restart with requests waiting counts as ready.
    Ready,
    /// No new work is taken; what runs is finished.
    Draining,
    /// The engine can't be started; the reason in one line.
    Failed(String),
}

/// A generation to run.
#[derive(Debug, Clone)]
pub struct Job {
    /// Token ids of the prompt, never empty, shorter than the slot's context.
    pub prompt: Vec<u32>,
    /// `None`: until the context is full.
    pub max_tokens: Option<u32>,
    /// End-of-generation tokens.
    pub eog_tokens: Vec<u32>,
    /// Reuse a cached prefix.
    pub cache_prompt: bool,
    /// Slot asked for by the client.
    pub slot: Option<usize>,
    /// Prompt tokens kept at the front when the context is shifted.
    pub n_keep: usize,
    /// How to choose tokens; the seed is concrete.
    pub sampling: SamplingParams,
    /// Report how likely each prompt token but the first is, with this many alternatives.
    pub prompt_probs: Option<u32>,
    /// Most tokens to guess ahead; `None`: as many as the engine may.
    pub draft_max: Option<usize>,
    /// [`Tenure::number`] of the model whose tokens these are.
    pub tenure: u64,
}

/// A text to embed.
#[derive(Debug, Clone)]
pub struct EmbedJob {
    /// Token ids, never empty, at most the slot's context.
    pub tokens: Vec<u32>,
    /// `None`: the model's own.
    pub pooling: Option<Pooling>,
    /// Slot asked for by the client.
    pub slot: Option<usize>,
    /// [`Tenure::number`] of the model whose tokens these are.
    pub tenure: u64,
}

/// A model's time of service. Jobs carry its number, so that the tokens of one model never reach another; when the last
/// request that knows it has ended, whoever runs the engine is told.
pub struct Tenure {
    number: u64,
    _end: CancelOnDrop,
}

impl Tenure {
    /// `end` runs when nobody knows the tenure any more; it must be quick and must not block.
    pub fn new(number: u64, end: impl FnOnce() + Send + Sync + 'static) -> Tenure {
        let _end = CancelOnDrop::new(end);
        Tenure { number, _end }
    }

    /// Tells it from others.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// How the engines are doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Condition {
    /// Some engine has produced a token since the server started.
    pub has_spoken: bool,
    /// The engine was ended for want of work; the next request starts another.
    pub is_asleep: bool,
    /// The last engine that ended without being asked.
    pub last_crash: Option<Crash>,
}

/// An engine that ended without being asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Crash {
    /// When it was noticed.
    pub at: Instant,
    /// One line.
    pub reason: String,
    /// What can be done.
    pub hint: Option<String>,
    /// The last lines of its log.
    pub log: Vec<String>,
}

/// What happens to a job, in order: `Prefill`+ (`PromptProbs` among them), `Token`*, `Done`; to an embedding: `Prefill`+, `Embedding`, `Done`.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// Prompt progress; the first has `processed == cached`. After an engine restart these do not repeat.
    Prefill {
        /// Slot it runs in.
        slot: usize,
        /// Prompt tokens.
        total: usize,
        /// Of them, found in the cache.
        cached: usize,
        /// In the KV cache now.
        processed: usize,
        /// Milliseconds of prefill so far.
        ms: f64,
        /// CPU time of engines for this job so far, where the system tells.
        cpu_ms: Option<f64>,
    },
    /// How likely tokens of the prompt are, in order. After an engine restart some may come again, the same as before.
    PromptProbs {
        /// Place in the prompt of the first of these tokens, from 1.
        first: usize,
        /// One for each of them.
        probs: Vec<TokenProbs>,
    },
    /// A token, end-of-generation tokens included.
    Token {
        /// Its id.
        token: u32,
        /// When asked for.
        probs: Option<TokenProbs>,
        /// When it was sampled.
        at: Instant,
        /// With speculation.
        draft: Draft,
        /// CPU time of engines for this job so far, where the system tells.
        cpu_ms: Option<f64>,
    },
    /// The vectors of a text, `[n_embd]` each, finite and not scaled (see `bitnet_model::pooling::normalize`): one, or
    /// with `Pooling::None` one per token. `Done` with `Finish::Limit` follows.
    Embedding {
        /// At least one.
        vectors: Vec<Vec<f32>>,
    },
    /// The end; the channel closes after it.
    Done {
        /// Why.
        finish: Finish,
        /// The context was shifted on the way.
        shifted: bool,
    },
}

/// A running job; dropping it cancels the job within one decode step.
pub struct JobHandle {
    /// The task number shown in `/slots`.
    pub id: u64,
    /// Its events. Bounded by the job itself: at most one per prompt batch and token.
    pub events: UnboundedReceiver<JobEvent>,
    /// Runs when the handle is dropped.
    pub cancel: CancelOnDrop,
}

/// Calls a function when dropped.
pub struct CancelOnDrop(Option<Box<dyn FnOnce() + Send + Sync>>);

impl CancelOnDrop {
    /// `cancel` must be quick, must not block, and must do nothing for a job that already ended.
    pub fn new(cancel: impl FnOnce() + Send + Sync + 'static) -> Self {
        CancelOnDrop(Some(Box::new(cancel)))
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            cancel();
        }
    }
}

/// Why a job was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Not ready, draining or failed.
    NotReady(BackendState),
    /// The queue holds this many jobs, its bound.
    QueueFull(usize),
}

/// One slot, for `/slots`.
#[derive(Debug, Clone, Default)]
pub struct SlotView {
    /// Slot number.
    pub id: usize,
    /// The job running or last run in it.
    pub job: Option<u64>,
    /// A job runs in it now.
    pub processing: bool,
    /// 0 idle, 1 prompt under way, 2 prompt done, 3 generating (llama-server's old numbers).
    pub state: u8,
    /// Prompt tokens of that job.
    pub prompt_tokens: usize,
    /// Of them, evaluated.
    pub prompt_processed: usize,
    /// Of them, found in the cache.
    pub prompt_cached: usize,
    /// Tokens produced.
    pub decoded: usize,
    /// Tokens still allowed, if limited.
    pub remaining: Option<usize>,
    /// Tokens in the KV cache.
    pub kv_tokens: usize,
    /// Sampling of that job.
    pub sampling: Option<SamplingParams>,
}

/// Counters since the server process started, for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct BackendCounters {
    /// Jobs running.
    pub processing: usize,
    /// Jobs waiting.
    pub deferred: usize,
    /// Jobs that may wait.
    pub queue_bound: usize,
    /// Jobs that can run at the same time.
    pub slots: usize,
    /// Engine processes started after the first.
    pub engine_restarts: u64,
    /// Forward passes (sum over engines).
    pub decode_steps: u64,
    /// Time and energy, as of a few seconds ago.
    pub usage: Usage,
}

/// What serving cost, as the system's own counters tell it; `None` where they don't.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU seconds of all engines.
    pub engine_cpu_s: Option<f64>,
    /// Joules of the machine's processors since the server started, others' work included.
    pub energy_j: Option<f64>,
    /// Where energy is read, or why it can't be.
    pub energy_source: Option<Result<String, String>>,
    /// Seconds that a CPU quota kept threads of this control group waiting.
    pub quota_throttled_s: Option<f64>,
}

/// The meter at one moment, to tell what one job took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EnergyMoment {
    /// When.
    pub at: Instant,
    /// Joules of the machine's processors since some time.
    pub joules: f64,
    /// Watts of the machine's processors while no job ran, the least that was measured.
    pub idle_w: f64,
    /// Jobs accepted that have not ended.
    pub open: usize,
    /// Jobs accepted so far.
    pub accepted: u64,
}

impl EnergyMoment {
    /// Joules above idle power since `before`, a moment just before a job was accepted. `None` when another job ran in this time: the
    /// meter can't tell them apart; or when the work drowned in the noise.
    pub fn joules_since(&self, before: &EnergyMoment) -> Option<f64> {
        let was_alone = before.open == 0 && self.accepted == before.accepted + 1;
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        let joules = self.joules - before.joules - self.idle_w * seconds;
        (was_alone && joules > 0.0).then_some(joules)
    }
}

/// Runs generations. All calls return at once.
pub trait Backend: Send + Sync + 'static {
    /// Whether requests can be served.
    fn state(&self) -> BackendState;
    /// Queues a job.
    ///
    /// # Errors
    /// [`Refused`] says why it was not taken.
    fn submit(&self, job: Job) -> Result<JobHandle, Refused>;
    /// Queues a text to embed, among the jobs. Its `Done` has `Finish::Error` when the vectors are not numbers.
    ///
    /// # Errors
    /// [`Refused`] says why it was not taken.
    fn embed(&self, job: EmbedJob) -> Result<JobHandle, Refused>;
    /// Saves, restores or erases a slot as soon as it is idle. The receiver gets the answer, or is closed when the
    /// server ends; dropping it does not undo the work. An engine's restart fails what is to be saved and repeats the rest.
    ///
    /// # Errors
    /// [`Refused::NotReady`]; [`Refused::QueueFull`] when too many actions wait.
    fn slot_action(
        &self,
        slot: usize,
        action: SlotAction,
    ) -> Result<oneshot::Receiver<Result<SlotReport, SlotFault>>, Refused>;
    /// A snapshot of all slots.
    fn slots(&self) -> Vec<SlotView>;
    /// How the engines are doing.
    fn condition(&self) -> Condition {
        Condition {
            has_spoken: self.state() == BackendState::Ready,
            ..Condition::default()
        }
    }
    /// A snapshot of the counters.
    fn counters(&self) -> BackendCounters;
    /// The meter now; `None` where there is none, or none that a short time can be read from, or no idle power is known yet.
    fn energy(&self) -> Option<EnergyMoment>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn joules_are_those_above_idle_of_a_job_that_was_alone() {
        let before = EnergyMoment {
            at: Instant::now(),
            joules: 100.0,
            idle_w: 9.0,
            open: 0,
            accepted: 7,
        };
        let after = EnergyMoment {
            at: before.at + Duration::from_secs(2),
            joules: 150.0,
            idle_w: 10.0,
            open: 0,
            accepted: 8,
        };
        assert_eq!(after.joules_since(&before), Some(30.0));
        let came_in_between = EnergyMoment {
            accepted: 9,
            ..after
        };
        assert_eq!(came_in_between.joules_since(&before), None);
        let ran_before = EnergyMoment { open: 1, ..before };
        assert_eq!(after.joules_since(&ran_before), None);
        let idle = EnergyMoment {
            joules: 119.0,
            ..after
        };
        assert_eq!(idle.joules_since(&before), None);
    }
}
