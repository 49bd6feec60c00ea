//! CPU time of this process: all its threads, user and system.

/// Milliseconds since it began; `None` where the system doesn't tell.
#[cfg(unix)]
pub(crate) fn now_ms() -> Option<f64> {
    use nix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).ok()?;
    Some(time.tv_sec() as f64 * 1e3 + time.tv_nsec() as f64 / 1e6)
}

/// Not known here.
#[cfg(not(unix))]
pub(crate) fn now_ms() -> Option<f64> {
    None
}

/// Milliseconds since an earlier [`now_ms`].
pub(crate) fn since_ms(began_ms: Option<f64>) -> Option<f64> {
    let (now, began) = now_ms().zip(began_ms)?;
    Some((now - began).max(0.0))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn threads_count_as_well_as_the_caller() {
        let began = now_ms();
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
        assert!(since_ms(began).unwrap() > 1.0);
    }
}
