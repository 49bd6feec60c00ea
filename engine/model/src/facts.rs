//! What a model is, read from the header alone: shapes, graph variant and memory figures, with every tensor's presence,
//! shape and type checked. No weight is touched.
//!
//! Architectures: `bitnet-b1.58` and `bitnet-25` (squared ReLU, sub-norms, tied head), `bitnet` (the same with SiLU) and
//! `llama` with ternary linears (no sub-norms, interleaved RoPE, a head of its own when the file has one); `qwen3` and
//! `gemma3` with ternary linears, as Microsoft's embedding models have them: norms of query and key heads, and where the file
//! has them a norm in front of every linear; `gemma3` also scales the embedding and norms what a block adds.

use std::fmt;

use bitnet_kernels::Packing;

use crate::convert::lookup::Tiles;
use crate::convert::tiles_of;
use crate::gguf::{Gguf, GgufError, TensorInfo, TensorType, Value, grouped};
use crate::protocol::{Activation, KvType, Overrides, Pooling};

/// Columns of an I2_S matrix come in blocks of this many weights.
pub const TERNARY_BLOCK: usize = 128;

/// Columns that a ternary matrix of `cols` has in memory: whole blocks, the last filled up with zeros.
pub fn padded_cols(cols: usize) -> usize {
    cols.next_multiple_of(TERNARY_BLOCK)
}

/// Types a ternary matrix may have in the file; all become I2_S when loaded.
pub const TERNARY_TYPES: &[TensorType] = &[
    TensorType::I2S,
    TensorType::TQ1_0,
    TensorType::TQ2_0,
    TensorType::TL1,
    TensorType::TL2,
];

/// Types of the token embedding and the output head.
pub const DENSE_TYPES: &[TensorType] = &[
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q6K,
    TensorType::Q4_0,
];

/// Types of norms and biases.
pub const VECTOR_TYPES: &[TensorType] = &[TensorType::F32, TensorType::F16, TensorType::BF16];

/// Upper bound of any single dimension a model names; keeps products far from overflow.
const MAX_DIM: u64 = 1 << 24;
/// Upper bound of the number of layers.
const MAX_LAYERS: u64 = 4096;

/// `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `bitnet-b1.58`: Microsoft's 2B-4T graph.
    BitnetB158,
    /// `bitnet-25`: the same, in files of April 2025.
    Bitnet25,
    /// `bitnet`: the 1bitLLM models.
    Bitnet,
    /// `llama` with ternary linears: Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E.
    Llama,
    /// `qwen3` with ternary linears: bitnet-embedding-0.6B.
    Qwen3,
    /// `gemma3` with ternary linears: bitnet-embedding-270M.
    Gemma3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 6] = [
        Architecture::BitnetB158,
        Architecture::Bitnet25,
        Architecture::Bitnet,
        Architecture::Llama,
        Architecture::Qwen3,
        Architecture::Gemma3,
    ];

    /// As in the file; also the prefix of the architecture's keys.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::BitnetB158 => "bitnet-b1.58",
            Architecture::Bitnet25 => "bitnet-25",
            Architecture::Bitnet => "bitnet",
            Architecture::Llama => "llama",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma3 => "gemma3",
        }
    }

    /// RMS norms behind attention and behind the gated product, tied head.
    pub fn is_bitnet(self) -> bool {
        use Architecture::{Bitnet, Bitnet25, BitnetB158};
        matches!(self, BitnetB158 | Bitnet25 | Bitnet)
    }

    /// Norms of query and key heads, whose length need not be that of the stream over the heads.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Architecture::Qwen3 | Architecture::Gemma3)
    }

    /// The norms each layer has, those of [`Linear::norm_in_name`] not counted.
    pub(crate) fn norms(self) -> &'static [Norm] {
        match self {
            Architecture::Llama => &[Norm::Attn, Norm::Ffn],
            Architecture::Qwen3 => &[Norm::Attn, Norm::QHead, Norm::KHead, Norm::Ffn],
            Architecture::Gemma3 => &[
                Norm::Attn,
                Norm::QHead,
                Norm::KHead,
                Norm::PostAttn,
                Norm::Ffn,
                Norm::PostFfn,
            ],
            _ => &[Norm::Attn, Norm::AttnSub, Norm::Ffn, Norm::FfnSub],
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which two values of a head RoPE turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` and `i + dims / 2`.
    Neox,
    /// `2i` and `2i + 1`.
    Interleaved,
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Pairing.
    pub style: RopeStyle,
    /// Base of the frequencies.
    pub freq_base: f32,
    /// Positions are multiplied by this.
    pub freq_scale: f32,
    /// Values turned per head; equals the head's length.
    pub dims: usize,
    /// The file has `rope_freqs.weight`, `[dims / 2]` divisors of the frequencies.
    pub has_factors: bool,
}

/// The ternary matrices of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Linear {
    Q,
    K,
    V,
    AttnOutput,
    Gate,
    Up,
    Down,
}

impl Linear {
    /// In the order a layer uses them.
    pub const ALL: [Linear; 7] = [
        Linear::Q,
        Linear::K,
        Linear::V,
        Linear::AttnOutput,
        Linear::Gate,
        Linear::Up,
        Linear::Down,
    ];

    /// Middle part of the tensor's name.
    pub fn stem(self) -> &'static str {
        match self {
            Linear::Q => "attn_q",
            Linear::K => "attn_k",
            Linear::V => "attn_v",
            Linear::AttnOutput => "attn_output",
            Linear::Gate => "ffn_gate",
            Linear::Up => "ffn_up",
            Linear::Down => "ffn_down",
        }
    }

    /// For example `blk.3.attn_q.weight`.
    pub fn weight_name(self, layer: usize) -> String {
        format!("blk.{layer}.{}.weight", self.stem())
    }

    /// For example `blk.3.attn_q.bias`; only the attention's linears may have one.
    pub fn bias_name(self, layer: usize) -> String {
        format!("blk.{layer}.{}.bias", self.stem())
    }

    /// For example `blk.3.attn_q_norm_in.weight`: a norm of this linear's own input.
    pub fn norm_in_name(self, layer: usize) -> String {
        format!("blk.{layer}.{}_norm_in.weight", self.stem())
    }

    pub(crate) fn may_have_bias(self) -> bool {
        matches!(self, Linear::Q | Linear::K | Linear::V | Linear::AttnOutput)
    }
}

/// The norms of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Norm {
    Attn,
    /// Over the concatenated heads, before the attention's output matrix.
    AttnSub,
    Ffn,
    /// Over the gated product, before the down matrix.
    FfnSub,
    /// Over each query head, before RoPE.
    QHead,
    /// Over each key head, before RoPE.
    KHead,
    /// Over what attention adds to the stream.
    PostAttn,
    /// Over what the feed-forward block adds to the stream.
    PostFfn,
}

impl Norm {
    /// For example `blk.3.attn_norm.weight`.
    pub fn name(self, layer: usize) -> String {
        let stem = match self {
            Norm::Attn => "attn_norm",
            Norm::AttnSub => "attn_sub_norm",
            Norm::Ffn => "ffn_norm",
            Norm::FfnSub => "ffn_sub_norm",
            Norm::QHead => "attn_q_norm",
            Norm::KHead => "attn_k_norm",
            Norm::PostAttn => "post_attention_norm",
            Norm::PostFfn => "post_ffw_norm",
        };
        format!("blk.{layer}.{stem}.weight")
    }
}

/// Name of the token embedding, `[n_vocab, n_embd]`.
pub const TOKEN_EMBD: &str = "token_embd.weight";
/// Name of an output head of its own, `[n_vocab, n_embd]`.
pub const OUTPUT: &str = "output.weight";
/// Name of the last norm, `[n_embd]`.
pub const OUTPUT_NORM: &str = "output_norm.weight";
/// Name of the RoPE divisors, `[head_dim / 2]`.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// A model as its header describes it. Counts are of values, not bytes, unless they say so.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFacts {
    /// Graph family.
    pub architecture: Architecture,
    /// `general.name`.
    pub name: Option<String>,
    /// Transformer layers.
    pub n_layer: usize,
    /// Length of the residual stream.
    pub n_embd: usize,
    /// Length of the gated product.
    pub n_ff: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Values per head; `n_head * head_dim == n_embd` but for `qwen3` and `gemma3`.
    pub head_dim: usize,
    /// Tokens; rows of the embedding.
    pub n_vocab: usize,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Epsilon of all RMS norms.
    pub norm_eps: f32,
    /// Gate activation.
    pub activation: Activation,
    /// The layers have `attn_sub_norm` and `ffn_sub_norm`.
    pub sub_norms: bool,
    /// Every linear has a norm of its own input in front.
    pub input_norms: bool,
    /// Factor of the token embedding.
    pub embedding_scale: f32,
    /// How the model's texts are embedded; `None` for a model that was not made for it.
    pub pooling: Option<Pooling>,
    /// The head is the token embedding.
    pub tied_head: bool,
    /// Some linear of the attention has a bias.
    pub attn_biases: bool,
    /// Storage of the ternary matrices in the file (of the first one).
    pub ternary_type: TensorType,
    /// Storage of the token embedding.
    pub embedding_type: TensorType,
    /// Storage of the output head; the embedding's when tied.
    pub head_type: TensorType,
    /// Weights in use, dead tensors not counted.
    pub n_params: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Ternary matrices at 2 bits per weight, rows filled up to whole blocks: read once per token.
    pub weight_bytes: u64,
    /// Output head as stored: read once per token; the same bytes as the embedding when tied.
    pub head_bytes: u64,
    /// Token embedding as stored.
    pub embedding_bytes: u64,
    /// Norms and biases as f32.
    pub vector_bytes: u64,
    /// Tile sizes of TL1 and TL2 matrices beyond the presets.
    pub lookup_tiles: Vec<Tiles>,
    /// What was decided against or without the file, one sentence each; worth a log line.
    pub notes: Vec<String>,
}

/// Why a GGUF is not a model this program runs.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum FactsError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    #[error(
        "architecture `{found}` is unknown, known are {}",
        known_architectures()
    )]
    Architecture { found: String },
    #[error("this is one part of a model split into {count} files")]
    Split { count: u64 },
    #[error("the weights are transformed (key `{key}`), which this version does not support")]
    Transformed { key: String },
    #[error("key `{key}` is {found}, expected {expected}")]
    KeyValue {
        key: String,
        found: String,
        expected: String,
    },
    #[error("tensor `{name}` is missing")]
    MissingTensor { name: String },
    #[error("tensor `{name}` has no place in the graph of `{architecture}`")]
    StrayTensor { name: String, architecture: String },
    #[error("tensor `{name}` has the shape {found:?}, expected {expected:?}")]
    Shape {
        name: String,
        found: Vec<u64>,
        expected: Vec<u64>,
    },
    #[error("tensor `{name}` (I2_S) has {} weights, expected a multiple of {TERNARY_BLOCK}", grouped(*found))]
    Blocks { name: String, found: u64 },
    #[error("tensor `{name}` is {found}, expected {}", list(expected))]
    Type {
        name: String,
        found: TensorType,
        expected: &'static [TensorType],
    },
}

impl FactsError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            FactsError::Gguf(error) => error.hint(),
            FactsError::Type { found, .. } => type_hint(*found),
            FactsError::Split { .. } => Some("join the parts with `llama-gguf-split --merge`"),
            FactsError::Architecture { .. } => {
                Some("ternary BitNet b1.58 models run here; for others use llama.cpp")
            }
            FactsError::StrayTensor { .. } => Some(
                "leaving out a step of the graph would give wrong text, so the model is refused",
            ),
            _ => None,
        }
    }
}

/// What to do about a linear of this type.
fn type_hint(found: TensorType) -> Option<&'static str> {
    match found {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => Some(
            "the weights are not packed; make a file of its repository with `bitnet-launch convert`",
        ),
        TensorType::Q2_0 | TensorType::Q1_0 => Some(
            "scales per group of weights cannot be held exactly; a file with one scale per matrix is needed",
        ),
        _ => Some("convert the model to I2_S, TQ1_0 or TQ2_0 first"),
    }
}

fn known_architectures() -> String {
    let names: Vec<String> = Architecture::ALL
        .iter()
        .map(|architecture| format!("`{architecture}`"))
        .collect();
    names.join(", ")
}

fn list(types: &[TensorType]) -> String {
    let names: Vec<String> = types.iter().map(TensorType::to_string).collect();
    names.join(", ")
}

impl ModelFacts {
    /// Reads and checks a model's header; `overrides` win over the file and over the rules here.
    ///
    /// # Errors
    /// When the header does not describe a model this program runs.
    pub fn read(gguf: &Gguf, overrides: &Overrides) -> Result<ModelFacts, FactsError> {
        refuse_unsupported(gguf)?;
        let architecture = architecture(gguf)?;
        let mut facts = Keys { gguf, architecture }.facts(overrides)?;
        facts.check_dimensions()?;
        facts.choose_activation(overrides);
        facts.choose_head(gguf, overrides);
        facts.check_tensors(gguf)?;
        Ok(facts)
    }

    /// `[rows, cols]` of a ternary matrix: outputs, inputs.
    pub fn linear_shape(&self, linear: Linear) -> (usize, usize) {
        let n_kv = self.n_head_kv * self.head_dim;
        let n_attn = self.n_head * self.head_dim;
        match linear {
            Linear::Q => (n_attn, self.n_embd),
            Linear::K | Linear::V => (n_kv, self.n_embd),
            Linear::AttnOutput => (self.n_embd, n_attn),
            Linear::Gate | Linear::Up => (self.n_ff, self.n_embd),
            Linear::Down => (self.n_embd, self.n_ff),
        }
    }

    /// Length of a norm.
    pub fn norm_len(&self, norm: Norm) -> usize {
        match norm {
            Norm::Attn | Norm::Ffn | Norm::PostAttn | Norm::PostFfn => self.n_embd,
            Norm::QHead | Norm::KHead => self.head_dim,
            Norm::AttnSub => self.n_head * self.head_dim,
            Norm::FfnSub => self.n_ff,
        }
    }

    /// The norms each layer has.
    pub fn norms(&self) -> &'static [Norm] {
        self.architecture.norms()
    }

    /// The tensor that makes logits.
    pub fn head_name(&self) -> &'static str {
        if self.tied_head { TOKEN_EMBD } else { OUTPUT }
    }

    /// Keys and values of one position in all layers.
    pub fn kv_bytes_per_token(&self, kv_type: KvType) -> u64 {
        let head = kv_type.head_bytes(self.head_dim);
        2 * (self.n_layer * self.n_head_kv * head) as u64
    }

    /// All ternary matrices in `packing`.
    pub fn ternary_bytes(&self, packing: Packing) -> u64 {
        let bytes = |linear| {
            let (rows, cols) = self.linear_shape(linear);
            let bytes = packing.matrix_bytes(rows, padded_cols(cols));
            bytes.unwrap_or(usize::MAX) as u64
        };
        let layer = Linear::ALL
            .map(bytes)
            .iter()
            .fold(0, |a: u64, b| a.saturating_add(*b));
        layer.saturating_mul(self.n_layer as u64)
    }

    /// Embedding and head together, each once.
    pub fn dense_bytes(&self) -> u64 {
        if self.tied_head {
            self.embedding_bytes
        } else {
            self.embedding_bytes + self.head_bytes
        }
    }

    /// Parameters in words: `2.4B`, `125M`, `180K`.
    pub fn size_label(&self) -> String {
        let n = self.n_params as f64;
        match self.n_params {
            1_000_000_000.. => format!("{:.1}B", n / 1e9),
            1_000_000.. => format!("{:.0}M", n / 1e6),
            _ => format!("{:.0}K", n / 1e3),
        }
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    fn check_dimensions(&self) -> Result<(), FactsError> {
        let divides = |key: &str, n: usize, by: usize, of: &str| {
            if n.is_multiple_of(by) {
                return Ok(());
            }
            Err(FactsError::KeyValue {
                key: self.key(key),
                found: grouped(n as u64),
                expected: format!("a multiple of {} ({of})", grouped(by as u64)),
            })
        };
        divides(
            "attention.head_count",
            self.n_head,
            self.n_head_kv,
            "key/value heads",
        )?;
        divides(
            "rope.dimension_count",
            self.rope.dims,
            2,
            "RoPE turns pairs",
        )?;
        let equals = |key: &str, found: usize, expected: usize, of: &str| {
            if found == expected {
                return Ok(());
            }
            Err(FactsError::KeyValue {
                key: self.key(key),
                found: grouped(found as u64),
                expected: format!("{} ({of})", grouped(expected as u64)),
            })
        };
        if !self.architecture.has_head_norms() {
            equals(
                "embedding_length",
                self.n_embd,
                self.n_head * self.head_dim,
                "heads times values per head",
            )?;
        }
        equals(
            "rope.dimension_count",
            self.rope.dims,
            self.head_dim,
            "values per head",
        )
    }

    /// The file does not say which activation it was trained with, and converters have named both kinds `bitnet-b1.58`:
    /// known models are recognised by their shape, the rest follows the architecture.
    fn choose_activation(&mut self, overrides: &Overrides) {
        let by_name = match self.architecture {
            Architecture::BitnetB158 | Architecture::Bitnet25 => Activation::Relu2,
            Architecture::Bitnet | Architecture::Llama | Architecture::Qwen3 => Activation::Silu,
            Architecture::Gemma3 => Activation::Gelu,
        };
        let is_2b_4t = (self.n_embd, self.n_ff, self.n_layer) == (2560, 6912, 30);
        let by_shape = match self.architecture {
            _ if !self.architecture.is_bitnet() => None,
            _ if is_2b_4t => Some((Activation::Relu2, "its shape is that of BitNet b1.58 2B-4T")),
            _ if self.n_vocab == 32002 => Some((
                Activation::Silu,
                "its vocabulary of 32,002 tokens is 1bitLLM's",
            )),
            _ => None,
        };
        self.activation = by_name;
        if let Some((activation, because)) = by_shape.filter(|choice| choice.0 != by_name) {
            self.activation = activation;
            self.notes.push(format!(
                "activation {} although the architecture is `{}`: {because}",
                activation_name(activation),
                self.architecture
            ));
        }
        if let Some(activation) = overrides.activation {
            self.activation = activation;
        }
    }

    /// bitnet graphs use the embedding even when the file carries `output.weight`, as the reference does.
    fn choose_head(&mut self, gguf: &Gguf, overrides: &Overrides) {
        let has_output = gguf.tensor(OUTPUT).is_some();
        self.tied_head = match overrides.untied_head {
            Some(untied) => !untied,
            None => self.architecture.is_bitnet() || !has_output,
        };
        if has_output && self.tied_head {
            self.notes.push(format!(
                "`{OUTPUT}` is not used: the head is the token embedding"
            ));
        }
    }

    fn check_tensors(&mut self, gguf: &Gguf) -> Result<(), FactsError> {
        let matrix = [self.n_embd as u64, self.n_vocab as u64];
        let embedding = check(gguf, TOKEN_EMBD, &matrix, DENSE_TYPES)?;
        let head = check(gguf, self.head_name(), &matrix, DENSE_TYPES)?;
        (self.embedding_type, self.embedding_bytes) = (embedding.ty, embedding.bytes);
        (self.head_type, self.head_bytes) = (head.ty, head.bytes);
        self.n_params = embedding.elements();
        if !self.tied_head {
            self.n_params += head.elements();
        }
        self.count_vector(gguf, OUTPUT_NORM, self.n_embd)?;
        if self.rope.has_factors {
            check(gguf, ROPE_FREQS, &[self.rope.dims as u64 / 2], VECTOR_TYPES)?;
        }
        for layer in 0..self.n_layer {
            self.check_layer(gguf, layer)?;
        }
        self.refuse_stray_tensors(gguf)
    }

    fn check_layer(&mut self, gguf: &Gguf, layer: usize) -> Result<(), FactsError> {
        for linear in Linear::ALL {
            let (rows, cols) = self.linear_shape(linear);
            let name = linear.weight_name(layer);
            let info = check(gguf, &name, &[cols as u64, rows as u64], TERNARY_TYPES)?;
            let found = info.elements();
            if info.ty == TensorType::I2S && !found.is_multiple_of(TERNARY_BLOCK as u64) {
                return Err(FactsError::Blocks { name, found });
            }
            if layer == 0 && linear == Linear::Q {
                self.ternary_type = info.ty;
            }
            self.n_params += info.elements();
            self.weight_bytes += (rows * padded_cols(cols) / 4) as u64;
            if self.input_norms {
                self.count_vector(gguf, &linear.norm_in_name(layer), cols)?;
            }
            let bias = linear.bias_name(layer);
            if linear.may_have_bias() && gguf.tensor(&bias).is_some() {
                self.attn_biases = true;
                self.count_vector(gguf, &bias, rows)?;
            }
        }
        for &norm in self.norms() {
            self.count_vector(gguf, &norm.name(layer), self.norm_len(norm))?;
        }
        Ok(())
    }

    fn count_vector(&mut self, gguf: &Gguf, name: &str, len: usize) -> Result<(), FactsError> {
        check(gguf, name, &[len as u64], VECTOR_TYPES)?;
        self.n_params += len as u64;
        self.vector_bytes += len as u64 * 4;
        Ok(())
    }

    fn refuse_stray_tensors(&self, gguf: &Gguf) -> Result<(), FactsError> {
        let stray = gguf.tensors().iter().find(|info| !self.knows(&info.name));
        stray.map_or(Ok(()), |info| {
            Err(FactsError::StrayTensor {
                name: info.name.clone(),
                architecture: self.architecture.to_string(),
            })
        })
    }

    fn knows(&self, name: &str) -> bool {
        // Old converters stored RoPE's inverse frequencies, which follow from the base.
        if [TOKEN_EMBD, OUTPUT, OUTPUT_NORM, ROPE_FREQS].contains(&name)
            || name.contains("rot_embd")
        {
            return true;
        }
        let mut parts = name.splitn(3, '.');
        let (Some("blk"), Some(layer), Some(rest)) = (parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let Some(layer) = layer.parse().ok().filter(|&layer| layer < self.n_layer) else {
            return false;
        };
        if self.norms().iter().any(|norm| norm.name(layer) == name) {
            return true;
        }
        let is_input_norm = |linear: &Linear| linear.norm_in_name(layer) == name;
        if self.input_norms && Linear::ALL.iter().any(is_input_norm) {
            return true;
        }
        let Some((stem, kind)) = rest.split_once('.') else {
            return false;
        };
        Linear::ALL.iter().any(|linear| {
            linear.stem() == stem
                && (kind == "weight" || kind == "scale" || kind == "bias" && linear.may_have_bias())
        })
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu2 => "relu2",
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
    }
}

/// The tensor, when it has these dimensions (fastest first) and one of these types.
pub(crate) fn check<'a>(
    gguf: &'a Gguf,
    name: &str,
    dims: &[u64],
    types: &'static [TensorType],
) -> Result<&'a TensorInfo, FactsError> {
    let info = gguf.tensor(name).ok_or_else(|| FactsError::MissingTensor {
        name: name.to_owned(),
    })?;
    if without_trailing_ones(&info.dims) != without_trailing_ones(dims) {
        return Err(FactsError::Shape {
            name: name.to_owned(),
            found: info.dims.clone(),
            expected: dims.to_owned(),
        });
    }
    if !types.contains(&info.ty) {
        return Err(FactsError::Type {
            name: name.to_owned(),
            found: info.ty,
            expected: types,
        });
    }
    Ok(info)
}

fn without_trailing_ones(dims: &[u64]) -> &[u64] {
    let len = dims
        .iter()
        .rposition(|&dim| dim != 1)
        .map_or(0, |last| last + 1);
    &dims[..len]
}

fn refuse_unsupported(gguf: &Gguf) -> Result<(), FactsError> {
    let transformed = gguf
        .values()
        .iter()
        .find(|(key, _)| key.starts_with("prism.hadamard."));
    if let Some((key, _)) = transformed {
        return Err(FactsError::Transformed { key: key.clone() });
    }
    match gguf.u64("split.count")? {
        Some(count) if count > 1 => Err(FactsError::Split { count }),
        _ => Ok(()),
    }
}

fn architecture(gguf: &Gguf) -> Result<Architecture, FactsError> {
    let key = "general.architecture";
    let found = gguf
        .str(key)?
        .ok_or_else(|| FactsError::MissingKey { key: key.into() })?;
    let known = Architecture::ALL
        .into_iter()
        .find(|architecture| architecture.name() == found);
    known.ok_or_else(|| FactsError::Architecture {
        found: found.to_owned(),
    })
}

/// Reads the keys of one architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: Architecture,
}

impl Keys<'_> {
    /// All that the keys say; the fields that follow from tensors and rules are still neutral.
    fn facts(&self, overrides: &Overrides) -> Result<ModelFacts, FactsError> {
        self.refuse_other_graphs()?;
        let n_embd = self.required("embedding_length", MAX_DIM)?;
        let n_head = self.required("attention.head_count", MAX_DIM)?;
        let n_head_kv = self
            .dimension("attention.head_count_kv", MAX_DIM)?
            .unwrap_or(n_head);
        let head_dim = self.head_dim(n_embd, n_head)?;
        Ok(ModelFacts {
            architecture: self.architecture,
            name: self.gguf.str("general.name")?.map(str::to_owned),
            n_layer: self.required("block_count", MAX_LAYERS)?,
            n_embd,
            n_ff: self.required("feed_forward_length", MAX_DIM)?,
            n_head,
            n_head_kv,
            head_dim,
            n_vocab: self.n_vocab()?,
            context_length: self.required("context_length", u32::MAX.into())?,
            rope: self.rope(head_dim, overrides)?,
            norm_eps: self.norm_eps()?,
            activation: Activation::Relu2,
            sub_norms: self.architecture.is_bitnet(),
            input_norms: self.has_input_norms(),
            embedding_scale: match self.architecture {
                Architecture::Gemma3 => (n_embd as f32).sqrt(),
                _ => 1.0,
            },
            pooling: self.pooling()?,
            tied_head: true,
            attn_biases: false,
            ternary_type: TensorType::I2S,
            embedding_type: TensorType::F16,
            head_type: TensorType::F16,
            n_params: 0,
            file_bytes: self.gguf.file_bytes(),
            weight_bytes: 0,
            head_bytes: 0,
            embedding_bytes: 0,
            vector_bytes: 0,
            lookup_tiles: [overrides.lookup_tiles.clone(), tiles_of(self.gguf)].concat(),
            notes: Vec::new(),
        })
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    fn has_input_norms(&self) -> bool {
        let first = Linear::Q.norm_in_name(0);
        self.gguf.tensor(&first).is_some()
    }

    fn pooling(&self) -> Result<Option<Pooling>, FactsError> {
        let suffix = "pooling_type";
        Ok(match self.gguf.u64(&self.key(suffix))? {
            None => None,
            Some(0) => Some(Pooling::None),
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::Cls),
            Some(3) => Some(Pooling::Last),
            Some(4) => {
                let expected = "0 to 3 (models that rank are not supported)";
                return Err(self.wrong(suffix, 4, expected));
            }
            Some(found) => return Err(self.wrong(suffix, found, "0 to 3")),
        })
    }

    fn missing(&self, suffix: &str) -> FactsError {
        FactsError::MissingKey {
            key: self.key(suffix),
        }
    }

    fn wrong(&self, suffix: &str, found: impl fmt::Display, expected: &str) -> FactsError {
        FactsError::KeyValue {
            key: self.key(suffix),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }

    fn required(&self, suffix: &str, most: u64) -> Result<usize, FactsError> {
        self.dimension(suffix, most)?
            .ok_or_else(|| self.missing(suffix))
    }

    /// A number from 1 to `most`. Arrays (a value per layer) count when all values are the same.
    fn dimension(&self, suffix: &str, most: u64) -> Result<Option<usize>, FactsError> {
        let key = self.key(suffix);
        let found = match self.gguf.value(&key) {
            Some(Value::Array(array)) => {
                let values: Vec<i32> = array.i32s().map(Iterator::collect).unwrap_or_default();
                match values.first() {
                    Some(&first) if values.iter().all(|&v| v == first) => u64::try_from(first).ok(),
                    _ => return Err(self.wrong(suffix, "an array", "one number for all layers")),
                }
            }
            _ => self.gguf.u64(&key)?,
        };
        match found {
            None => Ok(None),
            Some(n) if (1..=most).contains(&n) => Ok(Some(n as usize)),
            Some(n) => Err(self.wrong(suffix, grouped(n), &format!("1 to {}", grouped(most)))),
        }
    }

    fn head_dim(&self, n_embd: usize, n_head: usize) -> Result<usize, FactsError> {
        if let Some(found) = self.own_head_dim()? {
            return Ok(found);
        }
        if !n_embd.is_multiple_of(n_head) {
            let expected = format!("a multiple of {n_head} (heads)");
            return Err(self.wrong("embedding_length", grouped(n_embd as u64), &expected));
        }
        let head_dim = n_embd / n_head;
        for suffix in ["attention.key_length", "attention.value_length"] {
            match self.dimension(suffix, MAX_DIM)? {
                Some(found) if found != head_dim => {
                    let expected = format!("{head_dim} (embedding length over heads)");
                    return Err(self.wrong(suffix, found, &expected));
                }
                _ => {}
            }
        }
        Ok(head_dim)
    }

    /// The key, where heads may have a length of their own.
    fn own_head_dim(&self) -> Result<Option<usize>, FactsError> {
        if !self.architecture.has_head_norms() {
            return Ok(None);
        }
        let keys = self.dimension("attention.key_length", MAX_DIM)?;
        let values = self.dimension("attention.value_length", MAX_DIM)?;
        match (keys, values) {
            (Some(keys), Some(values)) if keys != values => {
                let expected = format!("{keys} (`attention.key_length`)");
                Err(self.wrong("attention.value_length", values, &expected))
            }
            _ => Ok(keys),
        }
    }

    /// Rows of the embedding; the key and the tokenizer must agree with it.
    fn n_vocab(&self) -> Result<usize, FactsError> {
        let embedding = self
            .gguf
            .tensor(TOKEN_EMBD)
            .ok_or_else(|| FactsError::MissingTensor {
                name: TOKEN_EMBD.into(),
            })?;
        let rows = embedding.rows();
        if rows > MAX_DIM {
            let name = embedding.name.clone();
            let (found, expected) = (embedding.dims.clone(), vec![embedding.cols(), MAX_DIM]);
            return Err(FactsError::Shape {
                name,
                found,
                expected,
            });
        }
        let expected = format!("{} (rows of `{TOKEN_EMBD}`)", grouped(rows));
        match self.dimension("vocab_size", MAX_DIM)? {
            Some(found) if found as u64 != rows => {
                return Err(self.wrong("vocab_size", grouped(found as u64), &expected));
            }
            _ => {}
        }
        let key = "tokenizer.ggml.tokens";
        match self.gguf.value(key).and_then(Value::as_array) {
            Some(tokens) if tokens.len() as u64 != rows => Err(FactsError::KeyValue {
                key: key.into(),
                found: format!("{} tokens", grouped(tokens.len() as u64)),
                expected,
            }),
            _ => Ok(rows as usize),
        }
    }

    fn norm_eps(&self) -> Result<f32, FactsError> {
        let suffix = "attention.layer_norm_rms_epsilon";
        let eps = self
            .gguf
            .f32(&self.key(suffix))?
            .ok_or_else(|| self.missing(suffix))?;
        if eps.is_finite() && (0.0..1.0).contains(&eps) {
            Ok(eps)
        } else {
            Err(self.wrong(suffix, eps, "a number from 0 to 1"))
        }
    }

    fn rope(&self, head_dim: usize, overrides: &Overrides) -> Result<Rope, FactsError> {
        let freq_scale = match overrides.rope_freq_scale {
            Some(scale) => scale,
            None => self.rope_freq_scale()?,
        };
        let in_file = self.gguf.f32(&self.key("rope.freq_base"))?;
        let freq_base = overrides.rope_freq_base.or(in_file).unwrap_or(10_000.0);
        if !freq_base.is_finite() || freq_base <= 1.0 {
            return Err(self.wrong("rope.freq_base", freq_base, "a number above 1"));
        }
        Ok(Rope {
            style: match self.architecture {
                Architecture::Llama => RopeStyle::Interleaved,
                _ => RopeStyle::Neox,
            },
            freq_base,
            freq_scale,
            dims: self
                .dimension("rope.dimension_count", MAX_DIM)?
                .unwrap_or(head_dim),
            has_factors: self.gguf.tensor(ROPE_FREQS).is_some(),
        })
    }

    /// Linear scaling by a factor divides positions by it.
    fn rope_freq_scale(&self) -> Result<f32, FactsError> {
        let suffix = "rope.scaling.type";
        match self.gguf.str(&self.key(suffix))? {
            Some("none") => return Ok(1.0),
            None | Some("linear") => {}
            Some(found) => {
                return Err(self.wrong(suffix, format!("`{found}`"), "`none` or `linear`"));
            }
        }
        for suffix in ["rope.scaling.factor", "rope.scale_linear"] {
            match self.gguf.f32(&self.key(suffix))? {
                None | Some(0.0) => {}
                // The reciprocal of the smallest numbers is infinite.
                Some(factor) if factor.is_normal() && factor > 0.0 => return Ok(1.0 / factor),
                Some(factor) => return Err(self.wrong(suffix, factor, "a number above 0")),
            }
        }
        Ok(1.0)
    }

    /// Options of other graphs, which would silently change the result.
    fn refuse_other_graphs(&self) -> Result<(), FactsError> {
        let experts = self.gguf.u64(&self.key("expert_count"))?;
        if let Some(n) = experts.filter(|&n| n > 0) {
            return Err(self.wrong(
                "expert_count",
                n,
                "0 (mixtures of experts are not supported)",
            ));
        }
        let window = self.gguf.u64(&self.key("attention.sliding_window"))?;
        let context = self
            .gguf
            .u64(&self.key("context_length"))?
            .unwrap_or(u64::MAX);
        if let Some(n) = window.filter(|&n| n > 0 && n < context) {
            return Err(self.wrong("attention.sliding_window", n, "none (full attention)"));
        }
        if self.gguf.bool(&self.key("attention.causal"))? == Some(false) {
            return Err(self.wrong("attention.causal", "false", "true"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::header::Header;
    use bitnet_kernels::SharedBytes;

    /// A model to be made, right until a test changes something.
    struct Model {
        architecture: &'static str,
        numbers: Vec<(&'static str, u32)>,
        floats: Vec<(&'static str, f32)>,
        strings: Vec<(&'static str, &'static str)>,
        tensors: Vec<(String, Vec<u64>, TensorType)>,
        overrides: Overrides,
    }

    fn model(architecture: &'static str) -> Model {
        let known = Architecture::ALL
            .into_iter()
            .find(|known| known.name() == architecture);
        let norms = known.map_or(&[][..], Architecture::norms);
        let mut tensors = vec![
            (TOKEN_EMBD.to_owned(), vec![128, 8], TensorType::F16),
            (OUTPUT_NORM.to_owned(), vec![128], TensorType::F32),
        ];
        for (linear, rows, cols) in [
            (Linear::Q, 128, 128),
            (Linear::K, 64, 128),
            (Linear::V, 64, 128),
            (Linear::AttnOutput, 128, 128),
            (Linear::Gate, 256, 128),
            (Linear::Up, 256, 128),
            (Linear::Down, 128, 256),
        ] {
            tensors.push((linear.weight_name(0), vec![cols, rows], TensorType::I2S));
            if known.is_some_and(Architecture::has_head_norms) {
                tensors.push((linear.norm_in_name(0), vec![cols], TensorType::F16));
            }
        }
        for norm in norms {
            let len = match norm {
                Norm::QHead | Norm::KHead => 64,
                Norm::FfnSub => 256,
                _ => 128,
            };
            tensors.push((norm.name(0), vec![len], TensorType::F32));
        }
        Model {
            architecture,
            numbers: vec![
                ("context_length", 64),
                ("embedding_length", 128),
                ("block_count", 1),
                ("feed_forward_length", 256),
                ("rope.dimension_count", 64),
                ("attention.head_count", 2),
                ("attention.head_count_kv", 1),
            ],
            floats: vec![
                ("attention.layer_norm_rms_epsilon", 1e-5),
                ("rope.freq_base", 500_000.0),
            ],
            strings: Vec::new(),
            tensors,
            overrides: Overrides::default(),
        }
    }

    impl Model {
        fn number(mut self, key: &'static str, value: u32) -> Model {
            self.numbers.retain(|number| number.0 != key);
            self.numbers.push((key, value));
            self
        }

        fn without(mut self, name: &str) -> Model {
            self.numbers.retain(|number| number.0 != name);
            self.floats.retain(|float| float.0 != name);
            self.tensors.retain(|tensor| tensor.0 != name);
            self
        }

        fn tensor(mut self, name: &str, dims: &[u64], ty: TensorType) -> Model {
            self.tensors.retain(|tensor| tensor.0 != name);
            self.tensors.push((name.to_owned(), dims.to_vec(), ty));
            self
        }

        fn string(mut self, key: &'static str, value: &'static str) -> Model {
            self.strings.retain(|string| string.0 != key);
            self.strings.push((key, value));
            self
        }

        fn float(mut self, key: &'static str, value: f32) -> Model {
            self.floats.retain(|float| float.0 != key);
            self.floats.push((key, value));
            self
        }

        fn overridden(mut self, edit: impl FnOnce(&mut Overrides)) -> Model {
            edit(&mut self.overrides);
            self
        }

        fn read(self) -> Result<ModelFacts, FactsError> {
            let mut header = Header::default();
            header.str("general.architecture", self.architecture);
            // A key with a dot at its end is whole; others get the architecture in front.
            let key = |suffix: &str| match suffix.strip_suffix('.') {
                Some(whole) => whole.to_owned(),
                None => format!("{}.{suffix}", self.architecture),
            };
            self.numbers
                .iter()
                .for_each(|(suffix, value)| header.u32(&key(suffix), *value));
            self.floats
                .iter()
                .for_each(|(suffix, value)| header.f32(&key(suffix), *value));
            self.strings
                .iter()
                .for_each(|(suffix, value)| header.str(&key(suffix), value));
            for (name, dims, ty) in &self.tensors {
                header.tensor(name, dims, *ty);
            }
            let mut bytes = header.bytes();
            bytes.resize(bytes.len() + header.data_bytes() as usize, 0);
            let gguf = Gguf::from_bytes(SharedBytes::new(bytes)).unwrap();
            ModelFacts::read(&gguf, &self.overrides)
        }

        fn message(self) -> String {
            self.read()
                .expect_err("a model that is refused")
                .to_string()
        }
    }

    #[test]
    fn a_sound_model() {
        let facts = model("bitnet-b1.58").read().unwrap();
        assert_eq!(
            (
                facts.n_layer,
                facts.n_embd,
                facts.n_ff,
                facts.n_head,
                facts.n_head_kv,
                facts.head_dim
            ),
            (1, 128, 256, 2, 1, 64)
        );
        assert_eq!((facts.n_vocab, facts.context_length), (8, 64));
        assert_eq!(
            (facts.rope.style, facts.rope.freq_base, facts.rope.dims),
            (RopeStyle::Neox, 500_000.0, 64)
        );
        assert_eq!(
            (facts.activation, facts.sub_norms, facts.tied_head),
            (Activation::Relu2, true, true)
        );
        assert_eq!(facts.kv_bytes_per_token(KvType::F16), 2 * 64 * 2);
        assert_eq!(facts.kv_bytes_per_token(KvType::F32), 2 * 64 * 4);
        assert_eq!(facts.kv_bytes_per_token(KvType::Q8_0), 2 * 2 * 34);
        let linears = 128 * 128 * 2 + 64 * 128 * 2 + 256 * 128 * 3;
        assert_eq!(facts.weight_bytes, linears / 4);
        assert_eq!(facts.ternary_bytes(Packing::I2S), linears / 4);
        assert_eq!(facts.ternary_bytes(Packing::Tl1), linears / 4);
        assert_eq!(
            (facts.embedding_bytes, facts.head_bytes, facts.dense_bytes()),
            (2048, 2048, 2048)
        );
        assert_eq!(facts.n_params, linears + 8 * 128 + 4 * 128 + 256);
        assert_eq!(facts.vector_bytes, 4 * (4 * 128 + 256));
        assert!(facts.notes.is_empty() && !facts.attn_biases && !facts.rope.has_factors);
        assert_eq!(facts.size_label(), "149K");
    }

    #[test]
    fn llama_has_its_own_head_and_no_sub_norms() {
        let tied = model("llama").read().unwrap();
        assert_eq!(
            (
                tied.tied_head,
                tied.sub_norms,
                tied.activation,
                tied.rope.style
            ),
            (true, false, Activation::Silu, RopeStyle::Interleaved)
        );
        let own = || model("llama").tensor(OUTPUT, &[128, 8], TensorType::Q8_0);
        let facts = own().read().unwrap();
        assert_eq!(
            (facts.tied_head, facts.head_type, facts.head_name()),
            (false, TensorType::Q8_0, OUTPUT)
        );
        assert_eq!(facts.dense_bytes(), 2048 + 8 * 4 * 34);
        let forced = own()
            .overridden(|o| o.untied_head = Some(false))
            .read()
            .unwrap();
        assert_eq!((forced.tied_head, forced.notes.len()), (true, 1));
    }

    #[test]
    fn embedding_models() {
        let facts = model("qwen3").number("pooling_type", 3).read().unwrap();
        assert_eq!(facts.pooling, Some(Pooling::Last));
        assert!(facts.input_norms && !facts.sub_norms && facts.tied_head);
        assert_eq!(
            (facts.activation, facts.rope.style, facts.embedding_scale),
            (Activation::Silu, RopeStyle::Neox, 1.0)
        );
        let facts = model("gemma3").read().unwrap();
        assert_eq!((facts.pooling, facts.activation), (None, Activation::Gelu));
        assert_eq!(facts.embedding_scale, 128f32.sqrt());
        assert_eq!(facts.vector_bytes, 4 * (5 * 128 + 2 * 64 + 6 * 128 + 256));

        // Heads of a length of their own.
        let facts = model("qwen3")
            .number("attention.key_length", 128)
            .number("attention.value_length", 128)
            .number("rope.dimension_count", 128)
            .tensor("blk.0.attn_q.weight", &[128, 256], TensorType::I2S)
            .tensor("blk.0.attn_k.weight", &[128, 128], TensorType::I2S)
            .tensor("blk.0.attn_v.weight", &[128, 128], TensorType::I2S)
            .tensor("blk.0.attn_output.weight", &[256, 128], TensorType::I2S)
            .tensor("blk.0.attn_output_norm_in.weight", &[256], TensorType::F16)
            .tensor("blk.0.attn_q_norm.weight", &[128], TensorType::F32)
            .tensor("blk.0.attn_k_norm.weight", &[128], TensorType::F32)
            .read()
            .unwrap();
        assert_eq!((facts.head_dim, facts.n_embd, facts.n_head), (128, 128, 2));
    }

    /// The April 2025 upload of 2B-4T carries a head that its graph never used.
    #[test]
    fn a_dead_head_is_not_used_unless_asked_for() {
        let own = || model("bitnet-25").tensor(OUTPUT, &[128, 8], TensorType::F16);
        let facts = own().read().unwrap();
        assert_eq!((facts.tied_head, facts.notes.len()), (true, 1));
        assert!(
            !own()
                .overridden(|o| o.untied_head = Some(true))
                .read()
                .unwrap()
                .tied_head
        );
        let gone = model("bitnet-25").overridden(|o| o.untied_head = Some(true));
        assert_eq!(gone.message(), "tensor `output.weight` is missing");
    }

    #[test]
    fn activation_by_architecture_shape_and_override() {
        let choose = |architecture, edit: &dyn Fn(&mut ModelFacts)| {
            let mut facts = model(architecture).read().unwrap();
            facts.notes.clear();
            edit(&mut facts);
            facts.choose_activation(&Overrides::default());
            (facts.activation, facts.notes.len())
        };
        let shape_2b =
            |facts: &mut ModelFacts| (facts.n_embd, facts.n_ff, facts.n_layer) = (2560, 6912, 30);
        let vocab_1bitllm = |facts: &mut ModelFacts| facts.n_vocab = 32_002;
        assert_eq!(choose("bitnet-b1.58", &|_| {}), (Activation::Relu2, 0));
        assert_eq!(choose("bitnet", &|_| {}), (Activation::Silu, 0));
        assert_eq!(choose("bitnet", &shape_2b), (Activation::Relu2, 1));
        assert_eq!(
            choose("bitnet-b1.58", &vocab_1bitllm),
            (Activation::Silu, 1)
        );
        assert_eq!(choose("llama", &shape_2b), (Activation::Silu, 0));
        let asked = model("bitnet-b1.58").overridden(|o| o.activation = Some(Activation::Silu));
        assert_eq!(asked.read().unwrap().activation, Activation::Silu);
    }

    #[test]
    fn optional_tensors_are_seen() {
        let facts = model("bitnet")
            .tensor("blk.0.attn_q.bias", &[128], TensorType::F32)
            .tensor("blk.0.attn_q.scale", &[1], TensorType::F32)
            .tensor("blk.0.attn_rot_embd.weight", &[32], TensorType::F32)
            .tensor(ROPE_FREQS, &[32], TensorType::F32)
            .overridden(|o| o.rope_freq_base = Some(10_000.0))
            .read()
            .unwrap();
        assert!(facts.attn_biases && facts.rope.has_factors);
        assert_eq!(facts.rope.freq_base, 10_000.0);
    }

    #[test]
    fn positions_are_scaled_as_the_file_or_the_user_says() {
        let scale = |model: Model| model.read().unwrap().rope.freq_scale;
        let linear = || {
            model("llama")
                .string("rope.scaling.type", "linear")
                .float("rope.scaling.factor", 4.0)
        };
        assert_eq!(scale(model("llama")), 1.0);
        assert_eq!(scale(linear()), 0.25);
        assert_eq!(scale(linear().string("rope.scaling.type", "none")), 1.0);
        let tiny = model("llama").float("rope.scaling.factor", 1e-40);
        assert!(tiny.read().is_err());
        let own = linear().overridden(|o| o.rope_freq_scale = Some(0.5));
        assert_eq!(scale(own), 0.5);
        let yarn = model("llama").string("rope.scaling.type", "yarn");
        assert_eq!(
            scale(yarn.overridden(|o| o.rope_freq_scale = Some(1.0))),
            1.0
        );
    }

    #[test]
    fn what_cannot_run_is_refused_by_name() {
        let table = [
            (
                model("falcon-h1"),
                "architecture `falcon-h1` is unknown, known are `bitnet-b1.58`, `bitnet-25`, `bitnet`, `llama`, `qwen3`, `gemma3`",
            ),
            (
                model("qwen3").without("blk.0.attn_k_norm.weight"),
                "tensor `blk.0.attn_k_norm.weight` is missing",
            ),
            (
                model("gemma3").without("blk.0.ffn_up_norm_in.weight"),
                "tensor `blk.0.ffn_up_norm_in.weight` is missing",
            ),
            (
                model("gemma3").without("blk.0.attn_q_norm_in.weight"),
                "tensor `blk.0.attn_k_norm_in.weight` has no place in the graph of `gemma3`",
            ),
            (
                model("qwen3")
                    .number("attention.key_length", 64)
                    .number("attention.value_length", 32),
                "key `qwen3.attention.value_length` is 32, expected 64 (`attention.key_length`)",
            ),
            (
                model("qwen3").number("pooling_type", 4),
                "key `qwen3.pooling_type` is 4, expected 0 to 3 (models that rank are not supported)",
            ),
            (
                model("bitnet").number("pooling_type", 9),
                "key `bitnet.pooling_type` is 9, expected 0 to 3",
            ),
            (
                model("llama").number("prism.hadamard.version.", 1),
                "the weights are transformed (key `prism.hadamard.version`), which this version does not support",
            ),
            (
                model("llama").number("split.count.", 3),
                "this is one part of a model split into 3 files",
            ),
            (
                model("llama").without("block_count"),
                "key `llama.block_count` is missing",
            ),
            (
                model("llama").without("attention.layer_norm_rms_epsilon"),
                "key `llama.attention.layer_norm_rms_epsilon` is missing",
            ),
            (
                model("llama").number("block_count", 0),
                "key `llama.block_count` is 0, expected 1 to 4,096",
            ),
            (
                model("llama").number("block_count", 2),
                "tensor `blk.1.attn_q.weight` is missing",
            ),
            (
                model("llama").number("attention.head_count", 3),
                "key `llama.embedding_length` is 128, expected a multiple of 3 (heads)",
            ),
            (
                model("llama").number("attention.head_count_kv", 3),
                "key `llama.attention.head_count` is 2, expected a multiple of 3 (key/value heads)",
            ),
            (
                model("llama")
                    .number("feed_forward_length", 200)
                    .tensor("blk.0.ffn_gate.weight", &[128, 200], TensorType::I2S)
                    .tensor("blk.0.ffn_up.weight", &[128, 200], TensorType::I2S)
                    .tensor("blk.0.ffn_down.weight", &[200, 121], TensorType::I2S),
                "tensor `blk.0.ffn_down.weight` has the shape [200, 121], expected [200, 128]",
            ),
            (
                model("llama").number("rope.dimension_count", 32),
                "key `llama.rope.dimension_count` is 32, expected 64 (values per head)",
            ),
            (
                model("llama").number("attention.key_length", 128),
                "key `llama.attention.key_length` is 128, expected 64 (embedding length over heads)",
            ),
            (
                model("llama").number("vocab_size", 9),
                "key `llama.vocab_size` is 9, expected 8 (rows of `token_embd.weight`)",
            ),
            (
                model("llama").number("expert_count", 8),
                "key `llama.expert_count` is 8, expected 0 (mixtures of experts are not supported)",
            ),
            (
                model("llama").number("attention.sliding_window", 16),
                "key `llama.attention.sliding_window` is 16, expected none (full attention)",
            ),
            (
                model("llama").string("rope.scaling.type", "yarn"),
                "key `llama.rope.scaling.type` is `yarn`, expected `none` or `linear`",
            ),
            (
                model("llama").float("rope.scaling.factor", -2.0),
                "key `llama.rope.scaling.factor` is -2, expected a number above 0",
            ),
            (
                model("llama").float("rope.freq_base", 0.0),
                "key `llama.rope.freq_base` is 0, expected a number above 1",
            ),
            (
                model("llama").float("attention.layer_norm_rms_epsilon", f32::NAN),
                "key `llama.attention.layer_norm_rms_epsilon` is NaN, expected a number from 0 to 1",
            ),
            (
                model("llama").without(TOKEN_EMBD),
                "tensor `token_embd.weight` is missing",
            ),
            (
                model("bitnet").without("blk.0.ffn_sub_norm.weight"),
                "tensor `blk.0.ffn_sub_norm.weight` is missing",
            ),
            (
                model("llama").tensor("blk.0.attn_sub_norm.weight", &[128], TensorType::F32),
                "tensor `blk.0.attn_sub_norm.weight` has no place in the graph of `llama`",
            ),
            (
                model("bitnet").tensor("blk.1.attn_q.weight", &[128, 128], TensorType::I2S),
                "tensor `blk.1.attn_q.weight` has no place in the graph of `bitnet`",
            ),
            (
                model("bitnet").tensor("blk.0.ffn_up.bias", &[256], TensorType::F32),
                "tensor `blk.0.ffn_up.bias` has no place in the graph of `bitnet`",
            ),
            (
                model("bitnet").tensor("blk.0.attn_k.weight", &[128, 128], TensorType::I2S),
                "tensor `blk.0.attn_k.weight` has the shape [128, 128], expected [128, 64]",
            ),
            (
                model("bitnet").tensor("blk.0.attn_k.weight", &[128, 64], TensorType::F16),
                "tensor `blk.0.attn_k.weight` is F16, expected I2_S, TQ1_0, TQ2_0, TL1, TL2",
            ),
            (
                model("bitnet").tensor(TOKEN_EMBD, &[128, 8], TensorType::I2S),
                "tensor `token_embd.weight` is I2_S, expected F32, F16, BF16, Q8_0, Q6_K, Q4_0",
            ),
        ];
        for (model, expected) in table {
            assert_eq!(model.message(), expected);
        }
    }

    #[test]
    fn hints_say_what_to_do() {
        let hint = |ty| {
            let error = model("bitnet")
                .tensor("blk.0.attn_k.weight", &[128, 64], ty)
                .read()
                .unwrap_err();
            error.hint().unwrap()
        };
        assert!(hint(TensorType::F16).contains("bitnet-launch convert"));
        assert!(hint(TensorType::Q2_0).contains("group"));
    }
}
