//! Starts another engine, and exchanges it when somebody wishes so: settings, program and model are read anew, a plan is made, and the
//! supervisor puts the next engine in the place of the one that serves.
//!
//! What is wrong is found before anything is started, or by the next engine itself; either way the one that serves goes on. The
//! front keeps the settings it was started with.

use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::Context;
use bitnet_server::proxy::Proxy;
use bitnet_server::{Reloaded, Tls};
use tokio::sync::mpsc::UnboundedReceiver;

use super::supervisor::{Beside, Supervisor, Unstarted};
use super::{ExternalError, Prepared, prepare};
use crate::reload::{Cause, Wish, Wishes, fixed, told};
use crate::serve::serving;
use crate::settings::{Settings, Sources, environment};
use crate::status::Watch;
use crate::supervise::broker::Notice;
use crate::systemd;

/// The thread's possessions.
pub(crate) struct Desk {
    pub(crate) supervisor: Supervisor,
    pub(crate) watch: Arc<Watch>,
    pub(crate) sources: Sources,
    /// As the server was started.
    pub(crate) first: Settings,
    /// Its certificate is read anew, too.
    pub(crate) tls: Option<Arc<Tls>>,
    /// For systemd.
    pub(crate) addresses: Vec<String>,
}

impl Desk {
    /// Looks, plans, starts the supervisor with the first engine, and listens to wishes from then on.
    ///
    /// # Errors
    /// When there is no such engine, it can't run the model, or what was asked for is impossible.
    pub(crate) fn open(
        self,
        proxy: Arc<Proxy>,
        unstarted: Unstarted,
        wishes: Wishes,
    ) -> anyhow::Result<UnboundedReceiver<Notice>> {
        let prepared = self.prepare(&self.first)?;
        prepared.log(&self.first);
        self.planned(&prepared);
        let notices = unstarted
            .start(prepared.order(&self.first), proxy)
            .context("cannot start the supervisor")?;
        let live = move || {
            for wish in wishes.0 {
                self.attend(wish);
            }
        };
        thread::Builder::new()
            .name("reload".into())
            .spawn(live)
            .context("cannot start the thread that reloads")?;
        Ok(notices)
    }

    fn prepare(&self, settings: &Settings) -> anyhow::Result<Prepared> {
        let wanted = prepare(settings, &environment())?;
        Ok(wanted.ok_or(ExternalError::NothingToBecome)?)
    }

    fn planned(&self, prepared: &Prepared) {
        if let Some((host, plan)) = prepared.planned() {
            self.watch.planned(host, plan);
        }
    }

    fn attend(&self, wish: Wish) {
        systemd::reloading();
        if let Some(tls) = &self.tls {
            tls.reload_and_say();
        }
        let result = self.reload(&wish.cause).map_err(|error| told(&error));
        systemd::ready(&serving(&self.addresses));
        match &result {
            Ok(done) => {
                for warning in &done.warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!("reload: {}", done.outcome);
            }
            Err(reason) => tracing::error!("not reloaded, all stays as it was: {reason}"),
        }
        if let Some(answer) = wish.answer {
            let _ = answer.send(result);
        }
    }

    fn reload(&self, cause: &Cause) -> anyhow::Result<Reloaded> {
        let settings = self.sources.read()?;
        let warnings = fixed(&self.first, &settings);
        let prepared = match settings.external.is_wanted() {
            true => self.prepare(&settings)?,
            false => anyhow::bail!(
                "the settings name no other engine any more: restart to serve with the built-in one"
            ),
        };
        prepared.log(&settings);
        let beside = match cause {
            Cause::Asked { gap: true } => Beside::No(settings.drain_timeout.value),
            _ => prepared.beside(&settings),
        };
        let (outcome, told) = mpsc::channel();
        let order = prepared.order(&settings);
        self.supervisor.reload(order, beside, outcome);
        let gone = |_| Err("the server is shutting down".to_owned());
        told.recv()
            .unwrap_or_else(gone)
            .map_err(anyhow::Error::msg)?;
        self.planned(&prepared);
        Ok(Reloaded {
            outcome: match beside {
                Beside::Yes => {
                    "the new engine serves, the old one finishes its answers and ends".to_owned()
                }
                Beside::No(_) => "the new engine serves in place of the old one".to_owned(),
            },
            engine_replaced: true,
            warnings,
        })
    }
}
