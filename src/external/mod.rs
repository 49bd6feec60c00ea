//! Another llama-server as engine: found, looked into, planned for, started and kept alive, behind our own front.
//!
//! [`prepare`] reads and decides: which program ([`find`]), what it is able to do ([`probe`]), whether it can run the model
//! ([`compat`]), on which CPUs with how much context (the plan), and with which arguments ([`argv`]). [`supervisor`] acts on
//! that; or [`exec`], which becomes the program.

mod argv;
mod compat;
mod confine;
mod desk;
mod find;
mod health;
mod http;
mod instance;
mod probe;
mod process;
pub(crate) mod supervisor;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bitnet_kernels::Packing;
use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::{Gguf, TensorType};
use bitnet_model::protocol::{HeadMode, ModelSource, WeightsHome};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::file_stamp::FileStamp;
use crate::host::{CpuSet, Host};
use crate::plan::{self, MemoryPlan, Placement, Plan, Warning};
use crate::settings::{Environment, Setting, Settings, Source};
use crate::startup;
use crate::supervise::state::start_timeout;
use argv::Room;
use compat::ModelTypes;
use confine::Rights;
pub(crate) use desk::Opening;
pub(crate) use find::all as find_all;
use instance::Order;
pub(crate) use probe::Program;
use process::Launch;
pub(crate) use process::engine_exec;

/// An engine that stands still for this long is replaced.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// Why another engine can't be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum ExternalError {
    /// `auto` found none.
    #[error("no llama-server found ({source_}), looked in {}", looked.join(", "))]
    NotFound {
        /// Who asked for one.
        source_: Source,
        /// Directories.
        looked: Vec<String>,
    },
    /// Nothing that can be executed.
    #[error("no engine at `{}` ({source_}): {why}", path.display())]
    NoProgram {
        /// Who named it.
        source_: Source,
        /// The path.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// For another kind of machine.
    #[error("engine `{}` is built for {found}, this machine is {}", path.display(), std::env::consts::ARCH)]
    Machine {
        /// The program.
        path: PathBuf,
        /// Its machine.
        found: &'static str,
    },
    /// It doesn't start at all.
    #[error("cannot run engine `{}`: {why}", path.display())]
    CannotRun {
        /// The program.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Built for a newer CPU.
    #[error("engine `{}` uses instructions that this CPU lacks", path.display())]
    Instruction {
        /// The program.
        path: PathBuf,
    },
    /// The dynamic linker misses something.
    #[error("engine `{}` misses a shared library: {why}", path.display())]
    Libraries {
        /// The program.
        path: PathBuf,
        /// What the linker said.
        why: String,
    },
    /// Another kind of program.
    #[error("`{}` is no llama-server: {why}", path.display())]
    NoServer {
        /// The program.
        path: PathBuf,
        /// How one can tell.
        why: String,
    },
    /// The demo model is no file.
    #[error("another engine needs a model file, the bundled demo model is none")]
    NoModelFile,
    /// The file's packing isn't the one asked for.
    #[error(
        "kernel `{asked}` ({source_}) needs another file: this one has {found}, and another engine runs what the file has"
    )]
    Kernel {
        /// What was asked for.
        asked: String,
        /// By whom.
        source_: Source,
        /// What there is.
        found: String,
    },
    /// Look-up kernels exist for one kind of CPU each.
    #[error(
        "the model's {ty} is made for {made_for}, this machine is {}",
        std::env::consts::ARCH
    )]
    OtherCpu {
        /// Type of the weights.
        ty: TensorType,
        /// Kind of CPU.
        made_for: &'static str,
    },
    /// The program has no such type.
    #[error("the model has {ty} weights, and `{}` ({kind}) can't run them: {kind} has no {ty} kernel", path.display())]
    Type {
        /// The program.
        path: PathBuf,
        /// Type of the weights.
        ty: TensorType,
        /// Whose program it is.
        kind: &'static str,
        /// What to do.
        hint: String,
    },
    /// The program has no such graph.
    #[error("`{}` doesn't know the model's architecture `{name}`", path.display())]
    Architecture {
        /// The program.
        path: PathBuf,
        /// `general.architecture`.
        name: String,
        /// What to do.
        hint: String,
    },
    /// Clients' keys can't be handed over.
    #[error("`{}` takes no API keys but by its command line, where every user of this machine can read them", path.display())]
    Keys {
        /// The program.
        path: PathBuf,
    },
    /// `--exec` without another engine.
    #[error("`--exec` needs another engine to become")]
    NothingToBecome,
    /// Several hosts and `--exec`.
    #[error("`--exec` hands one host to the engine, found {found}")]
    SeveralHosts {
        /// How many.
        found: usize,
    },
}

impl ExternalError {
    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        use ExternalError as E;
        let text = match self {
            E::NotFound { .. } => {
                "name one with `--engine PATH`, or leave it out: the built-in engine needs none"
            }
            E::NoProgram { .. } => {
                "name the file `llama-server` of your build, or `--engine auto`, or leave it out for the built-in engine"
            }
            E::Machine { .. } | E::Instruction { .. } => {
                "build it on this machine, or leave `--engine` out for the built-in engine"
            }
            E::Libraries { .. } => {
                "libraries in the program's directory, `../lib` and bitnet.cpp's build tree are found by themselves; name other directories in LD_LIBRARY_PATH"
            }
            E::NoServer { .. } | E::CannotRun { .. } => {
                "run it with `--help` by hand to see what it says"
            }
            E::NoModelFile => "name one with `-m FILE`",
            E::Kernel { .. } => {
                "`bitnet-launch convert FILE --outtype KERNEL -o OUT.gguf` makes such a file; `--kernel auto` takes this one as it is"
            }
            E::OtherCpu { .. } => {
                "`bitnet-launch convert FILE -o OUT.gguf` makes an I2_S file of it, for bitnet.cpp on any CPU; or leave `--engine` out: the built-in engine reads it"
            }
            E::Type { hint, .. } | E::Architecture { hint, .. } => {
                return Some(format!(
                    "{hint}; `--no-engine-check` starts it all the same"
                ));
            }
            E::Keys { .. } => "leave `--exec` out: the front of this program checks keys for it",
            E::NothingToBecome => "say which: `--engine PATH` or `--engine auto`",
            E::SeveralHosts { .. } => "leave `--exec` out, or name one host",
        };
        Some(text.to_owned())
    }
}

/// A planned start of another engine.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    program: Program,
    model: PathBuf,
    host: Host,
    placement: Placement,
    room: Option<Room>,
    memory: Option<MemoryPlan>,
    /// The plan, where the file is one that the built-in engine would run, too.
    plan: Option<Plan>,
    launch: Launch,
    warnings: Vec<String>,
    file_bytes: u64,
}

/// Finds the engine, looks into it and the model, and plans. `None`: the built-in engine is wanted.
///
/// # Errors
/// When there is no such engine, it can't run the model, or what was asked for is impossible.
pub(crate) fn prepare(settings: &Settings, env: &Environment) -> anyhow::Result<Option<Prepared>> {
    prepare_on(Host::detect(), settings, env)
}

/// The same for a machine that is known already.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn prepare_on(
    host: Host,
    settings: &Settings,
    env: &Environment,
) -> anyhow::Result<Option<Prepared>> {
    let Some(path) = find::find(&settings.external.engine, env)? else {
        return Ok(None);
    };
    let model = match &settings.model.value {
        ModelSource::File(path) => path.clone(),
        ModelSource::Demo => return Err(ExternalError::NoModelFile.into()),
    };
    let gguf = startup::open(&settings.model.value, &settings.overrides)?;
    let program = Program::probe(&path)?;
    let mut warnings = Vec::new();
    if settings.external.check.value {
        let types = ModelTypes::of(&gguf);
        let doubts = compat::check(&types, &program, &settings.kernel, std::env::consts::ARCH)?;
        warnings.extend(doubts.iter().map(Warning::to_string));
    }
    let file_bytes = gguf.file_bytes();
    let (placement, room, plan) = decide(&host, &gguf, settings)?;
    warnings.extend(placement.warnings.iter().map(Warning::to_string));
    if room.is_none() {
        warnings.push("the built-in engine doesn't know this kind of model: context and slots are the engine's defaults unless you say them, and memory is not planned".to_owned());
    }
    let stated = stated_room(settings);
    let argv = argv::arguments(
        &program,
        &std::path::absolute(&model).unwrap_or_else(|_| model.clone()),
        &placement,
        room.as_ref().or(stated.as_ref()),
        settings,
    );
    warnings.extend(argv.warnings.iter().cloned());
    if !program.key_variable {
        warnings.push("this engine takes no key by environment: users of this machine can reach it beside our front".to_owned());
    }
    let (set, removed) = argv::environment(&program, &placement, std::env::vars_os());
    let launch = Launch {
        program: program.path.clone(),
        rights: settings.sandbox.value.then(|| Rights::needed(&argv.args)),
        args: argv.args,
        env: set,
        removed_env: removed,
        cpus: bound_to(&placement),
    };
    Ok(Some(Prepared {
        program,
        model,
        host,
        placement,
        room: room.or(stated),
        memory: plan.as_ref().map(|plan| plan.memory.clone()),
        plan,
        launch,
        warnings,
        file_bytes,
    }))
}

/// The CPUs of all threads, where they are pinned.
fn bound_to(placement: &Placement) -> Option<CpuSet> {
    let cpus = placement.prefill_cpus.value.iter().copied();
    placement.pin.value.then(|| cpus.collect())
}

/// The plan of the built-in engine without what only it has; threads and places alone for files it can't run.
fn decide(
    host: &Host,
    gguf: &Gguf,
    settings: &Settings,
) -> anyhow::Result<(Placement, Option<Room>, Option<Plan>)> {
    let Ok(facts) = ModelFacts::read(gguf, &settings.overrides) else {
        let placement = plan::place(host, gguf.file_bytes(), settings)?;
        return Ok((placement, None, None));
    };
    let plan = plan::plan(host, &facts, &plain(settings))?;
    let placement = Placement {
        decode_cpus: plan.decode_cpus.clone(),
        prefill_cpus: plan.prefill_cpus.clone(),
        pin: plan.pin.clone(),
        warnings: plan.warnings.clone(),
    };
    let room = Room {
        slots: plan.slots.clone(),
        slot_context: plan.slot_context.clone(),
    };
    Ok((placement, Some(room), Some(plan)))
}

/// Weights as the file has them, the head in full, and a cache of 16-bit floats unless somebody wants another one.
fn plain(settings: &Settings) -> Settings {
    let mut plain = settings.clone();
    let fixed = |source: &Source| match source {
        Source::Default => Source::Tuned,
        source => source.clone(),
    };
    plain.kernel = Setting {
        value: Some(Packing::I2S.to_string()),
        source: Source::Default,
    };
    plain.head = Setting {
        value: Some(HeadMode::Full),
        source: Source::Default,
    };
    plain.weights = Setting {
        value: Some(WeightsHome::Mapped),
        source: Source::Default,
    };
    plain.kv_type.source = fixed(&settings.kv_type.source);
    plain
}

/// For models that aren't planned: what the user said of slots and context.
fn stated_room(settings: &Settings) -> Option<Room> {
    let context = settings.ctx_size.value.filter(|context| *context > 0)?;
    let slots = settings.parallel.value.unwrap_or(1);
    let because = |source: &Source| plan::Reason::AskedFor(source.clone());
    let each = match settings.parallel.value {
        Some(slots) => context / slots,
        None => context,
    };
    Some(Room {
        slots: plan::Choice {
            value: slots,
            because: because(&settings.parallel.source),
        },
        slot_context: plan::Choice {
            value: each,
            because: because(&settings.ctx_size.source),
        },
    })
}

impl Prepared {
    /// What was found and decided and why, one fact per line.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Placement {
            decode_cpus,
            prefill_cpus,
            pin,
            ..
        } = &self.placement;
        let mut lines = vec![
            format!("Engine: {}", self.program.describe()),
            format!("Model: `{}`", self.model.display()),
            format!("Machine: {}", self.host.summary()),
            format!(
                "Threads: {} ({}), for prompts {} ({})",
                decode_cpus.value.len(),
                decode_cpus.because,
                prefill_cpus.value.len(),
                prefill_cpus.because
            ),
            match bound_to(&self.placement) {
                Some(cpus) => format!("Pinned to CPUs {cpus} ({})", pin.because),
                None => format!("Not pinned ({})", pin.because),
            },
        ];
        if let Some(room) = &self.room {
            lines.push(format!(
                "Slots: {} ({}) of {} tokens ({})",
                room.slots.value,
                room.slots.because,
                room.slot_context.value,
                room.slot_context.because
            ));
        }
        if let Some(memory) = &self.memory {
            lines.push(format!("Memory: {memory}"));
        }
        let mut env = String::from("Environment:");
        for (name, value) in &self.launch.env {
            let _ = write!(env, " {}={}", name.display(), value.display());
        }
        lines.push(env);
        lines.push(match &self.launch.rights {
            Some(rights) => format!("Confined: {rights}, as far as the kernel can see to that"),
            None => "Not confined (`--sandbox off`)".to_owned(),
        });
        lines.push(format!("Command: {}", self.launch.line()));
        lines
    }

    /// The same with what deserves attention.
    pub(crate) fn report(&self) -> Vec<String> {
        let warnings = self
            .warnings
            .iter()
            .map(|warning| format!("warning: {warning}"));
        self.lines().into_iter().chain(warnings).collect()
    }

    /// What deserves the user's attention, one line each.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Logs all of that.
    pub(crate) fn log(&self, settings: &Settings) {
        for notice in &settings.notices {
            tracing::info!("{notice}");
        }
        for line in self.lines() {
            tracing::info!("{line}");
        }
        for warning in settings.warnings.iter().chain(&self.warnings) {
            tracing::warn!("{warning}");
        }
    }

    /// Machine and plan, where there is one.
    pub(crate) fn planned(&self) -> Option<(&Host, &Plan)> {
        self.plan.as_ref().map(|plan| (&self.host, plan))
    }

    /// For the supervisor.
    pub(crate) fn order(&self, settings: &Settings) -> Order {
        Order {
            launch: self.launch.clone(),
            model: FileStamp::look(&self.model).ok(),
            program: FileStamp::look(&self.program.path).ok(),
            unix_sockets: self.program.unix_sockets,
            key_variable: self.program.key_variable,
            slots: self.room.as_ref().map(|room| room.slots.value),
            start_timeout: start_timeout(self.file_bytes),
            hang_timeout: settings.hang_timeout.value.unwrap_or(HANG_TIMEOUT),
            sleep_after: settings.sleep_idle.value,
        }
    }

    /// Memory that it takes; its file's pages are there already, if somebody maps it. Models that aren't planned take their file's size.
    fn needed_bytes(&self, is_mapped: bool) -> u64 {
        match &self.memory {
            None => self.file_bytes,
            Some(memory) if is_mapped => memory.total_bytes().saturating_sub(memory.weights_bytes),
            Some(memory) => memory.total_bytes(),
        }
    }
}

/// Becomes the engine, on the public address.
///
/// # Errors
/// When it can't be planned, or not be executed; on success this doesn't return.
pub(crate) fn exec(settings: &Settings, env: &Environment) -> anyhow::Result<ExitCode> {
    let mut prepared = prepare(settings, env)?.ok_or(ExternalError::NothingToBecome)?;
    prepared.log(settings);
    let [host] = &settings.hosts.value[..] else {
        let found = settings.hosts.value.len();
        return Err(ExternalError::SeveralHosts { found }.into());
    };
    let port = settings.port.value.to_string();
    let address = ["--host", host, "--port", &port].map(OsString::from);
    prepared.launch.args.extend(address);
    if !settings.api_prefix.value.is_empty() {
        let flag = prepared.program.flag(&["--api-prefix"]);
        let args = flag.map(|flag| [flag, settings.api_prefix.value.as_str()].map(OsString::from));
        prepared.launch.args.extend(args.into_iter().flatten());
    }
    // Its descriptor has to be open until the program has read it.
    let _keys = hand_over_keys(&mut prepared, &settings.api_keys.value.0)?;
    tracing::info!("becoming {}", prepared.launch.line());
    Err(prepared.launch.exec())
}

/// One key goes by environment, several by a file that only exists in memory.
fn hand_over_keys(prepared: &mut Prepared, keys: &[String]) -> anyhow::Result<Option<OwnedFd>> {
    let program = &prepared.program;
    match keys {
        [] => Ok(None),
        [key] if program.key_variable => {
            let variable = ("LLAMA_API_KEY".into(), key.into());
            prepared.launch.env.push(variable);
            prepared
                .launch
                .removed_env
                .retain(|name| name != "LLAMA_API_KEY");
            Ok(None)
        }
        keys => {
            let Some(flag) = program.flag(&["--api-key-file"]) else {
                let path = program.path.clone();
                return Err(ExternalError::Keys { path }.into());
            };
            let memory = memfd_create("api-keys", MFdFlags::empty())
                .context("cannot hand the API keys over")?;
            let mut file = std::fs::File::from(memory);
            file.write_all(keys.join("\n").as_bytes())
                .context("cannot hand the API keys over")?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let args = [flag, path.as_str()].map(OsString::from);
            prepared.launch.args.extend(args);
            Ok(Some(file.into()))
        }
    }
}

/// The engines of the usual places, for `doctor`: path, and what it is or why it can't be used.
pub(crate) fn found_here(env: &Environment) -> Vec<String> {
    let describe = |path: PathBuf| match Program::probe(&path) {
        Ok(program) => program.describe(),
        Err(error) => format!("{}: {error}", path.display()),
    };
    find_all(env).into_iter().map(describe).collect()
}
