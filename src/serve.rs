//! `bitnet-launch serve`: socket, model, plan, engine, HTTP, and the way out, in this order.
//!
//! The socket answers from the first milliseconds, with 503 `Loading model` until the engine is ready. The model's header
//! is read and the plan made beside it; the tokenizer is built while the engine loads. What makes serving impossible before
//! the first engine was ready ends the process; later failures show in `/health`.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use bitnet_model::protocol::ModelSource;
use bitnet_model::tokenizer::Tokenizer;
use bitnet_server::{App, Cors, ModelCard, ServerConfig, Tls};
use indicatif::ProgressBar;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::connections;
use crate::demo;
use crate::listen::{self, Sockets};
use crate::settings::{Settings, environment};
use crate::startup::{self, Prepared};
use crate::status::Watch;
use crate::supervise::broker::{Broker, BrokerConfig, Notice, Unstarted};
use crate::supervise::child::EngineProcesses;
use crate::supervise::state::Failure;
use crate::systemd;
use crate::tune;
use crate::watch::{self, Announce, Watched};

/// Threads that parse, render and write HTTP; the CPUs belong to the engine.
const HTTP_THREADS: usize = 2;
/// Everything that is left after the drain timeout has to end within this time.
const EXIT_GRACE: Duration = Duration::from_millis(900);
/// A client that began a request gets no longer to go on with it, whatever `--timeout` says.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// An engine that loads slower than this from a disk is not going to be of use.
const LOAD_BYTES_S: u64 = 20_000_000;
/// Added to the time an engine may load.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// A busy engine that reports no progress for this long is replaced; it reports inside long steps, too.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// A supervisor thread that does not come by for this long is stuck; it should every second.
const SUPERVISOR_PAUSE: Duration = Duration::from_secs(10);

/// Serves until a signal ends it.
///
/// # Errors
/// When the socket can't be bound, or the model can't be served.
pub(crate) fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let tls = match &settings.tls {
        Some(files) => Some(Tls::load(&files.certificate, &files.key)?),
        None => None,
    };
    let inherited = systemd::inherited(&environment())?;
    let sockets = match inherited.is_empty() {
        true => Sockets::bind(&settings, tls.clone())?,
        false => Sockets::take(inherited, tls.clone())?,
    };
    if settings.api_keys.value.0.is_empty() && sockets.are_open_to_the_network() {
        tracing::warn!(
            "open to the network without a key: whoever reaches the port can use the model; set LLAMA_API_KEY or `--api-key-file`"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()
        .context("cannot start the threads that serve HTTP")?;
    let result = runtime.block_on(async {
        if let Some(tls) = tls {
            tokio::spawn(Arc::clone(&tls).follow());
            tokio::spawn(reload_at_hangup(tls));
        }
        Server::start(settings, sockets)?.live().await
    });
    runtime.shutdown_background();
    result
}

/// SIGHUP means: read the certificate again.
async fn reload_at_hangup(tls: Arc<Tls>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return;
    };
    while hangup.recv().await.is_some() {
        systemd::reloading();
        let tls = Arc::clone(&tls);
        let _ = tokio::task::spawn_blocking(move || tls.reload_and_say()).await;
        systemd::ready("serving");
    }
}

/// Tells systemd that all is well as long as this event loop and the supervisor thread go round.
async fn feed_watchdog(broker: Broker, every: Duration) {
    loop {
        sleep(every).await;
        let stood = broker.looked_at().elapsed();
        if stood < SUPERVISOR_PAUSE {
            systemd::alive();
        } else {
            tracing::error!(
                "the supervisor has not moved for {:.0} s; the watchdog is not fed",
                stood.as_secs_f64()
            );
        }
    }
}

/// The running program.
struct Server {
    app: Arc<App>,
    watch: Arc<Watch>,
    broker: Broker,
    addresses: Vec<String>,
    drain_timeout: Duration,
    listeners: JoinSet<io::Result<()>>,
    /// Reads the model and starts the engine.
    opening: JoinHandle<anyhow::Result<UnboundedReceiver<Notice>>>,
    signals: Signals,
}

impl Server {
    fn start(settings: Settings, sockets: Sockets) -> anyhow::Result<Server> {
        let signals = Signals::new().context("cannot listen to signals")?;
        let addresses = sockets.urls();
        let drain_timeout = settings.drain_timeout.value;
        let (broker, unstarted) = Broker::new();
        let config = server_config(&settings, sockets.addresses());
        let app = App::new(config, Arc::new(broker.clone()));
        let watch = Arc::new(Watch::new());
        app.set_status(Arc::clone(&watch) as _);
        if let Some(every) = systemd::watchdog_interval(&environment()) {
            tokio::spawn(feed_watchdog(broker.clone(), every));
        }
        let mut listeners = JoinSet::new();
        for listener in sockets.into_listeners() {
            listeners.spawn(bitnet_server::serve(listener, Arc::clone(&app)));
        }
        for listener in listen::bind_agent(&settings)? {
            tokio::spawn(bitnet_server::serve_agent(listener, Arc::clone(&app)));
        }
        let opening = tokio::task::spawn_blocking({
            let (app, watch) = (Arc::clone(&app), Arc::clone(&watch));
            let broker = broker.clone();
            move || open(&settings, broker, unstarted, &app, &watch)
        });
        Ok(Server {
            app,
            watch,
            broker,
            addresses,
            drain_timeout,
            listeners,
            opening,
            signals,
        })
    }

    async fn live(mut self) -> anyhow::Result<ExitCode> {
        let mut notices = tokio::select! {
            opened = &mut self.opening => match opened {
                Ok(Ok(notices)) => notices,
                Ok(Err(failure)) => return self.fail(None, failure).await,
                Err(panic) => return self.fail(None, Failure::new(format!("reading the model failed: {panic}"))).await,
            },
            _ = self.signals.next() => return self.leave(None).await,
            Some(ended) = self.listeners.join_next() => return self.fail(None, socket_failure(ended)).await,
        };
        let mut announced = false;
        loop {
            tokio::select! {
                Some(notice) = notices.recv() => match notice {
                    Notice::Ready { load_ms, pid } => {
                        tracing::info!("model loaded in {load_ms:.0} ms, engine process {pid}");
                        self.watch.engine_is(pid);
                        match announced {
                            false => self.announce(),
                            true => systemd::status(&self.serving()),
                        }
                        announced = true;
                    }
                    Notice::Failed { failure, ever_ready: false } => {
                        return self.fail(Some(notices), failure).await;
                    }
                    Notice::Failed { failure, .. } => {
                        systemd::status(&format!("no engine: {}", failure.reason));
                        tracing::error!("all requests are refused until a restart");
                    }
                    Notice::Stopped => return self.fail(None, Failure::new("the supervisor ended")).await,
                },
                _ = self.signals.next() => return self.leave(Some(notices)).await,
                Some(ended) = self.listeners.join_next() => {
                    return self.fail(Some(notices), socket_failure(ended)).await;
                }
            }
        }
    }

    fn announce(&self) {
        for address in &self.addresses {
            tracing::info!("listening on {address}");
        }
        systemd::ready(&self.serving());
    }

    /// For systemd.
    fn serving(&self) -> String {
        format!("serving on {}", self.addresses.join(", "))
    }

    /// The polite end: what runs finishes within the drain timeout. A second signal ends at once.
    async fn leave(
        mut self,
        notices: Option<UnboundedReceiver<Notice>>,
    ) -> anyhow::Result<ExitCode> {
        let limit = self.drain_timeout;
        systemd::stopping();
        tracing::info!(
            "shutting down: running requests have {:.1} s; a second signal ends at once",
            limit.as_secs_f64()
        );
        self.app.drain(limit);
        let broker = self.broker.clone();
        let end = async {
            while self.listeners.join_next().await.is_some() {}
            broker.drain(Duration::ZERO);
            if let Some(notices) = notices {
                stopped(notices).await;
            }
        };
        tokio::select! {
            () = end => {}
            () = sleep(limit + EXIT_GRACE) => tracing::warn!("not everything ended in time"),
            number = self.signals.next() => {
                self.broker.stop();
                return Ok(ExitCode::from(128 + number));
            }
        }
        tracing::info!("bye");
        Ok(ExitCode::SUCCESS)
    }

    async fn fail(
        self,
        notices: Option<UnboundedReceiver<Notice>>,
        failure: impl Into<anyhow::Error>,
    ) -> anyhow::Result<ExitCode> {
        self.broker.stop();
        if let Some(notices) = notices {
            let _ = timeout(EXIT_GRACE, stopped(notices)).await;
        }
        Err(failure.into())
    }
}

/// Returns when the supervisor has ended its engine and itself.
async fn stopped(mut notices: UnboundedReceiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        if notice == Notice::Stopped {
            return;
        }
    }
}

fn socket_failure(ended: Result<io::Result<()>, tokio::task::JoinError>) -> Failure {
    Failure::new(match ended {
        Ok(Ok(())) => "the HTTP server ended".to_owned(),
        Ok(Err(error)) => format!("the HTTP server ended: {error}"),
        Err(error) => format!("the HTTP server ended: {error}"),
    })
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one's number.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.interrupt.recv() => 2,
        }
    }
}

/// Reads the header, plans, starts the supervisor with the first engine, and builds the tokenizer while that loads.
fn open(
    settings: &Settings,
    broker: Broker,
    unstarted: Unstarted,
    app: &Arc<App>,
    watch: &Arc<Watch>,
) -> anyhow::Result<UnboundedReceiver<Notice>> {
    let mut prepared = startup::prepare(settings)?;
    if settings.tune.value && prepared.profile.is_none() {
        tune_first(&prepared, settings);
        prepared = startup::prepare(settings)?;
    }
    prepared.log(settings);
    watch.planned(&prepared.host, &prepared.plan);
    let Prepared { facts, plan, .. } = &prepared;
    let config = BrokerConfig {
        engine: plan.engine_config(settings),
        max_queue: settings.max_queue.value,
        context_shift: settings.context_shift.value,
        start_timeout: START_TIMEOUT + Duration::from_secs(facts.file_bytes / LOAD_BYTES_S),
        hang_timeout: settings.hang_timeout.value.unwrap_or(HANG_TIMEOUT),
    };
    let engines = EngineProcesses {
        log_level: settings.log_level.value.map(|level| level.to_string()),
        unconfined: !settings.sandbox.value,
        slot_folder: settings.slot_save_path.value.clone(),
    };
    let notices = unstarted
        .start(config, engines)
        .context("cannot start the supervisor")?;
    let (host, facts, plan) = (
        prepared.host.clone(),
        prepared.facts.clone(),
        prepared.plan.clone(),
    );
    let card = model_card(settings, prepared)?;
    let planned = planned(app, watch, &card);
    app.set_model(card)
        .context("cannot use the chat template")?;
    let watched = Watched {
        broker,
        settings: settings.clone(),
        facts,
        host,
        plan,
        planned,
    };
    watch::start(watched).context("cannot start the thread that watches limits")?;
    Ok(notices)
}

/// What clients are told of the model follows a new plan.
fn planned(app: &Arc<App>, watch: &Arc<Watch>, card: &ModelCard) -> Announce {
    let (app, watch) = (Arc::clone(app), Arc::clone(watch));
    let (facts, tokenizer) = (card.facts.clone(), Arc::clone(&card.tokenizer));
    let (path, created_unix_s) = (card.path.clone(), card.created_unix_s);
    Box::new(move |host, plan| {
        watch.planned(host, plan);
        let card = ModelCard {
            facts: facts.clone(),
            tokenizer: Arc::clone(&tokenizer),
            path: path.clone(),
            created_unix_s,
            slots: plan.slots.value,
            slot_context: plan.slot_context.value,
            prefill_batch: plan.prefill_batch.value,
            kernel: plan.kernel.value.to_string(),
            threads: plan.threads(),
        };
        if let Err(error) = app.set_model(card) {
            tracing::warn!("the new plan is not shown to clients: {error}");
        }
    })
}

/// A short tuning before the first engine. Where it fails, the plan is what it would have been.
fn tune_first(prepared: &Prepared, settings: &Settings) {
    tracing::info!(
        "no tuned profile for this machine and model: measuring for up to {} s",
        tune::SHORT_BUDGET.as_secs()
    );
    let bar = ProgressBar::hidden();
    let budget = tune::SHORT_BUDGET;
    match tune::tune(&prepared.host, &prepared.facts, settings, budget, bar) {
        Ok(found) => {
            tracing::info!("Tuned: {}", found.verdict());
            if let Err(error) = found.store(&environment()) {
                tracing::warn!("what tuning found can't be kept, and is not used: {error:#}");
            }
        }
        Err(error) => tracing::warn!("tuning failed: {error:#}"),
    }
}

fn model_card(settings: &Settings, prepared: Prepared) -> anyhow::Result<ModelCard> {
    let source = &settings.model.value;
    let Prepared {
        gguf, facts, plan, ..
    } = prepared;
    let tokenizer = Tokenizer::from_gguf(&gguf, &settings.overrides)
        .with_context(|| format!("cannot load {}", startup::described(source)))?;
    Ok(ModelCard {
        facts,
        tokenizer: Arc::new(tokenizer),
        path: match source {
            ModelSource::File(path) => path.display().to_string(),
            ModelSource::Demo => demo::NAME.to_owned(),
        },
        created_unix_s: match source {
            ModelSource::File(path) => modified_unix_s(path),
            // The model is as old as the program that carries it.
            ModelSource::Demo => std::env::current_exe().map_or(0, |exe| modified_unix_s(&exe)),
        },
        slots: plan.slots.value,
        slot_context: plan.slot_context.value,
        prefill_batch: plan.prefill_batch.value,
        kernel: plan.kernel.value.to_string(),
        threads: plan.threads(),
    })
}

fn modified_unix_s(path: &Path) -> u64 {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |age| age.as_secs())
}

fn server_config(settings: &Settings, addresses: Vec<String>) -> ServerConfig {
    ServerConfig {
        addresses,
        aliases: settings.alias.value.clone(),
        tags: settings.tags.value.clone(),
        api_keys: settings.api_keys.value.clone(),
        public_models: settings.public_models.value,
        max_tokens: settings.n_predict.value,
        max_tokens_cap: settings.max_tokens_cap.value,
        n_keep: settings.keep.value,
        sampling: settings.sampling.params(),
        seed: settings.sampling.seed.value,
        stop: settings.stop.value.clone(),
        cache_prompt: settings.cache_prompt.value,
        special: settings.special.value,
        chat_template: settings.chat_template.value.clone(),
        template_kwargs: settings.chat_template_kwargs.value.clone(),
        system_message: settings.system_prompt.value.clone(),
        prefill_assistant: settings.prefill_assistant.value,
        split_reasoning: settings.split_reasoning.value,
        skip_chat_parsing: settings.skip_chat_parsing.value,
        static_path: settings.static_path.value.clone(),
        pooling: settings.pooling.value,
        embd_normalize: settings.embd_normalize.value,
        slot_save_path: settings.slot_save_path.value.clone(),
        cors: Cors {
            origins: settings.cors_origins.value.clone(),
            methods: settings.cors_methods.value.clone(),
            headers: settings.cors_headers.value.clone(),
            no_credentials: !settings.cors_credentials.value,
        },
        api_prefix: settings.api_prefix.value.clone(),
        slots_endpoint: settings.slots.value,
        full_speed_tok_s: f64::from(settings.full_speed_tok_s.value),
        metrics_endpoint: settings.metrics.value,
        props_endpoint: settings.props.value,
        page: settings.ui.value,
        body_limit_bytes: settings.max_body_bytes.value,
        max_connections: connections::affordable(),
        read_timeout: settings.timeout.value.min(READ_TIMEOUT),
        write_timeout: settings.timeout.value,
        sse_ping: settings.sse_ping.value,
        ..ServerConfig::default()
    }
}
