//! Conversions: directories that Transformers saved, against its logits; tokenizers against theirs; packings there and back;
//! and everything that must be refused, with the target directory left alone. `tests/oracle/hf_convert.py` made the data.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bitnet_model::convert::packings::I2sLayout;
use bitnet_model::convert::{ConvertError, Options, Plan, Summary, Watch};
use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::{Gguf, TensorType};
use bitnet_model::graph::Entry;
use bitnet_model::protocol::{KvType, Overrides};
use bitnet_model::synth::{Shape, write};
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
        outtype,
        ..Options::default()
    }
}

fn convert(source: &Path, target: &Path, options: &Options) -> Result<Summary, ConvertError> {
    let cancelled = AtomicBool::new(false);
    let mut watch = Watch {
        progress: &mut |_, _, _| {},
        cancelled: &cancelled,
    };
    Plan::of(source, options)?.write(target, &mut watch)
}

// Logits -----------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Vectors {
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    argmax: Vec<usize>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

#[test]
fn master_weights_give_transformers_logits() {
    assert_same_logits("masters", "bitnet-b1.58");
}

#[test]
fn packed_weights_times_their_scale_give_transformers_logits() {
    assert_same_logits("packed", "bitnet-b1.58");
}

#[test]
fn packed_weights_over_their_scale_give_transformers_logits() {
    assert_same_logits("packed_llama", "llama");
}

fn assert_same_logits(name: &str, architecture: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.gguf");
    convert(&data(name), &file, &Options::default()).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
    assert_eq!(facts.architecture.name(), architecture);
    assert_eq!(facts.embedding_type, TensorType::F16);
    let text = std::fs::read_to_string(data(&format!("{name}.json"))).unwrap();
    let vectors: Vectors = serde_json::from_str(&text).unwrap();
    for sequence in vectors.sequences {
        let mut config = common::config(&file);
        config.kv_type = KvType::F32;
        let mut engine = common::load(&config);
        let mut found = Vec::new();
        for &token in &sequence.tokens {
            let entry = Entry {
                slot: 0,
                token,
                wants_logits: true,
            };
            found.push(engine.forward(&[entry])[..facts.n_vocab].to_vec());
        }
        let best: Vec<usize> = found.iter().map(|row| argmax(row)).collect();
        assert_eq!(best, sequence.argmax, "{name}");
        for (&position, expected) in sequence.positions.iter().zip(&sequence.logits) {
            let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            let pairs = found[position].iter().zip(expected);
            let worst = pairs.fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
            assert!(worst / largest < TOLERANCE, "{name} {position}: {worst}");
        }
    }
}

fn argmax(row: &[f32]) -> usize {
    let best = row.iter().enumerate();
    let best = best.max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0
}

// Tokenizers -------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct TokenizerVectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    add_special: bool,
    parse_special: bool,
    ids: Vec<u32>,
}

fn cases(name: &str) -> Vec<Case> {
    let json = std::fs::read(common::data(&format!("tokenizer_{name}.json"))).unwrap();
    serde_json::from_slice::<TokenizerVectors>(&json)
        .unwrap()
        .cases
}

/// The model of `packed` with the tokenizer of another directory: `vocab_size` and the embedding grow with it.
fn with_tokenizer(files: &Path, n_vocab: usize, edit: &[(&str, Value)]) -> TempDir {
    let copy = copy_of("packed");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::remove_file(copy.path().join(name)).unwrap();
    }
    for entry in std::fs::read_dir(files).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    edit_json(copy.path(), "config.json", |config| {
        config["vocab_size"] = json!(n_vocab);
        config["bos_token_id"] = Value::Null;
        config["eos_token_id"] = Value::Null;
    });
    for (name, value) in edit {
        std::fs::write(copy.path().join(name), value.to_string()).unwrap();
    }
    edit_tensors(copy.path(), |tensors| {
        let embedding = tensors.get_mut("model.embed_tokens.weight").unwrap();
        embedding.shape = vec![n_vocab, 128];
        embedding.data = vec![0; n_vocab * 128 * 2];
    });
    copy
}

fn assert_same_tokens(name: &str, copy: &Path) -> Gguf {
    let file = copy.join("model.gguf");
    convert(copy, &file, &Options::default()).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf, &Overrides::default()).unwrap();
    for case in cases(name) {
        let ids = tokenizer.encode(&case.text, case.add_special, case.parse_special);
        assert_eq!(ids, case.ids, "{name}: {:?}", case.text);
    }
    gguf
}

fn tokens_in(name: &str) -> usize {
    let gguf = Gguf::open(&common::data(&format!("tokenizer_{name}.gguf"))).unwrap();
    let tokens = gguf.value("tokenizer.ggml.tokens").unwrap();
    tokens.as_array().unwrap().len()
}

#[test]
fn byte_level_bpe_gives_the_same_tokens() {
    let n_vocab = tokens_in("llama-bpe");
    let said = json!({"add_bos_token": true, "bos_token": "<|begin_of_text|>",
        "eos_token": {"content": "<|end_of_text|>"}, "chat_template": "{{ messages }}"});
    let copy = with_tokenizer(
        &data("bpe"),
        n_vocab,
        &[("tokenizer_config.json", said.clone())],
    );
    let gguf = assert_same_tokens("llama-bpe", copy.path());
    let text = |key: &str| {
        gguf.str(&format!("tokenizer.{key}"))
            .unwrap()
            .unwrap()
            .to_owned()
    };
    assert_eq!(text("ggml.pre"), "llama-bpe");
    assert_eq!(text("chat_template"), "{{ messages }}");
    let id = |key: &str| gguf.u64(&format!("tokenizer.ggml.{key}_token_id")).unwrap();
    let bos = id("bos").unwrap();
    assert_eq!((id("eos"), id("eot")), (Some(bos + 1), Some(bos + 2)));

    // Rows of the embedding beyond the tokens; merges joined with a blank; another pattern, another name.
    std::fs::write(copy.path().join("chat_template.jinja"), "of its own file").unwrap();
    edit_json(copy.path(), "tokenizer.json", |json| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        for merge in merges.iter_mut() {
            *merge = json!(format!(
                "{} {}",
                merge[0].as_str().unwrap(),
                merge[1].as_str().unwrap()
            ));
        }
        json["model"]["ignore_merges"] = json!(false);
        let split = &mut json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
        *split = json!(split.as_str().unwrap().replace(r"\p{N}{1,3}", r"\p{N}"));
    });
    edit_json(copy.path(), "tokenizer_config.json", |json| {
        json["add_bos_token"] = json!(false);
    });
    let file = copy.path().join("other.gguf");
    convert(copy.path(), &file, &Options::default()).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    assert_eq!(gguf.str("tokenizer.ggml.pre").unwrap(), Some("qwen2"));
    let template = gguf.str("tokenizer.chat_template").unwrap();
    assert_eq!(template, Some("of its own file"));
}

#[test]
fn sentencepiece_gives_the_same_tokens() {
    for name in ["spm", "spm_no_prefix"] {
        // Two rows more than pieces: one an added token, one nothing.
        let n_pieces = tokens_in(name);
        let added = json!({ "<pad>": n_pieces });
        let copy = with_tokenizer(&data(name), n_pieces + 2, &[("added_tokens.json", added)]);
        let gguf = assert_same_tokens(name, copy.path());
        let tokens = gguf.value("tokenizer.ggml.tokens").unwrap();
        let tokens = tokens.as_array().unwrap();
        assert_eq!(tokens.string(n_pieces), Some(b"<pad>".as_slice()));
        let last = format!("[PAD{}]", n_pieces + 1);
        assert_eq!(tokens.string(n_pieces + 1), Some(last.as_bytes()));
        let prefix = gguf.bool("tokenizer.ggml.add_space_prefix").unwrap();
        assert_eq!(prefix, Some(name == "spm"));
    }
}

/// The same SentencePiece vocabulary as a `tokenizer.json`, the way Transformers writes it.
#[test]
fn sentencepiece_in_a_tokenizer_json_gives_the_same_tokens() {
    let n_pieces = tokens_in("spm");
    let gguf = Gguf::open(&common::data("tokenizer_spm.gguf")).unwrap();
    let array = |key: &str| {
        let value = gguf.value(&format!("tokenizer.ggml.{key}")).unwrap();
        value.as_array().unwrap().clone()
    };
    let (tokens, scores) = (array("tokens"), array("scores"));
    let types: Vec<i32> = array("token_type").i32s().unwrap().collect();
    let scores: Vec<f32> = scores.f32s().unwrap().collect();
    let texts: Vec<String> = tokens
        .strings()
        .map(|text| String::from_utf8(text.to_vec()).unwrap())
        .collect();
    let ids: BTreeMap<&str, usize> = texts.iter().map(String::as_str).zip(0..).collect();
    let mut merges: Vec<(f32, usize, String, String)> = Vec::new();
    for (id, text) in texts.iter().enumerate().filter(|(id, _)| types[*id] == 1) {
        for (at, _) in text.char_indices().skip(1) {
            let (a, b) = text.split_at(at);
            if ids.contains_key(a) && ids.contains_key(b) {
                merges.push((-scores[id], at, a.to_owned(), b.to_owned()));
            }
        }
    }
    merges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let merges: Vec<Value> = merges.iter().map(|(.., a, b)| json!([a, b])).collect();
    let special = |id: usize| json!({"id": id, "content": texts[id], "special": true});
    let controls = (0..n_pieces).filter(|id| matches!(types[*id], 2 | 3));
    let file = json!({
        "added_tokens": controls.map(special).collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
            "vocab": ids, "merges": merges},
    });
    let said = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let empty = tempfile::tempdir().unwrap();
    let copy = with_tokenizer(
        empty.path(),
        n_pieces,
        &[("tokenizer.json", file), ("tokenizer_config.json", said)],
    );
    assert_same_tokens("spm", copy.path());
}

// Packings ---------------------------------------------------------------------------------------------------------

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

#[test]
fn packings_there_and_back_are_equal_bit_for_bit() {
    for preset in ["tiny", "tiny-llama"] {
        let directory = tempfile::tempdir().unwrap();
        let source = tiny(directory.path(), preset);
        let mut checksums = Vec::new();
        let mut at = source.clone();
        let way = [
            TensorType::TQ2_0,
            TensorType::I2S,
            TensorType::TL2,
            TensorType::TL1,
            TensorType::TQ1_0,
            TensorType::I2S,
        ];
        for (step, outtype) in way.into_iter().enumerate() {
            let next = directory.path().join(format!("{step}.gguf"));
            let summary = convert(&at, &next, &to(outtype)).unwrap();
            assert_eq!(summary.before, summary.after);
            checksums.push(summary.after);
            at = next;
        }
        checksums.dedup();
        assert_eq!(checksums.len(), 1);
        assert_eq!(contents(&at), contents(&source), "{preset}");
    }
}

#[test]
fn packed_checkpoints_keep_their_weights_in_every_packing() {
    let directory = tempfile::tempdir().unwrap();
    // d = 128 suits I2_S only.
    let direct = directory.path().join("direct.gguf");
    let summary = convert(&data("packed"), &direct, &to(TensorType::I2S)).unwrap();
    assert_eq!(summary.before, summary.after);
    for outtype in [TensorType::TQ2_0, TensorType::TL2] {
        let target = directory.path().join("no.gguf");
        let error = convert(&data("packed"), &target, &to(outtype)).unwrap_err();
        assert!(error.to_string().contains("model.layers.0."), "{error}");
        assert!(!target.exists());
    }
}

#[test]
fn every_packing_makes_the_same_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let mut outcomes = Vec::new();
    for outtype in PACKINGS {
        let file = directory.path().join(format!("{outtype}.gguf"));
        convert(&source, &file, &to(outtype)).unwrap();
        let facts = ModelFacts::read(&Gguf::open(&file).unwrap(), &Overrides::default()).unwrap();
        assert_eq!(facts.ternary_type, outtype);
        let mut run = common::Run::new(&common::config(&file));
        outcomes.push(
            run.generate(common::submit(1, &common::prompt(3, 9)))
                .tokens,
        );
    }
    assert!(!outcomes[0].is_empty());
    outcomes.dedup();
    assert_eq!(outcomes.len(), 1);
}

/// A file as bitnet.cpp writes it names no tiles: presets or the user must.
#[test]
fn foreign_lookup_files_need_tiles() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let lookup = directory.path().join("tl2.gguf");
    convert(&source, &lookup, &to(TensorType::TL2)).unwrap();
    let mut bytes = std::fs::read(&lookup).unwrap();
    let key = b"bitnet_launch.lookup_tiles";
    let at = bytes
        .windows(key.len())
        .position(|part| part == key)
        .unwrap();
    bytes[at..at + 3].copy_from_slice(b"xxx");
    let foreign = directory.path().join("foreign.gguf");
    std::fs::write(&foreign, bytes).unwrap();
    let target = directory.path().join("i2_s.gguf");
    let error = convert(&foreign, &target, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("no tile sizes are known"));
    assert!(error.hint().unwrap().contains("--lookup-tiles"));
    let known = Gguf::open(&lookup).unwrap();
    let tiles = known
        .value(bitnet_model::convert::lookup::TILES_KEY)
        .unwrap();
    let tiles = tiles.as_array().unwrap().strings();
    let tiles = tiles.map(|text| std::str::from_utf8(text).unwrap().parse().unwrap());
    let options = Options {
        tiles: tiles.collect(),
        ..Options::default()
    };
    convert(&foreign, &target, &options).unwrap();
    assert_eq!(contents(&target), contents(&source));
    let mut config = common::config(&foreign);
    config.overrides.lookup_tiles = options.tiles;
    let mut run = common::Run::new(&config);
    assert!(
        !run.generate(common::submit(1, &[1, 2, 3]))
            .tokens
            .is_empty()
    );
}

#[test]
fn the_64_layout_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let gguf = Gguf::open(&source).unwrap();
    let mut bytes = std::fs::read(&source).unwrap();
    for info in gguf
        .tensors()
        .iter()
        .filter(|info| info.ty == TensorType::I2S)
    {
        let at = info.offset as usize;
        let codes = &mut bytes[at..at + info.elements() as usize / 4];
        for block in codes.chunks_exact_mut(32) {
            let code = |j: usize| block[j % 32] >> (6 - 2 * (j / 32)) & 3;
            let mut other = [0u8; 32];
            for j in 0..128 {
                let (half, k) = (j / 64, j % 64);
                other[16 * half + k % 16] |= code(j) << (6 - 2 * (k / 16));
            }
            block.copy_from_slice(&other);
        }
    }
    let arm = directory.path().join("arm.gguf");
    std::fs::write(&arm, bytes).unwrap();
    let fixed = directory.path().join("fixed.gguf");
    let options = Options {
        layout: I2sLayout::Blocks64,
        ..Options::default()
    };
    convert(&arm, &fixed, &options).unwrap();
    assert_eq!(contents(&fixed), contents(&source));
}

#[test]
fn faults_of_published_files_are_corrected() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let target = directory.path().join("target.gguf");
    let options = Options {
        pre_tokenizer: Some("qwen2".to_owned()),
        chat_template: Some("mine".to_owned()),
        ..Options::default()
    };
    convert(&source, &target, &options).unwrap();
    let gguf = Gguf::open(&target).unwrap();
    assert_eq!(gguf.str("tokenizer.ggml.pre").unwrap(), Some("qwen2"));
    assert_eq!(gguf.str("tokenizer.chat_template").unwrap(), Some("mine"));
    let keys = |path: &Path| Gguf::open(path).unwrap().values().len();
    assert_eq!(keys(&target), keys(&source));
}

// What must be refused ---------------------------------------------------------------------------------------------

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
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
    let text = error.expect_err("a refusal").to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"old", "{text}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1, "{text}");
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const Q_SCALE: &str = "model.layers.0.self_attn.q_proj.weight_scale";

#[test]
fn damaged_tensors_are_refused_by_name() {
    type Edit = fn(&mut BTreeMap<String, Tensor>);
    let table: &[(&str, Edit, &[&str])] = &[
        ("packed", |t| _ = t.remove(Q), &[Q, "missing"]),
        (
            "packed",
            |t| _ = t.remove(Q_SCALE),
            &["model.safetensors", Q, Q_SCALE, "missing"],
        ),
        (
            "packed",
            |t| t.get_mut(Q).unwrap().data[7] = 0b11,
            &["model.safetensors", Q, "the code 3 in byte 7"],
        ),
        (
            "packed",
            |t| t.get_mut(Q_SCALE).unwrap().data.fill(0),
            &[Q_SCALE, "it is 0, expected a finite number above 0"],
        ),
        (
            "packed",
            |t| {
                let q = t.get_mut(Q).unwrap();
                (q.shape, q.data) = (vec![32, 64], vec![0; 32 * 64]);
            },
            &[Q, "the shape [32, 64], expected [32, 128]"],
        ),
        (
            "packed",
            |t| {
                let q = t.get_mut(Q).unwrap();
                (q.dtype, q.shape, q.data) = (Dtype::I64, vec![128, 128], vec![0; 128 * 128 * 8]);
            },
            &[Q, "I64, expected BF16"],
        ),
        (
            "packed",
            |t| {
                let stray = t[Q].clone();
                _ = t.insert("model.layers.0.self_attn.q_norm.weight".into(), stray);
            },
            &["q_norm.weight", "no place in the graph"],
        ),
        (
            "masters",
            |t| t.get_mut(Q).unwrap().data[20..22].copy_from_slice(&0x7fc0u16.to_le_bytes()),
            &[Q, "NaN at index 10"],
        ),
        (
            "masters",
            |t| {
                let embedding = t.get_mut("model.embed_tokens.weight").unwrap();
                embedding.data[6..8].copy_from_slice(&0x7f7fu16.to_le_bytes());
            },
            &[
                "model.embed_tokens.weight",
                "at index 3, which F16 cannot hold",
            ],
        ),
    ];
    for (name, edit, parts) in table {
        let copy = copy_of(name);
        edit_tensors(copy.path(), edit);
        assert_refused(&copy, parts);
    }
}

#[test]
fn other_models_are_refused() {
    let table: &[(&str, Value, &[&str])] = &[
        (
            "architectures",
            json!(["MambaForCausalLM"]),
            &[
                "config.json",
                "architectures",
                "MambaForCausalLM",
                "expected",
            ],
        ),
        ("hidden_act", json!("gelu"), &["hidden_act", "gelu"]),
        ("hidden_size", json!("big"), &["hidden_size", "big"]),
        ("num_key_value_heads", json!(3), &["num_key_value_heads"]),
        (
            "vocab_size",
            json!(287),
            &["tokenizer.json", "has the id 287"],
        ),
        (
            "vocab_size",
            json!(289),
            &["embed_tokens", "[288, 128], expected [289, 128]"],
        ),
        (
            "vocab_size",
            json!(289),
            &["embed_tokens", "[288, 128], expected [289, 128]"],
        ),
        ("vocab_size", Value::Null, &["vocab_size", "missing"]),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 4}),
            &["rope_scaling", "yarn"],
        ),
        ("sliding_window", json!(64), &["sliding_window", "64"]),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            &["quantization_config.quant_method", "gptq"],
        ),
        (
            "num_hidden_layers",
            json!(2),
            &["model.layers.1.", "missing"],
        ),
        (
            "tie_word_embeddings",
            json!(false),
            &["lm_head.weight", "missing"],
        ),
    ];
    for (key, value, parts) in table {
        let copy = copy_of("packed");
        edit_json(copy.path(), "config.json", |config| {
            config[*key] = value.clone();
        });
        assert_refused(&copy, parts);
    }
}

/// Real-valued weights of a model that isn't a BitNet become nothing useful.
#[test]
fn masters_must_say_what_they_are() {
    let copy = copy_of("masters");
    edit_json(copy.path(), "config.json", |config| {
        config["architectures"] = json!(["LlamaForCausalLM"]);
        config["hidden_act"] = json!("silu");
        config["quantization_config"] = Value::Null;
    });
    edit_tensors(copy.path(), |tensors| {
        tensors.retain(|name, _| !name.contains("sub_norm"));
    });
    assert_refused(&copy, &["model.layers.0.", "real-valued weights"]);
    let options = Options {
        absmean: true,
        ..Options::default()
    };
    let target = copy.path().join("model.gguf");
    convert(copy.path(), &target, &options).unwrap();
    let gguf = Gguf::open(&target).unwrap();
    assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
}

#[test]
fn damaged_files_are_refused() {
    let weights = |copy: &TempDir| copy.path().join("model.safetensors");
    let copy = copy_of("packed");
    let bytes = std::fs::read(weights(&copy)).unwrap();
    for end in [0, 5, 20, 2000, bytes.len() - 1] {
        std::fs::write(weights(&copy), &bytes[..end]).unwrap();
        assert_refused(&copy, &["model.safetensors"]);
    }
    std::fs::remove_file(weights(&copy)).unwrap();
    assert_refused(&copy, &["no *.safetensors"]);
    for (name, text) in [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("tokenizer.json", "not json"),
        ("tokenizer.json", "{}"),
    ] {
        let copy = copy_of("packed");
        std::fs::write(copy.path().join(name), text).unwrap();
        assert_refused(&copy, &[name]);
    }
    for name in ["config.json", "tokenizer.json"] {
        let copy = copy_of("packed");
        std::fs::remove_file(copy.path().join(name)).unwrap();
        assert_refused(&copy, &[]);
    }
    let out = tempfile::tempdir().unwrap();
    let gone = convert(
        Path::new("/nowhere"),
        &out.path().join("a"),
        &Options::default(),
    );
    assert!(
        gone.unwrap_err()
            .to_string()
            .starts_with("cannot read `/nowhere`")
    );
    let into = convert(&data("packed"), out.path(), &Options::default());
    assert!(
        into.unwrap_err()
            .to_string()
            .ends_with("is no regular file")
    );
}

#[test]
fn shards_are_all_needed() {
    let copy = copy_of("packed");
    let path = copy.path().join("model.safetensors");
    let mut halves = [BTreeMap::new(), BTreeMap::new()];
    let mut map = serde_json::Map::new();
    edit_tensors(copy.path(), |tensors| {
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            halves[i % 2].insert(name.clone(), tensor.clone());
            let shard = format!("model-0000{}-of-00002.safetensors", i % 2 + 1);
            map.insert(name.clone(), json!(shard));
        }
    });
    let whole = tempfile::tempdir().unwrap();
    let target = whole.path().join("whole.gguf");
    convert(copy.path(), &target, &Options::default()).unwrap();
    std::fs::remove_file(path).unwrap();
    let shard = |n: usize| {
        copy.path()
            .join(format!("model-0000{n}-of-00002.safetensors"))
    };
    save(&shard(1), &halves[0]);
    save(&shard(2), &halves[1]);
    let index = copy.path().join("model.safetensors.index.json");
    for indexed in [false, true] {
        if indexed {
            std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
        }
        let joined = whole.path().join("joined.gguf");
        convert(copy.path(), &joined, &Options::default()).unwrap();
        assert_eq!(contents(&joined), contents(&target));
        let second = std::fs::read(shard(2)).unwrap();
        std::fs::remove_file(shard(2)).unwrap();
        let says = match indexed {
            true => "model-00002-of-00002.safetensors",
            false => "1 of 2 shards",
        };
        assert_refused(&copy, &[says]);
        std::fs::write(shard(2), second).unwrap();
    }
    let mut wrong = map.clone();
    wrong.insert(
        "model.more".into(),
        json!("model-00001-of-00002.safetensors"),
    );
    std::fs::write(&index, json!({ "weight_map": wrong }).to_string()).unwrap();
    assert_refused(&copy, &["model.more", "missing"]);
    wrong["model.more"] = json!("../elsewhere.safetensors");
    std::fs::write(&index, json!({ "weight_map": wrong }).to_string()).unwrap();
    assert_refused(&copy, &["weight_map"]);
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model.gguf");
    let cancelled = AtomicBool::new(true);
    let mut watch = Watch {
        progress: &mut |_, _, _| {},
        cancelled: &cancelled,
    };
    let plan = Plan::of(&data("masters"), &Options::default()).unwrap();
    let error = plan.write(&target, &mut watch).unwrap_err();
    assert!(matches!(error, ConvertError::Cancelled));
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn files_without_ternary_tensors_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model.gguf");
    let source = common::data("tokenizer_spm.gguf");
    let error = convert(&source, &target, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("holds no ternary tensor"));
    let source = tiny(out.path(), "tiny");
    let mut bytes = std::fs::read(&source).unwrap();
    let gguf = Gguf::open(&source).unwrap();
    let at = gguf.tensor("blk.0.ffn_up.weight").unwrap().offset as usize;
    bytes[at + 40] |= 3;
    std::fs::write(&source, bytes).unwrap();
    let error = convert(&source, &target, &Options::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`blk.0.ffn_up.weight`: the code 3"),
        "{error}"
    );
    assert!(!target.exists());
}
