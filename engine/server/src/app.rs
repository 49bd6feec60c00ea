//! What all requests share: settings, the backend, the model's card, the counters, and the phase of life.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use crate::backend::{Backend, BackendState};
use crate::body::BodyBudget;
use crate::config::ServerConfig;
use crate::control::Control;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::model::{Model, ModelCard, Staged};
use crate::proxy::Proxy;
use crate::status::StatusSource;
use crate::template::TemplateError;

/// Requests parsed and tokenised at the same time: enough for two cores, few enough that decoding keeps its own.
const PREPARING_AT_ONCE: usize = 4;

/// Where in its life the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// No new work; what runs may run until then.
    Draining(Instant),
    /// Everything ends now.
    CutOff,
}

/// The HTTP side of the program. Make one, hand it to [`crate::serve`], tell it about the model when it is known.
pub struct App {
    pub(crate) config: ServerConfig,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) metrics: Metrics,
    pub(crate) bodies: BodyBudget,
    /// The routes' description, made when it is first asked for.
    pub(crate) openapi: OnceLock<Value>,
    /// Where requests are handed on to, when another server is the engine.
    proxy: Option<Arc<Proxy>>,
    /// Where files of `ServerConfig::static_path` can't lie, made when it is first asked for.
    pub(crate) reserved: OnceLock<HashSet<String>>,
    model: RwLock<Option<Arc<Model>>>,
    status: OnceLock<Arc<dyn StatusSource>>,
    control: OnceLock<Arc<dyn Control>>,
    /// See [`App::announce_leaving`].
    leaving: OnceLock<Instant>,
    /// See [`App::close`].
    is_closed: AtomicBool,
    phase: watch::Sender<Phase>,
    generations: watch::Sender<usize>,
    preparing: Semaphore,
}

impl App {
    /// An app that answers 503 `Loading model` until [`App::set_model`] was called and the backend is ready.
    pub fn new(config: ServerConfig, backend: Arc<dyn Backend>) -> Arc<App> {
        Self::make(config, backend, None)
    }

    /// An app in front of another llama-server. It needs no model.
    pub fn in_front_of(config: ServerConfig, proxy: Arc<Proxy>) -> Arc<App> {
        let backend = Arc::clone(&proxy);
        Self::make(config, backend, Some(proxy))
    }

    fn make(
        config: ServerConfig,
        backend: Arc<dyn Backend>,
        proxy: Option<Arc<Proxy>>,
    ) -> Arc<App> {
        Arc::new(App {
            bodies: BodyBudget::new(config.body_limit_bytes),
            config,
            backend,
            metrics: Metrics::new(),
            openapi: OnceLock::new(),
            reserved: OnceLock::new(),
            proxy,
            model: RwLock::new(None),
            status: OnceLock::new(),
            control: OnceLock::new(),
            leaving: OnceLock::new(),
            is_closed: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Serving),
            generations: watch::Sender::new(0),
            preparing: Semaphore::new(PREPARING_AT_ONCE),
        })
    }

    /// Makes the model known, or puts another in its place; running requests keep the one they began with.
    ///
    /// # Errors
    /// When the chat template given in the settings is no template; the model is not set then.
    pub fn set_model(&self, card: ModelCard) -> Result<(), TemplateError> {
        self.install(Self::stage(card, &self.config)?);
        Ok(())
    }

    /// Prepares a model for [`App::install`]. Of `config` counts what requests leave out; the rest stays as it is in this app.
    ///
    /// # Errors
    /// When the chat template given in the settings is no template.
    pub fn stage(card: ModelCard, config: &ServerConfig) -> Result<Staged, TemplateError> {
        Ok(Staged(Arc::new(Model::new(card, config)?)))
    }

    /// Puts a model in the place of the one there is; running requests keep the one they began with.
    pub fn install(&self, staged: Staged) {
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = Some(staged.0);
    }

    /// Says who can reload; only the first call counts.
    pub fn set_control(&self, control: Arc<dyn Control>) {
        let _ = self.control.set(control);
    }

    pub(crate) fn control(&self) -> Option<&Arc<dyn Control>> {
        self.control.get()
    }

    /// Tells balancers and probes from now on that this server is draining, while requests are still taken. Returns what is left
    /// of `ServerConfig::drain_notice`, which begins with the first call.
    pub fn announce_leaving(&self) -> Duration {
        let began = self.leaving.get_or_init(Instant::now);
        let notice = self.config.drain_notice;
        notice.saturating_sub(began.elapsed())
    }

    /// Takes no new work from now on, and stays there to say so. True for the first call.
    pub(crate) fn close(&self) -> bool {
        !self.is_closed.swap(true, Ordering::Relaxed)
    }

    /// Generations under way.
    pub(crate) fn running(&self) -> usize {
        *self.generations.borrow()
    }

    /// Says who knows about machine, plan and processes; only the first call counts.
    pub fn set_status(&self, source: Arc<dyn StatusSource>) {
        let _ = self.status.set(source);
    }

    pub(crate) fn status_source(&self) -> Option<&dyn StatusSource> {
        self.status.get().map(AsRef::as_ref)
    }

    /// Takes no new work, lets what runs finish for at most `within`, then makes [`crate::serve`] return. Calling it
    /// again with a shorter time shortens the wait.
    pub fn drain(&self, within: Duration) {
        let deadline = Instant::now() + within;
        self.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Serving => Phase::Draining(deadline),
                Phase::Draining(earlier) => Phase::Draining(earlier.min(deadline)),
                Phase::CutOff => Phase::CutOff,
            }
        });
    }

    /// Ends all generations where they are, with a proper last frame.
    pub(crate) fn cut_off(&self) {
        self.phase.send_replace(Phase::CutOff);
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Returns when everything has to end.
    pub(crate) async fn until_cut_off(mut phase: watch::Receiver<Phase>) {
        let _ = phase.wait_for(|phase| *phase == Phase::CutOff).await;
    }

    /// The state that probes and balancers see: that of [`App::admission`], or draining as soon as that was announced.
    pub(crate) fn state(&self) -> BackendState {
        match self.leaving.get() {
            Some(_) => BackendState::Draining,
            None => self.admission(),
        }
    }

    /// The state that decides about requests: the backend's, unless the server itself is on its way out or knows no model yet.
    fn admission(&self) -> BackendState {
        if *self.phase.borrow() != Phase::Serving || self.is_closed.load(Ordering::Relaxed) {
            return BackendState::Draining;
        }
        match self.backend.state() {
            BackendState::Ready if self.proxy.is_none() && self.model().is_none() => {
                BackendState::Loading
            }
            state => state,
        }
    }

    pub(crate) fn model(&self) -> Option<Arc<Model>> {
        self.model
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whoever answers in our place.
    pub(crate) fn proxy(&self) -> Result<&Arc<Proxy>, ApiError> {
        let missing = || ApiError::server("no engine to hand this on to");
        self.proxy.as_ref().ok_or_else(missing)
    }

    /// Whether requests are handed on.
    pub(crate) fn is_proxy(&self) -> bool {
        self.proxy.is_some()
    }

    /// Nothing, if requests can be served now.
    pub(crate) fn open(&self) -> Result<(), ApiError> {
        match self.admission() {
            BackendState::Ready => Ok(()),
            state => Err(state.into()),
        }
    }

    /// The model, if requests can be served now.
    pub(crate) fn ready(&self) -> Result<Arc<Model>, ApiError> {
        match self.admission() {
            BackendState::Ready => self.model().ok_or_else(ApiError::loading),
            state => Err(state.into()),
        }
    }

    /// Returns when no generation runs.
    pub(crate) async fn idle(&self) {
        let _ = self
            .generations
            .subscribe()
            .wait_for(|running| *running == 0)
            .await;
    }

    /// Counts a generation until the guard is dropped.
    pub(crate) fn begin_generation(self: &Arc<Self>) -> Generation {
        self.generations.send_modify(|running| *running += 1);
        Generation(Arc::clone(self))
    }

    /// Runs `work` off the async threads: parsing, templates and tokenising of large requests take milliseconds.
    pub(crate) async fn prepare<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        let _permit = self.preparing.acquire().await;
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!("preparing a request failed: {error}");
                Err(ApiError::server("the request could not be prepared"))
            }
        }
    }
}

/// A running generation, for draining.
pub(crate) struct Generation(Arc<App>);

impl Drop for Generation {
    fn drop(&mut self) {
        self.0.generations.send_modify(|running| *running -= 1);
    }
}
