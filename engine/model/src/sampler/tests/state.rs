//! Samplers with a state, and what brings it back: mirostat's limit, grammars, random numbers by purpose.

use super::*;
use crate::protocol::Carried;

fn mirostat(version: u32) -> SamplingParams {
    SamplingParams {
        mirostat: version,
        mirostat_tau: 3.0,
        mirostat_eta: 0.2,
        temperature: 0.9,
        seed: 17,
        // What mirostat passes over.
        top_k: 1,
        repeat_penalty: 5.0,
        ..SamplingParams::default()
    }
}

fn logits_at(position: usize) -> Vec<f32> {
    random_logits(700, 1000 + position as u32)
}

/// llama.cpp's loop, in the order of its source: sort, estimate or compare, cut, draw, correct.
fn naive_mirostat(params: &SamplingParams, n: usize) -> Vec<(u32, f64)> {
    let mut mu = 2.0 * f64::from(params.mirostat_tau);
    (0..n)
        .map(|position| {
            let logits = logits_at(position);
            let mut items: Vec<(u32, f64)> = (0..)
                .zip(
                    logits
                        .iter()
                        .map(|&l| f64::from(l) / f64::from(params.temperature)),
                )
                .collect();
            items.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let total: f64 = items.iter().map(|it| it.1.exp()).sum();
            let p = |it: &(u32, f64)| it.1.exp() / total;
            let kept = if params.mirostat == 1 {
                let (mut tb, mut tt) = (0.0, 0.0);
                for i in 0..99 {
                    let t = (f64::from(i + 2) / f64::from(i + 1)).ln();
                    let b = (p(&items[i as usize]) / p(&items[i as usize + 1])).ln();
                    tb += t * b;
                    tt += t * t;
                }
                let s = tb / tt;
                let e = s - 1.0;
                let k = ((e * 2f64.powf(mu)) / (1.0 - (items.len() as f64).powf(-e))).powf(1.0 / s);
                (k as usize).max(1)
            } else {
                let surprising = items.iter().position(|it| -p(it).log2() > mu);
                surprising.unwrap_or(items.len()).max(1)
            };
            items.truncate(kept);
            let left: f64 = items.iter().map(|it| it.1.exp()).sum();
            let mut rest = uniform(params.seed, position as u64) * left;
            let drawn = items.iter().find(|it| {
                rest -= it.1.exp();
                rest < 0.0
            });
            let drawn = drawn.unwrap_or(&items[0]);
            let surprise = -(drawn.1.exp() / left).log2();
            mu -= f64::from(params.mirostat_eta) * (surprise - f64::from(params.mirostat_tau));
            (drawn.0, mu)
        })
        .collect()
}

#[test]
fn mirostat_equals_the_textbook() {
    for version in [1, 2] {
        let params = mirostat(version);
        let mut sampler = Sampler::new(params.clone(), Vec::new());
        let mut history = Vec::new();
        for (position, (token, mu)) in naive_mirostat(&params, 60).into_iter().enumerate() {
            let sampled = sampler.sample(&mut logits_at(position), &history).unwrap();
            let found = f32::from_bits(sampled.mirostat_mu.unwrap().0);
            assert_eq!(
                sampled.token, token,
                "version {version}, position {position}"
            );
            assert!(
                (f64::from(found) - mu).abs() < 1e-3,
                "{found} instead of {mu}"
            );
            history.push(token);
        }
    }
}

#[test]
fn mirostat_goes_on_from_what_is_carried() {
    for version in [1, 2] {
        let mut history = Vec::new();
        let mut whole = Sampler::new(mirostat(version), Vec::new());
        let mut carried = Vec::new();
        for position in 0..40 {
            let sampled = whole.sample(&mut logits_at(position), &history).unwrap();
            history.push(sampled.token);
            carried.push(sampled.mirostat_mu);
        }
        for cut in [1, 7, 33] {
            let state = Carried {
                mirostat_mu: carried[cut - 1],
                ..Carried::default()
            };
            let mut rest = Sampler::new(mirostat(version), Vec::new()).resume(&state);
            for position in cut..40 {
                let before = &history[..position];
                let sampled = rest.sample(&mut logits_at(position), before).unwrap();
                assert_eq!(sampled.token, history[position], "cut at {cut}");
                assert_eq!(sampled.mirostat_mu, carried[position]);
            }
        }
    }
}

#[test]
fn mirostat_keeps_to_numbers() {
    for version in [1, 2] {
        for logits in [vec![0.0; 5], vec![1.0], vec![1e30, -1e30, 0.0]] {
            let params = SamplingParams {
                mirostat_tau: f32::MAX,
                mirostat_eta: f32::MAX,
                ..mirostat(version)
            };
            let mut sampler = Sampler::new(params, Vec::new());
            for _ in 0..5 {
                let sampled = sampler.sample(&mut logits.clone(), &[]).unwrap();
                let mu = f32::from_bits(sampled.mirostat_mu.unwrap().0);
                assert!(!mu.is_nan(), "{mu}");
            }
        }
    }
}

fn adaptive(target: f32) -> SamplingParams {
    SamplingParams {
        adaptive_target: target,
        samplers: vec![TopK, SamplerKind::AdaptiveP],
        top_k: 20,
        seed: 5,
        ..plain()
    }
}

/// Tokens, and how likely each was before adaptive sampling changed that.
fn draw_adaptively(params: &SamplingParams, n: usize) -> (Vec<u32>, Vec<Option<MirostatMu>>, f64) {
    let mut sampler = Sampler::new(params.clone(), Vec::new());
    let (mut history, mut carried, mut sum) = (Vec::new(), Vec::new(), 0.0);
    for position in 0..n {
        let mut logits = logits_at(position);
        let mut best = logits.clone();
        best.sort_by(|a, b| b.total_cmp(a));
        let all: f64 = best[..20].iter().map(|&it| f64::from(it).exp()).sum();
        let sampled = sampler.sample(&mut logits, &history).unwrap();
        sum += f64::from(logits_at(position)[sampled.token as usize]).exp() / all;
        history.push(sampled.token);
        carried.push(sampled.mirostat_mu);
    }
    (history, carried, sum / n as f64)
}

#[test]
fn adaptive_sampling_comes_to_its_target() {
    let mean = |target: f32| draw_adaptively(&adaptive(target), 400).2;
    let (low, high) = (mean(0.05), mean(0.3));
    assert!(low < 0.15 && high > low + 0.05, "{low} {high}");
    // Only where the chain names it, and the target is not negative.
    let unnamed = SamplingParams {
        samplers: vec![TopK],
        ..adaptive(0.05)
    };
    let expected = draw_adaptively(&unnamed, 50);
    assert!(expected.1.iter().all(Option::is_none));
    assert_eq!(draw_adaptively(&adaptive(-1.0), 50).0, expected.0);
    assert_ne!(draw_adaptively(&adaptive(0.05), 50).0, expected.0);
}

#[test]
fn adaptive_sampling_equals_its_formula() {
    // Three tokens with 0.7, 0.2 and 0.1, a target of 0.2: peak at the second.
    let logits: Vec<f32> = [0.7f32, 0.2, 0.1].iter().map(|p| p.ln()).collect();
    let params = SamplingParams {
        n_probs: 3,
        post_sampling_probs: true,
        ..adaptive(0.2)
    };
    let sampled = Sampler::new(params, Vec::new()).sample(&mut logits.clone(), &[]);
    let sampled = sampled.unwrap();
    let logit = |p: f64| {
        let d = ((p - 0.2) / 0.3).abs();
        5.0 - 10.0 * d * d / (1.0 + d)
    };
    let weights = [0.7, 0.2, 0.1].map(|p| f64::exp(logit(p)));
    let all: f64 = weights.iter().sum();
    for (token, logprob) in sampled.probs.unwrap().top {
        let expected = weights[token as usize] / all;
        assert!(
            (f64::from(logprob).exp() - expected).abs() < 1e-4,
            "{token}"
        );
    }
    let prob = [0.7, 0.2, 0.1][sampled.token as usize];
    let sum = f32::from_bits(sampled.mirostat_mu.unwrap().0);
    assert!((f64::from(sum) - (prob + 0.9 * 2.0)).abs() < 1e-4, "{sum}");
}

#[test]
fn adaptive_sampling_goes_on_from_what_is_carried() {
    let params = adaptive(0.1);
    let (history, carried, _) = draw_adaptively(&params, 40);
    for cut in [1, 20] {
        let state = Carried {
            mirostat_mu: carried[cut - 1],
            ..Carried::default()
        };
        let mut rest = Sampler::new(params.clone(), Vec::new()).resume(&state);
        for position in cut..40 {
            let before = &history[..position];
            let sampled = rest.sample(&mut logits_at(position), before).unwrap();
            assert_eq!(sampled.token, history[position], "cut at {cut}");
        }
    }
}

#[test]
fn xtc_acts_as_often_as_asked() {
    let logits = [2.0, 1.9, 1.8, -5.0, -5.0];
    let params = SamplingParams {
        xtc_probability: 0.3,
        xtc_threshold: 0.1,
        ..plain()
    };
    let mut sampler = Sampler::new(params, Vec::new());
    let history = vec![0; 4000];
    let n = (0..4000)
        .filter(|&n| {
            let sampled = sampler.sample(&mut logits.clone(), &history[..n]).unwrap();
            sampled.token == 2
        })
        .count();
    // Acting, it leaves the third likeliest and the two unlikely; otherwise that one comes in 3 of 10.
    let expected = 4000.0 * (0.3 * 0.998 + 0.7 * 0.3);
    assert!(
        (n as f64 - expected).abs() < 160.0,
        "{n}, expected {expected}"
    );
}

#[test]
fn purposes_have_numbers_of_their_own() {
    let purposes = [
        Purpose::Draw,
        Purpose::Xtc,
        Purpose::Redraw,
        Purpose::RedrawXtc,
    ];
    let mut seen: Vec<u64> = Vec::new();
    for purpose in purposes {
        for position in 0..1000 {
            seen.push(uniform_for(purpose, 5, position).to_bits());
        }
    }
    assert_eq!(
        uniform_for(Purpose::Draw, 5, 9).to_bits(),
        uniform(5, 9).to_bits()
    );
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 4000);
}

#[test]
fn dry_lowers_what_would_repeat() {
    let params = SamplingParams {
        dry_multiplier: 2.0,
        dry_base: 2.0,
        dry_allowed_length: 2,
        samplers: vec![Dry],
        ..plain()
    };
    // 1 2 3 was said, and 1 2 again: 3 would repeat, by two tokens.
    let history = [1, 2, 3, 0, 1, 2];
    let logits = [1.0, 1.0, 1.0, 1.0];
    let mut sampler = Sampler::new(params.clone(), Vec::new());
    let mut changed = logits;
    sampler.run_chain(&mut Logits::All(&mut changed), &history, false, false);
    assert_eq!(changed, [1.0, 1.0, 1.0, -1.0]);
    let late = SamplingParams {
        samplers: vec![TopK, Dry],
        top_k: 4,
        ..params
    };
    let of = |params: &SamplingParams| left(params, &logits, &history);
    assert_same(
        &of(&late),
        &of(&SamplingParams {
            samplers: vec![Dry],
            ..late.clone()
        }),
        "late",
    );
}
