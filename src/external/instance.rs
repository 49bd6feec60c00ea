//! One engine of another program: what was ordered, its process, the way to it, and how it ended.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_server::proxy::Upstream;
use nix::sys::signal::Signal;

use super::process::{self, Launch};
use crate::file_stamp::FileStamp;
use crate::supervise::child::Watched;
use crate::supervise::state::Failure;

/// What to run, and for how long to wait for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    /// The command.
    pub launch: Launch,
    /// The model's file.
    pub model: Option<FileStamp>,
    /// The program's.
    pub program: Option<FileStamp>,
    /// It listens on Unix sockets.
    pub unix_sockets: bool,
    /// It takes a key by environment.
    pub key_variable: bool,
    /// Requests it works on at a time; `None`: as many as it likes.
    pub slots: Option<usize>,
    /// Time it gets to become ready.
    pub start_timeout: Duration,
    /// An engine that stands still for this long is replaced.
    pub hang_timeout: Duration,
    /// One without work for this long is ended until there is some.
    pub sleep_after: Option<Duration>,
}

impl Order {
    /// An engine of this order serves the other one as well.
    pub(crate) fn is_same_engine(&self, other: &Order) -> bool {
        let sleep_after = other.sleep_after;
        let same = Order {
            sleep_after,
            ..self.clone()
        };
        same == *other
    }
}

/// One process and the way to it.
pub(super) struct Instance {
    pub(super) id: u64,
    pub(super) process: Watched,
    pub(super) upstream: Arc<Upstream>,
    pub(super) order: Order,
    pub(super) started: Instant,
    /// Its health is asked for as long as this is not set.
    pub(super) ended: Arc<AtomicBool>,
    pub(super) socket: Option<PathBuf>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(path) = &self.socket {
            let _ = fs::remove_file(path);
        }
    }
}

/// How an engine ended.
pub(super) struct End {
    pub(super) how: Failure,
    /// It left by itself.
    pub(super) gave_up: bool,
    pub(super) log: Vec<String>,
}

impl Instance {
    /// To be called when the process has ended.
    pub(super) fn into_end(mut self) -> End {
        self.ended.store(true, Ordering::Relaxed);
        // A wrapper leaves the server behind that it started.
        self.process.signal_group(Signal::SIGKILL);
        let exit = self.process.reap();
        let model = self.order.model.as_ref();
        End {
            how: process::explain(&exit, model.map(|file| (&*file.path, file.bytes))),
            gave_up: process::gave_up(&exit),
            log: exit.log,
        }
    }
}
