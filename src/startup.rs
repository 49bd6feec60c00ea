//! What must be known before anything is served: the model's header, the machine, the plan. Reads, starts nothing.

use std::path::PathBuf;

use anyhow::Context;
use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::Gguf;
use bitnet_model::protocol::{ModelSource, Overrides};

use crate::demo;
use crate::host::Host;
use crate::plan::{Plan, PlanError, plan};
use crate::settings::{Settings, environment};
use crate::tune::profile;

/// A planned start.
pub(crate) struct Prepared {
    /// The model's file, header read.
    pub gguf: Gguf,
    /// What the header says.
    pub facts: ModelFacts,
    /// This machine.
    pub host: Host,
    /// What was decided.
    pub plan: Plan,
    /// The tuned profile that it follows.
    pub profile: Option<PathBuf>,
}

/// Reads the model's header, looks at the machine, decides.
///
/// # Errors
/// When the model can't be used or what was asked for is impossible; see [`hint`] for what to do.
pub(crate) fn prepare(settings: &Settings) -> anyhow::Result<Prepared> {
    prepare_on(Host::detect(), settings)
}

/// The same for a machine that is known already.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn prepare_on(host: Host, settings: &Settings) -> anyhow::Result<Prepared> {
    let gguf = open(&settings.model.value, &settings.overrides)?;
    let facts = ModelFacts::read(&gguf, &settings.overrides)
        .with_context(|| format!("cannot use {}", described(&settings.model.value)))?;
    let (plan, profile) = decide(&host, &facts, settings)?;
    Ok(Prepared {
        gguf,
        facts,
        host,
        plan,
        profile,
    })
}

/// Decides, following the tuned profile if there is one for exactly this; its path.
///
/// # Errors
/// When what was asked for is impossible.
pub(crate) fn decide(
    host: &Host,
    facts: &ModelFacts,
    settings: &Settings,
) -> Result<(Plan, Option<PathBuf>), PlanError> {
    let default = plan(host, facts, settings)?;
    let tuned = || {
        let directory = profile::directory(&environment())?;
        let key = profile::Key::new(host, settings, &default)?;
        let (path, profile) = profile::load(&directory, &key)?;
        let tuned = plan(host, facts, &profile.setup.apply(settings, host)).ok()?;
        (profile::Setup::of(&tuned) == profile.setup).then_some((tuned, Some(path)))
    };
    Ok(tuned().unwrap_or((default, None)))
}

/// Opens the model's file, or the bundled one; some of its keys may be given other values.
///
/// # Errors
/// When it is no readable GGUF file.
pub(crate) fn open(model: &ModelSource, overrides: &Overrides) -> anyhow::Result<Gguf> {
    match model {
        ModelSource::File(path) => Gguf::open(path),
        ModelSource::Demo => Gguf::from_bytes(demo::bytes()),
    }
    .and_then(|gguf| gguf.with_keys(&overrides.keys))
    .with_context(|| format!("cannot load {}", described(model)))
}

/// The model in words.
pub(crate) fn described(model: &ModelSource) -> String {
    match model {
        ModelSource::File(path) => format!("`{}`", path.display()),
        ModelSource::Demo => "the bundled demo model".to_owned(),
    }
}

/// What the user can do about an error, if something in its chain knows.
pub(crate) fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(e) = cause.downcast_ref::<crate::settings::SettingsError>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<crate::llama_argv::ArgvError>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<PlanError>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<bitnet_model::convert::ConvertError>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<bitnet_model::facts::FactsError>() {
            return e.hint().map(str::to_owned);
        }
        if let Some(e) = cause.downcast_ref::<crate::supervise::state::Failure>() {
            return e.hint.clone();
        }
        if let Some(e) = cause.downcast_ref::<bitnet_server::TlsError>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<crate::external::ExternalError>() {
            return e.hint();
        }
        if let Some(e) = cause.downcast_ref::<crate::models::error::PullError>() {
            return e.hint();
        }
        let gguf = cause.downcast_ref::<bitnet_model::gguf::GgufError>()?;
        gguf.hint().map(str::to_owned)
    })
}

impl Prepared {
    /// Logs what was found, what was decided and why.
    pub(crate) fn log(&self, settings: &Settings) {
        for notice in &settings.notices {
            tracing::info!("{notice}");
        }
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        for line in self.lines(settings) {
            tracing::info!("{line}");
        }
        for note in &self.facts.notes {
            tracing::info!("{note}");
        }
        for warning in &self.plan.warnings {
            tracing::warn!("{warning}");
        }
    }

    /// Model, machine and plan, one fact per line.
    pub(crate) fn lines(&self, settings: &Settings) -> Vec<String> {
        let facts = &self.facts;
        let mut lines = vec![format!(
            "Model: {} ({}), {} {}, {} parameters, {} layers, context {}",
            described(&settings.model.value),
            settings.model.source,
            facts.architecture,
            facts.name.as_deref().unwrap_or("without a name"),
            facts.size_label(),
            facts.n_layer,
            facts.context_length,
        )];
        if settings.model.value == ModelSource::Demo {
            lines.push(
                "The demo model is tiny and made to try this program out; serve a real one with `bitnet-launch -m FILE.gguf`"
                    .to_owned(),
            );
        }
        lines.push(format!("Machine: {}", self.host.summary()));
        lines.extend(self.plan.lines());
        if let Some(path) = &self.profile {
            lines.push(format!("Tuned profile: {}", path.display()));
        }
        lines
    }
}
