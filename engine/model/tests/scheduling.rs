//! The same tokens under every circumstance, and what the scheduler promises: fairness, reuse, cancellation, bounds.

mod common;

use bitnet_kernels::Kernel;
use bitnet_model::protocol::{
    EngineConfig, Finish, FromEngine, Grammar, GrammarText, KvType, SamplingParams, Submit,
};
use common::{Run, config, model, poison_embedding, prompt, submit};
use tempfile::TempDir;

const PRESETS: [&str; 3] = ["tiny", "tiny-silu", "tiny-llama"];

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn jobs() -> Vec<Submit> {
    let lengths = [1, 5, 33, 70];
    (0..)
        .zip(lengths)
        .map(|(id, n)| submit(id, &prompt(id as u32, n)))
        .collect()
}

/// Tokens with the bits of their log-probabilities.
fn alone(config: &EngineConfig, job: &Submit) -> (Vec<u32>, Vec<u32>) {
    signature(&Run::new(config).generate(job.clone()))
}

fn signature(outcome: &common::Outcome) -> (Vec<u32>, Vec<u32>) {
    let bits = outcome
        .probs
        .iter()
        .map(|probs| probs.as_ref().unwrap().logprob.to_bits());
    (outcome.tokens.clone(), bits.collect())
}

/// All jobs, one after the other, on one engine.
fn one_by_one(config: &EngineConfig) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut run = Run::new(config);
    let uncached = |job: Submit| Submit {
        cache_prompt: false,
        ..job
    };
    let outcomes = jobs().into_iter().map(|job| run.generate(uncached(job)));
    outcomes.map(|outcome| signature(&outcome)).collect()
}

#[test]
fn same_tokens_whatever_the_kernel_threads_and_chunks() {
    let directory = directory();
    for preset in PRESETS {
        let mut config = config(&model(directory.path(), preset));
        for kv_type in [KvType::F16, KvType::F32, KvType::Q8_0] {
            config.kv_type = kv_type;
            config.kernel = "i2_s/scalar".to_owned();
            config.decode_cpus = vec![0];
            config.prefill_cpus = vec![0];
            config.prefill_batch = 512;
            let expected = one_by_one(&config);
            let is_varied = |(tokens, _): &(Vec<u32>, _)| tokens.iter().any(|it| *it != tokens[0]);
            assert!(expected.iter().any(is_varied));
            for kernel in Kernel::available() {
                for (decode, prefill, chunk) in [(1, 1, 1), (2, 3, 7), (2, 2, 512)] {
                    config.kernel = kernel.to_string();
                    config.decode_cpus = (0..decode).collect();
                    config.prefill_cpus = (0..prefill).collect();
                    config.prefill_batch = chunk;
                    let threads = format!("{decode} and {prefill} threads");
                    let what =
                        format!("{preset} {kv_type:?} {kernel} {threads}, chunks of {chunk}");
                    assert_eq!(one_by_one(&config), expected, "{what}");
                }
            }
        }
    }
}

#[test]
fn same_tokens_alone_and_among_others() {
    let directory = directory();
    let mut config = config(&model(directory.path(), "tiny"));
    let expected: Vec<_> = jobs().iter().map(|job| alone(&config, job)).collect();
    config.slots = 4;
    config.decode_cpus = vec![0, 1];
    config.prefill_cpus = vec![0, 1];
    for prefill_batch in [5, 512] {
        config.prefill_batch = prefill_batch;
        let mut run = Run::new(&config);
        for job in jobs() {
            run.submit(job);
            run.scheduler.step();
        }
        run.finish();
        for (id, expected) in (0..).zip(&expected) {
            assert_eq!(
                signature(&run.outcome(id)),
                *expected,
                "job {id}, batch {prefill_batch}"
            );
        }
    }
}

#[test]
fn a_cached_prefix_changes_nothing_but_the_work() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    let first = prompt(1, 40);
    let mut run = Run::new(&config);
    let before = run.generate(submit(1, &first));
    assert_eq!((before.cached, before.finish), (0, Some(Finish::Limit)));

    let mut next = first.clone();
    next.extend(&before.tokens[..5]);
    next.extend(prompt(9, 10));
    let expected = alone(&config, &submit(2, &next));
    let cached = run.generate(submit(2, &next));
    assert_eq!(signature(&cached), expected);
    assert_eq!(cached.cached, 45);

    let again = run.generate(submit(2, &next));
    assert_eq!(
        (again.cached, again.progress.clone()),
        (54, vec![54, 55]),
        "one token is always evaluated"
    );
    assert_eq!(signature(&again), expected);

    let uncached = run.generate(Submit {
        cache_prompt: false,
        ..submit(2, &next)
    });
    assert_eq!(uncached.cached, 0);
    assert_eq!(signature(&uncached), expected);
}

#[test]
fn an_interrupted_generation_goes_on_elsewhere_with_the_same_tokens() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    let job = Submit {
        max_tokens: 30,
        ..submit(3, &prompt(3, 20))
    };
    let undisturbed = Run::new(&config).generate(job.clone());
    for produced in [0, 1, 13, 29] {
        let mut rest = job.clone();
        rest.tokens.extend(&undisturbed.tokens[..produced]);
        rest.max_tokens -= produced as u32;
        let continued = Run::new(&config).generate(rest);
        assert_eq!(
            continued.tokens,
            undisturbed.tokens[produced..],
            "after {produced} tokens"
        );
        assert_eq!(continued.probs, undisturbed.probs[produced..]);
        assert_eq!(continued.finish, Some(Finish::Limit));
    }
}

#[test]
fn cancelling_frees_the_slot_within_a_step() {
    let directory = directory();
    let mut run = Run::new(&config(&model(directory.path(), "tiny")));
    run.submit(Submit {
        max_tokens: 1000,
        ..submit(1, &prompt(1, 10))
    });
    run.submit(submit(2, &prompt(2, 10)));
    run.submit(submit(3, &prompt(3, 10)));
    for _ in 0..5 {
        run.scheduler.step();
    }
    run.cancel(3);
    run.cancel(1);
    run.cancel(77);
    assert!(!run.scheduler.is_busy(0));
    assert_eq!(run.outcome(1).finish, Some(Finish::Cancelled));
    assert_eq!(run.outcome(1).tokens.len(), 5);
    assert_eq!(run.outcome(3).finish, Some(Finish::Cancelled));
    run.scheduler.step();
    assert_eq!(run.outcome(2).tokens.len(), 1);
    run.finish();
    assert_eq!(run.outcome(2).finish, Some(Finish::Limit));
    run.cancel(2);
    assert_eq!(run.outcome(2).tokens.len(), 12);
}

#[test]
fn endings() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    let mut run = Run::new(&config);
    let all = run.generate(submit(1, &prompt(1, 10)));
    assert_eq!((all.tokens.len(), all.finish), (12, Some(Finish::Limit)));

    let stop = all.tokens[4];
    let first = all.tokens.iter().position(|&token| token == stop).unwrap();
    let eos = run.generate(Submit {
        eog_tokens: vec![stop],
        ..submit(1, &prompt(1, 10))
    });
    assert_eq!(
        (&eos.tokens[..], eos.finish),
        (&all.tokens[..=first], Some(Finish::Eos)),
        "the token itself is reported"
    );

    let nothing = run.generate(Submit {
        max_tokens: 0,
        ..submit(1, &prompt(8, 10))
    });
    assert_eq!(
        (nothing.progress, nothing.finish),
        (vec![0, 10], Some(Finish::Limit))
    );

    let full = run.generate(Submit {
        max_tokens: u32::MAX,
        ..submit(1, &prompt(1, 120))
    });
    // 128 positions hold the prompt and 8 more; the token behind the last position can still be sampled.
    assert_eq!(
        (full.tokens.len(), full.finish),
        (9, Some(Finish::ContextFull))
    );
    let exact = run.generate(submit(1, &prompt(1, 128)));
    assert_eq!(
        (exact.tokens.len(), exact.finish),
        (1, Some(Finish::ContextFull))
    );
}

#[test]
fn submissions_out_of_bounds_fail_alone() {
    let directory = directory();
    let mut run = Run::new(&config(&model(directory.path(), "tiny")));
    run.submit(submit(1, &prompt(1, 10)));
    let error = |outcome: common::Outcome| match outcome.finish {
        Some(Finish::Error(text) | Finish::Refused(text)) => text,
        other => panic!("{other:?}"),
    };
    run.submit(submit(2, &[]));
    run.submit(submit(3, &[1, 100_000]));
    run.submit(submit(4, &prompt(1, 130)));
    run.submit(Submit {
        slot: Some(1),
        ..submit(5, &[1])
    });
    run.submit(submit(6, &prompt(1, 129)));
    assert_eq!(error(run.outcome(2)), "the prompt has no tokens");
    assert!(error(run.outcome(3)).starts_with("token 100000 is not in the vocabulary of "));
    assert_eq!(
        error(run.outcome(4)),
        "the prompt has 130 tokens, a slot holds 128"
    );
    assert_eq!(
        error(run.outcome(5)),
        "slot 1 is not one of the 1, which count from 0"
    );
    assert_eq!(run.outcome(6).finish, Some(Finish::ContextFull));
    run.finish();
    let mut banned = submit(7, &prompt(1, 10));
    banned.sampling.logit_bias = (0..4096).map(|token| (token, f32::MIN)).collect();
    assert_eq!(run.outcome(1).tokens.len(), 12);
    let nothing_left = error(run.generate(banned));
    assert!(nothing_left.starts_with("no token is left to choose from"));
    assert_eq!(
        run.generate(submit(8, &prompt(1, 10))).cached,
        9,
        "what was refused at its first token leaves a sound cache behind"
    );
}

#[test]
fn slots_are_chosen_by_wish_then_prefix_then_age() {
    let directory = directory();
    let mut config = config(&model(directory.path(), "tiny"));
    config.slots = 3;
    let mut run = Run::new(&config);
    let (a, b) = (prompt(1, 30), prompt(2, 30));
    let first = run.generate(submit(1, &a)).slot.unwrap();
    let second = run.generate(submit(2, &b)).slot.unwrap();
    assert_ne!(first, second, "an unused slot is the oldest");
    assert_eq!(run.generate(submit(3, &a)).slot, Some(first));
    assert_eq!(run.generate(submit(4, &b)).slot, Some(second));
    let third = run.generate(submit(5, &prompt(3, 30))).slot.unwrap();
    assert!(third != first && third != second);
    let asked = run.generate(Submit {
        slot: Some(second),
        ..submit(6, &a)
    });
    assert_eq!((asked.slot, asked.cached), (Some(second), 0));
}

#[test]
fn long_prompts_do_not_stop_those_who_generate() {
    let directory = directory();
    let mut config = config(&model(directory.path(), "tiny"));
    config.slots = 3;
    config.prefill_batch = 4;
    let mut run = Run::new(&config);
    run.submit(Submit {
        max_tokens: 1000,
        ..submit(1, &[5])
    });
    run.scheduler.step();
    run.submit(submit(2, &prompt(2, 40)));
    run.submit(submit(3, &prompt(3, 6)));
    for step in 1..=8 {
        run.scheduler.step();
        assert_eq!(run.outcome(1).tokens.len(), 1 + step, "a token every step");
    }
    // Two tokens of each prompt per step; what the short one no longer needs goes to the long one.
    assert_eq!(run.outcome(3).progress, [0, 2, 4, 6]);
    assert_eq!(run.outcome(2).progress, [0, 2, 4, 6, 10, 14, 18, 22, 26]);
    assert_eq!(run.outcome(3).tokens.len(), 6);
    run.cancel(1);
    run.finish();
    assert_eq!(run.outcome(2).finish, Some(Finish::Limit));
}

#[test]
fn more_jobs_than_slots_wait_in_order() {
    let directory = directory();
    let mut config = config(&model(directory.path(), "tiny"));
    config.slots = 2;
    let mut run = Run::new(&config);
    for id in 0..7 {
        run.submit(submit(id, &prompt(id as u32, 10)));
    }
    run.finish();
    let starts: Vec<u64> = run
        .events
        .borrow()
        .iter()
        .filter_map(|event| match event {
            FromEngine::Prefill {
                id, processed: 0, ..
            } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(starts, [0, 1, 2, 3, 4, 5, 6]);
    assert!((0..7).all(|id| run.outcome(id).tokens.len() == 12));
}

#[test]
fn cpu_time_of_a_step_is_shared_by_tokens() {
    let directory = directory();
    let mut config = config(&model(directory.path(), "tiny"));
    (config.slots, config.prefill_batch) = (2, 64);
    let mut run = Run::new(&config);
    for (id, n) in [(1, 30), (2, 10)] {
        let mut job = submit(id, &prompt(id as u32, n));
        job.max_tokens = 0;
        run.submit(job);
    }
    run.finish();
    let prompts = run.cpu_ms();
    let of = |id: u64| prompts.iter().rfind(|(of, _)| *of == id).unwrap().1;
    assert!(
        of(2) > 0.0 && (of(1) / of(2) - 3.0).abs() < 1e-6,
        "{prompts:?}"
    );

    run.events.borrow_mut().clear();
    for id in [3, 4] {
        run.submit(submit(id, &prompt(id as u32, 20)));
    }
    run.finish();
    let told = run.cpu_ms();
    for id in [3, 4] {
        let mine: Vec<f64> = told
            .iter()
            .filter(|(of, _)| *of == id)
            .map(|it| it.1)
            .collect();
        assert_eq!(mine[0], 0.0);
        assert!(
            mine.len() > 12 && mine.is_sorted() && mine[mine.len() - 1] > 0.0,
            "{mine:?}"
        );
    }
}

#[test]
fn logits_that_are_no_numbers_fail_one_generation() {
    let directory = directory();
    let path = model(directory.path(), "tiny-llama");
    let poisoned = 9;
    poison_embedding(&path, poisoned);
    let mut config = config(&path);
    config.slots = 2;
    let mut bad = prompt(1, 10);
    let good: Vec<u32> = prompt(2, 10).iter().map(|&token| token.max(10)).collect();
    let expected = alone(&config, &submit(2, &good));
    bad[6] = poisoned;
    let mut run = Run::new(&config);
    run.submit(submit(1, &bad));
    run.submit(submit(2, &good));
    run.finish();
    let Some(Finish::Error(error)) = run.outcome(1).finish else {
        panic!("{:?}", run.outcome(1));
    };
    assert_eq!(error, "the logit of token 0 is not a finite number");
    assert_eq!(signature(&run.outcome(2)), expected);
    assert_eq!(
        run.generate(submit(3, &bad)).cached,
        0,
        "the cache of a failed generation is not reused"
    );
}

/// Place and log-probability of the prompt's tokens, as bits.
fn prompt_probs(run: &Run) -> Vec<(usize, u32)> {
    let mut found = Vec::new();
    for event in &*run.events.borrow() {
        if let FromEngine::PromptProbs { first, probs, .. } = event {
            let bits = probs.iter().map(|it| it.logprob.to_bits());
            found.extend((*first..).zip(bits));
            assert!(probs.iter().all(|it| it.top.len() == 3));
        }
    }
    found
}

#[test]
fn a_prompt_is_as_likely_as_it_was_when_it_was_drawn() {
    let directory = directory();
    for preset in PRESETS {
        let mut config = config(&model(directory.path(), preset));
        let mut job = submit(1, &prompt(1, 21));
        job.max_tokens = 30;
        let mut run = Run::new(&config);
        let drawn = run.generate(job.clone());
        let text: Vec<u32> = job.tokens.iter().chain(&drawn.tokens).copied().collect();
        let scoring = Submit {
            prompt_probs: Some(3),
            max_tokens: 1,
            ..submit(2, &text)
        };
        let outcome = run.generate(scoring.clone());
        assert_eq!(outcome.cached, 0, "all of it is evaluated");
        let expected = prompt_probs(&run);
        let places: Vec<usize> = expected.iter().map(|it| it.0).collect();
        assert_eq!(places, Vec::from_iter(1..text.len()));
        let probs = drawn.probs.iter().map(|it| it.as_ref().unwrap().logprob);
        let bits: Vec<u32> = probs.map(f32::to_bits).collect();
        let found: Vec<u32> = expected[20..].iter().map(|it| it.1).collect();
        assert_eq!(found, bits, "{preset}");
        // However it is cut, and beside others.
        config.prefill_batch = 7;
        let mut run = Run::new(&config);
        run.submit(submit(3, &prompt(3, 40)));
        run.submit(Submit {
            max_tokens: 0,
            ..scoring
        });
        run.finish();
        assert_eq!(prompt_probs(&run), expected);
        let beside = signature(&run.outcome(3));
        assert_eq!(beside, alone(&config, &submit(3, &prompt(3, 40))));
    }
}

#[test]
fn tokens_that_a_grammar_forces_are_those_it_would_draw() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    let text = "root ::= \"fixed: \" [0-9]{2,4} \" and \" (\"yes\" | \"no\") <[7]> \".\\n\"";
    let job = |id: u64, n_probs: u32| {
        let mut job = submit(id, &prompt(9, 12));
        job.max_tokens = 60;
        job.eog_tokens = (505..512).collect();
        job.sampling = SamplingParams {
            seed: 3,
            n_probs,
            grammar: Some(Grammar {
                text: GrammarText::Gbnf(text.to_owned()),
                triggers: None,
            }),
            ..SamplingParams::default()
        };
        job
    };
    let mut run = Run::new(&config);
    // Whoever asks for probabilities gets them from logits.
    let drawn = run.generate(job(1, 1));
    assert!(
        drawn.tokens.contains(&7) && drawn.finish == Some(Finish::Eos),
        "{drawn:?}"
    );
    run.submit(submit(2, &prompt(2, 30)));
    run.submit(job(3, 0));
    run.finish();
    assert_eq!(run.outcome(3).tokens, drawn.tokens);
    let beside = signature(&run.outcome(2));
    assert_eq!(beside, alone(&config, &submit(2, &prompt(2, 30))));
}
