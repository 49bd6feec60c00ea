//! Guesses the next tokens of a text from the text itself (prompt lookup, n-grams), and how many guesses a forward pass should check.
//!
//! The longest run of last tokens that stood in the text before is looked up; what followed it there is the draft. A pass computes the logits
//! behind every drafted token together; the scheduler draws each token as ever and goes on while the next draft is what was drawn. So guesses
//! change how many tokens a pass yields, and never which.
//!
//! A guess costs a column of every product. How much that is depends on kernel, machine and depth, so it is measured ([`Costs`]), as is how often
//! guesses of a text are right ([`Acceptance`]); [`share`] takes as many guesses as yield most tokens per second, none included.

use std::time::Duration;

/// Shortest run of tokens that is looked up: a single one says little about the next.
const MIN_MATCH: usize = 2;
/// From this length on, runs are not told apart.
const MAX_MATCH: usize = 8;
/// How likely the token behind a run of 2, 3, … tokens is right, until the text tells.
const PRIOR: [f64; MAX_MATCH - MIN_MATCH + 1] = [0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85];
/// Checks that a prior counts for.
const PRIOR_CHECKS: f64 = 2.0;
/// What a check counts for after one more of the same length of run, and after a chance to draft that was not taken: a text may become
/// another, so what drafted badly is tried again some hundred tokens later.
const FADE_CHECKED: f64 = 0.9;
const FADE_PASSED: f64 = 0.98;
/// What a further column is taken to cost before it was measured, as a share of a pass of one.
const COLUMN: f64 = 0.2;
/// Weight of a new measurement.
const NEW: f64 = 0.25;
/// Measured passes after which a measurement of another length is forgotten.
const FORGET: u64 = 256;
/// How much longer guesses for some may make a pass when others, without guesses, wait for it.
const SLOWER_FOR_OTHERS: f64 = 1.5;

/// A place in a text from which the next tokens are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guess {
    /// Tokens from there to the end: they are expected to come again.
    period: usize,
    /// Last tokens that stood in front of it, too.
    n_match: usize,
}

impl Guess {
    /// The latest among the longest repetitions of the end of `text`, if there is one.
    pub(crate) fn look_up(text: &[u32]) -> Option<Guess> {
        let (&last, before) = text.split_last()?;
        let mut best: Option<Guess> = None;
        for (place, &token) in before.iter().enumerate().rev() {
            if token != last {
                continue;
            }
            let pairs = before[..place].iter().rev().zip(before.iter().rev());
            let more = pairs.take(MAX_MATCH - 1).take_while(|(a, b)| a == b);
            let n_match = 1 + more.count();
            if n_match > best.map_or(MIN_MATCH - 1, |best| best.n_match) {
                let period = before.len() - place;
                best = Some(Guess { period, n_match });
                if n_match == MAX_MATCH {
                    break;
                }
            }
        }
        best
    }

    /// The first `n` guessed tokens behind `text`, the one it was looked up in.
    pub(crate) fn tokens(self, text: &[u32], n: usize) -> impl Iterator<Item = u32> {
        let repeated = &text[text.len() - self.period..];
        repeated.iter().copied().cycle().take(n)
    }
}

/// How often guesses were right in one text, by the length of the run behind them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acceptance([Tally; PRIOR.len()]);

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    right: f64,
    checked: f64,
}

/// Behind each right guess the run is longer by one.
fn bucket(n_match: usize) -> usize {
    n_match.clamp(MIN_MATCH, MAX_MATCH) - MIN_MATCH
}

impl Acceptance {
    fn likely(&self, n_match: usize) -> f64 {
        let place = bucket(n_match);
        let Tally { right, checked } = self.0[place];
        (right + PRIOR_CHECKS * PRIOR[place]) / (checked + PRIOR_CHECKS)
    }

    /// How likely the first, the first two, … guesses are all right.
    fn all_right(&self, guess: Guess, n: usize) -> impl Iterator<Item = f64> {
        (0..n).scan(1.0, move |product, i| {
            *product *= self.likely(guess.n_match + i);
            Some(*product)
        })
    }

    /// Of `n_drafted` guesses the first `n_right` were; those behind the first wrong one were not checked.
    pub(crate) fn observe(&mut self, guess: Guess, n_drafted: usize, n_right: usize) {
        for i in 0..n_drafted.min(n_right + 1) {
            let tally = &mut self.0[bucket(guess.n_match + i)];
            tally.right = tally.right * FADE_CHECKED + f64::from(u8::from(i < n_right));
            tally.checked = tally.checked * FADE_CHECKED + 1.0;
        }
    }

    /// A guess was not checked.
    pub(crate) fn pass(&mut self, guess: Guess) {
        let tally = &mut self.0[bucket(guess.n_match)];
        tally.right *= FADE_PASSED;
        tally.checked *= FADE_PASSED;
    }
}

/// How long a pass of 1, 2, … tokens takes.
#[derive(Debug, Clone)]
pub(crate) struct Costs {
    /// By the number of tokens: milliseconds, and the pass that told last.
    known: Vec<Option<(f64, u64)>>,
    /// Passes measured.
    n_passes: u64,
}

impl Costs {
    /// For passes of at most `longest` tokens.
    pub(crate) fn new(longest: usize) -> Self {
        Costs {
            known: vec![None; longest + 1],
            n_passes: 0,
        }
    }

    /// A pass of `n` tokens, none of them of a prompt, took so long.
    pub(crate) fn observe(&mut self, n: usize, took: Duration) {
        let Some(known) = self.known.get_mut(n) else {
            return;
        };
        self.n_passes += 1;
        let ms = took.as_secs_f64() * 1e3;
        let ms = match *known {
            // A pass that had to wait for another program says nothing.
            Some((old, _)) => old + NEW * (ms.min(2.0 * old) - old),
            None => ms,
        };
        *known = Some((ms, self.n_passes));
    }

    fn at(&self, n: usize) -> Option<f64> {
        let (ms, told) = (*self.known.get(n)?)?;
        (self.n_passes - told <= FORGET).then_some(ms)
    }

    /// Milliseconds of a pass of `n` tokens; where none is known, on a line through what is known.
    fn of(&self, n: usize) -> f64 {
        let assumed = |n: usize| 1.0 + COLUMN * (n as f64 - 1.0);
        let below = (1..=n).rev().find_map(|n| Some((n, self.at(n)?)));
        let above = (n..self.known.len()).find_map(|n| Some((n, self.at(n)?)));
        match (below, above) {
            (Some((known, ms)), _) if known == n => ms,
            (Some((low, a)), Some((high, b))) => {
                a + (b - a) * (n - low) as f64 / (high - low) as f64
            }
            (Some((known, ms)), None) | (None, Some((known, ms))) => {
                ms * assumed(n) / assumed(known)
            }
            (None, None) => assumed(n),
        }
    }
}

/// A text whose next tokens are guessed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer<'a> {
    pub(crate) guess: Guess,
    pub(crate) acceptance: &'a Acceptance,
    /// Most tokens that are of use.
    pub(crate) most: usize,
}

/// How many guesses of each offer to check in a pass of `n_tokens` others: as many as yield most tokens per second, at most `most` in all.
pub(crate) fn share(
    n_tokens: usize,
    offers: &[Offer<'_>],
    most: usize,
    costs: &Costs,
) -> Vec<usize> {
    let guesses = offers.iter().enumerate().flat_map(|(place, offer)| {
        let likely = offer.acceptance.all_right(offer.guess, offer.most);
        likely.map(move |likely| (place, likely))
    });
    let mut guesses: Vec<(usize, f64)> = guesses.collect();
    // Stable: no guess comes before an earlier one of its text.
    guesses.sort_by(|a, b| b.1.total_cmp(&a.1));
    guesses.truncate(most);
    let alone = costs.of(n_tokens);
    let longest = match offers.len() < n_tokens {
        true => alone * SLOWER_FOR_OTHERS,
        false => f64::INFINITY,
    };
    let (mut best, mut n_best) = (n_tokens as f64 / alone, 0);
    let mut expected = n_tokens as f64;
    for (n, (_, likely)) in (1..).zip(&guesses) {
        expected += likely;
        let cost = costs.of(n_tokens + n);
        if cost <= longest && expected / cost > best {
            (best, n_best) = (expected / cost, n);
        }
    }
    let mut lengths = vec![0; offers.len()];
    for &(place, _) in &guesses[..n_best] {
        lengths[place] += 1;
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guessed(text: &[u32], n: usize) -> Option<(usize, Vec<u32>)> {
        let guess = Guess::look_up(text)?;
        Some((guess.n_match, guess.tokens(text, n).collect()))
    }

    #[test]
    fn what_followed_the_longest_repetition_is_guessed() {
        for (text, expected) in [
            (&[][..], None),
            (&[5], None),
            (&[5, 6, 5], None),
            (&[1, 2, 9, 1, 2], Some((2, vec![9, 1, 2, 9]))),
            // The longer one, though another is nearer.
            (
                &[7, 1, 2, 8, 0, 1, 2, 9, 7, 1, 2],
                Some((3, vec![8, 0, 1, 2])),
            ),
            // The nearer of equals.
            (&[1, 2, 8, 1, 2, 9, 1, 2], Some((2, vec![9, 1, 2, 9]))),
            (&[4, 4, 4], Some((2, vec![4, 4, 4, 4]))),
        ] {
            assert_eq!(guessed(text, 4), expected, "{text:?}");
        }
        let long: Vec<u32> = (0..50).chain(0..40).collect();
        assert_eq!(guessed(&long, 2), Some((MAX_MATCH, vec![40, 41])));
    }

    /// Costs of passes of 1 to 8 tokens.
    fn costs(ms: impl Fn(f64) -> f64) -> Costs {
        let mut costs = Costs::new(16);
        for n in 1..=8 {
            costs.observe(n, Duration::from_secs_f64(ms(n as f64) / 1e3));
        }
        costs
    }

    fn offer(acceptance: &Acceptance, most: usize) -> Offer<'_> {
        let guess = Guess {
            period: 9,
            n_match: 4,
        };
        Offer {
            guess,
            acceptance,
            most,
        }
    }

    #[test]
    fn drafts_are_as_long_as_they_pay() {
        let mut good = Acceptance::default();
        let mut bad = Acceptance::default();
        for _ in 0..30 {
            good.observe(offer(&Acceptance::default(), 7).guess, 7, 7);
            bad.observe(offer(&Acceptance::default(), 7).guess, 7, 0);
        }
        let (free, dear) = (costs(|_| 10.0), costs(|n| 10.0 * n));
        let steep = costs(|n| if n <= 3.0 { 10.0 + n } else { 100.0 });
        assert_eq!(share(1, &[offer(&good, 7)], 7, &free), [7]);
        assert_eq!(share(1, &[offer(&good, 7)], 7, &dear), [0]);
        assert_eq!(share(1, &[offer(&good, 7)], 7, &steep), [2]);
        assert_eq!(
            share(1, &[offer(&bad, 7)], 7, &costs(|n| 8.0 + 2.0 * n)),
            [0]
        );
        let both = [offer(&bad, 5), offer(&good, 5)];
        assert_eq!(share(2, &both, 5, &free), [0, 5]);
        // Others are not held up for long.
        let slope = costs(|n| 10.0 + 3.0 * n);
        assert_eq!(share(1, &[offer(&good, 7)], 7, &slope), [7]);
        assert_eq!(share(2, &[offer(&good, 6)], 6, &slope), [2]);
    }

    #[test]
    fn what_was_wrong_is_tried_again_later() {
        let mut acceptance = Acceptance::default();
        let costs = costs(|n| 10.0 * n.sqrt());
        let guess = offer(&Acceptance::default(), 4).guess;
        let drafts = |acceptance: &Acceptance| share(1, &[offer(acceptance, 4)], 4, &costs)[0] > 0;
        assert!(drafts(&acceptance));
        for _ in 0..5 {
            acceptance.observe(guess, 4, 0);
        }
        assert!(!drafts(&acceptance));
        let n = (1..1000).find(|_| {
            acceptance.pass(guess);
            drafts(&acceptance)
        });
        assert!((30..300).contains(&n.unwrap()), "{n:?}");
    }

    #[test]
    fn unknown_costs_lie_on_a_line() {
        let mut costs = Costs::new(8);
        assert_eq!(costs.of(6), 2.0);
        costs.observe(1, Duration::from_millis(20));
        assert!((costs.of(6) - 40.0).abs() < 1e-9);
        costs.observe(5, Duration::from_millis(60));
        assert!((costs.of(3) - 40.0).abs() < 1e-9);
        for _ in 0..=FORGET {
            costs.observe(1, Duration::from_millis(20));
        }
        assert!((costs.of(3) - 28.0).abs() < 1e-9, "{costs:?}");
        // Somebody else had the CPU.
        costs.observe(1, Duration::from_secs(9));
        assert!(costs.of(1) < 26.0);
    }
}
