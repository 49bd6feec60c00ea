//! Another line in the place of the current one: started beside it, tested, switched to; or, where memory can't hold both, after it.

use std::sync::mpsc::Sender;

use bitnet_model::protocol::Finish;

use super::line::{Line, Role};
use super::{BrokerConfig, Supervisor};
use crate::supervise::state::{Event, Failure, Phase};

/// What is wanted.
pub(crate) struct Replacement {
    /// Of the new line; never used before.
    pub(crate) tenure: u64,
    /// Of the new line.
    pub(crate) config: BrokerConfig,
    /// The engines answer as those of the current line do.
    pub(crate) same_model: bool,
    /// `Some`: the current engine ends before the new one starts, and requests wait. Should the new one fail, an engine of the old
    /// configuration takes over, under this tenure unless it is the same model.
    pub(crate) gap: Option<u64>,
    /// Told how it went, once.
    pub(crate) outcome: Sender<Result<(), Failure>>,
}

/// A replacement under way.
pub(super) struct Replacing {
    tenure: u64,
    outcome: Sender<Result<(), Failure>>,
    /// For a gap: what to go back to.
    old: Option<Old>,
}

struct Old {
    tenure: u64,
    config: BrokerConfig,
    golden: Option<Vec<u32>>,
    same_model: bool,
}

impl Supervisor {
    pub(super) fn replace(&mut self, wanted: Replacement) {
        let refused = match (self.is_draining, &self.replacing) {
            (true, _) => Some("the server is shutting down"),
            (_, Some(_)) => Some("another reload is under way"),
            _ => None,
        };
        if let Some(why) = refused {
            let _ = wanted.outcome.send(Err(Failure::new(why)));
            return;
        }
        let current = self.current();
        let golden = current.golden.clone().filter(|_| wanted.same_model);
        let old = wanted.gap.map(|tenure| Old {
            tenure,
            config: current.config.clone(),
            golden: current.golden.clone(),
            same_model: wanted.same_model,
        });
        let role = match &old {
            None => Role::Candidate,
            Some(_) => {
                current.role = Role::Retiring;
                Role::Current
            }
        };
        let mut line = Line::new(self.ground.clone(), wanted.tenure, wanted.config, role);
        line.golden = golden;
        line.on_trial = true;
        line.is_held = old.is_some();
        if old.is_none() {
            line.start();
        }
        self.lines.push(line);
        self.replacing = Some(Replacing {
            tenure: wanted.tenure,
            outcome: wanted.outcome,
            old,
        });
    }

    /// Looks how the new line is doing.
    pub(super) fn go_on_replacing(&mut self) {
        let Some(replacing) = &self.replacing else {
            return;
        };
        let tenure = replacing.tenure;
        let others_ended = self.lines.len() == 1;
        let Some(line) = self.lines.iter_mut().find(|line| line.tenure == tenure) else {
            return self.give_up_replacing("it was stopped");
        };
        if line.is_held && others_ended {
            line.is_held = false;
            line.event(Event::Wake);
        }
        if matches!(line.state.phase, Phase::Ready { .. }) {
            self.switch(tenure);
        } else if let Some(why) = line.trial_failed() {
            self.go_back(tenure, why);
        }
    }

    fn switch(&mut self, tenure: u64) {
        for line in &mut self.lines {
            match line.tenure == tenure {
                true => line.role = Role::Current,
                false => line.role = Role::Retiring,
            }
            line.on_trial = false;
        }
        self.show_current();
        self.current().tell_ready();
        if let Some(replacing) = self.replacing.take() {
            let _ = replacing.outcome.send(Ok(()));
        }
    }

    /// The new engine is of no use: the old one stays, or comes back.
    fn go_back(&mut self, tenure: u64, why: Failure) {
        let Some(replacing) = self.replacing.take() else {
            return;
        };
        let Some(line) = self.lines.iter_mut().find(|line| line.tenure == tenure) else {
            return;
        };
        match replacing.old {
            None => line.event(Event::Stop),
            Some(old) => {
                line.on_trial = false;
                line.golden = old.golden;
                line.config = old.config;
                if !old.same_model {
                    line.tenure = old.tenure;
                    let reason = format!("the new model can't be served: {why}");
                    line.end_all(&Finish::Unserved(reason));
                }
                line.show_slots();
                line.restart();
            }
        }
        let _ = replacing.outcome.send(Err(why));
    }

    /// Forgets the new line, if there is one that is not needed yet.
    pub(super) fn give_up_replacing(&mut self, why: &str) {
        let Some(replacing) = self.replacing.take() else {
            return;
        };
        for line in &mut self.lines {
            if line.role == Role::Candidate {
                line.event(Event::Stop);
            }
        }
        let _ = replacing.outcome.send(Err(Failure::new(why)));
    }

    /// Ends lines that nobody needs any more.
    pub(super) fn retire(&mut self) {
        for line in &mut self.lines {
            if line.role == Role::Retiring && line.is_released && !line.has_work() {
                line.leave();
            }
        }
        self.lines
            .retain(|line| line.is_current() || !line.is_stopped());
    }

    /// What HTTP sees is the current line's.
    pub(super) fn show_current(&mut self) {
        let current = self.current();
        current.show_slots();
        current.publish();
    }
}
