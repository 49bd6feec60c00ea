//! Counters and histograms, and their Prometheus text: llama-server's names under `llamacpp:`, our own under `bitnet_`.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::backend::{BackendCounters, BackendState, SlotView};
use crate::error::ApiError;

/// Upper bounds in seconds for the time to the first token.
const FIRST_TOKEN_BOUNDS_S: &[f64] = &[0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Upper bounds in seconds for the time between two tokens.
const PER_TOKEN_BOUNDS_S: &[f64] = &[
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0,
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
    requests: u64,
    cancelled: u64,
    failed: u64,
    embedded: u64,
    /// Tokens counted as they come, not when their request ends.
    prompt_seen: u64,
    predicted_seen: u64,
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
            requests: 0,
            cancelled: 0,
            failed: 0,
            embedded: 0,
            prompt_seen: 0,
            predicted_seen: 0,
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

    /// So many more prompt tokens are in the cache.
    pub(crate) fn prompt_tokens(&self, more: usize) {
        self.with(|totals| totals.prompt_seen += more as u64);
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.with(|totals| {
            totals.first_token.observe(after.as_secs_f64());
            totals.predicted_seen += 1;
        });
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.with(|totals| {
            totals.per_token.observe(after.as_secs_f64());
            totals.predicted_seen += 1;
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
        slot_context: app.model().map_or(0, |model| model.card.slot_context),
        kernel: app
            .model()
            .map_or_else(String::new, |model| model.card.kernel.clone()),
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

/// Everything one scrape shows.
struct Scene {
    totals: Totals,
    started_unix: f64,
    counters: BackendCounters,
    slots: Vec<SlotView>,
    slot_context: usize,
    kernel: String,
    version: String,
    state: BackendState,
}

impl Scene {
    fn text(&self) -> String {
        let mut out = String::with_capacity(8 << 10);
        self.llamacpp(&mut out);
        self.own(&mut out);
        out
    }

    fn llamacpp(&self, out: &mut String) {
        let all = self.totals.all;
        let last = self.totals.scraped;
        let mut put = |kind: &str, name: &str, help: &str, value: f64| {
            sample(out, kind, &format!("llamacpp:{name}"), help, "", value);
        };
        put(
            "counter",
            "prompt_tokens_total",
            "Number of prompt tokens processed, cached ones excluded.",
            all.prompt_tokens as f64,
        );
        put(
            "counter",
            "prompt_tokens_cached_total",
            "Number of prompt tokens found in the cache.",
            all.prompt_cached as f64,
        );
        put(
            "counter",
            "prompt_seconds_total",
            "Prompt process time.",
            all.prompt_s,
        );
        put(
            "counter",
            "tokens_predicted_total",
            "Number of generation tokens processed.",
            all.predicted as f64,
        );
        put(
            "counter",
            "tokens_predicted_seconds_total",
            "Predict process time.",
            all.predicted_s,
        );
        put(
            "counter",
            "n_decode_total",
            "Total number of forward passes.",
            self.counters.decode_steps as f64,
        );
        put(
            "counter",
            "n_tokens_max",
            "Largest observed number of tokens in a sequence.",
            self.totals.n_tokens_max as f64,
        );
        put(
            "gauge",
            "n_busy_slots_per_decode",
            "Average number of sequences advanced per forward pass.",
            self.busy_per_step(),
        );
        put(
            "gauge",
            "prompt_tokens_seconds",
            "Average prompt throughput in tokens/s since the last scrape.",
            ratio(
                (all.prompt_tokens - last.prompt_tokens) as f64,
                all.prompt_s - last.prompt_s,
            ),
        );
        put(
            "gauge",
            "predicted_tokens_seconds",
            "Average generation throughput in tokens/s since the last scrape.",
            ratio(
                (all.predicted - last.predicted) as f64,
                all.predicted_s - last.predicted_s,
            ),
        );
        let kv_tokens: usize = self.slots.iter().map(|slot| slot.kv_tokens).sum();
        let kv_room = self.slots.len() * self.slot_context;
        put(
            "gauge",
            "kv_cache_usage_ratio",
            "KV-cache usage. 1 means 100 percent usage.",
            ratio(kv_tokens as f64, kv_room as f64),
        );
        put(
            "gauge",
            "kv_cache_tokens",
            "KV-cache tokens.",
            kv_tokens as f64,
        );
        put(
            "gauge",
            "requests_processing",
            "Number of requests processing.",
            self.counters.processing as f64,
        );
        put(
            "gauge",
            "requests_deferred",
            "Number of requests deferred.",
            self.counters.deferred as f64,
        );
        put(
            "counter",
            "spec_decode_num_draft_tokens_total",
            "Number of draft tokens.",
            0.0,
        );
        put(
            "counter",
            "spec_decode_num_accepted_tokens_total",
            "Number of accepted draft tokens.",
            0.0,
        );
        put(
            "counter",
            "spec_decode_num_drafts_total",
            "Number of drafts.",
            0.0,
        );
    }

    /// Each forward pass yields one token per sequence that decodes in it.
    fn busy_per_step(&self) -> f64 {
        ratio(
            self.totals.all.predicted as f64,
            self.counters.decode_steps as f64,
        )
    }

    fn own(&self, out: &mut String) {
        let labels = format!(
            "{{version=\"{}\",kernel=\"{}\"}}",
            label(&self.version),
            label(&self.kernel)
        );
        sample(
            out,
            "gauge",
            "bitnet_build_info",
            "Version and kernel in use; always 1.",
            &labels,
            1.0,
        );
        let ready = f64::from(u8::from(self.state == BackendState::Ready));
        sample(
            out,
            "gauge",
            "bitnet_ready",
            "1 when requests are served now.",
            "",
            ready,
        );
        sample(
            out,
            "gauge",
            "bitnet_process_start_time_seconds",
            "Start of the server process, seconds since 1970.",
            "",
            self.started_unix,
        );
        sample(
            out,
            "gauge",
            "bitnet_slots",
            "Sequences that can run at the same time.",
            "",
            self.slots.len() as f64,
        );
        sample(
            out,
            "counter",
            "bitnet_engine_restarts_total",
            "Engine processes started after the first.",
            "",
            self.counters.engine_restarts as f64,
        );
        sample(
            out,
            "counter",
            "bitnet_generations_total",
            "Generations that ended, however.",
            "",
            self.totals.requests as f64,
        );
        sample(
            out,
            "counter",
            "bitnet_generations_cancelled_total",
            "Generations whose client went away.",
            "",
            self.totals.cancelled as f64,
        );
        sample(
            out,
            "counter",
            "bitnet_generations_failed_total",
            "Generations that ended with an error.",
            "",
            self.totals.failed as f64,
        );
        sample(
            out,
            "counter",
            "bitnet_embedding_tokens_total",
            "Tokens of texts that were embedded.",
            "",
            self.totals.embedded as f64,
        );
        self.usage(out);
        self.totals.first_token.write(
            out,
            "bitnet_first_token_seconds",
            "Time from the request to its first token.",
        );
        self.totals.per_token.write(
            out,
            "bitnet_token_seconds",
            "Time between two tokens of one answer.",
        );
    }
}

impl Scene {
    /// Only what was measured; where there is no energy counter, the reason stands as a label.
    fn usage(&self, out: &mut String) {
        let usage = &self.counters.usage;
        if let Some(seconds) = usage.engine_cpu_s {
            sample(
                out,
                "counter",
                "bitnet_engine_cpu_seconds_total",
                "CPU time of the engine processes.",
                "",
                seconds,
            );
        }
        if let Some(seconds) = usage.quota_throttled_s {
            sample(
                out,
                "counter",
                "bitnet_quota_throttled_seconds_total",
                "Time that a CPU quota kept threads of this control group waiting.",
                "",
                seconds,
            );
        }
        let Some(source) = &usage.energy_source else {
            return;
        };
        let (available, labels) = match source {
            Ok(source) => (1.0, format!("{{source=\"{}\"}}", label(source))),
            Err(reason) => (0.0, format!("{{reason=\"{}\"}}", label(reason))),
        };
        sample(
            out,
            "gauge",
            "bitnet_energy_available",
            "1 when an energy counter can be read, 0 with the reason.",
            &labels,
            available,
        );
        if let Some(joules) = usage.energy_j {
            sample(
                out,
                "counter",
                "bitnet_energy_joules_total",
                "Energy of the machine's processors since the server started, others' work and idle power included.",
                &labels,
                joules,
            );
        }
    }
}

fn sample(out: &mut String, kind: &str, name: &str, help: &str, labels: &str, value: f64) {
    let value = if value.is_finite() { value } else { 0.0 };
    let _ = writeln!(
        out,
        "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}"
    );
}

/// `a / b`, 0 where that is no number.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 && a.is_finite() { a / b } else { 0.0 }
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Counts per bucket; cumulative only when written.
#[derive(Clone)]
struct Histogram {
    bounds: &'static [f64],
    /// One per bound and one above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Histogram {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let all: u64 = self.counts.iter().sum();
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {all}\n{name}_sum {}\n{name}_count {all}",
            self.sum
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let mut h = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            h.observe(value);
        }
        let mut out = String::new();
        h.write(&mut out, "x", "y");
        assert!(out.contains("x_bucket{le=\"1\"} 2\nx_bucket{le=\"2\"} 3\nx_bucket{le=\"+Inf\"} 4\nx_sum 12\nx_count 4"));
    }

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
                slot_context: 0,
                kernel: String::new(),
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
