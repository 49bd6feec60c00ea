//! Asks one engine how it is, from a thread of its own: ready, able to produce a token, and later whether it stands still.
//!
//! Old servers answer `/health` with 503 and another body while they load, ancient ones have none; and some don't answer while they
//! read a long prompt. So silence alone is no fault. Signs of progress are pieces of answers, and answers to [`LOOP_ROUTES`], which a
//! server's loop gives between two steps of computing. An engine without any for the hang timeout that uses no CPU time either stands
//! still; one that computes gets longer, [`BUSY_FACTOR`] times that and [`GAP_FACTOR`] times its longest silence that ended well. Either
//! has to fail at producing a token when it is asked for one, before it is replaced.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_server::proxy::{Address, Upstream};

use super::http;
use crate::host::Root;
use crate::status;

/// Between two questions while it loads, at first and later.
const LOADING_PAUSE: Duration = Duration::from_millis(25);
const LOADING_PAUSE_MAX: Duration = Duration::from_millis(250);
/// Between two looks at one that serves.
const SERVING_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for `/health`.
const HEALTH_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for the first token after the start.
const FIRST_TOKEN_WAIT: Duration = Duration::from_secs(120);
/// CPU time that shows that something is computed, per look.
const BUSY_MS: u64 = 20;
/// Routes that the loop between the steps answers, where they are switched on: those of newer servers' `/health` are not.
const LOOP_ROUTES: &[&str] = &["/metrics", "/slots"];
/// Longest wait for one of them.
const LOOP_WAIT: Duration = Duration::from_secs(10);
/// Hang timeouts an engine may compute for without a sign of progress.
const BUSY_FACTOR: u32 = 10;
/// Longest silences so far, likewise.
const GAP_FACTOR: u32 = 4;
/// What is said in the place of an engine that sleeps.
const MEMORABLE: &[&str] = &["/v1/models", "/models", "/props", "/slots"];
/// One token, whatever the model: old and new servers take it.
const CANARY: &str =
    r#"{"prompt":"1","n_predict":1,"temperature":0,"cache_prompt":false,"stream":false}"#;

/// What became known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// It loaded, and produced a token.
    Ready,
    /// It loaded and can't produce one.
    Unfit(String),
    /// It stands still.
    Stuck(String),
}

/// Whom to ask, and whom to tell.
pub(super) struct Watched {
    pub(super) address: Address,
    pub(super) key: Option<String>,
    pub(super) pid: u32,
    pub(super) upstream: Arc<Upstream>,
    pub(super) hang_timeout: Duration,
    /// It will sleep: what it says of itself is remembered.
    pub(super) sleeps: bool,
    /// Set when it is gone.
    pub(super) ended: Arc<AtomicBool>,
    /// False when nobody listens any more.
    pub(super) tell: Box<dyn Fn(News) -> bool + Send>,
}

/// Starts the thread; it ends with the engine.
///
/// # Errors
/// Those of starting a thread.
pub(super) fn watch(watched: Watched) -> io::Result<()> {
    thread::Builder::new()
        .name("engine-health".into())
        .spawn(move || watched.run())
        .map(drop)
}

impl Watched {
    fn run(self) {
        if !self.wait_until_loaded() {
            return;
        }
        let first = match self.canary(FIRST_TOKEN_WAIT) {
            Ok(()) => News::Ready,
            Err(why) => News::Unfit(why),
        };
        let is_ready = first == News::Ready;
        if is_ready && self.sleeps {
            self.remember();
        }
        if self.is_over() || !(self.tell)(first) || !is_ready {
            return;
        }
        self.watch_serving();
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn wait_until_loaded(&self) -> bool {
        let mut pause = LOADING_PAUSE;
        while !self.is_over() {
            if self.answers() {
                return true;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LOADING_PAUSE_MAX);
        }
        false
    }

    /// 503 is `Loading model`. Anything else is said by a server that serves, be it that it has no such route.
    fn answers(&self) -> bool {
        http::get(&self.address, "/health", None, HEALTH_WAIT)
            .is_ok_and(|answer| matches!(answer.status, 200 | 401 | 403 | 404 | 501))
    }

    /// # Errors
    /// Why there was no token. A server that only embeds refuses to produce one, and is well.
    fn canary(&self, limit: Duration) -> Result<(), String> {
        let key = self.key.as_deref();
        match http::post(&self.address, "/completion", key, CANARY, limit) {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) if matches!(answer.status, 400 | 404 | 405 | 501) => {
                tracing::debug!("the engine generates no text: {}", answer.body);
                Ok(())
            }
            Ok(answer) => Err(format!(
                "it could not produce one token, it answered {}: {}",
                answer.status,
                answer.body.chars().take(300).collect::<String>()
            )),
            Err(error) => Err(format!("it did not produce one token: {error}")),
        }
    }

    fn remember(&self) {
        for path in MEMORABLE {
            let answer = http::get(&self.address, path, self.key.as_deref(), HEALTH_WAIT);
            let answer = answer.ok().filter(|answer| answer.status == 200);
            if let Some(json) = answer.and_then(|answer| serde_json::from_str(&answer.body).ok()) {
                self.upstream.remember(path, json);
            }
        }
    }

    /// Its loop comes round.
    fn loops(&self, route: &str) -> bool {
        let limit = LOOP_WAIT.min(self.hang_timeout);
        http::get(&self.address, route, self.key.as_deref(), limit)
            .is_ok_and(|answer| answer.status == 200)
    }

    fn watch_serving(&self) {
        let root = Root::live();
        let cpu_ms = || status::process(&root, self.pid).map(|process| process.cpu_ms);
        let loop_route = LOOP_ROUTES.iter().find(|route| self.loops(route));
        let mut pace = Pace::new(self.hang_timeout, loop_route.is_some(), Instant::now());
        let mut before = (cpu_ms(), self.upstream.moves());
        while !self.is_over() {
            thread::sleep(SERVING_PAUSE);
            let now = (cpu_ms(), self.upstream.moves());
            let owes = self.upstream.in_flight() > 0;
            let seen = Seen {
                owes,
                computed: match (before.0, now.0) {
                    (Some(before), Some(now)) => now.saturating_sub(before) >= BUSY_MS,
                    _ => true,
                },
                // Nobody asks it while there are other signs.
                moved: before.1 != now.1
                    || match owes {
                        true => loop_route.is_some_and(|route| self.loops(route)),
                        false => self.answers(),
                    },
            };
            before = now;
            let Some(stood) = pace.look(&seen, Instant::now()) else {
                continue;
            };
            let Err(why) = self.canary(self.hang_timeout) else {
                pace.advanced(Instant::now());
                continue;
            };
            if !self.is_over() {
                (self.tell)(News::Stuck(format!("{stood}, and {why}")));
            }
            return;
        }
    }
}

/// What one look at an engine found.
struct Seen {
    /// It has requests.
    owes: bool,
    /// It used CPU time.
    computed: bool,
    /// It sent something, or its loop came round.
    moved: bool,
}

/// When it got on last, and how long it takes between two signs.
struct Pace {
    hang_timeout: Duration,
    /// Its loop can be asked. Where it can't, a long answer in one piece looks like no progress.
    has_loop: bool,
    moved_at: Instant,
    computed_at: Instant,
    longest_gap: Duration,
}

impl Pace {
    fn new(hang_timeout: Duration, has_loop: bool, now: Instant) -> Pace {
        Pace {
            hang_timeout,
            has_loop,
            moved_at: now,
            computed_at: now,
            longest_gap: Duration::ZERO,
        }
    }

    fn advanced(&mut self, now: Instant) {
        let gap = now.duration_since(self.moved_at);
        self.longest_gap = self.longest_gap.max(gap);
        self.moved_at = now;
    }

    /// In words, when it has stood still for too long.
    fn look(&mut self, seen: &Seen, now: Instant) -> Option<String> {
        if seen.computed {
            self.computed_at = now;
        }
        if seen.moved {
            self.advanced(now);
            return None;
        }
        let silent = now.duration_since(self.moved_at);
        if silent.min(now.duration_since(self.computed_at)) >= self.hang_timeout {
            let seconds = self.hang_timeout.as_secs();
            return Some(format!(
                "it neither computed nor sent anything for {seconds} s"
            ));
        }
        let may_compute = (self.hang_timeout * BUSY_FACTOR).max(self.longest_gap * GAP_FACTOR);
        let is_judged = self.has_loop || !seen.owes;
        (is_judged && silent >= may_compute).then(|| {
            let seconds = silent.as_secs();
            format!("it computed without sending anything or coming round for {seconds} s")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANG: Duration = Duration::from_secs(2);

    /// Looks once a second; when it was found at fault, in seconds.
    fn judged(pace: &mut Pace, from: Instant, seen: impl Fn(u64) -> Seen) -> Option<u64> {
        (1..200).find(|second| {
            let now = from + Duration::from_secs(*second);
            pace.look(&seen(*second), now).is_some()
        })
    }

    fn seen(owes: bool, computed: bool, moved: bool) -> Seen {
        Seen {
            owes,
            computed,
            moved,
        }
    }

    #[test]
    fn standing_still_and_spinning_are_found_and_work_is_not() {
        let start = Instant::now();
        let found = |has_loop, look: &dyn Fn(u64) -> Seen| {
            judged(&mut Pace::new(HANG, has_loop, start), start, look)
        };
        // Stopped, at work or idle.
        assert_eq!(found(true, &|_| seen(true, false, false)), Some(2));
        assert_eq!(found(false, &|_| seen(false, false, false)), Some(2));
        // It spins: at work, idle, and where nobody can tell.
        assert_eq!(found(true, &|_| seen(true, true, false)), Some(20));
        assert_eq!(found(false, &|_| seen(false, true, false)), Some(20));
        assert_eq!(found(false, &|_| seen(true, true, false)), None);
        // It gets on, however slowly.
        assert_eq!(found(true, &|n| seen(true, true, n % 19 == 0)), None);
        assert_eq!(found(true, &|n| seen(true, false, n % 2 == 1)), None);
    }

    #[test]
    fn slow_engines_are_given_more_time() {
        let start = Instant::now();
        let mut pace = Pace::new(HANG, true, start);
        pace.advanced(start + Duration::from_secs(15));
        let later = start + Duration::from_secs(15);
        let found = judged(&mut pace, later, |_| seen(true, true, false));
        assert_eq!(found, Some(60));
    }
}
