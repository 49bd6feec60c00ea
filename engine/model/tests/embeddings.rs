//! Vectors of texts: the same under every circumstance, pooled as asked, and those the output head sees.

mod common;

use bitnet_kernels::Kernel;
use bitnet_model::graph::Entry;
use bitnet_model::protocol::KvType;
use bitnet_model::protocol::{EngineConfig, Finish, Pooling};
use common::{Run, ask, config, data, embed, model, prompt, submit, told};
use serde::Deserialize;

const TEXT_TOKENS: usize = 45;

fn bits(vectors: &[Vec<f32>]) -> Vec<u32> {
    vectors.iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn pooled_vectors_are_those_of_the_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new(&config(&model(directory.path(), "tiny")));
    let text = prompt(4, TEXT_TOKENS);
    let all = embed(&mut run, &text, Some(Pooling::None));
    assert_eq!(all.len(), TEXT_TOKENS);
    assert_eq!(embed(&mut run, &text, Some(Pooling::Cls)), all[..1]);
    assert_eq!(
        embed(&mut run, &text, Some(Pooling::Last)),
        all[TEXT_TOKENS - 1..]
    );
    assert_eq!(embed(&mut run, &text, None), all[TEXT_TOKENS - 1..]);
    let [mean] = &embed(&mut run, &text, Some(Pooling::Mean))[..] else {
        panic!("one mean");
    };
    for (i, x) in mean.iter().enumerate() {
        let sum: f64 = all.iter().map(|vector| f64::from(vector[i])).sum();
        assert!((f64::from(*x) - sum / TEXT_TOKENS as f64).abs() < 1e-5);
    }
}

/// What the tied head makes of the last vector are the logits.
#[test]
fn vectors_come_behind_the_last_norm() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&model(directory.path(), "tiny"));
    let text = prompt(5, 20);
    let [vector] = &embed(&mut Run::new(&config), &text, None)[..] else {
        panic!("one vector");
    };
    let mut engine = common::load(&config);
    let entries = |&token| Entry {
        slot: 0,
        token,
        wants_logits: true,
    };
    let logits = text.iter().map(entries);
    let logits = logits.map(|entry| engine.forward(&[entry]).to_vec());
    let logits = logits.last().unwrap();
    let gguf = bitnet_model::gguf::Gguf::open(&directory.path().join("tiny.gguf")).unwrap();
    let facts = engine.facts();
    let head = bitnet_model::tensors::head(&gguf, facts).unwrap();
    let mut row = vec![0.0; facts.n_embd];
    for (token, logit) in logits.iter().enumerate() {
        engine.kernel().dense_row(&head, token, &mut row);
        let dot: f64 = row
            .iter()
            .zip(vector)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum();
        assert!((dot - f64::from(*logit)).abs() < 1e-3, "token {token}");
    }
}

#[test]
fn same_vectors_whatever_the_kernel_threads_chunks_and_neighbours() {
    let directory = tempfile::tempdir().unwrap();
    let llama = model(directory.path(), "tiny-llama");
    for path in [llama, data("hf_qwen3.gguf"), data("hf_gemma3.gguf")] {
        same_vectors(config(&path));
    }
}

fn same_vectors(mut config: EngineConfig) {
    let text = prompt(6, TEXT_TOKENS);
    let both = |config: &EngineConfig| {
        let mut run = Run::new(config);
        [Pooling::None, Pooling::Mean].map(|it| bits(&embed(&mut run, &text, Some(it))))
    };
    let expected = both(&config);
    for kernel in Kernel::available() {
        for (threads, chunk) in [(1, 1), (3, 7), (2, 512)] {
            config.kernel = kernel.to_string();
            config.decode_cpus = (0..threads).collect();
            config.prefill_cpus = (0..threads).collect();
            config.prefill_batch = chunk;
            assert!(both(&config) == expected, "{kernel}, {threads}, {chunk}");
        }
    }
    config.slots = 3;
    let mut run = Run::new(&config);
    run.submit(submit(8, &prompt(8, 60)));
    run.scheduler.step();
    ask(&mut run, 1, &text, Some(Pooling::Mean));
    run.submit(submit(9, &prompt(9, 30)));
    run.finish();
    assert_eq!(bits(&told(&run, 1).0), expected[1]);
    config.slots = 1;
    for id in [8, 9] {
        let alone =
            Run::new(&config).generate(submit(id, &prompt(id as u32, [60, 30][id as usize - 8])));
        assert_eq!(
            run.outcome(id).tokens,
            alone.tokens,
            "generations go on beside it"
        );
    }
}

#[derive(Deserialize)]
struct Vectors {
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    /// `[positions, n_embd]`
    hidden: Vec<Vec<f32>>,
}

/// Of the largest number; see `logits.rs`.
const TOLERANCE: f32 = 1e-3;

#[test]
fn qwen3_and_gemma3_equal_hugging_face() {
    for name in ["hf_qwen3", "hf_gemma3"] {
        let text = std::fs::read_to_string(data(&format!("{name}.json"))).unwrap();
        let vectors: Vectors = serde_json::from_str(&text).unwrap();
        let mut config = config(&data(&format!("{name}.gguf")));
        config.kv_type = KvType::F32;
        let mut run = Run::new(&config);
        for sequence in &vectors.sequences {
            let found = embed(&mut run, &sequence.tokens, Some(Pooling::None));
            for (&position, expected) in sequence.positions.iter().zip(&sequence.hidden) {
                let worst = relative_difference(&found[position], expected);
                assert!(worst < TOLERANCE, "{name}, position {position}: {worst}");
            }
            let own = embed(&mut run, &sequence.tokens, None);
            assert_eq!(own, found[found.len() - 1..], "{name} pools the last token");
        }
    }
}

fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max) / largest
}

#[test]
fn a_text_is_evaluated_anew_and_its_cache_serves_the_next_prompt() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new(&config(&model(directory.path(), "tiny")));
    let text = prompt(4, TEXT_TOKENS);
    let first = embed(&mut run, &text, Some(Pooling::Mean));
    assert_eq!(embed(&mut run, &text, Some(Pooling::Mean)), first);
    assert_eq!(run.outcome(1).cached, 0);
    let next = run.generate(submit(2, &text));
    assert_eq!(next.cached, TEXT_TOKENS - 1);
}

#[test]
fn what_cannot_be_embedded_fails_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = model(directory.path(), "tiny-llama");
    common::poison_embedding(&path, 9);
    let mut run = Run::new(&config(&path));
    let mut error = |id, tokens: &[u32]| {
        ask(&mut run, id, tokens, Some(Pooling::Mean));
        run.finish();
        match told(&run, id) {
            (vectors, Some(Finish::Error(error))) if vectors.is_empty() => error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error(1, &[]), "the prompt has no tokens");
    assert_eq!(
        error(2, &prompt(1, 130)),
        "the prompt has 130 tokens, a slot holds 128"
    );
    assert_eq!(
        error(3, &[20, 9, 30]),
        "the model's vectors are not numbers"
    );
    assert_eq!(embed(&mut run, &[20, 30], Some(Pooling::Mean)).len(), 1);
}

#[test]
fn an_embedding_can_be_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&model(directory.path(), "tiny"));
    config.prefill_batch = 8;
    let mut run = Run::new(&config);
    ask(&mut run, 1, &prompt(1, 100), None);
    run.scheduler.step();
    run.cancel(1);
    run.finish();
    assert_eq!(told(&run, 1), (vec![], Some(Finish::Cancelled)));
}
