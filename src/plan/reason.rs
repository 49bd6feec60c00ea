//! Why a value was chosen, as data and in words.

use std::fmt;

use bitnet_model::gguf::TensorType;

use crate::settings::{Setting, Source, UseCase};

/// Why a value was chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reason {
    /// The user said so.
    AskedFor(Source),
    /// Measured to be the fastest here.
    Tuned,
    /// Nobody said anything and nothing speaks against it.
    Default,
    /// By the use case.
    UseCase(UseCase),
    /// First in the list of kernels.
    BestKernel {
        /// Kernels this CPU runs.
        of: usize,
        /// The CPU's name.
        cpu: Option<String>,
    },
    /// One thread per physical core.
    OnePerCore {
        /// Logical CPUs allowed.
        logical: usize,
        /// Who narrowed the set.
        within: Option<Source>,
    },
    /// One thread per physical core of one NUMA node.
    OneNode {
        /// Which.
        node: usize,
        /// Nodes there are.
        of: usize,
    },
    /// Only the fast cores of a hybrid machine.
    PerformanceCores {
        /// Physical cores allowed.
        of_cores: usize,
    },
    /// The CPU quota, rounded down.
    QuotaLimits {
        /// The quota.
        quota: String,
        /// Physical cores that could be used.
        cores: usize,
    },
    /// More were asked for than there are.
    AllAllowed {
        /// Asked for.
        asked: usize,
        /// By whom.
        source: Source,
    },
    /// A quota needs room to move.
    QuotaMoves {
        /// The quota.
        quota: String,
    },
    /// The CPUs are a part of the machine set aside for this process.
    GivenSet {
        /// Which.
        allowed: String,
    },
    /// All CPUs, but others may be on them.
    SharedWithContainers {
        /// What says that this is a container.
        mark: String,
    },
    /// All CPUs of a machine without containers in between.
    WholeMachine,
    /// The machine doesn't say.
    NothingKnown,
    /// The model's own context.
    ModelContext,
    /// Less than the model's context, to save memory.
    Capped {
        /// The model's context.
        model: usize,
    },
    /// A total shared by all slots.
    SharedContext {
        /// The total.
        asked: usize,
        /// Slots.
        slots: usize,
        /// Who asked for the total.
        source: Source,
    },
    /// Reading it for every token would take long.
    LargeHead {
        /// As stored.
        mb: u64,
    },
    /// Reading it for every token takes little.
    SmallHead,
    /// Screening would not read less.
    HeadNotScreened {
        /// How it is stored.
        ty: TensorType,
    },
    /// The user said so, and gets what the file's own head might not give.
    OtherHead(Source),
    /// Copies of the head would not fit into memory beside everything else.
    NoRoomForCopies {
        /// They would take.
        mb: u64,
    },
    /// Reading them page by page would take long.
    LargeWeights {
        /// Packed.
        mb: u64,
    },
    /// Their page tables fit the caches.
    SmallWeights,
    /// The system gives no huge pages to those who ask.
    NoHugePages,
    /// A cache of twice the size would not fit, however few its tokens.
    NoRoomForF16,
    /// More would not fit into memory.
    FitsMemory {
        /// What would have been taken.
        wanted: usize,
        /// Memory to plan with.
        budget_mb: u64,
    },
}

impl Reason {
    /// The user, or this reason if the value is a default.
    pub(super) fn of(source: &Source, otherwise: Reason) -> Reason {
        match source {
            Source::Default => otherwise,
            source => Reason::asked(source),
        }
    }

    /// By the user, or by a tuned profile.
    pub(super) fn asked(source: &Source) -> Reason {
        match source {
            Source::Tuned => Reason::Tuned,
            source => Reason::AskedFor(source.clone()),
        }
    }

    pub(super) fn of_use_case(use_case: &Setting<UseCase>) -> Reason {
        match use_case.source {
            Source::Default => Reason::Default,
            _ => Reason::UseCase(use_case.value),
        }
    }

    /// The user asked for the value, or for one near it.
    pub(crate) fn is_asked(&self) -> bool {
        matches!(
            self,
            Reason::AskedFor(_) | Reason::AllAllowed { .. } | Reason::OtherHead(_)
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::AskedFor(source) => write!(f, "{source}"),
            Reason::Tuned => f.write_str("tuned on this machine"),
            Reason::Default => f.write_str("default"),
            Reason::UseCase(UseCase::HighPerformance) => f.write_str("use case high_performance"),
            Reason::UseCase(UseCase::Balanced) => f.write_str("use case balanced"),
            Reason::UseCase(UseCase::MemoryEfficient) => f.write_str("use case memory_efficient"),
            Reason::BestKernel { of, cpu } => {
                write!(
                    f,
                    "best of {of} on {}",
                    cpu.as_deref().unwrap_or("this CPU")
                )
            }
            Reason::OnePerCore { logical, within } => {
                write!(f, "one per physical core, {logical} logical CPUs allowed")?;
                within
                    .iter()
                    .try_for_each(|source| write!(f, " by {source}"))
            }
            Reason::OneNode { node, of } => {
                write!(
                    f,
                    "one per physical core of NUMA node {node} of {of}, whose memory holds all"
                )
            }
            Reason::PerformanceCores { of_cores } => {
                write!(
                    f,
                    "one per performance core, {of_cores} physical cores allowed"
                )
            }
            Reason::QuotaLimits { quota, cores } => {
                write!(
                    f,
                    "CPU quota of {quota}, rounded down; {cores} physical cores allowed"
                )
            }
            Reason::AllAllowed { asked, source } => {
                write!(f, "all CPUs allowed; {asked} asked for by {source}")
            }
            Reason::QuotaMoves { quota } => {
                write!(f, "under a CPU quota of {quota} the scheduler needs room")
            }
            Reason::GivenSet { allowed } => {
                write!(f, "CPUs {allowed} are set aside for this process")
            }
            Reason::SharedWithContainers { mark } => {
                write!(
                    f,
                    "in a container ({mark}) with every CPU: others may run on them"
                )
            }
            Reason::WholeMachine => f.write_str("the whole machine, no quota"),
            Reason::NothingKnown => f.write_str("the machine does not say more"),
            Reason::ModelContext => f.write_str("the model's context"),
            Reason::Capped { model } => {
                write!(f, "the model's {model} capped; `--ctx-size` raises it")
            }
            Reason::SharedContext {
                asked,
                slots,
                source,
            } => {
                write!(f, "{asked} shared by {slots} slots, {source}")
            }
            Reason::LargeHead { mb } => write!(f, "a head of {mb} MB"),
            Reason::SmallHead => f.write_str("a small head"),
            Reason::HeadNotScreened { ty } => write!(f, "a head of {ty} can't be screened"),
            Reason::OtherHead(source) => {
                write!(
                    f,
                    "{source}; tokens may differ from those of the file's own head"
                )
            }
            Reason::NoRoomForCopies { mb } => {
                write!(f, "{mb} MB of copies would not fit into memory")
            }
            Reason::LargeWeights { mb } => write!(f, "{mb} MB are read for every token"),
            Reason::SmallWeights => f.write_str("small weights"),
            Reason::NoHugePages => f.write_str("the system has no transparent huge pages"),
            Reason::NoRoomForF16 => f.write_str("f16 would not fit into memory"),
            Reason::FitsMemory { wanted, budget_mb } => {
                write!(f, "{wanted} would not fit into {budget_mb} MB")
            }
        }
    }
}
