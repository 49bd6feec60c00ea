//! `GET /status`: everything the page's panel shows, as one JSON object. Answered in every state, never waits.
//!
//! What only the launcher knows (machine, plan, processes) comes through [`StatusSource`]; counters are totals since the
//! start, so that any number of readers can form rates from two answers and `now_ms`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::backend::{BackendState, Crash, SlotView};
use crate::props::parameter_size;
use crate::reply;

/// What the launcher knows. Both calls return at once.
pub trait StatusSource: Send + Sync + 'static {
    /// Machine and plan; `None` until the plan is made.
    fn report(&self) -> Option<Report>;
    /// Measured now.
    fn vitals(&self) -> Vitals;
}

/// Machine and plan, made once per start.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// What was found, in the order to show it.
    pub machine: Vec<Fact>,
    /// What was decided and why, in the order to show it.
    pub plan: Vec<Decision>,
    /// Where the memory goes when everything is full, in bytes.
    pub memory: Vec<Part>,
    /// Bytes there are to plan with; `None` where the machine doesn't say.
    pub memory_budget_bytes: Option<u64>,
    /// What could be better.
    pub warnings: Vec<Advice>,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    /// What it is about, `processor`.
    pub name: &'static str,
    /// For people.
    pub value: String,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// What was decided, `threads`.
    pub name: &'static str,
    /// For people.
    pub value: String,
    /// Why, for people.
    pub because: String,
}

/// One share of the planned memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// What it is for.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
}

/// What is the matter, and what to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// A sentence without a full stop.
    pub what: String,
    /// Another.
    pub todo: String,
}

/// Measured at one moment. What can't be read is `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Vitals {
    /// This process.
    pub server: Option<Process>,
    /// The engine's process, while there is one that was ready.
    pub engine: Option<Process>,
    /// Microseconds for which a CPU quota held this control group back, since it was made.
    pub quota_throttled_us: Option<u64>,
    /// Times a core's or a package's clock was lowered by heat, since boot.
    pub heat_throttled: Option<u64>,
    /// Energy the machine's counters have counted since the start, in joules, other programs included.
    pub energy_j: Option<f64>,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Resident memory, file pages included.
    pub rss_bytes: u64,
    /// Of it, pages of files, which the machine can take back.
    pub file_bytes: u64,
    /// Processor time used so far.
    pub cpu_ms: u64,
}

/// `GET /status`
pub(crate) async fn status(State(app): State<Arc<App>>) -> Response {
    reply::ok(&body(&app))
}

fn body(app: &App) -> Value {
    let (state, reason) = match app.state() {
        BackendState::Loading => ("loading", None),
        BackendState::Ready => ("ready", None),
        BackendState::Draining => ("draining", None),
        BackendState::Failed(reason) => ("failed", Some(reason)),
    };
    let source = app.status_source();
    let counters = app.backend.counters();
    let condition = app.backend.condition();
    let seen = app.metrics.seen();
    let slots: Option<Vec<Value>> = app
        .config
        .slots_endpoint
        .then(|| app.backend.slots().iter().map(slot).collect());
    json!({
        "version": app.config.version,
        "state": state,
        "reason": reason,
        "now_ms": app.metrics.age().as_millis() as u64,
        "model": model(app),
        "requests": {
            "processing": counters.processing,
            "waiting": counters.deferred,
            "ended": seen.requests,
            "cancelled": seen.cancelled,
            "failed": seen.failed,
        },
        "tokens": {
            "prompt": seen.prompt_tokens,
            "prompt_cached": seen.prompt_cached,
            "predicted": seen.predicted,
        },
        "engine_restarts": counters.engine_restarts,
        "is_sleeping": condition.is_asleep,
        "last_crash": condition.last_crash.map(|crash| crash_json(&crash)),
        "slots": slots,
        "report": source.and_then(StatusSource::report),
        "vitals": source.map(StatusSource::vitals).unwrap_or_default(),
    })
}

fn crash_json(crash: &Crash) -> Value {
    json!({
        "ago_ms": crash.at.elapsed().as_millis() as u64,
        "reason": crash.reason,
        "hint": crash.hint,
        "log": crash.log,
    })
}

fn model(app: &App) -> Option<Value> {
    let model = app.model()?;
    let (card, facts) = (&model.card, &model.card.facts);
    Some(json!({
        "id": model.id,
        "name": facts.name,
        "path": card.path,
        "architecture": facts.architecture.name(),
        "parameters": parameter_size(facts.n_params),
        "layers": facts.n_layer,
        "type": model.file_type(),
        "file_bytes": facts.file_bytes,
        "slots": card.slots,
        "slot_context": card.slot_context,
        "kernel": card.kernel,
        "threads": card.threads,
    }))
}

fn slot(slot: &SlotView) -> Value {
    json!({
        "id": slot.id,
        "job": slot.job,
        "processing": slot.processing,
        "state": slot.state,
        "prompt": slot.prompt_tokens,
        "prompt_processed": slot.prompt_processed,
        "prompt_cached": slot.prompt_cached,
        "decoded": slot.decoded,
        "kv_tokens": slot.kv_tokens,
    })
}
