//! Jobs of a line: queued, given to the engine, taken back when it ends, finished.

use std::collections::VecDeque;
use std::time::Instant;

use bitnet_model::protocol::{Finish, SlotFault, SlotReport, ToEngine};

use super::line::Line;
use super::work::Work;
use crate::supervise::state::Phase;

impl Line {
    /// Gives waiting jobs to a ready engine, as many as it has slots. A suspect runs alone.
    pub(super) fn dispatch(&mut self) {
        if let Some(running) = self.running.as_ref().filter(|running| running.ready) {
            for frame in self.chores.unsent() {
                let _ = running.frames.send(frame);
            }
        }
        if !self.queue.is_empty() {
            self.recall_canary();
        }
        while let Some(index) = self.next_job() {
            let Some(work) = self.queue.remove(index) else {
                return;
            };
            let slot_context = self.config.engine.slot_context;
            if let Some(finish) = work.finished_already(slot_context) {
                self.settle(work, finish);
                continue;
            }
            let Some(running) = &mut self.running else {
                return;
            };
            if self.active.is_empty() && self.flight.is_none() {
                running.progress_at = Instant::now();
            }
            let _ = running.frames.send(work.submission(slot_context));
            self.active.insert(work.id, work);
        }
    }

    /// The first waiting job that may run now.
    fn next_job(&self) -> Option<usize> {
        if !self.running.as_ref().is_some_and(|running| running.ready) {
            return None;
        }
        if self.active.values().any(Work::is_suspect) {
            return None;
        }
        if self.queue.front()?.is_suspect() {
            return self.active.is_empty().then_some(0);
        }
        if self.active.len() >= self.config.engine.slots {
            return None;
        }
        self.queue
            .iter()
            .position(|work| !work.is_suspect() && self.slot_is_free(work.job.slot))
    }

    fn slot_is_free(&self, wanted: Option<usize>) -> bool {
        wanted.is_none()
            || self
                .active
                .values()
                .all(|work| work.slot.or(work.job.slot) != wanted)
    }

    pub(super) fn take(&mut self, work: Work) {
        match &self.state.phase {
            Phase::Failed(failure) => {
                let reason = failure.reason.clone();
                self.finish(work, Finish::Error(reason));
            }
            Phase::Stopping { .. } | Phase::Stopped => self.finish(work, Finish::Cancelled),
            _ => {
                self.queue.push_back(work);
                self.idle_since = Instant::now();
                self.wake();
            }
        }
    }

    /// Ends a job whose line is gone.
    pub(super) fn turn_away(&self, work: Work) {
        let reason = "the model was replaced while the request was on its way; send it again";
        self.finish(work, Finish::Unserved(reason.to_owned()));
    }

    /// When the first waiting job has waited for too long.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        let limit = self.config.queue_timeout?;
        let fresh = self.queue.iter().filter(|work| !work.is_begun());
        fresh.map(|work| work.accepted_at + limit).min()
    }

    /// Sends away what has waited for too long. What an engine has begun is finished, whatever happens to that engine.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        if self.expires_at().is_none_or(|at| now < at) {
            return;
        }
        let limit = self.config.queue_timeout.unwrap_or_default();
        let is_late = |work: &Work| !work.is_begun() && now >= work.accepted_at + limit;
        let queue = std::mem::take(&mut self.queue);
        let (late, rest): (VecDeque<Work>, _) = queue.into_iter().partition(is_late);
        self.queue = rest;
        for work in late {
            let why = format!("no slot was free for {:.1} s", limit.as_secs_f64());
            self.finish(work, Finish::Unserved(why));
        }
    }

    pub(super) fn cancel(&mut self, id: u64) {
        if let Some(index) = self.queue.iter().position(|work| work.id == id) {
            if let Some(work) = self.queue.remove(index) {
                self.finish(work, Finish::Cancelled);
            }
        } else if let Some(work) = self.active.get_mut(&id) {
            work.cancelled = true;
            if let Some(running) = &self.running {
                let _ = running.frames.send(ToEngine::Cancel { id });
            }
        }
    }

    pub(super) fn finish(&self, work: Work, finish: Finish) {
        self.ground.shared.view().open -= 1;
        self.with_slot(work.slot, |slot| {
            slot.processing = false;
            slot.state = 0;
        });
        work.done(finish);
    }

    pub(super) fn end_all(&mut self, finish: &Finish) {
        let active = std::mem::take(&mut self.active);
        let queue = std::mem::take(&mut self.queue);
        for work in active.into_values().chain(queue) {
            self.finish(work, finish.clone());
        }
        self.chores.fail("there is no engine");
        self.count_chores();
    }

    fn count_chores(&self) {
        self.ground.shared.view().chores = self.chores.len();
    }

    /// The engine's answer to a slot action.
    pub(super) fn slot_done(&mut self, id: u64, result: Result<SlotReport, SlotFault>) {
        let Some(chore) = self.chores.take(id) else {
            return;
        };
        if let Some((slot, n_tokens)) = chore.fills(&result) {
            self.with_slot(Some(slot), |slot| slot.kv_tokens = n_tokens);
        }
        self.count_chores();
        chore.reply(result);
    }

    /// The engine is gone: its jobs wait again, at the head of the queue. True when one was found guilty and failed.
    pub(super) fn recall_jobs(&mut self, guilty: bool) -> bool {
        self.chores.engine_ended();
        self.count_chores();
        let alone = self.active.len() == 1;
        let mut failed = false;
        for (_, mut work) in std::mem::take(&mut self.active).into_iter().rev() {
            if work.cancelled {
                self.finish(work, Finish::Cancelled);
                continue;
            }
            if guilty {
                work.strikes += 1;
            }
            if alone && work.is_suspect() {
                failed = true;
                let reason = format!(
                    "the engine ended {} times at this request; it is given up, the others continue",
                    work.strikes
                );
                tracing::error!("task {}: {reason}", work.id);
                self.finish(work, Finish::Error(reason));
                continue;
            }
            self.clear_slot(&work);
            work.resume();
            self.queue.push_front(work);
        }
        failed
    }

    pub(super) fn clear_slot(&self, work: &Work) {
        self.with_slot(work.slot, |slot| {
            slot.processing = false;
            slot.state = 0;
            slot.kv_tokens = 0;
        });
    }

    /// The end of a job, unless its context can be shifted and it goes on.
    pub(super) fn settle(&mut self, mut work: Work, finish: Finish) {
        let goes_on = finish == Finish::ContextFull
            && self.config.context_shift
            && !work.cancelled
            && work.remaining() != Some(0)
            && work.shift(self.config.engine.slot_context);
        if !goes_on {
            return self.finish(work, finish);
        }
        self.clear_slot(&work);
        work.resume();
        self.queue.push_front(work);
    }
}
