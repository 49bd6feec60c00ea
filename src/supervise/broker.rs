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

mod chores;
mod engines;
mod frames;
mod front;
mod jobs;
mod wire;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bitnet_model::protocol::{EngineConfig, Finish, FromEngine};
use bitnet_server::backend::BackendState;
use tokio::sync::mpsc::UnboundedSender;

use self::chores::{Chore, Chores};
use self::engines::Running;
pub(crate) use self::front::{Broker, Unstarted};
use self::front::{Shared, idle_slot};
use self::work::Work;
use super::child::{Spawn, reap_orphans};
use super::state::{Action, Event, Failure, Phase, State, step};
use crate::systemd;

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
                systemd::status("starting a new engine");
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
        view.looked_at = Instant::now();
        view.engine_pid = self.running.as_ref().map(|running| running.engine.pid());
        view.counters.processing = self.active.len();
        view.counters.deferred = self.queue.len();
    }
}

#[cfg(test)]
mod tests;
