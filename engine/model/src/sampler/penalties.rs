//! Penalties on what was said before: changes to the logits of single tokens, a function of the tokens before.

use std::collections::HashMap;

use super::bounded;
use crate::protocol::SamplingParams;
use crate::tokenizer::Tokenizer;

/// Longest text of a sequence breaker that counts, in bytes; and its longest tail, in tokens. llama.cpp's limits.
const BREAKER_BYTES: usize = 40;
const BREAKER_TAIL: usize = 20;

/// What happens to one token's logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    pub(super) token: u32,
    pub(super) kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ChangeKind {
    /// The token was said this often.
    Said(usize),
    /// Less by this.
    Minus(f32),
}

impl Change {
    /// llama.cpp's formula: divide or multiply by the repeat penalty, then subtract frequency and presence.
    pub(super) fn apply(&self, logit: f32, params: &SamplingParams) -> f32 {
        let count = match self.kind {
            ChangeKind::Minus(penalty) => return bounded(logit - penalty),
            ChangeKind::Said(count) => count,
        };
        let scaled = if logit <= 0.0 {
            logit * params.repeat_penalty
        } else {
            logit / params.repeat_penalty
        };
        bounded(scaled - count as f32 * params.frequency_penalty - params.presence_penalty)
    }
}

pub(super) fn has_penalties(params: &SamplingParams) -> bool {
    params.repeat_last_n > 0
        && (params.repeat_penalty != 1.0
            || params.frequency_penalty != 0.0
            || params.presence_penalty != 0.0)
}

pub(super) fn has_dry(params: &SamplingParams) -> bool {
    params.dry_multiplier != 0.0 && params.dry_base >= 1.0 && params.dry_penalty_last_n > 0
}

/// The last `n` of `history`.
fn last(history: &[u32], n: u32) -> &[u32] {
    &history[history.len() - (n as usize).min(history.len())..]
}

/// Repeat, frequency and presence: one change for each token said. `out` is overwritten, ascending by token.
pub(super) fn repeats(
    params: &SamplingParams,
    history: &[u32],
    recent: &mut Vec<u32>,
    out: &mut Vec<Change>,
) {
    out.clear();
    if !has_penalties(params) {
        return;
    }
    recent.clear();
    recent.extend_from_slice(last(history, params.repeat_last_n));
    recent.sort_unstable();
    out.extend(recent.chunk_by(|a, b| a == b).map(|run| Change {
        token: run[0],
        kind: ChangeKind::Said(run.len()),
    }));
}

/// Token sequences across which DRY sees no repetition: by their first token, what must follow it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breakers(HashMap<u32, Vec<Vec<u32>>>);

impl Breakers {
    /// All ways in which tokens can spell these texts: a token that holds one, or one that ends in its beginning,
    /// followed by the tokens of the rest.
    pub fn new(texts: &[String], tokenizer: &Tokenizer) -> Self {
        let mut starts: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for text in texts.iter().filter(|text| !text.is_empty()) {
            let end = (0..=BREAKER_BYTES.min(text.len()))
                .rev()
                .find(|&end| text.is_char_boundary(end));
            let text = &text[..end.unwrap_or(0)];
            for token in 0..tokenizer.n_vocab() as u32 {
                for tail in tails(text, tokenizer.piece(token), tokenizer) {
                    let known = starts.entry(token).or_default();
                    if !known.contains(&tail) {
                        known.push(tail);
                    }
                }
            }
        }
        Breakers(starts)
    }

    /// Whether the token alone is one.
    fn is_single(&self, token: u32) -> bool {
        self.0
            .get(&token)
            .is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }

    /// How many tokens lie behind the start of the last breaker in `window`, less those of its tail; `None`: there is none.
    fn since_last(&self, window: &[u32]) -> Option<usize> {
        (0..window.len()).find_map(|back| {
            let place = window.len() - 1 - back;
            let behind = &window[place + 1..];
            let tails = self.0.get(&window[place])?;
            let fitting = tails.iter().filter(|tail| behind.starts_with(tail));
            fitting.map(Vec::len).max().map(|longest| back - longest)
        })
    }
}

/// What must follow `piece` so that `text` is spelled: nothing where it holds all of it.
fn tails(text: &str, piece: &[u8], tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let whole = text.as_bytes();
    if piece.windows(whole.len()).any(|part| part == whole) {
        return vec![Vec::new()];
    }
    let cuts = (1..whole.len().min(piece.len() + 1)).filter(|&n| piece.ends_with(&whole[..n]));
    cuts.filter(|&n| text.is_char_boundary(n))
        .map(|n| {
            let mut tail = tokenizer.encode(&text[n..], false, false);
            tail.truncate(BREAKER_TAIL);
            tail
        })
        .collect()
}

/// DRY ("don't repeat yourself", as in llama.cpp): a token that would continue a repetition of more than the allowed length
/// costs `multiplier · base^(length - allowed)`. `out` is overwritten, ascending by token.
pub(super) fn dry(
    params: &SamplingParams,
    breakers: &Breakers,
    history: &[u32],
    out: &mut Vec<Change>,
) {
    out.clear();
    let window = last(history, params.dry_penalty_last_n);
    let allowed = params.dry_allowed_length as usize;
    if !has_dry(params) || window.len() <= allowed {
        return;
    }
    // No repetition reaches across a breaker.
    let longest = breakers.since_last(window).unwrap_or(window.len());
    if longest < allowed {
        return;
    }
    let mut lengths: HashMap<u32, usize> = HashMap::new();
    for (place, length) in repetitions(window) {
        let length = length.min(longest);
        if length >= allowed && !breakers.is_single(window[place]) {
            let most = lengths.entry(window[place]).or_default();
            *most = (*most).max(length);
        }
    }
    out.extend(lengths.into_iter().map(|(token, length)| Change {
        token,
        kind: ChangeKind::Minus(dry_penalty(params, length - allowed)),
    }));
    out.sort_unstable_by_key(|change| change.token);
}

fn dry_penalty(params: &SamplingParams, beyond: usize) -> f32 {
    // Beyond this the power is no f32 any more.
    let most = match params.dry_base > 1.000_001 {
        true => (f32::MAX.ln() / params.dry_base.ln()) as usize,
        false => usize::MAX,
    };
    let exponent = beyond.min(most) as f32;
    bounded(params.dry_multiplier * params.dry_base.powf(exponent))
}

/// For each place but the first: how many tokens before it are the same as at the end of the window. The Z algorithm,
/// backwards: as many steps as the window is long.
fn repetitions(window: &[u32]) -> impl Iterator<Item = (usize, usize)> {
    let n = window.len();
    let back = |i: usize| window[n - 1 - i];
    // z[k]: how far back the window's end equals what ends k tokens earlier.
    let mut z = vec![0; n];
    let (mut left, mut right) = (0, 0);
    for k in 1..n {
        let mut length = if k < right {
            z[k - left].min(right - k)
        } else {
            0
        };
        while k + length < n && back(length) == back(k + length) {
            length += 1;
        }
        if k + length > right {
            (left, right) = (k, k + length);
        }
        z[k] = length;
    }
    (1..n).map(move |k| (n - k, z[k]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::uniform;

    /// The definition: compare token by token.
    fn naive(
        params: &SamplingParams,
        singles: &[u32],
        pairs: &[[u32; 2]],
        history: &[u32],
    ) -> Vec<(u32, usize)> {
        let window = last(history, params.dry_penalty_last_n);
        let n = window.len();
        let allowed = params.dry_allowed_length as usize;
        // Tokens behind the last breaker.
        let limit = (0..n).rev().find_map(|i| {
            if i + 1 < n && pairs.contains(&[window[i], window[i + 1]]) {
                return Some(n - i - 2);
            }
            singles.contains(&window[i]).then(|| n - i - 1)
        });
        let limit = limit.unwrap_or(n);
        let mut found: Vec<(u32, usize)> = Vec::new();
        if n <= allowed || limit < allowed {
            return found;
        }
        for next in 1..n {
            let mut length = 0;
            while length < next && window[next - 1 - length] == window[n - 1 - length] {
                length += 1;
            }
            let (token, length) = (window[next], length.min(limit));
            if length < allowed || singles.contains(&token) {
                continue;
            }
            match found.iter_mut().find(|it| it.0 == token) {
                Some(it) => it.1 = it.1.max(length),
                None => found.push((token, length)),
            }
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn dry_finds_the_repetitions_that_comparing_finds() {
        let (singles, pairs) = ([5], [[3, 4]]);
        let breakers = Breakers(HashMap::from([(5, vec![Vec::new()]), (3, vec![vec![4]])]));
        let mut n_found = 0;
        for seed in 0..2000 {
            let draw = |i: u64, n: f64| (uniform(seed, i) * n) as u32;
            let params = SamplingParams {
                dry_multiplier: 0.8,
                dry_base: 1.5,
                dry_allowed_length: draw(0, 4.0),
                dry_penalty_last_n: [5, 20, 64, u32::MAX][draw(1, 4.0) as usize],
                ..SamplingParams::default()
            };
            let history: Vec<u32> = (0..u64::from(draw(2, 70.0)))
                .map(|i| draw(10 + i, 2.0 + f64::from(seed % 6)))
                .collect();
            let expected: Vec<Change> = naive(&params, &singles, &pairs, &history)
                .into_iter()
                .map(|(token, length)| Change {
                    token,
                    kind: ChangeKind::Minus(
                        0.8 * 1.5f32.powf((length - params.dry_allowed_length as usize) as f32),
                    ),
                })
                .collect();
            let mut found = Vec::new();
            dry(&params, &breakers, &history, &mut found);
            assert_eq!(found, expected, "seed {seed}: {history:?}, {params:?}");
            n_found += found.len();
        }
        assert!(n_found > 2000, "{n_found}");
    }

    #[test]
    fn huge_repetitions_stay_numbers() {
        let params = SamplingParams {
            dry_multiplier: f32::MAX,
            dry_base: 1e30,
            dry_penalty_last_n: u32::MAX,
            ..SamplingParams::default()
        };
        let mut found = Vec::new();
        dry(&params, &Breakers::default(), &[7; 3000], &mut found);
        let [Change { token: 7, .. }] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(found[0].apply(1.0, &params), f32::MIN);
    }
}
