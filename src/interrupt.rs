//! Ctrl-C and SIGTERM as something that can be asked about, for commands that have to tidy up before they end.
//!
//! The signals are blocked in every thread and taken by one thread that waits for them. Child processes inherit the mask:
//! they call [`unblock`] first.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

/// Longest nap between two looks at the counter.
const NAP: Duration = Duration::from_millis(20);

/// Gives the signals back to the calling thread and those it starts from now on: for a command that goes on to do something
/// else, and for a child process.
pub(crate) fn unblock() {
    let _ = watched().thread_unblock();
}

fn watched() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
}

/// How often somebody asked this process to stop.
#[derive(Debug)]
pub(crate) struct Interrupt {
    times: AtomicUsize,
    held: AtomicBool,
}

impl Interrupt {
    /// Takes SIGINT and SIGTERM from now on; to be called before other threads start. The second signal ends the process
    /// unless [`Interrupt::take`] was called in between; so does the first while [`Interrupt::hold`] is off.
    ///
    /// # Errors
    /// When the system refuses the mask or the thread.
    pub(crate) fn watch() -> std::io::Result<&'static Interrupt> {
        static INTERRUPT: Interrupt = Interrupt::new();
        let signals = watched();
        signals.thread_block()?;
        let wait = move || {
            while let Ok(signal) = signals.wait() {
                let before = INTERRUPT.times.fetch_add(1, Ordering::Relaxed);
                if before > 0 || !INTERRUPT.held.load(Ordering::Relaxed) {
                    std::process::exit(128 + signal as i32);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(&INTERRUPT)
    }

    /// One that nobody asked anything yet.
    pub(crate) const fn new() -> Interrupt {
        Interrupt {
            times: AtomicUsize::new(0),
            held: AtomicBool::new(true),
        }
    }

    /// Whether a signal is to be asked about, or ends the process at once.
    pub(crate) fn hold(&self, on: bool) {
        self.held.store(on, Ordering::Relaxed);
    }

    /// Whether the process should stop what it does.
    pub(crate) fn asked(&self) -> bool {
        self.times.load(Ordering::Relaxed) > 0
    }

    /// The same, and forgets it: the caller stops something smaller than the process.
    pub(crate) fn take(&self) -> bool {
        self.times.swap(0, Ordering::Relaxed) > 0
    }

    /// Sleeps, at most until somebody asks; whether the time passed in full.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            if self.asked() {
                return false;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(NAP));
        }
    }
}
