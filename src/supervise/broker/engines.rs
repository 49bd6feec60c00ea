//! Engine processes of the supervisor thread: start, progress, end.

use std::io;
use std::net::Shutdown;
use std::sync::mpsc::Sender;
use std::time::Instant;

use bitnet_model::protocol::ToEngine;

use super::wire::{read_frames, write_frames};
use super::{END_TOGETHER, Message, Supervisor};
use crate::supervise::child::Engine;
use crate::supervise::state::{Event, Failure, Phase};

/// A running engine and what we know about it.
pub(super) struct Running {
    pub(super) generation: u64,
    pub(super) engine: Box<dyn Engine>,
    pub(super) frames: Sender<ToEngine>,
    pub(super) ready: bool,
    /// It has produced a token.
    pub(super) productive: bool,
    pub(super) steps: u64,
    /// Last sign of progress while jobs run.
    pub(super) progress_at: Instant,
    /// We killed it because it hung.
    pub(super) hung: bool,
    pub(super) closed: bool,
    pub(super) exited: bool,
    /// When the first of `closed` and `exited` was noticed.
    pub(super) ending_since: Option<Instant>,
}

impl Supervisor {
    pub(super) fn spawn(&mut self) {
        self.generations += 1;
        let generation = self.generations;
        if generation > 1 {
            self.shared.view().counters.engine_restarts += 1;
        }
        if let Err(error) = self.try_spawn(generation) {
            self.running = None;
            let how = Failure {
                reason: format!("cannot start the engine process: {error}"),
                hint: None,
            };
            self.ended(how, false);
        }
    }

    fn try_spawn(&mut self, generation: u64) -> io::Result<()> {
        let inbox = self.inbox.clone();
        let exited = Box::new(move || {
            let _ = inbox.send(Message::Exited(generation));
        });
        let engine = self.spawner.spawn(exited)?;
        let frames = write_frames(engine.control().try_clone()?)?;
        read_frames(
            engine.control().try_clone()?,
            generation,
            self.inbox.clone(),
        )?;
        tracing::info!("engine process {} started", engine.pid());
        let _ = frames.send(ToEngine::Start(Box::new(self.config.engine.clone())));
        self.running = Some(Running {
            generation,
            engine,
            frames,
            ready: false,
            productive: false,
            steps: 0,
            progress_at: Instant::now(),
            hung: false,
            closed: false,
            exited: false,
            ending_since: None,
        });
        Ok(())
    }

    pub(super) fn mark_end(&mut self, generation: u64, mark: impl FnOnce(&mut Running)) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.generation == generation {
            mark(running);
            running.ending_since.get_or_insert_with(Instant::now);
        }
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
        let how = exit.explain();
        let awaited = matches!(
            self.state.phase,
            Phase::Stopping { .. }
                | Phase::Failed(_)
                | Phase::Killing { .. }
                | Phase::Renewing { .. }
        );
        if awaited {
            tracing::debug!("engine process {} ended", running.engine.pid());
        } else {
            tracing::error!(
                "engine process {} ended: {}",
                running.engine.pid(),
                how.reason
            );
            if let Some(hint) = &how.hint {
                tracing::error!("hint: {hint}");
            }
        }
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

    /// A busy engine has to show progress.
    pub(super) fn watch_progress(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        if self.active.is_empty() || !running.ready || running.hung {
            return;
        }
        let idle = running.progress_at.elapsed();
        if idle < self.config.hang_timeout {
            return;
        }
        running.hung = true;
        let why = Failure {
            reason: format!(
                "no progress for {:.1} s with {} requests running",
                idle.as_secs_f64(),
                self.active.len()
            ),
            hint: None,
        };
        self.event(Event::Hung(why));
    }
}
