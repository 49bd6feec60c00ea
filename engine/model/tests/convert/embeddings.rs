//! BitNet embedding models give the vectors that Transformers makes of them.

use super::*;

#[derive(Deserialize)]
struct HiddenVectors {
    sequences: Vec<HiddenSequence>,
}

#[derive(Deserialize)]
struct HiddenSequence {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    hidden: Vec<Vec<f32>>,
}

#[test]
fn embedding_models_give_transformers_vectors() {
    for (name, architecture) in [("embed_qwen3", "qwen3"), ("embed_gemma3", "gemma3")] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("model.gguf");
        convert(&data(name), &file, &Options::default()).unwrap();
        let gguf = Gguf::open(&file).unwrap();
        let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
        assert_eq!(facts.architecture.name(), architecture);
        assert_eq!(
            (facts.pooling, facts.input_norms),
            (Some(Pooling::Last), true)
        );
        assert_eq!(facts.ternary_type, TensorType::I2S);
        // What the tokenizer puts behind a text, not what config.json calls its end.
        let id = |key: &str| gguf.u64(&format!("tokenizer.ggml.{key}_token_id")).unwrap();
        assert_eq!((id("eos"), id("padding")), (Some(282), Some(281)));
        let tokenizer = Tokenizer::from_gguf(&gguf, &Overrides::default()).unwrap();
        let tokens = tokenizer.encode("the", true, true);
        assert_eq!(
            (tokens.first().unwrap() == &280, tokens.last()),
            (false, Some(&282))
        );
        let text = std::fs::read_to_string(data(&format!("{name}.json"))).unwrap();
        let vectors: HiddenVectors = serde_json::from_str(&text).unwrap();
        let mut config = common::config(&file);
        config.kv_type = KvType::F32;
        for sequence in vectors.sequences {
            let mut run = common::Run::new(&config);
            let found = common::embed(&mut run, &sequence.tokens, Some(Pooling::None));
            for (&position, expected) in sequence.positions.iter().zip(&sequence.hidden) {
                let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                let pairs = found[position].iter().zip(expected);
                let worst = pairs.fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
                assert!(worst / largest < TOLERANCE, "{name} {position}: {worst}");
            }
        }
    }
}

#[test]
fn embedding_models_say_how_they_pool() {
    let pooling = |copy: &TempDir| {
        let file = copy.path().join("model.gguf");
        convert(copy.path(), &file, &Options::default()).unwrap();
        Gguf::open(&file)
            .unwrap()
            .u64("qwen3.pooling_type")
            .unwrap()
    };
    let copy = copy_of("embed_qwen3");
    edit_json(copy.path(), "1_Pooling/config.json", |config| {
        config["pooling_mode_lasttoken"] = json!(false);
        config["pooling_mode_mean_tokens"] = json!(true);
    });
    assert_eq!(pooling(&copy), Some(1));
    edit_json(copy.path(), "1_Pooling/config.json", |config| {
        config["pooling_mode_mean_tokens"] = json!(false);
    });
    assert_refused(&copy, &["1_Pooling/config.json", "names no pooling"]);
    edit_json(copy.path(), "modules.json", |modules| {
        modules[1]["path"] = json!("../1_Pooling");
    });
    assert_refused(&copy, &["modules.json", "../1_Pooling"]);
    std::fs::write(copy.path().join("modules.json"), "[]").unwrap();
    assert_eq!(pooling(&copy), Some(3));
    std::fs::write(copy.path().join("modules.json"), "{}").unwrap();
    assert_refused(&copy, &["modules.json", "no JSON list"]);
}

/// With windows Gemma's vectors would differ beyond them, and with two bases everywhere.
#[test]
fn gemma_is_taken_as_microsoft_takes_it() {
    let copy = copy_of("embed_gemma3");
    edit_json(copy.path(), "config.json", |config| {
        config["layer_types"] = json!(["sliding_attention"]);
        config["sliding_window"] = json!(64);
    });
    let plan = Plan::of(copy.path(), &Options::default()).unwrap();
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("64 tokens back")),
        "{:?}",
        plan.notes
    );
    for (key, value, parts) in [
        (
            "rope_theta",
            json!(1e6),
            ["rope_parameters.full_attention.rope_theta", "one base"],
        ),
        (
            "query_pre_attn_scalar",
            json!(64),
            ["query_pre_attn_scalar", "128"],
        ),
        (
            "use_bidirectional_attention",
            json!(true),
            ["use_bidirectional_attention", "causal"],
        ),
        (
            "final_logit_softcapping",
            json!(30.0),
            ["final_logit_softcapping", "none"],
        ),
        (
            "hidden_activation",
            json!("silu"),
            ["hidden_activation", "gelu_pytorch_tanh"],
        ),
    ] {
        let copy = copy_of("embed_gemma3");
        edit_json(copy.path(), "config.json", |config| config[key] = value);
        assert_refused(&copy, &parts);
    }
    let copy = copy_of("embed_gemma3");
    edit_tensors(copy.path(), |tensors| {
        _ = tensors.remove("layers.0.mlp.up_proj.norm.weight");
    });
    assert_refused(&copy, &["layers.0.mlp.up_proj.norm.weight", "missing"]);
}

/// A model that isn't a BitNet has no norms inside its linears, and its weights are not ternary.
#[test]
fn an_ordinary_embedding_model_is_refused() {
    let copy = copy_of("embed_qwen3");
    edit_tensors(copy.path(), |tensors| {
        tensors.retain(|name, _| !name.contains("_proj.norm"));
    });
    assert_refused(&copy, &["layers.0.", "real-valued weights"]);
}
