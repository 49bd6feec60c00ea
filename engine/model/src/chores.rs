//! Work on the caches of single slots (save, restore, erase), done in small pieces between forward passes.
//!
//! A chore waits until its slot is idle, and nobody else gets the slot until it is done. One chore runs at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::kv::KvCache;
use crate::protocol::{FromEngine, SlotAction, SlotFault, SlotReport};
use crate::slot_file::{Fingerprint, Restoring, Saving};

/// Chores that wait, and the one that runs.
#[derive(Default)]
pub struct Chores {
    waiting: VecDeque<Chore>,
    running: Option<Running>,
}

struct Chore {
    id: u64,
    slot: usize,
    action: SlotAction,
}

struct Running {
    id: u64,
    slot: usize,
    work: Work,
    spent: Duration,
}

enum Work {
    Saving(Saving),
    Restoring(Restoring),
}

impl Chores {
    /// Takes a chore.
    pub fn push(&mut self, id: u64, slot: usize, action: SlotAction) {
        self.waiting.push_back(Chore { id, slot, action });
    }

    /// True while there is something to do or to wait for.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none()
    }

    /// Whether a slot is wanted or used by a chore.
    pub fn claims(&self, slot: usize) -> bool {
        let running = self.running.iter().map(|chore| chore.slot);
        let mut all = self.waiting.iter().map(|chore| chore.slot).chain(running);
        all.any(|claimed| claimed == slot)
    }

    /// Works for about `time`; answers go to `send`. Slots that are not idle are left alone.
    pub fn work(
        &mut self,
        time: Duration,
        kv: &mut KvCache,
        model: &Fingerprint,
        is_idle: impl Fn(usize) -> bool,
        send: &mut impl FnMut(FromEngine),
    ) {
        let began = Instant::now();
        while began.elapsed() < time {
            let piece_began = Instant::now();
            let Some(mut chore) = self.running.take() else {
                let next = self.waiting.iter().position(|chore| is_idle(chore.slot));
                let Some(chore) = next.and_then(|place| self.waiting.remove(place)) else {
                    return;
                };
                self.start(chore, kv, model, send);
                continue;
            };
            let is_done = match &mut chore.work {
                Work::Saving(saving) => saving.advance(kv),
                Work::Restoring(restoring) => restoring.advance(kv),
            };
            chore.spent += piece_began.elapsed();
            let id = chore.id;
            match is_done {
                Ok(false) => self.running = Some(chore),
                Ok(true) => send(FromEngine::Slot {
                    id,
                    result: Ok(chore.report()),
                }),
                Err(fault) => send(FromEngine::Slot {
                    id,
                    result: Err(fault),
                }),
            }
        }
    }

    fn start(
        &mut self,
        chore: Chore,
        kv: &mut KvCache,
        model: &Fingerprint,
        send: &mut impl FnMut(FromEngine),
    ) {
        let began = Instant::now();
        let Chore { id, slot, action } = chore;
        let n_slots = kv.shape().n_slots;
        let started = if slot >= n_slots {
            let reason = format!("slot {slot} is not one of the {n_slots}, which count from 0");
            Err(SlotFault::Refused(reason))
        } else {
            match action {
                SlotAction::Save(path) => Saving::begin(&path, slot, kv, model).map(Work::Saving),
                SlotAction::Restore(path) => {
                    Restoring::begin(&path, slot, kv, model).map(Work::Restoring)
                }
                SlotAction::Erase => {
                    let report = SlotReport {
                        n_tokens: kv.tokens(slot).len(),
                        n_bytes: 0,
                        ms: 0.0,
                    };
                    kv.truncate(slot, 0);
                    return send(FromEngine::Slot {
                        id,
                        result: Ok(report),
                    });
                }
            }
        };
        match started {
            Ok(work) => {
                let spent = began.elapsed();
                self.running = Some(Running {
                    id,
                    slot,
                    work,
                    spent,
                });
            }
            Err(fault) => send(FromEngine::Slot {
                id,
                result: Err(fault),
            }),
        }
    }
}

impl Running {
    fn report(&self) -> SlotReport {
        let (n_tokens, n_bytes) = match &self.work {
            Work::Saving(saving) => (saving.n_tokens(), saving.n_bytes()),
            Work::Restoring(restoring) => (restoring.n_tokens(), restoring.n_bytes()),
        };
        SlotReport {
            n_tokens,
            n_bytes,
            ms: self.spent.as_secs_f64() * 1e3,
        }
    }
}
