//! Runs the answers of one request: submits a job for each, turns its tokens into text, ends it at stop strings and times.
//!
//! [`Choice`] is one answer and pure: events in, steps out. [`Run`] drives all answers of a request; dropping it cancels
//! them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bitnet_model::protocol::{Finish, TokenProbs};
use bitnet_model::tokenizer::Detokenizer;
use tokio::time::sleep;

use crate::app::{App, Generation};
use crate::backend::{BackendState, EnergyMoment, Job, JobEvent, JobHandle, Refused};
use crate::error::ApiError;
use crate::metrics::{End, Finished};
use crate::model::Model;
use crate::request::Params;
use crate::stop::StopScanner;

/// Pause before an answer of a running request is submitted again to a full queue.
const RESUBMIT: Duration = Duration::from_millis(50);

/// What a client sees of an answer, in order: `Progress`+, `Token`*, `End`.
#[derive(Debug)]
pub(crate) enum Step {
    /// Prompt progress.
    Progress { index: usize, progress: Progress },
    /// One token, its text perhaps empty.
    Token { index: usize, delta: Delta },
    /// The end of one answer.
    End { index: usize, outcome: Box<Outcome> },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    pub(crate) slot: usize,
    pub(crate) total: usize,
    pub(crate) cached: usize,
    pub(crate) processed: usize,
    pub(crate) ms: f64,
}

#[derive(Debug)]
pub(crate) struct Delta {
    pub(crate) slot: Option<usize>,
    pub(crate) token: u32,
    /// Whole characters that belong to no stop string.
    pub(crate) text: String,
    pub(crate) probs: Option<TokenProbs>,
    /// With the first token, where asked for: those of the prompt's tokens but the first.
    pub(crate) prompt_probs: Vec<TokenProbs>,
    pub(crate) timings: Timings,
    pub(crate) n_prompt: usize,
}

/// Why an answer ended, in llama-server's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopType {
    Eos,
    Word(String),
    Limit,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) slot: Option<usize>,
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) seed: u32,
    pub(crate) text: String,
    /// Text at the end that no `Token` step carried: what was withheld, or the rest of a broken character.
    pub(crate) tail: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) probs: Vec<(u32, TokenProbs)>,
    /// Where asked for and no [`Delta`] had them: those of the prompt's tokens but the first.
    pub(crate) prompt_probs: Vec<TokenProbs>,
    pub(crate) stop: StopType,
    /// The context was full, or was shifted on the way.
    pub(crate) truncated: bool,
    pub(crate) timings: Timings,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timings {
    /// Prompt tokens found in the cache.
    pub(crate) cached: usize,
    /// Prompt tokens evaluated.
    pub(crate) prompt_n: usize,
    pub(crate) prompt_ms: f64,
    /// Tokens produced.
    pub(crate) predicted_n: usize,
    /// From the first token to the last.
    pub(crate) predicted_ms: f64,
    /// CPU time of the engine; a step's is shared by tokens.
    pub(crate) cpu_ms: Option<f64>,
    /// Tokens guessed ahead, and those of them that were right.
    pub(crate) draft_n: usize,
    pub(crate) draft_n_accepted: usize,
    /// Idle power taken off; only of an answer that was alone.
    pub(crate) joules: Option<f64>,
}

/// One answer on its way.
struct Choice {
    index: usize,
    params: Arc<Params>,
    model: Arc<Model>,
    prompt: Arc<[u32]>,
    seed: u32,
    asked_at: Instant,
    /// The meter before it was submitted.
    energy: Option<EnergyMoment>,
    slot: Option<usize>,
    detokenizer: Detokenizer,
    scanner: StopScanner,
    /// Shown so far.
    text: String,
    tokens: Vec<u32>,
    /// With where each token's text starts.
    probs: Vec<(usize, u32, TokenProbs)>,
    prompt_probs: Vec<TokenProbs>,
    timings: Timings,
    /// Prompt tokens in the cache, as counted.
    prompt_seen: Option<usize>,
    first_at: Option<Instant>,
    last_at: Option<Instant>,
}

impl Choice {
    /// The job to submit.
    fn job(&self) -> Job {
        let mut sampling = self.params.sampling.clone();
        sampling.seed = self.seed;
        Job {
            prompt: self.prompt.to_vec(),
            max_tokens: self.params.max_tokens,
            eog_tokens: self.model.tokenizer().eog().to_vec(),
            cache_prompt: self.params.cache_prompt,
            slot: self.params.slot,
            n_keep: usize::try_from(self.params.n_keep).unwrap_or(self.prompt.len()),
            sampling,
            prompt_probs: self.params.prompt_probs,
            draft_max: self.params.draft_max,
            tenure: self.model.card.tenure.number(),
        }
    }

    /// Takes one event in; an `End` is the last step.
    fn on(&mut self, event: JobEvent, app: &App) -> Result<Vec<Step>, ApiError> {
        match event {
            JobEvent::Prefill {
                slot,
                total,
                cached,
                processed,
                ms,
                cpu_ms,
            } => {
                self.timings.cpu_ms = cpu_ms;
                self.slot = Some(slot);
                self.timings.cached = cached;
                self.timings.prompt_n = total.saturating_sub(cached);
                self.timings.prompt_ms = ms;
                if self.prompt_seen.is_none() {
                    app.metrics.began(self.asked_at.elapsed());
                }
                let before = self.prompt_seen.unwrap_or(cached);
                app.metrics.prompt_tokens(processed.saturating_sub(before));
                self.prompt_seen = Some(processed);
                let progress = Progress {
                    slot,
                    total,
                    cached,
                    processed,
                    ms,
                };
                Ok(vec![Step::Progress {
                    index: self.index,
                    progress,
                }])
            }
            JobEvent::Token {
                token,
                probs,
                at,
                draft,
                cpu_ms,
            } => {
                self.timings.cpu_ms = cpu_ms;
                self.timings.draft_n += draft.n as usize;
                self.timings.draft_n_accepted += usize::from(draft.place > 0);
                app.metrics.drafted(draft);
                self.clock(at, app);
                Ok(self.on_token(token, probs))
            }
            JobEvent::PromptProbs { first, probs } => {
                // What an engine before this one has told already comes again.
                let known = (1 + self.prompt_probs.len()).saturating_sub(first);
                self.prompt_probs.extend(probs.into_iter().skip(known));
                Ok(Vec::new())
            }
            // A generation has none.
            JobEvent::Embedding { .. } => Ok(Vec::new()),
            JobEvent::Done { finish, shifted } => Ok(vec![self.on_done(finish, shifted)?]),
        }
    }

    fn clock(&mut self, at: Instant, app: &App) {
        match self.last_at {
            None => app
                .metrics
                .first_token(at.saturating_duration_since(self.asked_at)),
            Some(last) => app.metrics.next_token(at.saturating_duration_since(last)),
        }
        let first = *self.first_at.get_or_insert(at);
        self.last_at = Some(at);
        self.timings.predicted_n += 1;
        self.timings.predicted_ms = at.saturating_duration_since(first).as_secs_f64() * 1e3;
    }

    fn on_token(&mut self, token: u32, probs: Option<TokenProbs>) -> Vec<Step> {
        let starts_at = self.text.len() + self.scanner.withheld_bytes();
        let piece = match self.model.tokenizer().eog().contains(&token) {
            true => String::new(),
            false => self.detokenizer.push(token),
        };
        let scan = self.scanner.push(&piece);
        self.text.push_str(&scan.text);
        if self.params.return_tokens {
            self.tokens.push(token);
        }
        if let Some(probs) = &probs
            && !self.params.stream
        {
            self.probs.push((starts_at, token, probs.clone()));
        }
        let delta = Delta {
            slot: self.slot,
            token,
            text: scan.text,
            probs,
            prompt_probs: match self.params.stream {
                true => std::mem::take(&mut self.prompt_probs),
                false => Vec::new(),
            },
            timings: self.timings,
            n_prompt: self.prompt.len(),
        };
        let mut steps = vec![Step::Token {
            index: self.index,
            delta,
        }];
        if let Some(word) = scan.stopped_by {
            let shown = self.text.len();
            self.probs.retain(|(starts_at, ..)| *starts_at < shown);
            steps.push(self.end(StopType::Word(word), String::new(), false));
        } else if self.out_of_time() {
            steps.push(self.stop_here(StopType::Limit, false));
        }
        steps
    }

    fn on_done(&mut self, finish: Finish, shifted: bool) -> Result<Step, ApiError> {
        let stop = match &finish {
            Finish::Eos => StopType::Eos,
            Finish::Limit | Finish::ContextFull => StopType::Limit,
            Finish::Cancelled => return Err(ApiError::unavailable("the generation was cancelled")),
            Finish::Unserved(why) => return Err(ApiError::unavailable(why.clone())),
            Finish::Refused(message) => return Err(ApiError::invalid(message.clone())),
            Finish::Error(message) => return Err(ApiError::server(message.clone())),
        };
        Ok(self.stop_here(stop, shifted || finish == Finish::ContextFull))
    }

    /// Ends with everything there is.
    fn stop_here(&mut self, stop: StopType, truncated: bool) -> Step {
        let scan = self.scanner.push(&self.detokenizer.finish());
        let tail = match scan.stopped_by {
            Some(_) => scan.text,
            None => scan.text + &self.scanner.finish(),
        };
        self.text.push_str(&tail);
        self.end(stop, tail, truncated)
    }

    fn end(&mut self, stop: StopType, tail: String, truncated: bool) -> Step {
        let outcome = Outcome {
            slot: self.slot,
            prompt: Arc::clone(&self.prompt),
            seed: self.seed,
            text: std::mem::take(&mut self.text),
            tail,
            tokens: std::mem::take(&mut self.tokens),
            probs: self
                .probs
                .drain(..)
                .map(|(_, token, probs)| (token, probs))
                .collect(),
            prompt_probs: std::mem::take(&mut self.prompt_probs),
            stop,
            truncated,
            timings: self.timings,
        };
        Step::End {
            index: self.index,
            outcome: Box::new(outcome),
        }
    }

    /// The time has passed and there is at least one whole line.
    fn out_of_time(&self) -> bool {
        match (self.params.max_predict, self.first_at, self.last_at) {
            (Some(limit), Some(first), Some(last)) => {
                self.text.contains('\n') && last.saturating_duration_since(first) > limit
            }
            _ => false,
        }
    }

    /// Counts and logs an answer that has ended.
    fn leave(&self, task: u64, end: End, app: &App) {
        self.log(task, end);
        app.metrics.finished(self.finished(end));
        if self.prompt_seen.is_some() {
            app.metrics.left();
        }
    }

    /// Numbers only, never text.
    fn log(&self, task: u64, end: End) {
        let Timings {
            cached,
            prompt_n,
            prompt_ms,
            predicted_n,
            predicted_ms,
            ..
        } = self.timings;
        tracing::info!(
            target: "bitnet_server::generation",
            "task {task} {end}: prompt {prompt_n} tokens and {cached} cached in {prompt_ms:.0} ms, \
        answer {predicted_n} tokens in {predicted_ms:.0} ms"
        );
    }

    fn finished(&self, end: End) -> Finished {
        Finished {
            prompt_tokens: self.timings.prompt_n as u64,
            prompt_cached: self.timings.cached as u64,
            prompt_ms: self.timings.prompt_ms,
            predicted: self.timings.predicted_n as u64,
            predicted_ms: self.timings.predicted_ms,
            sequence: (self.prompt.len() + self.timings.predicted_n) as u64,
            end,
        }
    }
}

/// All answers of one request.
pub(crate) struct Run {
    app: Arc<App>,
    waiting: VecDeque<Choice>,
    running: Vec<(Choice, JobHandle)>,
    /// Where polling begins, so that no answer starves another.
    turn: usize,
    at_once: usize,
    /// Steps of the last event, not given out yet.
    ready: VecDeque<Step>,
    _generation: Generation,
}

impl Run {
    /// Submits the first answers, as many as there are slots.
    ///
    /// # Errors
    /// When the backend refuses the first one.
    pub(crate) fn start(
        app: Arc<App>,
        model: Arc<Model>,
        params: Arc<Params>,
        prompts: Vec<Vec<u32>>,
    ) -> Result<Self, ApiError> {
        let asked_at = Instant::now();
        let mut waiting = VecDeque::new();
        for prompt in prompts {
            let prompt: Arc<[u32]> = prompt.into();
            for k in 0..params.n {
                waiting.push_back(Choice {
                    index: waiting.len(),
                    params: Arc::clone(&params),
                    model: Arc::clone(&model),
                    prompt: Arc::clone(&prompt),
                    seed: params.sampling.seed.wrapping_add(k as u32),
                    asked_at,
                    energy: None,
                    slot: None,
                    detokenizer: model.detokenizer(),
                    scanner: StopScanner::new(params.stop.clone()),
                    text: String::new(),
                    tokens: Vec::new(),
                    probs: Vec::new(),
                    prompt_probs: Vec::new(),
                    timings: Timings::default(),
                    prompt_seen: None,
                    first_at: None,
                    last_at: None,
                });
            }
        }
        let generation = app.begin_generation();
        let at_once = model.card.slots.max(1);
        let mut run = Run {
            app,
            waiting,
            running: Vec::new(),
            turn: 0,
            at_once,
            ready: VecDeque::new(),
            _generation: generation,
        };
        match run.submit() {
            Err(refused) if run.running.is_empty() => Err(refused.into()),
            _ => Ok(run),
        }
    }

    /// The next step; `None` when all answers have ended. An error ends the request. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Step>, ApiError> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Ok(Some(step));
            }
            let full = match self.submit() {
                Ok(()) => false,
                Err(Refused::QueueFull(_)) => true,
                Err(refused) => return Err(refused.into()),
            };
            if self.running.is_empty() && self.waiting.is_empty() {
                return Ok(None);
            }
            let phase = self.app.phase();
            let mut cut_off = pin!(App::until_cut_off(phase));
            let mut again = pin!(sleep(RESUBMIT));
            let event = poll_fn(|cx| {
                if let Poll::Ready(event) = self.poll_event(cx) {
                    return Poll::Ready(Woken::Event(event));
                }
                if cut_off.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Woken::CutOff);
                }
                match full && again.as_mut().poll(cx).is_ready() {
                    true => Poll::Ready(Woken::Again),
                    false => Poll::Pending,
                }
            });
            match event.await {
                Woken::Event((at, event)) => self.take(at, event)?,
                Woken::CutOff => return self.cut_short().map(Some),
                Woken::Again => {}
            }
        }
    }

    /// Submits waiting answers while slots may be free.
    fn submit(&mut self) -> Result<(), Refused> {
        while self.running.len() < self.at_once
            && let Some(choice) = self.waiting.front_mut()
        {
            choice.energy = self.app.backend.energy();
            let handle = self.app.backend.submit(choice.job())?;
            if let Some(choice) = self.waiting.pop_front() {
                self.running.push((choice, handle));
            }
        }
        Ok(())
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Option<JobEvent>)> {
        let n = self.running.len();
        for i in 0..n {
            let at = (self.turn + i) % n;
            if let Poll::Ready(event) = self.running[at].1.events.poll_recv(cx) {
                self.turn = at + 1;
                return Poll::Ready((at, event));
            }
        }
        Poll::Pending
    }

    fn take(&mut self, at: usize, event: Option<JobEvent>) -> Result<(), ApiError> {
        let steps = match event {
            Some(event) => self.running[at].0.on(event, &self.app),
            None => Err(ApiError::server("the engine gave the generation up")),
        };
        match steps {
            Ok(mut steps) => {
                if let Some(Step::End { outcome, .. }) = steps.last_mut() {
                    let before = self.running[at].0.energy;
                    let joules = self.app.backend.energy().zip(before);
                    outcome.timings.joules =
                        joules.and_then(|(after, before)| after.joules_since(&before));
                    self.retire(at, End::Complete);
                }
                self.ready.extend(steps);
                Ok(())
            }
            Err(error) => {
                self.retire(at, End::Failed);
                Err(error)
            }
        }
    }

    /// The server shuts down: the answers end where they are.
    fn cut_short(&mut self) -> Result<Step, ApiError> {
        self.waiting.clear();
        match self.running.last_mut() {
            // An empty answer would look like one; this client may ask another server.
            Some((choice, _)) if choice.timings.predicted_n > 0 => {
                let step = choice.stop_here(StopType::Limit, true);
                self.retire(self.running.len() - 1, End::Cancelled);
                Ok(step)
            }
            _ => Err(ApiError::from(BackendState::Draining)),
        }
    }

    /// Counts an answer and forgets it; its handle cancels what may still run.
    fn retire(&mut self, at: usize, end: End) {
        let (choice, handle) = self.running.remove(at);
        choice.leave(handle.id, end, &self.app);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for (choice, handle) in self.running.drain(..) {
            choice.leave(handle.id, End::Cancelled, &self.app);
        }
    }
}

enum Woken {
    Event((usize, Option<JobEvent>)),
    CutOff,
    Again,
}
