//! Decides what each forward pass computes: one token for every sequence that generates, and a share of the prompts that
//! wait to be evaluated (continuous batching with chunked prefill). One thread owns this, the model and the cache.
//!
//! Jobs beyond the slots wait in order of arrival; the server bounds their number. The prompt tokens of a step are
//! limited so that it lasts about [`STEP_ALONE`], or [`STEP_SHARED`] while others generate. How a prompt is
//! cut never changes what comes out (see `graph`).
//!
//! The CPU time of a forward pass, that of all threads, is shared among its jobs by their tokens in it; what a token costs to draw is its own
//! job's. Work between the passes (copies, slot files) is nobody's.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::chores::Chores;
use crate::cpu_time::Laps;
use crate::engine::Engine;
use crate::grammar::GrammarError;
use crate::graph::{Entry, Model};
use crate::pooling::Pooler;
use crate::protocol::{
    Carried, EMBEDDING_PART_VALUES, Embed, Finish, FromEngine, Pooling, SamplingParams, SlotAction,
    Submit,
};
use crate::sampler::{SampleError, Sampled, Sampler, Want};
use crate::sampler_maker::SamplerMaker;

/// How long a step with prompt tokens should take when nobody generates.
pub const STEP_ALONE: Duration = Duration::from_millis(500);
/// How long it should take when somebody does: the gap that others see between two tokens.
pub const STEP_SHARED: Duration = Duration::from_millis(150);
/// Time between two heartbeats while there is work; they are sent inside a step, too, between layers.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// A slot is chosen for its cache when at least this share of the prompt is in it; less, such as a common first token, is
/// not worth overwriting somebody's conversation.
const WORTH_REUSING: f64 = 0.1;
/// Work on later speed between two looks at the commands while idle: what a request may have to wait for it.
pub const PREPARE_IDLE: Duration = Duration::from_millis(10);
/// The same behind each step while others wait for tokens.
pub const PREPARE_BUSY: Duration = Duration::from_millis(5);
/// Work on saved slots between two looks at the commands.
const CHORES_ALONE: Duration = Duration::from_millis(50);
/// The same before each step while others wait for tokens.
const CHORES_SHARED: Duration = Duration::from_millis(20);
/// Most prompt tokens in a step whose likelihood is asked for: each takes the whole output head.
const SCORED_PER_STEP: usize = 32;
/// Fewest prompt tokens in a step, however slow the machine is.
const SMALLEST_CHUNK: usize = 8;
/// Longest wait for a sampler between two looks at the commands while there is nothing else to do.
const SAMPLER_WAIT: Duration = Duration::from_millis(5);

/// What the scheduler is told while it runs.
#[derive(Debug)]
pub enum Command {
    /// Begin a generation.
    Submit(Box<Submit>),
    /// Embed a text.
    Embed(Box<Embed>),
    /// Forget a generation or an embedding.
    Cancel(u64),
    /// Save, restore or erase a slot.
    Slot {
        /// For the answer.
        id: u64,
        /// Which slot.
        slot: usize,
        /// What to do.
        action: SlotAction,
    },
}

/// Slots, waiting jobs, and where events go.
pub struct Scheduler<S> {
    engine: Engine,
    slots: Vec<Slot>,
    waiting: VecDeque<Waiting>,
    maker: SamplerMaker,
    chores: Chores,
    /// `[n_embd]` the vector of a token to embed.
    hidden: Vec<f32>,
    batch: Vec<Entry>,
    /// Prompt tokens left and slot of each unfinished prompt.
    order: Vec<(usize, usize)>,
    pace: Pace,
    /// Forward passes since start.
    steps: u64,
    last_beat: Instant,
    /// The server knows that there is nothing left to prepare.
    told_settled: bool,
    /// CPU time since the last step's end.
    cpu: Laps,
    /// Grows with every start; orders slots by last use.
    clock: u64,
    send: S,
}

#[derive(Default)]
struct Slot {
    job: Option<Job>,
    last_used: u64,
}

/// A job without a slot.
struct Waiting {
    submit: Submit,
    /// `None`: it is being made.
    sampler: Option<Sampler>,
    /// For a text to embed.
    pooling: Option<Pooling>,
}

/// A generation in its slot, or a text to embed: then nothing is generated.
struct Job {
    submit: Submit,
    pooler: Option<Pooler>,
    /// Tokens of the prompt; those in `submit.tokens` behind them were sampled here.
    n_prompt: usize,
    sampler: Sampler,
    /// The next token, if it is known before its step.
    forced: Option<u32>,
    cached: usize,
    prefill_began: Option<Instant>,
    /// Its share of the CPU time so far.
    cpu_ms: Option<f64>,
}

/// How fast prompts are evaluated, to choose how many tokens a step takes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    tok_s: f64,
}

impl<S: FnMut(FromEngine)> Scheduler<S> {
    /// A scheduler that owns `engine`; `send` must not block for long.
    pub fn new(engine: Engine, send: S) -> Self {
        let maker = SamplerMaker::new(engine.tokenizer_reader());
        let mut slots = Vec::new();
        slots.resize_with(engine.n_slots(), Slot::default);
        Scheduler {
            pace: Pace {
                tok_s: engine.expected_prefill_tok_s(),
            },
            batch: Vec::with_capacity(engine.model().limits().batch),
            order: Vec::with_capacity(slots.len()),
            hidden: vec![0.0; engine.model().n_embd()],
            chores: Chores::default(),
            engine,
            slots,
            maker,
            waiting: VecDeque::new(),
            steps: 0,
            last_beat: Instant::now(),
            told_settled: false,
            cpu: Laps::start(),
            clock: 0,
            send,
        }
    }

    /// Works until the other end of `commands` is gone.
    pub fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            if !self.has_work() {
                let Some(command) = self.wait(commands) else {
                    return;
                };
                self.last_beat = Instant::now();
                self.cpu.lap();
                self.handle(command);
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.handle(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.step();
        }
    }

    /// The next command; prepares the engine until it comes. `None` when the other end is gone.
    fn wait(&mut self, commands: &Receiver<Command>) -> Option<Command> {
        while self.engine.is_unprepared() {
            match commands.try_recv() {
                Ok(command) => return Some(command),
                Err(TryRecvError::Empty) => self.engine.prepare(PREPARE_IDLE),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        if !self.told_settled {
            self.told_settled = true;
            (self.send)(FromEngine::Settled);
        }
        commands.recv().ok()
    }

    /// Takes a command; what it starts runs in the next [`Scheduler::step`].
    pub fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submit) => self.submit(*submit, None),
            Command::Embed(embed) => {
                let own = self.engine.facts().pooling.unwrap_or(Pooling::Last);
                let pooling = embed.pooling.unwrap_or(own);
                self.submit(evaluation(*embed), Some(pooling));
            }
            Command::Cancel(id) => self.cancel(id),
            Command::Slot { id, slot, action } => self.chores.push(id, slot, action),
        }
    }

    /// True while a step would do something.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty()
            || !self.chores.is_empty()
            || self.slots.iter().any(|slot| slot.job.is_some())
    }

    /// True while a job runs in the slot.
    pub fn is_busy(&self, slot: usize) -> bool {
        self.slots[slot].job.is_some()
    }

    fn submit(&mut self, submit: Submit, pooling: Option<Pooling>) {
        match self.check(&submit) {
            Ok(()) => {
                let sampler = self.maker.make(&submit);
                self.waiting.push_back(Waiting {
                    submit,
                    sampler,
                    pooling,
                });
            }
            Err(finish) => (self.send)(FromEngine::Done {
                id: submit.id,
                finish,
            }),
        }
    }

    fn check(&self, submit: &Submit) -> Result<(), Finish> {
        let (n_vocab, n_slots) = (self.engine.model().n_vocab(), self.slots.len());
        let (n_tokens, context) = (submit.tokens.len(), self.engine.context());
        let unknown = submit
            .tokens
            .iter()
            .find(|&&token| token as usize >= n_vocab);
        let is_known = |id| {
            self.jobs().any(|job: &Job| job.submit.id == id)
                || self.waiting.iter().any(|it| it.submit.id == id)
        };
        let error = if n_tokens == 0 {
            "the prompt has no tokens".to_owned()
        } else if n_tokens == context + 1 {
            // A continuation: the engine before this one died between the last token and its `Done`.
            return Err(Finish::ContextFull);
        } else if n_tokens > context {
            format!("the prompt has {n_tokens} tokens, a slot holds {context}")
        } else if let Some(token) = unknown {
            format!("token {token} is not in the vocabulary of {n_vocab}")
        } else if let Some(slot) = submit.slot.filter(|&slot| slot >= n_slots) {
            format!("slot {slot} is not one of the {n_slots}, which count from 0")
        } else if is_known(submit.id) {
            return Err(Finish::Error(format!(
                "generation {} exists already",
                submit.id
            )));
        } else {
            return Ok(());
        };
        Err(Finish::Error(error))
    }

    fn cancel(&mut self, id: u64) {
        let is_it = |slot: &Slot| slot.job.as_ref().is_some_and(|job| job.submit.id == id);
        if let Some(place) = self.waiting.iter().position(|it| it.submit.id == id) {
            self.waiting.remove(place);
        } else if let Some(slot) = self.slots.iter_mut().find(|slot| is_it(slot)) {
            slot.job = None;
        } else {
            return;
        }
        (self.send)(FromEngine::Done {
            id,
            finish: Finish::Cancelled,
        });
    }

    fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.slots.iter().filter_map(|slot| slot.job.as_ref())
    }

    /// Starts what can start, then one forward pass and its tokens.
    pub fn step(&mut self) {
        self.take_samplers(Duration::ZERO);
        self.start_waiting();
        self.do_chores();
        self.batch.clear();
        self.add_generating();
        let n_generating = self.batch.len();
        self.add_prompts();
        if self.batch.is_empty() {
            if self.waiting.iter().any(|it| it.sampler.is_none()) {
                self.take_samplers(SAMPLER_WAIT);
                self.beat();
            }
            return;
        }
        let began = Instant::now();
        self.forward();
        self.pace
            .observe(self.batch.len() - n_generating, began.elapsed());
        if self.engine.is_unprepared() {
            self.engine.prepare(PREPARE_BUSY);
            self.cpu.lap();
        }
    }

    fn do_chores(&mut self) {
        if self.chores.is_empty() {
            return;
        }
        let time = match self.jobs().next() {
            Some(_) => CHORES_SHARED,
            None => CHORES_ALONE,
        };
        let Scheduler {
            engine,
            slots,
            send,
            ..
        } = self;
        let fingerprint = *engine.fingerprint();
        let is_idle = |slot: usize| slots.get(slot).is_none_or(|slot| slot.job.is_none());
        let kv = engine.kv_mut();
        self.chores.work(time, kv, &fingerprint, is_idle, send);
        self.cpu.lap();
        self.beat();
    }

    /// Tells the server that work goes on, if it was not told for a while.
    fn beat(&mut self) {
        if self.last_beat.elapsed() >= HEARTBEAT {
            self.last_beat = Instant::now();
            (self.send)(FromEngine::Heartbeat { steps: self.steps });
        }
    }

    /// Gives samplers that have been made to the jobs that wait for them.
    fn take_samplers(&mut self, mut wait: Duration) {
        while let Some((id, made)) = self.maker.next(wait) {
            wait = Duration::ZERO;
            let Some(place) = self.waiting.iter().position(|it| it.submit.id == id) else {
                continue;
            };
            match made {
                Ok(sampler) => self.waiting[place].sampler = Some(sampler),
                Err(error) => {
                    self.waiting.remove(place);
                    let finish = finish_of(&error.into());
                    (self.send)(FromEngine::Done { id, finish });
                }
            }
        }
    }

    fn start_waiting(&mut self) {
        let mut place = 0;
        while place < self.waiting.len() {
            let is_made = self.waiting[place].sampler.is_some();
            let slot = is_made.then(|| self.choose_slot(&self.waiting[place].submit));
            match slot.flatten() {
                Some(slot) => {
                    let waiting = self
                        .waiting
                        .remove(place)
                        .expect("the place is inside the queue");
                    self.start(slot, waiting);
                }
                None => place += 1,
            }
        }
    }

    fn is_free(&self, slot: usize) -> bool {
        self.slots[slot].job.is_none() && !self.chores.claims(slot)
    }

    /// The slot asked for; else the idle one that holds most of the prompt; else the idle one unused for longest.
    fn choose_slot(&self, submit: &Submit) -> Option<usize> {
        if let Some(slot) = submit.slot {
            return self.is_free(slot).then_some(slot);
        }
        let idle = || (0..self.slots.len()).filter(|&slot| self.is_free(slot));
        let oldest = || idle().min_by_key(|&slot| self.slots[slot].last_used);
        if !reuses(submit) {
            return oldest();
        }
        let common = |slot| self.engine.kv().common_prefix(slot, &submit.tokens);
        let best = idle()
            .map(|slot| (common(slot), slot))
            .max_by_key(|&(n, slot)| (n, u64::MAX - self.slots[slot].last_used));
        match best {
            Some((n, slot)) if n as f64 >= WORTH_REUSING * submit.tokens.len() as f64 => Some(slot),
            _ => oldest(),
        }
    }

    fn start(&mut self, slot: usize, waiting: Waiting) {
        let Waiting {
            submit,
            sampler,
            pooling,
        } = waiting;
        let sampler = sampler.expect("a job starts when its sampler is made");
        let reusable = match reuses(&submit) {
            true => self.engine.kv().common_prefix(slot, &submit.tokens),
            false => 0,
        };
        // The last token is always evaluated: its logits are not kept.
        let cached = reusable.min(submit.tokens.len() - 1);
        self.engine.kv_mut().truncate(slot, cached);
        (self.send)(FromEngine::Prefill {
            id: submit.id,
            slot,
            total: submit.tokens.len(),
            cached,
            processed: cached,
            ms: 0.0,
            cpu_ms: self.cpu.are_known().then_some(0.0),
        });
        self.clock += 1;
        self.slots[slot].last_used = self.clock;
        self.slots[slot].job = Some(Job {
            n_prompt: submit.tokens.len(),
            sampler,
            forced: None,
            pooler: pooling.map(|pooling| Pooler::new(pooling, submit.tokens.len())),
            cached,
            prefill_began: None,
            cpu_ms: self.cpu.are_known().then_some(0.0),
            submit,
        });
    }

    fn add_generating(&mut self) {
        for (slot, it) in self.slots.iter_mut().enumerate() {
            if let Some(job) = it.job.as_mut().filter(|job| job.is_generating()) {
                let token = job.submit.tokens[job.submit.tokens.len() - 1];
                job.forced = job.sampler.forced();
                self.batch.push(Entry {
                    slot,
                    token,
                    wants_logits: job.forced.is_none(),
                });
            }
        }
    }

    /// Shares the step among the prompts, shortest remainder first: nobody starves, and nothing is left over.
    fn add_prompts(&mut self) {
        let Scheduler {
            engine,
            slots,
            batch,
            order,
            pace,
            ..
        } = self;
        let mut budget = pace
            .prompt_tokens(!batch.is_empty())
            .min(engine.prefill_batch());
        let n_cached = |slot: usize| engine.kv().tokens(slot).len();
        order.clear();
        for (slot, it) in slots.iter().enumerate() {
            if let Some(job) = it.job.as_ref().filter(|job| !job.is_generating()) {
                order.push((job.n_prompt - n_cached(slot), slot));
            }
        }
        order.sort_unstable();
        for (place, &(n_left, slot)) in order.iter().enumerate() {
            let Some(job) = &mut slots[slot].job else {
                continue;
            };
            let most = match job.submit.prompt_probs {
                Some(_) => SCORED_PER_STEP,
                None => usize::MAX,
            };
            let n = budget.div_ceil(order.len() - place).min(n_left).min(most);
            let start = n_cached(slot);
            let tokens = job.submit.tokens[start..start + n].iter().enumerate();
            batch.extend(tokens.map(|(i, &token)| Entry {
                slot,
                token,
                wants_logits: i + 1 == n_left && job.submit.max_tokens > 0,
            }));
            if n > 0 {
                job.prefill_began.get_or_insert_with(Instant::now);
            }
            budget -= n;
        }
    }

    /// Computes the batch, reports prompt progress, samples.
    fn forward(&mut self) {
        let Scheduler {
            engine,
            slots,
            batch,
            steps,
            last_beat,
            hidden,
            send,
            cpu,
            ..
        } = self;
        let (model, kv) = engine.parts();
        let wants = wants(slots, batch);
        model.forward_for(batch, &wants, kv, || {
            if last_beat.elapsed() >= HEARTBEAT {
                *last_beat = Instant::now();
                send(FromEngine::Heartbeat { steps: *steps });
            }
        });
        *steps += 1;
        let cpu_ms = cpu.lap();
        let mut n_before = 0;
        for run in batch.chunk_by(|a, b| a.slot == b.slot) {
            let entries = n_before..n_before + run.len();
            n_before = entries.end;
            let Slot { job, .. } = &mut slots[run[0].slot];
            if let Some(job) = job {
                let share = run.len() as f64 / batch.len() as f64;
                job.charge(cpu_ms.map(|ms| ms * share));
            }
            if let Some(unfinished) = job
                && !unfinished.is_generating()
            {
                let processed = kv.tokens(run[0].slot).len();
                send(unfinished.progress(run[0].slot, processed));
                let id = unfinished.submit.id;
                let mut is_embedded = Ok(());
                if unfinished.submit.prompt_probs.is_some() {
                    is_embedded = unfinished.score(model, entries.clone(), processed, send);
                }
                if let Some(pooler) = &mut unfinished.pooler {
                    let is_last = processed == unfinished.n_prompt;
                    is_embedded = embed(id, pooler, model, entries, is_last, hidden, send);
                }
                if let Err(finish) = is_embedded {
                    kv.truncate(run[0].slot, 0);
                    send(FromEngine::Done { id, finish });
                    *job = None;
                } else if processed == unfinished.n_prompt && unfinished.submit.max_tokens == 0 {
                    send(FromEngine::Heartbeat { steps: *steps });
                    send(FromEngine::Done {
                        id,
                        finish: Finish::Limit,
                    });
                    *job = None;
                }
            }
        }
        let wanted = || batch.iter().filter(|entry| entry.wants_logits);
        let mut drawn: Vec<_> = wanted()
            .zip(model.logits())
            .map(|(entry, mut logits)| {
                let job = slots[entry.slot].job.as_mut()?;
                let drawn = job.sampler.draw(&mut logits, &job.submit.tokens);
                job.charge(cpu.lap());
                Some(drawn)
            })
            .collect();
        let mut place = 0;
        for &Entry {
            slot, wants_logits, ..
        } in batch.iter()
        {
            let Some(job) = &mut slots[slot].job else {
                place += usize::from(wants_logits);
                continue;
            };
            let sampled = match (wants_logits, job.forced.take()) {
                (true, _) => {
                    place += 1;
                    let Some(drawn) = drawn[place - 1].take() else {
                        continue;
                    };
                    match drawn {
                        Ok(Some(sampled)) => Ok(sampled),
                        Ok(None) => {
                            let drawn = job.draw_allowed(model, place - 1);
                            job.charge(cpu.lap());
                            drawn
                        }
                        Err(error) => Err(error),
                    }
                }
                (false, Some(token)) => job.sampler.take_forced(token),
                (false, None) => continue,
            };
            if let Some(finish) = job.take(sampled, kv.shape().context, send) {
                if matches!(finish, Finish::Error(_)) {
                    // What the cache holds led to this; it must not reach another generation.
                    kv.truncate(slot, 0);
                }
                // Counters are right by the time a client has its answer, however short the work was.
                send(FromEngine::Heartbeat { steps: *steps });
                send(FromEngine::Done {
                    id: job.submit.id,
                    finish,
                });
                slots[slot].job = None;
            }
        }
    }
}

/// Whether what is cached of its prompt's beginning counts.
fn reuses(submit: &Submit) -> bool {
    submit.cache_prompt && submit.prompt_probs.is_none()
}

/// A text to embed as a generation of no tokens. All of it is evaluated: the cache keeps no vectors.
fn evaluation(embed: Embed) -> Submit {
    Submit {
        id: embed.id,
        tokens: embed.tokens,
        max_tokens: 0,
        eog_tokens: Vec::new(),
        cache_prompt: false,
        slot: embed.slot,
        sampling: SamplingParams::default(),
        carried: Carried::default(),
        prompt_probs: None,
    }
}

/// Takes the vectors of some entries of the last batch, and sends what is ready.
fn embed(
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

/// What the sampler of each entry that wants logits needs, in the order of the batch. A slot has one such entry at most.
fn wants<'a>(slots: &'a mut [Slot], batch: &[Entry]) -> Vec<Want<'a>> {
    let mut jobs: Vec<_> = slots.iter_mut().map(|slot| slot.job.as_mut()).collect();
    let wanted = batch.iter().filter(|entry| entry.wants_logits);
    wanted
        .map(|entry| match jobs[entry.slot].take() {
            Some(job) => job.sampler.wants(&job.submit.tokens),
            None => Want::All,
        })
        .collect()
}

impl Job {
    fn is_generating(&self) -> bool {
        self.submit.tokens.len() > self.n_prompt
    }

    /// Milliseconds since its first prefill step began.
    fn ms(&self) -> f64 {
        self.prefill_began
            .map_or(0.0, |began| began.elapsed().as_secs_f64() * 1e3)
    }

    fn progress(&self, slot: usize, processed: usize) -> FromEngine {
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
    fn score(
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

    fn charge(&mut self, cpu_ms: Option<f64>) {
        self.cpu_ms = self.cpu_ms.zip(cpu_ms).map(|(sum, more)| sum + more);
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

/// How a generation ends whose sampler is at a loss.
fn finish_of(error: &SampleError) -> Finish {
    let message = error.to_string();
    match error {
        SampleError::NotFinite { .. } | SampleError::Grammar(GrammarError::Vocabulary(_)) => {
            Finish::Error(message)
        }
        SampleError::NothingLeft | SampleError::Grammar(_) => Finish::Refused(message),
    }
}

impl Pace {
    /// Prompt tokens that fit a step.
    fn prompt_tokens(&self, is_shared: bool) -> usize {
        let step = if is_shared { STEP_SHARED } else { STEP_ALONE };
        ((self.tok_s * step.as_secs_f64()) as usize).max(SMALLEST_CHUNK)
    }

    /// Learns from a step; a few tokens say little about many.
    fn observe(&mut self, n_prompt_tokens: usize, took: Duration) {
        if n_prompt_tokens >= SMALLEST_CHUNK {
            let tok_s = n_prompt_tokens as f64 / took.as_secs_f64().max(1e-6);
            self.tok_s = (self.tok_s + tok_s) / 2.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_as_many_prompt_tokens_as_fit_its_time() {
        let mut pace = Pace { tok_s: 1000.0 };
        assert_eq!(
            (pace.prompt_tokens(false), pace.prompt_tokens(true)),
            (500, 150)
        );
        pace.observe(1, Duration::from_secs(1));
        assert_eq!(pace.prompt_tokens(false), 500);
        for _ in 0..20 {
            pace.observe(50, Duration::from_secs(1));
        }
        assert_eq!(
            (pace.prompt_tokens(false), pace.prompt_tokens(true)),
            (25, SMALLEST_CHUNK)
        );
    }
}
