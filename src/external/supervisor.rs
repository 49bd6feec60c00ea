//! Keeps a llama-server alive: one thread that owns its processes and the table of its life, [`crate::supervise::state`].
//!
//! Each process has a thread that asks it for its health: until it is ready, then for a token, then as long as it lives. One that
//! neither answers nor computes is replaced. On reload a second process is started beside the first, has to answer, and takes over;
//! where memory holds one only, requests wait while one is exchanged for the other. A configuration that doesn't start is given up for the one before.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_server::backend::Crash;
use bitnet_server::proxy::{Address, Proxy, Route, Upstream};
use nix::sys::signal::Signal;
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::health::{self, News};
use super::instance::{End, Instance, Order};
use super::process::Place;
use crate::supervise::broker::Notice;
use crate::supervise::child::reap_orphans;
use crate::supervise::state::{Action, Event, Failure, Phase, State, step};

/// Longest sleep of the supervisor thread.
const TICK: Duration = Duration::from_millis(250);
/// How long an engine that was replaced may take to finish its answers.
const RETIRE_WAIT: Duration = Duration::from_secs(600);
/// How long one that was asked to leave may take.
const LEAVE_WAIT: Duration = Duration::from_secs(5);
/// Paths of sockets are short: `sun_path` holds 108 bytes.
const SOCKET_PATH_BYTES: usize = 100;
const KEY_LETTERS: usize = 40;

enum Message {
    Exited(u64),
    News(u64, News),
    Reload(Box<Order>, Beside, Outcome),
    Retune(Box<Order>),
    Wake,
    Drain(Duration),
    Stop,
}

/// Told when the new engine serves, or why the one before does.
pub(crate) type Outcome = Sender<Result<(), String>>;

/// Whether memory holds two engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// The new one starts while the old one serves.
    Yes,
    /// One after the other; running answers get this long to finish.
    No(Duration),
}

/// What the rest of the program holds.
#[derive(Debug, Clone)]
pub(crate) struct Supervisor {
    inbox: Sender<Message>,
    looked_at: Arc<Mutex<Instant>>,
}

/// A supervisor whose engine is not known yet.
pub(crate) struct Unstarted {
    inbox: Sender<Message>,
    messages: Receiver<Message>,
    looked_at: Arc<Mutex<Instant>>,
}

impl Supervisor {
    /// A handle, and what starts the rest.
    pub(crate) fn new() -> (Supervisor, Unstarted) {
        let (inbox, messages) = mpsc::channel();
        let looked_at = Arc::new(Mutex::new(Instant::now()));
        let supervisor = Supervisor {
            inbox: inbox.clone(),
            looked_at: Arc::clone(&looked_at),
        };
        let unstarted = Unstarted {
            inbox,
            messages,
            looked_at,
        };
        (supervisor, unstarted)
    }

    /// When the thread last went round. One that wasn't started yet has nothing to miss.
    pub(crate) fn looked_at(&self) -> Instant {
        *self
            .looked_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the engine, within `limit` if nothing is left to do.
    pub(crate) fn drain(&self, limit: Duration) {
        let _ = self.inbox.send(Message::Drain(limit));
    }

    /// Kills the engine.
    pub(crate) fn stop(&self) {
        let _ = self.inbox.send(Message::Stop);
    }

    /// Replaces the engine.
    pub(crate) fn reload(&self, order: Order, beside: Beside, outcome: Outcome) {
        let message = Message::Reload(Box::new(order), beside, outcome);
        let _ = self.inbox.send(message);
    }

    /// Other times for the engine that runs.
    pub(crate) fn retune(&self, order: Order) {
        let _ = self.inbox.send(Message::Retune(Box::new(order)));
    }
}

impl Unstarted {
    /// Starts the thread, and the first engine with it.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn start(
        self,
        order: Order,
        proxy: Arc<Proxy>,
    ) -> io::Result<UnboundedReceiver<Notice>> {
        let (notices, receiver) = unbounded_channel();
        let inbox = self.inbox.clone();
        proxy.on_wake(move || {
            let _ = inbox.send(Message::Wake);
        });
        thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || {
                let keeper = Keeper::new(order, proxy, self.inbox, notices);
                keeper.run(&self.messages, &self.looked_at);
            })?;
        Ok(receiver)
    }
}

/// A replaced engine on its way out.
struct Retired {
    instance: Instance,
    /// Asked to leave at the latest then.
    until: Instant,
    /// Killed then.
    asked: Option<Instant>,
}

/// A change of order that is under way.
enum Change {
    /// The next engine starts beside the current one.
    Beside(Box<Instance>),
    /// Requests wait until the current one has finished its answers.
    Emptying(Box<Order>, Instant),
    /// The current one was asked to leave; killed then.
    Leaving(Box<Order>, Instant),
    /// The next one starts; the order before it, if it fails.
    Proving(Box<Order>),
}

struct Keeper {
    order: Order,
    proxy: Arc<Proxy>,
    inbox: Sender<Message>,
    notices: UnboundedSender<Notice>,
    state: State,
    ever_ready: bool,
    current: Option<Instance>,
    change: Option<Change>,
    /// Whoever wanted the change.
    outcome: Option<Outcome>,
    retired: Vec<Retired>,
    started: u64,
    directory: Option<PathBuf>,
    /// Since when there was no work.
    idle_since: Instant,
    /// Generations accepted so far.
    accepted: u64,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.current = None;
        self.change = None;
        self.retired.clear();
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

impl Keeper {
    fn new(
        order: Order,
        proxy: Arc<Proxy>,
        inbox: Sender<Message>,
        notices: UnboundedSender<Notice>,
    ) -> Keeper {
        let (state, _) = State::start(order.start_timeout, Instant::now());
        Keeper {
            order,
            proxy,
            inbox,
            notices,
            state,
            ever_ready: false,
            current: None,
            change: None,
            outcome: None,
            retired: Vec::new(),
            started: 0,
            directory: None,
            idle_since: Instant::now(),
            accepted: 0,
        }
    }

    fn run(mut self, messages: &Receiver<Message>, looked_at: &Mutex<Instant>) {
        self.begin();
        while self.state.phase != Phase::Stopped {
            let now = Instant::now();
            *looked_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
            let due = self
                .state
                .deadline()
                .map(|at| at.saturating_duration_since(now));
            match messages.recv_timeout(due.unwrap_or(TICK).min(TICK)) {
                Ok(message) => self.on(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.event(Event::Stop),
            }
            self.event(Event::Tick);
            self.tick();
        }
        let notices = self.notices.clone();
        drop(self);
        let _ = notices.send(Notice::Stopped);
    }

    /// The table from its beginning, for the order there is now.
    fn begin(&mut self) {
        let (state, actions) = State::start(self.order.start_timeout, Instant::now());
        self.state = state;
        self.act(actions);
    }

    fn on(&mut self, message: Message) {
        match message {
            Message::News(id, news) => self.news(id, news),
            Message::Exited(id) => self.exited(id),
            Message::Reload(order, beside, outcome) => self.reload(order, beside, outcome),
            Message::Retune(order) => {
                if let Some(current) = &mut self.current {
                    current.order = (*order).clone();
                }
                self.order = *order;
            }
            Message::Wake => {
                if matches!(self.state.phase, Phase::Asleep | Phase::Dozing { .. }) {
                    self.proxy.set_route(Route::Paused);
                }
                self.event(Event::Wake);
            }
            Message::Drain(limit) => {
                self.change = None;
                let deadline = Instant::now() + limit;
                self.event(Event::Drain { deadline });
            }
            Message::Stop => self.event(Event::Stop),
        }
    }

    fn event(&mut self, event: Event) {
        let (state, actions) = step(self.state.clone(), event, Instant::now());
        self.state = state;
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Spawn => self.spawn_current(),
                Action::Kill => self.signal(Signal::SIGKILL),
                Action::Hangup => self.signal(Signal::SIGTERM),
                Action::Dispatch => self.serve(),
                Action::FailJobs(reason) => self.give_up(reason),
                Action::CancelJobs => {
                    let reason = "the server is shutting down".to_owned();
                    self.proxy.set_route(Route::Failed(reason));
                }
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(current) = &self.current {
            current.process.signal_group(signal);
        }
    }

    fn spawn_current(&mut self) {
        match self.spawn(&self.order.clone()) {
            Ok(instance) => self.current = Some(instance),
            Err(error) => {
                let how = Failure::new(format!("cannot start the engine: {error}"));
                if !self.falls_back(&how) {
                    self.ended(how, false);
                }
            }
        }
    }

    fn spawn(&mut self, order: &Order) -> io::Result<Instance> {
        self.started += 1;
        let id = self.started;
        let place = self.place(order, id)?;
        let key = order.key_variable.then(random_key);
        let inbox = self.inbox.clone();
        let exited = move || {
            let _ = inbox.send(Message::Exited(id));
        };
        let process = order.launch.spawn(&place, key.as_deref(), exited)?;
        let address = place.address;
        tracing::info!("engine process {} started", process.pid());
        let upstream = Upstream::new(address.clone(), key.as_deref());
        let ended = Arc::new(AtomicBool::new(false));
        let inbox = self.inbox.clone();
        health::watch(health::Watched {
            address: address.clone(),
            key,
            pid: process.pid(),
            upstream: Arc::clone(&upstream),
            hang_timeout: order.hang_timeout,
            sleeps: order.sleep_after.is_some(),
            ended: Arc::clone(&ended),
            tell: Box::new(move |news| inbox.send(Message::News(id, news)).is_ok()),
        })?;
        Ok(Instance {
            id,
            process,
            upstream,
            order: order.clone(),
            started: Instant::now(),
            ended,
            socket: match address {
                Address::Unix(path) => Some(path),
                Address::Tcp(_) => None,
            },
        })
    }

    /// Where nobody else listens. A socket in a directory of our own is out of others' reach.
    fn place(&mut self, order: &Order, id: u64) -> io::Result<Place> {
        if order.unix_sockets
            && let Some(directory) = self.directory()
        {
            let path = directory.join(format!("engine-{id}.sock"));
            return Ok(Place {
                address: Address::Unix(path.clone()),
                args: vec!["--host".into(), path.into()],
                folder: Some(directory.to_owned()),
            });
        }
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let port = address.port().to_string();
        Ok(Place {
            address: Address::Tcp(address),
            args: ["--host", "127.0.0.1", "--port", &port]
                .map(OsString::from)
                .to_vec(),
            folder: None,
        })
    }

    /// Made when first needed; `None` where that is impossible.
    fn directory(&mut self) -> Option<&Path> {
        if self.directory.is_none() {
            let name = format!("bitnet-launch-{}", random_letters(8));
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let parents = runtime.into_iter().chain([std::env::temp_dir()]);
            let short = |path: &PathBuf| path.as_os_str().len() + 24 < SOCKET_PATH_BYTES;
            let make = |path: &PathBuf| fs::DirBuilder::new().mode(0o700).create(path).is_ok();
            self.directory = parents
                .map(|parent| parent.join(&name))
                .filter(short)
                .find(make);
        }
        self.directory.as_deref()
    }

    /// Requests go to the current engine.
    fn serve(&mut self) {
        let Some(current) = &self.current else {
            return;
        };
        self.proxy
            .set_slots(current.order.slots.unwrap_or(usize::MAX));
        self.proxy
            .set_route(Route::To(Arc::clone(&current.upstream)));
        self.ever_ready = true;
        self.idle_since = Instant::now();
        let load_ms = current.started.elapsed().as_secs_f64() * 1e3;
        let pid = current.process.pid();
        let _ = self.notices.send(Notice::Ready { load_ms, pid });
    }

    fn give_up(&mut self, reason: String) {
        let failure = match &self.state.phase {
            Phase::Failed(failure) => failure.clone(),
            _ => Failure::new(reason.clone()),
        };
        self.proxy.set_route(Route::Failed(reason));
        let ever_ready = self.ever_ready;
        let _ = self.notices.send(Notice::Failed {
            failure,
            ever_ready,
        });
    }

    fn news(&mut self, id: u64, news: News) {
        if let Some(Change::Beside(next)) = &self.change
            && next.id == id
        {
            return match news {
                News::Ready => self.take_over(),
                News::Stuck(why) | News::Unfit(why) => self.keep(&why),
            };
        }
        if self.current.as_ref().is_none_or(|current| current.id != id) {
            return;
        }
        match news {
            News::Ready => {
                self.event(Event::Ready);
                self.event(Event::Productive);
                if matches!(self.change, Some(Change::Proving(_))) {
                    self.change = None;
                    self.tell(Ok(()));
                }
            }
            News::Stuck(why) => {
                tracing::warn!("the engine is replaced: {why}");
                self.event(Event::Hung(Failure::new(why)));
            }
            News::Unfit(why) => self.unfit(Failure::new(why)),
        }
    }

    /// The engine loaded and can't answer.
    fn unfit(&mut self, why: Failure) {
        if self.falls_back(&why) {
            return;
        }
        if !self.ever_ready {
            self.event(Event::LoadFailed(why));
            return;
        }
        tracing::warn!("the engine is replaced: {why}");
        self.signal(Signal::SIGKILL);
    }

    fn exited(&mut self, id: u64) {
        self.retired.retain(|retired| retired.instance.id != id);
        if let Some(Change::Beside(next)) = &self.change
            && next.id == id
        {
            let Some(Change::Beside(next)) = self.change.take() else {
                return;
            };
            self.keep(&next.into_end().how.reason);
            return;
        }
        let Some(current) = self.current.take_if(|current| current.id == id) else {
            return;
        };
        let is_leaving = matches!(
            self.state.phase,
            Phase::Stopping { .. } | Phase::Draining { .. } | Phase::Dozing { .. }
        );
        if self.ever_ready && !is_leaving {
            self.proxy.set_route(Route::Paused);
        }
        let pid = current.process.pid();
        let End { how, gave_up, log } = current.into_end();
        if let Some(Change::Leaving(order, _)) = &self.change {
            let before = std::mem::replace(&mut self.order, (**order).clone());
            self.change = Some(Change::Proving(Box::new(before)));
            self.begin();
            return;
        }
        if !is_leaving {
            tracing::warn!("engine process {pid} ended: {how}");
            if let Some(hint) = &how.hint {
                tracing::warn!("hint: {hint}");
            }
            self.proxy.crashed(Crash {
                at: Instant::now(),
                reason: match &self.state.phase {
                    Phase::Killing { why } => why.reason.clone(),
                    _ => how.reason.clone(),
                },
                hint: how.hint.clone(),
                log,
            });
        }
        if self.falls_back(&how) {
            return;
        }
        self.ended(how, gave_up);
        if self.ever_ready && matches!(self.state.phase, Phase::Backoff { .. }) {
            self.proxy.restarted();
        }
    }

    fn ended(&mut self, how: Failure, gave_up: bool) {
        if gave_up && !self.ever_ready {
            self.event(Event::LoadFailed(how));
            return;
        }
        let jitter = rand::rng().random_range(0.0..1.0);
        self.event(Event::Exited {
            how,
            explained: false,
            jitter,
        });
    }

    fn reload(&mut self, order: Box<Order>, beside: Beside, outcome: Outcome) {
        let now = Instant::now();
        if self.change.is_some() {
            let _ = outcome.send(Err("another reload is under way".to_owned()));
            return;
        }
        self.outcome = Some(outcome);
        match (&self.state.phase, beside) {
            (Phase::Ready { .. }, Beside::Yes) => match self.spawn(&order) {
                Ok(instance) => self.change = Some(Change::Beside(Box::new(instance))),
                Err(error) => self.keep(&format!("cannot start the engine: {error}")),
            },
            (Phase::Ready { .. }, Beside::No(limit)) => {
                tracing::info!(
                    "requests wait while the engine is exchanged: memory holds one only"
                );
                self.proxy.set_route(Route::Paused);
                self.change = Some(Change::Emptying(order, now + limit));
            }
            (Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped, _) => {
                self.tell(Err("the server is shutting down".to_owned()));
            }
            // Nothing serves: the new order can only be better.
            _ => {
                self.retire();
                let before = std::mem::replace(&mut self.order, *order);
                self.change = Some(Change::Proving(Box::new(before)));
                if self.ever_ready {
                    self.proxy.set_route(Route::Paused);
                }
                self.begin();
            }
        }
    }

    /// The next engine answers: it gets the requests, the one before finishes its own.
    fn take_over(&mut self) {
        let Some(Change::Beside(next)) = self.change.take() else {
            return;
        };
        self.order = next.order.clone();
        self.retire();
        self.current = Some(*next);
        self.proxy.restarted();
        self.serve();
        // It has answered: its life is counted anew.
        self.event(Event::Productive);
        self.tell(Ok(()));
    }

    fn tell(&mut self, result: Result<(), String>) {
        if let Some(outcome) = self.outcome.take() {
            let _ = outcome.send(result);
        }
    }

    /// The current engine leaves when its answers are done.
    fn retire(&mut self) {
        let until = Instant::now() + RETIRE_WAIT;
        if let Some(instance) = self.current.take() {
            self.retired.push(Retired {
                instance,
                until,
                asked: None,
            });
        }
    }

    fn keep(&mut self, why: &str) {
        self.change = None;
        self.tell(Err(why.to_owned()));
    }

    /// The first engine of a new order failed: back to the order before it.
    fn falls_back(&mut self, why: &Failure) -> bool {
        if !matches!(self.change, Some(Change::Proving(_))) {
            return false;
        }
        let Some(Change::Proving(before)) = self.change.take() else {
            return false;
        };
        self.tell(Err(why.reason.clone()));
        self.order = *before;
        self.retire();
        self.begin();
        true
    }

    /// Ends an engine that has had no work for long; the next request wakes another.
    fn doze(&mut self, now: Instant) {
        let (running, accepted) = self.proxy.work();
        if running > 0 || accepted != self.accepted {
            self.accepted = accepted;
            self.idle_since = now;
        }
        let Some(limit) = self.order.sleep_after else {
            return;
        };
        let is_settled = matches!(self.state.phase, Phase::Ready { .. }) && self.change.is_none();
        if !is_settled || now.duration_since(self.idle_since) < limit {
            return;
        }
        let Some(current) = &self.current else {
            return;
        };
        let upstream = Arc::clone(&current.upstream);
        self.proxy.set_route(Route::Asleep(Arc::clone(&upstream)));
        // Whoever got the route a moment ago.
        if upstream.in_flight() > 0 {
            self.proxy.set_route(Route::To(upstream));
            return;
        }
        tracing::info!(
            "no request for {} s: the engine ends until there is one",
            limit.as_secs()
        );
        self.event(Event::Sleep);
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.doze(now);
        let idle = |instance: &Instance| instance.upstream.in_flight() == 0;
        for retired in &mut self.retired {
            match retired.asked {
                None if idle(&retired.instance) || now >= retired.until => {
                    retired.instance.process.signal_group(Signal::SIGTERM);
                    retired.asked = Some(now + LEAVE_WAIT);
                }
                Some(at) if now >= at => retired.instance.process.signal_group(Signal::SIGKILL),
                _ => {}
            }
        }
        let is_idle = self.current.as_ref().is_none_or(idle);
        match &self.change {
            Some(Change::Beside(next)) if next.started.elapsed() >= next.order.start_timeout => {
                let seconds = next.order.start_timeout.as_secs();
                self.keep(&format!("the new engine was not ready after {seconds} s"));
            }
            Some(Change::Emptying(..)) if self.current.is_none() => {
                // It ended by itself; the next one is of the new order.
                if let Some(Change::Emptying(order, _)) = self.change.take() {
                    let before = std::mem::replace(&mut self.order, *order);
                    self.change = Some(Change::Proving(Box::new(before)));
                    // After its last crash nobody else starts one.
                    if matches!(self.state.phase, Phase::Failed(_)) {
                        self.begin();
                    }
                }
            }
            Some(Change::Emptying(order, until)) if is_idle || now >= *until => {
                let order = order.clone();
                self.signal(Signal::SIGTERM);
                self.change = Some(Change::Leaving(order, now + LEAVE_WAIT));
            }
            Some(Change::Leaving(_, at)) if now >= *at => self.signal(Signal::SIGKILL),
            _ => {}
        }
        let next = match &self.change {
            Some(Change::Beside(next)) => Some(&**next),
            _ => None,
        };
        let retired = self.retired.iter().map(|retired| &retired.instance);
        let ours = self.current.iter().chain(next).chain(retired);
        let pids: Vec<u32> = ours.map(|instance| instance.process.pid()).collect();
        reap_orphans(&pids);
    }
}

/// Shared by us and one engine.
fn random_key() -> String {
    random_letters(KEY_LETTERS)
}

fn random_letters(n: usize) -> String {
    let letters = rand::rng().sample_iter(Alphanumeric).take(n);
    letters.map(char::from).collect()
}
