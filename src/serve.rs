//! `bitnet-launch serve`: socket, model, plan, engine, HTTP, and the way out, in this order.
//!
//! The socket answers from the first milliseconds, with 503 `Loading model` until the engine is ready. The model's header
//! is read and the plan made beside it; the tokenizer is built while the engine loads. What makes serving impossible before
//! the first engine was ready ends the process; later failures show in `/health`.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_server::proxy::Proxy;
use bitnet_server::{App, Cors, ServerConfig, Tls};
use indicatif::ProgressBar;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::connections;
use crate::external::{self, supervisor::Supervisor};
use crate::listen::{self, Sockets};
use crate::reload::{self, BuiltIn, Cause, Front, Reloader, Served, Wishes};
use crate::settings::{CrashLoop, Settings, Sources, environment};
use crate::startup::{self, Prepared};
use crate::status::Watch;
use crate::supervise::broker::{Broker, Notice, Unstarted};
use crate::supervise::child::EngineProcesses;
use crate::supervise::state::Failure;
use crate::systemd;
use crate::tune;
use crate::watch::{self, Watched};

/// Threads that parse, render and write HTTP; the CPUs belong to the engine.
const HTTP_THREADS: usize = 2;
/// Everything that is left after the drain timeout has to end within this time.
const EXIT_GRACE: Duration = Duration::from_millis(900);
/// A client that began a request gets no longer to go on with it, whatever `--timeout` says.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A supervisor thread that does not come by for this long is stuck; it should every second.
const SUPERVISOR_PAUSE: Duration = Duration::from_secs(10);

/// Serves until a signal ends it.
///
/// # Errors
/// When the socket can't be bound, or the model can't be served.
pub(crate) fn run(settings: Settings, sources: Sources) -> anyhow::Result<ExitCode> {
    let tls = match &settings.tls {
        Some(files) => Some(Tls::load(&files.certificate, &files.key)?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()
        .context("cannot start the threads that serve HTTP")?;
    // Before the log says that it listens: whoever reads that may end it at once.
    let signals = runtime
        .block_on(async { Signals::new() })
        .context("cannot listen to signals")?;
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
    let result = runtime.block_on(async {
        if let Some(tls) = &tls {
            tokio::spawn(Arc::clone(tls).follow());
        }
        Server::start(settings, sources, signals, sockets, tls)?
            .live()
            .await
    });
    runtime.shutdown_background();
    result
}

/// Tells systemd that all is well as long as this event loop and the supervisor thread go round.
async fn feed_watchdog(engine: Engine, every: Duration) {
    loop {
        sleep(every).await;
        let stood = engine.looked_at().elapsed();
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
    engine: Engine,
    addresses: Vec<String>,
    drain_timeout: Duration,
    crash_loop: CrashLoop,
    reloader: Reloader,
    listeners: JoinSet<io::Result<()>>,
    /// Reads the model and starts the engine.
    opening: JoinHandle<anyhow::Result<UnboundedReceiver<Notice>>>,
    signals: Signals,
}

/// Who runs the model.
#[derive(Clone)]
enum Engine {
    BuiltIn(Broker),
    Another(Supervisor),
}

/// The same, before model and machine are known.
enum Unopened {
    BuiltIn(Broker, Unstarted),
    Another(Supervisor, Arc<Proxy>, external::supervisor::Unstarted),
}

impl Engine {
    fn drain(&self, limit: Duration) {
        match self {
            Engine::BuiltIn(broker) => broker.drain(limit),
            Engine::Another(supervisor) => supervisor.drain(limit),
        }
    }

    /// When the thread that keeps it alive last went round.
    fn looked_at(&self) -> Instant {
        match self {
            Engine::BuiltIn(broker) => broker.looked_at(),
            Engine::Another(supervisor) => supervisor.looked_at(),
        }
    }

    fn stop(&self) {
        match self {
            Engine::BuiltIn(broker) => broker.stop(),
            Engine::Another(supervisor) => supervisor.stop(),
        }
    }
}

impl Server {
    fn start(
        settings: Settings,
        sources: Sources,
        signals: Signals,
        sockets: Sockets,
        tls: Option<Arc<Tls>>,
    ) -> anyhow::Result<Server> {
        let addresses = sockets.urls();
        let drain_timeout = settings.drain_timeout.value;
        let crash_loop = settings.crash_loop.value;
        let (reloader, wishes) = Reloader::new();
        let config = server_config(&settings, sockets.addresses());
        let (app, engine, opening) = match settings.external.is_wanted() {
            false => {
                let (broker, unstarted) = Broker::new();
                let app = App::new(config, Arc::new(broker.clone()));
                let opening = Unopened::BuiltIn(broker.clone(), unstarted);
                (app, Engine::BuiltIn(broker), opening)
            }
            true => {
                let (supervisor, unstarted) = Supervisor::new();
                let proxy = Proxy::new(settings.max_queue.value);
                let app = App::in_front_of(config, Arc::clone(&proxy));
                let opening = Unopened::Another(supervisor.clone(), proxy, unstarted);
                (app, Engine::Another(supervisor), opening)
            }
        };
        let watch = Arc::new(Watch::new());
        app.set_status(Arc::clone(&watch) as _);
        app.set_control(Arc::new(reloader.clone()));
        if let Some(every) = systemd::watchdog_interval(&environment()) {
            tokio::spawn(feed_watchdog(engine.clone(), every));
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
            let (reloader, addresses) = (reloader.clone(), addresses.clone());
            move || match opening {
                Unopened::BuiltIn(broker, unstarted) => {
                    let opening = Opening {
                        settings,
                        sources,
                        app,
                        watch,
                        broker,
                        reloader,
                        wishes,
                        tls,
                        addresses,
                    };
                    opening.open(unstarted)
                }
                Unopened::Another(supervisor, proxy, unstarted) => {
                    let opening = external::Opening {
                        front: Front {
                            sources,
                            first: settings,
                            tls,
                            addresses,
                        },
                        supervisor,
                        watch,
                        reloader,
                        wishes,
                    };
                    opening.open(proxy, unstarted)
                }
            }
        });
        Ok(Server {
            app,
            watch,
            engine,
            addresses,
            drain_timeout,
            crash_loop,
            reloader,
            listeners,
            opening,
            signals,
        })
    }

    async fn live(mut self) -> anyhow::Result<ExitCode> {
        let mut notices = loop {
            tokio::select! {
                opened = &mut self.opening => match opened {
                    Ok(Ok(notices)) => break notices,
                    Ok(Err(failure)) => return self.fail(None, failure).await,
                    Err(panic) => {
                        let failure = format!("reading the model failed: {panic}");
                        return self.fail(None, Failure::new(failure)).await;
                    }
                },
                told = self.signals.next() => match told {
                    Told::End(_) => return self.leave(None).await,
                    Told::Reload => self.reloader.wish(Cause::Signal),
                },
                Some(ended) = self.listeners.join_next() => {
                    return self.fail(None, socket_failure(ended)).await;
                }
            }
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
                            true => systemd::status(&serving(&self.addresses)),
                        }
                        announced = true;
                    }
                    Notice::Failed { failure, ever_ready: false } => {
                        return self.fail(Some(notices), failure).await;
                    }
                    Notice::Failed { failure, .. } if self.crash_loop == CrashLoop::Exit => {
                        return self.fail(Some(notices), failure).await;
                    }
                    Notice::Failed { failure, .. } => {
                        systemd::status(&format!("no engine: {}", failure.reason));
                        tracing::error!("all requests are refused until a reload or a restart");
                    }
                    Notice::Stopped => return self.fail(None, Failure::new("the supervisor ended")).await,
                },
                told = self.signals.next() => match told {
                    Told::End(_) => return self.leave(Some(notices)).await,
                    Told::Reload => self.reloader.wish(Cause::Signal),
                },
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
        systemd::ready(&serving(&self.addresses));
    }

    /// The polite end: what runs finishes within the drain timeout. A second signal ends at once.
    async fn leave(
        mut self,
        notices: Option<UnboundedReceiver<Notice>>,
    ) -> anyhow::Result<ExitCode> {
        let limit = self.drain_timeout;
        systemd::stopping();
        let notice = self.app.announce_leaving();
        if !notice.is_zero() {
            tracing::info!(
                "leaving: balancers are told, requests are taken for another {:.1} s; a second signal ends at once",
                notice.as_secs_f64()
            );
            tokio::select! {
                () = sleep(notice) => {}
                number = self.signals.end() => {
                    self.engine.stop();
                    return Ok(ExitCode::from(128 + number));
                }
            }
        }
        tracing::info!(
            "shutting down: running requests have {:.1} s; a second signal ends at once",
            limit.as_secs_f64()
        );
        self.app.drain(limit);
        let engine = self.engine.clone();
        let end = async {
            while self.listeners.join_next().await.is_some() {}
            engine.drain(Duration::ZERO);
            if let Some(notices) = notices {
                stopped(notices).await;
            }
        };
        tokio::select! {
            () = end => {}
            () = sleep(limit + EXIT_GRACE) => tracing::warn!("not everything ended in time"),
            number = self.signals.end() => {
                self.engine.stop();
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
        self.engine.stop();
        if let Some(notices) = notices {
            let _ = timeout(EXIT_GRACE, stopped(notices)).await;
        }
        Err(failure.into())
    }
}

/// For systemd.
pub(crate) fn serving(addresses: &[String]) -> String {
    format!("serving on {}", addresses.join(", "))
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

/// What a signal says.
pub(crate) enum Told {
    /// SIGTERM and SIGINT, by number.
    End(u8),
    /// SIGHUP.
    Reload,
}

/// The signals that say something.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` where whoever started us wants it ignored, as `nohup` does.
    hangup: Option<Signal>,
    had_terminal: bool,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn new() -> io::Result<Signals> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = match ignores_hangup(&status) {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
            had_terminal: has_terminal(),
        })
    }

    /// The next one. SIGHUP for a terminal that is gone is the end.
    pub(crate) async fn next(&mut self) -> Told {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Told::End(15),
            _ = self.interrupt.recv() => Told::End(2),
            _ = hangup => match self.had_terminal && !has_terminal() {
                true => Told::End(1),
                false => Told::Reload,
            },
        }
    }

    /// The next one that says to end.
    async fn end(&mut self) -> u8 {
        loop {
            if let Told::End(number) = self.next().await {
                return number;
            }
        }
    }
}

fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// proc_pid_status(5): `SigIgn` is a mask of the ignored signals, SIGHUP its lowest bit.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

/// Reads the header, plans, starts the supervisor with the first engine, and builds the tokenizer while that loads.
struct Opening {
    settings: Settings,
    sources: Sources,
    app: Arc<App>,
    watch: Arc<Watch>,
    broker: Broker,
    reloader: Reloader,
    wishes: Wishes,
    tls: Option<Arc<Tls>>,
    addresses: Vec<String>,
}

impl Opening {
    fn open(self, unstarted: Unstarted) -> anyhow::Result<UnboundedReceiver<Notice>> {
        let settings = &self.settings;
        let mut prepared = startup::prepare(settings)?;
        if settings.tune.value && prepared.profile.is_none() {
            tune_first(&prepared, settings);
            prepared = startup::prepare(settings)?;
        }
        prepared.log(settings);
        self.watch.planned(&prepared.host, &prepared.plan);
        let file = reload::model_file(settings);
        let Prepared {
            host, facts, plan, ..
        } = &prepared;
        let config = reload::broker_config(settings, host, facts, plan, file.clone());
        let engines = EngineProcesses {
            log_level: settings.log_level.value.map(|level| level.to_string()),
            unconfined: !settings.sandbox.value,
            nice: settings.nice.value,
            slot_folder: settings.slot_save_path.value.clone(),
        };
        let notices = unstarted
            .start(config, engines)
            .context("cannot start the supervisor")?;
        let served = Served::new(prepared, settings, file, self.broker.tenure(0))?;
        self.app
            .set_model(served.card())
            .context("cannot use the chat template")?;
        self.broker.open();
        let watched = Watched {
            reloader: self.reloader,
            sources: self.sources.clone(),
            limits: served.host.limits.clone(),
            metered: Some((self.broker.clone(), served.host.energy.clone())),
        };
        watch::start(watched).context("cannot start the thread that watches limits")?;
        let desk = BuiltIn {
            front: Front {
                sources: self.sources,
                first: self.settings,
                tls: self.tls,
                addresses: self.addresses,
            },
            app: self.app,
            watch: self.watch,
            broker: self.broker,
            served,
        };
        reload::open(desk, self.wishes).context("cannot start the thread that reloads")?;
        Ok(notices)
    }
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

pub(crate) fn server_config(settings: &Settings, addresses: Vec<String>) -> ServerConfig {
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
        drain_notice: settings.drain_notice.value,
        write_timeout: settings.timeout.value,
        sse_ping: settings.sse_ping.value,
        ..ServerConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ignores_hangups_is_left_alone() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("SigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
