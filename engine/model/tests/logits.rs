//! Logits against Hugging Face transformers, for the three graphs: squared ReLU with sub-norms, SiLU with sub-norms, llama.
//! The vectors and the script that made them lie in `tests/data` and `tests/oracle`.

mod common;

use bitnet_model::graph::Entry;
use bitnet_model::protocol::KvType;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    argmax: Vec<usize>,
    positions: Vec<usize>,
    /// `[positions, n_vocab]`
    logits: Vec<Vec<f32>>,
}

/// Of the largest logit. Integer sums are exact on both sides; what differs is the order of f32 additions.
const TOLERANCE: f32 = 1e-3;

#[test]
fn bitnet_squared_relu() {
    assert_equal_to_hugging_face("hf_bitnet");
}

#[test]
fn bitnet_silu() {
    assert_equal_to_hugging_face("hf_bitnet_silu");
}

#[test]
fn llama_interleaved_rope_own_head() {
    assert_equal_to_hugging_face("hf_llama");
}

fn assert_equal_to_hugging_face(name: &str) {
    let text = std::fs::read_to_string(common::data(&format!("{name}.json"))).unwrap();
    let vectors: Vectors = serde_json::from_str(&text).unwrap();
    for (number, sequence) in vectors.sequences.iter().enumerate() {
        // Keys and values in half precision differ by more, and may change the best of two close tokens.
        for (kv_type, tolerance) in [
            (KvType::F32, TOLERANCE),
            (KvType::F16, 5e-2),
            (KvType::Q8_0, 0.15),
        ] {
            let logits = all_logits(&format!("{name}.gguf"), &sequence.tokens, kv_type);
            let what = format!("{name}, sequence {number}, {kv_type:?}");
            if kv_type == KvType::F32 {
                let found: Vec<usize> = logits.iter().map(|row| argmax(row)).collect();
                assert_eq!(found, sequence.argmax, "{what}");
            }
            for (&position, expected) in sequence.positions.iter().zip(&sequence.logits) {
                let worst = relative_difference(&logits[position], expected);
                assert!(worst < tolerance, "{what}, position {position}: {worst}");
            }
        }
    }
}

/// One row per token, the whole sequence as one prompt.
fn all_logits(file: &str, tokens: &[u32], kv_type: KvType) -> Vec<Vec<f32>> {
    let mut config = common::config(&common::data(file));
    config.kv_type = kv_type;
    let mut engine = common::load(&config);
    let n_vocab = engine.model().n_vocab();
    let entries = tokens.iter().map(|&token| Entry {
        slot: 0,
        token,
        wants_logits: true,
    });
    entries
        .map(|entry| engine.forward(&[entry])[..n_vocab].to_vec())
        .collect()
}

fn argmax(row: &[f32]) -> usize {
    let best = row
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0
}

fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    worst / largest
}
