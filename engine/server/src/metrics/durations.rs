//! How long requests took, by route and kind of status. Routes that clients could make up are one, so that nobody can make the table
//! grow.

use std::collections::BTreeMap;
use std::time::Duration;

use super::histogram::{Histogram, head};

/// Upper bounds in seconds.
const BOUNDS_S: &[f64] = &[
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
const NAME: &str = "bitnet_request_duration_seconds";
const HELP: &str = "Time from a request's arrival to the last byte of its answer.";
/// Routes with a series of their own.
const ROUTES: &[&str] = &[
    "/completion",
    "/completions",
    "/v1/completions",
    "/chat/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/embedding",
    "/embeddings",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/health",
    "/v1/health",
    "/livez",
    "/readyz",
    "/metrics",
    "/status",
    "/capacity",
    "/slots",
    "/props",
    "/models",
    "/v1/models",
];
/// All other paths.
const OTHER: &str = "other";

/// What a request counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    route: &'static str,
    status: &'static str,
}

impl Kind {
    /// `path` without the prefix of the API.
    pub(crate) fn of(path: &str, status: u16) -> Kind {
        let route = ROUTES.iter().find(|route| **route == path);
        Kind {
            route: route.unwrap_or(&OTHER),
            status: match status / 100 {
                1 => "1xx",
                2 => "2xx",
                3 => "3xx",
                4 => "4xx",
                _ => "5xx",
            },
        }
    }
}

/// A histogram for each kind that was seen.
#[derive(Clone, Default)]
pub(super) struct Durations(BTreeMap<Kind, Histogram>);

impl Durations {
    pub(super) fn observe(&mut self, kind: Kind, took: Duration) {
        let histogram = self.0.entry(kind);
        histogram
            .or_insert_with(|| Histogram::new(BOUNDS_S))
            .observe(took.as_secs_f64());
    }

    pub(super) fn write(&self, out: &mut String) {
        head(out, NAME, HELP);
        for (Kind { route, status }, histogram) in &self.0 {
            let labels = format!("route=\"{route}\",status=\"{status}\"");
            histogram.write_series(out, NAME, &labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_paths_share_a_series() {
        let mut durations = Durations::default();
        for (path, status) in [
            ("/completion", 200),
            ("/completion", 429),
            ("/a", 404),
            ("/b", 404),
        ] {
            durations.observe(Kind::of(path, status), Duration::from_millis(20));
        }
        let mut out = String::new();
        durations.write(&mut out);
        for line in [
            "bitnet_request_duration_seconds_count{route=\"/completion\",status=\"2xx\"} 1\n",
            "bitnet_request_duration_seconds_count{route=\"/completion\",status=\"4xx\"} 1\n",
            "bitnet_request_duration_seconds_count{route=\"other\",status=\"4xx\"} 2\n",
            "bitnet_request_duration_seconds_bucket{route=\"other\",status=\"4xx\",le=\"0.025\"} 2\n",
        ] {
            assert!(out.contains(line), "{line} in {out}");
        }
    }
}
