//! When to try again, and after how long: exponential back-off with full jitter, `Retry-After` honoured, a budget of tries
//! without progress.

use std::time::{Duration, SystemTime};

use super::error::PullError;
use crate::interrupt::Interrupt;

/// The first pause is at most this long; each further one at most twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(400);
/// No pause is longer, unless the server asks for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Nobody waits longer for a server that asks for time.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Why one try failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The next try may do better.
    Transient {
        /// In words.
        cause: String,
        /// HTTP status, if there was an answer.
        status: Option<u16>,
        /// What the server asks for.
        retry_after: Option<Duration>,
    },
    /// No try will do better.
    Final(PullError),
}

impl Failure {
    /// A broken connection or the like.
    pub(crate) fn transient(cause: impl Into<String>) -> Failure {
        Failure::Transient {
            cause: cause.into(),
            status: None,
            retry_after: None,
        }
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Failure {
        Failure::Final(error)
    }
}

/// Counts tries that brought nothing.
pub(crate) struct Retry<'a> {
    url: String,
    budget: u32,
    failed: u32,
    interrupt: &'a Interrupt,
    note: &'a dyn Fn(&str),
}

impl<'a> Retry<'a> {
    /// `budget`: tries in a row that may fail before it is an error.
    pub(crate) fn new(
        url: &str,
        budget: u32,
        interrupt: &'a Interrupt,
        note: &'a dyn Fn(&str),
    ) -> Retry<'a> {
        Retry {
            url: url.to_owned(),
            budget,
            failed: 0,
            interrupt,
            note,
        }
    }

    /// There was progress: the count starts anew.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// When no further try is due, or somebody asked to stop.
    pub(crate) fn wait(&mut self, failure: Failure) -> Result<(), PullError> {
        let (cause, status, retry_after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient {
                cause,
                status,
                retry_after,
            } => (cause, status, retry_after),
        };
        self.failed += 1;
        if self.failed > self.budget {
            return Err(PullError::Network {
                url: self.url.clone(),
                cause,
                tries: self.failed,
            });
        }
        let pause = match retry_after {
            Some(wait) if wait > LONGEST_WAIT => {
                return Err(PullError::ComeBackLater {
                    url: self.url.clone(),
                    status: status.unwrap_or_default(),
                    wait_s: wait.as_secs(),
                });
            }
            Some(wait) => wait,
            None => pause(self.failed, rand::random()),
        };
        (self.note)(&format!(
            "{cause}; try {} of {} in {:.1} s",
            self.failed + 1,
            self.budget + 1,
            pause.as_secs_f64()
        ));
        if self.interrupt.sleep(pause) {
            return Ok(());
        }
        Err(PullError::Stopped {
            file: self.url.clone(),
            kept_bytes: 0,
        })
    }
}

/// Pause after this many failures; `jitter` in 0..1.
fn pause(failed: u32, jitter: f64) -> Duration {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << failed.saturating_sub(1).min(16))
        .min(LONGEST_PAUSE);
    longest / 4 + longest.mul_f64(0.75 * jitter)
}

/// `Retry-After`: seconds, or a date.
pub(crate) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn pauses_grow_and_have_a_bound() {
        assert_eq!(pause(1, 0.0), FIRST_PAUSE / 4);
        assert!(pause(1, 0.99) < FIRST_PAUSE);
        assert!(pause(4, 0.5) > pause(1, 0.99));
        assert!(pause(60, 0.999) <= LONGEST_PAUSE);
    }

    #[test]
    fn reads_seconds_and_dates() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |text| retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(after("soon"), None);
    }

    #[test]
    fn gives_up_after_its_budget() {
        let interrupt = Interrupt::new();
        let mut retry = Retry::new("http://hub", 1, &interrupt, &|_| {});
        retry.wait(Failure::transient("lost")).unwrap();
        let error = retry.wait(Failure::transient("lost")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "http://hub: lost, after 2 tries without progress"
        );
        retry.progressed();
        retry.wait(Failure::transient("lost")).unwrap();
        let late = Failure::Transient {
            cause: "busy".to_owned(),
            status: Some(429),
            retry_after: Some(Duration::from_secs(3600)),
        };
        retry.progressed();
        assert!(matches!(
            retry.wait(late),
            Err(PullError::ComeBackLater { wait_s: 3600, .. })
        ));
    }
}
