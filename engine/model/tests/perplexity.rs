//! Perplexity against logits computed one token at a time, and against those of Hugging Face Transformers.

mod common;

use bitnet_kernels::Kernel;
use bitnet_model::engine::Engine;
use bitnet_model::graph::Entry;
use bitnet_model::perplexity::{SCORED_BATCH, Scores, n_chunks, score_chunk};
use bitnet_model::protocol::{EngineConfig, KvType};
use common::{config, data, model, prompt};

fn load(config: &EngineConfig) -> Engine {
    Engine::load_to_score(config, || None, SCORED_BATCH).unwrap()
}

fn measure(engine: &mut Engine, tokens: &[u32], n_ctx: usize, bos: Option<u32>) -> Scores {
    let mut scores = Scores::default();
    for chunk in tokens.chunks_exact(n_ctx) {
        score_chunk(engine, chunk, bos, &mut scores).unwrap();
    }
    assert_eq!(scores.n_chunks, n_chunks(tokens.len(), n_ctx));
    scores
}

/// (perplexity, standard error) by the definition, one token per pass.
fn by_hand(config: &EngineConfig, tokens: &[u32], n_ctx: usize, bos: Option<u32>) -> (f64, f64) {
    let mut engine = common::load(config);
    let mut all = Vec::new();
    for chunk in tokens.chunks_exact(n_ctx) {
        engine.kv_mut().truncate(0, 0);
        for position in 0..n_ctx - 1 {
            let token = bos.filter(|_| position == 0).unwrap_or(chunk[position]);
            let wants_logits = true;
            let entry = Entry {
                slot: 0,
                token,
                wants_logits,
            };
            let logits = engine.forward(&[entry]);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let nll = sum.ln() - f64::from(logits[chunk[position + 1] as usize]);
            if position >= n_ctx / 2 {
                all.push(nll);
            }
        }
    }
    let n = all.len() as f64;
    let mean = all.iter().sum::<f64>() / n;
    let variance = all.iter().map(|nll| (nll - mean).powi(2)).sum::<f64>() / n;
    (mean.exp(), (variance / (n - 1.0)).sqrt() * mean.exp())
}

#[test]
fn equals_the_definition() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = prompt(3, 260);
    for (preset, n_ctx, bos) in [("tiny", 128, None), ("tiny-llama", 50, Some(7))] {
        let mut config = config(&model(directory.path(), preset));
        config.prefill_batch = 24;
        let scores = measure(&mut load(&config), &tokens, n_ctx, bos);
        let (perplexity, error) = by_hand(&config, &tokens, n_ctx, bos);
        assert_eq!(scores.n_scored, 260 / n_ctx * (n_ctx - n_ctx / 2 - 1));
        assert!((scores.perplexity() / perplexity - 1.0).abs() < 1e-9);
        assert!((scores.error() / error - 1.0).abs() < 1e-6);
    }
}

#[test]
fn same_number_whatever_the_kernel_threads_and_batch() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&model(directory.path(), "tiny"));
    let tokens = prompt(5, 200);
    let expected = measure(&mut load(&config), &tokens, 100, Some(1));
    for kernel in Kernel::available() {
        for (n_threads, batch) in [(1, 1), (2, 512)] {
            config.kernel = kernel.to_string();
            config.prefill_cpus = (0..n_threads).collect();
            config.decode_cpus = vec![0];
            config.prefill_batch = batch;
            let scores = measure(&mut load(&config), &tokens, 100, Some(1));
            assert_eq!(scores, expected, "{kernel}, {n_threads}, {batch}");
        }
    }
}

/// The recorded logits of Transformers, where a scored position has one.
#[test]
fn scores_are_those_of_hugging_face() {
    let text = std::fs::read_to_string(data("hf_bitnet.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut config = config(&data("hf_bitnet.gguf"));
    config.kv_type = KvType::F32;
    let mut engine = load(&config);
    for sequence in vectors["sequences"].as_array().unwrap() {
        let numbers = |key: &str| -> Vec<u64> {
            let array = sequence[key].as_array().unwrap();
            array.iter().map(|n| n.as_u64().unwrap()).collect()
        };
        let tokens: Vec<u32> = numbers("tokens").iter().map(|&t| t as u32).collect();
        let rows = sequence["logits"].as_array().unwrap();
        // Chunks of 2m and 2m + 1 tokens are scored from the same position on: their difference is one prediction.
        let mut total = |n: usize| {
            let scores = measure(&mut engine, &tokens[..n], n, None);
            scores.perplexity().ln() * scores.n_scored as f64
        };
        let positions = numbers("positions").into_iter().map(|n| n as usize);
        let is_odd = |(position, _): &(usize, _)| position % 2 == 1 && *position >= 15;
        let mut n_compared = 0;
        for (position, row) in positions.zip(rows).filter(is_odd) {
            let Some(&next) = tokens.get(position + 1) else {
                continue;
            };
            let row: Vec<f64> = serde_json::from_value(row.clone()).unwrap();
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            let expected = sum.ln() - row[next as usize];
            let found = total(position + 2) - total(position + 1);
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
            n_compared += 1;
        }
        assert!(n_compared > 0);
    }
}
