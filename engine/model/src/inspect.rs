//! What is in a GGUF file: header, tensors, tokenizer, what is known to be wrong with it and what this program does about that,
//! and the memory it needs.
//!
//! Without verifying, a few pages of each ternary tensor are read and the share of zeros is an estimate. Verifying reads
//! the whole file: its SHA-256, every code of every ternary tensor, exact shares.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::convert::from_gguf::{has_wrong_template, lacks_eot, lacks_pre};
use crate::convert::lookup::Tiles;
use crate::convert::output::{digest_of_all, hex};
use crate::convert::packings::{I2sLayout, Trits};
use crate::convert::{exact_scale, tiles_of};
use crate::facts::{ModelFacts, OUTPUT, TERNARY_TYPES};
use crate::gguf::{Gguf, GgufError, TensorInfo, TensorType, Value, grouped};
use crate::protocol::{Activation, KvType, Overrides};

/// Bytes of one sample of codes, and samples per tensor.
const SAMPLE_BYTES: usize = 4096;
const SAMPLES: usize = 4;
/// Contexts whose memory is shown, where the model has that many.
const CONTEXTS: [usize; 4] = [2048, 4096, 8192, 32768];
/// Bytes hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// A published file that is known by its content.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Published {
    /// `ORG/REPO` on the hub.
    pub repo: &'static str,
    pub file: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
}

/// Microsoft's flagship.
pub const BITNET_2B_4T: Published = Published {
    repo: "microsoft/bitnet-b1.58-2B-4T-gguf",
    file: "ggml-model-i2_s.gguf",
    bytes: 1_187_801_280,
    sha256: "4221b252fdd5fd25e15847adfeb5ee88886506ba50b8a34548374492884c2162",
};

/// All of them.
pub const PUBLISHED: &[Published] = &[BITNET_2B_4T];

impl Published {
    fn name(&self) -> String {
        format!("{}/{}", self.repo, self.file)
    }
}

/// A file looked at.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Inspection {
    pub file: String,
    pub file_bytes: u64,
    pub gguf_version: u32,
    pub alignment: u64,
    pub header_bytes: u64,
    pub n_keys: usize,
    pub n_tensors: usize,
    /// The model, when this program can run it.
    pub model: Option<Model>,
    /// Why it can't.
    pub refused: Option<String>,
    pub types: Vec<TypeShare>,
    pub ternary: Option<Ternary>,
    pub tokenizer: Option<TokenizerFacts>,
    pub memory: Option<Memory>,
    pub problems: Vec<Problem>,
    pub verified: Option<Verified>,
    pub keys: Vec<Key>,
    pub tensors: Vec<TensorFacts>,
}

/// The graph.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Model {
    pub architecture: String,
    pub name: Option<String>,
    pub parameters: u64,
    pub layers: usize,
    pub embedding_length: usize,
    pub feed_forward_length: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_length: usize,
    pub vocabulary: usize,
    pub context_length: usize,
    pub rope_freq_base: f32,
    pub norm_epsilon: f32,
    pub activation: &'static str,
    pub tied_head: bool,
}

/// All tensors of one type.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct TypeShare {
    #[serde(rename = "type")]
    pub ty: String,
    pub tensors: usize,
    pub weights: u64,
    pub bytes: u64,
}

/// The ternary tensors together.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Ternary {
    pub tensors: usize,
    pub weights: u64,
    /// Share of zeros, from 0 to 1.
    pub zeros: Option<f64>,
    /// Whether that is an estimate from a few pages of each tensor.
    pub sampled: bool,
    pub smallest_scale: Option<f32>,
    pub median_scale: Option<f32>,
    pub largest_scale: Option<f32>,
}

/// What the tokenizer's keys say.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct TokenizerFacts {
    pub model: Option<String>,
    pub pre: Option<String>,
    pub tokens: usize,
    pub merges: Option<usize>,
    pub bos: Option<Token>,
    pub eos: Option<Token>,
    pub eot: Option<Token>,
    pub adds_bos: Option<bool>,
    pub chat_template: Option<String>,
}

/// A token by id and text.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Token {
    pub id: u64,
    pub text: Option<String>,
}

/// Bytes, without the two processes and their buffers.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Memory {
    pub weights_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub contexts: Vec<ContextMemory>,
}

/// Of one slot with this many tokens, keys and values in f16.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct ContextMemory {
    pub context: usize,
    pub kv_bytes: u64,
    pub total_bytes: u64,
}

/// Something wrong or remarkable.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Problem {
    pub what: String,
    /// What this program does about it, or what the user can.
    pub action: String,
}

/// What reading all of it found.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Verified {
    pub sha256: String,
    /// The published file it is, if it is one.
    pub published: Option<String>,
    /// SHA-256 of all ternary weights, as `convert` prints it.
    pub weights_sha256: Option<String>,
    /// What is wrong with codes, scales or sizes.
    pub faults: Vec<String>,
}

/// A key; long values are cut.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Key {
    pub key: String,
    #[serde(rename = "type")]
    pub ty: String,
    pub value: String,
}

/// A tensor.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct TensorFacts {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: String,
    /// Fastest first, as in the file.
    pub dims: Vec<u64>,
    pub offset: u64,
    pub bytes: u64,
    pub scale: Option<f32>,
    pub zeros: Option<f64>,
}

/// Looks at a file.
///
/// # Errors
/// When it is no sound GGUF, or can't be read.
pub fn inspect(path: &Path, verify: bool, tiles: &[Tiles]) -> Result<Inspection, GgufError> {
    let gguf = Gguf::open(path)?;
    let overrides = Overrides {
        lookup_tiles: tiles.to_vec(),
        ..Overrides::default()
    };
    let facts = ModelFacts::read(&gguf, &overrides);
    let mut look = Look {
        gguf: &gguf,
        tiles: [tiles.to_vec(), tiles_of(&gguf)].concat(),
        verify,
        faults: Vec::new(),
        digests: Vec::new(),
        zeros: (0.0, 0),
    };
    let tensors: Vec<TensorFacts> = gguf
        .tensors()
        .iter()
        .map(|info| look.tensor(info))
        .collect();
    let ternary = look.ternary(&tensors);
    let verified = match verify {
        false => None,
        true => Some(look.verified(path).map_err(|cause| GgufError::Open {
            path: path.to_owned(),
            cause,
        })?),
    };
    let problems = problems(&gguf, facts.as_ref().ok(), verified.as_ref());
    let (model, memory, refused) = match &facts {
        Ok(facts) => (Some(model(facts)), Some(memory(facts)), None),
        Err(error) => (None, None, Some(error.to_string())),
    };
    Ok(Inspection {
        file: path.display().to_string(),
        file_bytes: gguf.file_bytes(),
        gguf_version: gguf.version(),
        alignment: gguf.alignment(),
        header_bytes: gguf.data_start(),
        n_keys: gguf.values().len(),
        n_tensors: gguf.tensors().len(),
        model,
        refused,
        types: types(&gguf),
        ternary,
        tokenizer: tokenizer(&gguf),
        memory,
        problems,
        verified,
        keys: gguf.values().iter().map(key).collect(),
        tensors,
    })
}

fn model(facts: &ModelFacts) -> Model {
    Model {
        architecture: facts.architecture.to_string(),
        name: facts.name.clone(),
        parameters: facts.n_params,
        layers: facts.n_layer,
        embedding_length: facts.n_embd,
        feed_forward_length: facts.n_ff,
        heads: facts.n_head,
        kv_heads: facts.n_head_kv,
        head_length: facts.head_dim,
        vocabulary: facts.n_vocab,
        context_length: facts.context_length,
        rope_freq_base: facts.rope.freq_base,
        norm_epsilon: facts.norm_eps,
        activation: activation(facts.activation),
        tied_head: facts.tied_head,
    }
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu2 => "squared ReLU",
        Activation::Silu => "SiLU",
        Activation::Gelu => "GELU",
    }
}

fn memory(facts: &ModelFacts) -> Memory {
    let weights_bytes = facts.weight_bytes + facts.dense_bytes() + facts.vector_bytes;
    let kv_bytes_per_token = facts.kv_bytes_per_token(KvType::F16);
    let most = facts.context_length;
    let contexts = CONTEXTS.into_iter().filter(|&context| context < most);
    let of = |context: usize| {
        let kv_bytes = kv_bytes_per_token.saturating_mul(context as u64);
        ContextMemory {
            context,
            kv_bytes,
            total_bytes: weights_bytes.saturating_add(kv_bytes),
        }
    };
    Memory {
        weights_bytes,
        kv_bytes_per_token,
        contexts: contexts.chain([most]).map(of).collect(),
    }
}

fn types(gguf: &Gguf) -> Vec<TypeShare> {
    let mut shares: Vec<TypeShare> = Vec::new();
    for info in gguf.tensors() {
        let name = info.ty.to_string();
        let at = shares.iter().position(|share| share.ty == name);
        let at = at.unwrap_or_else(|| {
            shares.push(TypeShare {
                ty: name,
                tensors: 0,
                weights: 0,
                bytes: 0,
            });
            shares.len() - 1
        });
        shares[at].tensors += 1;
        shares[at].weights += info.elements();
        shares[at].bytes += info.bytes;
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

fn tokenizer(gguf: &Gguf) -> Option<TokenizerFacts> {
    let text = |key: &str| gguf.value(key).and_then(Value::as_str).map(str::to_owned);
    let array = |key: &str| gguf.value(key).and_then(Value::as_array);
    let tokens = array("tokenizer.ggml.tokens")?;
    let token = |role: &str| {
        let id = gguf
            .value(&format!("tokenizer.ggml.{role}_token_id"))?
            .as_u64()?;
        let text = tokens.string(id as usize);
        let text = text.map(|text| String::from_utf8_lossy(text).into_owned());
        Some(Token { id, text })
    };
    Some(TokenizerFacts {
        model: text("tokenizer.ggml.model"),
        pre: text("tokenizer.ggml.pre"),
        tokens: tokens.len(),
        merges: array("tokenizer.ggml.merges").map(|merges| merges.len()),
        bos: token("bos"),
        eos: token("eos"),
        eot: token("eot"),
        adds_bos: gguf.bool("tokenizer.ggml.add_bos_token").ok().flatten(),
        chat_template: text("tokenizer.chat_template"),
    })
}

/// Characters of a value that are shown.
const VALUE_CHARS: usize = 100;

fn key((key, value): &(String, Value)) -> Key {
    let shown = match value {
        Value::String(text) => text.clone(),
        Value::Array(array) => format!("{} entries", grouped(array.len() as u64)),
        Value::Bool(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
    };
    let cut = shown.char_indices().nth(VALUE_CHARS);
    Key {
        key: key.clone(),
        ty: value.type_name(),
        value: cut.map_or(shown.clone(), |(end, _)| format!("{}…", &shown[..end])),
    }
}

/// Tensors seen so far.
struct Look<'a> {
    gguf: &'a Gguf,
    tiles: Vec<Tiles>,
    verify: bool,
    faults: Vec<String>,
    digests: Vec<(String, [u8; 32])>,
    /// Zeros, weighted by tensor, and weights they stand for.
    zeros: (f64, u64),
}

impl Look<'_> {
    fn tensor(&mut self, info: &TensorInfo) -> TensorFacts {
        let mut facts = TensorFacts {
            name: info.name.clone(),
            ty: info.ty.to_string(),
            dims: info.dims.clone(),
            offset: info.offset,
            bytes: info.bytes,
            scale: None,
            zeros: None,
        };
        if TERNARY_TYPES.contains(&info.ty) {
            let data = self.gguf.data(info);
            match self.verify {
                true => self.read_all(info, &data, &mut facts),
                false => {
                    facts.zeros = sampled_zeros(info.ty, &data);
                    facts.scale = scale(info, &data);
                }
            }
            if let Some(zeros) = facts.zeros {
                self.zeros.0 += zeros * info.elements() as f64;
                self.zeros.1 += info.elements();
            }
        } else if self.verify {
            self.check_floats(info);
        }
        facts
    }

    fn read_all(&mut self, info: &TensorInfo, data: &[u8], facts: &mut TensorFacts) {
        let shape = (info.rows() as usize, info.cols() as usize);
        let tiles = match info.ty {
            TensorType::TL1 | TensorType::TL2 => {
                match Tiles::find(info.ty, shape.0, shape.1, &self.tiles) {
                    Ok(tiles) => Some(tiles),
                    Err(error) => {
                        self.faults.push(format!("tensor `{}`: {error}", info.name));
                        return;
                    }
                }
            }
            _ => None,
        };
        let exact = exact_scale(self.gguf, &info.name);
        let layout = I2sLayout::default();
        match Trits::unpack(info.ty, data, shape, layout, tiles, exact) {
            Err(error) => self.faults.push(format!("tensor `{}`: {error}", info.name)),
            Ok(trits) => {
                facts.scale = Some(trits.scale);
                facts.zeros = Some(trits.zeros() as f64 / trits.weights.len() as f64);
                self.digests.push((info.name.clone(), trits.digest()));
            }
        }
    }

    /// Infinity and NaN in the float tensors.
    fn check_floats(&mut self, info: &TensorInfo) {
        let data = self.gguf.data(info);
        let infinite = |mask: u16| {
            let mut halves = data.as_chunks::<2>().0.iter();
            halves.position(|half| u16::from_le_bytes(*half) & mask == mask)
        };
        let bad = match info.ty {
            TensorType::F16 => infinite(0x7c00),
            TensorType::BF16 => infinite(0x7f80),
            TensorType::F32 => {
                let mut words = data.as_chunks::<4>().0.iter();
                words.position(|word| !f32::from_le_bytes(*word).is_finite())
            }
            _ => None,
        };
        if let Some(index) = bad {
            let index = grouped(index as u64);
            let name = &info.name;
            self.faults.push(format!(
                "tensor `{name}` holds no finite number at index {index}"
            ));
        }
    }

    fn ternary(&self, tensors: &[TensorFacts]) -> Option<Ternary> {
        let infos = self.gguf.tensors().iter();
        let ternary = || {
            infos
                .clone()
                .filter(|info| TERNARY_TYPES.contains(&info.ty))
        };
        ternary().next()?;
        let mut scales: Vec<f32> = tensors.iter().filter_map(|tensor| tensor.scale).collect();
        scales.sort_by(f32::total_cmp);
        Some(Ternary {
            tensors: ternary().count(),
            weights: ternary().map(TensorInfo::elements).sum(),
            zeros: (self.zeros.1 > 0).then(|| self.zeros.0 / self.zeros.1 as f64),
            sampled: !self.verify,
            smallest_scale: scales.first().copied(),
            median_scale: scales.get(scales.len() / 2).copied(),
            largest_scale: scales.last().copied(),
        })
    }

    fn verified(&self, path: &Path) -> io::Result<Verified> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; HASH_BYTES];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                n => hash.update(&chunk[..n]),
            }
        }
        let sha256 = hex(&hash.finalize());
        let mut known = PUBLISHED.iter();
        let published = known.find(|known| known.sha256 == sha256);
        let published = published.map(Published::name);
        let mut faults = self.faults.clone();
        faults.extend(self.gaps());
        let weights = (!self.digests.is_empty()).then(|| digest_of_all(self.digests.clone()));
        Ok(Verified {
            sha256,
            published,
            weights_sha256: weights,
            faults,
        })
    }

    /// Tensors that don't begin where the one before ends, which llama.cpp refuses.
    fn gaps(&self) -> Option<String> {
        let mut at = self.gguf.data_start();
        for info in self.gguf.tensors() {
            if info.offset != at {
                return Some(format!(
                    "tensor `{}` begins at {}, expected {}: llama.cpp refuses such files",
                    info.name,
                    grouped(info.offset),
                    grouped(at)
                ));
            }
            let bytes = info.ty.data_bytes(&info.dims).unwrap_or(info.bytes);
            at = info.offset + bytes.next_multiple_of(self.gguf.alignment());
        }
        None
    }
}

/// The scale, where a look at one place is enough.
fn scale(info: &TensorInfo, data: &[u8]) -> Option<f32> {
    let at = match info.ty {
        TensorType::I2S => info.elements() as usize / 4,
        TensorType::TL1 | TensorType::TL2 => data.len().checked_sub(32)?,
        _ => return None,
    };
    let word = data.get(at..)?.first_chunk::<4>()?;
    Some(f32::from_le_bytes(*word))
}

/// Share of zeros in a few places; `None` for a type whose codes can't be counted without its order.
fn sampled_zeros(ty: TensorType, data: &[u8]) -> Option<f64> {
    let codes = data.len().checked_sub(32)?;
    let (mut zeros, mut weights) = (0u64, 0u64);
    let zeros_of = |byte: u8| -> u64 {
        let ones = |b: u8| (b & !(b >> 1) & 0b01_01_01_01).count_ones();
        match ty {
            TensorType::TL1 => {
                u64::from(PAIR_ZEROS[usize::from(byte >> 4)])
                    + u64::from(PAIR_ZEROS[usize::from(byte & 15)])
            }
            _ => ones(byte).into(),
        }
    };
    let per_byte = match ty {
        TensorType::I2S | TensorType::TL1 => 4,
        _ => return None,
    };
    for sample in 0..SAMPLES {
        let start = codes / SAMPLES * sample;
        for &byte in data[start..codes].iter().take(SAMPLE_BYTES) {
            zeros += zeros_of(byte);
            weights += per_byte;
        }
    }
    (weights > 0).then(|| zeros as f64 / weights as f64)
}

/// Zeros in the pair of weights that an index of TL1 stands for.
const PAIR_ZEROS: [u8; 16] = [0, 1, 0, 1, 2, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

fn problems(gguf: &Gguf, facts: Option<&ModelFacts>, verified: Option<&Verified>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, action: &str| {
        problems.push(Problem {
            what,
            action: action.to_owned(),
        });
    };
    for fault in verified.iter().flat_map(|verified| &verified.faults) {
        add(
            fault.clone(),
            "compare the file's checksum with its source; fetch it again",
        );
    }
    let same_size = PUBLISHED
        .iter()
        .find(|known| known.bytes == gguf.file_bytes());
    if let (Some(known), Some(verified)) = (same_size, verified)
        && verified.published.is_none()
    {
        let what = format!("it has the size of {} but another checksum", known.name());
        add(
            what,
            "it may be damaged: fetch it again; or it is another model of the same shape",
        );
    }
    if lacks_pre(gguf) {
        add(
            "`tokenizer.ggml.pre` is missing: llama.cpp and bitnet.cpp cut digits and punctuation wrongly".into(),
            "read as `llama-bpe`, to which its vocabulary belongs; `convert` writes it",
        );
    } else if gguf.value("tokenizer.ggml.model").and_then(Value::as_str) == Some("gpt2")
        && gguf.value("tokenizer.ggml.pre").is_none()
    {
        add(
            "`tokenizer.ggml.pre` is missing".into(),
            "read as `default`, which may be wrong: name the right one with `--pre-tokenizer`",
        );
    }
    if has_wrong_template(gguf) {
        add(
            "the chat template is for another model (it makes `BITNETAssistant: `)".into(),
            "replaced by that of the model's repository; `convert` writes it",
        );
    }
    if lacks_eot(gguf) {
        add(
            "no end-of-turn token is named: the model would answer for the user, too".into(),
            "`<|eot_id|>` ends answers; `convert` writes it",
        );
    }
    let Some(facts) = facts else {
        return problems;
    };
    let by_name = match facts.architecture.name() {
        "bitnet-b1.58" | "bitnet-25" => Some(Activation::Relu2),
        "bitnet" => Some(Activation::Silu),
        _ => None,
    };
    if by_name.is_some_and(|by_name| by_name != facts.activation) {
        add(
            format!(
                "the architecture `{}` says {}, shape or vocabulary are those of a model trained with {}",
                facts.architecture,
                by_name.map_or("", activation),
                activation(facts.activation)
            ),
            "the model's own is taken; `--activation` overrides",
        );
    } else if facts.architecture.name() == "bitnet-b1.58" && facts.n_embd != 2560 {
        add(
            "the file doesn't say squared ReLU or SiLU: converters have named both kinds `bitnet-b1.58`".into(),
            "squared ReLU is taken; if the text is fluent but poor, try `--activation silu`",
        );
    }
    if facts.architecture.is_bitnet() && gguf.tensor(OUTPUT).is_some() {
        let what = format!("`{OUTPUT}` is there although the graph uses the embedding");
        add(
            what,
            "left unused, as in bitnet.cpp; `--untied-head` uses it",
        );
    }
    if facts.ternary_type == TensorType::I2S
        && verified.is_none_or(|verified| verified.published.is_none())
    {
        add(
            "nothing in an I2_S file says whether its codes lie in blocks of 128 (all of Microsoft's) or of 64 (bitnet.cpp on ARM since January 2026)".into(),
            "read as 128; if the text is garbage, try `bitnet-launch convert --i2s-layout 64`",
        );
    }
    for note in &facts.notes {
        if !note.contains("activation") && !note.contains(OUTPUT) {
            add(note.clone(), "as said");
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{self, Shape};

    fn written(shape: &Shape) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), synth::to_bytes(shape, 3).unwrap()).unwrap();
        file
    }

    #[test]
    fn a_sample_comes_close_to_the_exact_share() {
        let file = written(&Shape::preset("tiny").unwrap());
        let quick = inspect(file.path(), false, &[]).unwrap();
        let exact = inspect(file.path(), true, &[]).unwrap();
        let (a, b) = (quick.ternary.unwrap(), exact.ternary.unwrap());
        assert!(a.sampled && !b.sampled);
        assert!((a.zeros.unwrap() - b.zeros.unwrap()).abs() < 0.02);
        assert!((b.zeros.unwrap() - 0.42).abs() < 0.02);
        assert_eq!(a.median_scale, b.median_scale);
        assert_eq!((a.tensors, b.weights), (14, a.weights));
        assert!(exact.verified.unwrap().faults.is_empty());
        assert!(quick.verified.is_none());
        let memory = quick.memory.unwrap();
        assert_eq!(memory.contexts.len(), 1);
        assert_eq!(memory.kv_bytes_per_token, 2 * 2 * 2 * 64 * 2);
    }

    #[test]
    fn damage_is_found() {
        let shape = Shape::preset("tiny").unwrap();
        let file = written(&shape);
        let mut bytes = std::fs::read(file.path()).unwrap();
        let gguf = Gguf::open(file.path()).unwrap();
        let at = |name: &str| gguf.tensor(name).unwrap().offset as usize;
        bytes[at("blk.1.ffn_up.weight") + 100] |= 0b1100;
        bytes[at("blk.0.attn_norm.weight")..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(file.path(), bytes).unwrap();
        let faults = inspect(file.path(), true, &[])
            .unwrap()
            .verified
            .unwrap()
            .faults;
        let has = |part: &str| faults.iter().any(|fault| fault.contains(part));
        assert!(
            has("`blk.1.ffn_up.weight`: the code 3 at weight"),
            "{faults:?}"
        );
        assert!(has(
            "`blk.0.attn_norm.weight` holds no finite number at index 0"
        ));
    }

    #[test]
    fn a_model_that_cannot_run_is_still_shown() {
        let mut shape = Shape::preset("tiny-llama").unwrap();
        shape.n_embd = 256;
        let file = written(&shape);
        let bytes = std::fs::read(file.path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("llama"));
        let changed: Vec<u8> = bytes
            .windows(5)
            .position(|w| w == b"llama")
            .map(|at| {
                let mut bytes = bytes.clone();
                bytes[at..at + 5].copy_from_slice(b"lxxma");
                bytes
            })
            .unwrap();
        std::fs::write(file.path(), changed).unwrap();
        let seen = inspect(file.path(), false, &[]).unwrap();
        assert!(seen.model.is_none());
        assert!(seen.refused.unwrap().contains("`lxxma` is unknown"));
        assert_eq!(seen.n_tensors, seen.tensors.len());
    }
}
