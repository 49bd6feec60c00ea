//! Ctrl-C, SIGTERM and a terminal that closes as something that can be asked about, for commands that have to tidy up before
//! they end.
//!
//! The signals are blocked in every thread and taken by one thread that waits for them. SIGXFSZ is blocked with them: a limit
//! on the size of files then is an error of the write. Child processes inherit the mask: they call [`unblock`] first. A command
//! that goes on to do something else calls [`Interrupt::give_back`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};

/// Longest nap between two looks at the counter.
const NAP: Duration = Duration::from_millis(20);

/// Gives the signals back to the calling thread and those it starts from now on: for a child process.
pub(crate) fn unblock() {
    let _ = blocked().thread_unblock();
}

fn watched() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals
}

fn blocked() -> SigSet {
    let mut signals = watched();
    signals.add(Signal::SIGXFSZ);
    signals
}

/// How often somebody asked this process to stop.
#[derive(Debug)]
pub(crate) struct Interrupt {
    times: AtomicUsize,
    held: AtomicBool,
    patient: AtomicBool,
    over: AtomicBool,
}

impl Interrupt {
    /// Takes the signals from now on; to be called before other threads start. The second signal ends the process
    /// unless [`Interrupt::take`] was called in between or [`Interrupt::patient`] is on; so does the first while
    /// [`Interrupt::hold`] is off.
    ///
    /// # Errors
    /// When the system refuses the mask or the thread.
    pub(crate) fn watch() -> std::io::Result<&'static Interrupt> {
        static INTERRUPT: Interrupt = Interrupt::new();
        let signals = watched();
        blocked().thread_block()?;
        let wait = move || {
            while let Ok(signal) = signals.wait() {
                if INTERRUPT.over.load(Ordering::Relaxed) {
                    // It was meant for whoever has the signals now.
                    let _ = signals.thread_unblock().and_then(|()| raise(signal));
                    return;
                }
                let before = INTERRUPT.times.fetch_add(1, Ordering::Relaxed);
                let is_repeated = before > 0 && !INTERRUPT.patient.load(Ordering::Relaxed);
                if is_repeated || !INTERRUPT.held.load(Ordering::Relaxed) {
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
            patient: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Gives the signals back, as if nobody had ever watched: to the calling thread and those it starts from now on.
    pub(crate) fn give_back(&self) {
        self.over.store(true, Ordering::Relaxed);
        unblock();
    }

    /// Whether more signals wait, too: for a command that would leave half a file behind if it ended at once.
    pub(crate) fn patient(&self, on: bool) {
        self.patient.store(on, Ordering::Relaxed);
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
