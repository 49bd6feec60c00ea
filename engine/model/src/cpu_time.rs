//! CPU time of this process: all its threads, user and system.

/// Milliseconds since it began; `None` where the system doesn't tell.
#[cfg(unix)]
fn now_ms() -> Option<f64> {
    use nix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).ok()?;
    Some(time.tv_sec() as f64 * 1e3 + time.tv_nsec() as f64 / 1e6)
}

/// Not known here.
#[cfg(not(unix))]
fn now_ms() -> Option<f64> {
    None
}

/// CPU time in laps without gaps. The system may count what another thread uses some milliseconds late: then it is in the
/// next lap, not lost.
pub(crate) struct Laps(Option<f64>);

impl Laps {
    /// The first lap begins.
    pub(crate) fn start() -> Self {
        Laps(now_ms())
    }

    /// Ends a lap, in milliseconds, and begins the next; `None` where the system doesn't tell.
    pub(crate) fn lap(&mut self) -> Option<f64> {
        let began = std::mem::replace(&mut self.0, now_ms());
        let (now, began) = self.0.zip(began)?;
        Some((now - began).max(0.0))
    }

    /// Whether laps can be measured here.
    pub(crate) fn are_known(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn threads_count_as_well_as_the_caller() {
        let mut laps = Laps::start();
        let spin = || {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(30) {
                std::hint::spin_loop();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(spin);
        });
        // Other programs may have had the CPU for some of the time.
        assert!(laps.lap().unwrap() > 1.0);
    }
}
