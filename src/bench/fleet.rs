//! Engines kept alive side by side, so that measurements can take turns without loading the model each time.

use std::time::Duration;

use bitnet_model::protocol::EngineConfig;

use super::session::Session;
use crate::plan::Plan;

/// Idle engines cost memory and a few sleeping threads, no time; more than this are never useful.
const MOST: usize = 8;

/// Running engines by key, the one used longest ago first.
pub(crate) struct Fleet {
    capacity: usize,
    start_timeout: Duration,
    live: Vec<(usize, Session)>,
}

impl Fleet {
    /// As many engines as fit into the memory that the largest plan may use, at least one.
    pub(crate) fn new<'a>(plans: impl Iterator<Item = &'a Plan>, start_timeout: Duration) -> Fleet {
        let room = |plan: &Plan| match &plan.memory.budget {
            Some(budget) => (budget.bytes / plan.memory.total_bytes().max(1)) as usize,
            None => 1,
        };
        Fleet {
            capacity: plans.map(room).min().unwrap_or(1).clamp(1, MOST),
            start_timeout,
            live: Vec::new(),
        }
    }

    /// The engine of this key, started and settled.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn get(
        &mut self,
        key: usize,
        config: &EngineConfig,
    ) -> anyhow::Result<&mut Session> {
        match self.live.iter().position(|(live, _)| *live == key) {
            Some(index) => {
                let engine = self.live.remove(index);
                self.live.push(engine);
            }
            None => {
                if self.live.len() >= self.capacity {
                    self.live.remove(0);
                }
                let mut session = Session::start(config, self.start_timeout)?;
                session.settle(self.start_timeout)?;
                self.live.push((key, session));
            }
        }
        match self.live.last_mut() {
            Some((_, session)) => Ok(session),
            None => anyhow::bail!("no engine"),
        }
    }

    /// Ends the engine of this key, if it runs.
    pub(crate) fn end(&mut self, key: usize) {
        self.live.retain(|(live, _)| *live != key);
    }
}
