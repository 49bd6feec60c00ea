//! Decides what each forward pass computes: one token for every sequence that generates, with guesses of the next ones where they pay
//! (see `speculation`), and a share of the prompts that wait to be evaluated (continuous batching with chunked prefill). One thread owns this, the model and the cache.
//!
//! Jobs beyond the slots wait in order of arrival; the server bounds their number. The prompt tokens of a step are
//! limited so that it lasts about [`STEP_ALONE`], or [`STEP_SHARED`] while others generate. How a prompt is
//! cut never changes what comes out (see `graph`).
//!
//! The CPU time of a forward pass, that of all threads, is shared among its jobs by their tokens in it; what a token costs to draw is its own
//! job's. Work between the passes (copies, slot files) is nobody's.

mod job;

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use crate::chores::Chores;
use crate::cpu_time::Laps;
use crate::engine::Engine;
use crate::graph::Entry;
use crate::pooling::Pooler;
use crate::protocol::{
    Carried, Embed, Finish, FromEngine, Pooling, SamplingParams, SlotAction, Submit,
};
use crate::sampler::{Sampler, Want};
use crate::sampler_maker::SamplerMaker;
use crate::speculation::{Acceptance, Costs, Offer, share};
use job::{Around, Job, Wanted, embed, finish_of};

/// How long a step with prompt tokens should take when nobody generates; a prompt's last step may take half as much more.
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
/// Tokens that kernels like to take together.
const TILE: usize = 16;
/// Longest wait for a sampler between two looks at the commands while there is nothing else to do.
const SAMPLER_WAIT: Duration = Duration::from_millis(5);

/// Time without work after which memory is given back.
const REST_AFTER: Duration = Duration::from_secs(1);

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
    wanted: Wanted,
    /// What steps without prompt tokens take, where tokens are guessed ahead.
    costs: Costs,
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
            wanted: Wanted::default(),
            costs: Costs::new(slots.len() + engine.drafts_per_step()),
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
        match commands.recv_timeout(REST_AFTER) {
            Ok(command) => return Some(command),
            Err(RecvTimeoutError::Timeout) => self.engine.rest(),
            Err(RecvTimeoutError::Disconnected) => return None,
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
        let took = began.elapsed();
        self.pace.observe(self.batch.len() - n_generating, took);
        if self.batch.len() == n_generating && self.engine.draft_max() > 0 {
            self.costs.observe(n_generating, took);
        }
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
            guess: None,
            acceptance: Acceptance::default(),
            pooler: pooling.map(|pooling| Pooler::new(pooling, submit.tokens.len())),
            cached,
            prefill_began: None,
            cpu_ms: self.cpu.are_known().then_some(0.0),
            submit,
        });
    }

    fn add_generating(&mut self) {
        let (draft_max, context) = (self.engine.draft_max(), self.engine.context());
        let jobs = self.slots.iter_mut().filter_map(|slot| slot.job.as_mut());
        let mut n_generating = 0;
        for job in jobs.filter(|job| job.is_generating()) {
            job.look_ahead(draft_max, context);
            n_generating += 1;
        }
        let offers = self.jobs().filter_map(|job| job.offer(draft_max, context));
        let offers: Vec<Offer<'_>> = offers.collect();
        let most = self.engine.drafts_per_step();
        let mut lengths = share(n_generating, &offers, most, &self.costs).into_iter();
        for (slot, it) in self.slots.iter_mut().enumerate() {
            let Some(job) = it.job.as_mut().filter(|job| job.is_generating()) else {
                continue;
            };
            let entry = |token, wants_logits| Entry {
                slot,
                token,
                wants_logits,
            };
            let last = job.submit.tokens[job.submit.tokens.len() - 1];
            self.batch.push(entry(last, job.forced.is_none()));
            if job.guess.is_some() {
                let drafts = job.drafts(lengths.next().unwrap_or(0));
                self.batch.extend(drafts.map(|token| entry(token, true)));
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
        let n_cached = |slot: usize| engine.kv().tokens(slot).len();
        order.clear();
        for (slot, it) in slots.iter().enumerate() {
            if let Some(job) = it.job.as_ref().filter(|job| !job.is_generating()) {
                order.push((job.n_prompt - n_cached(slot), slot));
            }
        }
        order.sort_unstable();
        let n_left = order.iter().map(|(n_left, _)| n_left).sum();
        let budget = pace.prompt_tokens(!batch.is_empty());
        let mut budget = worth_a_step(budget, n_left, batch.len()).min(engine.prefill_batch());
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
            wanted,
            send,
            cpu,
            ..
        } = self;
        let (model, kv) = engine.parts();
        wanted.clear();
        for run in batch.chunk_by(|a, b| a.slot == b.slot) {
            let (n_wanted, drafts) = drafts_of(run);
            match &mut slots[run[0].slot].job {
                Some(job) if n_wanted > 0 => job.want(drafts, wanted),
                _ => (0..n_wanted).for_each(|_| wanted.push(Want::All)),
            }
        }
        model.forward_for(batch, &wanted.all(), kv, || {
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
        let mut around = Around {
            context: kv.shape().context,
            cpu,
            send,
        };
        let mut n_before = 0;
        for run in batch.chunk_by(|a, b| a.slot == b.slot) {
            let (n_wanted, drafts) = drafts_of(run);
            let places = n_before..n_before + n_wanted;
            n_before = places.end;
            let slot = run[0].slot;
            let Some(job) = &mut slots[slot].job else {
                continue;
            };
            let finish = job.advance(model, places, drafts, &mut around);
            if !drafts.is_empty() {
                // Behind the first wrong draft nothing is true.
                kv.truncate(slot, job.submit.tokens.len() - 1);
            }
            let Some(finish) = finish else { continue };
            if matches!(finish, Finish::Error(_)) {
                // What the cache holds led to this; it must not reach another generation.
                kv.truncate(slot, 0);
            }
            // Counters are right by the time a client has its answer, however short the work was.
            (around.send)(FromEngine::Heartbeat { steps: *steps });
            (around.send)(FromEngine::Done {
                id: job.submit.id,
                finish,
            });
            slots[slot].job = None;
        }
    }
}

/// Of a slot's entries in a batch: how many want logits, and the drafts among them, which are the last.
fn drafts_of(run: &[Entry]) -> (usize, &[Entry]) {
    let n_wanted = run.iter().filter(|entry| entry.wants_logits).count();
    (n_wanted, &run[run.len() - n_wanted.saturating_sub(1)..])
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
        draft_max: None,
    }
}

/// About `budget` prompt tokens of the `n_left` that wait: with the tokens of `others`, who generate, they make whole tiles; when
/// nobody does, a few are not left behind for a step of their own, which reads all weights once more.
fn worth_a_step(budget: usize, n_left: usize, others: usize) -> usize {
    if others == 0 && n_left <= budget + budget / 2 {
        return n_left;
    }
    let step = (others + budget + TILE / 2) / TILE * TILE;
    match step > others {
        true => step - others,
        false => budget,
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
    fn steps_are_whole_tiles_or_all_that_is_left() {
        let long = 1000;
        let cases = [
            (128, long, 0, 128),
            (95, long, 0, 96),
            (54, long, 0, 48),
            (54, long, 3, 61),
            (8, long, 20, 12),
            (8, long, 3, 13),
            (95, 128, 0, 128),
            (95, 143, 0, 96),
            (95, 128, 1, 95),
        ];
        for (budget, n_left, others, expected) in cases {
            let found = worth_a_step(budget, n_left, others);
            assert_eq!(found, expected, "{budget}, {n_left}, {others}");
        }
    }

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
