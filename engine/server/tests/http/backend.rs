//! A backend that says what the test tells it to, one token at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_model::protocol::{
    Draft, Finish, Pooling, SamplingParams, SlotAction, SlotFault, SlotReport, TokenProbs,
};
use bitnet_server::backend::{
    Backend, BackendCounters, BackendState, CancelOnDrop, EmbedJob, EnergyMoment, Job, JobEvent,
    JobHandle, Refused, SlotView,
};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;

/// What every job answers.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    /// Then the end.
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: Finish,
    /// Prompt tokens said to be cached.
    pub(crate) cached: usize,
    pub(crate) prefill: Duration,
    pub(crate) per_token: Duration,
    /// Tokens come by so many in a step, all but the first guessed.
    pub(crate) per_step: usize,
    /// The vector of each token of a text to embed is this, with the token added to its first number.
    pub(crate) vector: Vec<f32>,
    /// The answer to every slot action.
    pub(crate) slot: Result<SlotReport, SlotFault>,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            tokens: Vec::new(),
            finish: Finish::Eos,
            cached: 0,
            prefill: Duration::ZERO,
            per_token: Duration::ZERO,
            per_step: 1,
            vector: vec![3.0, 4.0],
            slot: Ok(SlotReport {
                n_tokens: 5,
                n_bytes: 1234,
                ms: 2.5,
            }),
        }
    }
}

pub(crate) struct ScriptedBackend {
    pub(crate) script: Mutex<Script>,
    pub(crate) state: Mutex<BackendState>,
    /// Jobs as they came.
    pub(crate) jobs: Mutex<Vec<Job>>,
    /// Texts to embed, as they came.
    pub(crate) embeds: Mutex<Vec<EmbedJob>>,
    /// Slot actions, as they came.
    pub(crate) actions: Mutex<Vec<(usize, SlotAction)>>,
    /// What the meter shows when it is looked at, one after another.
    pub(crate) meter: Mutex<VecDeque<EnergyMoment>>,
    pub(crate) cancelled: Arc<AtomicUsize>,
    /// Refuse further jobs while this many run.
    pub(crate) queue: usize,
    pub(crate) slots: usize,
    running: Arc<AtomicUsize>,
    next_id: AtomicU64,
    steps: Arc<AtomicU64>,
}

impl ScriptedBackend {
    pub(crate) fn new(slots: usize, queue: usize) -> Arc<Self> {
        Arc::new(ScriptedBackend {
            script: Mutex::new(Script::default()),
            state: Mutex::new(BackendState::Ready),
            jobs: Mutex::new(Vec::new()),
            embeds: Mutex::new(Vec::new()),
            actions: Mutex::new(Vec::new()),
            meter: Mutex::default(),
            cancelled: Arc::new(AtomicUsize::new(0)),
            queue,
            slots,
            running: Arc::new(AtomicUsize::new(0)),
            next_id: AtomicU64::new(0),
            steps: Arc::new(AtomicU64::new(0)),
        })
    }

    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub(crate) fn last_job(&self) -> Job {
        self.jobs
            .lock()
            .unwrap()
            .last()
            .cloned()
            .expect("a job was submitted")
    }
}

impl Backend for ScriptedBackend {
    fn state(&self) -> BackendState {
        self.state.lock().unwrap().clone()
    }

    fn submit(&self, job: Job) -> Result<JobHandle, Refused> {
        self.play(job, None)
    }

    fn embed(&self, job: EmbedJob) -> Result<JobHandle, Refused> {
        let pooling = job.pooling.unwrap_or(Pooling::Last);
        let evaluation = Job {
            prompt: job.tokens.clone(),
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
        let handle = self.play(evaluation, Some(pooling))?;
        self.embeds.lock().unwrap().push(job);
        Ok(handle)
    }

    fn slot_action(
        &self,
        slot: usize,
        action: SlotAction,
    ) -> Result<oneshot::Receiver<Result<SlotReport, SlotFault>>, Refused> {
        if self.state() != BackendState::Ready {
            return Err(Refused::NotReady(self.state()));
        }
        self.actions.lock().unwrap().push((slot, action));
        let (answer, receiver) = oneshot::channel();
        let _ = answer.send(self.script.lock().unwrap().slot.clone());
        Ok(receiver)
    }

    fn slots(&self) -> Vec<SlotView> {
        let busy = self.running();
        let job = self.jobs.lock().unwrap().last().cloned();
        let view = |id| SlotView {
            id,
            processing: id < busy,
            state: if id < busy { 3 } else { 0 },
            job: job.as_ref().map(|_| 7),
            sampling: job.as_ref().map(|job| job.sampling.clone()),
            ..SlotView::default()
        };
        (0..self.slots).map(view).collect()
    }

    fn energy(&self) -> Option<EnergyMoment> {
        self.meter.lock().unwrap().pop_front()
    }

    fn counters(&self) -> BackendCounters {
        BackendCounters {
            processing: self.running(),
            queue_bound: self.queue,
            slots: self.slots,
            decode_steps: self.steps.load(Ordering::SeqCst),
            ..BackendCounters::default()
        }
    }
}

impl ScriptedBackend {
    fn play(&self, job: Job, embed: Option<Pooling>) -> Result<JobHandle, Refused> {
        if self.state() != BackendState::Ready {
            return Err(Refused::NotReady(self.state()));
        }
        if self.running() >= self.queue {
            return Err(Refused::QueueFull(self.queue));
        }
        if embed.is_none() {
            self.jobs.lock().unwrap().push(job.clone());
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        let (sender, events) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let play = Play {
            script: self.script.lock().unwrap().clone(),
            job,
            embed,
            sender,
            stop: Arc::clone(&stop),
            steps: Arc::clone(&self.steps),
        };
        let running = Arc::clone(&self.running);
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        thread::spawn(move || {
            play.run();
            has_ended.store(true, Ordering::SeqCst);
            running.fetch_sub(1, Ordering::SeqCst);
        });
        let cancelled = Arc::clone(&self.cancelled);
        let cancel = CancelOnDrop::new(move || {
            if !ended.load(Ordering::SeqCst) {
                cancelled.fetch_add(1, Ordering::SeqCst);
            }
            stop.store(true, Ordering::SeqCst);
        });
        Ok(JobHandle {
            id: self.next_id.fetch_add(1, Ordering::SeqCst),
            events,
            cancel,
        })
    }
}

struct Play {
    script: Script,
    job: Job,
    embed: Option<Pooling>,
    sender: UnboundedSender<JobEvent>,
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
}

impl Play {
    fn run(self) {
        let Script {
            tokens,
            finish,
            cached,
            prefill,
            per_token,
            per_step,
            vector,
            ..
        } = &self.script;
        let total = self.job.prompt.len();
        let cached = (*cached).min(total - 1);
        let progress = |processed, ms| JobEvent::Prefill {
            slot: 0,
            total,
            cached,
            processed,
            ms,
            cpu_ms: Some(2.0 * ms),
        };
        let _ = self.sender.send(progress(cached, 0.0));
        if !self.pause(*prefill) {
            return;
        }
        let _ = self.sender.send(progress(total, 4.0));
        if let Some(pooling) = self.embed {
            let vectors = self.job.prompt.iter().map(|token| {
                let mut vector = vector.clone();
                vector[0] += *token as f32;
                vector
            });
            let mut vectors: Vec<_> = vectors.collect();
            match pooling {
                Pooling::None => {}
                Pooling::Cls => vectors.truncate(1),
                Pooling::Last | Pooling::Mean => drop(vectors.drain(..total - 1)),
            }
            let _ = self.sender.send(JobEvent::Embedding { vectors });
        }
        let limit = self.job.max_tokens.map_or(usize::MAX, |n| n as usize);
        for (place, token) in tokens.iter().take(limit).enumerate() {
            if !self.pause(*per_token) {
                return;
            }
            let is_step = place % per_step == 0;
            self.steps.fetch_add(u64::from(is_step), Ordering::SeqCst);
            let probs = (self.job.sampling.n_probs > 0).then(|| TokenProbs {
                logprob: -0.5,
                top: (0..self.job.sampling.n_probs)
                    .map(|i| (*token, -0.5 - i as f32))
                    .collect(),
            });
            let _ = self.sender.send(JobEvent::Token {
                token: *token,
                probs,
                at: Instant::now(),
                draft: Draft {
                    n: match place % per_step {
                        0 => *per_step as u32 - 1,
                        _ => 0,
                    },
                    place: (place % per_step) as u32,
                },
                // 8 ms for the prompt and 0.5 for each token.
                cpu_ms: Some(8.5 + place as f64 / 2.0),
            });
        }
        let finish = if tokens.len() >= limit {
            Finish::Limit
        } else {
            finish.clone()
        };
        let _ = self.sender.send(JobEvent::Done {
            finish,
            shifted: false,
        });
    }

    /// False when cancelled meanwhile.
    fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1).min(time));
        }
        !self.stop.load(Ordering::SeqCst)
    }
}
