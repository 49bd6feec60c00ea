//! `bitnet-launch tune`: measures which kernel, threads, pinning and prompt step are fastest for a model on this machine, and
//! keeps what it found for `--kernel auto` and its like.
//!
//! It never picks what it did not measure, and never what was not clearly faster than the default in its own figures. What the
//! user fixed by flag, environment or settings file stays fixed.

pub(crate) mod profile;
mod search;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bitnet_model::facts::ModelFacts;
use bitnet_model::protocol::EngineConfig;
use indicatif::ProgressBar;

use crate::bench::fleet::Fleet;
use crate::bench::{START_TIMEOUT, engine_config, progress_bar, stats::Series, task};
use crate::host::Host;
use crate::plan::{Plan, plan};
use crate::settings::{Affinity, Dialect, Environment, Flags, Settings, environment};
use profile::{Key, Measured, Profile, Setup};
use search::{Alternatives, Aspect, Axis, Clock, Figure, Measure, Outcome, search};

/// Time that `serve --tune` takes at most.
pub(crate) const SHORT_BUDGET: Duration = Duration::from_secs(25);
/// Prompt and answer of a usual look, in tokens.
const BOTH: (usize, usize) = (128, 24);
/// Prompt and answer where only prompts matter.
const PREFILL: (usize, usize) = (512, 2);

/// A machine busier than this share of its CPUs with other things gives doubtful figures.
const BUSY_SHARE: f64 = 0.5;

/// Flags of `tune`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TuneArgs {
    /// GGUF file, or a directory that holds exactly one [env: MODEL_PATH] [default: the bundled demo model]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<String>,
    /// Time to take at most, such as 60s or 2m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub budget: Duration,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// `60s`, `2m`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 60.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds: f64 = digits
        .trim()
        .parse()
        .map_err(|_| "expected a time such as 60s or 2m")?;
    match seconds * unit {
        s if (1.0..=86_400.0).contains(&s) => Ok(Duration::from_secs_f64(s)),
        _ => Err("expected a time from 1s to 1440m".to_owned()),
    }
}

/// Tunes and stores.
///
/// # Errors
/// When the model can't be served or measured.
pub(crate) fn run(args: &TuneArgs) -> anyhow::Result<ExitCode> {
    let mut flags = Flags::default();
    let model = args.model.clone();
    flags
        .values
        .extend(model.map(|model| ("model", model, "--model".to_owned())));
    let environment = environment();
    let settings = Settings::read(flags, &environment, Dialect::Launch)?;
    let gguf = crate::startup::open(&settings.model.value, &settings.overrides)?;
    let facts = ModelFacts::read(&gguf, &settings.overrides)?;
    let host = Host::detect();
    let cpus = host.allowed_cpus().map_or(1, |cpus| cpus.len());
    let busy = crate::bench::load_average().filter(|load| *load > BUSY_SHARE * cpus as f64);
    let bar = progress_bar(0, args.quiet);
    let found = tune(&host, &facts, &settings, args.budget, bar.clone())?;
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", found.table())?;
    if let Some(load) = busy {
        writeln!(
            out,
            "others were at work (load average {load} before it began): tune again when they rest"
        )?;
    }
    match found.store(&environment) {
        Ok(path) => writeln!(out, "kept in {path}")?,
        Err(error) => {
            writeln!(out, "not kept: {error:#}")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What was found, not stored yet.
pub(crate) struct Found {
    default: Setup,
    profile: Profile,
    is_cut_short: bool,
}

/// Measures for at most about `budget`.
///
/// # Errors
/// When the default can't be planned or measured.
pub(crate) fn tune(
    host: &Host,
    facts: &ModelFacts,
    settings: &Settings,
    budget: Duration,
    bar: ProgressBar,
) -> anyhow::Result<Found> {
    let default_plan = plan(host, facts, settings)?;
    let default = Setup::of(&default_plan);
    let key = Key::new(host, settings, &default_plan).context("cannot read the model file")?;
    let mut lab = Lab::new(host, facts, settings, &default_plan, budget, bar);
    let axes = axes(host, facts, settings, &default_plan);
    let outcome = search(&default, &axes, budget, &mut lab)?;
    Ok(Found::new(default, key, outcome))
}

impl Found {
    fn new(default: Setup, key: Key, outcome: Outcome<Setup>) -> Found {
        let measured = outcome
            .seen
            .into_iter()
            .map(|(setup, aspect, figures)| {
                let median = |of: fn(&Figure) -> f64| {
                    let values = figures.iter().map(of).collect();
                    Series(values).median().unwrap_or(0.0)
                };
                Measured {
                    prefill_only: aspect == Aspect::Prefill,
                    prefill_tok_s: median(|f| f.prefill_tok_s),
                    decode_tok_s: median(|f| f.decode_tok_s),
                    rounds: figures.len(),
                    setup,
                }
            })
            .collect();
        Found {
            default,
            profile: Profile {
                key,
                setup: outcome.best,
                ratio: outcome.ratio,
                measured,
            },
            is_cut_short: outcome.is_cut_short,
        }
    }

    /// Writes the profile; its path in words.
    ///
    /// # Errors
    /// When nothing was compared, there is no place for it, or it can't be written.
    pub(crate) fn store(&self, environment: &Environment) -> anyhow::Result<String> {
        anyhow::ensure!(
            self.profile.measured.len() > 1 || !self.is_cut_short,
            "the time was up before anything was compared; give more with `--budget`"
        );
        let directory = profile::directory(environment)
            .context("neither XDG_STATE_HOME nor HOME says where profiles may lie")?;
        let path = profile::store(&directory, &self.profile)
            .with_context(|| format!("cannot write to `{}`", directory.display()))?;
        Ok(path.display().to_string())
    }

    /// One line.
    pub(crate) fn verdict(&self) -> String {
        let setup = &self.profile.setup;
        let short = if self.is_cut_short {
            "; the time was up before everything was compared"
        } else {
            ""
        };
        match *setup == self.default {
            true => format!("nothing was clearly faster than the default: {setup}{short}"),
            false => format!(
                "{setup}: {:.0} % less time per request than the default ({}){short}",
                (1.0 - self.profile.ratio) * 100.0,
                self.default
            ),
        }
    }

    fn table(&self) -> String {
        let mut out = format!(
            "{:>12} {:>12} {:>7}\n",
            "prefill t/s", "decode t/s", "rounds"
        );
        for m in &self.profile.measured {
            let decode = match m.prefill_only {
                true => "-".to_owned(),
                false => format!("{:.1}", m.decode_tok_s),
            };
            let mark = if m.setup == self.profile.setup {
                " *"
            } else {
                ""
            };
            out.push_str(&format!(
                "{:>12.1} {decode:>12} {:>7}  {}{mark}\n",
                m.prefill_tok_s, m.rounds, m.setup
            ));
        }
        out.push_str(&self.verdict());
        out
    }
}

/// Engines to measure with.
struct Lab<'a> {
    host: &'a Host,
    facts: &'a ModelFacts,
    settings: &'a Settings,
    fleet: Fleet,
    /// Setups with an engine, in the order they were first asked for.
    known: Vec<(Setup, EngineConfig)>,
    clock: Clock,
    bar: ProgressBar,
}

impl<'a> Lab<'a> {
    fn new(
        host: &'a Host,
        facts: &'a ModelFacts,
        settings: &'a Settings,
        default: &Plan,
        budget: Duration,
        bar: ProgressBar,
    ) -> Lab<'a> {
        bar.set_length(budget.as_secs());
        Lab {
            host,
            facts,
            settings,
            fleet: Fleet::new(std::iter::once(default), START_TIMEOUT),
            known: Vec::new(),
            clock: Clock::start(),
            bar,
        }
    }

    fn engine(&mut self, setup: &Setup) -> anyhow::Result<(usize, EngineConfig)> {
        if let Some(index) = self.known.iter().position(|(known, _)| known == setup) {
            return Ok((index, self.known[index].1.clone()));
        }
        let settings = setup.apply(self.settings, self.host);
        let plan = plan(self.host, self.facts, &settings)?;
        let config = engine_config(&plan, &settings, 1, self.context());
        self.known.push((setup.clone(), config.clone()));
        Ok((self.known.len() - 1, config))
    }

    fn context(&self) -> usize {
        let wanted = (BOTH.0 + BOTH.1).max(PREFILL.0 + PREFILL.1);
        wanted.min(self.facts.context_length)
    }
}

impl Measure<Setup> for Lab<'_> {
    fn measure(&mut self, setup: &Setup, aspect: Aspect) -> anyhow::Result<Figure> {
        self.bar.set_message(setup.to_string());
        let (key, config) = self.engine(setup)?;
        let (prompt, answer) = match aspect {
            Aspect::Both => BOTH,
            Aspect::Prefill => PREFILL,
        };
        let prompt = prompt
            .min(config.slot_context.saturating_sub(answer))
            .max(1);
        let n_vocab = self.facts.n_vocab;
        let is_new = self.known.len() == key + 1;
        let session = self.fleet.get(key, &config)?;
        if is_new {
            // Pages and clocks warm up: not counted.
            session.run(&[task(n_vocab, 0, prompt.min(32), 2, false)], None)?;
        }
        let run = session.run(&[task(n_vocab, 0, prompt, answer, false)], None)?;
        self.bar.set_position(self.clock.elapsed().as_secs());
        let missing = "the engine told no times";
        Ok(Figure {
            prefill_tok_s: run.prefill_tok_s(prompt).context(missing)?,
            decode_tok_s: run.decode_tok_s().context(missing)?,
        })
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn progress(&mut self, what: &str) {
        tracing::debug!("tuning: {what}");
        self.bar.set_position(self.clock.elapsed().as_secs());
    }
}

/// What nobody fixed, most important first. Alternatives that the plan would change or refuse are left out, so limits hold here,
/// too.
fn axes(host: &Host, facts: &ModelFacts, settings: &Settings, default: &Plan) -> Vec<Axis<Setup>> {
    let mut axes = Vec::new();
    let keep = possible(host, facts, settings);
    let mut axis = |name, aspect, change: Alternatives<Setup>| {
        let keep = keep.clone();
        axes.push(Axis {
            name,
            aspect,
            alternatives: Box::new(move |setup: &Setup| {
                let all = change(setup).into_iter();
                all.filter(|alternative| keep(alternative)).collect()
            }),
        });
    };
    if settings.kernel.value.is_none() {
        let kernels = crate::bench::worth_measuring(host);
        let with = move |setup: &Setup| {
            let kernels = kernels.iter().cloned();
            kernels
                .map(|kernel| Setup {
                    kernel,
                    ..setup.clone()
                })
                .collect()
        };
        axis("kernels", Aspect::Both, Box::new(with));
    }
    let counts = thread_counts(host, default);
    if settings.threads.value.is_none() {
        let counts = counts.clone();
        let with = move |setup: &Setup| {
            let with = |&threads: &usize| Setup {
                threads,
                threads_batch: setup.threads_batch.max(threads),
                ..setup.clone()
            };
            counts.iter().map(with).collect()
        };
        axis("threads", Aspect::Both, Box::new(with));
    }
    if settings.cpu_affinity.value == Affinity::Auto {
        let with = |setup: &Setup| {
            vec![Setup {
                pin: !setup.pin,
                ..setup.clone()
            }]
        };
        axis("pinning", Aspect::Both, Box::new(with));
    }
    if settings.threads_batch.value.is_none() && settings.threads.value.is_none() {
        let with = move |setup: &Setup| {
            let enough = counts.iter().filter(|n| **n >= setup.threads);
            let with = |&threads_batch: &usize| Setup {
                threads_batch,
                ..setup.clone()
            };
            enough.map(with).collect()
        };
        axis("threads for prompts", Aspect::Prefill, Box::new(with));
    }
    if settings.batch_size.value.is_none() {
        let with = |setup: &Setup| {
            let with = |batch| Setup {
                batch,
                ..setup.clone()
            };
            [64, 128, 256, 512].map(with).to_vec()
        };
        axis("prompt steps", Aspect::Prefill, Box::new(with));
    }
    axes
}

/// One, half of the cores, all cores, all logical CPUs: within the quota.
fn thread_counts(host: &Host, default: &Plan) -> Vec<usize> {
    let logical = host.allowed_cpus().map_or(1, |cpus| cpus.len());
    let quota = host
        .limits
        .quota
        .as_ref()
        .map_or(usize::MAX, |q| q.threads());
    let cores = default.prefill_cpus.value.len();
    let decode = default.threads();
    let mut counts = vec![1, decode / 2, decode * 3 / 4, decode, cores, logical];
    counts.retain(|n| (1..=quota.min(logical)).contains(n));
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// Whether the plan takes a setup as it is.
fn possible(
    host: &Host,
    facts: &ModelFacts,
    settings: &Settings,
) -> std::rc::Rc<dyn Fn(&Setup) -> bool> {
    let (host, facts, settings) = (host.clone(), facts.clone(), settings.clone());
    std::rc::Rc::new(move |setup: &Setup| {
        let tuned = setup.apply(&settings, &host);
        plan(&host, &facts, &tuned).is_ok_and(|plan| Setup::of(&plan) == *setup)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::host;
    use crate::settings::tests::settings;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [("60s", 60), ("2m", 120), ("45", 45), ("1.5m", 90)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "soon", "0s", "-1s", "9999999m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn alternatives_stay_within_quota_and_wishes() {
        let facts = {
            let gguf = crate::startup::open(
                &bitnet_model::protocol::ModelSource::Demo,
                &bitnet_model::protocol::Overrides::default(),
            )
            .unwrap();
            ModelFacts::read(&gguf, &Default::default()).unwrap()
        };
        let all = |machine: &str, flags: &[(&'static str, &str)]| {
            let (host, settings) = (host(machine), settings(flags, &[]));
            let default = plan(&host, &facts, &settings).unwrap();
            let setup = Setup::of(&default);
            let axes = axes(&host, &facts, &settings, &default);
            let setups = axes.iter().flat_map(|axis| (axis.alternatives)(&setup));
            (axes.len(), setups.collect::<Vec<_>>())
        };
        let (_, setups) = all("container-v2", &[]);
        assert!(!setups.is_empty());
        assert!(
            setups
                .iter()
                .all(|s| s.threads == 1 && s.threads_batch == 1),
            "{setups:?}"
        );
        let (n, setups) = all("desktop-8c16t", &[]);
        assert_eq!(n, 5);
        assert!(setups.iter().any(|s| s.threads == 16));
        assert!(setups.iter().any(|s| s.threads == 4));
        assert!(setups.iter().any(|s| !s.pin));
        let fixed = [
            ("kernel", "i2_s"),
            ("threads", "4"),
            ("cpu-affinity", "none"),
            ("batch-size", "64"),
        ];
        assert_eq!(all("desktop-8c16t", &fixed).0, 0);
    }
}
