//! Between HTTP and engine: a bounded queue of jobs that outlive the engines they run on.
//!
//! One thread, the supervisor, owns the jobs, the engine and the table in [`super::state`]; everybody else sends it
//! messages. What HTTP reads (state, slots, counters) lies in [`Shared`], written by that thread alone and locked only
//! to copy. Per engine there are two more threads, a reader and a writer of frames, so that an engine which stands still
//! blocks nobody.
//!
//! A job remembers its window: prompt and tokens produced so far. When an engine ends, its jobs go back to the head of
//! the queue and are submitted to the next one as window; sampling depends on (seed, position) and the tokens before,
//! so they continue with the tokens they would have had.
//!
//! Jobs that end engines: a job gets a strike each time an engine crashes or hangs while it runs and it got no token
//! since the last strike. With [`STRIKES`] of them it is run alone; if the engine ends again, only that job fails.
//! Kills from outside give no strikes.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_model::protocol::{
    EngineConfig, Finish, FromEngine, SlotAction, SlotFault, SlotReport, ToEngine, TokenProbs,
    read_frame, write_frame,
};
use bitnet_server::backend::{
    Backend, BackendCounters, BackendState, CancelOnDrop, EmbedJob, EnergyMoment, Job, JobEvent,
    JobHandle, Refused, SlotView, Usage,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use self::chores::{Chore, Chores};
use self::work::Work;
use super::child::{Engine, Spawn, reap_orphans};
use super::state::{Action, Event, Failure, Phase, State, step};

/// Engine ends with the same job and no token in between until the job is a suspect.
const STRIKES: u32 = 2;
/// Socket closed but process alive, or the other way round: waited for this long.
const END_TOGETHER: Duration = Duration::from_secs(2);
/// Longest sleep of the supervisor thread.
const TICK: Duration = Duration::from_secs(1);
/// Slot actions that may wait.
const MAX_CHORES: usize = 64;
/// Messages handled between two looks at the clock.
const BURST: usize = 256;

/// What the supervisor needs to know.
#[derive(Debug, Clone)]
pub(crate) struct BrokerConfig {
    /// For every engine.
    pub(crate) engine: EngineConfig,
    /// Jobs that may wait while all slots are busy.
    pub(crate) max_queue: usize,
    /// When a slot's context is full: keep the head and the last half, and go on.
    pub(crate) context_shift: bool,
    /// Time an engine gets to load.
    pub(crate) start_timeout: Duration,
    /// A busy engine without any progress for this long is replaced.
    pub(crate) hang_timeout: Duration,
}

/// What the program wants to know about the engine's life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Notice {
    /// An engine is ready.
    Ready {
        /// Milliseconds it took to load.
        load_ms: f64,
        /// Its process id.
        pid: u32,
    },
    /// Given up.
    Failed {
        /// Why.
        failure: Failure,
        /// It had worked before.
        ever_ready: bool,
    },
    /// The supervisor has ended, and its engine with it.
    Stopped,
}

/// The handle: what HTTP and the signal handler hold.
#[derive(Clone)]
pub(crate) struct Broker {
    inbox: Sender<Message>,
    shared: Arc<Shared>,
}

enum Message {
    Submit(Box<Work>),
    Slot(Chore),
    Cancel(u64),
    Frame(u64, Box<FromEngine>),
    /// The engine of this generation closed its socket.
    Closed(u64),
    /// Its process has ended.
    Exited(u64),
    Drain(Duration),
    Renew(Box<EngineConfig>),
    Stop,
}

/// What HTTP may look at without asking the thread.
struct Shared {
    next_id: AtomicU64,
    view: Mutex<View>,
}

struct View {
    state: BackendState,
    max_queue: usize,
    /// Accepted and not ended.
    open: usize,
    /// Slot actions accepted and not answered.
    chores: usize,
    slots: Vec<SlotView>,
    counters: BackendCounters,
    engine_pid: Option<u32>,
    meter: Option<RequestMeter>,
    /// Watts without jobs.
    idle_w: Option<f64>,
}

/// Joules since some time; read at the beginning and the end of requests.
pub(crate) type RequestMeter = Arc<Mutex<dyn FnMut() -> f64 + Send>>;

impl Shared {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A broker whose engine is not known yet: its handle says `Loading`.
pub(crate) struct Unstarted {
    broker: Broker,
    messages: Receiver<Message>,
}

impl Unstarted {
    /// Starts the supervisor thread, and the first engine with it.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn start(
        self,
        config: BrokerConfig,
        spawner: impl Spawn + 'static,
    ) -> io::Result<UnboundedReceiver<Notice>> {
        let (notices, notice_rx) = unbounded_channel();
        let Broker { inbox, shared } = self.broker;
        let mut view = shared.view();
        view.max_queue = config.max_queue;
        view.slots = (0..config.engine.slots).map(idle_slot).collect();
        drop(view);
        let messages = self.messages;
        let supervisor = move || {
            Supervisor::new(config, Box::new(spawner), inbox, shared, notices).run(&messages);
        };
        thread::Builder::new()
            .name("supervisor".into())
            .spawn(supervisor)?;
        Ok(notice_rx)
    }
}

impl Broker {
    /// A handle that HTTP can use from now on, and what starts the rest once the plan is made.
    pub(crate) fn new() -> (Broker, Unstarted) {
        let (inbox, messages) = mpsc::channel();
        let view = View {
            state: BackendState::Loading,
            max_queue: 0,
            open: 0,
            chores: 0,
            slots: Vec::new(),
            counters: BackendCounters::default(),
            engine_pid: None,
            meter: None,
            idle_w: None,
        };
        let shared = Arc::new(Shared {
            next_id: AtomicU64::new(0),
            view: Mutex::new(view),
        });
        let broker = Broker { inbox, shared };
        let unstarted = Unstarted {
            broker: broker.clone(),
            messages,
        };
        (broker, unstarted)
    }

    /// Takes no new jobs, finishes the accepted ones within `limit`, then ends the engine.
    pub(crate) fn drain(&self, limit: Duration) {
        let mut view = self.shared.view();
        if view.state == BackendState::Ready || view.state == BackendState::Loading {
            view.state = BackendState::Draining;
        }
        drop(view);
        let _ = self.inbox.send(Message::Drain(limit));
    }

    /// At the next moment without work, replaces the engine by one of this configuration. Slots and contexts must stay what
    /// they are: accepted requests rely on them.
    pub(crate) fn renew(&self, config: EngineConfig) {
        let _ = self.inbox.send(Message::Renew(Box::new(config)));
    }

    /// The engine's process, while there is one.
    pub(crate) fn engine_pid(&self) -> Option<u32> {
        self.shared.view().engine_pid
    }

    /// What the next look at the counters shows of time and energy.
    pub(crate) fn set_usage(&self, usage: Usage) {
        self.shared.view().counters.usage = usage;
    }

    /// Requests are told their joules by this meter, once idle power is known.
    pub(crate) fn set_meter(&self, meter: RequestMeter) {
        self.shared.view().meter = Some(meter);
    }

    /// Jobs that have not ended, and all that were accepted.
    pub(crate) fn load(&self) -> (usize, u64) {
        let open = self.shared.view().open;
        (open, self.shared.next_id.load(Ordering::Relaxed))
    }

    /// What the machine takes while no job runs.
    pub(crate) fn set_idle_watts(&self, idle_w: f64) {
        self.shared.view().idle_w = Some(idle_w);
    }

    /// Ends everything at once.
    pub(crate) fn stop(&self) {
        let _ = self.inbox.send(Message::Stop);
    }
}

impl Backend for Broker {
    fn state(&self) -> BackendState {
        self.shared.view().state.clone()
    }

    fn submit(&self, job: Job) -> Result<JobHandle, Refused> {
        self.accept(|id, events| Work::new(id, job, events))
    }

    fn embed(&self, job: EmbedJob) -> Result<JobHandle, Refused> {
        self.accept(|id, events| Work::embedding(id, job, events))
    }

    fn slot_action(
        &self,
        slot: usize,
        action: SlotAction,
    ) -> Result<oneshot::Receiver<Result<SlotReport, SlotFault>>, Refused> {
        let mut view = self.shared.view();
        if view.state != BackendState::Ready {
            return Err(Refused::NotReady(view.state.clone()));
        }
        if view.chores >= MAX_CHORES {
            return Err(Refused::QueueFull(MAX_CHORES));
        }
        view.chores += 1;
        drop(view);
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (chore, answer) = Chore::new(id, slot, action);
        let _ = self.inbox.send(Message::Slot(chore));
        Ok(answer)
    }

    fn slots(&self) -> Vec<SlotView> {
        self.shared.view().slots.clone()
    }

    fn counters(&self) -> BackendCounters {
        self.shared.view().counters.clone()
    }

    fn energy(&self) -> Option<EnergyMoment> {
        let view = self.shared.view();
        let (meter, idle_w, open) = (view.meter.clone()?, view.idle_w?, view.open);
        drop(view);
        let accepted = self.shared.next_id.load(Ordering::Relaxed);
        let joules = meter.lock().unwrap_or_else(PoisonError::into_inner)();
        Some(EnergyMoment {
            at: Instant::now(),
            joules,
            idle_w,
            open,
            accepted,
        })
    }
}

impl Broker {
    /// Queues what `work` makes, if there is room.
    fn accept(
        &self,
        work: impl FnOnce(u64, UnboundedSender<JobEvent>) -> Work,
    ) -> Result<JobHandle, Refused> {
        let mut view = self.shared.view();
        if view.state != BackendState::Ready {
            return Err(Refused::NotReady(view.state.clone()));
        }
        if view.open >= view.slots.len() + view.max_queue {
            return Err(Refused::QueueFull(view.max_queue));
        }
        view.open += 1;
        drop(view);

        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = unbounded_channel();
        let _ = self.inbox.send(Message::Submit(Box::new(work(id, sender))));
        let inbox = self.inbox.clone();
        let cancel = CancelOnDrop::new(move || {
            let _ = inbox.send(Message::Cancel(id));
        });
        Ok(JobHandle { id, events, cancel })
    }
}

fn idle_slot(id: usize) -> SlotView {
    SlotView {
        id,
        ..SlotView::default()
    }
}

/// A running engine and what we know about it.
struct Running {
    generation: u64,
    engine: Box<dyn Engine>,
    frames: Sender<ToEngine>,
    ready: bool,
    /// It has produced a token.
    productive: bool,
    steps: u64,
    /// Last sign of progress while jobs run.
    progress_at: Instant,
    /// We killed it because it hung.
    hung: bool,
    closed: bool,
    exited: bool,
    /// When the first of `closed` and `exited` was noticed.
    ending_since: Option<Instant>,
}

struct Supervisor {
    config: BrokerConfig,
    spawner: Box<dyn Spawn>,
    inbox: Sender<Message>,
    shared: Arc<Shared>,
    notices: UnboundedSender<Notice>,
    state: State,
    running: Option<Running>,
    generations: u64,
    /// Jobs that wait for a slot, first come first served.
    queue: VecDeque<Work>,
    /// Jobs given to the engine, by id.
    active: BTreeMap<u64, Work>,
    /// Slot actions without an answer.
    chores: Chores,
    /// What the next engine is to be, once nothing runs.
    renewal: Option<EngineConfig>,
}

impl Supervisor {
    fn new(
        config: BrokerConfig,
        spawner: Box<dyn Spawn>,
        inbox: Sender<Message>,
        shared: Arc<Shared>,
        notices: UnboundedSender<Notice>,
    ) -> Supervisor {
        let (state, _) = State::start(config.start_timeout, Instant::now());
        Supervisor {
            config,
            spawner,
            inbox,
            shared,
            notices,
            state,
            running: None,
            generations: 0,
            queue: VecDeque::new(),
            active: BTreeMap::new(),
            chores: Chores::default(),
            renewal: None,
        }
    }

    fn run(mut self, messages: &Receiver<Message>) {
        let (state, actions) = State::start(self.config.start_timeout, Instant::now());
        self.state = state;
        self.act(actions);
        while self.state.phase != Phase::Stopped {
            match messages.recv_timeout(self.sleep()) {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.event(Event::Stop),
            }
            for message in messages.try_iter().take(BURST) {
                self.handle(message);
            }
            self.tick();
        }
        messages.try_iter().for_each(|message| {
            if let Message::Submit(work) = message {
                self.take(*work);
            }
        });
        self.running = None;
        let _ = self.notices.send(Notice::Stopped);
    }

    /// Until the next deadline.
    fn sleep(&self) -> Duration {
        let now = Instant::now();
        let hang = match &self.running {
            Some(running) if !self.active.is_empty() => {
                Some(running.progress_at + self.config.hang_timeout)
            }
            _ => None,
        };
        [self.state.deadline(), hang]
            .into_iter()
            .flatten()
            .map(|deadline| deadline.saturating_duration_since(now))
            .fold(TICK, Duration::min)
            .max(Duration::from_millis(1))
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Submit(work) => self.take(*work),
            Message::Slot(chore) => self.chores.push(chore),
            Message::Cancel(id) => self.cancel(id),
            Message::Frame(generation, frame) => self.frame(generation, *frame),
            Message::Closed(generation) => {
                self.mark_end(generation, |running| running.closed = true)
            }
            Message::Exited(generation) => {
                self.mark_end(generation, |running| running.exited = true)
            }
            Message::Drain(limit) => {
                self.event(Event::Drain {
                    deadline: Instant::now() + limit,
                });
            }
            Message::Renew(config) => self.renewal = Some(*config),
            Message::Stop => self.event(Event::Stop),
        }
        self.dispatch();
    }

    fn tick(&mut self) {
        self.watch_progress();
        self.watch_end();
        self.event(Event::Tick);
        let is_idle = self.open() == 0 && self.chores.len() == 0;
        if matches!(self.state.phase, Phase::Draining { .. }) && is_idle {
            self.event(Event::Idle);
        }
        self.renew_if_idle();
        reap_orphans(self.running.as_ref().map(|running| running.engine.pid()));
        self.publish();
    }

    /// Nothing runs: the moment for an engine of another configuration. Requests that come meanwhile wait for it.
    fn renew_if_idle(&mut self) {
        let is_ready = matches!(self.state.phase, Phase::Ready { .. });
        if !is_ready || !self.active.is_empty() || self.chores.len() > 0 {
            return;
        }
        let Some(config) = self.renewal.take() else {
            return;
        };
        if let Some(running) = &mut self.running {
            running.ready = false;
        }
        let mut view = self.shared.view();
        view.slots = (0..config.slots).map(idle_slot).collect();
        drop(view);
        self.config.engine = config;
        tracing::info!("replacing the idle engine by one with the new plan");
        self.event(Event::Renew);
    }

    fn open(&self) -> usize {
        self.shared.view().open
    }

    // --- the table -----------------------------------------------------------------------------------------------

    fn event(&mut self, event: Event) {
        let before = std::mem::discriminant(&self.state.phase);
        let (state, actions) = step(self.state.clone(), event, Instant::now());
        self.state = state;
        if std::mem::discriminant(&self.state.phase) != before {
            self.announce();
        }
        self.publish();
        self.act(actions);
    }

    fn announce(&self) {
        match &self.state.phase {
            Phase::Backoff { until } => {
                let pause = until.saturating_duration_since(Instant::now());
                tracing::warn!(
                    "starting a new engine in {:.1} s; {} accepted requests wait for it",
                    pause.as_secs_f64(),
                    self.open()
                );
            }
            Phase::Draining { .. } => {
                tracing::debug!("draining: {} requests are left", self.open());
            }
            Phase::Killing { why } => tracing::error!("killing the engine: {}", why.reason),
            Phase::Failed(failure) => {
                if self.state.ever_ready {
                    tracing::error!("no engine: {}", failure.reason);
                }
                let _ = self.notices.send(Notice::Failed {
                    failure: failure.clone(),
                    ever_ready: self.state.ever_ready,
                });
            }
            _ => {}
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Spawn => self.spawn(),
                Action::Kill => {
                    if let Some(running) = &mut self.running {
                        running.engine.kill();
                    }
                }
                Action::Hangup => {
                    if let Some(running) = &self.running {
                        let _ = running.engine.control().shutdown(Shutdown::Both);
                    }
                }
                Action::Dispatch => self.dispatch(),
                Action::FailJobs(reason) => self.end_all(&Finish::Error(reason)),
                Action::CancelJobs => self.end_all(&Finish::Cancelled),
            }
        }
    }

    /// Makes state and counters visible to HTTP.
    fn publish(&self) {
        let mut view = self.shared.view();
        view.state = match &self.state.phase {
            Phase::Failed(failure) => BackendState::Failed(failure.reason.clone()),
            Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped => {
                BackendState::Draining
            }
            // A drain was asked for and its message is on the way.
            _ if view.state == BackendState::Draining => BackendState::Draining,
            _ if self.state.ever_ready => BackendState::Ready,
            _ => BackendState::Loading,
        };
        view.engine_pid = self.running.as_ref().map(|running| running.engine.pid());
        view.counters.processing = self.active.len();
        view.counters.deferred = self.queue.len();
    }

    // --- engines -------------------------------------------------------------------------------------------------

    fn spawn(&mut self) {
        self.generations += 1;
        let generation = self.generations;
        if generation > 1 {
            self.shared.view().counters.engine_restarts += 1;
        }
        if let Err(error) = self.try_spawn(generation) {
            self.running = None;
            let how = Failure {
                reason: format!("cannot start the engine process: {error}"),
                hint: None,
            };
            self.ended(how, false);
        }
    }

    fn try_spawn(&mut self, generation: u64) -> io::Result<()> {
        let inbox = self.inbox.clone();
        let exited = Box::new(move || {
            let _ = inbox.send(Message::Exited(generation));
        });
        let engine = self.spawner.spawn(exited)?;
        let frames = write_frames(engine.control().try_clone()?)?;
        read_frames(
            engine.control().try_clone()?,
            generation,
            self.inbox.clone(),
        )?;
        tracing::info!("engine process {} started", engine.pid());
        let _ = frames.send(ToEngine::Start(Box::new(self.config.engine.clone())));
        self.running = Some(Running {
            generation,
            engine,
            frames,
            ready: false,
            productive: false,
            steps: 0,
            progress_at: Instant::now(),
            hung: false,
            closed: false,
            exited: false,
            ending_since: None,
        });
        Ok(())
    }

    fn mark_end(&mut self, generation: u64, mark: impl FnOnce(&mut Running)) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.generation == generation {
            mark(running);
            running.ending_since.get_or_insert_with(Instant::now);
        }
        self.watch_end();
    }

    /// An engine is gone when its process has ended and its last frame is read.
    fn watch_end(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.closed && running.exited {
            return self.bury();
        }
        let Some(since) = running.ending_since else {
            return;
        };
        if since.elapsed() >= END_TOGETHER {
            let _ = running.engine.control().shutdown(Shutdown::Both);
            running.engine.kill();
        }
    }

    fn bury(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let exit = running.engine.reap();
        let how = exit.explain();
        let awaited = matches!(
            self.state.phase,
            Phase::Stopping { .. }
                | Phase::Failed(_)
                | Phase::Killing { .. }
                | Phase::Renewing { .. }
        );
        if awaited {
            tracing::debug!("engine process {} ended", running.engine.pid());
        } else {
            tracing::error!(
                "engine process {} ended: {}",
                running.engine.pid(),
                how.reason
            );
            if let Some(hint) = &how.hint {
                tracing::error!("hint: {hint}");
            }
        }
        let guilty = running.hung || !exit.is_from_outside();
        let explained = self.recall_jobs(guilty);
        self.ended(how, explained);
    }

    fn ended(&mut self, how: Failure, explained: bool) {
        self.event(Event::Exited {
            how,
            explained,
            jitter: rand::random(),
        });
    }

    /// A busy engine has to show progress.
    fn watch_progress(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        if self.active.is_empty() || !running.ready || running.hung {
            return;
        }
        let idle = running.progress_at.elapsed();
        if idle < self.config.hang_timeout {
            return;
        }
        running.hung = true;
        let why = Failure {
            reason: format!(
                "no progress for {:.1} s with {} requests running",
                idle.as_secs_f64(),
                self.active.len()
            ),
            hint: None,
        };
        self.event(Event::Hung(why));
    }

    // --- jobs ----------------------------------------------------------------------------------------------------

    /// Gives waiting jobs to a ready engine, as many as it has slots. A suspect runs alone.
    fn dispatch(&mut self) {
        if let Some(running) = self.running.as_ref().filter(|running| running.ready) {
            for frame in self.chores.unsent() {
                let _ = running.frames.send(frame);
            }
        }
        while let Some(index) = self.next_job() {
            let Some(work) = self.queue.remove(index) else {
                return;
            };
            let slot_context = self.config.engine.slot_context;
            if let Some(finish) = work.finished_already(slot_context) {
                self.settle(work, finish);
                continue;
            }
            let Some(running) = &mut self.running else {
                return;
            };
            if self.active.is_empty() {
                running.progress_at = Instant::now();
            }
            let _ = running.frames.send(work.submission(slot_context));
            self.active.insert(work.id, work);
        }
    }

    /// The first waiting job that may run now.
    fn next_job(&self) -> Option<usize> {
        if !self.running.as_ref().is_some_and(|running| running.ready) {
            return None;
        }
        if self.active.values().any(Work::is_suspect) {
            return None;
        }
        if self.queue.front()?.is_suspect() {
            return self.active.is_empty().then_some(0);
        }
        if self.active.len() >= self.config.engine.slots {
            return None;
        }
        self.queue
            .iter()
            .position(|work| !work.is_suspect() && self.slot_is_free(work.job.slot))
    }

    fn slot_is_free(&self, wanted: Option<usize>) -> bool {
        wanted.is_none()
            || self
                .active
                .values()
                .all(|work| work.slot.or(work.job.slot) != wanted)
    }

    fn take(&mut self, work: Work) {
        match &self.state.phase {
            Phase::Failed(failure) => {
                let reason = failure.reason.clone();
                self.finish(work, Finish::Error(reason));
            }
            Phase::Stopping { .. } | Phase::Stopped => self.finish(work, Finish::Cancelled),
            _ => self.queue.push_back(work),
        }
    }

    fn cancel(&mut self, id: u64) {
        if let Some(index) = self.queue.iter().position(|work| work.id == id) {
            if let Some(work) = self.queue.remove(index) {
                self.finish(work, Finish::Cancelled);
            }
        } else if let Some(work) = self.active.get_mut(&id) {
            work.cancelled = true;
            if let Some(running) = &self.running {
                let _ = running.frames.send(ToEngine::Cancel { id });
            }
        }
    }

    fn finish(&self, work: Work, finish: Finish) {
        let mut view = self.shared.view();
        view.open -= 1;
        if let Some(slot) = work.slot.and_then(|slot| view.slots.get_mut(slot)) {
            slot.processing = false;
            slot.state = 0;
        }
        drop(view);
        work.done(finish);
    }

    fn end_all(&mut self, finish: &Finish) {
        let active = std::mem::take(&mut self.active);
        let queue = std::mem::take(&mut self.queue);
        for work in active.into_values().chain(queue) {
            self.finish(work, finish.clone());
        }
        self.chores.fail("there is no engine");
        self.count_chores();
    }

    fn count_chores(&self) {
        self.shared.view().chores = self.chores.len();
    }

    /// The engine's answer to a slot action.
    fn slot_done(&mut self, id: u64, result: Result<SlotReport, SlotFault>) {
        let Some(chore) = self.chores.take(id) else {
            return;
        };
        if let Some((slot, n_tokens)) = chore.fills(&result) {
            let mut view = self.shared.view();
            if let Some(slot) = view.slots.get_mut(slot) {
                slot.kv_tokens = n_tokens;
            }
        }
        self.count_chores();
        chore.reply(result);
    }

    /// The engine is gone: its jobs wait again, at the head of the queue. True when one was found guilty and failed.
    fn recall_jobs(&mut self, guilty: bool) -> bool {
        self.chores.engine_ended();
        self.count_chores();
        let alone = self.active.len() == 1;
        let mut failed = false;
        for (_, mut work) in std::mem::take(&mut self.active).into_iter().rev() {
            if work.cancelled {
                self.finish(work, Finish::Cancelled);
                continue;
            }
            if guilty {
                work.strikes += 1;
            }
            if alone && work.is_suspect() {
                failed = true;
                let reason = format!(
                    "the engine ended {} times at this request; it is given up, the others continue",
                    work.strikes
                );
                tracing::error!("task {}: {reason}", work.id);
                self.finish(work, Finish::Error(reason));
                continue;
            }
            self.clear_slot(&work);
            work.resume();
            self.queue.push_front(work);
        }
        failed
    }

    fn clear_slot(&self, work: &Work) {
        let mut view = self.shared.view();
        if let Some(slot) = work.slot.and_then(|slot| view.slots.get_mut(slot)) {
            slot.processing = false;
            slot.state = 0;
            slot.kv_tokens = 0;
        }
    }

    // --- frames --------------------------------------------------------------------------------------------------

    fn frame(&mut self, generation: u64, frame: FromEngine) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.generation != generation {
            return;
        }
        running.progress_at = Instant::now();
        match frame {
            FromEngine::Ready { load_ms } => {
                running.ready = true;
                let pid = running.engine.pid();
                let _ = self.notices.send(Notice::Ready { load_ms, pid });
                self.event(Event::Ready);
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
                ms,
                cpu_ms,
            } => {
                let first = !std::mem::replace(&mut running.productive, true);
                if let Some(work) = self.active.get_mut(&id) {
                    work.append(token, mirostat_mu);
                    work.cpu_ms = cpu_ms;
                }
                if first {
                    self.event(Event::Productive);
                }
                self.token(id, token, probs, ms);
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
                self.shared.view().counters.decode_steps += advanced;
            }
        }
    }

    fn prefill(&mut self, id: u64, progress: &Progress) {
        let Some(work) = self.active.get_mut(&id) else {
            return;
        };
        work.slot = Some(progress.slot);
        work.report_prefill(progress);
        let mut view = self.shared.view();
        let Some(slot) = view.slots.get_mut(progress.slot) else {
            return;
        };
        *slot = SlotView {
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
    }

    fn token(&mut self, id: u64, token: u32, probs: Option<TokenProbs>, ms: f64) {
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
            cpu_ms,
        });
        let mut view = self.shared.view();
        if let Some(slot) = work.slot.and_then(|slot| view.slots.get_mut(slot)) {
            slot.state = 3;
            slot.decoded = work.produced;
            slot.remaining = work.remaining();
            slot.kv_tokens = work.window.len() - 1;
        }
    }

    fn done(&mut self, id: u64, finish: Finish) {
        if let Some(work) = self.active.remove(&id) {
            self.settle(work, finish);
        }
    }

    /// The end of a job, unless its context can be shifted and it goes on.
    fn settle(&mut self, mut work: Work, finish: Finish) {
        let goes_on = finish == Finish::ContextFull
            && self.config.context_shift
            && !work.cancelled
            && work.remaining() != Some(0)
            && work.shift(self.config.engine.slot_context);
        if !goes_on {
            return self.finish(work, finish);
        }
        self.clear_slot(&work);
        work.resume();
        self.queue.push_front(work);
    }
}

/// Prompt progress, as the engine tells it.
struct Progress {
    slot: usize,
    total: usize,
    cached: usize,
    processed: usize,
    ms: f64,
    cpu_ms: Option<f64>,
}

/// A thread that writes frames until the sender is dropped or the engine is gone. Its queue is bounded by the slots:
/// one submission and one cancellation each.
fn write_frames(mut control: UnixStream) -> io::Result<Sender<ToEngine>> {
    let (sender, frames) = mpsc::channel::<ToEngine>();
    let write = move || {
        for frame in frames {
            if let Err(error) = write_frame(&mut control, &frame) {
                tracing::debug!("cannot write to the engine: {error}");
                return;
            }
        }
    };
    thread::Builder::new()
        .name("engine-write".into())
        .spawn(write)?;
    Ok(sender)
}

/// A thread that forwards frames until the engine closes its end.
fn read_frames(control: UnixStream, generation: u64, inbox: Sender<Message>) -> io::Result<()> {
    let read = move || {
        let mut control = BufReader::new(control);
        loop {
            match read_frame(&mut control) {
                Ok(Some(frame)) => {
                    if inbox.send(Message::Frame(generation, frame)).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!("cannot read from the engine: {error}");
                    break;
                }
            }
        }
        let _ = inbox.send(Message::Closed(generation));
    };
    thread::Builder::new()
        .name("engine-read".into())
        .spawn(read)?;
    Ok(())
}

mod chores;
mod work;

#[cfg(test)]
mod tests;
