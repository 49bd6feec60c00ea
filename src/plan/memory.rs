//! How many slots of what context fit into memory.

use std::fmt;
use std::path::PathBuf;

use bitnet_kernels::Packing;
use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::TensorType;
use bitnet_model::graph::PREFILL_PART;
use bitnet_model::protocol::{HeadMode, KvType};
use bitnet_model::{quantised, screening};

use super::{Choice, PlanError, Reason, Warning};
use crate::host::Host;
use crate::settings::{Settings, UseCase};

/// Tokens of context a slot gets at most when nobody asks for more.
const SLOT_CONTEXT: usize = 4096;
/// Contexts are shrunk in steps of this many tokens, down to one step.
const CONTEXT_STEP: usize = 256;
/// A slot with fewer tokens than this can't hold a question and an answer.
pub(super) const SMALLEST_CONTEXT: usize = 16;
/// Both processes without model and vocabulary.
const PROGRAM_BYTES: u64 = 40 * MB;
/// Tokenizer and its tables, per token of the vocabulary: twice what a vocabulary of 128,256 takes.
const VOCABULARY_ENTRY_BYTES: u64 = 300;
/// Share of the memory left to others, and its bounds.
const HEADROOM_DIVISOR: u64 = 20;
const HEADROOM_BYTES: std::ops::RangeInclusive<u64> = 16 * MB..=512 * MB;
const MB: u64 = 1 << 20;

/// Where the memory goes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// All weights.
    pub weights_bytes: u64,
    /// Copies of the output head: to screen it, or one that takes its place.
    pub head_copies_bytes: u64,
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
        self.weights_bytes
            + self.head_copies_bytes
            + self.kv_bytes
            + self.buffers_bytes
            + self.program_bytes
    }

    fn parts(&self) -> String {
        let copies = match self.head_copies_bytes {
            0 => String::new(),
            bytes => format!(" + {} copies of the output head", mb(bytes)),
        };
        format!(
            "{} weights{copies} + {} key/value cache + {} buffers + {} program",
            mb(self.weights_bytes),
            mb(self.kv_bytes),
            mb(self.buffers_bytes),
            mb(self.program_bytes),
        )
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

impl Budget {
    /// No more than was asked for.
    pub(super) fn at_most(self, asked_bytes: Option<u64>) -> Budget {
        match asked_bytes {
            Some(bytes) if bytes < self.bytes => Budget {
                bytes,
                limit: None,
                ..self
            },
            _ => self,
        }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MB at most ({}) of ",
            mb(self.total_bytes()),
            self.parts(),
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

pub(super) fn does_not_fit(memory: &MemoryPlan) -> String {
    let budget = memory.budget.as_ref().map_or(0, |budget| budget.bytes);
    format!(
        "{} MB needed ({}), {} MB available{}",
        mb(memory.total_bytes()),
        memory.parts(),
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

/// Sizes in bytes that depend on slots and context.
pub(super) struct Sizes<'a> {
    pub(super) facts: &'a ModelFacts,
    pub(super) packing: Packing,
    pub(super) kv_type: KvType,
    pub(super) head: HeadMode,
    pub(super) batch: usize,
    pub(super) threads: usize,
    pub(super) budget: Option<Budget>,
    /// The file is copied whole into memory.
    pub(super) copies_file: bool,
}

impl Sizes<'_> {
    pub(super) fn memory(&self, slots: usize, slot_context: usize) -> MemoryPlan {
        let facts = self.facts;
        let positions = (slots * slot_context) as u64;
        let activations = self.batch * (8 * facts.n_embd + 4 * facts.n_ff);
        let logits = (slots + 1) * facts.n_vocab;
        let scores = self.threads * facts.n_head * slot_context;
        // Parts of two products in each thread.
        let parts = self.threads * self.batch * 2 * facts.n_ff.min(PREFILL_PART);
        MemoryPlan {
            head_copies_bytes: head_copies_bytes(facts, self.head),
            // The file's pages that a copy was made from are given back.
            weights_bytes: self.ternary_bytes()
                + facts.dense_bytes()
                + facts.vector_bytes
                + self.unused_copy_bytes(),
            kv_bytes: positions * facts.kv_bytes_per_token(self.kv_type),
            buffers_bytes: ((activations + logits + scores + parts) * size_of::<f32>()) as u64,
            program_bytes: program_bytes(facts.n_vocab as u64),
            budget: self.budget.clone(),
        }
    }

    /// Of a copied file, the matrices that were packed anew stay in memory.
    fn unused_copy_bytes(&self) -> u64 {
        let is_used = self.packing == Packing::I2S && self.facts.ternary_type == TensorType::I2S;
        match self.copies_file && !is_used {
            true => self.facts.weight_bytes,
            false => 0,
        }
    }

    /// Bytes of the ternary matrices.
    pub(super) fn ternary_bytes(&self) -> u64 {
        self.facts.ternary_bytes(self.packing)
    }

    fn fits(&self, slots: usize, slot_context: usize) -> bool {
        self.memory(slots, slot_context).fits()
    }
}

/// Bytes of both processes without weights, for a vocabulary of this many tokens.
pub(crate) fn program_bytes(n_vocab: u64) -> u64 {
    PROGRAM_BYTES + n_vocab * VOCABULARY_ENTRY_BYTES
}

/// Bytes of the copies that screen the output head, or of the one that takes its place. The file's own head is counted all the same: its pages
/// are given back, but rows of a tied one come in again.
pub(super) fn head_copies_bytes(facts: &ModelFacts, head: HeadMode) -> u64 {
    match head {
        HeadMode::Full => 0,
        HeadMode::Exact | HeadMode::Proven => screening::bytes(facts.n_vocab, facts.n_embd),
        HeadMode::Q8_0 | HeadMode::Q6_K => quantised::bytes(facts, head),
    }
}

/// The tighter of the machine's available memory and the control groups' limits, less headroom.
pub(crate) fn budget(host: &Host) -> Option<Budget> {
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
pub(super) fn choose_slots(
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

/// What it would take with all that is wanted, as far as it can be said before anything is chosen.
pub(super) fn wanted_bytes(sizes: &Sizes<'_>, settings: &Settings) -> u64 {
    let slots = wanted_slots(settings).value;
    let context = wanted_context(sizes.facts, settings, &mut Vec::new());
    let context = context.map_or(sizes.facts.context_length, |context| context.value);
    sizes.memory(slots, context).total_bytes()
}

fn wanted_slots(settings: &Settings) -> Choice<usize> {
    let automatic = match settings.use_case.value {
        UseCase::HighPerformance => 8,
        UseCase::Balanced => 4,
        UseCase::MemoryEfficient => 1,
    };
    match settings.parallel.value {
        Some(slots) => Choice::new(slots, Reason::asked(&settings.parallel.source)),
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
    if asked == 0 {
        return Ok(Choice::new(model, Reason::asked(source)));
    }
    let tokens = asked / settings.parallel.value.unwrap_or(1);
    if tokens < SMALLEST_CONTEXT {
        let source_ = source.clone();
        return Err(PlanError::Context { tokens, source_ });
    }
    let reach = match settings.overrides.rope_freq_base {
        // Who changes the base does it to go further.
        Some(_) => usize::MAX,
        None => (model as f64 / f64::from(facts.rope.freq_scale.min(1.0))) as usize,
    };
    if tokens > reach {
        warnings.push(Warning::new(
            format!(
                "a context of {tokens} tokens per slot ({source}) is more than the model's {reach}"
            ),
            format!(
                "{reach} are used, since beyond them the text falls apart; `--rope-freq-scale` stretches positions"
            ),
        ));
        return Ok(Choice::new(reach, Reason::ModelContext));
    }
    let because = match settings.parallel.value {
        Some(slots) => Reason::SharedContext {
            asked,
            slots,
            source: source.clone(),
        },
        None => Reason::asked(source),
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
    if settings
        .head
        .value
        .is_some_and(|head| head != HeadMode::Full)
    {
        changes.push("use `--head full`".to_owned());
    }
    match settings.kv_type.value {
        KvType::F32 => changes.push("use `--kv-type f16`".to_owned()),
        KvType::F16 => changes.push("use `--kv-type q8_0`".to_owned()),
        KvType::Q8_0 => {}
    }
    changes.push("free memory, raise the container's limit, or use a smaller model".to_owned());
    changes.join("; ")
}
