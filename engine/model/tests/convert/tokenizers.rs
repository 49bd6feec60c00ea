//! Tokenizers out of Hugging Face directories give the tokens of theirs.

use super::*;

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
