//! Decides kernel, threads, placement and memory for one model on one machine. Pure: everything it knows is in its
//! arguments; every value carries the reason for it.
//!
//! Threads: one per physical core of the allowed CPUs, the fast cores of a hybrid machine for decoding, never more than
//! the CPU quota rounded down; of several NUMA nodes the one whose memory holds everything. Memory: weights, key/value cache, buffers and program must fit into what the machine and
//! the control groups leave; otherwise slots shrink first, then the context; values the user asked for are never changed
//! silently.

mod cpus;
mod memory;
mod reason;

use std::fmt;

use bitnet_kernels::Kernel;
use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::TensorType;
use bitnet_model::protocol::{EngineConfig, HeadMode, KvType, WeightsHome};
use bitnet_model::quantised::{self, HeadError};
use bitnet_model::{relocate, screening};

use crate::host::{CpuSet, Host};
use crate::settings::{ModelSize, Settings, Source, UseCase};
use cpus::{Cpus, choose_pin};
pub(crate) use memory::{MemoryPlan, budget, mb, program_bytes};
use memory::{
    SMALLEST_CONTEXT, Sizes, choose_slots, does_not_fit, head_copies_bytes, wanted_bytes,
};
pub(crate) use reason::Reason;

/// A decision and the reason for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice<T> {
    /// What was decided.
    pub value: T,
    /// Why.
    pub because: Reason,
}

impl<T> Choice<T> {
    fn new(value: T, because: Reason) -> Self {
        Choice { value, because }
    }
}

/// Everything the engine needs to be told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Kernel for all matrices.
    pub kernel: Choice<Kernel>,
    /// One decode thread for each of these logical CPUs, best first; never empty.
    pub decode_cpus: Choice<Vec<usize>>,
    /// One prefill thread for each; begins with `decode_cpus`.
    pub prefill_cpus: Choice<Vec<usize>>,
    /// Bind each thread to its CPU.
    pub pin: Choice<bool>,
    /// Requests at a time.
    pub slots: Choice<usize>,
    /// Tokens of context per slot.
    pub slot_context: Choice<usize>,
    /// Prompt tokens per step.
    pub prefill_batch: Choice<usize>,
    /// KV cache element type.
    pub kv_type: Choice<KvType>,
    /// Output head.
    pub head: Choice<HeadMode>,
    /// Home of the ternary weights.
    pub weights: Choice<WeightsHome>,
    /// Lock the weights.
    pub mlock: Choice<bool>,
    /// Where the memory goes.
    pub memory: MemoryPlan,
    /// What deserves the user's attention.
    pub warnings: Vec<Warning>,
}

/// Something to tell the user, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warning {
    /// What is the matter.
    pub what: String,
    /// What to do.
    pub todo: String,
}

impl Warning {
    /// Both are plain sentences without a full stop.
    pub(crate) fn new(what: impl Into<String>, todo: impl Into<String>) -> Warning {
        let (what, todo) = (what.into(), todo.into());
        Warning { what, todo }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.todo)
    }
}

/// What was asked for can't be done here.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum PlanError {
    /// No such kernel here.
    #[error("kernel `{asked}` ({source_}) can't run here, available: {}", available.join(", "))]
    Kernel {
        /// What was asked for.
        asked: String,
        /// By whom.
        source_: Source,
        /// What there is.
        available: Vec<String>,
    },
    /// CPUs outside the allowed set.
    #[error("CPUs {outside} ({source_}) are not available to this process, allowed: {allowed}")]
    Cpus {
        /// Asked for and not allowed.
        outside: CpuSet,
        /// By whom.
        source_: Source,
        /// What is allowed.
        allowed: CpuSet,
    },
    /// The context is too small to be of use.
    #[error("{tokens} tokens per slot ({source_}), expected at least {SMALLEST_CONTEXT}")]
    Context {
        /// Tokens per slot.
        tokens: usize,
        /// Who asked for the context.
        source_: Source,
    },
    /// The output head can't be quantised as asked.
    #[error("{why} ({source_})")]
    Head {
        /// What is in the way.
        why: HeadError,
        /// Who asked.
        source_: Source,
    },
    /// It doesn't fit.
    #[error("the model does not fit: {}", does_not_fit(memory))]
    Memory {
        /// The smallest plan tried.
        memory: Box<MemoryPlan>,
        /// What to change.
        todo: String,
    },
}

impl PlanError {
    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            PlanError::Kernel { .. } => Some("`--kernel auto` takes the best one".to_owned()),
            PlanError::Cpus { allowed, .. } => {
                Some(format!("`--cpu-affinity {allowed}`, or `auto`"))
            }
            PlanError::Context { .. } => {
                Some("raise `--ctx-size` or lower `--parallel`".to_owned())
            }
            PlanError::Head { why, .. } => Some(why.hint()),
            PlanError::Memory { todo, .. } => Some(todo.clone()),
        }
    }
}

/// Decides.
///
/// # Errors
/// When something asked for is impossible here, or the model doesn't fit into memory.
pub(crate) fn plan(
    host: &Host,
    facts: &ModelFacts,
    settings: &Settings,
) -> Result<Plan, PlanError> {
    let mut warnings = Vec::new();
    let kernel = choose_kernel(host, settings)?;
    let pin = choose_pin(host, settings);
    let prefill_batch = choose_batch(settings);
    let mut kv_type = choose_kv_type(settings);
    let mut head = choose_head(facts, settings, &mut warnings)?;
    let mut sizes = Sizes {
        facts,
        packing: kernel.value.packing(),
        kv_type: kv_type.value,
        head: head.value,
        batch: prefill_batch.value,
        threads: 1,
        budget: budget(host).map(|budget| budget.at_most(settings.memory_bytes.value)),
        copies_file: settings.weights.value == Some(WeightsHome::Copied),
    };
    let cpus = Cpus::new(host, settings, wanted_bytes(&sizes, settings), pin.value)?;
    let decode_cpus = cpus.decode(&settings.threads, &mut warnings);
    let prefill_cpus = cpus.prefill(&settings.threads_batch, &decode_cpus, &mut warnings);
    sizes.threads = prefill_cpus.value.len();
    let n_warnings = warnings.len();
    let mut room = choose_slots(&sizes, settings, &mut warnings);
    if settings.head.value.is_none() && head.value != HeadMode::Full && is_short(&room) {
        let mb = mb(head_copies_bytes(facts, head.value));
        head = Choice::new(HeadMode::Full, Reason::NoRoomForCopies { mb });
        sizes.head = HeadMode::Full;
        warnings.truncate(n_warnings);
        room = choose_slots(&sizes, settings, &mut warnings);
    }
    let is_full = matches!(room, Err(PlanError::Memory { .. }));
    if is_full && settings.kv_type.source == Source::Default {
        // A cache of half the size is the last resort: it may change what is answered.
        sizes.kv_type = KvType::Q8_0;
        room = choose_slots(&sizes, settings, &mut warnings).or(room);
        if room.is_ok() {
            kv_type = Choice::new(KvType::Q8_0, Reason::NoRoomForF16);
        }
    }
    let (slots, slot_context) = room?;
    warn_of_size(facts, settings, &mut warnings);
    let memory = sizes.memory(slots.value, slot_context.value);
    warn_of_lock(host, settings, &memory, &mut warnings);
    Ok(Plan {
        memory,
        kernel,
        decode_cpus,
        prefill_cpus,
        pin,
        slots,
        slot_context,
        prefill_batch,
        kv_type,
        head,
        weights: choose_weights(host, sizes.ternary_bytes(), settings),
        mlock: Choice::new(
            settings.mlock.value,
            Reason::of(&settings.mlock.source, Reason::Default),
        ),
        warnings,
    })
}

/// Threads and their places, for an engine that decides the rest itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placement {
    /// One decode thread for each of these logical CPUs, best first; never empty.
    pub decode_cpus: Choice<Vec<usize>>,
    /// One prefill thread for each; begins with `decode_cpus`.
    pub prefill_cpus: Choice<Vec<usize>>,
    /// Keep the threads on these CPUs.
    pub pin: Choice<bool>,
    /// What deserves the user's attention.
    pub warnings: Vec<Warning>,
}

/// Decides threads and their places for a model that takes `needed_bytes`.
///
/// # Errors
/// When what was asked for is impossible here.
pub(crate) fn place(
    host: &Host,
    needed_bytes: u64,
    settings: &Settings,
) -> Result<Placement, PlanError> {
    let mut warnings = Vec::new();
    let pin = choose_pin(host, settings);
    let cpus = Cpus::new(host, settings, needed_bytes, pin.value)?;
    let decode_cpus = cpus.decode(&settings.threads, &mut warnings);
    let prefill_cpus = cpus.prefill(&settings.threads_batch, &decode_cpus, &mut warnings);
    Ok(Placement {
        decode_cpus,
        prefill_cpus,
        pin,
        warnings,
    })
}

/// The best kernel, or the one asked for: exactly, or the best for a packing.
fn choose_kernel(host: &Host, settings: &Settings) -> Result<Choice<Kernel>, PlanError> {
    let Some(asked) = &settings.kernel.value else {
        let automatic = Reason::BestKernel {
            of: host.kernels.len(),
            cpu: host.cpu.model.clone(),
        };
        return Ok(Choice::new(host.kernels[0], automatic));
    };
    let source = &settings.kernel.source;
    let named = host
        .kernels
        .iter()
        .find(|kernel| kernel.to_string() == *asked || kernel.packing().to_string() == *asked);
    match named {
        Some(kernel) => Ok(Choice::new(*kernel, Reason::asked(source))),
        None => Err(PlanError::Kernel {
            asked: asked.clone(),
            source_: source.clone(),
            available: host.kernels.iter().map(Kernel::to_string).collect(),
        }),
    }
}

/// Weights from which on the head is worth copying.
const LARGE_HEAD_WEIGHTS: usize = 16_000_000;

/// Screened when it is large and not quantised, which changes nothing that comes out; quantised only when somebody asks for it.
fn choose_head(
    facts: &ModelFacts,
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> Result<Choice<HeadMode>, PlanError> {
    let ty = facts.head_type;
    let is_float = matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16);
    let can_screen = is_float && screening::fits(facts.n_embd);
    let source = &settings.head.source;
    let refused = |why| PlanError::Head {
        why,
        source_: source.clone(),
    };
    let asked = settings.head.value;
    let target = asked.map(|mode| quantised::target(facts, mode));
    let target = target.transpose().map_err(refused)?.flatten();
    Ok(match asked {
        Some(mode) if target.is_some() => Choice::new(mode, Reason::OtherHead(source.clone())),
        Some(mode) if can_screen || mode == HeadMode::Full => {
            Choice::new(mode, Reason::asked(source))
        }
        Some(_) => {
            warnings.push(Warning::new(
                format!("this model's output head of {ty} can't be screened ({source})"),
                "it is read in full, with the same results; say `--head full`",
            ));
            Choice::new(HeadMode::Full, Reason::HeadNotScreened { ty })
        }
        None if !can_screen => Choice::new(HeadMode::Full, Reason::HeadNotScreened { ty }),
        None if facts.n_vocab * facts.n_embd < LARGE_HEAD_WEIGHTS => {
            Choice::new(HeadMode::Full, Reason::SmallHead)
        }
        None => {
            let mb = mb(facts.head_bytes);
            Choice::new(HeadMode::Exact, Reason::LargeHead { mb })
        }
    })
}

/// Moved into huge pages where that makes decoding faster and nobody prefers the smallest footprint.
fn choose_weights(host: &Host, bytes: u64, settings: &Settings) -> Choice<WeightsHome> {
    let has_huge_pages = host.memory.huge_pages.as_deref();
    match settings.weights.value {
        Some(home) => Choice::new(home, Reason::AskedFor(settings.weights.source.clone())),
        None if settings.use_case.value == UseCase::MemoryEfficient => {
            let because = Reason::of_use_case(&settings.use_case);
            Choice::new(WeightsHome::Mapped, because)
        }
        None if bytes < relocate::WORTH_BYTES => {
            Choice::new(WeightsHome::Mapped, Reason::SmallWeights)
        }
        None if has_huge_pages.is_none_or(|mode| mode == "never") => {
            Choice::new(WeightsHome::Mapped, Reason::NoHugePages)
        }
        None => {
            let mb = mb(bytes);
            Choice::new(WeightsHome::HugePages, Reason::LargeWeights { mb })
        }
    }
}

/// Less than wanted, or nothing at all.
fn is_short(room: &Result<(Choice<usize>, Choice<usize>), PlanError>) -> bool {
    let is_cut = |choice: &Choice<usize>| matches!(choice.because, Reason::FitsMemory { .. });
    match room {
        Ok((slots, context)) => is_cut(slots) || is_cut(context),
        Err(error) => matches!(error, PlanError::Memory { .. }),
    }
}

fn choose_kv_type(settings: &Settings) -> Choice<KvType> {
    let setting = &settings.kv_type;
    match (&setting.source, settings.use_case.value) {
        (Source::Default, UseCase::MemoryEfficient) => {
            Choice::new(KvType::Q8_0, Reason::of_use_case(&settings.use_case))
        }
        (source, _) => Choice::new(setting.value, Reason::of(source, Reason::Default)),
    }
}

/// More than the system lets this process lock.
fn warn_of_lock(
    host: &Host,
    settings: &Settings,
    memory: &MemoryPlan,
    warnings: &mut Vec<Warning>,
) {
    let wanted = memory.weights_bytes + memory.head_copies_bytes;
    let Some(limit) = host.memory.lock_limit_bytes.filter(|limit| *limit < wanted) else {
        return;
    };
    if settings.mlock.value {
        warnings.push(Warning::new(
            format!(
                "{} MB are to be locked ({}), and this process may lock {} MB",
                mb(wanted),
                settings.mlock.source,
                mb(limit)
            ),
            "raise the limit with `ulimit -l unlimited`, `--ulimit memlock=-1` or LimitMEMLOCK=infinity",
        ));
    }
}

fn choose_batch(settings: &Settings) -> Choice<usize> {
    let use_case = &settings.use_case;
    let automatic = match use_case.value {
        UseCase::HighPerformance => 512,
        UseCase::Balanced => 128,
        UseCase::MemoryEfficient => 64,
    };
    match settings.batch_size.value {
        Some(batch) => Choice::new(batch, Reason::asked(&settings.batch_size.source)),
        None => Choice::new(automatic, Reason::of_use_case(use_case)),
    }
}

fn warn_of_size(facts: &ModelFacts, settings: &Settings, warnings: &mut Vec<Warning>) {
    let size = match facts.n_params {
        0..1_000_000_000 => ModelSize::Small,
        1_000_000_000..4_000_000_000 => ModelSize::Medium,
        _ => ModelSize::Large,
    };
    if let Some(said) = settings.model_size.value
        && said != size
    {
        let label = facts.size_label();
        let (said, size) = (
            format!("{said:?}").to_lowercase(),
            format!("{size:?}").to_lowercase(),
        );
        warnings.push(Warning::new(
            format!(
                "the model is {size} ({label} parameters), not {said} ({})",
                settings.model_size.source
            ),
            "the file decides; say `auto`",
        ));
    }
}

impl Plan {
    /// Decode threads.
    pub(crate) fn threads(&self) -> usize {
        self.decode_cpus.value.len()
    }

    /// What the engine is told, in its own words.
    pub(crate) fn engine_config(&self, settings: &Settings) -> EngineConfig {
        EngineConfig {
            model: settings.model.value.clone(),
            kernel: self.kernel.value.to_string(),
            decode_cpus: self.decode_cpus.value.clone(),
            prefill_cpus: self.prefill_cpus.value.clone(),
            pin: self.pin.value,
            slots: self.slots.value,
            slot_context: self.slot_context.value,
            prefill_batch: self.prefill_batch.value,
            kv_type: self.kv_type.value,
            head: self.head.value,
            draft_max: settings.draft_max(),
            weights: self.weights.value,
            mlock: self.mlock.value,
            overrides: settings.overrides.clone(),
        }
    }

    /// The plan for the log, one decision with its reason per line.
    pub(crate) fn lines(&self) -> Vec<String> {
        let kernel = self.kernel.value;
        let decode: CpuSet = self.decode_cpus.value.iter().copied().collect();
        let prefill: CpuSet = self.prefill_cpus.value.iter().copied().collect();
        let begins = |because: &Reason, automatic: &'static str, asked: &'static str| match because
            .is_asked()
        {
            true => asked,
            false => automatic,
        };
        vec![
            format!(
                "{}: {} ({}; {})",
                begins(
                    &self.kernel.because,
                    "Auto-selected kernel",
                    "Selected kernel"
                ),
                kernel.packing(),
                kernel.isa(),
                self.kernel.because
            ),
            format!(
                "{}: {} ({})",
                begins(
                    &self.decode_cpus.because,
                    "Auto-configured threads",
                    "Selected threads"
                ),
                self.threads(),
                self.decode_cpus.because
            ),
            format!(
                "Threads for prompts: {} ({})",
                self.prefill_cpus.value.len(),
                self.prefill_cpus.because
            ),
            match self.pin.value {
                true if decode == prefill => {
                    format!("Pinned to CPUs {decode} ({})", self.pin.because)
                }
                true => format!(
                    "Pinned to CPUs {decode}, for prompts {prefill} ({})",
                    self.pin.because
                ),
                false => format!("Not pinned ({})", self.pin.because),
            },
            format!(
                "Slots: {} ({}) of {} tokens ({})",
                self.slots.value,
                self.slots.because,
                self.slot_context.value,
                self.slot_context.because
            ),
            format!(
                "Prompt step: {} tokens ({})",
                self.prefill_batch.value, self.prefill_batch.because
            ),
            format!(
                "Output head: {} ({})",
                self.head.value.name(),
                self.head.because
            ),
            format!(
                "Weights: {} ({})",
                weights_name(self.weights.value),
                self.weights.because
            ),
            format!("Memory: {}", self.memory),
        ]
    }
}

/// Its name as a setting.
pub(crate) fn weights_name(home: WeightsHome) -> &'static str {
    match home {
        WeightsHome::HugePages => "huge_pages",
        WeightsHome::Mapped => "mapped",
        WeightsHome::Copied => "copied",
    }
}

#[cfg(test)]
mod tests;
