//! Engine processes of a line: start, progress, end.
//!
//! An engine that is busy says so at least every half second, inside a step, too. One that says nothing for
//! [`HANG_GAPS`] times its longest silence so far, within bounds, does not come back.

use std::io;
use std::net::Shutdown;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use bitnet_model::protocol::ToEngine;
use bitnet_server::backend::Crash;

use super::line::Line;
use super::wire::{read_frames, write_frames};
use super::{END_TOGETHER, Message};
use crate::supervise::child::Engine;
use crate::supervise::exit::Tools;
use crate::supervise::state::{Event, Failure, Phase};

/// A busy engine is given this many times the longest silence it has shown.
const HANG_GAPS: u32 = 30;
/// Within these bounds; the longer one as long as nothing was measured.
const HANG_LEAST: Duration = Duration::from_secs(20);
const HANG_MOST: Duration = Duration::from_secs(60);

/// A running engine and what we know about it.
pub(super) struct Running {
    pub(super) generation: u64,
    pub(super) engine: Box<dyn Engine>,
    pub(super) frames: Sender<ToEngine>,
    /// It may be given jobs.
    pub(super) ready: bool,
    /// Milliseconds it took to load.
    pub(super) load_ms: f64,
    /// It has produced a token.
    pub(super) productive: bool,
    pub(super) steps: u64,
    /// Last sign of progress while jobs run.
    pub(super) progress_at: Instant,
    /// Its longest silence while it was busy.
    pub(super) longest_gap: Option<Duration>,
    /// We killed it because it hung.
    pub(super) hung: bool,
    pub(super) closed: bool,
    pub(super) exited: bool,
    /// When the first of `closed` and `exited` was noticed.
    pub(super) ending_since: Option<Instant>,
}

impl Line {
    pub(super) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.engine.pid())
    }

    pub(super) fn generation(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.generation)
    }

    pub(super) fn spawn(&mut self) {
        let generation = self.ground.generations.get() + 1;
        self.ground.generations.set(generation);
        if let Err(error) = self.try_spawn(generation) {
            self.running = None;
            let how = Failure::new(format!("cannot start the engine process: {error}"));
            self.ended(how, false);
        }
    }

    fn try_spawn(&mut self, generation: u64) -> io::Result<()> {
        let inbox = self.ground.inbox.clone();
        let exited = Box::new(move || {
            let _ = inbox.send(Message::Exited(generation));
        });
        let engine = self.ground.spawner.borrow_mut().spawn(exited)?;
        let frames = write_frames(engine.control().try_clone()?)?;
        read_frames(
            engine.control().try_clone()?,
            generation,
            self.ground.inbox.clone(),
        )?;
        tracing::info!("engine process {} started", engine.pid());
        let _ = frames.send(ToEngine::Start(Box::new(self.config.engine.clone())));
        self.running = Some(Running {
            generation,
            engine,
            frames,
            ready: false,
            load_ms: 0.0,
            productive: false,
            steps: 0,
            progress_at: Instant::now(),
            longest_gap: None,
            hung: false,
            closed: false,
            exited: false,
            ending_since: None,
        });
        Ok(())
    }

    pub(super) fn mark_end(&mut self, mark: impl FnOnce(&mut Running)) {
        let Some(running) = &mut self.running else {
            return;
        };
        mark(running);
        running.ending_since.get_or_insert_with(Instant::now);
        self.watch_end();
    }

    /// An engine is gone when its process has ended and its last frame is read.
    pub(super) fn watch_end(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.closed && running.exited {
            return self.bury();
        }
        let Some(since) = running.ending_since else {
            return;
        };
        if since.elapsed() >= END_TOGETHER {
            let _ = running.engine.control().shutdown(Shutdown::Both);
            running.engine.kill();
        }
    }

    fn bury(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let exit = running.engine.reap();
        let model = self.config.model_file.as_ref();
        let mut how = exit.explain(Tools {
            kernel: Some(&self.config.engine.kernel),
            model: model.map(|file| (file.path.as_path(), file.bytes)),
        });
        let awaited = matches!(
            self.state.phase,
            Phase::Stopping { .. }
                | Phase::Failed(_)
                | Phase::Killing { .. }
                | Phase::Dozing { .. }
        );
        if awaited {
            tracing::debug!("engine process {} ended", running.engine.pid());
        } else {
            if exit.is_illegal_instruction() {
                self.try_another_kernel(&mut how);
            }
            let pid = running.engine.pid();
            tracing::error!("engine process {pid} ended: {}", how.reason);
            if let Some(hint) = &how.hint {
                tracing::error!("hint: {hint}");
            }
        }
        if !awaited || running.hung {
            self.ground.shared.view().last_crash = Some(Crash {
                at: Instant::now(),
                reason: match &self.state.phase {
                    Phase::Killing { why } => why.reason.clone(),
                    _ => how.reason.clone(),
                },
                hint: how.hint.clone(),
                log: exit.log.clone(),
            });
        }
        self.flight = None;
        let guilty = running.hung || !exit.is_from_outside();
        let explained = self.recall_jobs(guilty);
        self.ended(how, explained);
    }

    fn ended(&mut self, how: Failure, explained: bool) {
        self.event(Event::Exited {
            how,
            explained,
            jitter: rand::random(),
        });
    }

    /// The same tokens by other instructions.
    fn try_another_kernel(&mut self, how: &mut Failure) {
        if let Some(next) = self.config.other_kernels.pop_front() {
            let lacking = std::mem::replace(&mut self.config.engine.kernel, next);
            how.hint = Some(format!(
                "this CPU lacks an instruction of kernel `{lacking}`; trying `{}` in its place",
                self.config.engine.kernel
            ));
        }
    }

    /// There is something that the engine has to get on with.
    fn is_busy(&self) -> bool {
        !self.active.is_empty() || self.flight.is_some()
    }

    /// Notes a sign of life.
    pub(super) fn heard(&mut self) {
        let is_busy = self.is_busy();
        if let Some(running) = &mut self.running {
            let gap = running.progress_at.elapsed();
            if is_busy && running.longest_gap.is_none_or(|longest| gap > longest) {
                running.longest_gap = Some(gap);
            }
            running.progress_at = Instant::now();
        }
    }

    /// When a busy engine counts as hung.
    pub(super) fn hangs_at(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let is_watched = self.is_busy() && !running.hung;
        let limit = self.config.hang_timeout;
        let limit = limit.unwrap_or_else(|| hang_limit(running.longest_gap));
        is_watched.then(|| running.progress_at + limit)
    }

    /// A busy engine has to show progress.
    pub(super) fn watch_progress(&mut self) {
        if self.hangs_at().is_none_or(|at| Instant::now() < at) {
            return;
        }
        let active = self.active.len();
        let Some(running) = &mut self.running else {
            return;
        };
        running.hung = true;
        let idle_s = running.progress_at.elapsed().as_secs_f64();
        let why = format!("no progress for {idle_s:.1} s with {active} requests running");
        let event = match active {
            0 => Event::Unfit(Failure::new(format!(
                "no answer to the test for {idle_s:.1} s"
            ))),
            _ => Event::Hung(Failure::new(why)),
        };
        self.event(event);
    }
}

/// By the engine's own pace.
fn hang_limit(longest_gap: Option<Duration>) -> Duration {
    longest_gap.map_or(HANG_MOST, |gap| {
        (gap * HANG_GAPS).clamp(HANG_LEAST, HANG_MOST)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_engines_are_given_more_time() {
        let limit_s = |gap_ms| hang_limit(Some(Duration::from_millis(gap_ms))).as_secs();
        assert_eq!(hang_limit(None), HANG_MOST);
        assert_eq!(
            [5, 500, 1000, 1500, 9000].map(limit_s),
            [20, 20, 30, 45, 60]
        );
    }
}
