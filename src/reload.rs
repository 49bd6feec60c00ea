//! What is served, and how something else comes in its place without an outage: settings and model are read anew, a plan is
//! made, a second engine starts beside the first and has to pass its test, new requests go to it, the old one ends with
//! its last request.
//!
//! One thread, the desk, owns what is served; everybody sends it wishes: SIGHUP, `POST /reload`, a changed settings file,
//! changed limits. Whatever goes wrong before the new engine has passed leaves everything as it was.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use bitnet_kernels::Packing;
use bitnet_model::facts::ModelFacts;
use bitnet_model::protocol::{ModelSource, WeightsHome};
use bitnet_model::tokenizer::Tokenizer;
use bitnet_server::backend::Tenure;
use bitnet_server::{App, Control, ModelCard, Reloaded, ServerConfig, Tls};
use tokio::sync::oneshot;

use crate::demo;
use crate::file_stamp::FileStamp;
use crate::host::cgroup::memory_used;
use crate::host::{Host, Root};
use crate::plan::{Plan, mb};
use crate::serve::{server_config, serving};
use crate::settings::{Settings, Sources};
use crate::startup::{self, Prepared, described, prepare_on};
use crate::status;
use crate::supervise::broker::{Broker, BrokerConfig, Canary, Replacement};
use crate::supervise::state::{Failure, start_timeout};
use crate::systemd;

/// Wishes that may wait.
const WISHES: usize = 8;
/// Share of the free memory left to others while two engines run, and its bounds.
const HEADROOM_DIVISOR: u64 = 20;
const HEADROOM_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=512 << 20;

/// Sends wishes to the desk.
#[derive(Clone)]
pub(crate) struct Reloader(SyncSender<Wish>);

/// One wish.
pub(crate) struct Wish {
    pub(crate) cause: Cause,
    pub(crate) answer: Option<oneshot::Sender<Result<Reloaded, String>>>,
}

/// Who wants something else to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// An operator, by HTTP.
    Asked {
        /// The old engine is to end before the new one starts.
        gap: bool,
    },
    /// An operator, by SIGHUP.
    Signal,
    /// The settings file has changed.
    File,
    /// Limits have changed; in words.
    Limits(String),
}

/// Whether the old engine may end before the new one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    Never,
    WhereShort,
    Always,
}

impl Reloader {
    /// And what the desk listens to.
    pub(crate) fn new() -> (Reloader, Wishes) {
        let (sender, receiver) = mpsc::sync_channel(WISHES);
        (Reloader(sender), Wishes(receiver))
    }

    /// Leaves a wish; the outcome goes to the log.
    pub(crate) fn wish(&self, cause: Cause) {
        let answer = None;
        if self.0.try_send(Wish { cause, answer }).is_err() {
            tracing::warn!(
                "not reloaded: {WISHES} reloads wait already, or the server is on its way out"
            );
        }
    }
}

impl Control for Reloader {
    fn reload(&self, gap: bool) -> oneshot::Receiver<Result<Reloaded, String>> {
        let (answer, receiver) = oneshot::channel();
        let wish = Wish {
            cause: Cause::Asked { gap },
            answer: Some(answer),
        };
        if let Err(mpsc::TrySendError::Full(wish) | mpsc::TrySendError::Disconnected(wish)) =
            self.0.try_send(wish)
            && let Some(answer) = wish.answer
        {
            let _ = answer.send(Err(format!("{WISHES} reloads wait already")));
        }
        receiver
    }
}

/// Wishes on their way to the desk.
pub(crate) struct Wishes(pub(crate) Receiver<Wish>);

/// The thread's possessions: what is served, and where it came from.
pub(crate) struct Desk {
    pub(crate) app: Arc<App>,
    pub(crate) watch: Arc<status::Watch>,
    pub(crate) broker: Broker,
    pub(crate) sources: Sources,
    /// As the server was started: some of them can't be followed later.
    pub(crate) first: Settings,
    /// Its certificate is read anew, too.
    pub(crate) tls: Option<Arc<Tls>>,
    /// For systemd.
    pub(crate) addresses: Vec<String>,
    pub(crate) served: Served,
}

/// What is served.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) settings: Settings,
    pub(crate) host: Host,
    pub(crate) facts: ModelFacts,
    pub(crate) plan: Plan,
    /// `None` for the model in this binary.
    pub(crate) file: Option<FileStamp>,
    tokenizer: Arc<Tokenizer>,
    tenure: Arc<Tenure>,
}

impl Served {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// When the vocabulary can't be used.
    pub(crate) fn new(
        prepared: Prepared,
        settings: &Settings,
        file: Option<FileStamp>,
        tenure: Arc<Tenure>,
    ) -> anyhow::Result<Served> {
        let tokenizer = Tokenizer::from_gguf(&prepared.gguf, &settings.overrides)
            .with_context(|| format!("cannot load {}", described(&settings.model.value)))?;
        Ok(Served {
            settings: settings.clone(),
            host: prepared.host,
            facts: prepared.facts,
            plan: prepared.plan,
            file,
            tokenizer: Arc::new(tokenizer),
            tenure,
        })
    }

    /// What HTTP has to know.
    pub(crate) fn card(&self) -> ModelCard {
        let source = &self.settings.model.value;
        ModelCard {
            facts: self.facts.clone(),
            tokenizer: Arc::clone(&self.tokenizer),
            path: match source {
                ModelSource::File(path) => path.display().to_string(),
                ModelSource::Demo => demo::NAME.to_owned(),
            },
            created_unix_s: match source {
                ModelSource::File(path) => modified_unix_s(path),
                // The model is as old as the program that carries it.
                ModelSource::Demo => std::env::current_exe().map_or(0, |exe| modified_unix_s(&exe)),
            },
            slots: self.plan.slots.value,
            slot_context: self.plan.slot_context.value,
            prefill_batch: self.plan.prefill_batch.value,
            kernel: self.plan.kernel.value.to_string(),
            threads: self.plan.threads(),
            tenure: Arc::clone(&self.tenure),
        }
    }

    fn server_config(&self) -> ServerConfig {
        server_config(&self.settings, Vec::new())
    }

    fn broker_config(&self) -> BrokerConfig {
        broker_config(
            &self.settings,
            &self.host,
            &self.facts,
            &self.plan,
            self.file.clone(),
        )
    }

    /// Its engines answer as those of `other` do.
    fn is_same_model(&self, other: &Served) -> bool {
        self.settings.model.value == other.settings.model.value
            && self.file == other.file
            && self.settings.overrides == other.settings.overrides
            && self.plan.kv_type.value == other.plan.kv_type.value
    }

    fn is_same_engine(&self, other: &Served) -> bool {
        self.is_same_model(other)
            && self.plan.engine_config(&self.settings) == other.plan.engine_config(&other.settings)
    }

    fn summary(&self) -> String {
        format!(
            "serving {} with {}, {} threads, {} slots of {} tokens",
            described(&self.settings.model.value),
            self.plan.kernel.value,
            self.plan.threads(),
            self.plan.slots.value,
            self.plan.slot_context.value
        )
    }
}

/// The file of a model, as it is now.
pub(crate) fn model_file(settings: &Settings) -> Option<FileStamp> {
    let path = settings.model_path()?;
    FileStamp::look(path).ok()
}

/// What the broker has to know of a plan.
pub(crate) fn broker_config(
    settings: &Settings,
    host: &Host,
    facts: &ModelFacts,
    plan: &Plan,
    model_file: Option<FileStamp>,
) -> BrokerConfig {
    let kernel = plan.kernel.value;
    let others = host.kernels.iter().skip_while(|other| **other != kernel);
    let others = others.filter(|other| **other != kernel && other.packing() == kernel.packing());
    BrokerConfig {
        engine: plan.engine_config(settings),
        other_kernels: others.map(ToString::to_string).collect(),
        model_file,
        canary: Some(Canary::of_vocabulary(facts.n_vocab)),
        max_queue: settings.max_queue.value,
        queue_timeout: settings.queue_timeout.value,
        context_shift: settings.context_shift.value,
        start_timeout: start_timeout(facts.file_bytes),
        hang_timeout: settings.hang_timeout.value,
        sleep_after: settings.sleep_idle.value,
    }
}

fn modified_unix_s(path: &Path) -> u64 {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |age| age.as_secs())
}

impl Desk {
    /// Starts the thread; it lives as long as the program.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn open(mut self, wishes: Wishes) -> std::io::Result<()> {
        let live = move || {
            for wish in wishes.0 {
                self.attend(wish);
            }
        };
        thread::Builder::new()
            .name("reload".into())
            .spawn(live)
            .map(|_| ())
    }

    fn attend(&mut self, wish: Wish) {
        let settings = &self.served.settings;
        let where_short = match settings.reload_gap.value {
            true => Gap::WhereShort,
            false => Gap::Never,
        };
        let gap = match &wish.cause {
            Cause::Asked { gap: true } => Gap::Always,
            Cause::Asked { gap: false } | Cause::Signal => where_short,
            Cause::File => {
                tracing::info!("the settings file has changed");
                where_short
            }
            Cause::Limits(change) if settings.replan.value => {
                tracing::warn!("limits changed: {change}");
                Gap::WhereShort
            }
            Cause::Limits(change) => {
                return tracing::warn!(
                    "limits changed: {change}; the plan stays as it is: `bitnet-launch reload` follows, or serve with `--replan`"
                );
            }
        };
        systemd::reloading();
        if let Some(tls) = self.tls.clone().filter(|_| wish.cause != Cause::File) {
            tls.reload_and_say();
        }
        let result = self.reload(gap).map_err(|error| told(&error));
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

    fn reload(&mut self, gap: Gap) -> anyhow::Result<Reloaded> {
        let settings = self.sources.read()?;
        let warnings = fixed(&self.first, &settings);
        let prepared = prepare_on(self.host_without_engine(), &settings)?;
        let file = model_file(&settings);
        let plan_lines = prepared.lines(&settings);
        // Nobody has this number before an engine is to be replaced.
        let number = self.served.tenure.number() + 2;
        let new = Served::new(prepared, &settings, file, self.broker.tenure(number))?;
        let done = |outcome: String, engine_replaced| Reloaded {
            outcome,
            engine_replaced,
            warnings,
        };
        if new.is_same_engine(&self.served) {
            let is_new = new.settings != self.served.settings;
            self.follow(new)?;
            let outcome = match is_new {
                true => "the new settings are followed, the engine stays as it is",
                false => "nothing has changed: same settings, same model, same plan",
            };
            return Ok(done(outcome.to_owned(), false));
        }
        for line in plan_lines {
            tracing::info!("{line}");
        }
        for warning in &new.plan.warnings {
            tracing::warn!("{warning}");
        }
        let needs_gap = gap == Gap::Always || !self.has_room_beside(&new);
        if needs_gap && gap == Gap::Never {
            anyhow::bail!(self.no_room(&new));
        }
        let outcome = new.summary();
        match needs_gap {
            false => self.replace(new)?,
            true => self.replace_with_gap(new)?,
        }
        Ok(done(outcome, true))
    }

    /// Other settings for the engine that runs.
    fn follow(&mut self, mut new: Served) -> anyhow::Result<()> {
        new.tenure = Arc::clone(&self.served.tenure);
        let staged = App::stage(new.card(), &new.server_config())?;
        self.broker.retune(new.broker_config());
        self.app.install(staged);
        self.watch.planned(&new.host, &new.plan);
        self.served = new;
        Ok(())
    }

    /// A second engine beside the first; requests go to it once it has passed its test.
    fn replace(&mut self, new: Served) -> anyhow::Result<()> {
        let staged = App::stage(new.card(), &new.server_config())?;
        tracing::info!("starting a second engine beside the one that serves");
        self.start(&new, None)?;
        self.app.install(staged);
        self.watch.planned(&new.host, &new.plan);
        self.served = new;
        Ok(())
    }

    /// The first engine ends with its last request, then the second starts; requests that come meanwhile wait for it.
    fn replace_with_gap(&mut self, new: Served) -> anyhow::Result<()> {
        let staged = App::stage(new.card(), &new.server_config())?;
        tracing::info!("the engine ends with its last request, another one starts then");
        let mut old = self.served.clone();
        // Only requests know the old tenure from now on.
        let back = new.tenure.number() + 1;
        old.tenure = match new.is_same_model(&old) {
            true => Arc::clone(&new.tenure),
            false => self.broker.tenure(back),
        };
        self.served = old;
        let outcome = self.begin(&new, Some(back));
        self.app.install(staged);
        match ended(&outcome) {
            Ok(()) => {
                self.watch.planned(&new.host, &new.plan);
                self.served = new;
                Ok(())
            }
            Err(failure) => {
                let config = self.served.server_config();
                self.app.install(App::stage(self.served.card(), &config)?);
                Err(failure.into())
            }
        }
    }

    fn start(&self, new: &Served, gap: Option<u64>) -> Result<(), Failure> {
        ended(&self.begin(new, gap))
    }

    fn begin(&self, new: &Served, gap: Option<u64>) -> Receiver<Result<(), Failure>> {
        let (outcome, receiver) = mpsc::channel();
        self.broker.replace(Replacement {
            tenure: new.tenure.number(),
            config: new.broker_config(),
            same_model: new.is_same_model(&self.served),
            gap,
            outcome,
        });
        receiver
    }

    /// This machine as the next engine finds it once the one that runs has ended.
    fn host_without_engine(&self) -> Host {
        let mut host = Host::detect();
        let held = self.broker.engine_pid().and_then(anonymous_bytes);
        if let (Some(available), Some(held)) = (&mut host.memory.available_bytes, held) {
            *available += held;
        }
        host
    }

    fn has_room_beside(&self, new: &Served) -> bool {
        free_bytes().is_none_or(|free| self.needed_beside(new) <= usable(free))
    }

    /// What the new engine takes beside the old one. Mapped weights of one file are there once.
    fn needed_beside(&self, new: &Served) -> u64 {
        let maps_all = |served: &Served| {
            served.plan.weights.value == WeightsHome::Mapped
                && served.plan.kernel.value.packing() == Packing::I2S
        };
        let shares = new.file.is_some()
            && new.file == self.served.file
            && maps_all(new)
            && maps_all(&self.served);
        let all = new.plan.memory.total_bytes();
        match shares {
            true => all.saturating_sub(new.plan.memory.weights_bytes),
            false => all,
        }
    }

    fn no_room(&self, new: &Served) -> String {
        let free = free_bytes().map_or(0, usable);
        format!(
            "{} MB are needed beside the engine that runs, {} MB are free: `bitnet-launch reload --gap` ends it before the new one starts, and requests wait meanwhile",
            mb(self.needed_beside(new)),
            mb(free)
        )
    }
}

/// Waits for the outcome; the supervisor has deadlines for all it takes.
fn ended(outcome: &Receiver<Result<(), Failure>>) -> Result<(), Failure> {
    let gone = |_| Err(Failure::new("the server is shutting down"));
    outcome.recv().unwrap_or_else(gone)
}

/// In one line, with what can be done.
pub(crate) fn told(error: &anyhow::Error) -> String {
    match startup::hint(error) {
        Some(hint) => format!("{error:#} ({hint})"),
        None => format!("{error:#}"),
    }
}

/// Memory that is free now, within the limits; `None` where nobody tells.
fn free_bytes() -> Option<u64> {
    let root = Root::live();
    let host = Host::detect();
    let within = host.limits.memory.as_ref().and_then(|limit| {
        let used = memory_used(&root, &host.limits)?;
        Some(limit.bytes.saturating_sub(used))
    });
    let all = [host.memory.available_bytes, within];
    all.into_iter().flatten().min()
}

fn usable(free: u64) -> u64 {
    let (least, most) = (*HEADROOM_BYTES.start(), *HEADROOM_BYTES.end());
    free.saturating_sub((free / HEADROOM_DIVISOR).clamp(least, most))
}

/// Memory of a process that no file backs.
fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// A line for each setting that is another one now, and was needed at the start.
pub(crate) fn fixed(first: &Settings, now: &Settings) -> Vec<String> {
    let (a, b) = (first, now);
    let changes = [
        ("host", a.hosts.value != b.hosts.value),
        ("port", a.port.value != b.port.value),
        ("api-key", a.api_keys.value != b.api_keys.value),
        (
            "public-models",
            a.public_models.value != b.public_models.value,
        ),
        ("api-prefix", a.api_prefix.value != b.api_prefix.value),
        ("cors-origins", a.cors_origins.value != b.cors_origins.value),
        ("cors-methods", a.cors_methods.value != b.cors_methods.value),
        ("cors-headers", a.cors_headers.value != b.cors_headers.value),
        (
            "cors-credentials",
            a.cors_credentials.value != b.cors_credentials.value,
        ),
        ("ui", a.ui.value != b.ui.value),
        ("path", a.static_path.value != b.static_path.value),
        (
            "agent-check-port",
            a.agent_check_port.value != b.agent_check_port.value,
        ),
        (
            "full-speed",
            a.full_speed_tok_s.value != b.full_speed_tok_s.value,
        ),
        ("sandbox", a.sandbox.value != b.sandbox.value),
        ("reuse-port", a.reuse_port.value != b.reuse_port.value),
        ("ssl-cert-file and ssl-key-file", a.tls != b.tls),
        ("max-body", a.max_body_bytes.value != b.max_body_bytes.value),
        ("timeout", a.timeout.value != b.timeout.value),
        ("drain-notice", a.drain_notice.value != b.drain_notice.value),
        (
            "drain-timeout",
            a.drain_timeout.value != b.drain_timeout.value,
        ),
        ("crash-loop", a.crash_loop.value != b.crash_loop.value),
        ("metrics", a.metrics.value != b.metrics.value),
        ("slots", a.slots.value != b.slots.value),
        ("props", a.props.value != b.props.value),
        (
            "slot-save-path",
            a.slot_save_path.value != b.slot_save_path.value,
        ),
        ("log-level", a.log_level.value != b.log_level.value),
        ("log-format", a.log_format.value != b.log_format.value),
        ("log-file", a.log_file.value != b.log_file.value),
    ];
    let changed = changes.into_iter().filter(|(_, is_other)| *is_other);
    changed
        .map(|(name, _)| {
            format!(
                "`{name}` has changed, but can't change while the server runs: restart it to follow"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::settings;

    #[test]
    fn what_needs_a_restart_is_named() {
        let first = settings(&[("port", "8081"), ("temp", "0.5")], &[]);
        assert!(fixed(&first, &settings(&[("temp", "0.9"), ("threads", "1")], &[])).is_empty());
        let found = fixed(
            &first,
            &settings(&[("port", "9000"), ("api-key", "s")], &[]),
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`port`") && found[1].contains("`api-key`"));
        assert!(found.iter().all(|line| !line.contains("9000")));
    }

    #[test]
    fn some_memory_is_left_to_others() {
        const MB: u64 = 1 << 20;
        assert_eq!(usable(100 * MB), 84 * MB);
        assert_eq!(usable(1000 * MB), 950 * MB);
        assert_eq!(usable(100_000 * MB), (100_000 - 512) * MB);
        assert_eq!(usable(0), 0);
    }

    #[test]
    fn this_process_holds_memory() {
        assert!(anonymous_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 16));
        assert!(free_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
