//! Counters and histograms, and their Prometheus text: llama-server's names under `llamacpp:`, our own under `bitnet_`.

mod durations;
mod histogram;
mod speed;
mod text;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bitnet_model::protocol::Draft;

use crate::app::App;
use crate::error::ApiError;

use self::durations::Durations;
pub(crate) use self::durations::Kind;
use self::histogram::Histogram;
use self::speed::Speed;
use self::text::Scene;

/// Upper bounds in seconds for the time to the first token.
const FIRST_TOKEN_BOUNDS_S: &[f64] = &[0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Upper bounds in seconds for the time between two tokens.
const PER_TOKEN_BOUNDS_S: &[f64] = &[
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0,
];

/// Upper bounds in seconds for the time in the queue.
const QUEUE_BOUNDS_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// Counted by the server process since it started.
pub(crate) struct Metrics {
    pub(crate) started: SystemTime,
    began: Instant,
    totals: Mutex<Totals>,
}

#[derive(Clone)]
struct Totals {
    all: Sums,
    /// `all` as it was at the last scrape.
    scraped: Sums,
    n_tokens_max: u64,
    first_token: Histogram,
    per_token: Histogram,
    queue_wait: Histogram,
    durations: Durations,
    speed: Speed,
    requests: u64,
    cancelled: u64,
    failed: u64,
    embedded: u64,
    /// Tokens counted as they come, not when their request ends.
    prompt_seen: u64,
    predicted_seen: u64,
    drafts: Drafts,
}

/// What speculation did.
#[derive(Debug, Clone, Default)]
struct Drafts {
    /// Steps with guesses.
    n: u64,
    /// Guessed tokens.
    n_tokens: u64,
    /// Right ones, by their place among the guesses of a step.
    accepted: Vec<u64>,
}

/// Totals so far, what is under way included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) prompt_tokens: u64,
    pub(crate) prompt_cached: u64,
    pub(crate) predicted: u64,
    pub(crate) requests: u64,
    pub(crate) cancelled: u64,
    pub(crate) failed: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    prompt_tokens: u64,
    prompt_cached: u64,
    prompt_s: f64,
    predicted: u64,
    predicted_s: f64,
}

/// What one finished generation adds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Finished {
    /// Prompt tokens evaluated, cached ones excluded.
    pub(crate) prompt_tokens: u64,
    pub(crate) prompt_cached: u64,
    pub(crate) prompt_ms: f64,
    pub(crate) predicted: u64,
    pub(crate) predicted_ms: f64,
    /// Prompt and answer together.
    pub(crate) sequence: u64,
    pub(crate) end: End,
}

/// How a generation ended, as far as counting goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum End {
    #[default]
    Complete,
    /// The client went away, or the server shut down.
    Cancelled,
    Failed,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Complete => "done",
            End::Cancelled => "cancelled",
            End::Failed => "failed",
        })
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let totals = Totals {
            all: Sums::default(),
            scraped: Sums::default(),
            n_tokens_max: 0,
            first_token: Histogram::new(FIRST_TOKEN_BOUNDS_S),
            per_token: Histogram::new(PER_TOKEN_BOUNDS_S),
            queue_wait: Histogram::new(QUEUE_BOUNDS_S),
            durations: Durations::default(),
            speed: Speed::new(Instant::now()),
            requests: 0,
            cancelled: 0,
            failed: 0,
            embedded: 0,
            prompt_seen: 0,
            predicted_seen: 0,
            drafts: Drafts::default(),
        };
        Metrics {
            started: SystemTime::now(),
            began: Instant::now(),
            totals: Mutex::new(totals),
        }
    }

    /// Seconds since 1970 at which the server process started.
    pub(crate) fn started_unix(&self) -> f64 {
        self.started
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64()
    }

    /// Time since the server process started.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn seen(&self) -> Seen {
        self.with(|totals| Seen {
            prompt_tokens: totals.prompt_seen,
            prompt_cached: totals.all.prompt_cached,
            predicted: totals.predicted_seen,
            requests: totals.requests,
            cancelled: totals.cancelled,
            failed: totals.failed,
        })
    }

    /// A slot began with a request that had waited for this long.
    pub(crate) fn began(&self, waited: Duration) {
        self.with(|totals| {
            totals.queue_wait.observe(waited.as_secs_f64());
            totals.speed.begin(Instant::now());
        });
    }

    /// The slot of one that had begun is free again.
    pub(crate) fn left(&self) {
        self.with(|totals| totals.speed.end(Instant::now()));
    }

    /// A request was answered to the last byte, or its client went away.
    pub(crate) fn request(&self, kind: Kind, took: Duration) {
        self.with(|totals| totals.durations.observe(kind, took));
    }

    /// Answer tokens per second of work if measured, and requests per second.
    pub(crate) fn speed(&self) -> (Option<f64>, f64) {
        self.with(|totals| {
            totals.speed.advance(Instant::now());
            (totals.speed.tokens_s(), totals.speed.requests_s())
        })
    }

    /// The durations of requests as Prometheus text.
    pub(crate) fn durations(&self) -> String {
        let durations = self.with(|totals| totals.durations.clone());
        let mut out = String::new();
        durations.write(&mut out);
        out
    }

    /// So many more prompt tokens are in the cache.
    pub(crate) fn prompt_tokens(&self, more: usize) {
        self.with(|totals| totals.prompt_seen += more as u64);
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.with(|totals| {
            totals.first_token.observe(after.as_secs_f64());
            totals.speed.token(Instant::now());
            totals.predicted_seen += 1;
        });
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.with(|totals| {
            totals.per_token.observe(after.as_secs_f64());
            totals.speed.token(Instant::now());
            totals.predicted_seen += 1;
        });
    }

    /// A token came out of a step with guesses, or of any other.
    pub(crate) fn drafted(&self, draft: Draft) {
        if draft == Draft::default() {
            return;
        }
        self.with(|totals| {
            let drafts = &mut totals.drafts;
            drafts.n += u64::from(draft.n > 0);
            drafts.n_tokens += u64::from(draft.n);
            // A place is bounded by what the settings allow.
            let place = draft.place as usize;
            if place > 0 {
                let n_places = drafts.accepted.len().max(place);
                drafts.accepted.resize(n_places, 0);
                drafts.accepted[place - 1] += 1;
            }
        });
    }

    pub(crate) fn finished(&self, one: Finished) {
        self.with(|totals| {
            let all = &mut totals.all;
            all.prompt_tokens += one.prompt_tokens;
            all.prompt_cached += one.prompt_cached;
            all.prompt_s += one.prompt_ms / 1e3;
            all.predicted += one.predicted;
            all.predicted_s += one.predicted_ms / 1e3;
            totals.n_tokens_max = totals.n_tokens_max.max(one.sequence);
            totals.requests += 1;
            totals.cancelled += u64::from(one.end == End::Cancelled);
            totals.failed += u64::from(one.end == End::Failed);
        });
    }

    /// Tokens of texts that became vectors; llama-server counts none of them as prompt tokens.
    pub(crate) fn embedded(&self, n_tokens: usize) {
        self.with(|totals| totals.embedded += n_tokens as u64);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Totals) -> T) -> T {
        work(&mut self.totals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The totals now; the next scrape's averages start here.
    fn scrape(&self) -> Totals {
        self.with(|totals| {
            totals.speed.advance(Instant::now());
            let now = totals.clone();
            totals.scraped = totals.all;
            now
        })
    }
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if !app.config.metrics_endpoint {
        return Err(ApiError::not_supported(
            "This server does not support metrics endpoint. Start it with `--metrics`",
        ));
    }
    let scene = Scene {
        totals: app.metrics.scrape(),
        started_unix: app.metrics.started_unix(),
        counters: app.backend.counters(),
        slots: app.backend.slots(),
        model: app.model(),
        version: app.config.version.clone(),
        state: app.state(),
    };
    let started_us = (scene.started_unix * 1e6) as u64;
    let headers = [
        (
            header::CONTENT_TYPE.as_str(),
            "text/plain; version=0.0.4".to_owned(),
        ),
        ("Process-Start-Time-Unix", started_us.to_string()),
    ];
    Ok((headers, scene.text()).into_response())
}

/// `a / b`, 0 where that is no number.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 && a.is_finite() { a / b } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendCounters, BackendState};

    #[test]
    fn energy_is_measured_or_missing_with_a_reason() {
        let text = |usage: crate::backend::Usage| {
            let scene = Scene {
                totals: Metrics::new().scrape(),
                started_unix: 0.0,
                counters: BackendCounters {
                    usage,
                    ..BackendCounters::default()
                },
                slots: Vec::new(),
                model: None,
                version: String::new(),
                state: BackendState::Ready,
            };
            scene.text()
        };
        let none = text(crate::backend::Usage::default());
        assert!(!none.contains("bitnet_energy") && !none.contains("cpu_seconds"));
        let denied = text(crate::backend::Usage {
            engine_cpu_s: Some(1.5),
            energy_source: Some(Err("a \"reason\"".to_owned())),
            ..Default::default()
        });
        assert!(denied.contains("bitnet_engine_cpu_seconds_total 1.5\n"));
        assert!(denied.contains("bitnet_energy_available{reason=\"a \\\"reason\\\"\"} 0\n"));
        assert!(!denied.contains("joules"));
        let measured = text(crate::backend::Usage {
            energy_j: Some(12.5),
            energy_source: Some(Ok("rapl".to_owned())),
            ..Default::default()
        });
        assert!(measured.contains("bitnet_energy_joules_total{source=\"rapl\"} 12.5\n"));
    }

    #[test]
    fn averages_start_at_the_last_scrape() {
        let metrics = Metrics::new();
        metrics.finished(Finished {
            predicted: 10,
            predicted_ms: 1000.0,
            ..Finished::default()
        });
        metrics.scrape();
        metrics.finished(Finished {
            predicted: 5,
            predicted_ms: 1000.0,
            ..Finished::default()
        });
        let totals = metrics.scrape();
        assert_eq!((totals.all.predicted, totals.scraped.predicted), (15, 10));
        assert_eq!(ratio(1.0, 0.0), 0.0);
    }
}
