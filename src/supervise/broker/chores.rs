//! Slot actions (save, restore, erase) between a client and the engine.

use std::collections::BTreeMap;

use bitnet_model::protocol::{SlotAction, SlotFault, SlotReport, ToEngine};
use tokio::sync::oneshot;

/// The answer to an action.
type Answer = Result<SlotReport, SlotFault>;

/// One action without an answer.
pub(super) struct Chore {
    id: u64,
    slot: usize,
    action: SlotAction,
    is_sent: bool,
    answer: oneshot::Sender<Answer>,
}

/// All of them, first come first.
#[derive(Default)]
pub(super) struct Chores(BTreeMap<u64, Chore>);

impl Chore {
    pub(super) fn new(
        id: u64,
        slot: usize,
        action: SlotAction,
    ) -> (Chore, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let chore = Chore {
            id,
            slot,
            action,
            is_sent: false,
            answer,
        };
        (chore, receiver)
    }

    /// Slot, and tokens it holds after the action, where the action changes them.
    pub(super) fn fills(&self, answer: &Answer) -> Option<(usize, usize)> {
        match (&self.action, answer) {
            (SlotAction::Restore(_), Ok(report)) => Some((self.slot, report.n_tokens)),
            (SlotAction::Erase, Ok(_)) => Some((self.slot, 0)),
            _ => None,
        }
    }

    /// A client that is gone needs no answer.
    pub(super) fn reply(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

impl Chores {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, chore: Chore) {
        self.0.insert(chore.id, chore);
    }

    /// Frames for a ready engine, each once.
    pub(super) fn unsent(&mut self) -> impl Iterator<Item = ToEngine> {
        let unsent = self.0.values_mut().filter(|chore| !chore.is_sent);
        unsent.map(|chore| {
            chore.is_sent = true;
            ToEngine::Slot {
                id: chore.id,
                slot: chore.slot,
                action: chore.action.clone(),
            }
        })
    }

    /// The action that the engine has answered.
    pub(super) fn take(&mut self, id: u64) -> Option<Chore> {
        self.0.remove(&id)
    }

    /// What was to be saved is lost; the rest is for the next engine.
    pub(super) fn engine_ended(&mut self) {
        let is_save = |chore: &Chore| matches!(chore.action, SlotAction::Save(_)) && chore.is_sent;
        let (saves, others) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(_, chore)| is_save(chore));
        self.0 = others;
        for chore in BTreeMap::into_values(saves) {
            let reason = "the engine ended before the slot was saved; its slots are empty now";
            chore.reply(Err(SlotFault::Failed(reason.to_owned())));
        }
        self.0.values_mut().for_each(|chore| chore.is_sent = false);
    }

    /// Ends all.
    pub(super) fn fail(&mut self, reason: &str) {
        for chore in std::mem::take(&mut self.0).into_values() {
            chore.reply(Err(SlotFault::Failed(reason.to_owned())));
        }
    }
}
