//! Conversions: directories that Transformers saved, against its logits; tokenizers against theirs; packings there and back;
//! and everything that must be refused, with the target directory left alone. `tests/oracle/hf_convert.py` made the data.

#[path = "../common/mod.rs"]
mod common;
mod embeddings;
mod logits;
mod packings;
mod refusals;
mod tokenizers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitnet_kernels::Kernel;
use bitnet_model::convert::packings::I2sLayout;
use bitnet_model::convert::{ConvertError, Options, Plan, Summary, Watch};
use bitnet_model::facts::{Linear, ModelFacts};
use bitnet_model::gguf::{Gguf, TensorType};
use bitnet_model::graph::Entry;
use bitnet_model::inspect::inspect;
use bitnet_model::protocol::{EngineConfig, KvType, Overrides, Pooling};
use bitnet_model::synth::{Shape, write};
use bitnet_model::tensors;
use bitnet_model::tokenizer::Tokenizer;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Of the largest logit; as in `logits.rs`.
const TOLERANCE: f32 = 1e-3;

const PACKINGS: [TensorType; 5] = [
    TensorType::I2S,
    TensorType::TL1,
    TensorType::TL2,
    TensorType::TQ1_0,
    TensorType::TQ2_0,
];

fn data(name: &str) -> PathBuf {
    common::data(&format!("convert/{name}"))
}

fn to(outtype: TensorType) -> Options {
    Options {
        outtype: Some(outtype),
        ..Options::default()
    }
}

fn convert(source: &Path, target: &Path, options: &Options) -> Result<Summary, ConvertError> {
    let mut watch = Watch {
        progress: &mut |_, _, _| {},
        cancelled: &|| false,
    };
    Plan::of(source, options)?.write(target, &mut watch)
}

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_into(&data(name), copy.path());
    copy
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_into(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn edit_json(directory: &Path, name: &str, edit: impl FnOnce(&mut Value)) {
    let path = directory.join(name);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn edit_tensors(directory: &Path, edit: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = directory.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let tensor = Tensor {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        tensors.insert(name, tensor);
    }
    edit(&mut tensors);
    save(&path, &tensors);
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let mut views = Vec::new();
    for (name, t) in tensors {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap();
        views.push((name.clone(), view));
    }
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The conversion fails with this text, and leaves the directory as it was.
fn assert_refused(copy: &TempDir, parts: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("model.gguf"), "old").unwrap();
    let target = out.path().join("model.gguf");
    let error = convert(copy.path(), &target, &Options::default());
    let error = error.expect_err("a refusal");
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    let text: Vec<String> = chain.map(ToString::to_string).collect();
    let text = text.join(": ");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"old", "{text}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1, "{text}");
}

fn tiny(directory: &Path, preset: &str) -> PathBuf {
    let path = directory.join("source.gguf");
    write(&Shape::preset(preset).unwrap(), 5, &path, &mut |_, _| {}).unwrap();
    path
}

/// Bytes of each tensor; of I2_S what has a meaning.
fn contents(path: &Path) -> BTreeMap<String, (TensorType, Vec<u8>)> {
    let gguf = Gguf::open(path).unwrap();
    let one = |info: &bitnet_model::gguf::TensorInfo| {
        let mut data = gguf.data(info).to_vec();
        if info.ty == TensorType::I2S {
            data.truncate(info.elements() as usize / 4 + 4);
        }
        (info.name.clone(), (info.ty, data))
    };
    gguf.tensors().iter().map(one).collect()
}
