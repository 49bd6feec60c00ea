//! The built-in engine's desk: one model after another, each with a tokenizer and engines of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use bitnet_kernels::Packing;
use bitnet_model::facts::ModelFacts;
use bitnet_model::protocol::{ModelSource, WeightsHome};
use bitnet_model::tokenizer::Tokenizer;
use bitnet_server::backend::Tenure;
use bitnet_server::{App, ModelCard, ServerConfig};

use super::{Desk, Done, Front, Gap, room};
use crate::demo;
use crate::file_stamp::FileStamp;
use crate::host::Host;
use crate::plan::Plan;
use crate::serve::server_config;
use crate::settings::Settings;
use crate::startup::{Prepared, described, prepare_on};
use crate::status;
use crate::supervise::broker::{Broker, BrokerConfig, Canary, Replacement};
use crate::supervise::state::{Failure, start_timeout};

/// The thread's possessions: what is served, and who serves it.
pub(crate) struct BuiltIn {
    pub(crate) front: Front,
    pub(crate) app: Arc<App>,
    pub(crate) watch: Arc<status::Watch>,
    pub(crate) broker: Broker,
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
            draft_max: self.settings.draft_max(),
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

impl Desk for BuiltIn {
    fn front(&self) -> &Front {
        &self.front
    }

    fn settings(&self) -> &Settings {
        &self.served.settings
    }

    fn exchange(&mut self, settings: Settings, gap: Gap) -> anyhow::Result<Done> {
        let prepared = prepare_on(room::host_without(self.broker.engine_pid()), &settings)?;
        let file = model_file(&settings);
        let plan_lines = prepared.lines(&settings);
        // Nobody has this number before an engine is to be replaced.
        let number = self.served.tenure.number() + 2;
        let new = Served::new(prepared, &settings, file, self.broker.tenure(number))?;
        if new.is_same_engine(&self.served) {
            let is_new = new.settings != self.served.settings;
            self.follow(new)?;
            let outcome = match is_new {
                true => "the new settings are followed, the engine stays as it is",
                false => "nothing has changed: same settings, same model, same plan",
            };
            return Ok(Done {
                outcome: outcome.to_owned(),
                engine_replaced: false,
            });
        }
        for line in plan_lines {
            tracing::info!("{line}");
        }
        for warning in &new.plan.warnings {
            tracing::warn!("{warning}");
        }
        let needed = self.needed_beside(&new);
        let needs_gap = gap == Gap::Always || !room::holds(needed);
        if needs_gap && gap == Gap::Never {
            anyhow::bail!(room::refusal(needed));
        }
        let outcome = new.summary();
        match needs_gap {
            false => self.replace(new)?,
            true => self.replace_with_gap(new)?,
        }
        Ok(Done {
            outcome,
            engine_replaced: true,
        })
    }
}

impl BuiltIn {
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
}

/// Waits for the outcome; the supervisor has deadlines for all it takes.
fn ended(outcome: &Receiver<Result<(), Failure>>) -> Result<(), Failure> {
    let gone = |_| Err(Failure::new("the server is shutting down"));
    outcome.recv().unwrap_or_else(gone)
}
