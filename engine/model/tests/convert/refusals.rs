//! What must be refused, with the target directory left alone.

use super::*;

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
            &["embed_tokens", "[288, 128], expected [287, 128]"],
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
    // A pipe that nobody writes into would be waited for without end.
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let copy = copy_of("packed");
        let path = copy.path().join(name);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_refused(&copy, &[name, "a pipe or a device"]);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_refused(&copy, &[name, "a directory"]);
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

/// The header is JSON after its length; whatever it says must be inside the file and fit together.
#[test]
fn lies_in_a_header_are_refused() {
    type Edit = fn(&mut Value);
    const K: &str = "model.layers.0.self_attn.k_proj.weight";
    let table: &[(Edit, &str)] = &[
        (
            |h| h[K]["data_offsets"] = h[Q]["data_offsets"].clone(),
            "invalid offset",
        ),
        (
            |h| h[K]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 8]),
            "invalid offset",
        ),
        (|h| h[K]["shape"] = json!([-1, 128]), "integer `-1`"),
        (
            |h| h[K]["shape"] = json!([1u64 << 40, 1u64 << 40]),
            "overflow",
        ),
        (|h| h[K]["dtype"] = json!("F7"), "unknown variant `F7`"),
        (
            |h| _ = h.as_object_mut().unwrap().remove("model.norm.weight"),
            "invalid offset",
        ),
    ];
    for (edit, says) in table {
        let copy = copy_of("packed");
        let path = copy.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        edit(&mut header);
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(
            &path,
            [&length, header.as_bytes(), &bytes[8 + n..]].concat(),
        )
        .unwrap();
        assert_refused(&copy, &["model.safetensors", says]);
    }
    for length in [1u64 << 31, 1 << 63] {
        let copy = copy_of("packed");
        let path = copy.path().join("model.safetensors");
        std::fs::write(&path, [&length.to_le_bytes()[..], b"{}"].concat()).unwrap();
        assert_refused(&copy, &["model.safetensors", "its header is said to have"]);
    }
}

#[test]
fn what_configuration_and_tokenizer_cannot_mean_is_refused() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-4)),
        ("num_hidden_layers", json!(1e9)),
        ("vocab_size", json!(1u64 << 33)),
        ("num_attention_heads", json!(3)),
        ("num_key_value_heads", json!(3)),
        ("rms_norm_eps", json!(-1)),
        ("max_position_embeddings", Value::Null),
        ("head_dim", json!(33)),
        ("tie_word_embeddings", json!("yes")),
        ("hidden_act", json!("gelu")),
    ] {
        let copy = copy_of("packed");
        edit_json(copy.path(), "config.json", |config| config[key] = value);
        assert_refused(&copy, &["config.json"]);
    }
    type Edit = fn(&mut Value);
    let table: &[(Edit, &str)] = &[
        (|t| t["model"]["vocab"]["zz"] = json!(-1), "model.vocab"),
        (|t| t["model"]["vocab"]["zz"] = json!(1), "the same id 1"),
        (
            |t| t["model"]["vocab"]["zz"] = json!(1u64 << 40),
            "the embedding has 288 rows",
        ),
        (|t| t["model"]["merges"] = json!(["a"]), "merge 0"),
        (
            |t| t["model"]["merges"] = json!(["a qq"]),
            "merge 0 names `qq`",
        ),
        (|t| t["added_tokens"] = json!({"id": 1}), "added_tokens"),
        (
            |t| t["added_tokens"] = json!([{"id": "x"}]),
            "no id or content",
        ),
        (
            |t| t["model"]["type"] = json!("Unigram"),
            "neither byte-level BPE",
        ),
    ];
    for (edit, says) in table {
        let copy = copy_of("packed");
        edit_json(copy.path(), "tokenizer.json", edit);
        assert_refused(&copy, &["tokenizer.json", says]);
    }
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
    let mut watch = Watch {
        progress: &mut |_, _, _| {},
        cancelled: &|| true,
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
