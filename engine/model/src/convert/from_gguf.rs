//! Plans a GGUF from another: ternary tensors in another packing, everything else as it is, known faults of published files
//! corrected.

use std::path::Path;

use super::error::ConvertError;
use super::lookup::{TILES_KEY, Tiles};
use super::vocabulary::BITNET_TEMPLATE;
use super::{
    Options, Origin, Plan, Planned, SCALE_NAMES_KEY, SCALE_VALUES_KEY, Source, file_type,
    note_on_readers, packing_for, tiles_of,
};
use crate::facts::TERNARY_TYPES;
use crate::gguf::{Gguf, TensorInfo, TensorType, Value};
use crate::synth::header::Header;
use crate::tokenizer::pre::Rules;

const PRE: &str = "tokenizer.ggml.pre";
const TEMPLATE: &str = "tokenizer.chat_template";
const EOT: &str = "tokenizer.ggml.eot_token_id";
/// Vocabulary of Llama 3, and its end of turn.
const LLAMA3_VOCAB: usize = 128_256;
const LLAMA3_EOT: (u32, &[u8]) = (128_009, b"<|eot_id|>");

/// Reads the header.
pub(super) fn plan(path: &Path, options: &Options) -> Result<Plan, ConvertError> {
    let gguf = Gguf::open(path).map_err(|source| ConvertError::Gguf {
        path: path.to_owned(),
        source,
    })?;
    if options.embedding_type.is_some() {
        let reason = "the type of embeddings can be chosen for Hugging Face directories only";
        return Err(ConvertError::file(path, reason));
    }
    let mut notes = Vec::new();
    let ternary = gguf.tensors().iter();
    let ternary = ternary.filter(|info| TERNARY_TYPES.contains(&info.ty));
    let shapes: Vec<_> = ternary
        .map(|info| (info.rows() as usize, info.cols() as usize))
        .collect();
    let outtype = options.outtype.unwrap_or_else(|| {
        let (ty, note) = packing_for(&shapes, &options.tiles);
        notes.extend(note);
        ty
    });
    let architecture = gguf.value("general.architecture").and_then(Value::as_str);
    notes.extend(architecture.and_then(|name| note_on_readers(name, outtype)));
    let keys = keys(path, &gguf, options, outtype, &mut notes)?;
    let known = [options.tiles.clone(), tiles_of(&gguf)].concat();
    let tensors = gguf.tensors().iter();
    let tensors = tensors.map(|info| planned(path, info, options, outtype, &known));
    let tensors: Vec<Planned> = tensors.collect::<Result<_, _>>()?;
    if !tensors
        .iter()
        .any(|tensor| matches!(tensor.origin, Origin::Ternary { .. }))
    {
        let reason = "it holds no ternary tensor (I2_S, TL1, TL2, TQ1_0, TQ2_0); master weights are taken from Hugging Face directories";
        return Err(ConvertError::file(path, reason));
    }
    Ok(Plan {
        source: Source::Gguf(path.to_owned(), Box::new(gguf)),
        keys,
        tensors,
        outtype,
        layout: options.layout,
        notes,
    })
}

fn planned(
    path: &Path,
    info: &TensorInfo,
    options: &Options,
    ty: TensorType,
    known: &[Tiles],
) -> Result<Planned, ConvertError> {
    let wrong = |reason: String| ConvertError::tensor(path, &info.name, reason);
    let (rows, cols) = (info.rows() as usize, info.cols() as usize);
    let is_lookup = |ty| matches!(ty, TensorType::TL1 | TensorType::TL2);
    if !TERNARY_TYPES.contains(&info.ty) {
        if info.ty.data_bytes(&info.dims) != Some(info.bytes) {
            return Err(wrong(format!("{}, a type of unknown size", info.ty)));
        }
        return Ok(Planned {
            name: info.name.clone(),
            dims: info.dims.clone(),
            ty: info.ty,
            tiles: None,
            origin: Origin::Same,
        });
    }
    let of_source = is_lookup(info.ty).then(|| Tiles::find(info.ty, rows, cols, known));
    let of_source = of_source
        .transpose()
        .map_err(|error| wrong(error.to_string()))?;
    // Tiles of another packing than the source's are not the file's.
    let to_write = match ty == info.ty {
        true => known,
        false => &options.tiles,
    };
    let tiles = is_lookup(ty).then(|| Tiles::find_or_choose(ty, rows, cols, to_write));
    let tiles = tiles
        .transpose()
        .map_err(|error| wrong(error.to_string()))?;
    let block = match ty {
        TensorType::I2S => 128,
        _ => ty.block().map_or(1, |block| block.0 as usize),
    };
    if !cols.is_multiple_of(block) || ty.data_bytes(&info.dims).is_none() {
        return Err(wrong(format!(
            "{ty} needs rows of a multiple of {block} weights, they have {cols}"
        )));
    }
    Ok(Planned {
        name: info.name.clone(),
        dims: info.dims.clone(),
        ty,
        tiles,
        origin: Origin::Ternary { tiles: of_source },
    })
}

/// The keys of the source, in their order, with what must change.
fn keys(
    path: &Path,
    gguf: &Gguf,
    options: &Options,
    outtype: TensorType,
    notes: &mut Vec<String>,
) -> Result<Header, ConvertError> {
    let ours = [
        TILES_KEY,
        SCALE_NAMES_KEY,
        SCALE_VALUES_KEY,
        "general.alignment",
    ];
    let mut keys = Header::default();
    let wrong_template = has_wrong_template(gguf);
    for (key, value) in gguf.values() {
        match key.as_str() {
            "general.file_type" => keys.u32(key, file_type(outtype)),
            key if ours.contains(&key) => {}
            PRE if options.pre_tokenizer.is_some() => {}
            TEMPLATE if options.chat_template.is_some() || wrong_template => {}
            _ => keys.copy(key, value),
        }
    }
    if gguf.value("general.file_type").is_none() {
        keys.u32("general.file_type", file_type(outtype));
    }
    match &options.pre_tokenizer {
        Some(name) if Rules::by_name(name).is_none() => {
            let known = Rules::known();
            let reason = format!("the pre-tokenizer `{name}` is unknown, known are {known}");
            return Err(ConvertError::file(path, reason));
        }
        Some(name) => keys.str(PRE, name),
        None if lacks_pre(gguf) => {
            keys.str(PRE, "llama-bpe");
            notes.push(format!("corrected: `{PRE}` was missing, now `llama-bpe`"));
        }
        None => {}
    }
    if let Some(template) = &options.chat_template {
        keys.str(TEMPLATE, template);
    } else if wrong_template {
        keys.str(TEMPLATE, BITNET_TEMPLATE);
        notes.push(
            "corrected: the chat template did not fit the model, now that of its repository"
                .to_owned(),
        );
    }
    if lacks_eot(gguf) {
        keys.u32(EOT, LLAMA3_EOT.0);
        notes.push(format!(
            "corrected: `{EOT}` was missing, now {}",
            LLAMA3_EOT.0
        ));
    }
    Ok(keys)
}

fn is_2b_4t(gguf: &Gguf) -> bool {
    let arch = gguf.value("general.architecture").and_then(Value::as_str);
    matches!(arch, Some("bitnet-b1.58" | "bitnet-25"))
}

fn is_llama3(gguf: &Gguf) -> bool {
    let model = gguf.value("tokenizer.ggml.model").and_then(Value::as_str);
    let tokens = gguf
        .value("tokenizer.ggml.tokens")
        .and_then(Value::as_array);
    model == Some("gpt2") && tokens.is_some_and(|tokens| tokens.len() == LLAMA3_VOCAB)
}

/// Published 2B-4T files don't name their pre-tokenizer.
pub(crate) fn lacks_pre(gguf: &Gguf) -> bool {
    is_2b_4t(gguf) && is_llama3(gguf) && gguf.value(PRE).is_none()
}

/// Nor what ends a turn.
pub(crate) fn lacks_eot(gguf: &Gguf) -> bool {
    let tokens = gguf
        .value("tokenizer.ggml.tokens")
        .and_then(Value::as_array);
    let named = tokens.and_then(|tokens| tokens.string(LLAMA3_EOT.0 as usize));
    is_2b_4t(gguf) && is_llama3(gguf) && gguf.value(EOT).is_none() && named == Some(LLAMA3_EOT.1)
}

/// And their chat template is one for another model.
pub(crate) fn has_wrong_template(gguf: &Gguf) -> bool {
    let template = gguf.value(TEMPLATE).and_then(Value::as_str);
    is_2b_4t(gguf) && template.is_some_and(|template| template.contains("BITNET"))
}
