//! Far into a context attention is divided among threads in other ways than near its start: the logits stay the same, bit for bit.

mod common;

use bitnet_model::engine::Engine;
use bitnet_model::graph::Entry;
use bitnet_model::protocol::{EngineConfig, KvType};
use bitnet_model::synth::{Shape, write};

/// Decode steps from here on: before and behind the place where heads begin to be divided.
const DEPTH: usize = 500;
const STEPS: usize = 30;

#[test]
fn logits_far_into_a_context_do_not_depend_on_threads() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Two threads take a head each of the three and divide the last; five divide all.
    let shape = Shape {
        n_embd: 384,
        n_head: 6,
        n_head_kv: 3,
        ..Shape::preset("tiny").expect("the preset exists")
    };
    let path = directory.path().join("three-heads.gguf");
    write(&shape, 7, &path, &mut |_, _| {}).expect("the model is written");
    let mut config = common::config(&path);
    config.slot_context = DEPTH + STEPS;
    config.slots = 2;
    for kv_type in [KvType::F16, KvType::F32, KvType::Q8_0] {
        config.kv_type = kv_type;
        let mut with_threads = |n: usize| {
            config.decode_cpus = vec![0; n];
            config.prefill_cpus = vec![0; n];
            logits(&config)
        };
        let expected = with_threads(1);
        for n_threads in [2, 5] {
            let found = with_threads(n_threads);
            assert!(found == expected, "{kv_type:?}, {n_threads} threads");
        }
    }
}

/// Bits of all logits of steps of one sequence and, every third time, of two.
fn logits(config: &EngineConfig) -> Vec<u32> {
    let mut engine = common::load(config);
    for slot in 0..2 {
        for tokens in common::prompt(slot as u32, DEPTH).chunks(config.prefill_batch) {
            let entries = tokens.iter().map(|&token| entry(slot, token, false));
            engine.forward(&entries.collect::<Vec<_>>());
        }
    }
    (0..STEPS)
        .flat_map(|step| step_logits(&mut engine, step))
        .collect()
}

fn step_logits(engine: &mut Engine, step: usize) -> Vec<u32> {
    let token = step as u32 * 7 % 256;
    let mut batch = vec![entry(0, token, true)];
    if step.is_multiple_of(3) {
        batch.push(entry(1, token, true));
    }
    let n_logits = batch.len() * engine.model().n_vocab();
    let logits = &engine.forward(&batch)[..n_logits];
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn entry(slot: usize, token: u32, wants_logits: bool) -> Entry {
    Entry {
        slot,
        token,
        wants_logits,
    }
}
