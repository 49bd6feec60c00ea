//! What the user wants: flags over environment over `bitnet.toml` over a tuned profile over defaults; every value remembers where
//! it came from. (`tune::profile` puts the profile's values in place of defaults.)
//!
//! All four sources are gathered as text under the names of [`keys::KEYS`] ([`Asked`]), then read into one typed
//! [`Settings`]. Reading touches the file system (model path, key and template files), nothing else.

mod asked;
mod external;
pub(crate) mod keys;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitnet_model::protocol::{
    Grammar, HeadMode, KvType, ModelSource, Overrides, Pooling, SamplerKind, SamplingParams,
    WeightsHome,
};

use bitnet_server::ApiKeys;

use crate::file_stamp::FileStamp;
use crate::host::CpuSet;
use asked::Asked;
pub(crate) use external::{EngineChoice, External, Said};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A command line flag, dashes included.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// The settings file.
    File(PathBuf),
    /// A tuned profile.
    Tuned,
    /// Nobody said anything.
    Default,
}

impl Source {
    fn rank(&self) -> u8 {
        match self {
            Source::Flag(_) => 0,
            Source::Environment(_) => 1,
            Source::File(_) => 2,
            Source::Tuned => 3,
            Source::Default => 4,
        }
    }

    /// Variables and flags are values, a file says them.
    fn verb(&self) -> &'static str {
        match self {
            Source::File(_) => "says",
            _ => "is",
        }
    }

    /// Comes at least as early in the order of precedence.
    pub(crate) fn wins_over(&self, other: &Source) -> bool {
        self.rank() <= other.rank()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => write!(f, "flag {name}"),
            Source::Environment(name) => write!(f, "environment {name}"),
            Source::File(path) => match path.file_name() {
                Some(name) => write!(f, "{}", name.to_string_lossy()),
                None => write!(f, "{}", path.display()),
            },
            Source::Tuned => f.write_str("tuned profile"),
            Source::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub source: Source,
}

impl<T> Setting<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Setting<U> {
        Setting {
            value: change(self.value),
            source: self.source,
        }
    }
}

/// Which kernel is wanted, as written: `i2_s`, `tl2`, `i2_s/avx2`.
pub(crate) type KernelName = String;

/// Where threads may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Affinity {
    /// Pin where it helps.
    Auto,
    /// Never pin.
    None,
    /// Pin to these CPUs.
    Cpus(CpuSet),
}

/// What becomes of a machine's nodes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numa {
    /// Threads evenly over all of them.
    Distribute,
    /// Threads on one.
    Isolate,
    /// Threads on the CPUs that `numactl` left.
    Numactl,
}

/// What the machine is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UseCase {
    /// More slots and larger prompt steps.
    HighPerformance,
    /// The default.
    Balanced,
    /// One slot with a short context.
    MemoryEfficient,
}

/// How large the model is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelSize {
    /// Under 10^9 parameters.
    Small,
    /// Under 4·10^9 parameters.
    Medium,
    /// More.
    Large,
}

/// What becomes of the server when its engines end again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashLoop {
    /// It says so.
    Stay,
    /// It ends.
    Exit,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Sampling defaults for requests that leave them out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sampling {
    /// Temperature.
    pub temperature: Setting<f32>,
    /// Candidates kept; 0 is all.
    pub top_k: Setting<u32>,
    /// Nucleus.
    pub top_p: Setting<f32>,
    /// Floor relative to the likeliest.
    pub min_p: Setting<f32>,
    /// Locally typical.
    pub typical_p: Setting<f32>,
    /// Tokens the penalties look back over; `u32::MAX` is the whole context.
    pub repeat_last_n: Setting<u32>,
    /// Penalty on repeated tokens.
    pub repeat_penalty: Setting<f32>,
    /// Penalty on used tokens.
    pub presence_penalty: Setting<f32>,
    /// Penalty by count.
    pub frequency_penalty: Setting<f32>,
    /// Dynamic temperature range.
    pub dynatemp_range: Setting<f32>,
    /// Dynamic temperature exponent.
    pub dynatemp_exponent: Setting<f32>,
    /// Top-n-sigma.
    pub top_n_sigma: Setting<f32>,
    /// XTC: how often, and from which probability on.
    pub xtc_probability: Setting<f32>,
    /// See above.
    pub xtc_threshold: Setting<f32>,
    /// DRY: strength, growth, what is free, and how far it looks back.
    pub dry_multiplier: Setting<f32>,
    /// See above.
    pub dry_base: Setting<f32>,
    /// See above.
    pub dry_allowed_length: Setting<u32>,
    /// See above.
    pub dry_penalty_last_n: Setting<u32>,
    /// DRY's sequence breakers.
    pub dry_sequence_breakers: Setting<Vec<String>>,
    /// Mirostat: version, target and rate.
    pub mirostat: Setting<u32>,
    /// See above.
    pub mirostat_tau: Setting<f32>,
    /// See above.
    pub mirostat_eta: Setting<f32>,
    /// Adaptive sampling: target and decay.
    pub adaptive_target: Setting<f32>,
    /// See above.
    pub adaptive_decay: Setting<f32>,
    /// What answers follow.
    pub grammar: Setting<Option<Grammar>>,
    /// Order of the chain.
    pub samplers: Setting<Vec<SamplerKind>>,
    /// Added to the logits of these tokens.
    pub logit_bias: Setting<Vec<(u32, f32)>>,
    /// Fixed seed; `None` draws one per request.
    pub seed: Setting<Option<u32>>,
    /// Never end by itself.
    pub ignore_eos: Setting<bool>,
}

impl Sampling {
    /// As the engine takes them; the seed is 0 where each request draws its own.
    pub(crate) fn params(&self) -> SamplingParams {
        SamplingParams {
            seed: self.seed.value.unwrap_or(0),
            temperature: self.temperature.value,
            dynatemp_range: self.dynatemp_range.value,
            dynatemp_exponent: self.dynatemp_exponent.value,
            top_k: self.top_k.value,
            top_p: self.top_p.value,
            min_p: self.min_p.value,
            typical_p: self.typical_p.value,
            repeat_last_n: self.repeat_last_n.value,
            repeat_penalty: self.repeat_penalty.value,
            frequency_penalty: self.frequency_penalty.value,
            presence_penalty: self.presence_penalty.value,
            logit_bias: self.logit_bias.value.clone(),
            ignore_eos: self.ignore_eos.value,
            samplers: self.samplers.value.clone(),
            top_n_sigma: self.top_n_sigma.value,
            xtc_probability: self.xtc_probability.value,
            xtc_threshold: self.xtc_threshold.value,
            dry_multiplier: self.dry_multiplier.value,
            dry_base: self.dry_base.value,
            dry_allowed_length: self.dry_allowed_length.value,
            dry_penalty_last_n: self.dry_penalty_last_n.value,
            dry_sequence_breakers: self.dry_sequence_breakers.value.clone(),
            mirostat: self.mirostat.value,
            mirostat_tau: self.mirostat_tau.value,
            mirostat_eta: self.mirostat_eta.value,
            adaptive_target: self.adaptive_target.value,
            adaptive_decay: self.adaptive_decay.value,
            grammar: self.grammar.value.clone(),
            ..SamplingParams::default()
        }
    }
}

/// Where HTTPS gets its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Certificates, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Everything the user can say, typed. `None` inside a [`Setting`] means automatic or absent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// Weights to serve.
    pub model: Setting<ModelSource>,
    /// Names shown to clients, best first; empty: the file's name.
    pub alias: Setting<Vec<String>>,
    /// Words that describe the model.
    pub tags: Setting<Vec<String>>,
    /// What the model should be.
    pub model_size: Setting<Option<ModelSize>>,
    /// Template name or Jinja text.
    pub chat_template: Setting<Option<String>>,
    /// System message of chats without one.
    pub system_prompt: Setting<Option<String>>,
    /// Answers to what the file leaves open.
    pub overrides: Overrides,
    /// Kernel wanted; `None` is automatic.
    pub kernel: Setting<Option<KernelName>>,
    /// Output head; `None` is automatic.
    pub head: Setting<Option<HeadMode>>,
    /// Guess tokens ahead.
    pub spec: Setting<bool>,
    /// Most tokens guessed ahead for a slot.
    pub draft_tokens: Setting<usize>,
    /// Home of the ternary weights; `None` is automatic.
    pub weights: Setting<Option<WeightsHome>>,
    /// Decode threads; `None` is automatic.
    pub threads: Setting<Option<usize>>,
    /// Prefill threads; `None` is automatic.
    pub threads_batch: Setting<Option<usize>>,
    /// Pinning.
    pub cpu_affinity: Setting<Affinity>,
    /// Nodes of memory; `None` is automatic.
    pub numa: Setting<Option<Numa>>,
    /// Nice value of the process that computes.
    pub nice: Setting<i32>,
    /// What for.
    pub use_case: Setting<UseCase>,
    /// Context in tokens; of each slot, or of all when `parallel` is set, too. 0 is all of the model's, `None` automatic.
    pub ctx_size: Setting<Option<usize>>,
    /// Slots; `None` is automatic.
    pub parallel: Setting<Option<usize>>,
    /// Prompt tokens per step; `None` is by use case.
    pub batch_size: Setting<Option<usize>>,
    /// KV cache element type.
    pub kv_type: Setting<KvType>,
    /// Another program as engine.
    pub external: External,
    /// Lock the weights.
    pub mlock: Setting<bool>,
    /// A server for each NUMA node.
    pub per_node: Setting<bool>,
    /// Memory to plan with at most, in bytes; `None`: what there is.
    pub memory_bytes: Setting<Option<u64>>,
    /// Measure before the first start with this model on this machine.
    pub tune: Setting<bool>,
    /// Plan anew when limits change.
    pub replan: Setting<bool>,
    /// Confine the engine process.
    pub sandbox: Setting<bool>,
    /// Shift a full context.
    pub context_shift: Setting<bool>,
    /// Variables added to every template.
    pub chat_template_kwargs: Setting<serde_json::Map<String, serde_json::Value>>,
    /// Continue a last assistant message.
    pub prefill_assistant: Setting<bool>,
    /// Thoughts go into `reasoning_content`.
    pub split_reasoning: Setting<bool>,
    /// Leave thoughts and tool calls in the text.
    pub skip_chat_parsing: Setting<bool>,
    /// Folder served in place of the page.
    pub static_path: Setting<Option<PathBuf>>,
    /// From vectors to an embedding; `None`: as the file says.
    pub pooling: Setting<Option<Pooling>>,
    /// Scale of embeddings.
    pub embd_normalize: Setting<i32>,
    /// Folder for saved slots, absolute.
    pub slot_save_path: Setting<Option<PathBuf>>,
    /// Addresses, host names or `.sock` paths to listen on; never empty.
    pub hosts: Setting<Vec<String>>,
    /// Port to listen on; 0 is any.
    pub port: Setting<u16>,
    /// Others may listen on the same port.
    pub reuse_port: Setting<bool>,
    /// Certificate and key files; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Keys of which a client must send one; empty: open.
    pub api_keys: Setting<ApiKeys>,
    /// Serve `/models` without a key.
    pub public_models: Setting<bool>,
    /// A client that takes no bytes for this long is gone.
    pub timeout: Setting<Duration>,
    /// Silence in a stream before a comment line.
    pub sse_ping: Setting<Duration>,
    /// Put before every route: empty, or `/…` without a slash at its end.
    pub api_prefix: Setting<String>,
    /// Origins whose pages may read answers; empty: any.
    pub cors_origins: Setting<Vec<String>>,
    /// Methods allowed to them.
    pub cors_methods: Setting<Option<String>>,
    /// Request headers allowed to them.
    pub cors_headers: Setting<Option<String>>,
    /// They may send credentials.
    pub cors_credentials: Setting<bool>,
    /// Serve the page at `/`.
    pub ui: Setting<bool>,
    /// Bound of the queue.
    pub max_queue: Setting<usize>,
    /// Port for HAProxy's agent check; 0 is any, `None` is none.
    pub agent_check_port: Setting<Option<u16>>,
    /// Answer tokens per second that have full weight among servers.
    pub full_speed_tok_s: Setting<f32>,
    /// Requests that have waited for a slot for this long are sent away; `None` is never.
    pub queue_timeout: Setting<Option<Duration>>,
    /// Largest request body, in bytes.
    pub max_body_bytes: Setting<usize>,
    /// At SIGTERM and `POST /drain`, time in which balancers are told and requests still taken.
    pub drain_notice: Setting<Duration>,
    /// Time for running answers after SIGTERM.
    pub drain_timeout: Setting<Duration>,
    /// An engine without progress for this long is replaced; `None` is automatic.
    pub hang_timeout: Setting<Option<Duration>>,
    /// When engines end again and again.
    pub crash_loop: Setting<CrashLoop>,
    /// A reload may leave a gap where memory is short.
    pub reload_gap: Setting<bool>,
    /// An engine without work for this long is ended; `None` is never.
    pub sleep_idle: Setting<Option<Duration>>,
    /// Serve `/metrics`.
    pub metrics: Setting<bool>,
    /// Serve `/slots`.
    pub slots: Setting<bool>,
    /// Serve POST `/props`.
    pub props: Setting<bool>,
    /// Most tokens of an answer; `None` is without limit.
    pub n_predict: Setting<Option<u32>>,
    /// Most tokens of an answer whatever the request says.
    pub max_tokens_cap: Setting<Option<u32>>,
    /// Text that ends an answer.
    pub stop: Setting<Vec<String>>,
    /// Show the text of control tokens.
    pub special: Setting<bool>,
    /// Reuse cached prefixes.
    pub cache_prompt: Setting<bool>,
    /// Prompt tokens kept at a context shift; -1 is all.
    pub keep: Setting<i64>,
    /// Sampling defaults.
    pub sampling: Sampling,
    /// Level of our log lines; `None`: `RUST_LOG`, else info.
    pub log_level: Setting<Option<tracing::level_filters::LevelFilter>>,
    /// Look of log lines.
    pub log_format: Setting<LogFormat>,
    /// Log file in place of standard error.
    pub log_file: Setting<Option<PathBuf>>,
    /// One line each for the log: settings accepted without effect, variables nobody reads.
    pub warnings: Vec<String>,
    /// One line each for the log: decisions made while reading, such as falling back to the demo model.
    pub notices: Vec<String>,
}

/// What was wrong with what the user said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// A value that can't be read.
    #[error("{source_} {} `{found}`, expected {expected}", source_.verb())]
    Bad {
        /// Who said so.
        source_: Source,
        /// What was said.
        found: String,
        /// What can be said.
        expected: String,
    },
    /// A file that can't be read.
    #[error("cannot read `{}` named by {source_}: {cause}", path.display())]
    Unreadable {
        /// Who named it.
        source_: Source,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// No such model.
    #[error("no model at `{}`, named by {source_}", path.display())]
    NoModel {
        /// Who named it.
        source_: Source,
        /// The path.
        path: PathBuf,
    },
    /// The name of a model that isn't on this machine.
    #[error("`{name}`, named by {source_}, is no file here and not in the cache")]
    NotPulled {
        /// Who named it.
        source_: Source,
        /// As it was typed.
        name: String,
    },
    /// A model in a form that can't be served yet.
    #[error("`{name}`, named by {source_}, is here as safetensors in `{}`, expected a GGUF file", directory.display())]
    NotConverted {
        /// Who named it.
        source_: Source,
        /// As it was typed.
        name: String,
        /// Where its files are.
        directory: PathBuf,
    },
    /// A directory without a model.
    #[error("no .gguf file in `{}`, named by {source_}", path.display())]
    EmptyDirectory {
        /// Who named it.
        source_: Source,
        /// The directory.
        path: PathBuf,
    },
    /// A directory with several models.
    #[error("{} .gguf files in `{}`, named by {source_}, expected one: {}", found.len(), path.display(), found.join(", "))]
    SeveralModels {
        /// Who named it.
        source_: Source,
        /// The directory.
        path: PathBuf,
        /// File names.
        found: Vec<String>,
    },
    /// The settings file isn't TOML or says what it can't.
    #[error("cannot read settings file `{}`: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why, in one line.
        cause: String,
    },
    /// A variable for something this program refuses to do.
    #[error("{source_} is set: {why}")]
    Refused {
        /// Who said so.
        source_: Source,
        /// Why not.
        why: &'static str,
    },
}

impl SettingsError {
    /// What to do next, if there is something.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            SettingsError::NoModel { path, .. } if path.to_string_lossy().contains('\u{fffd}') => {
                Some(
                    "paths here are UTF-8: give the file another name, or a link that has one"
                        .to_owned(),
                )
            }
            SettingsError::NoModel { .. } => {
                Some("leave the model out to serve the bundled demo model".to_owned())
            }
            SettingsError::NotPulled { name, .. } => {
                Some(format!("download it: `bitnet-launch pull {name}`"))
            }
            SettingsError::NotConverted { directory, .. } => Some(format!(
                "convert it: `bitnet-launch convert {} -o FILE.gguf`, and serve that file",
                directory.display()
            )),
            SettingsError::EmptyDirectory { .. } => {
                Some("put a GGUF file there, or name one with `--model FILE`".to_owned())
            }
            SettingsError::SeveralModels { path, found, .. } => Some(format!(
                "name one: `--model {}`",
                path.join(&found[0]).display()
            )),
            SettingsError::Refused { source_, .. } => Some(format!("remove {source_}")),
            SettingsError::Bad { .. }
            | SettingsError::Unreadable { .. }
            | SettingsError::File { .. } => None,
        }
    }
}

/// What the command line said: text under the names of [`keys::KEYS`], with the flag as typed.
#[derive(Clone, Default)]
pub(crate) struct Flags {
    /// (key, value, flag), in order; the last one of a key wins, lists gather.
    pub values: Vec<(&'static str, String, String)>,
    /// One line each about flags without effect.
    pub warnings: Vec<String>,
    /// Nothing may be downloaded.
    pub offline: bool,
}

/// Without the values: some are secrets.
impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.values.iter().map(|(_, _, flag)| flag))
            .finish()
    }
}

/// Which program is imitated: decides a few defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `bitnet-launch`: port 8081, metrics on.
    Launch,
    /// `llama-server`: port 8080, metrics off.
    LlamaServer,
}

/// Environment variables, by name.
pub(crate) type Environment = BTreeMap<String, String>;

/// This process's environment; variables that are not UTF-8 are read as if they were, with replacement characters.
pub(crate) fn environment() -> Environment {
    std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect()
}

/// What the settings are read from; all but the settings file stay what they were at the start.
#[derive(Clone)]
pub(crate) struct Sources {
    /// The command line.
    pub flags: Flags,
    /// The environment.
    pub env: Environment,
    /// Whose defaults.
    pub dialect: Dialect,
    /// The settings file before it was read for the first time.
    pub first_file: Option<FileStamp>,
}

impl Sources {
    /// Looks at the settings file, reads nothing yet.
    pub(crate) fn new(flags: Flags, env: Environment, dialect: Dialect) -> Sources {
        let mut sources = Sources {
            flags,
            env,
            dialect,
            first_file: None,
        };
        sources.first_file = sources.file();
        sources
    }

    /// Reads them all.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub(crate) fn read(&self) -> Result<Settings, SettingsError> {
        Settings::read(self.flags.clone(), &self.env, self.dialect)
    }

    /// The settings file that would be read now.
    pub(crate) fn file(&self) -> Option<FileStamp> {
        let mut asked = Asked::default();
        asked.add_environment(&self.env);
        asked.add_flags(self.flags.values.clone());
        let (path, _) = asked.config_file()?;
        FileStamp::look(&path).ok()
    }
}

impl Settings {
    /// Most tokens guessed ahead, 0 where none are.
    pub(crate) fn draft_max(&self) -> usize {
        match self.spec.value {
            true => self.draft_tokens.value,
            false => 0,
        }
    }

    /// Reads all sources.
    ///
    /// # Errors
    /// The first value that can't be read, naming its source.
    pub(crate) fn read(
        flags: Flags,
        env: &Environment,
        dialect: Dialect,
    ) -> Result<Settings, SettingsError> {
        let mut warnings = flags.warnings;
        let mut asked = Asked::default();
        asked.add_environment(env);
        asked.add_flags(flags.values);
        let config = asked.config_file();
        if let Some((path, required)) = config {
            asked.add_file(&path, required)?;
        }
        asked.judge_environment(env, &mut warnings)?;
        asked.into_settings(dialect, warnings, env)
    }

    /// The model file; `None` for the bundled demo model.
    pub(crate) fn model_path(&self) -> Option<&Path> {
        match &self.model.value {
            ModelSource::File(path) => Some(path),
            ModelSource::Demo => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
