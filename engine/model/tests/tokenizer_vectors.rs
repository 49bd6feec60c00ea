//! Token ids against those of Hugging Face `tokenizers` and SentencePiece (made by `tests/oracle/tokenizer_vectors.py`).

use std::path::Path;

use bitnet_model::gguf::Gguf;
use bitnet_model::protocol::Overrides;
use bitnet_model::tokenizer::Tokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    #[serde(default)]
    add_special: bool,
    #[serde(default)]
    parse_special: bool,
    ids: Vec<u32>,
}

fn check(name: &str) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let gguf = Gguf::open(&data.join(format!("tokenizer_{name}.gguf"))).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf, &Overrides::default()).unwrap();
    let json = std::fs::read(data.join(format!("tokenizer_{name}.json"))).unwrap();
    let vectors: Vectors = serde_json::from_slice(&json).unwrap();
    assert!(vectors.cases.len() > 50);
    for case in vectors.cases {
        let ids = tokenizer.encode(&case.text, case.add_special, case.parse_special);
        assert_eq!(ids, case.ids, "{name}: {:?}", case.text);
        if !case.add_special {
            let text = tokenizer.decode(&ids);
            assert_eq!(String::from_utf8(text).unwrap(), case.text, "{name}");
        }
    }
}

#[test]
fn llama_bpe() {
    check("llama-bpe");
}

#[test]
fn falcon3() {
    check("falcon3");
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn gpt_2() {
    check("gpt-2");
}

#[test]
fn spm() {
    check("spm");
}

#[test]
fn spm_without_prefix() {
    check("spm_no_prefix");
}
