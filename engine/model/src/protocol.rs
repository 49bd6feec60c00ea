//! What the server process and the engine process say to each other: length-prefixed JSON frames over one byte stream.
//!
//! The engine speaks token ids only; text, templates and stop strings are the server's. A request is resumable by
//! construction: sampling depends on (seed, absolute position), the tokens before it and [`Carried`], so `prompt + tokens produced
//! so far` submitted to a fresh engine continues with the same tokens.
//!
//! Frame: u32 little-endian byte length, then that many bytes of UTF-8 JSON. At most [`MAX_FRAME_BYTES`].

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::convert::lookup::Tiles;

/// Longest frame either side accepts, in bytes.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// Most numbers in one `FromEngine::Embedding`; at 17 characters each they are far from filling a frame.
pub const EMBEDDING_PART_VALUES: usize = 1 << 20;

/// Where the weights come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// A GGUF file on disk.
    File(PathBuf),
    /// The model embedded in the binary.
    Demo,
}

/// Storage type of the key/value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(non_camel_case_types)]
pub enum KvType {
    /// 2 bytes per value.
    F16,
    /// 4 bytes per value.
    F32,
    /// 34 bytes per 32 values: int8 with a scale.
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl KvType {
    /// Bytes of `head_dim` values.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvType::F16 => head_dim * 2,
            KvType::F32 => head_dim * 4,
            KvType::Q8_0 => head_dim.div_ceil(32) * 34,
        }
    }

    /// Its name in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
            KvType::Q8_0 => "q8_0",
        }
    }
}

/// How the output head finds the best tokens. By the first three tokens and logits are the same (see `screening`), by the others
/// they are those of another head (see `quantised`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(non_camel_case_types)]
pub enum HeadMode {
    /// Reads the whole head for every token.
    Full,
    /// Screens by 4-bit copies within 8 standard deviations.
    Exact,
    /// Screens by 8-bit copies within bounds that always hold.
    Proven,
    /// Rounds the head to 8 bits at the start, and reads all of that for every token.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Rounds the head to 6 bits.
    #[serde(rename = "q6_k")]
    Q6_K,
}

impl HeadMode {
    /// Its name in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            HeadMode::Full => "full",
            HeadMode::Exact => "exact",
            HeadMode::Proven => "proven",
            HeadMode::Q8_0 => "q8_0",
            HeadMode::Q6_K => "q6_k",
        }
    }
}

/// Where the ternary weights lie while they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsHome {
    /// Moved into huge pages after the start, a few milliseconds at a time.
    HugePages,
    /// In the mapped file (I2_S), or where they were packed.
    Mapped,
    /// In memory of the engine's own, into which the whole file is read at the start.
    Copied,
}

/// Answers to questions the file leaves open or gets wrong; `None` follows the file and the rules of `facts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Overrides {
    /// `relu2` or `silu`, where the architecture string cannot be trusted.
    pub activation: Option<Activation>,
    /// Use `output.weight` (true) or the token embedding (false) as output head.
    pub untied_head: Option<bool>,
    /// Pre-tokenizer name in place of `tokenizer.ggml.pre`.
    pub pre_tokenizer: Option<String>,
    /// RoPE base frequency in place of the file's.
    pub rope_freq_base: Option<f32>,
    /// Positions are multiplied by this, in place of what the file says: 0.5 doubles the reach.
    #[serde(default)]
    pub rope_freq_scale: Option<f32>,
    /// Keys of the file with other values, or keys that it lacks; of several for one key the last counts.
    #[serde(default)]
    pub keys: Vec<KeyOverride>,
    /// Tile sizes of TL1 and TL2 matrices, which their files don't name.
    #[serde(default)]
    pub lookup_tiles: Vec<Tiles>,
}

/// A key of the model file, and its value in place of the file's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyOverride {
    /// Such as `tokenizer.ggml.add_bos_token`.
    pub key: String,
    /// Of the kind that the file has there.
    pub value: KeyValue,
}

/// What can be put in place of a key's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyValue {
    /// For integers of any length.
    Int(i64),
    /// For f32 and f64; finite.
    Float(f64),
    /// For bools.
    Bool(bool),
    /// For strings.
    Str(String),
}

/// Gate activation of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// relu(x)^2
    Relu2,
    /// x * sigmoid(x)
    Silu,
    /// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
    Gelu,
}

/// Everything an engine needs to start; the first frame it reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineConfig {
    /// Weights to load.
    pub model: ModelSource,
    /// Kernel by name, as `Kernel::from_str` reads it, for example `i2_s/avx2`.
    pub kernel: String,
    /// Logical CPUs of the decode threads, one thread each; pinned when `pin`.
    pub decode_cpus: Vec<usize>,
    /// Logical CPUs of the prefill threads; a superset of or equal to `decode_cpus`.
    pub prefill_cpus: Vec<usize>,
    /// Bind each thread to its CPU.
    pub pin: bool,
    /// Sequences decoded at the same time.
    pub slots: usize,
    /// Tokens each slot's KV cache holds.
    pub slot_context: usize,
    /// Most prompt tokens evaluated in one step.
    pub prefill_batch: usize,
    /// KV cache element type.
    pub kv_type: KvType,
    /// Output head.
    pub head: HeadMode,
    /// Most tokens that are guessed ahead in a slot, from n-grams of its own text, to be checked in one step; 0: none.
    #[serde(default)]
    pub draft_max: usize,
    /// Home of the ternary weights.
    pub weights: WeightsHome,
    /// Lock the weights in memory.
    pub mlock: bool,
    /// Overrides of what the file says.
    pub overrides: Overrides,
}

/// Sampling parameters as llama-server defines them (server-api facts, part B); defaults are llama-server's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Always concrete: the server draws one when the client does not choose.
    pub seed: u32,
    /// 0 or less is greedy.
    pub temperature: f32,
    /// Width of the entropy-driven temperature range, 0 = off.
    pub dynatemp_range: f32,
    /// Exponent of the dynamic temperature.
    pub dynatemp_exponent: f32,
    /// 0 = whole vocabulary.
    pub top_k: u32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// 1 = off.
    pub typical_p: f32,
    /// Standard deviations below the best logit that stay; 0 or less = off.
    pub top_n_sigma: f32,
    /// How often the likeliest are excluded, 0 = off.
    pub xtc_probability: f32,
    /// Probability from which a token counts as likely; above 0.5 = off.
    pub xtc_threshold: f32,
    /// Strength of the penalty on continued repetitions, 0 = off.
    pub dry_multiplier: f32,
    /// What each further token of a repetition multiplies it by; below 1 = off.
    pub dry_base: f32,
    /// Longest repetition that costs nothing.
    pub dry_allowed_length: u32,
    /// Tokens it looks back over, prompt included; 0 = off, `u32::MAX` the whole context.
    pub dry_penalty_last_n: u32,
    /// Texts that no repetition reaches across.
    pub dry_sequence_breakers: Vec<String>,
    /// 0 = off, 1 or 2: the version, which takes the place of the chain.
    pub mirostat: u32,
    /// Surprise it aims at, in bits.
    pub mirostat_tau: f32,
    /// How fast it corrects itself.
    pub mirostat_eta: f32,
    /// Probability that chosen tokens should have on average; negative = off. It counts where `samplers` name
    /// [`SamplerKind::AdaptiveP`].
    pub adaptive_target: f32,
    /// How much the tokens before count, 0 to 0.99.
    pub adaptive_decay: f32,
    /// Tokens the penalties look back over, prompt included; 0 = off.
    pub repeat_last_n: u32,
    /// 1 = off.
    pub repeat_penalty: f32,
    /// 0 = off.
    pub frequency_penalty: f32,
    /// 0 = off.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens; negative infinity is sent as `f32::MIN`.
    pub logit_bias: Vec<(u32, f32)>,
    /// Never sample an end-of-generation token.
    pub ignore_eos: bool,
    /// Report the chosen token's log-probability and this many alternatives; 0 = none.
    pub n_probs: u32,
    /// Samplers that cut candidates keep at least this many.
    pub min_keep: u32,
    /// Report probabilities after the sampler chain instead of raw log-softmax.
    pub post_sampling_probs: bool,
    /// Order of the chain; unknown samplers never get here.
    pub samplers: Vec<SamplerKind>,
    /// What the answer must look like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grammar: Option<Grammar>,
}

/// A rule for the text of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grammar {
    /// The rule.
    pub text: GrammarText,
    /// `None`: from the first token. Otherwise the answer is free until a trigger comes up, and from its first byte on it
    /// follows the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggers: Option<Triggers>,
}

/// A rule in one of the languages that are understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrammarText {
    /// llama.cpp's, start rule `root`.
    Gbnf(String),
    /// A JSON schema, as JSON text: any JSON value that fits it.
    JsonSchema(String),
    /// llguidance's variant of Lark, start rule `start`.
    Lark(String),
}

/// What sets a grammar in motion.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Triggers {
    /// Texts, wherever they begin; none is empty.
    pub words: Vec<String>,
    /// Tokens.
    pub tokens: Vec<u32>,
}

/// A stage of the sampler chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Repeat, frequency and presence penalties.
    Penalties,
    /// Keep the k best.
    TopK,
    /// Penalty on continued repetitions ("don't repeat yourself").
    Dry,
    /// Keep what lies within some standard deviations of the best logit.
    TopNSigma,
    /// Locally typical sampling.
    TypP,
    /// Nucleus sampling.
    TopP,
    /// Relative probability floor.
    MinP,
    /// Exclude the likeliest, now and then.
    Xtc,
    /// Divide by the temperature.
    Temperature,
    /// Prefer tokens near a probability; wherever it stands, it comes last.
    AdaptiveP,
}

/// Samplers by name, the one shown first, and by their letter in llama-server's `--sampling-seq`.
const SAMPLERS: &[(SamplerKind, &[&str], char)] = &[
    (SamplerKind::Penalties, &["penalties"], 'e'),
    (SamplerKind::Dry, &["dry"], 'd'),
    (SamplerKind::TopNSigma, &["top_n_sigma"], 's'),
    (SamplerKind::TopK, &["top_k"], 'k'),
    (
        SamplerKind::TypP,
        &["typ_p", "typical_p", "typical", "typ"],
        'y',
    ),
    (SamplerKind::TopP, &["top_p", "nucleus"], 'p'),
    (SamplerKind::MinP, &["min_p"], 'm'),
    (SamplerKind::Xtc, &["xtc"], 'x'),
    (SamplerKind::Temperature, &["temperature", "temp"], 't'),
    (SamplerKind::AdaptiveP, &["adaptive_p"], 'a'),
];

impl SamplerKind {
    /// The sampler of this name, in snake, kebab or run-together case.
    pub fn by_name(name: &str) -> Option<Self> {
        let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
        let is_it = |names: &[&str]| names.iter().any(|known| plain(known) == plain(name));
        let found = SAMPLERS.iter().find(|(_, names, _)| is_it(names));
        found.map(|(kind, ..)| *kind)
    }

    /// The sampler of this letter.
    pub fn by_letter(letter: char) -> Option<Self> {
        let found = SAMPLERS.iter().find(|(.., known)| *known == letter);
        found.map(|(kind, ..)| *kind)
    }

    /// Its name in `generation_settings`.
    pub fn name(self) -> &'static str {
        let found = SAMPLERS.iter().find(|(kind, ..)| *kind == self);
        found.map_or("", |(_, names, _)| names[0])
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            seed: 0,
            temperature: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            adaptive_target: -1.0,
            adaptive_decay: 0.9,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            ignore_eos: false,
            n_probs: 0,
            min_keep: 0,
            post_sampling_probs: false,
            samplers: vec![
                SamplerKind::Penalties,
                SamplerKind::Dry,
                SamplerKind::TopNSigma,
                SamplerKind::TopK,
                SamplerKind::TypP,
                SamplerKind::TopP,
                SamplerKind::MinP,
                SamplerKind::Xtc,
                SamplerKind::Temperature,
            ],
            grammar: None,
        }
    }
}

/// One generation, as the engine sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submit {
    /// Chosen by the server, unique for the life of the server process.
    pub id: u64,
    /// Prompt, followed by the tokens already produced when this is a continuation; never empty.
    pub tokens: Vec<u32>,
    /// Stop with `Finish::Limit` after this many new tokens; 0 evaluates the prompt only.
    pub max_tokens: u32,
    /// End-of-generation tokens; sampled ones are reported, then the sequence is done with `Finish::Eos`.
    pub eog_tokens: Vec<u32>,
    /// Reuse the longest cached prefix.
    pub cache_prompt: bool,
    /// Slot to use, if that one is wanted.
    pub slot: Option<usize>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// State of the sampler that `tokens` don't tell.
    #[serde(default)]
    pub carried: Carried,
    /// Report how likely each prompt token but the first is, with this many alternatives. Nothing cached is reused then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_probs: Option<u32>,
    /// Most tokens guessed ahead; `None`: as the engine is configured, which no request exceeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft_max: Option<usize>,
}

/// How the vectors of a text's tokens become its embedding; numbers as in GGUF's `pooling_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// 0: one vector per token.
    None,
    /// 1: their mean.
    Mean,
    /// 2: the first token's.
    Cls,
    /// 3: the last token's.
    Last,
}

/// One text to embed. Vectors come behind the last norm, as they are: scaling them to a length is the server's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embed {
    /// Chosen by the server, unique among generations and embeddings.
    pub id: u64,
    /// Never empty; all are evaluated, whatever the cache holds.
    pub tokens: Vec<u32>,
    /// `None`: as the model's file says, the last token where it doesn't.
    pub pooling: Option<Pooling>,
    /// Slot to use, if that one is wanted.
    pub slot: Option<usize>,
}

/// Work on the cache of one slot; it waits until the slot is idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotAction {
    /// Writes the slot's tokens, keys and values to this file, which is replaced when all is written.
    Save(PathBuf),
    /// Replaces the slot's content with a file's.
    Restore(PathBuf),
    /// Forgets the slot's content.
    Erase,
}

/// What became of a [`SlotAction`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SlotReport {
    /// Tokens saved, restored or erased.
    pub n_tokens: usize,
    /// Length of the file; 0 for `Erase`.
    pub n_bytes: u64,
    /// Milliseconds of work, waiting for the slot not counted.
    pub ms: f64,
}

/// Why a [`SlotAction`] was not done; the slot's file is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotFault {
    /// The client's mistake: no such slot, no such file, a file that is damaged or belongs to another model.
    Refused(String),
    /// Ours: no space, no permission, an engine that ended.
    Failed(String),
}
/// What a continuation needs beside prompt, tokens and seed. Empty for a new generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Carried {
    /// All tokens of the answer so far, those that left the window included; only needed with a grammar.
    pub answer: Vec<u32>,
    /// As the last [`FromEngine::Token`] had it.
    pub mirostat_mu: Option<MirostatMu>,
}

/// Mirostat's running limit of surprise, or adaptive sampling's running sum (no request has both), as the bits of an f32:
/// numbers in text may come back as others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MirostatMu(pub u32);

/// Server to engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToEngine {
    /// First frame: load and get ready.
    Start(Box<EngineConfig>),
    /// Begin a generation; answered by events with its id.
    Submit(Box<Submit>),
    /// Embed a text; answered by `Prefill`s, `Embedding`s and `Done` with its id.
    Embed(Box<Embed>),
    /// Forget a generation or an embedding; answered by `Done` with `Finish::Cancelled` unless it ended before.
    Cancel {
        /// Which one.
        id: u64,
    },
    /// Save, restore or erase a slot; answered by `Slot`.
    Slot {
        /// Chosen by the server, unique among slot actions.
        id: u64,
        /// Slot number.
        slot: usize,
        /// What to do.
        action: SlotAction,
    },
}

/// How a token came out of a step that checked guesses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Draft {
    /// With the first token of a step: tokens that were guessed for it.
    pub n: u32,
    /// Place among the tokens of the step. Each but the first tells that another guess was right.
    pub place: u32,
}

impl Draft {
    fn is_none(&self) -> bool {
        *self == Draft::default()
    }
}

/// Engine to server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromEngine {
    /// Loaded, self-test passed, waiting for work.
    Ready {
        /// Milliseconds since the engine read its configuration.
        load_ms: f64,
    },
    /// Everything that makes later steps faster has been done; sent once, at the first idle moment after that.
    Settled,
    /// The model can't be loaded; the engine exits after this.
    Failed {
        /// One line, with the chain of causes.
        message: String,
        /// What to do, if there is something.
        hint: Option<String>,
    },
    /// Prompt progress: first event of a generation (`processed == cached`), then one per prefill step.
    Prefill {
        /// The generation.
        id: u64,
        /// Slot it runs in.
        slot: usize,
        /// Tokens in all.
        total: usize,
        /// Tokens found in the cache.
        cached: usize,
        /// Tokens in the KV cache now, cached ones included.
        processed: usize,
        /// Milliseconds since the first prefill step of this generation began.
        ms: f64,
        /// CPU time of the engine for this generation so far, see `scheduler`; `None` where the system doesn't tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpu_ms: Option<f64>,
    },
    /// How likely tokens of the prompt are, where `Submit::prompt_probs` asks; all of them come before the first `Token`.
    PromptProbs {
        /// The generation.
        id: u64,
        /// Place in the prompt of the first of these tokens, from 1.
        first: usize,
        /// One for each of them.
        probs: Vec<TokenProbs>,
    },
    /// One sampled token.
    Token {
        /// The generation.
        id: u64,
        /// Its id.
        token: u32,
        /// When asked for.
        probs: Option<TokenProbs>,
        /// With mirostat or adaptive sampling: its state after this token, to be carried by a continuation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mirostat_mu: Option<MirostatMu>,
        /// With speculation.
        #[serde(default, skip_serializing_if = "Draft::is_none")]
        draft: Draft,
        /// Milliseconds since the first prefill step of this generation began.
        ms: f64,
        /// CPU time of the engine for this generation so far, see `scheduler`; `None` where the system doesn't tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpu_ms: Option<f64>,
    },
    /// Vectors of an embedding, `[n_embd]` each: one, or with `Pooling::None` all, in parts of at most
    /// [`EMBEDDING_PART_VALUES`], first token first.
    Embedding {
        /// The embedding.
        id: u64,
        /// Finite numbers.
        vectors: Vec<Vec<f32>>,
    },
    /// The answer to `ToEngine::Slot`.
    Slot {
        /// Of the action.
        id: u64,
        /// What was done.
        result: Result<SlotReport, SlotFault>,
    },
    /// Last event of a generation or an embedding.
    Done {
        /// Which one.
        id: u64,
        /// Why it ended.
        finish: Finish,
    },
    /// Sent at least every second while work is under way: the engine makes progress.
    Heartbeat {
        /// Forward passes since start.
        steps: u64,
    },
}

/// Probabilities of one token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenProbs {
    /// Natural logarithm; `f32::MIN` for zero probability.
    pub logprob: f32,
    /// Best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end-of-generation token was sampled.
    Eos,
    /// `max_tokens` were produced.
    Limit,
    /// The slot's KV cache is full.
    ContextFull,
    /// The server asked.
    Cancelled,
    /// No engine was found for it in time; it may be sent again. Only the server says so.
    Unserved(String),
    /// The request can't be met: it excludes every token, or its grammar leads nowhere. Nothing is wrong with the engine.
    Refused(String),
    /// This generation failed alone, for example by logits that are not numbers.
    Error(String),
}

/// Writes one frame.
///
/// # Errors
/// Those of the writer; `InvalidData` when the frame is longer than [`MAX_FRAME_BYTES`].
pub fn write_frame(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "frame of {} bytes, at most {MAX_FRAME_BYTES} are allowed",
                body.len()
            ),
        ));
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    writer.write_all(&frame)?;
    writer.flush()
}

/// Reads one frame; `None` at a clean end of the stream.
///
/// # Errors
/// Those of the reader; `UnexpectedEof` inside a frame; `InvalidData` for a length or a JSON text that is not a message.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0u8; 4];
    match reader.read(&mut length)? {
        0 => return Ok(None),
        n => reader.read_exact(&mut length[n..])?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes announced, at most {MAX_FRAME_BYTES} are allowed"),
        ));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}
