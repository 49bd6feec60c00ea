//! `bitnet-launch bench`: speed, start, memory, CPU time and energy of real engine processes on this machine, for a grid of
//! kernels and threads, in interleaved rounds.
//!
//! Every cell of the grid computes the same tokens from the same prompts; a hash of them stands beside the speeds, and two
//! hashes are an error: a fast wrong answer shows.

pub(crate) mod bandwidth;
pub(crate) mod fleet;
mod grid;
mod plot;
mod report;
pub(crate) mod session;
pub(crate) mod stats;

pub(crate) use grid::worth_measuring;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_model::protocol::{EngineConfig, ModelSource};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::host::{Host, Meter, Root};
use crate::plan::Plan;
use crate::settings::Settings;
use bandwidth::Bandwidth;
use fleet::Fleet;
use report::{Cell, Report};
use session::{Cost, Run, Session, Task};
use stats::Series;

/// Time an engine gets to load and to make its copies.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the machine's idle power is measured.
const IDLE: Duration = Duration::from_secs(3);
/// Prompt of the measurements that need a short one.
pub(crate) const SHORT_PROMPT: usize = 8;
/// Runs of several sequences until one has a stretch in which all of them answer.
const OVERLAP_TRIES: usize = 20;

/// Flags of `bench`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    /// GGUF file, or a directory that holds exactly one [env: MODEL_PATH] [default: the bundled demo model]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<String>,
    /// Kernels to measure: auto, all, or names separated by commas, such as i2_s,tl2 or i2_s/avx2
    #[arg(long, alias = "kernel", value_name = "LIST", default_value = "auto")]
    pub kernels: String,
    /// Threads to measure: auto, or numbers separated by commas; N is all CPUs allowed
    #[arg(short, long, value_name = "LIST", default_value = "auto")]
    pub threads: String,
    /// Prompt lengths, separated by commas [default: 128,512,4096; quick: 128]
    #[arg(short = 'p', long = "prompts", value_name = "LIST")]
    pub prompts: Option<String>,
    /// Tokens of each answer [default: 64; quick: 32]
    #[arg(short = 'n', long = "tokens", value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub tokens: Option<u32>,
    /// Depths: tokens before the answer, separated by commas [default: 0,512,3900; quick: 0]
    #[arg(short = 'd', long = "depths", value_name = "LIST")]
    pub depths: Option<String>,
    /// Sequences at the same time, separated by commas [default: 2,4,8; quick: 4]
    #[arg(long = "slots", value_name = "LIST")]
    pub slots: Option<String>,
    /// Rounds, of which the medians are taken [default: 3; quick: 2]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Few and short measurements; so is the demo model measured
    #[arg(long)]
    pub quick: bool,
    /// Output head, as in `serve`
    #[arg(long, value_name = "MODE")]
    pub head: Option<String>,
    /// Type of the key/value cache, as in `serve`
    #[arg(long, value_name = "TYPE")]
    pub kv_type: Option<String>,
    /// Guess tokens ahead, as in `serve`: adds answers with and without, of one token repeated and as the model goes on
    #[arg(long, value_name = "HOW")]
    pub spec: Option<String>,
    /// Most tokens guessed ahead, as in `serve`
    #[arg(long, value_name = "N")]
    pub draft_max: Option<String>,
    /// CPUs to pin threads to, as in `serve`
    #[arg(long, value_name = "LIST")]
    pub cpu_affinity: Option<String>,
    /// Prompt tokens evaluated in one step, as in `serve`
    #[arg(short, long, value_name = "N")]
    pub batch_size: Option<String>,
    /// One JSON object instead of tables
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Lines of CSV instead of tables
    #[arg(long)]
    pub csv: bool,
    /// Write the results to this file as well: .json, .csv, or tables for any other ending
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write a plot to this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// What is measured in each round of each cell.
#[derive(Debug, Clone)]
struct Programme {
    /// Prompt lengths, ascending.
    prompts: Vec<usize>,
    /// Tokens per answer.
    n: usize,
    /// Depths, descending, so that the cache of one serves the next.
    depths: Vec<usize>,
    /// Sequences at a time, ascending.
    slots: Vec<usize>,
    rounds: usize,
    /// Fresh engines are started in each round to time it.
    starts: bool,
    /// Answers with and without guesses.
    spec: bool,
}

/// Measures and reports: exit code 1 when two cells disagree.
///
/// # Errors
/// When the settings can't be read, the model can't be served or an engine fails.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let load_average = load_average();
    let host = Host::detect();
    let base = grid::settings(args, None, None)?;
    let model = crate::startup::prepare_on(host.clone(), &base)?;
    let programme = Programme::new(args, &base, model.facts.context_length)?;
    let cells = grid::cells(args, &host, &model.facts, &programme)?;
    let mut bench = Bench::new(&host, &cells, &programme, model.facts.n_vocab, args.quiet);
    let measured = bench.run()?;
    let report = Report {
        version: crate::VERSION,
        model: crate::startup::described(&base.model.value),
        parameters: model.facts.size_label(),
        machine: host.summary(),
        rounds: programme.rounds,
        n_tokens: programme.n,
        energy: bench.energy_in_words(),
        bandwidth: bench.bandwidth_series,
        cells: measured,
        load_average,
    };
    report.check_notes();
    write_results(args, &report)?;
    Ok(ExitCode::from(u8::from(!report.all_agree())))
}

fn write_results(args: &BenchArgs, report: &Report) -> anyhow::Result<()> {
    let text = match (args.json, args.csv) {
        (true, _) => format!("{:#}\n", report.json()),
        (_, true) => report.csv(),
        _ => report.tables(),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    if let Some(path) = &args.output {
        let text = match path.extension().and_then(|e| e.to_str()) {
            Some("json") => format!("{:#}\n", report.json()),
            Some("csv") => report.csv(),
            _ => report.tables(),
        };
        write_file(path, text.as_bytes())?;
    }
    if let Some(path) = &args.svg {
        let svg = plot::svg(report).with_context(|| format!("cannot plot `{}`", path.display()))?;
        write_file(path, svg.as_bytes())?;
    }
    Ok(())
}

/// All of it or nothing.
fn write_file(path: &std::path::Path, bytes: &[u8]) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, bytes)
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Of the last minute: others at work make every figure doubtful.
pub(crate) fn load_average() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

impl Programme {
    fn new(args: &BenchArgs, settings: &Settings, context: usize) -> anyhow::Result<Programme> {
        let quick = args.quick || settings.model.value == ModelSource::Demo;
        let choose =
            |asked: &Option<String>, full: &[usize], short: &[usize], what: &str| match asked {
                Some(text) => grid::numbers(text, what),
                None if quick => Ok(short.to_vec()),
                None => Ok(full.to_vec()),
            };
        let n = args.tokens.unwrap_or(if quick { 32 } else { 64 }) as usize;
        let mut prompts = choose(&args.prompts, &[128, 512, 4096], &[128], "--prompts")?;
        let mut depths = choose(&args.depths, &[0, 512, 3900], &[0], "--depths")?;
        let mut slots = choose(&args.slots, &[2, 4, 8], &[4], "--slots")?;
        let n_wanted = prompts.len() + depths.len();
        prompts.retain(|p| (1..=context).contains(p));
        depths.retain(|d| d.max(&SHORT_PROMPT) + n <= context);
        if prompts.len() + depths.len() < n_wanted {
            eprintln!("lengths beyond the model's context of {context} tokens are left out");
        }
        anyhow::ensure!(
            !(prompts.is_empty() && depths.is_empty()),
            "nothing is left to measure within the model's context of {context} tokens"
        );
        slots.retain(|n| (2..=64).contains(n));
        prompts.sort_unstable();
        slots.sort_unstable();
        depths.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Programme {
            prompts,
            n,
            depths,
            slots,
            rounds: args.rounds.unwrap_or(if quick { 2 } else { 3 }) as usize,
            starts: !args.quick,
            spec: settings.draft_max() > 0,
        })
    }

    /// Tokens a slot has to hold.
    fn context(&self) -> usize {
        let answers = self
            .depths
            .iter()
            .map(|depth| depth.max(&SHORT_PROMPT) + self.n);
        let all = self.prompts.iter().copied().chain(answers);
        all.max().unwrap_or(0).max(SHORT_PROMPT + self.n)
    }

    fn steps(&self) -> usize {
        usize::from(self.starts)
            + self.prompts.len()
            + self.depths.len()
            + self.slots.len()
            + 4 * usize::from(self.spec)
    }
}

/// The measuring itself.
struct Bench<'a> {
    host: &'a Host,
    cells: &'a [grid::Candidate],
    programme: &'a Programme,
    n_vocab: usize,
    meter: Option<Meter>,
    idle_watts: f64,
    bandwidth: Option<Bandwidth>,
    bandwidth_series: Vec<(usize, Series)>,
    bar: ProgressBar,
}

impl<'a> Bench<'a> {
    fn new(
        host: &'a Host,
        cells: &'a [grid::Candidate],
        programme: &'a Programme,
        n_vocab: usize,
        quiet: bool,
    ) -> Bench<'a> {
        let steps = cells.len() * programme.rounds * programme.steps();
        Bench {
            host,
            cells,
            programme,
            n_vocab,
            meter: Meter::find(&Root::live()).ok(),
            idle_watts: 0.0,
            bandwidth: Bandwidth::new(host.memory.available_bytes),
            bandwidth_series: Vec::new(),
            bar: progress_bar(steps as u64, quiet),
        }
    }

    fn run(&mut self) -> anyhow::Result<Vec<Cell>> {
        self.measure_idle_power();
        let mut fleet = Fleet::new(self.cells.iter().map(|cell| &cell.plan), START_TIMEOUT);
        let mut results: Vec<Cell> = self
            .cells
            .iter()
            .map(grid::Candidate::empty_result)
            .collect();
        for _ in 0..self.programme.rounds {
            self.measure_bandwidth();
            for (key, (cell, result)) in self.cells.iter().zip(&mut results).enumerate() {
                self.bar.set_message(cell.name());
                self.round(key, cell, &mut fleet, result)
                    .with_context(|| format!("cannot measure {}", cell.name()))?;
            }
        }
        self.bar.finish_and_clear();
        Ok(results)
    }

    fn round(
        &mut self,
        key: usize,
        cell: &grid::Candidate,
        fleet: &mut Fleet,
        result: &mut Cell,
    ) -> anyhow::Result<()> {
        let mut hash = TokenHash::default();
        if self.programme.starts {
            fleet.end(key);
            self.time_start(&cell.config, result, &mut hash)?;
        }
        let session = fleet.get(key, &cell.config)?;
        for &length in &self.programme.prompts {
            let task = task(self.n_vocab, 0, length, 1, false);
            let run = session.run(&[task], self.meter.as_mut())?;
            let cost = self.per_token(&run.prompts, length);
            result.add(
                &format!("prefill {length}"),
                run.prefill_tok_s(length),
                cost,
            );
            self.done(&run, &mut hash);
        }
        for &depth in &self.programme.depths {
            let task = task(
                self.n_vocab,
                0,
                depth.max(SHORT_PROMPT),
                self.programme.n,
                true,
            );
            let run = session.run(&[task], self.meter.as_mut())?;
            let cost = self.per_token(&run.answers, run.n_answer_tokens);
            result.add(&format!("decode at {depth}"), run.decode_tok_s(), cost);
            self.done(&run, &mut hash);
        }
        if self.programme.spec {
            self.guess(session, result, &mut hash)?;
        }
        for &slots in &self.programme.slots {
            let n = self.programme.n;
            let tasks: Vec<Task> = (0..slots)
                .map(|slot| task(self.n_vocab, slot, SHORT_PROMPT, n, false))
                .collect();
            let run = self.together(session, &tasks)?;
            let cost = self.per_token(&run.answers, run.n_answer_tokens);
            result.add(&format!("decode of {slots}"), run.decode_tok_s(), cost);
            self.done(&run, &mut hash);
        }
        result.peak_mb.push(
            session
                .peak_bytes()
                .map(|bytes| bytes as f64 / f64::from(1 << 20)),
        );
        result.hashes.push(hash.0);
        Ok(())
    }

    /// Sequences at the same time. On a busy machine a short one may end before the last has begun: then there is
    /// nothing to measure, and they run again.
    fn together(&mut self, session: &mut Session, tasks: &[Task]) -> anyhow::Result<Run> {
        for _ in 1..OVERLAP_TRIES {
            let run = session.run(tasks, self.meter.as_mut())?;
            if run.decode_tok_s().is_some() {
                return Ok(run);
            }
        }
        session.run(tasks, self.meter.as_mut())
    }

    /// Answers without guesses and with them, in turns: what guesses gain where all are right, and cost where few are.
    fn guess(
        &mut self,
        session: &mut Session,
        result: &mut Cell,
        hash: &mut TokenHash,
    ) -> anyhow::Result<()> {
        for (name, only) in [("repeat", Some(13)), ("free", None)] {
            let mut tokens = Vec::new();
            for spec in [false, true] {
                let task = Task {
                    spec,
                    only,
                    ..task(self.n_vocab, 0, SHORT_PROMPT, self.programme.n, false)
                };
                let run = session.run(&[task], self.meter.as_mut())?;
                let cost = self.per_token(&run.answers, run.n_answer_tokens);
                let how = if spec { "guessed" } else { "plain" };
                result.add(&format!("{name} {how}"), run.decode_tok_s(), cost);
                self.done(&run, hash);
                tokens.extend(run.outcomes.into_iter().map(|outcome| outcome.tokens));
            }
            anyhow::ensure!(
                tokens[0] == tokens[1],
                "guesses changed the tokens of an answer"
            );
        }
        Ok(())
    }

    /// A fresh process: until it is ready, and until its first token.
    fn time_start(
        &mut self,
        config: &EngineConfig,
        result: &mut Cell,
        hash: &mut TokenHash,
    ) -> anyhow::Result<()> {
        let mut session = Session::start(config, START_TIMEOUT)?;
        let run = session.run(&[task(self.n_vocab, 0, SHORT_PROMPT, 1, false)], None)?;
        let first = run.outcomes.first().and_then(|o| o.arrived.first());
        result.load_ms.push(Some(session.ready_ms));
        result
            .first_token_ms
            .push(first.map(|at| session.since_start_ms(*at)));
        self.done(&run, hash);
        Ok(())
    }

    fn done(&self, run: &Run, hash: &mut TokenHash) {
        hash.add(run);
        self.bar.inc(1);
    }

    fn per_token(&self, cost: &Cost, n: usize) -> (Option<f64>, Option<f64>) {
        let n = n.max(1) as f64;
        let active = |joules: f64| joules - self.idle_watts * cost.seconds;
        (
            cost.cpu_s.map(|s| s / n),
            cost.joules.map(|j| active(j) / n),
        )
    }

    fn measure_idle_power(&mut self) {
        let Some(meter) = &mut self.meter else { return };
        self.bar.set_message("idle power");
        let (began, before) = (Instant::now(), meter.sample());
        while began.elapsed() < IDLE {
            std::thread::sleep(Duration::from_millis(100));
            meter.sample();
        }
        self.idle_watts = (meter.sample() - before) / began.elapsed().as_secs_f64();
    }

    /// With one thread, and with as many as each plan has.
    fn measure_bandwidth(&mut self) {
        let Some(bandwidth) = &self.bandwidth else {
            return;
        };
        self.bar.set_message("read bandwidth");
        let mut seen = Vec::new();
        let one = self.cells.iter().map(|cell| (&cell.plan, 1));
        let all = self
            .cells
            .iter()
            .map(|cell| (&cell.plan, cell.plan.threads()));
        for (plan, threads) in one.chain(all) {
            if seen.contains(&threads) {
                continue;
            }
            seen.push(threads);
            let speed = bandwidth.measure(&plan.decode_cpus.value[..threads], plan.pin.value);
            match self
                .bandwidth_series
                .iter_mut()
                .find(|(n, _)| *n == threads)
            {
                Some((_, series)) => series.push(Some(speed)),
                None => self.bandwidth_series.push((threads, Series(vec![speed]))),
            }
        }
    }

    fn energy_in_words(&self) -> Result<String, String> {
        match &self.host.energy {
            Ok(source) => Ok(format!(
                "{source}; {:.1} W of idle power taken off",
                self.idle_watts
            )),
            Err(reason) => Err(reason.clone()),
        }
    }
}

/// The sequence that all measurements of a slot begin, so that longer prompts begin with the shorter ones.
pub(crate) fn task(n_vocab: usize, slot: usize, length: usize, n: usize, reuse: bool) -> Task {
    let token = |i: usize| ((i * 7919 + slot * 104_729 + 13) % n_vocab) as u32;
    Task {
        prompt: (0..length).map(token).collect(),
        n,
        slot,
        reuse,
        spec: false,
        only: None,
    }
}

/// FNV-1a of all tokens, in the order of the measurements.
pub(crate) struct TokenHash(pub u64);

impl Default for TokenHash {
    fn default() -> Self {
        TokenHash(0xcbf2_9ce4_8422_2325)
    }
}

impl TokenHash {
    /// Goes on with the tokens of a run.
    pub(crate) fn add(&mut self, run: &Run) {
        for byte in run
            .outcomes
            .iter()
            .flat_map(|outcome| &outcome.tokens)
            .flat_map(|token| token.to_le_bytes())
        {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// On a terminal only; hidden elsewhere and when `quiet`.
pub(crate) fn progress_bar(steps: u64, quiet: bool) -> ProgressBar {
    let target = match quiet {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(steps), target);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:32} {pos}/{len}  {elapsed} of about {duration}  {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// The engine of a plan, with slots and context as the measurements need them.
pub(crate) fn engine_config(
    plan: &Plan,
    settings: &Settings,
    slots: usize,
    context: usize,
) -> EngineConfig {
    EngineConfig {
        slots,
        slot_context: context,
        ..plan.engine_config(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session::Outcome;

    #[test]
    fn other_tokens_have_another_hash() {
        let hash = |tokens: &[u32]| {
            let mut hash = TokenHash::default();
            hash.add(&Run {
                outcomes: vec![Outcome {
                    tokens: tokens.to_vec(),
                    ..Outcome::default()
                }],
                ..Run::default()
            });
            hash.0
        };
        assert_eq!(hash(&[1, 2, 3]), hash(&[1, 2, 3]));
        assert_ne!(hash(&[1, 2, 3]), hash(&[1, 3, 2]));
        assert_ne!(hash(&[1, 2]), hash(&[1, 2, 0]));
    }

    #[test]
    fn longer_prompts_begin_with_shorter_ones() {
        let (short, long) = (task(100, 1, 5, 2, true), task(100, 1, 9, 2, true));
        assert!(long.prompt.starts_with(&short.prompt));
        assert_ne!(task(100, 0, 5, 2, true).prompt, short.prompt);
        assert!(long.prompt.iter().all(|token| *token < 100));
    }
}
