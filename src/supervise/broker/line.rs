//! One engine after another with the same configuration, and the jobs they have in common.

use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::time::Instant;

use bitnet_model::protocol::Finish;
use bitnet_server::backend::{BackendState, SlotView};

use super::canary::Flight;
use super::chores::{Chore, Chores};
use super::engines::Running;
use super::front::idle_slot;
use super::work::Work;
use super::{BrokerConfig, Ground, Notice};
use crate::supervise::state::{Action, Event, Failure, Phase, State, step};
use crate::systemd;

/// What a line is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// New requests go to it, and what is shown is its.
    Current,
    /// It will be the current one once its first engine has passed the test.
    Candidate,
    /// It finishes what was accepted.
    Retiring,
}

pub(super) struct Line {
    pub(super) ground: Ground,
    pub(super) config: BrokerConfig,
    pub(super) role: Role,
    /// Jobs are made for this tenure.
    pub(super) tenure: u64,
    /// Nobody is left who could make a job for it.
    pub(super) is_released: bool,
    /// The first failure of its first engine decides: nobody has relied on it yet.
    pub(super) on_trial: bool,
    /// Its engine has to wait until others have ended.
    pub(super) is_held: bool,
    pub(super) state: State,
    pub(super) running: Option<Running>,
    /// Jobs that wait for a slot, first come first served.
    pub(super) queue: VecDeque<Work>,
    /// Jobs given to the engine, by id.
    pub(super) active: BTreeMap<u64, Work>,
    /// Slot actions without an answer.
    pub(super) chores: Chores,
    /// What the engines have to answer to the canary, once one has.
    pub(super) golden: Option<Vec<u32>>,
    /// The canary on its way.
    pub(super) flight: Option<Flight>,
    /// Requests may have come.
    pub(super) is_open: bool,
    /// Since when there is no work.
    pub(super) idle_since: Instant,
}

impl Line {
    pub(super) fn new(ground: Ground, tenure: u64, config: BrokerConfig, role: Role) -> Line {
        let now = Instant::now();
        let line = Line {
            role,
            tenure,
            is_released: false,
            on_trial: role != Role::Current,
            is_held: false,
            state: State::asleep(config.start_timeout, now),
            running: None,
            queue: VecDeque::new(),
            active: BTreeMap::new(),
            chores: Chores::default(),
            golden: None,
            flight: None,
            is_open: false,
            idle_since: now,
            ground,
            config,
        };
        line.show_slots();
        line
    }

    /// Starts the first engine.
    pub(super) fn start(&mut self) {
        let (state, actions) = State::start(self.config.start_timeout, Instant::now());
        self.state = state;
        self.publish();
        self.act(actions);
    }

    pub(super) fn is_current(&self) -> bool {
        self.role == Role::Current
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state.phase == Phase::Stopped
    }

    /// Jobs here.
    pub(super) fn jobs(&self) -> usize {
        self.queue.len() + self.active.len()
    }

    pub(super) fn has_work(&self) -> bool {
        self.jobs() + self.chores.len() > 0
    }

    /// When to look again at the latest.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let sleep = self.config.sleep_after.filter(|_| self.could_sleep());
        let all = [
            self.state.deadline(),
            self.hangs_at(),
            self.flies_at(),
            self.expires_at(),
            sleep.map(|after| self.idle_since + after),
        ];
        all.into_iter().flatten()
    }

    /// `has_more`: a job may be on its way to some line.
    pub(super) fn tick(&mut self, has_more: bool) {
        if self.has_work() {
            self.idle_since = Instant::now();
        }
        self.watch_progress();
        self.watch_end();
        self.event(Event::Tick);
        if self.has_work() {
            self.wake();
        }
        if matches!(self.state.phase, Phase::Draining { .. }) && !self.has_work() && !has_more {
            self.event(Event::Idle);
        }
        self.expire();
        self.fly_if_quiet();
        self.sleep_if_idle(has_more);
        self.publish();
    }

    fn could_sleep(&self) -> bool {
        matches!(self.state.phase, Phase::Ready { .. })
            && self.is_current()
            && !self.has_work()
            && self.flight.is_none()
    }

    fn sleep_if_idle(&mut self, has_more: bool) {
        let Some(after) = self.config.sleep_after else {
            return;
        };
        if has_more || !self.could_sleep() || self.idle_since.elapsed() < after {
            return;
        }
        tracing::info!(
            "no request for {} s: the engine ends, the next request starts another",
            after.as_secs_f64().round()
        );
        if let Some(running) = &mut self.running {
            running.ready = false;
        }
        self.event(Event::Sleep);
    }

    // --- the table -----------------------------------------------------------------------------------------------

    pub(super) fn event(&mut self, event: Event) {
        let before = self.state.phase.clone();
        let (state, actions) = step(self.state.clone(), event, Instant::now());
        self.state = state;
        self.publish();
        if std::mem::discriminant(&self.state.phase) != std::mem::discriminant(&before) {
            self.announce(&before);
        }
        self.act(actions);
    }

    fn announce(&mut self, before: &Phase) {
        match &self.state.phase {
            Phase::Backoff { until, .. } if !self.on_trial => {
                systemd::status("starting a new engine");
                let pause = until.saturating_duration_since(Instant::now());
                tracing::warn!(
                    "starting a new engine in {:.2} s; {} accepted requests wait for it",
                    pause.as_secs_f64(),
                    self.ground.shared.view().open
                );
            }
            Phase::Draining { .. } => {
                tracing::debug!("draining: {} requests are left", self.jobs());
            }
            Phase::Killing { why } => tracing::error!("killing the engine: {}", why.reason),
            Phase::Starting { .. } if matches!(before, Phase::Backoff { .. }) => {
                self.ground.shared.view().counters.engine_restarts += 1;
            }
            Phase::Starting { .. } => tracing::debug!("there is work: starting an engine"),
            Phase::Ready { .. } => {
                self.idle_since = Instant::now();
                self.tell_ready();
            }
            Phase::Asleep => tracing::debug!("asleep"),
            Phase::Failed(failure) if self.is_current() => self.tell_failed(failure),
            _ => {}
        }
    }

    fn tell_failed(&self, failure: &Failure) {
        let ever_ready = self.ground.shared.view().ever_ready;
        if ever_ready {
            tracing::error!("no engine: {}", failure.reason);
        }
        let failure = failure.clone();
        let _ = self.ground.notices.send(Notice::Failed {
            failure,
            ever_ready,
        });
    }

    /// Tells the program about a ready engine of the current line.
    pub(super) fn tell_ready(&self) {
        if let (true, Some(running)) = (self.is_current(), &self.running) {
            let _ = self.ground.notices.send(Notice::Ready {
                load_ms: running.load_ms,
                pid: running.engine.pid(),
            });
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

    /// Makes the current line's state visible to HTTP.
    pub(super) fn publish(&self) {
        if !self.is_current() {
            return;
        }
        let mut view = self.ground.shared.view();
        view.ever_ready |= matches!(self.state.phase, Phase::Ready { .. });
        view.state = match &self.state.phase {
            Phase::Failed(failure) => BackendState::Failed(failure.reason.clone()),
            Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped => {
                BackendState::Draining
            }
            // A drain was asked for and its message is on the way.
            _ if view.state == BackendState::Draining => BackendState::Draining,
            _ if view.ever_ready => BackendState::Ready,
            _ => BackendState::Loading,
        };
        let is_down = matches!(self.state.phase, Phase::Asleep | Phase::Dozing { .. });
        view.is_asleep = is_down && !self.is_held;
        view.engine_pid = self.pid();
    }

    /// Shows slots without work.
    pub(super) fn show_slots(&self) {
        if self.is_current() {
            let mut view = self.ground.shared.view();
            view.max_queue = self.config.max_queue;
            view.slots = (0..self.config.engine.slots).map(idle_slot).collect();
        }
    }

    /// Changes what is shown of a slot.
    pub(super) fn with_slot(&self, slot: Option<usize>, change: impl FnOnce(&mut SlotView)) {
        if !self.is_current() {
            return;
        }
        let mut view = self.ground.shared.view();
        if let Some(slot) = slot.and_then(|slot| view.slots.get_mut(slot)) {
            change(slot);
        }
    }

    /// Why the first engine did not get through, if it didn't.
    pub(super) fn trial_failed(&self) -> Option<Failure> {
        match &self.state.phase {
            Phase::Backoff { why, .. } | Phase::Failed(why) => Some(why.clone()),
            Phase::Stopped => Some(Failure::new("it was stopped")),
            _ => None,
        }
    }

    pub(super) fn take_chore(&mut self, chore: Chore) {
        self.chores.push(chore);
        self.wake();
    }

    pub(super) fn wake(&mut self) {
        let is_down = matches!(
            self.state.phase,
            Phase::Asleep | Phase::Dozing { wanted: false, .. }
        );
        if is_down && !self.is_held {
            self.event(Event::Wake);
        }
    }

    /// Starts an engine of a changed configuration, where none runs.
    pub(super) fn restart(&mut self) {
        self.state = State::asleep(self.config.start_timeout, Instant::now());
        self.event(Event::Wake);
    }

    /// Requests can come from now on.
    pub(super) fn opened(&mut self) {
        self.is_open = true;
        self.idle_since = Instant::now();
    }

    /// Ends an engine without work.
    pub(super) fn leave(&mut self) {
        let is_leaving = matches!(
            self.state.phase,
            Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped
        );
        if !is_leaving {
            let deadline = Instant::now();
            self.event(Event::Drain { deadline });
            self.event(Event::Idle);
        }
    }
}
