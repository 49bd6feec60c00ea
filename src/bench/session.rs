//! A real engine process, driven through the same frames as by `serve`, so that what is measured is what is served.

use std::io::BufReader;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bitnet_model::protocol::{
    EngineConfig, Finish, FromEngine, SamplingParams, Submit, ToEngine, read_frame, write_frame,
};

use crate::host::Meter;
use crate::supervise::child::{Engine, EngineProcesses, Spawn};
use crate::supervise::exit::Tools;

/// Nothing an engine is asked here takes this long without a frame.
const SILENCE: Duration = Duration::from_secs(300);
/// Log level of the engines: what they report goes to the program's log, if it has one.
const LOG_LEVEL: &str = "warn";
/// Makes one token the best whatever the others' logits are.
const ONLY_BIAS: f32 = 1e9;

/// A running engine that has loaded its model. Ends with its owner.
pub(crate) struct Session {
    engine: Box<dyn Engine>,
    frames: UnixStream,
    events: Receiver<(Instant, FromEngine)>,
    next_id: u64,
    is_settled: bool,
    started: Instant,
    /// Milliseconds from the process's start until it was ready.
    pub(crate) ready_ms: f64,
}

/// One sequence to generate.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// Prompt.
    pub prompt: Vec<u32>,
    /// Tokens to produce.
    pub n: usize,
    /// Slot to run in.
    pub slot: usize,
    /// Take from the slot's cache what is there.
    pub reuse: bool,
    /// Guess tokens ahead, as far as the engine does.
    pub spec: bool,
    /// Produce this token only.
    pub only: Option<u32>,
}

/// What a sequence became.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Tokens produced.
    pub tokens: Vec<u32>,
    /// Milliseconds of each by the engine's clock, from the beginning of its prompt.
    pub ms: Vec<f64>,
    /// When each arrived here.
    pub arrived: Vec<Instant>,
}

/// CPU time and energy between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Seconds of CPU time of the engine, all threads.
    pub cpu_s: Option<f64>,
    /// Joules of the whole machine, idle power not yet taken off.
    pub joules: Option<f64>,
    /// Seconds by the clock.
    pub seconds: f64,
}

/// A run of one or more sequences at the same time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    /// By the order of the tasks.
    pub outcomes: Vec<Outcome>,
    /// From the first submission to the first token of the last sequence to get one.
    pub prompts: Cost,
    /// From then to the last token.
    pub answers: Cost,
    /// Tokens that arrived in `answers`.
    pub n_answer_tokens: usize,
}

impl Session {
    /// Starts an engine and waits until it is ready.
    ///
    /// # Errors
    /// When it can't be started, can't load the model, or takes longer than `timeout`.
    pub(crate) fn start(config: &EngineConfig, timeout: Duration) -> anyhow::Result<Session> {
        let started = Instant::now();
        let mut processes = EngineProcesses {
            log_level: Some(LOG_LEVEL.to_owned()),
            ..EngineProcesses::default()
        };
        let engine = processes
            .spawn(Box::new(|| {}))
            .context("cannot start the engine process")?;
        let mut frames = engine.control().try_clone()?;
        let events = follow(engine.control().try_clone()?)?;
        write_frame(&mut frames, &ToEngine::Start(Box::new(config.clone())))
            .context("cannot talk to the engine")?;
        let mut session = Session {
            engine,
            frames,
            events,
            next_id: 0,
            is_settled: false,
            started,
            ready_ms: 0.0,
        };
        match session.event(timeout)? {
            (at, FromEngine::Ready { .. }) => {
                session.ready_ms = ms_between(started, at);
                Ok(session)
            }
            (_, FromEngine::Failed { message, hint }) => match hint {
                Some(hint) => bail!("{message} ({hint})"),
                None => bail!("{message}"),
            },
            (_, other) => bail!("the engine began with {other:?}"),
        }
    }

    /// Waits until everything that makes later steps faster has been done.
    ///
    /// # Errors
    /// When the engine ended or takes longer than `timeout`.
    pub(crate) fn settle(&mut self, timeout: Duration) -> anyhow::Result<()> {
        while !self.is_settled {
            if let (_, FromEngine::Settled) = self.event(timeout)? {
                self.is_settled = true;
            }
        }
        Ok(())
    }

    /// Milliseconds from the process's start.
    pub(crate) fn since_start_ms(&self, at: Instant) -> f64 {
        ms_between(self.started, at)
    }

    /// Runs the tasks at the same time, greedily sampled, to their last tokens.
    ///
    /// # Errors
    /// When the engine ended, or a sequence ended for another reason than its limit.
    pub(crate) fn run(
        &mut self,
        tasks: &[Task],
        mut meter: Option<&mut Meter>,
    ) -> anyhow::Result<Run> {
        let first_id = self.next_id;
        self.next_id += tasks.len() as u64;
        let began = Reading::take(self, &mut meter);
        for (id, task) in (first_id..).zip(tasks) {
            let submit = submit(id, task);
            write_frame(&mut self.frames, &ToEngine::Submit(Box::new(submit)))?;
        }
        let mut run = Run {
            outcomes: vec![Outcome::default(); tasks.len()],
            ..Run::default()
        };
        let (mut open, mut waiting, mut all_answer) = (tasks.len(), tasks.len(), None);
        while open > 0 {
            let (at, event) = self.event(SILENCE)?;
            let index = |id: u64| id.checked_sub(first_id).map_or(usize::MAX, |i| i as usize);
            match event {
                FromEngine::Token { id, token, ms, .. } => {
                    let Some(outcome) = run.outcomes.get_mut(index(id)) else {
                        continue;
                    };
                    outcome.tokens.push(token);
                    outcome.ms.push(ms);
                    outcome.arrived.push(at);
                    waiting -= usize::from(outcome.tokens.len() == 1);
                    if waiting == 0 && all_answer.is_none() {
                        let now = Reading::take(self, &mut meter);
                        run.prompts = now.since(&began);
                        all_answer = Some(now);
                    } else if all_answer.is_some() {
                        run.n_answer_tokens += 1;
                        if let Some(meter) = meter.as_deref_mut().filter(|m| m.is_sampled()) {
                            meter.sample();
                        }
                    }
                }
                FromEngine::Done { id, finish } if index(id) < tasks.len() => {
                    open -= 1;
                    if !matches!(finish, Finish::Limit | Finish::ContextFull) {
                        bail!("a measured sequence ended with {finish:?}");
                    }
                }
                FromEngine::Settled => self.is_settled = true,
                _ => {}
            }
        }
        if let Some(middle) = all_answer {
            run.answers = Reading::take(self, &mut meter).since(&middle);
        }
        Ok(run)
    }

    /// CPU seconds of all the engine's threads; `None` where the system doesn't tell.
    fn cpu_s(&self) -> Option<f64> {
        let pid = self.engine.pid();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let nanos = |task: std::fs::DirEntry| -> Option<u64> {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_ascii_whitespace().next()?.parse().ok()
        };
        let sum: u64 = tasks.flatten().map(|task| nanos(task).unwrap_or(0)).sum();
        match sum {
            0 => cpu_s_by_ticks(pid),
            nanos => Some(nanos as f64 / 1e9),
        }
    }

    /// Most memory the engine ever held, pages of files included, in bytes.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.engine.pid())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes << 10)
    }

    fn event(&mut self, timeout: Duration) -> anyhow::Result<(Instant, FromEngine)> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the engine said nothing for {} s", timeout.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let how = self.engine.reap().explain(Tools::default());
                match how.hint {
                    Some(hint) => bail!("the engine ended: {} ({hint})", how.reason),
                    None => bail!("the engine ended: {}", how.reason),
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.frames.shutdown(Shutdown::Both);
        self.engine.kill();
        let _ = self.engine.reap();
    }
}

/// Counters at one moment.
struct Reading {
    at: Instant,
    cpu_s: Option<f64>,
    joules: Option<f64>,
}

impl Reading {
    fn take(session: &Session, meter: &mut Option<&mut Meter>) -> Reading {
        Reading {
            at: Instant::now(),
            cpu_s: session.cpu_s(),
            joules: meter.as_deref_mut().map(Meter::sample),
        }
    }

    fn since(&self, before: &Reading) -> Cost {
        let difference = |now: Option<f64>, then: Option<f64>| Some(now? - then?);
        Cost {
            cpu_s: difference(self.cpu_s, before.cpu_s),
            joules: difference(self.joules, before.joules),
            seconds: self.at.duration_since(before.at).as_secs_f64(),
        }
    }
}

/// A thread that notes when each frame arrived.
fn follow(control: UnixStream) -> anyhow::Result<Receiver<(Instant, FromEngine)>> {
    let (sender, events) = mpsc::channel();
    let read = move || {
        let mut control = BufReader::new(control);
        while let Ok(Some(frame)) = read_frame(&mut control) {
            if sender.send((Instant::now(), frame)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("engine-read".into())
        .spawn(read)?;
    Ok(events)
}

fn submit(id: u64, task: &Task) -> Submit {
    Submit {
        id,
        tokens: task.prompt.clone(),
        max_tokens: u32::try_from(task.n).unwrap_or(u32::MAX),
        eog_tokens: Vec::new(),
        cache_prompt: task.reuse,
        slot: Some(task.slot),
        carried: Default::default(),
        prompt_probs: None,
        draft_max: Some(if task.spec { usize::MAX } else { 0 }),
        sampling: SamplingParams {
            temperature: 0.0,
            logit_bias: task
                .only
                .map(|token| (token, ONLY_BIAS))
                .into_iter()
                .collect(),
            ..SamplingParams::default()
        },
    }
}

/// `/proc/PID/stat`, user and system time in ticks of 10 ms (proc(5); the tick is 100 Hz on every Linux that counts).
pub(crate) fn cpu_s_by_ticks(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / 100.0)
}

fn ms_between(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

impl Run {
    /// Tokens per second of a prompt of `n_prompt` tokens, up to its first token.
    pub(crate) fn prefill_tok_s(&self, n_prompt: usize) -> Option<f64> {
        let first_ms = *self.outcomes.first()?.ms.first()?;
        (first_ms > 0.0).then(|| n_prompt as f64 * 1e3 / first_ms)
    }

    /// Tokens per second behind the first token. One sequence: by the engine's clock. Several: all tokens that arrived
    /// while every sequence was answering.
    pub(crate) fn decode_tok_s(&self) -> Option<f64> {
        if let [one] = &self.outcomes[..] {
            let ms = one.ms.last()? - one.ms.first()?;
            return (ms > 0.0).then(|| (one.ms.len() - 1) as f64 * 1e3 / ms);
        }
        let from = self.outcomes.iter().map(|o| o.arrived.first()).max()??;
        let to = self.outcomes.iter().map(|o| o.arrived.last()).min()??;
        let seconds = to.saturating_duration_since(*from).as_secs_f64();
        let all = self.outcomes.iter().flat_map(|o| &o.arrived);
        let n = all.filter(|at| *at > from && *at <= to).count();
        (seconds > 0.0).then(|| n as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(began: Instant, ms: &[u64]) -> Outcome {
        Outcome {
            tokens: vec![1; ms.len()],
            ms: ms.iter().map(|ms| *ms as f64).collect(),
            arrived: ms
                .iter()
                .map(|ms| began + Duration::from_millis(*ms))
                .collect(),
        }
    }

    #[test]
    fn rates_come_from_the_right_stretch() {
        let began = Instant::now();
        let one = Run {
            outcomes: vec![outcome(began, &[100, 110, 120, 140])],
            ..Run::default()
        };
        assert_eq!(one.prefill_tok_s(50), Some(500.0));
        assert_eq!(one.decode_tok_s(), Some(75.0));
        let two = Run {
            outcomes: vec![
                outcome(began, &[10, 20, 30, 40]),
                outcome(began, &[20, 30, 40, 50]),
            ],
            ..Run::default()
        };
        // From 20 to 40 ms: two tokens of each.
        assert_eq!(two.decode_tok_s().map(f64::round), Some(200.0));
        assert_eq!(Run::default().prefill_tok_s(1), None);
    }
}
