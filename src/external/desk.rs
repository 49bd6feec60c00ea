//! Starts another engine, and exchanges it when somebody wishes so: program and model are looked at anew, a plan is made, and the
//! supervisor puts the next engine in the place of the one that serves.
//!
//! What is wrong is found before anything is started, or by the next engine itself; either way the one that serves goes on. The
//! front keeps the settings it was started with.

use std::sync::{Arc, mpsc};

use anyhow::Context;
use bitnet_server::proxy::Proxy;
use tokio::sync::mpsc::UnboundedReceiver;

use super::instance::Order;
use super::supervisor::{Beside, Supervisor, Unstarted};
use super::{ExternalError, Prepared, prepare_on};
use crate::host::Host;
use crate::reload::{self, Done, Front, Gap, Reloader, Wishes, room};
use crate::settings::{Settings, environment};
use crate::status::Watch;
use crate::supervise::broker::Notice;
use crate::watch::{self, Watched};

/// What the first start needs.
pub(crate) struct Opening {
    pub(crate) front: Front,
    pub(crate) supervisor: Supervisor,
    pub(crate) watch: Arc<Watch>,
    pub(crate) reloader: Reloader,
    pub(crate) wishes: Wishes,
}

impl Opening {
    /// Looks, plans, starts the supervisor with the first engine, and listens to wishes from then on.
    ///
    /// # Errors
    /// When there is no such engine, it can't run the model, or what was asked for is impossible.
    pub(crate) fn open(
        self,
        proxy: Arc<Proxy>,
        unstarted: Unstarted,
    ) -> anyhow::Result<UnboundedReceiver<Notice>> {
        let settings = self.front.first.clone();
        let prepared = prepare(Host::detect(), &settings)?;
        prepared.log(&settings);
        let order = prepared.order(&settings);
        let notices = unstarted
            .start(order.clone(), proxy)
            .context("cannot start the supervisor")?;
        let watched = Watched {
            reloader: self.reloader,
            sources: self.front.sources.clone(),
            limits: prepared.host.limits.clone(),
            metered: None,
        };
        watch::start(watched).context("cannot start the thread that watches limits")?;
        let desk = Desk {
            front: self.front,
            supervisor: self.supervisor,
            watch: self.watch,
            settings,
            order,
        };
        desk.planned(&prepared);
        reload::open(desk, self.wishes).context("cannot start the thread that reloads")?;
        Ok(notices)
    }
}

fn prepare(host: Host, settings: &Settings) -> anyhow::Result<Prepared> {
    let wanted = prepare_on(host, settings, &environment())?;
    Ok(wanted.ok_or(ExternalError::NothingToBecome)?)
}

/// The thread's possessions.
struct Desk {
    front: Front,
    supervisor: Supervisor,
    watch: Arc<Watch>,
    /// Those that are followed.
    settings: Settings,
    order: Order,
}

impl reload::Desk for Desk {
    fn front(&self) -> &Front {
        &self.front
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn exchange(&mut self, settings: Settings, gap: Gap) -> anyhow::Result<Done> {
        anyhow::ensure!(
            settings.external.is_wanted(),
            "the settings name no other engine any more: restart to serve with the built-in one"
        );
        let prepared = prepare(room::host_without(self.watch.engine()), &settings)?;
        let order = prepared.order(&settings);
        if order.is_same_engine(&self.order) {
            let outcome = match settings == self.settings {
                true => "nothing has changed: same settings, same program, same model, same plan",
                false => "the new settings are followed, the engine stays as it is",
            };
            self.supervisor.retune(order.clone());
            (self.settings, self.order) = (settings, order);
            return Ok(Done {
                outcome: outcome.to_owned(),
                engine_replaced: false,
            });
        }
        prepared.log(&settings);
        let beside = self.beside(&prepared, &order, gap, &settings)?;
        let (outcome, told) = mpsc::channel();
        self.supervisor.reload(order.clone(), beside, outcome);
        let gone = |_| Err("the server is shutting down".to_owned());
        told.recv()
            .unwrap_or_else(gone)
            .map_err(anyhow::Error::msg)?;
        self.planned(&prepared);
        (self.settings, self.order) = (settings, order);
        let outcome = match beside {
            Beside::Yes => "the new engine serves, the old one finishes its answers and ends",
            Beside::No(_) => "the new engine serves in place of the old one",
        };
        Ok(Done {
            outcome: outcome.to_owned(),
            engine_replaced: true,
        })
    }
}

impl Desk {
    fn planned(&self, prepared: &Prepared) {
        if let Some((host, plan)) = prepared.planned() {
            self.watch.planned(host, plan);
        }
    }

    /// # Errors
    /// When memory can't hold both engines, and nobody allowed a gap.
    fn beside(
        &self,
        prepared: &Prepared,
        order: &Order,
        gap: Gap,
        settings: &Settings,
    ) -> anyhow::Result<Beside> {
        // Engines map their model, and a file's pages are there once.
        let is_mapped = order.model.is_some() && order.model == self.order.model;
        let needed = prepared.needed_bytes(is_mapped);
        let holds = room::holds(needed);
        match gap {
            Gap::Never if !holds => anyhow::bail!(room::refusal(needed)),
            Gap::Never => Ok(Beside::Yes),
            Gap::WhereShort if holds => Ok(Beside::Yes),
            Gap::WhereShort | Gap::Always => Ok(Beside::No(settings.drain_timeout.value)),
        }
    }
}
