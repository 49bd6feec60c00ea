//! Looks for a faster setup by measuring: from the default, one axis after another, everything in turns. Pure but for the
//! measuring, which is an argument.
//!
//! Per axis the incumbent and its alternatives are measured in rounds, each round all of them once, so that a busy moment
//! hits all alike. An alternative is dropped when it is clearly slower, and takes over when it is clearly faster: by
//! [`MARGIN`] in the median of the rounds' ratios, and faster in nearly all rounds. Ties go to the incumbent. In the end the winner
//! meets the default once more; if it is not clearly faster, the default stays.

use std::time::{Duration, Instant};

/// Faster by less than this share is a tie.
pub(crate) const MARGIN: f64 = 0.02;
/// Slower than this after one round: dropped at once.
const HOPELESS: f64 = 1.25;
/// Rounds before anybody may win along an axis.
const LEAST_ROUNDS: usize = 3;
/// Rounds before the default is given up: what won by luck before has to win again.
const LAST_ROUNDS: usize = 5;
/// Looks kept for that.
const RESERVE: u32 = 2 * LAST_ROUNDS as u32;
/// Rounds after which an undecided duel is a tie.
const MOST_ROUNDS: usize = 7;

/// What a measurement is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aspect {
    /// Prompts and answers, as in a usual request.
    Both,
    /// Long prompts.
    Prefill,
}

/// One look at a setup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    /// Prompt tokens per second.
    pub prefill_tok_s: f64,
    /// Answer tokens per second.
    pub decode_tok_s: f64,
}

impl Figure {
    /// Seconds for a request of 256 tokens with an answer of 128, as the shell-script launcher's benchmark had it; of its prompt
    /// alone where only that matters.
    pub(crate) fn seconds(&self, aspect: Aspect) -> f64 {
        let prompt = 256.0 / self.prefill_tok_s;
        match aspect {
            Aspect::Both => prompt + 128.0 / self.decode_tok_s,
            Aspect::Prefill => prompt,
        }
    }
}

/// Measures a setup once.
pub(crate) trait Measure<S> {
    /// One look.
    ///
    /// # Errors
    /// When this setup can't run here; it is dropped.
    fn measure(&mut self, setup: &S, aspect: Aspect) -> anyhow::Result<Figure>;
    /// Time since the search began.
    fn elapsed(&self) -> Duration;
    /// Told about each step.
    fn progress(&mut self, what: &str);
}

/// Other setups, made from one.
pub(crate) type Alternatives<S> = Box<dyn Fn(&S) -> Vec<S>>;

/// One thing that can be changed.
pub(crate) struct Axis<S> {
    /// Its name.
    pub name: &'static str,
    /// What its measurements have to show.
    pub aspect: Aspect,
    /// Setups that differ from the given one along this axis only.
    pub alternatives: Alternatives<S>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome<S> {
    /// The default, or what was clearly faster.
    pub best: S,
    /// Everything measured: setup, aspect, figures by round.
    pub seen: Vec<(S, Aspect, Vec<Figure>)>,
    /// Seconds of the best over seconds of the default in the last duel; 1 when the default stayed.
    pub ratio: f64,
    /// The budget ended the search before all axes were looked at.
    pub is_cut_short: bool,
}

/// Searches.
///
/// # Errors
/// When the default itself can't be measured.
pub(crate) fn search<S: Clone + PartialEq>(
    default: &S,
    axes: &[Axis<S>],
    budget: Duration,
    by: &mut dyn Measure<S>,
) -> anyhow::Result<Outcome<S>> {
    let mut search = Search {
        by,
        budget,
        seen: Vec::new(),
        longest: Duration::ZERO,
    };
    search.look(default, Aspect::Both)?;
    let mut best = default.clone();
    let mut is_cut_short = false;
    for axis in axes {
        // An axis that can't be looked at before the last duel is left out.
        if !search.has_time_for(RESERVE + 2 * LEAST_ROUNDS as u32) {
            is_cut_short = true;
            break;
        }
        search.by.progress(axis.name);
        let alternatives = (axis.alternatives)(&best);
        let winner = search.duel(&best, alternatives, axis.aspect, LEAST_ROUNDS, RESERVE)?;
        if let Some((winner, _)) = winner {
            best = winner;
        }
    }
    let mut ratio = 1.0;
    if best != *default {
        search.by.progress("last comparison");
        match search.duel(default, vec![best.clone()], Aspect::Both, LAST_ROUNDS, 0)? {
            Some((_, clear)) => ratio = clear,
            None => best = default.clone(),
        }
    }
    Ok(Outcome {
        best,
        seen: search.seen,
        ratio,
        is_cut_short,
    })
}

struct Search<'a, S> {
    by: &'a mut dyn Measure<S>,
    budget: Duration,
    seen: Vec<(S, Aspect, Vec<Figure>)>,
    /// The longest look so far, engine's start included.
    longest: Duration,
}

/// An alternative and its seconds over the incumbent's, by round.
struct Contender<S> {
    setup: S,
    ratios: Vec<f64>,
    /// Rounds before it may win.
    least: usize,
}

impl<S: Clone + PartialEq> Search<'_, S> {
    fn has_time_for(&self, looks: u32) -> bool {
        self.by.elapsed() + self.longest * looks <= self.budget
    }

    fn look(&mut self, setup: &S, aspect: Aspect) -> anyhow::Result<f64> {
        let before = self.by.elapsed();
        let figure = self.by.measure(setup, aspect)?;
        self.longest = self
            .longest
            .max(self.by.elapsed().saturating_sub(before) / 2);
        let same = |(known, a, _): &&mut (S, Aspect, Vec<Figure>)| known == setup && *a == aspect;
        match self.seen.iter_mut().find(same) {
            Some((_, _, figures)) => figures.push(figure),
            None => self.seen.push((setup.clone(), aspect, vec![figure])),
        }
        Ok(figure.seconds(aspect))
    }

    /// The alternative that is clearly faster than the incumbent, with the median of its ratios.
    fn duel(
        &mut self,
        incumbent: &S,
        alternatives: Vec<S>,
        aspect: Aspect,
        least: usize,
        reserve: u32,
    ) -> anyhow::Result<Option<(S, f64)>> {
        let mut contenders: Vec<Contender<S>> = alternatives
            .into_iter()
            .filter(|setup| setup != incumbent)
            .map(|setup| Contender {
                setup,
                ratios: Vec::new(),
                least,
            })
            .collect();
        for round in 1..=MOST_ROUNDS {
            let looks = contenders.len() as u32 + 1;
            if contenders.is_empty() || !self.has_time_for(looks + reserve) {
                break;
            }
            let reference = self.look(incumbent, aspect)?;
            contenders.retain_mut(|contender| match self.look(&contender.setup, aspect) {
                Ok(seconds) => {
                    contender.ratios.push(seconds / reference);
                    !contender.is_beaten()
                }
                Err(error) => {
                    self.by.progress(&format!("left out: {error:#}"));
                    false
                }
            });
            let clear = contenders.iter().all(Contender::is_clear);
            if round >= least && clear {
                break;
            }
        }
        let winners = contenders.into_iter().filter(Contender::is_clear);
        Ok(winners
            .map(|contender| (median(&contender.ratios), contender.setup))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(ratio, setup)| (setup, ratio)))
    }
}

impl<S> Contender<S> {
    /// Clearly slower, or a tie after enough rounds.
    fn is_beaten(&self) -> bool {
        let median = median(&self.ratios);
        match self.ratios.len() {
            0 => false,
            1 => median > HOPELESS,
            2 => median > 1.0 + MARGIN,
            n if n < self.least + 2 => median > 1.0,
            _ => !self.is_clear(),
        }
    }

    fn is_clear(&self) -> bool {
        let n = self.ratios.len();
        let slower = self.ratios.iter().filter(|ratio| **ratio >= 1.0).count();
        n >= self.least && median(&self.ratios) <= 1.0 - MARGIN && slower <= n / 6
    }
}

fn median(values: &[f64]) -> f64 {
    crate::bench::stats::Series(values.to_vec())
        .median()
        .unwrap_or(f64::NAN)
}

/// A clock for [`Measure::elapsed`].
pub(crate) struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Cost = dyn Fn(&(usize, usize)) -> f64;

    /// A machine with two knobs of five positions, whose speeds are a table with noise.
    struct Machine {
        /// Seconds of the true cost.
        cost: Box<Cost>,
        noise: f64,
        rng: StdRng,
        spent: f64,
        looks: usize,
    }

    impl Measure<(usize, usize)> for Machine {
        fn measure(&mut self, setup: &(usize, usize), _: Aspect) -> anyhow::Result<Figure> {
            self.looks += 1;
            self.spent += 1.0;
            anyhow::ensure!(setup.0 != 4, "knob 4 does not exist here");
            let noise = 1.0 + self.noise * (self.rng.random::<f64>() - 0.5);
            let seconds = (self.cost)(setup) * noise;
            Ok(Figure {
                prefill_tok_s: 512.0 / seconds,
                decode_tok_s: 256.0 / seconds,
            })
        }

        fn elapsed(&self) -> Duration {
            Duration::from_secs_f64(self.spent)
        }

        fn progress(&mut self, _: &str) {}
    }

    fn machine(seed: u64, noise: f64, cost: impl Fn(&(usize, usize)) -> f64 + 'static) -> Machine {
        Machine {
            cost: Box::new(cost),
            noise,
            rng: StdRng::seed_from_u64(seed),
            spent: 0.0,
            looks: 0,
        }
    }

    fn axes() -> Vec<Axis<(usize, usize)>> {
        vec![
            Axis {
                name: "first",
                aspect: Aspect::Both,
                alternatives: Box::new(|s| (0..5).map(|n| (n, s.1)).collect()),
            },
            Axis {
                name: "second",
                aspect: Aspect::Prefill,
                alternatives: Box::new(|s| (0..5).map(|n| (s.0, n)).collect()),
            },
        ]
    }

    const LONG: Duration = Duration::from_secs(1000);

    #[test]
    fn finds_the_best_of_both_knobs() {
        for seed in 0..50 {
            let cost = |s: &(usize, usize)| {
                1.0 + (s.0 as f64 - 2.0).abs() * 0.2 + (s.1 as f64 - 3.0).abs() * 0.1
            };
            let mut by = machine(seed, 0.04, cost);
            let found = search(&(0, 0), &axes(), LONG, &mut by).unwrap();
            assert_eq!(found.best, (2, 3), "seed {seed}");
            assert!(found.ratio < 0.7, "seed {seed}: {}", found.ratio);
            assert!(!found.is_cut_short);
        }
    }

    #[test]
    fn ties_and_noise_leave_the_default() {
        let mut changed = 0;
        for seed in 0..200 {
            let mut by = machine(seed, 0.2, |_| 1.0);
            let found = search(&(1, 1), &axes(), LONG, &mut by).unwrap();
            changed += usize::from(found.best != (1, 1));
        }
        assert!(changed <= 6, "{changed} of 200 equal machines were changed");
    }

    #[test]
    fn never_worse_than_the_default_by_its_own_figures_and_never_unmeasured() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let table: Vec<f64> = (0..25).map(|_| rng.random_range(0.5..2.0)).collect();
            let budget = Duration::from_secs(rng.random_range(1..120));
            let mut by = machine(seed, 0.3, move |s| table[s.0 * 5 + s.1]);
            let default = (rng.random_range(0..4), rng.random_range(0..5));
            let found = search(&default, &axes(), budget, &mut by).unwrap();
            let figures = |setup: &(usize, usize)| {
                let seen = found
                    .seen
                    .iter()
                    .find(|(s, a, _)| s == setup && *a == Aspect::Both);
                let figures = &seen
                    .unwrap_or_else(|| panic!("seed {seed}: {setup:?} unmeasured"))
                    .2;
                assert!(!figures.is_empty());
            };
            figures(&default);
            figures(&found.best);
            assert!(found.ratio <= 1.0, "seed {seed}");
            assert!(
                found.best == default || found.ratio <= 1.0 - MARGIN,
                "seed {seed}"
            );
            assert!(
                by.spent <= budget.as_secs_f64() + 2.0,
                "seed {seed}: {} s",
                by.spent
            );
        }
    }

    #[test]
    fn a_clear_winner_ends_it_soon() {
        let mut by = machine(1, 0.01, |s| if s.0 == 0 { 1.0 } else { 3.0 });
        let found = search(&(0, 0), &axes()[..1], LONG, &mut by).unwrap();
        assert_eq!(found.best, (0, 0));
        // One look at the default, then one round of five in which all others are hopeless.
        assert_eq!(by.looks, 6);
    }

    #[test]
    fn a_default_that_cannot_run_is_an_error() {
        let mut by = machine(1, 0.0, |_| 1.0);
        assert!(search(&(4, 0), &axes(), LONG, &mut by).is_err());
    }
}
