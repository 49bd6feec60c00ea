//! The broker's handle: what HTTP, the signal handler and the watching thread hold. Everything here returns at once.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_model::protocol::{SlotAction, SlotFault, SlotReport};
use bitnet_server::backend::{
    Backend, BackendCounters, BackendState, CancelOnDrop, Condition, Crash, EmbedJob, EnergyMoment,
    Job, JobEvent, JobHandle, Refused, SlotView, Tenure, Usage,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::chores::Chore;
use super::work::Work;
use super::{BrokerConfig, MAX_CHORES, Message, Notice, Replacement, Supervisor};
use crate::supervise::child::Spawn;

/// The handle: what HTTP and the signal handler hold.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(super) inbox: Sender<Message>,
    shared: Arc<Shared>,
}

/// What HTTP may look at without asking the thread.
pub(super) struct Shared {
    pub(super) next_id: AtomicU64,
    pub(super) view: Mutex<View>,
}

pub(super) struct View {
    pub(super) state: BackendState,
    pub(super) max_queue: usize,
    /// Accepted and not ended.
    pub(super) open: usize,
    /// Slot actions accepted and not answered.
    pub(super) chores: usize,
    pub(super) slots: Vec<SlotView>,
    pub(super) counters: BackendCounters,
    pub(super) engine_pid: Option<u32>,
    pub(super) looked_at: Instant,
    /// Some engine was ready once.
    pub(super) ever_ready: bool,
    /// Some engine produced a token.
    pub(super) has_spoken: bool,
    /// The engine was ended for want of work.
    pub(super) is_asleep: bool,
    pub(super) last_crash: Option<Crash>,
    pub(super) meter: Option<RequestMeter>,
    /// Watts without jobs.
    pub(super) idle_w: Option<f64>,
}

/// Joules since some time; read at the beginning and the end of requests.
pub(crate) type RequestMeter = Arc<Mutex<dyn FnMut() -> f64 + Send>>;

impl Shared {
    /// The next number of a job, a slot action or a canary.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
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
            looked_at: Instant::now(),
            ever_ready: false,
            has_spoken: false,
            is_asleep: false,
            last_crash: None,
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

    /// Puts other engines in the place of those there are; its outcome is told to who asked.
    pub(crate) fn replace(&self, replacement: Replacement) {
        let _ = self.inbox.send(Message::Replace(Box::new(replacement)));
    }

    /// Other rules for the same engine.
    pub(crate) fn retune(&self, config: BrokerConfig) {
        let _ = self.inbox.send(Message::Retune(Box::new(config)));
    }

    /// Clients can send requests from now on: the first ones go before the first canary.
    pub(crate) fn open(&self) {
        let _ = self.inbox.send(Message::Opened);
    }

    /// A tenure; jobs for it are accepted until no request knows it any more.
    pub(crate) fn tenure(&self, number: u64) -> Arc<Tenure> {
        let inbox = self.inbox.clone();
        Arc::new(Tenure::new(number, move || {
            let _ = inbox.send(Message::Released(number));
        }))
    }

    /// When the supervisor thread last came by; it does so every second at least.
    pub(crate) fn looked_at(&self) -> Instant {
        self.shared.view().looked_at
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
        let id = self.shared.next_id();
        let (chore, answer) = Chore::new(id, slot, action);
        let _ = self.inbox.send(Message::Slot(chore));
        Ok(answer)
    }

    fn slots(&self) -> Vec<SlotView> {
        self.shared.view().slots.clone()
    }

    fn condition(&self) -> Condition {
        let view = self.shared.view();
        Condition {
            has_spoken: view.has_spoken,
            is_asleep: view.is_asleep,
            last_crash: view.last_crash.clone(),
        }
    }

    fn counters(&self) -> BackendCounters {
        let view = self.shared.view();
        BackendCounters {
            queue_bound: view.max_queue,
            slots: view.slots.len(),
            ..view.counters.clone()
        }
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

        let id = self.shared.next_id();
        let (sender, events) = unbounded_channel();
        let _ = self.inbox.send(Message::Submit(Box::new(work(id, sender))));
        let inbox = self.inbox.clone();
        let cancel = CancelOnDrop::new(move || {
            let _ = inbox.send(Message::Cancel(id));
        });
        Ok(JobHandle { id, events, cancel })
    }
}

pub(super) fn idle_slot(id: usize) -> SlotView {
    SlotView {
        id,
        ..SlotView::default()
    }
}
