//! The chain against textbook versions of itself.

mod state;

use super::*;
use SamplerKind::{Dry, MinP, Penalties, Temperature, TopK, TopNSigma, TopP, TypP, Xtc};

/// Everything off: the whole distribution.
fn plain() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        ..SamplingParams::default()
    }
}

fn random_logits(n: usize, seed: u32) -> Vec<f32> {
    let gauss = |i: u64| (0..6).map(|j| uniform(seed, 6 * i + j) - 0.5).sum::<f64>();
    (0..n as u64).map(|i| (gauss(i) * 4.0) as f32).collect()
}

fn sample(params: &SamplingParams, logits: &[f32], history: &[u32]) -> u32 {
    let mut sampler = Sampler::new(params.clone(), vec![2]);
    sampler.sample(&mut logits.to_vec(), history).unwrap().token
}

/// Tokens left after the chain with their probabilities, most likely first.
fn left(params: &SamplingParams, logits: &[f32], history: &[u32]) -> Vec<(u32, f64)> {
    let mut sampler = Sampler::new(params.clone(), vec![2]);
    let mut logits = logits.to_vec();
    let mut logits = Logits::All(&mut logits);
    sampler.apply_bias(&mut logits);
    sampler.run_chain(&mut logits, history, false, true);
    let (weight, sum) = sampler.candidates.weights();
    let mut left: Vec<_> = sampler
        .candidates
        .items
        .iter()
        .map(|it| (it.token, weight(it) / sum))
        .collect();
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    left
}

/// The textbook version of every cut: sort everything, then walk.
fn naive(params: &SamplingParams, logits: &[f32]) -> Vec<(u32, f64)> {
    let mut items: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&l| f64::from(l))).collect();
    items.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let softmax = |items: &[(u32, f64)]| {
        let max = items.iter().fold(f64::MIN, |max, it| max.max(it.1));
        let sum: f64 = items.iter().map(|it| (it.1 - max).exp()).sum();
        items
            .iter()
            .map(|it| (it.1 - max).exp() / sum)
            .collect::<Vec<f64>>()
    };
    let min_keep = params.min_keep as usize;
    for stage in &params.samplers {
        let probs = softmax(&items);
        match stage {
            Penalties => {}
            TopK if params.top_k > 0 => items.truncate((params.top_k as usize).max(min_keep)),
            TypP if params.typical_p < 1.0 => {
                let entropy: f64 = probs.iter().map(|p| -p * p.ln()).sum();
                let mut order: Vec<usize> = (0..items.len()).collect();
                order.sort_by(|&a, &b| {
                    let score = |i: usize| (-probs[i].ln() - entropy).abs();
                    score(a).total_cmp(&score(b)).then(a.cmp(&b))
                });
                let mut sum = 0.0;
                let last = order.iter().enumerate().position(|(n, &i)| {
                    sum += probs[i];
                    sum > f64::from(params.typical_p) && n + 1 >= min_keep
                });
                order.truncate(last.map_or(order.len(), |last| last + 1));
                items = order.iter().map(|&i| items[i]).collect();
                items.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            }
            TopP if params.top_p < 1.0 => {
                let mut sum = 0.0;
                let last = probs.iter().enumerate().position(|(n, p)| {
                    sum += p;
                    sum >= f64::from(params.top_p) && n + 1 >= min_keep
                });
                items.truncate(last.map_or(items.len(), |last| last + 1));
            }
            MinP if params.min_p > 0.0 => {
                let n = probs
                    .iter()
                    .filter(|&&p| p >= f64::from(params.min_p) * probs[0])
                    .count();
                items.truncate(n.max(min_keep));
            }
            TopNSigma if params.top_n_sigma > 0.0 => {
                let n = items.len() as f64;
                let mean = items.iter().map(|it| it.1).sum::<f64>() / n;
                let squares = items.iter().map(|it| (it.1 - mean) * (it.1 - mean));
                let floor =
                    items[0].1 - f64::from(params.top_n_sigma) * (squares.sum::<f64>() / n).sqrt();
                items.retain(|it| it.1 >= floor);
            }
            Xtc if params.xtc_probability > 0.0 && params.xtc_threshold <= 0.5 => {
                let likely = probs
                    .iter()
                    .filter(|&&p| p >= f64::from(params.xtc_threshold))
                    .count();
                if likely > 1 && items.len() - (likely - 1) >= min_keep {
                    items.drain(..likely - 1);
                }
            }
            Temperature => items
                .iter_mut()
                .for_each(|it| it.1 /= f64::from(params.temperature)),
            _ => {}
        }
    }
    let probs = softmax(&items);
    items.iter().zip(probs).map(|(it, p)| (it.0, p)).collect()
}

fn assert_same(found: &[(u32, f64)], expected: &[(u32, f64)], what: &str) {
    let by_token = |list: &[(u32, f64)]| {
        let mut list = list.to_vec();
        list.sort_by_key(|it| it.0);
        list
    };
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in by_token(found).iter().zip(by_token(expected)) {
        assert!(
            a.0 == b.0 && (a.1 - b.1).abs() < 1e-5 * b.1.max(1e-3),
            "{what}: {a:?} instead of {b:?}"
        );
    }
}

#[test]
fn every_stage_equals_the_textbook() {
    let base = plain();
    let cases = [
        SamplingParams {
            top_k: 1,
            ..base.clone()
        },
        SamplingParams {
            top_k: 40,
            ..base.clone()
        },
        SamplingParams {
            top_k: 100_000,
            ..base.clone()
        },
        SamplingParams {
            top_p: 0.0,
            ..base.clone()
        },
        SamplingParams {
            top_p: 0.5,
            ..base.clone()
        },
        SamplingParams {
            top_p: 0.999,
            ..base.clone()
        },
        SamplingParams {
            min_p: 0.05,
            ..base.clone()
        },
        SamplingParams {
            min_p: 1.0,
            ..base.clone()
        },
        SamplingParams {
            typical_p: 0.2,
            ..base.clone()
        },
        SamplingParams {
            typical_p: 0.9,
            ..base.clone()
        },
        SamplingParams {
            temperature: 0.3,
            ..base.clone()
        },
        SamplingParams {
            top_k: 3,
            top_p: 0.1,
            min_p: 0.9,
            typical_p: 0.1,
            min_keep: 9,
            ..base.clone()
        },
        SamplingParams {
            samplers: vec![Temperature, MinP, TypP, TopP, TopK],
            min_p: 0.01,
            top_k: 7,
            ..base.clone()
        },
        SamplingParams {
            top_n_sigma: 1.0,
            ..base.clone()
        },
        SamplingParams {
            samplers: vec![TopK, TopNSigma],
            top_k: 50,
            top_n_sigma: 0.7,
            ..base.clone()
        },
        SamplingParams {
            xtc_probability: 1.0,
            xtc_threshold: 0.01,
            ..base.clone()
        },
        SamplingParams {
            xtc_probability: 1.0,
            xtc_threshold: 0.0,
            ..base.clone()
        },
        SamplingParams {
            xtc_probability: 1.0,
            xtc_threshold: 0.01,
            top_k: 9,
            min_keep: 8,
            ..base.clone()
        },
        SamplingParams {
            xtc_probability: 1.0,
            xtc_threshold: 0.6,
            ..base.clone()
        },
        SamplingParams {
            xtc_probability: 1.0,
            xtc_threshold: 0.02,
            top_n_sigma: 2.5,
            typical_p: 0.95,
            ..SamplingParams::default()
        },
        SamplingParams::default(),
        SamplingParams {
            typical_p: 0.7,
            top_k: 300,
            ..SamplingParams::default()
        },
    ];
    for (case, params) in cases.iter().enumerate() {
        for (n_vocab, seed) in [(3, 1), (50, 2), (1000, 3), (20_011, 4)] {
            let logits = random_logits(n_vocab, seed);
            let what = format!("case {case}, {n_vocab} tokens, seed {seed}");
            assert_same(&left(params, &logits, &[]), &naive(params, &logits), &what);
        }
    }
}

#[test]
fn equal_logits_go_by_id() {
    let logits = [1.0, 3.0, 3.0, 2.0, 3.0];
    assert_eq!(
        sample(
            &SamplingParams {
                temperature: 0.0,
                ..plain()
            },
            &logits,
            &[]
        ),
        1
    );
    let kept = left(
        &SamplingParams {
            top_k: 2,
            ..plain()
        },
        &logits,
        &[],
    );
    assert_eq!(kept.iter().map(|it| it.0).collect::<Vec<_>>(), [1, 2]);
    let many = vec![0.5; 5000];
    let kept = left(
        &SamplingParams {
            top_k: 3,
            ..plain()
        },
        &many,
        &[],
    );
    assert_eq!(kept.iter().map(|it| it.0).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = [0.5f32, 0.2, 0.15, 0.1, 0.05]
        .iter()
        .map(|p| p.ln())
        .collect();
    for seed in [0, 1, 42, u32::MAX] {
        let n = 20_000;
        let mut sampler = Sampler::new(SamplingParams { seed, ..plain() }, Vec::new());
        let mut counts = [0.0f64; 5];
        let history = vec![0; n];
        for position in 0..n {
            let token = sampler
                .sample(&mut logits.clone(), &history[..position])
                .unwrap()
                .token;
            counts[token as usize] += 1.0;
        }
        let expected = [0.5, 0.2, 0.15, 0.1, 0.05].map(|p| p * n as f64);
        let chi2: f64 = counts
            .iter()
            .zip(expected)
            .map(|(c, e)| (c - e).powi(2) / e)
            .sum();
        // 4 degrees of freedom: 23.5 is exceeded once in 10,000.
        assert!(chi2 < 23.5, "seed {seed}: chi2 {chi2}, {counts:?}");
    }
}

#[test]
fn random_numbers_are_even_and_unrelated_between_seeds_and_positions() {
    let mut cells = [[0u32; 16]; 16];
    for seed in 0..256 {
        for position in 0..256 {
            let (a, b) = (uniform(seed, position), uniform(seed + 1, position + 1));
            cells[(a * 16.0) as usize][(b * 16.0) as usize] += 1;
        }
    }
    let expected = 65536.0 / 256.0;
    let chi2: f64 = cells
        .iter()
        .flatten()
        .map(|&c| (f64::from(c) - expected).powi(2) / expected)
        .sum();
    assert!(
        (170.0..350.0).contains(&chi2),
        "chi2 {chi2} at 255 degrees of freedom"
    );
    assert_eq!(uniform(7, 9), uniform(7, 9));
    assert!((0..1000).all(|position| (0.0..1.0).contains(&uniform(1, position))));
}

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let logits = random_logits(500, 5);
    let params = SamplingParams {
        seed: 11,
        ..SamplingParams::default()
    };
    let history: Vec<u32> = (0..40).collect();
    let mut sampler = Sampler::new(params.clone(), Vec::new());
    let all: Vec<u32> = (0..40)
        .map(|n| {
            sampler
                .sample(&mut logits.clone(), &history[..n])
                .unwrap()
                .token
        })
        .collect();
    assert!(all.iter().any(|&token| token != all[0]));
    for n in [39, 3, 17] {
        assert_eq!(sample(&params, &logits, &history[..n]), all[n]);
    }
}

/// What a [`Want`] names, and some more, out of all logits.
fn wanted(want: Want<'_>, all: &[f32], more: impl Fn(u32) -> bool) -> Option<Vec<u32>> {
    let Want::Best { k, also } = want else {
        return None;
    };
    let mut order: Vec<u32> = (0..all.len() as u32)
        .filter(|token| !also.contains(token))
        .collect();
    let logit = |token: &u32| all[*token as usize];
    order.sort_by(|a, b| logit(b).total_cmp(&logit(a)).then(a.cmp(b)));
    order.truncate(k);
    let mut tokens: Vec<u32> = (0..all.len() as u32).filter(|&token| more(token)).collect();
    tokens.extend(order);
    tokens.extend(also.iter().filter(|&&token| (token as usize) < all.len()));
    tokens.sort_unstable();
    tokens.dedup();
    Some(tokens)
}

#[test]
fn the_logits_it_wants_give_the_token_that_all_would() {
    const N: usize = 900;
    let mut n_best = 0;
    for seed in 0..3000 {
        let draw = |i: u64| uniform(seed, 1_000_000 + i);
        let pick = |i: u64, choices: &[f32]| choices[(draw(i) * choices.len() as f64) as usize];
        let mut samplers = SamplingParams::default().samplers;
        if draw(0) < 0.3 {
            samplers.rotate_left((draw(1) * 9.0) as usize);
        }
        let id = |i: u64| (draw(i) * 1.1 * N as f64) as u32;
        let params = SamplingParams {
            seed,
            temperature: pick(2, &[0.0, 0.7, 1.0, 1.5]),
            dynatemp_range: pick(3, &[0.0, 0.0, 0.3]),
            top_k: pick(4, &[0.0, 1.0, 5.0, 40.0, 100.0]) as u32,
            top_p: pick(5, &[1.0, 0.95, 0.5]),
            min_p: pick(6, &[0.0, 0.05]),
            typical_p: pick(7, &[1.0, 1.0, 0.8]),
            repeat_last_n: pick(8, &[0.0, 4.0, 64.0]) as u32,
            repeat_penalty: pick(9, &[1.0, 1.0, 1.3, 0.7]),
            frequency_penalty: pick(10, &[0.0, 0.0, 0.5, -0.5]),
            presence_penalty: pick(11, &[0.0, 0.0, 0.5]),
            logit_bias: match draw(12) < 0.5 {
                true => Vec::new(),
                false => vec![(id(13), 8.0), (id(14), f32::MIN), (id(15), -3.0)],
            },
            ignore_eos: draw(16) < 0.2,
            n_probs: pick(17, &[0.0, 0.0, 3.0]) as u32,
            post_sampling_probs: draw(18) < 0.8,
            min_keep: pick(19, &[0.0, 0.0, 7.0]) as u32,
            top_n_sigma: pick(20, &[-1.0, -1.0, -1.0, 1.5]),
            xtc_probability: pick(21, &[0.0, 0.0, 0.5, 1.0]),
            xtc_threshold: pick(22, &[0.1, 0.02]),
            dry_multiplier: pick(23, &[0.0, 0.0, 0.8]),
            dry_allowed_length: pick(24, &[0.0, 1.0, 2.0]) as u32,
            mirostat: pick(25, &[0.0, 0.0, 0.0, 0.0, 1.0, 2.0]) as u32,
            samplers,
            ..SamplingParams::default()
        };
        // Rounded, so that there are equals.
        let all: Vec<f32> = random_logits(N, seed)
            .iter()
            .map(|logit| (logit * 16.0).round() / 16.0)
            .collect();
        let mut history: Vec<u32> = (0..50).map(|i| (draw(100 + i) * N as f64) as u32).collect();
        // Something to repeat.
        history.extend_from_within(20..30);
        let mut sampler = Sampler::new(params.clone(), vec![2, 800]);
        let more = |token: u32| draw(10_000 + u64::from(token)) < 0.01;
        let Some(tokens) = wanted(sampler.wants(&history), &all, more) else {
            continue;
        };
        n_best += 1;
        let mut logits: Vec<f32> = tokens.iter().map(|&token| all[token as usize]).collect();
        let mut some = Logits::Best {
            tokens: &tokens,
            logits: &mut logits,
        };
        let found = sampler.choose(&mut some, &history);
        let expected =
            Sampler::new(params.clone(), vec![2, 800]).sample(&mut all.clone(), &history);
        assert_eq!(found, expected, "seed {seed}, {params:?}");
    }
    assert!(n_best > 1000, "{n_best} of 3000 need few logits");
}

#[test]
fn who_needs_every_logit_says_so() {
    let of = |change: &dyn Fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        let mut sampler = Sampler::new(params, vec![2]);
        match sampler.wants(&[5, 6, 7]) {
            Want::All => None,
            Want::Best { k, also } => Some((k, also.to_vec())),
        }
    };
    assert_eq!(of(&|_| {}), Some((40, vec![])));
    assert_eq!(of(&|p| p.temperature = 0.0), Some((1, vec![])));
    assert_eq!(of(&|p| p.min_keep = 50), Some((50, vec![])));
    assert_eq!(of(&|p| p.top_k = 0), None);
    assert_eq!(of(&|p| p.n_probs = 1), None);
    assert_eq!(of(&|p| p.samplers = vec![TypP, TopK]), Some((40, vec![])));
    assert_eq!(of(&|p| p.samplers = vec![TopP, TopK]), None);
    assert_eq!(of(&|p| p.samplers = vec![]), None);
    let post = |p: &mut SamplingParams| (p.n_probs, p.post_sampling_probs) = (1, true);
    assert_eq!(of(&post), Some((40, vec![])));
    let bias = |p: &mut SamplingParams| {
        p.logit_bias = vec![(9, 1.0)];
        p.ignore_eos = true;
        p.repeat_penalty = 1.1;
        p.repeat_last_n = 2;
    };
    assert_eq!(of(&bias), Some((40, vec![9, 2, 6, 7])));
}

#[test]
fn penalties_count_what_was_said() {
    let params = SamplingParams {
        repeat_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        repeat_last_n: 4,
        ..plain()
    };
    let before = [2.0, -2.0, 1.0, 0.0];
    let history = [3, 3, 1, 0, 0, 1];
    let apply = |params: &SamplingParams| {
        let mut sampler = Sampler::new(params.clone(), Vec::new());
        let mut logits = before;
        sampler.run_chain(&mut Logits::All(&mut logits), &history, false, true);
        let mut left = std::mem::take(&mut sampler.candidates.items);
        left.sort_by_key(|it| it.token);
        left.iter().map(|it| it.logit).collect::<Vec<f32>>()
    };
    // Token 3 lies outside the last four.
    let expected = [2.0 / 2.0 - 1.25, -2.0 * 2.0 - 1.25, 1.0, 0.0];
    assert_eq!(apply(&params), expected);
    let late = SamplingParams {
        samplers: vec![TopK, Penalties],
        top_k: 4,
        ..params.clone()
    };
    assert_eq!(apply(&late), expected);
    assert_eq!(
        apply(&SamplingParams {
            repeat_last_n: 0,
            ..params.clone()
        }),
        before
    );
    assert_eq!(
        apply(&SamplingParams {
            samplers: Vec::new(),
            ..params
        }),
        before
    );
}

#[test]
fn extreme_parameters_stay_numbers() {
    let logits = random_logits(100, 6);
    for params in [
        SamplingParams {
            repeat_penalty: 1e-38,
            frequency_penalty: f32::MAX,
            ..plain()
        },
        SamplingParams {
            presence_penalty: f32::MIN,
            frequency_penalty: f32::MIN,
            ..plain()
        },
        SamplingParams {
            temperature: 1e-40,
            ..plain()
        },
        SamplingParams {
            temperature: f32::MAX,
            ..plain()
        },
        SamplingParams {
            logit_bias: vec![(1, f32::MAX), (2, 1e38), (4_000_000_000, 1.0)],
            ..plain()
        },
        SamplingParams {
            top_k: u32::MAX,
            min_keep: u32::MAX,
            top_p: 0.0,
            min_p: 2.0,
            typical_p: 0.0,
            ..plain()
        },
        SamplingParams {
            dynatemp_range: 5.0,
            dynatemp_exponent: 0.0,
            n_probs: 10,
            post_sampling_probs: true,
            ..plain()
        },
    ] {
        let mut sampler = Sampler::new(params.clone(), Vec::new());
        let sampled = sampler.sample(&mut logits.clone(), &[5, 5, 6]).unwrap();
        assert!(sampled.token < 100, "{params:?}");
    }
    let cold = SamplingParams {
        temperature: 1e-40,
        ..plain()
    };
    let greedy = SamplingParams {
        temperature: 0.0,
        ..plain()
    };
    assert_eq!(sample(&cold, &logits, &[]), sample(&greedy, &logits, &[]));
}

#[test]
fn bias_bans_and_forces() {
    let logits = [5.0, 1.0, 4.0, 0.0];
    let greedy = SamplingParams {
        temperature: 0.0,
        ..plain()
    };
    let with = |logit_bias: Vec<(u32, f32)>| SamplingParams {
        logit_bias,
        ..greedy.clone()
    };
    assert_eq!(sample(&with(vec![(3, 5.5)]), &logits, &[]), 3);
    assert_eq!(sample(&with(vec![(0, f32::MIN)]), &logits, &[]), 2);
    let no_eos = SamplingParams {
        ignore_eos: true,
        ..with(vec![(0, f32::MIN)])
    };
    assert_eq!(sample(&no_eos, &logits, &[]), 1);
    let nothing = with((0..4).map(|token| (token, f32::MIN)).collect());
    let mut sampler = Sampler::new(nothing, Vec::new());
    assert_eq!(
        sampler.sample(&mut logits.clone(), &[]),
        Err(SampleError::NothingLeft)
    );
}

#[test]
fn numbers_that_are_not_are_refused() {
    let mut sampler = Sampler::new(SamplingParams::default(), Vec::new());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = vec![0.0; 300];
        logits[257] = bad;
        assert_eq!(
            sampler.sample(&mut logits, &[]),
            Err(SampleError::NotFinite { token: 257 })
        );
    }
    assert!(sampler.sample(&mut [0.0; 300], &[]).is_ok());
}

#[test]
fn raw_probabilities_ignore_the_chain() {
    let logits = random_logits(200, 8);
    let params = SamplingParams {
        n_probs: 5,
        top_k: 1,
        logit_bias: vec![(17, 50.0)],
        ..SamplingParams::default()
    };
    let sampled = Sampler::new(params, Vec::new())
        .sample(&mut logits.clone(), &[])
        .unwrap();
    let all = naive(
        &SamplingParams {
            samplers: Vec::new(),
            ..plain()
        },
        &logits,
    );
    let log_prob = |token: u32| all.iter().find(|it| it.0 == token).unwrap().1.ln() as f32;
    let probs = sampled.probs.unwrap();
    assert_eq!(sampled.token, 17);
    assert!((probs.logprob - log_prob(17)).abs() < 1e-4);
    assert_eq!(probs.top.len(), 5);
    for (found, expected) in probs.top.iter().zip(&all) {
        assert_eq!(found.0, expected.0);
        assert!((found.1 - log_prob(found.0)).abs() < 1e-4);
    }
}

#[test]
fn probabilities_after_the_chain() {
    let params = SamplingParams {
        n_probs: 5,
        post_sampling_probs: true,
        top_k: 3,
        ..plain()
    };
    let mut sampler = Sampler::new(params.clone(), Vec::new());
    let probs = sampler
        .sample(&mut random_logits(200, 8), &[])
        .unwrap()
        .probs
        .unwrap();
    let sum: f32 = probs.top.iter().map(|it| it.1.exp()).sum();
    assert_eq!(probs.top.len(), 3);
    assert!((sum - 1.0).abs() < 1e-5);
    let greedy = SamplingParams {
        temperature: 0.0,
        ..params
    };
    let sampled = Sampler::new(greedy, Vec::new())
        .sample(&mut random_logits(200, 8), &[])
        .unwrap();
    assert_eq!(
        sampled.probs.unwrap(),
        TokenProbs {
            logprob: 0.0,
            top: vec![(sampled.token, 0.0)]
        }
    );
}

#[test]
fn dynamic_temperature_follows_the_entropy() {
    let params = |temperature, dynatemp_range| SamplingParams {
        temperature,
        dynatemp_range,
        ..plain()
    };
    // An even distribution has all the entropy there is, so the highest temperature applies; it stays even.
    let even = left(&params(1.0, 0.5), &[1.0; 4], &[]);
    assert!(even.iter().all(|it| (it.1 - 0.25).abs() < 1e-9));
    // For two tokens: entropy of (0.9, 0.1) over ln 2, computed by hand.
    let logits = [0.9f32.ln(), 0.1f32.ln()];
    let share = (-(0.9f64 * 0.9f64.ln()) - 0.1 * 0.1f64.ln()) / 2f64.ln();
    let expected = left(&params((0.5 + share) as f32, 0.0), &logits, &[]);
    assert_same(
        &left(&params(1.0, 0.5), &logits, &[]),
        &expected,
        "dynatemp",
    );
}
