//! The text of one scrape.

use std::fmt::Write;
use std::sync::Arc;

use super::{Totals, ratio};
use crate::backend::{BackendCounters, BackendState, SlotView};
use crate::model::Model;

/// Everything one scrape shows.
pub(super) struct Scene {
    pub(super) totals: Totals,
    pub(super) started_unix: f64,
    pub(super) counters: BackendCounters,
    pub(super) slots: Vec<SlotView>,
    pub(super) model: Option<Arc<Model>>,
    pub(super) version: String,
    pub(super) state: BackendState,
}

impl Scene {
    pub(super) fn text(&self) -> String {
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
        let slot_context = self.model.as_ref().map_or(0, |m| m.card.slot_context);
        let kv_room = self.slots.len() * slot_context;
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
        let drafts = &self.totals.drafts;
        put(
            "counter",
            "spec_decode_num_draft_tokens_total",
            "Number of draft tokens.",
            drafts.n_tokens as f64,
        );
        put(
            "counter",
            "spec_decode_num_accepted_tokens_total",
            "Number of accepted draft tokens.",
            drafts.accepted.iter().sum::<u64>() as f64,
        );
        put(
            "counter",
            "spec_decode_num_drafts_total",
            "Number of drafts.",
            drafts.n as f64,
        );
        self.accepted_by_place(out);
    }

    fn accepted_by_place(&self, out: &mut String) {
        let accepted = &self.totals.drafts.accepted;
        if accepted.is_empty() {
            return;
        }
        let name = "llamacpp:spec_decode_num_accepted_tokens_per_pos_total";
        let _ = writeln!(
            out,
            "# HELP {name} Accepted tokens by their position in the draft.\n# TYPE {name} counter"
        );
        for (place, n) in accepted.iter().enumerate() {
            let _ = writeln!(out, "{name}{{position=\"{place}\"}} {n}");
        }
    }

    /// Each forward pass yields one token per sequence that decodes in it, and one more for each right guess.
    fn busy_per_step(&self) -> f64 {
        let guessed = self.totals.drafts.accepted.iter().sum();
        let advanced = self.totals.predicted_seen.saturating_sub(guessed);
        ratio(advanced as f64, self.counters.decode_steps as f64)
    }

    fn own(&self, out: &mut String) {
        let labels = format!(
            "{{version=\"{}\",kernel=\"{}\"}}",
            label(&self.version),
            label(self.model.as_ref().map_or("", |m| &m.card.kernel))
        );
        sample(
            out,
            "gauge",
            "bitnet_build_info",
            "Version and kernel in use; always 1.",
            &labels,
            1.0,
        );
        self.plan(out);
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
        self.totals.queue_wait.write(
            out,
            "bitnet_queue_wait_seconds",
            "Time from a request to the slot that took it.",
        );
        self.totals.durations.write(out);
    }

    /// What was planned, and how much of it is taken.
    fn plan(&self, out: &mut String) {
        if let Some(model) = &self.model {
            let card = &model.card;
            let labels = format!(
                "{{model=\"{}\",kernel=\"{}\",threads=\"{}\",slots=\"{}\",slot_context=\"{}\",prefill_batch=\"{}\"}}",
                label(&model.id),
                label(&card.kernel),
                card.threads,
                card.slots,
                card.slot_context,
                card.prefill_batch
            );
            sample(
                out,
                "gauge",
                "bitnet_plan_info",
                "Model and plan in use; always 1.",
                &labels,
                1.0,
            );
        }
        let draining = f64::from(u8::from(self.state == BackendState::Draining));
        let speed = &self.totals.speed;
        for (kind, name, help, value) in [
            (
                "gauge",
                "bitnet_draining",
                "1 when no new work is taken.",
                draining,
            ),
            (
                "gauge",
                "bitnet_queue_depth",
                "Requests that wait for a slot.",
                self.counters.deferred as f64,
            ),
            (
                "gauge",
                "bitnet_queue_bound",
                "Requests that may wait before further ones are refused.",
                self.counters.queue_bound as f64,
            ),
            (
                "counter",
                "bitnet_busy_seconds_total",
                "Time with at least one request in a slot.",
                speed.total_work_s,
            ),
        ] {
            sample(out, kind, name, help, "", value);
        }
        if let Some(tokens_s) = speed.tokens_s() {
            sample(
                out,
                "gauge",
                "bitnet_busy_tokens_per_second",
                "Answer tokens per second of that time, lately.",
                "",
                tokens_s,
            );
        }
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

fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
