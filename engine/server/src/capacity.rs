//! How much more this server can take: as JSON at `GET /capacity`, as an ORCA header beside answers, and as the line that HAProxy's agent
//! check reads.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use crate::backend::BackendState;
use crate::reply;

/// Request header that asks for the load, and in which form.
const ORCA_FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
const ORCA: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// Share of the full weight for a server that has not measured itself yet: a little, until it has.
const UNMEASURED: f64 = 0.1;
/// Requests that may stand at the door beyond the slots, so that no slot is idle for a round trip.
const AT_THE_DOOR: usize = 1;

/// One moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Capacity {
    state: BackendState,
    slots: usize,
    slot_context: usize,
    processing: usize,
    waiting: usize,
    queue_bound: usize,
    /// Answer tokens per second of work; `None` before it was measured.
    tokens_s: Option<f64>,
    requests_s: f64,
    /// Speed of a server with full weight.
    full_speed_tok_s: f64,
}

impl Capacity {
    pub(crate) fn now(app: &App) -> Capacity {
        let counters = app.backend.counters();
        let (tokens_s, requests_s) = app.metrics.speed();
        let (slots, slot_context) = match app.model() {
            Some(model) => (model.card.slots, model.card.slot_context),
            None => (counters.slots, 0),
        };
        // A server that we hand requests on to has a queue of its own.
        let beyond = counters.processing.saturating_sub(slots);
        Capacity {
            state: app.state(),
            slots,
            slot_context,
            processing: counters.processing - beyond,
            waiting: counters.deferred + beyond,
            queue_bound: counters.queue_bound,
            tokens_s,
            requests_s,
            full_speed_tok_s: app.config.full_speed_tok_s,
        }
    }

    fn free(&self) -> usize {
        match self.state {
            BackendState::Ready => self.slots.saturating_sub(self.processing),
            _ => 0,
        }
    }

    /// What runs and waits, as a share of the slots; above 1 when requests wait.
    fn utilization(&self) -> f64 {
        (self.processing + self.waiting) as f64 / self.slots.max(1) as f64
    }

    /// Measured speed as a share of the full speed, less the more requests wait; from 1 to 100, so that a server that works is
    /// never taken for one that doesn't.
    fn weight_percent(&self) -> u32 {
        let speed = match self.tokens_s {
            Some(tokens_s) => tokens_s / self.full_speed_tok_s,
            None => UNMEASURED,
        };
        let slots = self.slots.max(1) as f64;
        let relief = slots / (slots + self.waiting as f64);
        (100.0 * speed * relief).round().clamp(1.0, 100.0) as u32
    }

    fn json(&self) -> Value {
        let (state, reason) = match &self.state {
            BackendState::Loading => ("loading", None),
            BackendState::Ready => ("ready", None),
            BackendState::Draining => ("draining", None),
            BackendState::Failed(reason) => ("failed", Some(reason)),
        };
        json!({
            "state": state,
            "reason": reason,
            "draining": self.state == BackendState::Draining,
            "slots": self.slots,
            "slots_free": self.free(),
            "slot_context": self.slot_context,
            "queue_depth": self.waiting,
            "queue_bound": self.queue_bound,
            "utilization": self.utilization(),
            "tokens_per_second": self.tokens_s,
            "requests_per_second": self.requests_s,
            "weight": self.weight_percent(),
        })
    }

    /// The line of an agent check, see HAProxy's `agent-check`: state, weight, and the connections this server can use.
    pub(crate) fn agent_line(&self) -> String {
        match &self.state {
            BackendState::Ready => format!(
                "up ready {}% maxconn:{}\n",
                self.weight_percent(),
                self.slots + AT_THE_DOOR
            ),
            BackendState::Draining => "drain\n".to_owned(),
            BackendState::Loading => "down #loading the model\n".to_owned(),
            BackendState::Failed(_) => "down #the engine can't be started\n".to_owned(),
        }
    }

    /// The value of `endpoint-load-metrics`; the fields are those of `xds.data.orca.v3.OrcaLoadReport`.
    fn orca(&self, format: &str) -> Option<String> {
        let named = [
            ("slots_free", self.free() as f64),
            ("queue_depth", self.waiting as f64),
            ("tokens_per_second", self.tokens_s.unwrap_or_default()),
        ];
        let utilization = self.utilization();
        let rps = self.requests_s;
        if format.eq_ignore_ascii_case("json") {
            let named: serde_json::Map<_, _> = named
                .into_iter()
                .map(|(name, value)| (name.to_owned(), json!(value)))
                .collect();
            let report = json!({
                "application_utilization": utilization,
                "rps_fractional": rps,
                "named_metrics": named,
            });
            return Some(format!("JSON {report}"));
        }
        if !format.eq_ignore_ascii_case("text") {
            return None;
        }
        let mut text = format!("TEXT application_utilization={utilization},rps_fractional={rps}");
        for (name, value) in named {
            text.push_str(&format!(",named_metrics.{name}={value}"));
        }
        Some(text)
    }
}

/// Adds the load to an answer whose request asked for it.
pub(crate) fn report(app: &App, format: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let format = format.and_then(|format| format.to_str().ok());
    let value = format.and_then(|format| Capacity::now(app).orca(format.trim()));
    if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
        headers.insert(ORCA, value);
    }
}

/// The form asked for, if any.
pub(crate) fn format_asked(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ORCA_FORMAT).cloned()
}

/// `GET /capacity`
pub(crate) async fn capacity(State(app): State<Arc<App>>) -> Response {
    reply::ok(&Capacity::now(&app).json())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(processing: usize, waiting: usize) -> Capacity {
        Capacity {
            state: BackendState::Ready,
            slots: 4,
            slot_context: 4096,
            processing,
            waiting,
            queue_bound: 64,
            tokens_s: Some(40.0),
            requests_s: 0.5,
            full_speed_tok_s: 100.0,
        }
    }

    #[test]
    fn agents_tell_speed_and_waiting() {
        let line = |capacity: Capacity| capacity.agent_line();
        assert_eq!(line(busy(4, 0)), "up ready 40% maxconn:5\n");
        assert_eq!(line(busy(4, 4)), "up ready 20% maxconn:5\n");
        assert_eq!(line(busy(4, 10_000)), "up ready 1% maxconn:5\n");
        let fresh = Capacity {
            tokens_s: None,
            ..busy(0, 0)
        };
        assert_eq!(line(fresh), "up ready 10% maxconn:5\n");
        let fast = Capacity {
            tokens_s: Some(5000.0),
            ..busy(0, 0)
        };
        assert_eq!(line(fast), "up ready 100% maxconn:5\n");
        let state = |state| {
            line(Capacity {
                state,
                ..busy(0, 0)
            })
        };
        assert_eq!(state(BackendState::Draining), "drain\n");
        assert!(state(BackendState::Loading).starts_with("down #"));
        assert!(state(BackendState::Failed("a\nb".into())).starts_with("down #"));
    }

    #[test]
    fn orca_in_two_forms() {
        let capacity = busy(3, 0);
        assert_eq!(
            capacity.orca("TEXT").unwrap(),
            "TEXT application_utilization=0.75,rps_fractional=0.5,named_metrics.slots_free=1,named_metrics.queue_depth=0,named_metrics.tokens_per_second=40"
        );
        assert_eq!(
            capacity.orca("json").unwrap(),
            r#"JSON {"application_utilization":0.75,"rps_fractional":0.5,"named_metrics":{"slots_free":1.0,"queue_depth":0.0,"tokens_per_second":40.0}}"#
        );
        assert_eq!(capacity.orca("bin"), None);
    }

    #[test]
    fn nobody_is_free_but_the_ready() {
        assert_eq!(busy(1, 0).json()["slots_free"], 3);
        let draining = Capacity {
            state: BackendState::Draining,
            ..busy(1, 0)
        };
        let json = draining.json();
        assert_eq!(
            (&json["slots_free"], &json["draining"]),
            (&json!(0), &json!(true))
        );
    }
}
