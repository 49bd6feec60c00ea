//! Makes GGUF files: from Hugging Face directories (master weights or Transformers' packed ones), and from other GGUF files
//! in another ternary packing.
//!
//! [`Plan::of`] reads headers and decides what the file will be; [`Plan::write`] makes it, tensor by tensor, in a temporary file
//! beside its place, reads it back, compares every weight with the source, and only then gives it its name. Memory is
//! bounded by the largest ternary tensor: as stored, as one byte per weight, and packed.
//!
//! Keys of our own, which other readers skip: [`lookup::TILES_KEY`] with the tile sizes of TL1 and TL2 tensors, and
//! [`SCALE_NAMES_KEY`], [`SCALE_VALUES_KEY`] with the f32 scales of TQ1_0 and TQ2_0 tensors, whose blocks hold f16 only.

mod checkpoint;
mod config;
mod error;
pub(crate) mod from_gguf;
mod from_hf;
mod json;
pub mod lookup;
mod master;
pub(crate) mod output;
pub mod packings;
mod sentencepiece;
mod vocabulary;

use std::path::{Path, PathBuf};

use bitnet_kernels::{f16_to_f32, f32_to_f16};

pub use error::ConvertError;
pub use output::{Phase, Summary, Watch};

use crate::facts::TERNARY_BLOCK;
use crate::gguf::{Element, Gguf, TensorType, Value, grouped};
use crate::synth::header::Header;
use checkpoint::Checkpoint;
use lookup::{TILES_KEY, Tiles};
use packings::I2sLayout;

/// Names of the tensors whose exact scales [`SCALE_VALUES_KEY`] lists.
pub const SCALE_NAMES_KEY: &str = "bitnet_launch.scales.names";
/// Exact scales of TQ1_0 and TQ2_0 tensors.
pub const SCALE_VALUES_KEY: &str = "bitnet_launch.scales.values";

/// Packings that can be written and read.
pub const OUTTYPES: &[(&str, TensorType)] = &[
    ("i2_s", TensorType::I2S),
    ("tl1", TensorType::TL1),
    ("tl2", TensorType::TL2),
    ("tq1_0", TensorType::TQ1_0),
    ("tq2_0", TensorType::TQ2_0),
];

/// Types an embedding can be written in.
pub const EMBEDDING_TYPES: &[(&str, TensorType)] = &[
    ("f16", TensorType::F16),
    ("bf16", TensorType::BF16),
    ("f32", TensorType::F32),
    ("q8_0", TensorType::Q8_0),
];

/// What the new file should be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Packing of the ternary tensors, one of [`OUTTYPES`]; when absent I2_S, or TL2 or TL1 where I2_S can't hold the rows.
    pub outtype: Option<TensorType>,
    /// Type of embedding and head, one of [`EMBEDDING_TYPES`]; F16 when absent. For Hugging Face directories only.
    pub embedding_type: Option<TensorType>,
    /// Tile sizes of TL1 and TL2, to read and to write; they win over a file's key and the presets.
    pub tiles: Vec<Tiles>,
    /// Pre-tokenizer by name.
    pub pre_tokenizer: Option<String>,
    /// Chat template in Jinja.
    pub chat_template: Option<String>,
    /// Master weights are a BitNet's, even if the configuration doesn't say so.
    pub absmean: bool,
    /// Order of codes in I2_S tensors of the source.
    pub layout: I2sLayout,
}

/// A file that can be made.
#[derive(Debug)]
pub struct Plan {
    source: Source,
    /// The keys; the table of tensors is added when the file is written.
    keys: Header,
    tensors: Vec<Planned>,
    /// Packing of the ternary tensors.
    pub outtype: TensorType,
    layout: I2sLayout,
    /// What was decided against or without the source, one sentence each.
    pub notes: Vec<String>,
}

#[derive(Debug)]
enum Source {
    HuggingFace(Checkpoint),
    Gguf(PathBuf, Box<Gguf>),
}

/// A tensor of the new file.
#[derive(Debug)]
struct Planned {
    name: String,
    /// Fastest first.
    dims: Vec<u64>,
    ty: TensorType,
    /// Of TL1 and TL2.
    tiles: Option<Tiles>,
    origin: Origin,
}

/// Where a tensor's content comes from.
#[derive(Debug)]
enum Origin {
    /// A ternary matrix of a checkpoint.
    Linear(from_hf::Linear),
    /// Floats of a checkpoint, by name; rows of this many heads interleaved where not 0; one added to each.
    Floats {
        name: String,
        heads: usize,
        plus_one: bool,
    },
    /// A ternary tensor of the same name in a GGUF, and its tiles there.
    Ternary { tiles: Option<Tiles> },
    /// A tensor of the same name and type in a GGUF.
    Same,
}

impl Plan {
    /// Reads the headers of a source: a Hugging Face directory or a GGUF file.
    ///
    /// # Errors
    /// When it can't become what `options` ask for.
    pub fn of(source: &Path, options: &Options) -> Result<Plan, ConvertError> {
        let metadata = std::fs::metadata(source).map_err(ConvertError::read(source))?;
        match metadata.is_dir() {
            true => from_hf::plan(source, options),
            false => from_gguf::plan(source, options),
        }
    }

    /// Bytes of the new file.
    pub fn output_bytes(&self) -> u64 {
        let header = self.header(&vec![0.0; self.n_ternary()]);
        header.bytes().len() as u64 + header.data_bytes()
    }

    /// Number of ternary tensors.
    pub fn n_ternary(&self) -> usize {
        self.ternary().count()
    }

    fn ternary(&self) -> impl Iterator<Item = &Planned> {
        let is_ternary =
            |t: &&Planned| matches!(t.origin, Origin::Linear(_) | Origin::Ternary { .. });
        self.tensors.iter().filter(is_ternary)
    }

    /// Number of tensors.
    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// The whole header; `scales` of the ternary tensors, whose values don't change its length.
    fn header(&self, scales: &[f32]) -> Header {
        let mut header = self.keys.clone();
        let halved = |t: &&Planned| matches!(t.ty, TensorType::TQ1_0 | TensorType::TQ2_0);
        let names = self.ternary().filter(halved).map(|t| t.name.as_str());
        let names: Vec<&str> = names.collect();
        if !names.is_empty() {
            header.strings(SCALE_NAMES_KEY, &names);
            header.f32s(SCALE_VALUES_KEY, scales);
        }
        let mut tiles: Vec<String> = Vec::new();
        for t in self.tensors.iter().filter_map(|t| t.tiles) {
            let text = t.to_string();
            if !tiles.contains(&text) {
                tiles.push(text);
            }
        }
        if !tiles.is_empty() {
            header.strings(TILES_KEY, &tiles);
        }
        for tensor in &self.tensors {
            header.tensor(&tensor.name, &tensor.dims, tensor.ty);
        }
        header
    }
}

/// The packing for matrices of these rows and columns when nobody asks for one, and why if it isn't I2_S. I2_S whose rows are no
/// whole blocks could be written, but is read by nobody else; bitnet.cpp has such models in TL1 and TL2.
fn packing_for(shapes: &[(usize, usize)], known: &[Tiles]) -> (TensorType, Option<String>) {
    let is_odd = |shape: &&(usize, usize)| !shape.1.is_multiple_of(TERNARY_BLOCK);
    let Some((_, cols)) = shapes.iter().find(is_odd) else {
        return (TensorType::I2S, None);
    };
    let suits = |ty: &TensorType| {
        let tiles = |&(rows, cols): &(usize, usize)| Tiles::find_or_choose(*ty, rows, cols, known);
        shapes.iter().all(|shape| tiles(shape).is_ok())
    };
    let lookup = [TensorType::TL2, TensorType::TL1].into_iter().find(suits);
    let note = |ty: TensorType| {
        let cols = grouped(*cols as u64);
        format!(
            "written as {ty}: rows of {cols} weights are no multiple of {TERNARY_BLOCK}, as I2_S asks for"
        )
    };
    (lookup.unwrap_or(TensorType::I2S), lookup.map(note))
}

/// What a reader of TQ1_0 and TQ2_0 files other than this program makes of the architecture: llama.cpp has these packings, but of
/// the BitNet graphs only `bitnet`, whose feed-forward part is SiLU and not the squared ReLU of BitNet b1.58 2B-4T.
fn note_on_readers(architecture: &str, ty: TensorType) -> Option<String> {
    let is_llama_cpps = matches!(ty, TensorType::TQ1_0 | TensorType::TQ2_0);
    let is_unknown = matches!(architecture, "bitnet-b1.58" | "bitnet-25");
    (is_llama_cpps && is_unknown).then(|| {
        format!(
            "llama.cpp has no architecture `{architecture}` and refuses this file (its `bitnet` has SiLU in place of squared ReLU, so no other name would do); this program reads it"
        )
    })
}

/// `general.file_type` of a packing, as llama.cpp and bitnet.cpp number them.
fn file_type(ty: TensorType) -> u32 {
    match ty {
        TensorType::TQ1_0 => 36,
        TensorType::TQ2_0 => 37,
        TensorType::TL1 => 38,
        TensorType::TL2 => 39,
        _ => 40,
    }
}

/// The tiles that a file of ours names; none in others.
pub(crate) fn tiles_of(gguf: &Gguf) -> Vec<Tiles> {
    let array = gguf.value(TILES_KEY).and_then(Value::as_array);
    let texts = array.into_iter().flat_map(|array| array.strings());
    texts
        .filter_map(|text| std::str::from_utf8(text).ok()?.parse().ok())
        .collect()
}

/// The exact scale of a TQ1_0 or TQ2_0 tensor, where the file has it.
pub(crate) fn exact_scale(gguf: &Gguf, name: &str) -> Option<f32> {
    let names = gguf.value(SCALE_NAMES_KEY)?.as_array()?;
    let values = gguf.value(SCALE_VALUES_KEY)?.as_array()?;
    (names.element() == Element::String && names.len() == values.len()).then_some(())?;
    let index = names.strings().position(|text| text == name.as_bytes())?;
    values.f32s()?.nth(index)
}

/// `exact`, when it rounds to the f16 number `half`; else `half`.
pub(crate) fn refined_scale(half: f32, exact: Option<f32>) -> f32 {
    exact
        .filter(|exact| f16_to_f32(f32_to_f16(*exact)) == half)
        .unwrap_or(half)
}
