//! Writes GGUF models of any shape with random ternary weights from a seed: the official 2B-4T file's exact keys, names,
//! types and sizes for measurements, tiny ones for tests. Same shape and seed, same bytes.
//!
//! Norms and scales are chosen so that every layer's output has a standard deviation around one: logits are plausible
//! numbers, the text is noise.
//!
//! Tensors lie in the order of Hugging Face's state dict: per layer `attn_norm`, `ffn_down`, `ffn_sub_norm`, `ffn_gate`,
//! `ffn_up`, `ffn_norm`, `attn_sub_norm`, `attn_k`, `attn_output`, `attn_q`, `attn_v`; the embedding first, the last norm
//! at the end. Each begins right behind the padded end of the one before, which llama.cpp demands.

pub(crate) mod header;
pub(crate) mod random;
mod vocabulary;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::facts::{Architecture, Linear, Norm, OUTPUT, OUTPUT_NORM, TOKEN_EMBD};
use crate::gguf::TensorType;
use header::{ALIGNMENT, Header};
use random::{Fill, Rng, Weights, ZEROS};
use vocabulary::BytePairs;

/// Scale of `blk.0.attn_q.weight` in the official 2B-4T file.
pub const OFFICIAL_Q_SCALE: f32 = 1.2188548;
/// Merges of the Llama 3 vocabulary.
const LLAMA3_MERGES: usize = 280_147;
/// Bytes of weights made at a time: a multiple of every block size (4, 18, 34, 54, 66, 210).
const CHUNK_BYTES: usize = 706_860;

/// A model to generate. Start from [`Shape::preset`] and change what the test needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// `general.name`.
    pub name: String,
    /// Graph family and prefix of the keys.
    pub architecture: Architecture,
    /// Transformer layers.
    pub n_layer: usize,
    /// Length of the residual stream; a multiple of 128, for TQ types and Q6_K of 256.
    pub n_embd: usize,
    /// Length of the gated product; multiples as `n_embd`.
    pub n_ff: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Tokens; at least 280 with byte-level BPE, 400 with SPM.
    pub n_vocab: usize,
    /// Positions.
    pub context_length: usize,
    /// Base of RoPE's frequencies.
    pub rope_freq_base: f32,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// I2_S, TQ1_0 or TQ2_0.
    pub ternary_type: TensorType,
    /// F32, F16, BF16, Q8_0, Q6_K or Q4_0.
    pub embedding_type: TensorType,
    /// Write `output.weight`, in the embedding's type.
    pub own_head: bool,
    /// Tokenizer keys.
    pub vocabulary: Vocabulary,
}

/// Which tokenizer a model gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Vocabulary {
    /// The Llama 3 special tokens at the end, keys as in the official 2B-4T file: no `pre`, no end-of-turn id, and the
    /// chat template that does not fit the model.
    Published,
    /// Byte-level BPE with this `pre`, all keys right.
    BytePairs {
        /// `tokenizer.ggml.pre`.
        pre: String,
    },
    /// SentencePiece BPE with byte fallback and a blank in front.
    Spm,
}

/// Why a model was not written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SynthError {
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}` is no regular file", path.display())]
    NoFile { path: PathBuf },
    #[error("tensor `{name}` of shape {dims:?} cannot be {ty}")]
    Shape {
        name: String,
        dims: Vec<u64>,
        ty: TensorType,
    },
    #[error("{found} tokens are too few, expected {expected} or more")]
    Vocabulary { found: usize, expected: usize },
}

impl Shape {
    /// Names of the presets.
    pub fn names() -> &'static [&'static str] {
        &[
            "2b-4t",
            "0.7b",
            "falcon3-1b",
            "tiny",
            "tiny-silu",
            "tiny-llama",
        ]
    }

    /// A preset by name: `2b-4t` is the official file's twin, `0.7b` has 1bitLLM's large shape, `falcon3-1b` that of
    /// Falcon3-1B-1.58bit; the tiny ones have two layers of 256 and 512 tokens.
    pub fn preset(name: &str) -> Option<Shape> {
        let published = Shape {
            name: "bitnet2b".into(),
            architecture: Architecture::BitnetB158,
            n_layer: 30,
            n_embd: 2560,
            n_ff: 6912,
            n_head: 20,
            n_head_kv: 5,
            n_vocab: 128_256,
            context_length: 4096,
            rope_freq_base: 500_000.0,
            norm_eps: 1e-5,
            ternary_type: TensorType::I2S,
            embedding_type: TensorType::F16,
            own_head: false,
            vocabulary: Vocabulary::Published,
        };
        let tiny = Shape {
            name: name.to_owned(),
            n_layer: 2,
            n_embd: 256,
            n_ff: 512,
            n_head: 4,
            n_head_kv: 2,
            n_vocab: 512,
            context_length: 512,
            vocabulary: Vocabulary::BytePairs {
                pre: "llama-bpe".into(),
            },
            ..published.clone()
        };
        Some(match name {
            "2b-4t" => published,
            "tiny" => tiny,
            "tiny-silu" => Shape {
                architecture: Architecture::Bitnet,
                rope_freq_base: 10_000.0,
                vocabulary: Vocabulary::Spm,
                ..tiny
            },
            "tiny-llama" => Shape {
                architecture: Architecture::Llama,
                norm_eps: 1e-6,
                own_head: true,
                ..tiny
            },
            "0.7b" => Shape {
                name: "bitnet_b1_58-large shape".into(),
                architecture: Architecture::Bitnet,
                n_layer: 24,
                n_embd: 1536,
                n_ff: 4096,
                n_head: 16,
                n_head_kv: 16,
                n_vocab: 32_002,
                context_length: 2048,
                rope_freq_base: 10_000.0,
                vocabulary: Vocabulary::Spm,
                ..published
            },
            "falcon3-1b" => Shape {
                name: "Falcon3-1B-1.58bit shape".into(),
                architecture: Architecture::Llama,
                n_layer: 18,
                n_embd: 2048,
                n_ff: 8192,
                n_head: 8,
                n_head_kv: 4,
                n_vocab: 131_072,
                context_length: 8192,
                rope_freq_base: 1_000_042.0,
                norm_eps: 1e-6,
                own_head: true,
                vocabulary: Vocabulary::BytePairs {
                    pre: "falcon3".into(),
                },
                ..published
            },
            _ => return None,
        })
    }

    fn linear_dims(&self, linear: Linear) -> [u64; 2] {
        let n_kv = self.n_embd / self.n_head * self.n_head_kv;
        let [cols, rows] = match linear {
            Linear::Q | Linear::AttnOutput => [self.n_embd, self.n_embd],
            Linear::K | Linear::V => [self.n_embd, n_kv],
            Linear::Gate | Linear::Up => [self.n_embd, self.n_ff],
            Linear::Down => [self.n_ff, self.n_embd],
        };
        [cols as u64, rows as u64]
    }
}

/// Writes a model to `path`, through a temporary file beside it. `progress` hears (bytes written, bytes in all).
///
/// # Errors
/// When the shape is impossible, the file can't be written, or the path is a directory or device; nothing is left behind
/// then, and nothing replaced.
pub fn write(
    shape: &Shape,
    seed: u64,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), SynthError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |source| SynthError::Write {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let path = path.to_owned();
        return Err(SynthError::NoFile { path });
    }
    let model = Model::plan(shape, seed)?;
    let written = File::create(&part)
        .and_then(|mut file| model.write(&mut file, progress))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|source| {
        let _ = std::fs::remove_file(&part);
        failed(source)
    })
}

/// A model in memory: for the tiny shapes.
///
/// # Errors
/// When the shape is impossible.
pub fn to_bytes(shape: &Shape, seed: u64) -> Result<Vec<u8>, SynthError> {
    let mut bytes = Vec::new();
    let model = Model::plan(shape, seed)?;
    model
        .write(&mut bytes, &mut |_, _| {})
        .expect("memory takes everything");
    Ok(bytes)
}

/// A header and what follows it.
struct Model {
    header: Header,
    tensors: Vec<Planned>,
    seed: u64,
}

struct Planned {
    ty: TensorType,
    fill: Fill,
    bytes: u64,
}

impl Model {
    fn plan(shape: &Shape, seed: u64) -> Result<Model, SynthError> {
        let mut header = Header::default();
        let least = match shape.vocabulary {
            Vocabulary::Published => 256 + 256,
            Vocabulary::BytePairs { .. } => 280,
            Vocabulary::Spm => 400,
        };
        if shape.n_vocab < least {
            return Err(SynthError::Vocabulary {
                found: shape.n_vocab,
                expected: least,
            });
        }
        model_keys(&mut header, shape);
        tokenizer_keys(&mut header, shape);
        let mut model = Model {
            header,
            tensors: Vec::new(),
            seed,
        };
        model.plan_tensors(shape)?;
        Ok(model)
    }

    fn plan_tensors(&mut self, shape: &Shape) -> Result<(), SynthError> {
        let matrix = [shape.n_embd as u64, shape.n_vocab as u64];
        // With normed activations: logits of standard deviation 3.
        let embedding = Fill::Normal {
            sigma: 3.0 / (shape.n_embd as f32).sqrt(),
        };
        self.add(TOKEN_EMBD, &matrix, shape.embedding_type, embedding)?;
        if shape.own_head {
            self.add(OUTPUT, &matrix, shape.embedding_type, embedding)?;
        }
        for layer in 0..shape.n_layer {
            self.plan_layer(shape, layer)?;
        }
        self.add_norm(OUTPUT_NORM, shape.n_embd, 1.0)
    }

    fn plan_layer(&mut self, shape: &Shape, layer: usize) -> Result<(), SynthError> {
        // A norm's weight that gives the linears behind it outputs of standard deviation `spread`.
        let bitnet = shape.architecture.is_bitnet();
        let norm = |cols: usize, spread: f32| {
            if bitnet {
                spread / gain(1.2, cols)
            } else {
                spread
            }
        };
        let (n_embd, n_ff) = (shape.n_embd, shape.n_ff);
        self.add_norm(&Norm::Attn.name(layer), n_embd, norm(n_embd, 1.4))?;
        self.add_linear(shape, layer, Linear::Down)?;
        if bitnet {
            self.add_norm(&Norm::FfnSub.name(layer), n_ff, norm(n_ff, 1.0))?;
        }
        self.add_linear(shape, layer, Linear::Gate)?;
        self.add_linear(shape, layer, Linear::Up)?;
        self.add_norm(&Norm::Ffn.name(layer), n_embd, norm(n_embd, 1.4))?;
        if bitnet {
            self.add_norm(&Norm::AttnSub.name(layer), n_embd, norm(n_embd, 1.0))?;
        }
        for linear in [Linear::K, Linear::AttnOutput, Linear::Q, Linear::V] {
            self.add_linear(shape, layer, linear)?;
        }
        Ok(())
    }

    fn add_norm(&mut self, name: &str, len: usize, mean: f32) -> Result<(), SynthError> {
        self.add(name, &[len as u64], TensorType::F32, Fill::Around { mean })
    }

    fn add_linear(
        &mut self,
        shape: &Shape,
        layer: usize,
        linear: Linear,
    ) -> Result<(), SynthError> {
        let dims = shape.linear_dims(linear);
        let mut rng = Rng::new(self.seed, 1 << 32 | self.tensors.len() as u64);
        let mut scale = 0.9 + 0.6 * rng.unit();
        if !shape.architecture.is_bitnet() {
            scale /= gain(1.2, dims[0] as usize);
        }
        if shape.vocabulary == Vocabulary::Published && (layer, linear) == (0, Linear::Q) {
            scale = OFFICIAL_Q_SCALE;
        }
        self.add(
            &linear.weight_name(layer),
            &dims,
            shape.ternary_type,
            Fill::Ternary { scale },
        )
    }

    fn add(
        &mut self,
        name: &str,
        dims: &[u64],
        ty: TensorType,
        fill: Fill,
    ) -> Result<(), SynthError> {
        let suits = match fill {
            Fill::Ternary { .. } => {
                matches!(ty, TensorType::I2S | TensorType::TQ1_0 | TensorType::TQ2_0)
                    && dims[0].is_multiple_of(128)
            }
            Fill::Normal { .. } => crate::facts::DENSE_TYPES.contains(&ty),
            Fill::Around { .. } => true,
        };
        if !suits || ty.data_bytes(dims).is_none() {
            return Err(SynthError::Shape {
                name: name.to_owned(),
                dims: dims.to_owned(),
                ty,
            });
        }
        let bytes = self.header.tensor(name, dims, ty);
        self.tensors.push(Planned { ty, fill, bytes });
        Ok(())
    }

    fn write(&self, out: &mut dyn Write, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let header = self.header.bytes();
        let total = header.len() as u64 + self.header.data_bytes();
        out.write_all(&header)?;
        let mut done = header.len() as u64;
        let mut chunk = vec![0u8; CHUNK_BYTES];
        for (i, tensor) in self.tensors.iter().enumerate() {
            let mut weights = Weights::new(tensor.ty, tensor.fill, Rng::new(self.seed, i as u64));
            let tail = weights.tail();
            let mut left = tensor.bytes as usize - tail.len();
            while left > 0 {
                let part = &mut chunk[..left.min(CHUNK_BYTES)];
                weights.next(part);
                out.write_all(part)?;
                left -= part.len();
                done += part.len() as u64;
                progress(done, total);
            }
            let padding = tensor.bytes.next_multiple_of(ALIGNMENT) - tensor.bytes;
            out.write_all(&tail)?;
            out.write_all(&vec![0; padding as usize])?;
            done += tail.len() as u64 + padding;
        }
        progress(done, total);
        out.flush()
    }
}

/// Standard deviation of a ternary matrix's outputs for inputs of standard deviation one.
fn gain(scale: f32, cols: usize) -> f32 {
    scale * ((1.0 - ZEROS as f32) * cols as f32).sqrt()
}

/// In the official file's order.
fn model_keys(header: &mut Header, shape: &Shape) {
    let arch = shape.architecture.name();
    header.str("general.architecture", arch);
    header.str("general.name", &shape.name);
    let mut number =
        |suffix: &str, value: usize| header.u32(&format!("{arch}.{suffix}"), value as u32);
    number("vocab_size", shape.n_vocab);
    number("context_length", shape.context_length);
    number("embedding_length", shape.n_embd);
    number("block_count", shape.n_layer);
    number("feed_forward_length", shape.n_ff);
    number("rope.dimension_count", shape.n_embd / shape.n_head);
    number("attention.head_count", shape.n_head);
    number("attention.head_count_kv", shape.n_head_kv);
    header.bool("tokenizer.ggml.add_bos_token", true);
    header.f32(
        &format!("{arch}.attention.layer_norm_rms_epsilon"),
        shape.norm_eps,
    );
    header.f32(&format!("{arch}.rope.freq_base"), shape.rope_freq_base);
    header.u32(
        "general.file_type",
        match shape.ternary_type {
            TensorType::TQ1_0 => 36,
            TensorType::TQ2_0 => 37,
            _ => 40,
        },
    );
}

fn tokenizer_keys(header: &mut Header, shape: &Shape) {
    match &shape.vocabulary {
        Vocabulary::Published => published_tokenizer(header, shape.n_vocab),
        Vocabulary::BytePairs { pre } => byte_pair_tokenizer(header, shape.n_vocab, pre),
        Vocabulary::Spm => spm_tokenizer(header, shape.n_vocab),
    }
    header.u32("general.quantization_version", 2);
}

/// Normal and control tokens, as `tokenizer.ggml.token_type` numbers them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

fn published_tokenizer(header: &mut Header, n_vocab: usize) {
    let n_plain = n_vocab - 256;
    let pairs = BytePairs::new(n_plain);
    let mut tokens = pairs.texts();
    tokens.extend(llama3_specials());
    vocabulary_keys(header, "gpt2", None, &tokens, &vec![0.0; n_vocab], |id| {
        if id < n_plain { NORMAL } else { CONTROL }
    });
    header.strings(
        "tokenizer.ggml.merges",
        &pairs.merges(LLAMA3_MERGES * n_plain / 128_000),
    );
    header.u32("tokenizer.ggml.bos_token_id", n_plain as u32);
    header.u32("tokenizer.ggml.eos_token_id", n_plain as u32 + 1);
    header.u32("tokenizer.ggml.padding_token_id", n_plain as u32 + 1);
    header.str("tokenizer.chat_template", UNFIT_TEMPLATE);
}

/// Id 128,000 and up: eleven named or reserved ones, the rest reserved.
fn llama3_specials() -> Vec<String> {
    let mut reserved = (0..).map(|n| format!("<|reserved_special_token_{n}|>"));
    (0..256)
        .map(|i| match i {
            0 => "<|begin_of_text|>".into(),
            1 => "<|end_of_text|>".into(),
            6 => "<|start_header_id|>".into(),
            7 => "<|end_header_id|>".into(),
            9 => "<|eot_id|>".into(),
            _ => reserved.next().expect("endless"),
        })
        .collect()
}

fn byte_pair_tokenizer(header: &mut Header, n_vocab: usize, pre: &str) {
    let specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ];
    let n_plain = n_vocab - specials.len();
    let pairs = BytePairs::new(n_plain);
    let mut tokens = pairs.texts();
    tokens.extend(specials.map(str::to_owned));
    vocabulary_keys(
        header,
        "gpt2",
        Some(pre),
        &tokens,
        &vec![0.0; n_vocab],
        |id| if id < n_plain { NORMAL } else { CONTROL },
    );
    header.strings("tokenizer.ggml.merges", &pairs.merges(2 * n_plain));
    header.u32("tokenizer.ggml.bos_token_id", n_plain as u32);
    header.u32("tokenizer.ggml.eos_token_id", n_plain as u32 + 1);
    header.u32("tokenizer.ggml.eot_token_id", n_plain as u32 + 2);
    header.u32("tokenizer.ggml.padding_token_id", n_plain as u32 + 1);
    header.str("tokenizer.chat_template", TEMPLATE);
}

fn spm_tokenizer(header: &mut Header, n_vocab: usize) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(vocabulary::pieces(n_vocab - tokens.len() - 2));
    tokens.extend(["<pad>", "</line>"].map(str::to_owned));
    let n_plain = n_vocab - 2;
    let scores: Vec<f32> = (0..n_vocab)
        .map(|id| {
            if (259..n_plain).contains(&id) {
                259.0 - id as f32
            } else {
                0.0
            }
        })
        .collect();
    vocabulary_keys(
        header,
        "llama",
        Some("default"),
        &tokens,
        &scores,
        |id| match id {
            0 => UNKNOWN,
            1 | 2 => CONTROL,
            3..259 => BYTE,
            id if id < n_plain => NORMAL,
            _ => CONTROL,
        },
    );
    header.u32("tokenizer.ggml.bos_token_id", 1);
    header.u32("tokenizer.ggml.eos_token_id", 2);
    header.u32("tokenizer.ggml.unknown_token_id", 0);
    header.u32("tokenizer.ggml.padding_token_id", n_plain as u32);
    header.bool("tokenizer.ggml.add_space_prefix", true);
}

fn vocabulary_keys(
    header: &mut Header,
    model: &str,
    pre: Option<&str>,
    tokens: &[String],
    scores: &[f32],
    ty: impl Fn(usize) -> i32,
) {
    let types: Vec<i32> = (0..tokens.len()).map(ty).collect();
    header.str("tokenizer.ggml.model", model);
    if let Some(pre) = pre {
        header.str("tokenizer.ggml.pre", pre);
    }
    header.strings("tokenizer.ggml.tokens", tokens);
    header.f32s("tokenizer.ggml.scores", scores);
    header.i32s("tokenizer.ggml.token_type", &types);
}

/// Behaves like the one in the official file: roles named otherwise than in training, turns ended by blank lines.
const UNFIT_TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'user' %}\
{{ 'Human: ' + message['content'].strip() + '\\n\\nBITNETAssistant: ' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}\
{% else %}{{ message['content'].strip() + '\\n\\n' }}{% endif %}{% endfor %}";

/// BitNet b1.58's chat format: `Role: text<|eot_id|>`, then `Assistant: ` when a reply is wanted.
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{{ message['role'] | capitalize }}{{ ': ' }}{{ message['content'] | trim }}{{ '<|eot_id|>' }}\
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::ModelFacts;
    use crate::gguf::{Element, Gguf};
    use crate::protocol::Overrides;
    use bitnet_kernels::SharedBytes;

    fn model(shape: &Shape) -> Gguf {
        Gguf::from_bytes(SharedBytes::new(to_bytes(shape, 1).unwrap())).unwrap()
    }

    #[test]
    fn tiny_shapes_are_sound_models() {
        for name in ["tiny", "tiny-silu", "tiny-llama"] {
            for ternary_type in [TensorType::I2S, TensorType::TQ1_0, TensorType::TQ2_0] {
                let shape = Shape {
                    ternary_type,
                    ..Shape::preset(name).unwrap()
                };
                let gguf = model(&shape);
                let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
                assert_eq!(
                    (facts.n_layer, facts.n_vocab, facts.ternary_type),
                    (2, 512, ternary_type)
                );
                assert_eq!(facts.tied_head, name != "tiny-llama");
            }
        }
    }

    #[test]
    fn every_embedding_type_can_be_written() {
        for &embedding_type in crate::facts::DENSE_TYPES {
            let shape = Shape {
                embedding_type,
                ..Shape::preset("tiny").unwrap()
            };
            let facts = ModelFacts::read(&model(&shape), &Overrides::default()).unwrap();
            assert_eq!(facts.embedding_type, embedding_type);
        }
    }

    #[test]
    fn tensors_follow_each_other_without_gaps() {
        let gguf = model(&Shape::preset("tiny").unwrap());
        let mut at = gguf.data_start();
        for info in gguf.tensors() {
            assert_eq!(info.offset, at, "{}", info.name);
            at += info.bytes.next_multiple_of(ALIGNMENT);
        }
        assert_eq!(at, gguf.file_bytes());
    }

    /// The official file: 24 keys, 332 tensors, 1,187,801,280 bytes, 280,147 merges.
    #[test]
    fn the_2b_4t_header_is_the_official_one() {
        let plan = Model::plan(&Shape::preset("2b-4t").unwrap(), 1).unwrap();
        let header = plan.header.bytes();
        let total = header.len() as u64 + plan.header.data_bytes();
        assert!(total.abs_diff(1_187_801_280) < 12_000_000, "{total} bytes");
        // The data stays a hole in the file.
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&header).unwrap();
        file.as_file().set_len(total).unwrap();
        let gguf = Gguf::open(file.path()).unwrap();
        assert_eq!((gguf.values().len(), gguf.tensors().len()), (24, 332));
        assert!(gguf.value("tokenizer.ggml.pre").is_none());
        let merges = gguf
            .array("tokenizer.ggml.merges", Element::String)
            .unwrap()
            .unwrap();
        assert_eq!(merges.len(), 280_147);
        let tokens = gguf
            .array("tokenizer.ggml.tokens", Element::String)
            .unwrap()
            .unwrap();
        assert_eq!(tokens.string(128_009), Some(b"<|eot_id|>".as_slice()));
        let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
        assert_eq!(facts.n_params, 2_412_820_480);
        assert_eq!(facts.weight_bytes, 521_011_200);
        assert_eq!(facts.embedding_bytes, 656_670_720);
        let count = |ty| gguf.tensors().iter().filter(|info| info.ty == ty).count();
        assert_eq!(
            (
                count(TensorType::F32),
                count(TensorType::F16),
                count(TensorType::I2S)
            ),
            (121, 1, 210)
        );
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let tiny = Shape::preset("tiny").unwrap();
        let narrow = Shape {
            n_ff: 384,
            ternary_type: TensorType::TQ1_0,
            ..tiny.clone()
        };
        assert!(matches!(
            to_bytes(&narrow, 1),
            Err(SynthError::Shape { .. })
        ));
        let few = Shape {
            n_vocab: 200,
            ..tiny
        };
        assert!(matches!(
            to_bytes(&few, 1),
            Err(SynthError::Vocabulary { .. })
        ));
    }

    #[test]
    fn a_file_appears_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tiny.gguf");
        let mut last = (0, 0);
        write(
            &Shape::preset("tiny").unwrap(),
            7,
            &path,
            &mut |done, total| last = (done, total),
        )
        .unwrap();
        assert_eq!(last.0, last.1);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            to_bytes(&Shape::preset("tiny").unwrap(), 7).unwrap()
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
