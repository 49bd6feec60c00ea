//! Decides kernel, threads, placement and memory for one model on one machine. Pure: everything it knows is in its
//! arguments; every value carries the reason for it.
//!
//! Threads: one per physical core of the allowed CPUs, the fast cores of a hybrid machine for decoding, never more than
//! the CPU quota rounded down. Memory: weights, key/value cache, buffers and program must fit into what the machine and
//! the control groups leave; otherwise slots shrink first, then the context; values the user asked for are never changed
//! silently.

mod reason;

use std::fmt;
use std::path::PathBuf;

use bitnet_kernels::Kernel;
use bitnet_model::facts::ModelFacts;
use bitnet_model::protocol::{EngineConfig, KvType};

use crate::host::topology::{CoreKind, LogicalCpu};
use crate::host::{CpuSet, Host};
use crate::settings::{Affinity, ModelSize, Setting, Settings, Source, UseCase};
pub(crate) use reason::Reason;

/// Tokens of context a slot gets at most when nobody asks for more.
const SLOT_CONTEXT: usize = 4096;
/// Contexts are shrunk in steps of this many tokens, down to one step.
const CONTEXT_STEP: usize = 256;
/// A slot with fewer tokens than this can't hold a question and an answer.
const SMALLEST_CONTEXT: usize = 16;
/// Both processes without model and vocabulary.
const PROGRAM_BYTES: u64 = 40 * MB;
/// Tokenizer and its tables, per token of the vocabulary.
const VOCABULARY_ENTRY_BYTES: u64 = 700;
/// Share of the memory left to others, and its bounds.
const HEADROOM_DIVISOR: u64 = 20;
const HEADROOM_BYTES: std::ops::RangeInclusive<u64> = 16 * MB..=512 * MB;
const MB: u64 = 1 << 20;

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
    /// Lock the weights.
    pub mlock: Choice<bool>,
    /// Where the memory goes.
    pub memory: MemoryPlan,
    /// What deserves the user's attention.
    pub warnings: Vec<Warning>,
}

/// Where the memory goes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// All weights.
    pub weights_bytes: u64,
    /// Key/value cache of all slots, full.
    pub kv_bytes: u64,
    /// Activations, logits, attention scores.
    pub buffers_bytes: u64,
    /// Both processes, tokenizer included.
    pub program_bytes: u64,
    /// What there is; `None` if the machine doesn't say.
    pub budget: Option<Budget>,
}

impl MemoryPlan {
    /// All of it.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_bytes + self.buffers_bytes + self.program_bytes
    }

    fn fits(&self) -> bool {
        self.budget
            .as_ref()
            .is_none_or(|budget| self.total_bytes() <= budget.bytes)
    }
}

/// Memory this program may plan with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Bytes, headroom taken off.
    pub bytes: u64,
    /// Bytes left to others.
    pub headroom_bytes: u64,
    /// The limit's file; `None`: the machine's available memory.
    pub limit: Option<PathBuf>,
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
            PlanError::Memory { todo, .. } => Some(todo.clone()),
        }
    }
}

fn does_not_fit(memory: &MemoryPlan) -> String {
    let budget = memory.budget.as_ref().map_or(0, |budget| budget.bytes);
    format!(
        "{} MB needed ({} weights + {} key/value cache + {} buffers + {} program), {} MB available{}",
        mb(memory.total_bytes()),
        mb(memory.weights_bytes),
        mb(memory.kv_bytes),
        mb(memory.buffers_bytes),
        mb(memory.program_bytes),
        mb(budget),
        match memory
            .budget
            .as_ref()
            .and_then(|budget| budget.limit.as_ref())
        {
            Some(at) => format!(" under the limit in {}", at.display()),
            None => String::new(),
        }
    )
}

/// Megabytes, rounded up.
pub(crate) fn mb(bytes: u64) -> u64 {
    bytes.div_ceil(MB)
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
    let kernel = choose_kernel(host, settings, &mut warnings)?;
    let cpus = Cpus::new(host, settings)?;
    let decode_cpus = cpus.decode(&settings.threads, &mut warnings);
    let prefill_cpus = cpus.prefill(&settings.threads_batch, &decode_cpus, &mut warnings);
    let pin = choose_pin(host, settings);
    let prefill_batch = choose_batch(settings);
    let kv_type = Choice::new(
        settings.kv_type.value,
        Reason::of(&settings.kv_type.source, Reason::Default),
    );
    let sizes = Sizes {
        facts,
        kv_type: kv_type.value,
        batch: prefill_batch.value,
        threads: prefill_cpus.value.len(),
        budget: budget(host),
    };
    let (slots, slot_context) = choose_slots(&sizes, settings, &mut warnings)?;
    warn_of_size(facts, settings, &mut warnings);
    Ok(Plan {
        memory: sizes.memory(slots.value, slot_context.value),
        kernel,
        decode_cpus,
        prefill_cpus,
        pin,
        slots,
        slot_context,
        prefill_batch,
        kv_type,
        mlock: Choice::new(
            settings.mlock.value,
            Reason::of(&settings.mlock.source, Reason::Default),
        ),
        warnings,
    })
}

/// The best kernel, or the one asked for. A TL packing asked for by the environment and missing here is replaced: old
/// compose files set `BITNET_KERNEL`, and all packings give the same bits.
fn choose_kernel(
    host: &Host,
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> Result<Choice<Kernel>, PlanError> {
    let best = host.kernels[0];
    let automatic = Reason::BestKernel {
        of: host.kernels.len(),
        cpu: host.cpu.model.clone(),
    };
    let Some(asked) = &settings.kernel.value else {
        return Ok(Choice::new(best, automatic));
    };
    let source = &settings.kernel.source;
    let named = host
        .kernels
        .iter()
        .find(|kernel| kernel.to_string() == *asked || kernel.packing().to_string() == *asked);
    if let Some(kernel) = named {
        return Ok(Choice::new(*kernel, Reason::AskedFor(source.clone())));
    }
    let lookup_table = asked.starts_with("tl");
    if lookup_table && matches!(source, Source::Environment(_)) {
        warnings.push(Warning::new(
            format!("kernel `{asked}` ({source}) is not in this build"),
            format!("`{best}` is used in its place, with bit-identical results; unset the variable or say `auto`"),
        ));
        return Ok(Choice::new(best, automatic));
    }
    Err(PlanError::Kernel {
        asked: asked.clone(),
        source_: source.clone(),
        available: host.kernels.iter().map(Kernel::to_string).collect(),
    })
}

/// The allowed CPUs, ranked, and the bound on how many may be kept busy.
struct Cpus {
    /// One per physical core, fast cores first; empty if nothing is known.
    performance: Vec<usize>,
    efficiency: Vec<usize>,
    /// Second and further logical CPUs of the cores above.
    siblings: Vec<usize>,
    quota: Option<(usize, String)>,
    asked: Option<Source>,
}

impl Cpus {
    fn new(host: &Host, settings: &Settings) -> Result<Cpus, PlanError> {
        let allowed = host.allowed_cpus();
        let mut asked = None;
        let set = match (&settings.cpu_affinity.value, allowed) {
            (Affinity::Cpus(wanted), Some(allowed)) => {
                let outside = wanted.difference(&allowed);
                let source_ = settings.cpu_affinity.source.clone();
                if !outside.is_empty() {
                    return Err(PlanError::Cpus {
                        outside,
                        source_,
                        allowed,
                    });
                }
                asked = Some(source_);
                wanted.clone()
            }
            (Affinity::Cpus(wanted), None) => wanted.clone(),
            (_, allowed) => allowed.unwrap_or_default(),
        };
        let quota = host.limits.quota.as_ref();
        let mut cpus = Cpus {
            performance: Vec::new(),
            efficiency: Vec::new(),
            siblings: Vec::new(),
            quota: quota.map(|quota| (quota.threads(), quota.to_string())),
            asked,
        };
        cpus.rank(host, &set);
        Ok(cpus)
    }

    fn rank(&mut self, host: &Host, set: &CpuSet) {
        let known = host.topology.cpus.iter().filter(|cpu| set.contains(cpu.id));
        let mut ranked: Vec<&LogicalCpu> = known.collect();
        ranked.sort_by_key(|cpu| (std::cmp::Reverse(cpu.capacity), cpu.id));
        let mut cores = std::collections::BTreeSet::new();
        for cpu in &ranked {
            match (cores.insert(cpu.core()), cpu.kind) {
                (false, _) => self.siblings.push(cpu.id),
                (true, CoreKind::Performance) => self.performance.push(cpu.id),
                (true, CoreKind::Efficiency) => self.efficiency.push(cpu.id),
            }
        }
        if ranked.is_empty() {
            self.performance.extend(set.iter());
        }
    }

    fn all(&self) -> Vec<usize> {
        [&self.performance[..], &self.efficiency, &self.siblings].concat()
    }

    /// One thread per fast physical core, within the quota.
    fn decode(
        &self,
        asked: &Setting<Option<usize>>,
        warnings: &mut Vec<Warning>,
    ) -> Choice<Vec<usize>> {
        if let Some(threads) = asked.value {
            return self.asked_for(threads, &asked.source, warnings);
        }
        match (self.performance.is_empty(), self.efficiency.is_empty()) {
            (false, false) => self.within_quota(
                self.performance.clone(),
                Reason::PerformanceCores {
                    of_cores: self.performance.len() + self.efficiency.len(),
                },
            ),
            _ => self.within_quota(self.cores(), self.one_per_core()),
        }
    }

    /// One thread per physical core of either kind, within the quota; at least the decode threads.
    fn prefill(
        &self,
        asked: &Setting<Option<usize>>,
        decode: &Choice<Vec<usize>>,
        warnings: &mut Vec<Warning>,
    ) -> Choice<Vec<usize>> {
        let least = decode.value.len();
        let mut choice = match asked.value {
            Some(threads) if threads < least => {
                warnings.push(Warning::new(
                    format!(
                        "{threads} threads for prompts ({}) are fewer than the {least} for tokens",
                        asked.source
                    ),
                    format!("{least} are used; lower `--threads` as well"),
                ));
                return decode.clone();
            }
            Some(threads) => self.asked_for(threads, &asked.source, warnings),
            None if matches!(
                decode.because,
                Reason::AskedFor(_) | Reason::AllAllowed { .. }
            ) =>
            {
                return decode.clone();
            }
            None => self.within_quota(self.cores(), self.one_per_core()),
        };
        if choice.value.len() < least {
            return decode.clone();
        }
        let others = choice
            .value
            .iter()
            .filter(|cpu| !decode.value.contains(cpu));
        let room = choice.value.len() - least;
        choice.value = decode
            .value
            .iter()
            .chain(others.take(room))
            .copied()
            .collect();
        choice
    }

    fn cores(&self) -> Vec<usize> {
        [&self.performance[..], &self.efficiency].concat()
    }

    fn one_per_core(&self) -> Reason {
        match (&self.asked, self.cores().is_empty()) {
            (_, true) => Reason::NothingKnown,
            (asked, false) => Reason::OnePerCore {
                logical: self.all().len(),
                within: asked.clone(),
            },
        }
    }

    fn within_quota(&self, mut cpus: Vec<usize>, because: Reason) -> Choice<Vec<usize>> {
        if cpus.is_empty() {
            return Choice::new(vec![0], Reason::NothingKnown);
        }
        match &self.quota {
            Some((threads, quota)) if *threads < cpus.len() => {
                let cores = cpus.len();
                cpus.truncate(*threads);
                let quota = quota.clone();
                Choice::new(cpus, Reason::QuotaLimits { quota, cores })
            }
            _ => Choice::new(cpus, because),
        }
    }

    /// What was asked for, as far as there are CPUs: two busy threads on one CPU only slow each other down.
    fn asked_for(
        &self,
        threads: usize,
        source: &Source,
        warnings: &mut Vec<Warning>,
    ) -> Choice<Vec<usize>> {
        let mut cpus = self.all();
        if cpus.is_empty() {
            return Choice::new((0..threads).collect(), Reason::AskedFor(source.clone()));
        }
        if threads > cpus.len() {
            let count = cpus.len();
            warnings.push(Warning::new(
                format!("{threads} threads ({source}) are more than the {count} CPUs allowed"),
                format!("{count} are used; ask for at most that many, or `auto`"),
            ));
            let asked = threads;
            let source = source.clone();
            return Choice::new(cpus, Reason::AllAllowed { asked, source });
        }
        if let Some((limit, quota)) = &self.quota
            && threads > *limit
        {
            warnings.push(Warning::new(
                format!("{threads} threads ({source}) under a quota of {quota} will be throttled"),
                format!("`auto` takes {limit}"),
            ));
        }
        cpus.truncate(threads);
        Choice::new(cpus, Reason::AskedFor(source.clone()))
    }
}

/// Pinning keeps threads off each other's cores, but two programs pinned to the same CPU halve each other: only CPUs
/// that are likely ours alone are pinned to, and never under a quota, where the scheduler needs room to move.
fn choose_pin(host: &Host, settings: &Settings) -> Choice<bool> {
    let asked = Reason::AskedFor(settings.cpu_affinity.source.clone());
    match &settings.cpu_affinity.value {
        Affinity::Cpus(_) => return Choice::new(true, asked),
        Affinity::None => return Choice::new(false, asked),
        Affinity::Auto => {}
    }
    if let Some(quota) = &host.limits.quota {
        let quota = quota.to_string();
        return Choice::new(false, Reason::QuotaMoves { quota });
    }
    match (host.allowed_cpus(), host.topology.online()) {
        (Some(allowed), Some(online)) if allowed.len() < online.len() => {
            let allowed = allowed.to_string();
            Choice::new(true, Reason::GivenSet { allowed })
        }
        (Some(_), Some(_)) => match &host.container {
            Some(mark) => Choice::new(false, Reason::SharedWithContainers { mark: mark.clone() }),
            None => Choice::new(true, Reason::WholeMachine),
        },
        _ => Choice::new(false, Reason::NothingKnown),
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
        Some(batch) => Choice::new(batch, Reason::AskedFor(settings.batch_size.source.clone())),
        None => Choice::new(automatic, Reason::of_use_case(use_case)),
    }
}

/// Sizes in bytes that depend on slots and context.
struct Sizes<'a> {
    facts: &'a ModelFacts,
    kv_type: KvType,
    batch: usize,
    threads: usize,
    budget: Option<Budget>,
}

impl Sizes<'_> {
    fn memory(&self, slots: usize, slot_context: usize) -> MemoryPlan {
        let facts = self.facts;
        let positions = (slots * slot_context) as u64;
        let activations = self.batch * (8 * facts.n_embd + 4 * facts.n_ff);
        let logits = (slots + 1) * facts.n_vocab;
        let scores = self.threads * facts.n_head * slot_context;
        MemoryPlan {
            weights_bytes: facts.weight_bytes + facts.dense_bytes() + facts.vector_bytes,
            kv_bytes: positions * facts.kv_bytes_per_token(self.kv_type),
            buffers_bytes: ((activations + logits + scores) * size_of::<f32>()) as u64,
            program_bytes: PROGRAM_BYTES + facts.n_vocab as u64 * VOCABULARY_ENTRY_BYTES,
            budget: self.budget.clone(),
        }
    }

    fn fits(&self, slots: usize, slot_context: usize) -> bool {
        self.memory(slots, slot_context).fits()
    }
}

/// The tighter of the machine's available memory and the control groups' limits, less headroom.
fn budget(host: &Host) -> Option<Budget> {
    let available = host.memory.available_bytes.or(host.memory.total_bytes);
    let limit = host.limits.memory.as_ref();
    let (bytes, limit) = match (available, limit) {
        (Some(available), Some(limit)) if limit.bytes <= available => {
            (limit.bytes, Some(limit.at.clone()))
        }
        (None, Some(limit)) => (limit.bytes, Some(limit.at.clone())),
        (Some(available), _) => (available, None),
        (None, None) => return None,
    };
    let headroom_bytes =
        (bytes / HEADROOM_DIVISOR).clamp(*HEADROOM_BYTES.start(), *HEADROOM_BYTES.end());
    Some(Budget {
        bytes: bytes.saturating_sub(headroom_bytes),
        headroom_bytes,
        limit,
    })
}

/// Slots shrink first, then the context; only values nobody asked for.
fn choose_slots(
    sizes: &Sizes<'_>,
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> Result<(Choice<usize>, Choice<usize>), PlanError> {
    let mut slots = wanted_slots(settings);
    let mut context = wanted_context(sizes.facts, settings, warnings)?;
    let (wanted_slots, wanted_context) = (slots.value, context.value);
    if settings.parallel.value.is_none() {
        while slots.value > 1 && !sizes.fits(slots.value, context.value) {
            slots.value -= 1;
        }
    }
    if settings.ctx_size.value.is_none() {
        while context.value > CONTEXT_STEP && !sizes.fits(slots.value, context.value) {
            context.value = (context.value - 1) / CONTEXT_STEP * CONTEXT_STEP;
        }
    }
    let memory = sizes.memory(slots.value, context.value);
    if !memory.fits() {
        let todo = what_to_change(settings);
        let memory = Box::new(memory);
        return Err(PlanError::Memory { memory, todo });
    }
    let budget_mb = memory.budget.as_ref().map_or(0, |budget| mb(budget.bytes));
    for (choice, wanted) in [(&mut slots, wanted_slots), (&mut context, wanted_context)] {
        if choice.value < wanted {
            choice.because = Reason::FitsMemory { wanted, budget_mb };
        }
    }
    Ok((slots, context))
}

fn wanted_slots(settings: &Settings) -> Choice<usize> {
    let automatic = match settings.use_case.value {
        UseCase::HighPerformance => 8,
        UseCase::Balanced => 4,
        UseCase::MemoryEfficient => 1,
    };
    match settings.parallel.value {
        Some(slots) => Choice::new(slots, Reason::AskedFor(settings.parallel.source.clone())),
        None => Choice::new(automatic, Reason::of_use_case(&settings.use_case)),
    }
}

/// Tokens per slot. `--ctx-size` with `--parallel` is the sum over all slots, as in llama-server.
fn wanted_context(
    facts: &ModelFacts,
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> Result<Choice<usize>, PlanError> {
    let model = facts.context_length;
    let source = &settings.ctx_size.source;
    let Some(asked) = settings.ctx_size.value else {
        let cap = match settings.use_case.value {
            UseCase::MemoryEfficient => 2048,
            UseCase::HighPerformance | UseCase::Balanced => SLOT_CONTEXT,
        };
        let because = match model > cap {
            true => Reason::Capped { model },
            false => Reason::ModelContext,
        };
        return Ok(Choice::new(model.min(cap), because));
    };
    let tokens = asked / settings.parallel.value.unwrap_or(1);
    if tokens < SMALLEST_CONTEXT {
        let source_ = source.clone();
        return Err(PlanError::Context { tokens, source_ });
    }
    if tokens > model {
        warnings.push(Warning::new(
            format!(
                "a context of {tokens} tokens per slot ({source}) is more than the model's {model}"
            ),
            format!("{model} are used, since beyond them the text falls apart"),
        ));
        return Ok(Choice::new(model, Reason::ModelContext));
    }
    let because = match settings.parallel.value {
        Some(slots) => Reason::SharedContext {
            asked,
            slots,
            source: source.clone(),
        },
        None => Reason::AskedFor(source.clone()),
    };
    Ok(Choice::new(tokens, because))
}

fn what_to_change(settings: &Settings) -> String {
    let mut changes = Vec::new();
    if settings.parallel.value.is_some() {
        changes.push(format!("lower the slots ({})", settings.parallel.source));
    }
    if settings.ctx_size.value.is_some() {
        changes.push(format!("lower the context ({})", settings.ctx_size.source));
    }
    if settings.batch_size.value.is_some_and(|batch| batch > 512) {
        changes.push(format!("lower the batch ({})", settings.batch_size.source));
    }
    if settings.kv_type.value == KvType::F32 {
        changes.push("use `--kv-type f16`".to_owned());
    }
    changes.push("free memory, raise the container's limit, or use a smaller model".to_owned());
    changes.join("; ")
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
            format!("Memory: {}", self.memory),
        ]
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MB at most ({} weights + {} key/value cache + {} buffers + {} program) of ",
            mb(self.total_bytes()),
            mb(self.weights_bytes),
            mb(self.kv_bytes),
            mb(self.buffers_bytes),
            mb(self.program_bytes),
        )?;
        match &self.budget {
            None => f.write_str("an unknown amount"),
            Some(Budget { bytes, limit, .. }) => match limit {
                Some(at) => write!(f, "{} MB under the limit in {}", mb(*bytes), at.display()),
                None => write!(f, "{} MB available", mb(*bytes)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
