//! Guessing tokens ahead changes how many come out of a step, and nothing else.

mod common;

use bitnet_model::protocol::{
    EngineConfig, Finish, FromEngine, Grammar, GrammarText, HeadMode, KvType, SamplerKind,
    SamplingParams, Submit,
};
use common::{Run, config, model, prompt, submit};
use tempfile::TempDir;

const DRAFT_MAX: usize = 5;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn guessing(config: &EngineConfig) -> EngineConfig {
    EngineConfig {
        draft_max: DRAFT_MAX,
        ..config.clone()
    }
}

/// All that one token says, but for the time.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    token: u32,
    probs: Option<String>,
    state: Option<u32>,
}

fn told(run: &Run, wanted: u64) -> Vec<Told> {
    let events = run.events.borrow();
    let tokens = events.iter().filter_map(|event| match event {
        FromEngine::Token {
            id,
            token,
            probs,
            mirostat_mu,
            ..
        } if *id == wanted => Some(Told {
            token: *token,
            probs: probs.as_ref().map(|probs| format!("{probs:?}")),
            state: mirostat_mu.map(|mu| mu.0),
        }),
        _ => None,
    });
    tokens.collect()
}

/// Guesses checked, and those of them that were right.
fn drafts(run: &Run) -> (u32, u32) {
    let (mut n, mut n_right, mut n_step) = (0, 0, 0);
    for event in &*run.events.borrow() {
        if let FromEngine::Token { draft, .. } = event {
            if draft.place == 0 {
                n_step = draft.n;
            }
            n += draft.n;
            n_right += u32::from(draft.place > 0);
            assert!(draft.n as usize <= DRAFT_MAX && (draft.n == 0 || draft.place == 0));
            assert!(draft.place == 0 || draft.place <= n_step || n_step == 0);
        }
    }
    (n, n_right)
}

/// A text of few different tokens: guesses are sometimes right and sometimes wrong.
fn few(id: u64, n_different: u32, sampling: SamplingParams) -> Submit {
    let bias = (0..n_different).map(|i| (20 + 3 * i, 60.0));
    Submit {
        max_tokens: 70,
        sampling: SamplingParams {
            seed: 7 + id as u32,
            logit_bias: bias.collect(),
            ..sampling
        },
        ..submit(id, &prompt(id as u32, 12))
    }
}

fn samplings() -> Vec<(&'static str, SamplingParams)> {
    let own = SamplingParams::default;
    let greedy = SamplingParams {
        temperature: 0.0,
        ..own()
    };
    vec![
        ("greedy", greedy.clone()),
        ("sampled", own()),
        (
            "all candidates",
            SamplingParams {
                top_k: 0,
                temperature: 1.3,
                ..own()
            },
        ),
        (
            "penalties",
            SamplingParams {
                repeat_penalty: 1.2,
                frequency_penalty: 0.3,
                presence_penalty: 0.2,
                repeat_last_n: 12,
                ..own()
            },
        ),
        (
            "greedy with penalties",
            SamplingParams {
                repeat_penalty: 1.05,
                frequency_penalty: 0.5,
                ..greedy.clone()
            },
        ),
        (
            "dry",
            SamplingParams {
                dry_multiplier: 0.8,
                dry_base: 1.1,
                dry_sequence_breakers: Vec::new(),
                ..own()
            },
        ),
        (
            "xtc",
            SamplingParams {
                xtc_probability: 0.5,
                ..own()
            },
        ),
        (
            "mirostat",
            SamplingParams {
                mirostat: 2,
                mirostat_tau: 1.5,
                ..own()
            },
        ),
        (
            "adaptive",
            SamplingParams {
                adaptive_target: 0.4,
                samplers: vec![SamplerKind::TopK, SamplerKind::AdaptiveP],
                ..own()
            },
        ),
        (
            "raw probabilities",
            SamplingParams {
                n_probs: 3,
                ..own()
            },
        ),
        (
            "probabilities behind the chain",
            SamplingParams {
                n_probs: 3,
                post_sampling_probs: true,
                ..own()
            },
        ),
    ]
}

fn bound(id: u64, text: &str, n_probs: u32) -> Submit {
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
}

/// Runs the jobs on two engines, the second one guessing; both must tell the same. Returns the guesses.
fn compare(config: &EngineConfig, what: &str, jobs: &[Submit]) -> (u32, u32) {
    let (mut plain, mut quick) = (Run::new(config), Run::new(&guessing(config)));
    for run in [&mut plain, &mut quick] {
        for job in jobs {
            run.submit(job.clone());
            run.scheduler.step();
        }
        run.finish();
    }
    for job in jobs {
        let (expected, found) = (told(&plain, job.id), told(&quick, job.id));
        assert_eq!(found, expected, "{what}, job {}", job.id);
        let ends = (plain.outcome(job.id), quick.outcome(job.id));
        assert_eq!(ends.0.finish, ends.1.finish, "{what}, job {}", job.id);
    }
    assert_eq!(drafts(&plain), (0, 0));
    drafts(&quick)
}

#[test]
fn the_same_tokens_whatever_the_sampler() {
    let directory = directory();
    let mut config = config(&model(directory.path(), "tiny"));
    let (mut n, mut n_right) = (0, 0);
    for (head, kv_type) in [
        (HeadMode::Exact, KvType::F16),
        (HeadMode::Proven, KvType::Q8_0),
        (HeadMode::Full, KvType::F32),
    ] {
        (config.head, config.kv_type) = (head, kv_type);
        for (id, (name, sampling)) in (0..).zip(samplings()) {
            let job = few(id, 3 + id as u32 % 3, sampling);
            let (drafted, right) = compare(&config, name, &[job]);
            assert!(drafted > 0, "{name}: nothing was guessed");
            (n, n_right) = (n + drafted, n_right + right);
        }
    }
    assert!(n_right > 50 && n - n_right > 50, "{n_right} of {n}");
}

#[test]
fn the_same_tokens_under_a_grammar() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    let mut n_right = 0;
    for (text, n_probs) in [
        ("root ::= (\"a\" | \"b\" | \"c\")+", 0),
        ("root ::= \"x\" (\"one two \" | \"one three \")+", 2),
        ("root ::= \"[\" [0-9]{2,4} (\", \" [0-9]{2,4})* \"]\"", 0),
    ] {
        let jobs = [bound(1, text, n_probs)];
        n_right += compare(&config, text, &jobs).1;
    }
    assert!(n_right > 10, "{n_right}");
}

#[test]
fn the_same_tokens_among_others() {
    let directory = directory();
    let mut config = config(&model(directory.path(), "tiny"));
    config.slots = 4;
    config.decode_cpus = vec![0, 1];
    config.prefill_cpus = vec![0, 1];
    for prefill_batch in [5, 512] {
        config.prefill_batch = prefill_batch;
        let named = samplings();
        let jobs = named.into_iter().enumerate().map(|(id, (_, sampling))| {
            let mut job = few(id as u64, 3, sampling);
            job.tokens = prompt(id as u32, (4 + 9 * id).min(50));
            job
        });
        let mut jobs: Vec<Submit> = jobs.collect();
        jobs.push(bound(90, "root ::= (\"one two \" | \"one three \")+", 1));
        let (n, n_right) = compare(&config, "together", &jobs);
        assert!(n > n_right && n_right > 0, "{n_right} of {n}");
    }
}

/// Every token the same: every guess is right.
fn always(id: u64, max_tokens: u32) -> Submit {
    let mut job = few(id, 1, SamplingParams::default());
    job.max_tokens = max_tokens;
    job
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    let steps = |run: &Run| {
        let events = run.events.borrow();
        let steps = events.iter().filter_map(|event| match event {
            FromEngine::Heartbeat { steps } => Some(*steps),
            _ => None,
        });
        steps.max().unwrap()
    };
    let mut plain = Run::new(&config);
    plain.generate(always(1, 80));
    let mut quick = Run::new(&guessing(&config));
    let outcome = quick.generate(always(1, 80));
    assert_eq!(outcome.tokens, [20; 80]);
    let (n, n_right) = drafts(&quick);
    assert!(
        n_right > 20 && n - n_right <= DRAFT_MAX as u32,
        "{n_right} of {n}"
    );
    assert_eq!(steps(&plain), 80);
    assert_eq!(steps(&quick), 80 - u64::from(n_right));
    // Unless the job wants none, or fewer.
    let mut job = always(2, 40);
    job.draft_max = Some(0);
    quick.generate(job);
    assert_eq!(drafts(&quick), (0, 0));
}

#[test]
fn limits_hold_in_the_middle_of_a_draft() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    for max_tokens in 1..40 {
        let mut run = Run::new(&guessing(&config));
        let outcome = run.generate(always(1, max_tokens));
        assert_eq!(outcome.tokens.len(), max_tokens as usize);
        assert_eq!(outcome.finish, Some(Finish::Limit));
    }
    let mut run = Run::new(&guessing(&config));
    let mut full = always(1, u32::MAX);
    full.tokens = prompt(1, 60);
    let outcome = run.generate(full);
    assert_eq!(
        (outcome.tokens.len(), outcome.finish),
        (69, Some(Finish::ContextFull))
    );
    // The end of generation drawn where more was guessed.
    let mut ended = few(3, 4, SamplingParams::default());
    let all = Run::new(&config).generate(ended.clone());
    for place in 30..60 {
        ended.eog_tokens = vec![all.tokens[place]];
        compare(&config, "end of generation", &[ended.clone()]);
    }
}

#[test]
fn what_was_guessed_wrongly_leaves_no_trace_in_the_cache() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    let hot = SamplingParams {
        temperature: 3.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        ..SamplingParams::default()
    };
    let first = few(1, 4, hot);
    let (mut plain, mut quick) = (Run::new(&config), Run::new(&guessing(&config)));
    let before = plain.generate(first.clone());
    quick.generate(first.clone());
    let (n, n_right) = drafts(&quick);
    assert!(n > n_right, "{n_right} of {n}");
    let mut next = submit(2, &first.tokens);
    next.tokens.extend(&before.tokens);
    next.tokens.push(77);
    let (expected, found) = (plain.generate(next.clone()), quick.generate(next));
    assert_eq!(found.cached, expected.cached);
    assert_eq!(told(&quick, 2), told(&plain, 2));
    assert_eq!(found.tokens, expected.tokens);
}

#[test]
fn an_interrupted_generation_goes_on_elsewhere_with_the_same_tokens() {
    let directory = directory();
    let config = config(&model(directory.path(), "tiny"));
    for (id, (name, sampling)) in (0..).zip(samplings()) {
        let job = few(id, 3, sampling);
        let undisturbed = {
            let mut run = Run::new(&config);
            run.generate(job.clone());
            told(&run, id)
        };
        for produced in [1, 17, 40] {
            let mut rest = job.clone();
            let before = &undisturbed[..produced];
            rest.tokens.extend(before.iter().map(|told| told.token));
            rest.max_tokens -= produced as u32;
            let state = before.last().and_then(|told| told.state);
            rest.carried.mirostat_mu = state.map(bitnet_model::protocol::MirostatMu);
            let mut run = Run::new(&guessing(&config));
            run.generate(rest);
            assert_eq!(
                told(&run, id),
                undisturbed[produced..],
                "{name} after {produced}"
            );
        }
    }
}
