//! The screened output head gives what the full one gives: logits, tokens, whatever the sampler and the neighbours in the
//! batch.

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bitnet_model::engine::Engine;
use bitnet_model::gguf::TensorType;
use bitnet_model::graph::Entry;
use bitnet_model::protocol::{
    EngineConfig, Grammar, GrammarText, HeadMode, SamplerKind, SamplingParams, Submit, Triggers,
    WeightsHome,
};
use bitnet_model::sampler::{Logits, Want};
use bitnet_model::synth::{Shape, write};
use common::{Outcome, Run, config, load, prompt, submit};

const VOCABULARY: usize = 12_000;

/// A tiny model with many tokens.
fn model(directory: &Path, embedding_type: TensorType, own_head: bool) -> PathBuf {
    let path = directory.join(format!("{embedding_type}-{own_head}.gguf"));
    let shape = Shape {
        n_vocab: VOCABULARY,
        embedding_type,
        own_head,
        ..Shape::preset("tiny-llama").expect("the preset exists")
    };
    write(&shape, 11, &path, &mut |_, _| {}).expect("the model is written");
    path
}

fn with_head(config: &EngineConfig, head: HeadMode) -> EngineConfig {
    EngineConfig {
        head,
        ..config.clone()
    }
}

/// Copies complete.
fn prepared(config: &EngineConfig) -> Engine {
    let mut engine = load(config);
    engine.prepare(Duration::MAX);
    assert!(!engine.is_unprepared());
    engine
}

/// Every kind of request, those that need all logits among them.
fn jobs() -> Vec<Submit> {
    let with = |change: &dyn Fn(&mut SamplingParams)| {
        let mut sampling = SamplingParams::default();
        change(&mut sampling);
        sampling
    };
    let samplings = [
        with(&|_| {}),
        with(&|s| s.temperature = 0.0),
        with(&|s| {
            s.temperature = 0.0;
            s.repeat_penalty = 1.5;
            s.frequency_penalty = 0.3;
        }),
        with(&|s| {
            s.repeat_penalty = 1.3;
            s.presence_penalty = 0.5;
            s.repeat_last_n = 1000;
        }),
        with(&|s| s.repeat_penalty = 0.8),
        with(&|s| {
            s.logit_bias = vec![(17, 30.0), (11_999, 3.0), (90_000, 9.0), (5, f32::MIN)];
            s.ignore_eos = true;
        }),
        with(&|s| s.top_k = 1),
        with(&|s| {
            (s.top_k, s.top_p, s.min_p) = (1000, 1.0, 0.0);
            s.temperature = 1.5;
        }),
        with(&|s| (s.top_k, s.top_p, s.min_p) = (0, 1.0, 0.0)),
        with(&|s| s.n_probs = 3),
        with(&|s| (s.n_probs, s.post_sampling_probs) = (3, true)),
        with(&|s| s.samplers = vec![SamplerKind::TypP, SamplerKind::TopP, SamplerKind::TopK]),
        with(&|s| s.samplers = vec![SamplerKind::TopK, SamplerKind::Penalties]),
        with(&|s| {
            s.typical_p = 0.7;
            s.dynatemp_range = 0.4;
            s.min_keep = 60;
        }),
    ];
    let samplings = samplings.into_iter().chain(bound_to_grammars());
    (0..)
        .zip(samplings)
        .map(|(id, sampling)| Submit {
            sampling: SamplingParams {
                seed: 7 + id as u32,
                ..sampling
            },
            eog_tokens: vec![2],
            max_tokens: 25,
            ..submit(id, &prompt(id as u32, 20))
        })
        .collect()
}

/// Requests whose draws a grammar refuses most of the time, so that all logits are asked for behind the few.
fn bound_to_grammars() -> Vec<SamplingParams> {
    let schema = r#"{"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n", "s"]}"#;
    let gbnf = r#"root ::= ([a-z]+ " ")* "." | "<" root ">""#;
    let lark = "start: \"<go>\" /[0-9 ]+/ \"!\"";
    let lazily = Triggers {
        words: vec!["e".to_owned(), "0".to_owned()],
        tokens: vec![17],
    };
    let grammars = [
        (GrammarText::JsonSchema(schema.to_owned()), None),
        (GrammarText::Gbnf(gbnf.to_owned()), None),
        (GrammarText::Lark(lark.to_owned()), None),
        (
            GrammarText::Gbnf(r#"root ::= ("e" | "0") [^a]*"#.to_owned()),
            Some(lazily),
        ),
    ];
    let bound = |(text, triggers): (GrammarText, Option<Triggers>)| {
        let grammar = Some(Grammar { text, triggers });
        let drawn = SamplingParams {
            grammar,
            ..SamplingParams::default()
        };
        let greedy = SamplingParams {
            temperature: 0.0,
            repeat_penalty: 1.2,
            n_probs: 2,
            ..drawn.clone()
        };
        let narrow = SamplingParams {
            top_k: 3,
            temperature: 1.3,
            ..drawn.clone()
        };
        [drawn, greedy, narrow]
    };
    grammars.into_iter().flat_map(bound).collect()
}

fn one_by_one(engine: Engine) -> Vec<Outcome> {
    let mut run = Run::of(engine);
    let outcomes = jobs().into_iter().map(|job| {
        run.generate(Submit {
            cache_prompt: false,
            ..job
        })
    });
    outcomes.collect()
}

#[test]
fn same_tokens_by_every_head() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let heads = [
        (TensorType::F16, true),
        (TensorType::BF16, true),
        (TensorType::F32, false),
    ];
    for (embedding_type, own_head) in heads {
        let mut config = config(&model(directory.path(), embedding_type, own_head));
        config.decode_cpus = vec![0, 1];
        config.prefill_cpus = vec![0, 1];
        let expected = one_by_one(load(&config));
        assert!(expected.iter().all(|outcome| !outcome.tokens.is_empty()));
        for head in [HeadMode::Exact, HeadMode::Proven] {
            let engine = prepared(&with_head(&config, head));
            let found = one_by_one(engine);
            assert_eq!(found, expected, "{head:?} {embedding_type}");
        }
    }
}

#[test]
fn same_tokens_among_others_and_while_copies_are_made() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(&model(directory.path(), TensorType::F16, true));
    let expected: Vec<_> = one_by_one(load(&config))
        .into_iter()
        .map(|outcome| (outcome.tokens, outcome.probs))
        .collect();
    config.slots = 5;
    config.decode_cpus = vec![0, 1];
    config.prefill_cpus = vec![0, 1];
    for head in [HeadMode::Full, HeadMode::Exact, HeadMode::Proven] {
        let config = with_head(&config, head);
        for engine in [load(&config), prepared(&config)] {
            let mut run = Run::of(engine);
            for job in jobs() {
                run.submit(job);
                run.scheduler.step();
            }
            run.finish();
            for (id, expected) in (0..).zip(&expected) {
                let Outcome { tokens, probs, .. } = run.outcome(id);
                assert_eq!((tokens, probs), *expected, "{head:?}, job {id}");
            }
        }
    }
}

/// Few logits, all that were wanted, and the same numbers: for a batch of which some entries want all.
#[test]
fn logits_are_those_of_the_full_head() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(&model(directory.path(), TensorType::F16, true));
    config.slots = 4;
    for head in [HeadMode::Exact, HeadMode::Proven] {
        let config = with_head(&config, head);
        let (mut full, mut screened) = (load(&config), prepared(&config));
        for step in 0..50 {
            let entry = |slot| Entry {
                slot,
                token: (slot as u32 * 977 + step * 31) % 1000,
                wants_logits: slot != 2 || step % 2 == 0,
            };
            let batch: Vec<Entry> = (0..4).map(entry).collect();
            let also: Vec<u32> = (0..20).map(|i| (i * i * 37 + step) % 13_000).collect();
            let best = |k| Want::Best { k, also: &also };
            let mut wants = vec![best(1), Want::All, best(700), best(40)];
            if step % 2 == 1 {
                wants.remove(2);
            }
            let expected = full.forward(&batch).chunks_exact(VOCABULARY);
            let found = screened.forward_for(&batch, &wants);
            for ((expected, found), want) in expected.zip(found).zip(&wants) {
                check(expected, found, *want);
            }
        }
    }
}

fn check(expected: &[f32], found: Logits<'_>, want: Want<'_>) {
    let (tokens, logits) = match (found, want) {
        (Logits::All(found), Want::All) => return assert_eq!(found, expected),
        (Logits::Best { tokens, logits }, Want::Best { .. }) => (tokens, logits),
        _ => panic!("what was wanted was not computed"),
    };
    let Want::Best { k, also } = want else {
        return;
    };
    assert!(tokens.is_sorted_by(|a, b| a < b) && tokens.len() < VOCABULARY / 2);
    for (token, logit) in tokens.iter().zip(logits) {
        assert_eq!(logit.to_bits(), expected[*token as usize].to_bits());
    }
    let mut order: Vec<u32> = (0..VOCABULARY as u32)
        .filter(|token| !also.contains(token))
        .collect();
    let logit = |token: &u32| expected[*token as usize];
    order.sort_by(|a, b| logit(b).total_cmp(&logit(a)).then(a.cmp(b)));
    let named = also.iter().filter(|&&token| (token as usize) < VOCABULARY);
    for token in order[..k].iter().chain(named) {
        assert!(tokens.binary_search(token).is_ok(), "token {token}, k {k}");
    }
}

#[test]
fn heads_that_cannot_be_screened_are_read_in_full() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = EngineConfig {
        weights: WeightsHome::Mapped,
        ..config(&model(directory.path(), TensorType::Q8_0, true))
    };
    let mut engine = load(&with_head(&config, HeadMode::Exact));
    assert!(!engine.is_unprepared());
    let entry = Entry {
        slot: 0,
        token: 1,
        wants_logits: true,
    };
    let want = Want::Best { k: 1, also: &[] };
    let found: Vec<_> = engine.forward_for(&[entry], &[want]).collect();
    assert!(matches!(&found[..], [Logits::All(logits)] if logits.len() == VOCABULARY));
}
