//! Between HTTP and engines: a bounded queue of jobs that outlive the engines they run on.
//!
//! One thread, the supervisor, owns the jobs, the engines and their tables ([`super::state`]); everybody else sends it
//! messages. What HTTP reads (state, slots, counters) lies in [`Shared`], written by that thread alone and locked only
//! to copy. Per engine there are two more threads, a reader and a writer of frames, so that an engine which stands still
//! blocks nobody.
//!
//! A [`Line`] is one engine after another with the same configuration, and the jobs they have in common. There is one, the
//! current line, but while a reload is under way: then the next line starts beside it, and the old one ends with its last
//! job. Jobs name the tenure they were made for, since token ids of one model mean something else to another.
//!
//! A job remembers its window: prompt and tokens produced so far. When an engine ends, its jobs go back to the head of
//! the queue and are submitted to the next one as window; sampling depends on (seed, position) and the tokens before,
//! so they continue with the tokens they would have had.
//!
//! Jobs that end engines: a job gets a strike each time an engine crashes or hangs while it runs and it got no token
//! since the last strike. With [`STRIKES`] of them it is run alone; if the engine ends again, only that job fails.
//! Kills from outside give no strikes.

mod canary;
mod chores;
mod engines;
mod frames;
mod front;
mod jobs;
mod line;
mod replace;
mod wire;
mod work;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bitnet_model::protocol::{EngineConfig, FromEngine};
use tokio::sync::mpsc::UnboundedSender;

pub(crate) use self::canary::Canary;
use self::chores::Chore;
use self::front::Shared;
pub(crate) use self::front::{Broker, Unstarted};
use self::line::{Line, Role};
pub(crate) use self::replace::Replacement;
use self::replace::Replacing;
use self::work::Work;
use super::child::{Spawn, reap_orphans};
use super::state::{Event, Failure};
use crate::file_stamp::FileStamp;

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

/// What a line of engines is made by.
#[derive(Debug, Clone)]
pub(crate) struct BrokerConfig {
    /// For every engine.
    pub(crate) engine: EngineConfig,
    /// Kernels to try, best first, when the engine's has an instruction that the CPU lacks; they give the same tokens.
    pub(crate) other_kernels: VecDeque<String>,
    /// `None` for the model in this binary.
    pub(crate) model_file: Option<FileStamp>,
    /// What every engine has to answer alike.
    pub(crate) canary: Option<Canary>,
    /// Jobs that may wait while all slots are busy.
    pub(crate) max_queue: usize,
    /// A job that no engine has begun after this time is sent away.
    pub(crate) queue_timeout: Option<Duration>,
    /// When a slot's context is full: keep the head and the last half, and go on.
    pub(crate) context_shift: bool,
    /// Time an engine gets to load.
    pub(crate) start_timeout: Duration,
    /// A busy engine without any progress for this long is replaced; `None`: by its own pace, see `engines`.
    pub(crate) hang_timeout: Option<Duration>,
    /// An engine without work for this long is ended until there is some.
    pub(crate) sleep_after: Option<Duration>,
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
    /// The supervisor has ended, and its engines with it.
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
    Replace(Box<Replacement>),
    /// Other rules for the current line; its engine's configuration stays.
    Retune(Box<BrokerConfig>),
    /// Clients can send requests from now on.
    Opened,
    /// No request is left that knows this tenure.
    Released(u64),
    Stop,
}

/// What all lines share.
#[derive(Clone)]
struct Ground {
    spawner: Rc<RefCell<Box<dyn Spawn>>>,
    /// Engines started so far.
    generations: Rc<Cell<u64>>,
    inbox: Sender<Message>,
    shared: Arc<Shared>,
    notices: UnboundedSender<Notice>,
}

struct Supervisor {
    ground: Ground,
    /// Oldest first. One is current; never empty.
    lines: Vec<Line>,
    replacing: Option<Replacing>,
    is_draining: bool,
}

impl Supervisor {
    fn new(
        config: BrokerConfig,
        spawner: Box<dyn Spawn>,
        inbox: Sender<Message>,
        shared: Arc<Shared>,
        notices: UnboundedSender<Notice>,
    ) -> Supervisor {
        let ground = Ground {
            spawner: Rc::new(RefCell::new(spawner)),
            generations: Rc::default(),
            inbox,
            shared,
            notices,
        };
        let first = Line::new(ground.clone(), 0, config, Role::Current);
        Supervisor {
            ground,
            lines: vec![first],
            replacing: None,
            is_draining: false,
        }
    }

    fn run(mut self, messages: &Receiver<Message>) {
        self.lines[0].start();
        while !self.lines.iter().all(Line::is_stopped) {
            match messages.recv_timeout(self.sleep()) {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.event_for_all(&Event::Stop),
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
        self.lines.clear();
        let _ = self.ground.notices.send(Notice::Stopped);
    }

    /// Until the next deadline.
    fn sleep(&self) -> Duration {
        let now = Instant::now();
        self.lines
            .iter()
            .flat_map(Line::deadlines)
            .map(|deadline| deadline.saturating_duration_since(now))
            .fold(TICK, Duration::min)
            .max(Duration::from_millis(1))
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Submit(work) => self.take(*work),
            Message::Slot(chore) => self.current().take_chore(chore),
            Message::Cancel(id) => self.lines.iter_mut().for_each(|line| line.cancel(id)),
            Message::Frame(generation, frame) => {
                if let Some(line) = self.line_of(generation) {
                    line.frame(*frame);
                }
            }
            Message::Closed(generation) => {
                if let Some(line) = self.line_of(generation) {
                    line.mark_end(|running| running.closed = true);
                }
            }
            Message::Exited(generation) => {
                if let Some(line) = self.line_of(generation) {
                    line.mark_end(|running| running.exited = true);
                }
            }
            Message::Drain(limit) => {
                self.is_draining = true;
                self.give_up_replacing("the server is shutting down");
                let deadline = Instant::now() + limit;
                self.event_for_all(&Event::Drain { deadline });
            }
            Message::Replace(replacement) => self.replace(*replacement),
            Message::Retune(config) => {
                self.ground.shared.view().max_queue = config.max_queue;
                self.current().config = *config;
            }
            Message::Opened => self.current().opened(),
            Message::Released(tenure) => {
                let held = self.lines.iter_mut().find(|line| line.tenure == tenure);
                if let Some(line) = held {
                    line.is_released = true;
                }
            }
            Message::Stop => self.event_for_all(&Event::Stop),
        }
        self.lines.iter_mut().for_each(Line::dispatch);
    }

    fn tick(&mut self) {
        let jobs: usize = self.lines.iter().map(Line::jobs).sum();
        let has_more = self.ground.shared.view().open > jobs;
        for line in &mut self.lines {
            line.tick(has_more);
        }
        self.go_on_replacing();
        self.retire();
        let engines: Vec<u32> = self.lines.iter().filter_map(Line::pid).collect();
        reap_orphans(&engines);
        self.count();
    }

    fn event_for_all(&mut self, event: &Event) {
        for line in &mut self.lines {
            line.event(event.clone());
        }
    }

    /// Gives a job to the line it was made for.
    fn take(&mut self, work: Work) {
        let tenure = work.job.tenure;
        match self.lines.iter_mut().find(|line| line.tenure == tenure) {
            Some(line) => line.take(work),
            None => self.current().turn_away(work),
        }
    }

    fn current(&mut self) -> &mut Line {
        let index = self.lines.iter().position(Line::is_current).unwrap_or(0);
        &mut self.lines[index]
    }

    fn line_of(&mut self, generation: u64) -> Option<&mut Line> {
        let mut lines = self.lines.iter_mut();
        lines.find(|line| line.generation() == Some(generation))
    }

    fn count(&self) {
        let mut view = self.ground.shared.view();
        view.looked_at = Instant::now();
        view.counters.processing = self.lines.iter().map(|line| line.active.len()).sum();
        view.counters.deferred = self.lines.iter().map(|line| line.queue.len()).sum();
    }
}

#[cfg(test)]
mod tests;
