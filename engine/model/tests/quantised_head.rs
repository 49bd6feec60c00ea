//! An output head in fewer bits: near the file's own, the same by every kernel and number of threads, refused where it can't be made.

mod common;

use std::path::{Path, PathBuf};

use bitnet_kernels::{DenseMatrix, DenseType, Kernel};
use bitnet_model::engine::{Engine, LoadError};
use bitnet_model::gguf::TensorType;
use bitnet_model::graph::Entry;
use bitnet_model::protocol::{EngineConfig, HeadMode, SamplingParams, Submit, WeightsHome};
use bitnet_model::quantised::HeadError;
use bitnet_model::synth::{Shape, write};
use common::{Outcome, Run, config, load, prompt, submit};

const MODES: [(HeadMode, DenseType); 2] = [
    (HeadMode::Q8_0, DenseType::Q8_0),
    (HeadMode::Q6_K, DenseType::Q6_K),
];
const SEED: u64 = 23;

fn model(directory: &Path, shape: &Shape) -> PathBuf {
    let (ty, own, n_embd) = (shape.embedding_type, shape.own_head, shape.n_embd);
    let path = directory.join(format!("{ty}-{own}-{n_embd}.gguf"));
    write(shape, SEED, &path, &mut |_, _| {}).expect("the model is written");
    path
}

fn shape(embedding_type: TensorType, own_head: bool) -> Shape {
    Shape {
        embedding_type,
        own_head,
        ..Shape::preset("tiny-llama").expect("the preset exists")
    }
}

fn with_head(config: &EngineConfig, head: HeadMode) -> EngineConfig {
    EngineConfig {
        head,
        ..config.clone()
    }
}

fn row(m: &DenseMatrix, row: usize) -> Vec<f32> {
    let mut numbers = vec![f32::NAN; m.cols()];
    Kernel::best().dense_row(m, row, &mut numbers);
    numbers
}

/// The largest error that a block's numbers may have: half a step, and what rounding the scale to f16 adds.
fn allowed(ty: DenseType, row: &[f32], col: usize) -> f32 {
    let largest = |block: usize| {
        let block = &row[col / block * block..][..block];
        block.iter().fold(0.0f32, |most, x| most.max(x.abs()))
    };
    match ty {
        DenseType::Q8_0 => largest(32) / 127.0 * 0.501 + largest(32) / 2000.0 + 4e-6,
        _ => (largest(16) / 31.5 + largest(256) / 31.5 / 126.0) * 0.501 + 4e-8,
    }
}

#[test]
fn rows_are_the_files_rounded() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (embedding_type, own_head) in [
        (TensorType::F16, true),
        (TensorType::F16, false),
        (TensorType::BF16, true),
        (TensorType::F32, false),
    ] {
        let mut config = config(&model(directory.path(), &shape(embedding_type, own_head)));
        config.prefill_cpus = vec![0, 0, 0];
        let full = load(&config);
        let files = &full.model().weights().head;
        for (mode, ty) in MODES {
            let engine = load(&with_head(&config, mode));
            let weights = engine.model().weights();
            assert_eq!((weights.head.ty(), weights.head.rows()), (ty, files.rows()));
            assert_eq!(weights.embedding.ty(), files.ty(), "the embedding stays");
            for r in 0..files.rows() {
                let (expected, found) = (row(files, r), row(&weights.head, r));
                for (c, (x, y)) in expected.iter().zip(&found).enumerate() {
                    assert!(
                        (x - y).abs() <= allowed(ty, &expected, c),
                        "{ty} of {embedding_type}: row {r}, column {c} is {y} for {x}, seed {SEED}"
                    );
                }
                assert_ne!(expected, found, "row {r} was rounded");
            }
        }
    }
}

/// Logits of all entries of one batch.
fn logits(engine: &mut Engine) -> Vec<f32> {
    let entries = prompt(3, 20).into_iter().map(|token| Entry {
        slot: 0,
        token,
        wants_logits: true,
    });
    entries
        .flat_map(|entry| engine.forward(&[entry]).to_vec())
        .collect()
}

#[test]
fn logits_are_near_those_of_the_files_head() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(&model(directory.path(), &shape(TensorType::F16, true)));
    let expected = logits(&mut load(&config));
    let rms = |x: &[f32]| (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
    for ((mode, _), most) in MODES.into_iter().zip([0.01, 0.03]) {
        let found = logits(&mut load(&with_head(&config, mode)));
        let errors: Vec<f32> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let share = rms(&errors) / rms(&expected);
        assert!(
            share > 0.0 && share <= most,
            "{mode:?}: {share}, seed {SEED}"
        );
    }
}

/// Greedy, drawn with probabilities, and bound to likely tokens.
fn answers(config: &EngineConfig) -> Vec<Outcome> {
    let mut run = Run::new(config);
    let drawn = SamplingParams {
        seed: 5,
        n_probs: 3,
        ..SamplingParams::default()
    };
    let greedy = SamplingParams {
        temperature: 0.0,
        ..drawn.clone()
    };
    let all = SamplingParams {
        top_k: 0,
        top_p: 1.0,
        ..drawn.clone()
    };
    let jobs = (0..)
        .zip([drawn, greedy, all])
        .map(|(id, sampling)| Submit {
            sampling,
            max_tokens: 30,
            cache_prompt: false,
            ..submit(id, &prompt(id as u32, 25))
        });
    jobs.map(|job| run.generate(job)).collect()
}

#[test]
fn same_tokens_by_every_kernel_and_number_of_threads() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Tied, and mapped: the embedding's pages go back while it is used.
    let mut config = config(&model(directory.path(), &shape(TensorType::F16, false)));
    config.weights = WeightsHome::Mapped;
    for (mode, _) in MODES {
        let mut config = with_head(&config, mode);
        let expected = answers(&config);
        assert!(expected.iter().all(|answer| answer.tokens.len() == 30));
        for kernel in Kernel::available() {
            config.kernel = kernel.to_string();
            for cpus in [vec![0], vec![0, 1]] {
                (config.decode_cpus, config.prefill_cpus) = (cpus.clone(), cpus);
                assert_eq!(answers(&config), expected, "{mode:?} {kernel}");
            }
        }
    }
}

#[test]
fn what_cannot_be_made_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let refused = |shape: &Shape, mode: HeadMode| {
        let config = with_head(&config(&model(directory.path(), shape)), mode);
        match Engine::load(&config, || None) {
            Err(LoadError::Head { source, .. }) => source,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{mode:?} was made"),
        }
    };
    for ty in [TensorType::Q8_0, TensorType::Q6K, TensorType::Q4_0] {
        for (asked, _) in MODES {
            let error = refused(&shape(ty, true), asked);
            assert_eq!(error, HeadError::Type { found: ty, asked });
        }
    }
    let narrow = Shape {
        n_embd: 384,
        ..shape(TensorType::F16, true)
    };
    let error = refused(&narrow, HeadMode::Q6_K);
    let message = error.to_string();
    assert!(
        message.contains("384") && message.contains("`q6_k` takes multiples of 256"),
        "{message}"
    );
    assert!(error.hint().contains("`--head q8_0`"));
    load(&with_head(
        &config(&model(directory.path(), &narrow)),
        HeadMode::Q8_0,
    ));
}

#[test]
fn heads_have_the_names_of_the_flag_in_frames() {
    for (mode, _) in MODES {
        let frame = serde_json::to_string(&mode).expect("a name is JSON");
        assert_eq!(frame, format!("\"{}\"", mode.name()));
    }
}
