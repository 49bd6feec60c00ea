//! Asks one engine how it is, from a thread of its own: ready, able to produce a token, and later whether it stands still.
//!
//! Old servers answer `/health` with 503 and another body while they load, ancient ones have none; and some don't answer while they
//! read a long prompt. So silence alone is no fault: an engine stands still when it owes an answer, uses no CPU time, sends nothing,
//! and doesn't produce a token when it is asked for one.

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
        http::get(&self.address, "/health", HEALTH_WAIT)
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

    fn watch_serving(&self) {
        let root = Root::live();
        let cpu_ms = || status::process(&root, self.pid).map(|process| process.cpu_ms);
        let mut before = (cpu_ms(), self.upstream.moves());
        let mut last_sign = Instant::now();
        while !self.is_over() {
            thread::sleep(SERVING_PAUSE);
            let now = (cpu_ms(), self.upstream.moves());
            let computed = match (before.0, now.0) {
                (Some(before), Some(now)) => now.saturating_sub(before) >= BUSY_MS,
                _ => true,
            };
            let is_well = || self.upstream.in_flight() == 0 && self.answers();
            if computed || before.1 != now.1 || is_well() {
                last_sign = Instant::now();
            }
            before = now;
            if last_sign.elapsed() < self.hang_timeout {
                continue;
            }
            let Err(why) = self.canary(self.hang_timeout) else {
                last_sign = Instant::now();
                continue;
            };
            if !self.is_over() {
                let seconds = self.hang_timeout.as_secs();
                (self.tell)(News::Stuck(format!(
                    "it neither computed nor sent anything for {seconds} s, and {why}"
                )));
            }
            return;
        }
    }
}
