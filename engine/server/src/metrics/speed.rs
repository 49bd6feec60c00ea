//! How fast the server is, as load balancers want to know it: answer tokens per second while anything runs, and requests per second.
//!
//! Both forget: work of the last minute counts most, so that a machine that got slower is seen as slow. Prompts take part as time that
//! brings no answer tokens.

use std::time::Instant;

/// After so many seconds of work, what was measured counts half.
const WORK_HALF_LIFE_S: f64 = 30.0;
/// After so many seconds, a request counts half.
const REQUEST_HALF_LIFE_S: f64 = 10.0;
/// Less work than this says nothing.
const LEAST_WORK_S: f64 = 0.3;

#[derive(Debug, Clone)]
pub(super) struct Speed {
    running: usize,
    looked_at: Instant,
    /// Seconds with anything running, forgotten by and by.
    work_s: f64,
    /// Answer tokens in them, likewise.
    tokens: f64,
    /// Requests that began, forgotten by and by.
    requests: f64,
    /// Seconds with anything running, all of them.
    pub(super) total_work_s: f64,
}

impl Speed {
    pub(super) fn new(now: Instant) -> Speed {
        Speed {
            running: 0,
            looked_at: now,
            work_s: 0.0,
            tokens: 0.0,
            requests: 0.0,
            total_work_s: 0.0,
        }
    }

    /// A slot began to work.
    pub(super) fn begin(&mut self, now: Instant) {
        self.advance(now);
        self.running += 1;
        self.requests += 1.0;
    }

    /// One that had begun ended.
    pub(super) fn end(&mut self, now: Instant) {
        self.advance(now);
        self.running = self.running.saturating_sub(1);
    }

    pub(super) fn token(&mut self, now: Instant) {
        self.advance(now);
        self.tokens += 1.0;
    }

    /// Brings the clock up to `now`; before anything is read.
    pub(super) fn advance(&mut self, now: Instant) {
        let passed_s = now.saturating_duration_since(self.looked_at).as_secs_f64();
        self.looked_at = self.looked_at.max(now);
        self.requests *= 0.5f64.powf(passed_s / REQUEST_HALF_LIFE_S);
        if self.running > 0 {
            let kept = 0.5f64.powf(passed_s / WORK_HALF_LIFE_S);
            self.tokens *= kept;
            self.work_s = self.work_s * kept + passed_s;
            self.total_work_s += passed_s;
        }
    }

    /// Answer tokens per second of work; `None` before there was enough of it.
    pub(super) fn tokens_s(&self) -> Option<f64> {
        (self.work_s >= LEAST_WORK_S).then(|| self.tokens / self.work_s)
    }

    /// Requests per second lately.
    pub(super) fn requests_s(&self) -> f64 {
        self.requests * std::f64::consts::LN_2 / REQUEST_HALF_LIFE_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn idle_time_does_not_count_and_old_work_fades() {
        let began = Instant::now();
        let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
        let mut speed = Speed::new(began);
        assert_eq!(speed.tokens_s(), None);
        let mut second_of_work = |from: f64, tokens: u32| {
            speed.begin(at(from));
            for i in 1..=tokens {
                speed.token(at(from + f64::from(i) / f64::from(tokens)));
            }
            speed.end(at(from + 1.0));
            speed.tokens_s().unwrap()
        };
        let first = second_of_work(100.0, 40);
        assert!((first - 40.0).abs() < 1.0, "{first}");
        let after_a_pause = second_of_work(1000.0, 40);
        assert!((after_a_pause - 40.0).abs() < 1.0, "{after_a_pause}");
        let mut last = 0.0;
        for i in 0..300 {
            last = second_of_work(2000.0 + f64::from(i), 10);
        }
        assert!((last - 10.0).abs() < 0.5, "{last}");
    }

    #[test]
    fn requests_per_second() {
        let began = Instant::now();
        let mut speed = Speed::new(began);
        for i in 0..1000u64 {
            let now = began + Duration::from_millis(100 * i);
            speed.begin(now);
            speed.end(now);
        }
        let rate = speed.requests_s();
        assert!((rate - 10.0).abs() < 0.5, "{rate}");
    }
}
