//! The broker against a scripted engine: a thread that speaks frames over a socket pair and can be made to die, hang
//! or refuse at a chosen token.

use super::work::Work;
use super::*;
use crate::supervise::child::Engine;
use crate::supervise::exit::{Exit, ExitKind};
use bitnet_model::protocol::{
    Draft, Embed, Finish, HeadMode, KvType, ModelSource, Overrides, Pooling, SamplingParams,
    SlotAction, SlotFault, SlotReport, Submit, ToEngine, WeightsHome, read_frame, write_frame,
};
use bitnet_server::backend::{Backend, BackendState, EmbedJob, Job, JobEvent, JobHandle, Refused};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

const CONTEXT: usize = 64;
const EOG: u32 = 1;
/// Nothing in these tests takes this long.
const LONG: Duration = Duration::from_secs(30);

/// What an engine does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Dies as by this signal once it has produced this many tokens in all.
    DieAfter(usize, i32),
    /// Dies by SIGSEGV whenever it is given a job whose prompt starts with this token.
    DieOn(u32),
    /// Stands still after this many tokens.
    HangAfter(usize),
    /// Says that the model is bad.
    Refuse,
    /// Dies between the first and the second part of an embedding.
    DieInEmbedding,
    /// Dies when it is asked to save, restore or erase.
    DieOnSlot,
    /// Has another model than the others: other tokens come out.
    OtherModel,
    /// Dies by SIGILL when it is started with this kernel.
    LacksInstructions(&'static str),
    /// Takes this many milliseconds to load.
    LoadsSlowly(u64),
}

/// Starts scripted engines: the first with the first faults, and so on; engines without script are well.
struct Script {
    faults: VecDeque<Vec<Fault>>,
    always: Vec<Fault>,
    started: Arc<AtomicUsize>,
}

struct FakeEngine {
    control: UnixStream,
    killed: Arc<AtomicBool>,
    end: Arc<Mutex<Option<ExitKind>>>,
}

impl Spawn for Script {
    fn spawn(&mut self, exited: Box<dyn FnOnce() + Send>) -> io::Result<Box<dyn Engine>> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut faults = self.faults.pop_front().unwrap_or_default();
        faults.extend(&self.always);
        self.started.fetch_add(1, Ordering::SeqCst);
        let killed = Arc::new(AtomicBool::new(false));
        let end: Arc<Mutex<Option<ExitKind>>> = Arc::default();
        let mut mind = Mind {
            control: theirs,
            faults,
            killed: Arc::clone(&killed),
            jobs: BTreeMap::new(),
            embeds: VecDeque::new(),
            produced: 0,
            steps: 0,
        };
        let mark = Arc::clone(&end);
        thread::spawn(move || {
            let kind = mind.live();
            *mark.lock().unwrap() = Some(kind);
            let _ = mind.control.shutdown(Shutdown::Both);
            exited();
        });
        Ok(Box::new(FakeEngine {
            control: ours,
            killed,
            end,
        }))
    }
}

impl Engine for FakeEngine {
    fn pid(&self) -> u32 {
        0
    }
    fn control(&self) -> &UnixStream {
        &self.control
    }
    fn kill(&mut self) {
        self.killed.store(true, Ordering::SeqCst);
    }
    fn reap(&mut self) -> Exit {
        let kind = self.end.lock().unwrap().expect("reap comes after exit");
        Exit {
            kind,
            log: vec!["INFO last words".into()],
            oom_kills: None,
        }
    }
}

/// The thread behind a fake engine: round robin over its jobs, one token each.
struct Mind {
    control: UnixStream,
    faults: Vec<Fault>,
    killed: Arc<AtomicBool>,
    jobs: BTreeMap<u64, (Submit, u32, usize)>,
    embeds: VecDeque<Embed>,
    produced: usize,
    steps: u64,
}

impl Mind {
    fn live(&mut self) -> ExitKind {
        let (sender, inbox) = mpsc::channel::<Option<ToEngine>>();
        let mut reader = self.control.try_clone().unwrap();
        thread::spawn(move || {
            while let Ok(Some(frame)) = read_frame(&mut reader) {
                let _ = sender.send(Some(frame));
            }
            let _ = sender.send(None);
        });
        loop {
            if self.killed.load(Ordering::SeqCst) {
                return ExitKind::Signal(9);
            }
            // Before the frames: an engine that dies after 0 tokens never says that it is ready.
            if let Some(end) = self.step() {
                return end;
            }
            while let Ok(frame) = inbox.try_recv() {
                match frame {
                    None => return ExitKind::Code(0),
                    Some(frame) => {
                        if let Some(end) = self.hear(frame) {
                            return end;
                        }
                    }
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn say(&mut self, frame: &FromEngine) {
        let _ = write_frame(&mut self.control, frame);
    }

    fn hear(&mut self, frame: ToEngine) -> Option<ExitKind> {
        match frame {
            ToEngine::Start(_) if self.faults.contains(&Fault::Refuse) => {
                self.say(&FromEngine::Failed {
                    message: "cannot load `x.gguf`".into(),
                    hint: Some("look at it".into()),
                });
                return Some(ExitKind::Code(1));
            }
            ToEngine::Start(config) => {
                for fault in &self.faults {
                    match fault {
                        Fault::LacksInstructions(kernel) if *kernel == config.kernel => {
                            return Some(ExitKind::Signal(4));
                        }
                        Fault::LoadsSlowly(ms) => thread::sleep(Duration::from_millis(*ms)),
                        _ => {}
                    }
                }
                self.say(&FromEngine::Ready { load_ms: 1.0 });
            }
            ToEngine::Submit(submit) => {
                if self.faults.contains(&Fault::DieOn(submit.tokens[0])) {
                    return Some(ExitKind::Signal(11));
                }
                let slot = (0..)
                    .find(|slot| self.jobs.values().all(|job| job.2 != *slot))
                    .unwrap();
                let (id, total) = (submit.id, submit.tokens.len());
                for processed in [0, total] {
                    self.say(&FromEngine::Prefill {
                        id,
                        slot,
                        total,
                        cached: 0,
                        processed,
                        ms: processed as f64,
                        cpu_ms: Some(2.0 * processed as f64),
                    });
                }
                self.jobs.insert(id, (*submit, 0, slot));
            }
            ToEngine::Embed(embed) => {
                let (id, total) = (embed.id, embed.tokens.len());
                self.say(&FromEngine::Prefill {
                    id,
                    slot: 0,
                    total,
                    cached: 0,
                    processed: 0,
                    ms: 0.0,
                    cpu_ms: None,
                });
                self.embeds.push_back(*embed);
            }
            ToEngine::Slot { .. } if self.faults.contains(&Fault::DieOnSlot) => {
                return Some(ExitKind::Signal(9));
            }
            ToEngine::Slot { id, slot, .. } => {
                let report = SlotReport {
                    n_tokens: 30 + slot,
                    n_bytes: 7,
                    ms: 1.0,
                };
                let result = match slot {
                    0 | 1 => Ok(report),
                    _ => Err(SlotFault::Refused("no such slot".into())),
                };
                self.say(&FromEngine::Slot { id, result });
            }
            ToEngine::Cancel { id } => {
                if self.jobs.remove(&id).is_some() {
                    let finish = Finish::Cancelled;
                    self.say(&FromEngine::Done { id, finish });
                }
            }
        }
        None
    }

    fn step(&mut self) -> Option<ExitKind> {
        for fault in self.faults.clone() {
            match fault {
                Fault::DieAfter(n, signal) if self.produced >= n => {
                    return Some(ExitKind::Signal(signal));
                }
                Fault::HangAfter(n) if self.produced >= n => return None,
                _ => {}
            }
        }
        if let Some(embed) = self.embeds.pop_front() {
            return self.embed(&embed);
        }
        let next = self.jobs.iter().min_by_key(|(id, job)| (job.1, **id));
        let id = *next?.0;
        let (submit, produced, _) = self.jobs.get_mut(&id).unwrap();
        let finish = if *produced == submit.max_tokens {
            Some(Finish::Limit)
        } else if submit.tokens.len() > CONTEXT {
            Some(Finish::ContextFull)
        } else {
            let mut token = next_token(&submit.tokens, submit.sampling.seed);
            if self.faults.contains(&Fault::OtherModel) {
                token += 2000;
            }
            submit.tokens.push(token);
            *produced += 1;
            self.produced += 1;
            self.steps += 1;
            let finish = submit.eog_tokens.contains(&token).then_some(Finish::Eos);
            let probs = None;
            // A millisecond each by this engine's clock, whatever the test's machine does.
            let ms = self.produced as f64;
            // And two of CPU time for each token of prompt and answer.
            let cpu_ms = Some(2.0 * submit.tokens.len() as f64);
            self.say(&FromEngine::Token {
                id,
                token,
                probs,
                mirostat_mu: None,
                draft: Draft::default(),
                ms,
                cpu_ms,
            });
            let steps = self.steps;
            self.say(&FromEngine::Heartbeat { steps });
            finish
        };
        if let Some(finish) = finish {
            self.jobs.remove(&id);
            self.say(&FromEngine::Done { id, finish });
        }
        None
    }
}

impl Mind {
    /// Two parts: the first token as a vector, then the last.
    fn embed(&mut self, embed: &Embed) -> Option<ExitKind> {
        let id = embed.id;
        let part = |token: u32| FromEngine::Embedding {
            id,
            vectors: vec![vec![token as f32, 0.5]],
        };
        self.say(&part(embed.tokens[0]));
        if self.faults.contains(&Fault::DieInEmbedding) {
            return Some(ExitKind::Signal(9));
        }
        self.say(&part(*embed.tokens.last().unwrap()));
        let finish = Finish::Limit;
        self.say(&FromEngine::Done { id, finish });
        None
    }
}

/// A function of seed, position and all tokens before, like a real engine's; every 41st value is the end.
fn next_token(tokens: &[u32], seed: u32) -> u32 {
    let hash = tokens.iter().fold(seed ^ tokens.len() as u32, |hash, &t| {
        hash.wrapping_mul(16_777_619).rotate_left(5) ^ t
    });
    if hash % 41 == 0 { EOG } else { 2 + hash % 1000 }
}

/// What an undisturbed engine says.
fn undisturbed(prompt: &[u32], seed: u32, max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() - prompt.len() < max_tokens && tokens.len() <= CONTEXT {
        let token = next_token(&tokens, seed);
        tokens.push(token);
        if token == EOG {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

struct Bench {
    broker: Broker,
    notices: UnboundedReceiver<Notice>,
    started: Arc<AtomicUsize>,
    config: BrokerConfig,
}

fn bench(
    faults: Vec<Vec<Fault>>,
    always: Vec<Fault>,
    tune: impl FnOnce(&mut BrokerConfig),
) -> Bench {
    let mut config = BrokerConfig {
        engine: EngineConfig {
            model: ModelSource::Demo,
            kernel: "i2_s".into(),
            decode_cpus: vec![0],
            prefill_cpus: vec![0],
            pin: false,
            slots: 2,
            slot_context: CONTEXT,
            prefill_batch: 8,
            kv_type: KvType::F16,
            head: HeadMode::Full,
            draft_max: 0,
            weights: WeightsHome::HugePages,
            mlock: false,
            overrides: Overrides::default(),
        },
        other_kernels: VecDeque::new(),
        model_file: None,
        canary: None,
        max_queue: 8,
        queue_timeout: None,
        context_shift: false,
        start_timeout: LONG,
        hang_timeout: Some(LONG),
        sleep_after: None,
    };
    tune(&mut config);
    let wanted = config.clone();
    let started = Arc::new(AtomicUsize::new(0));
    let script = Script {
        faults: faults.into(),
        always,
        started: Arc::clone(&started),
    };
    let (broker, unstarted) = Broker::new();
    assert_eq!(broker.state(), BackendState::Loading);
    let notices = unstarted.start(config, script).unwrap();
    broker.open();
    Bench {
        broker,
        notices,
        started,
        config: wanted,
    }
}

impl Bench {
    fn ready(&mut self) {
        wait_for(|| matches!(self.notices.try_recv(), Ok(Notice::Ready { .. })));
        wait_for(|| self.broker.state() == BackendState::Ready);
    }

    fn submit(&self, prompt: &[u32], seed: u32, max_tokens: Option<u32>) -> JobHandle {
        self.broker.submit(job(prompt, seed, max_tokens)).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.broker.stop();
    }
}

fn job(prompt: &[u32], seed: u32, max_tokens: Option<u32>) -> Job {
    Job {
        prompt: prompt.to_vec(),
        max_tokens,
        eog_tokens: vec![EOG],
        cache_prompt: true,
        slot: None,
        n_keep: 0,
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        prompt_probs: None,
        draft_max: None,
        tenure: 0,
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

struct Told {
    tokens: Vec<u32>,
    /// CPU time as of each event.
    cpu_ms: Vec<f64>,
    prefill: Vec<usize>,
    finish: Finish,
    shifted: bool,
}

fn listen(mut handle: JobHandle) -> Told {
    let (mut tokens, mut prefill, mut cpu) = (vec![], vec![], vec![]);
    loop {
        match handle.events.blocking_recv().expect("ends with Done") {
            JobEvent::Prefill {
                processed, cpu_ms, ..
            } => {
                assert!(tokens.is_empty(), "prefill after a token");
                prefill.push(processed);
                cpu.extend(cpu_ms);
            }
            JobEvent::Token { token, cpu_ms, .. } => {
                tokens.push(token);
                cpu.extend(cpu_ms);
            }
            JobEvent::PromptProbs { .. } => panic!("nobody asked how likely the prompt is"),
            JobEvent::Embedding { .. } => panic!("a generation has no vectors"),
            JobEvent::Done { finish, shifted } => {
                assert!(handle.events.blocking_recv().is_none());
                return Told {
                    cpu_ms: cpu,
                    tokens,
                    prefill,
                    finish,
                    shifted,
                };
            }
        }
    }
}

#[test]
fn jobs_run_and_end() {
    let mut bench = bench(vec![], vec![], |_| {});
    bench.ready();
    for seed in 0..20 {
        let prompt = [7, seed, 9];
        let told = listen(bench.submit(&prompt, seed, Some(12)));
        let wanted = undisturbed(&prompt, seed, 12);
        let finish = if wanted.last() == Some(&EOG) {
            Finish::Eos
        } else {
            Finish::Limit
        };
        assert_eq!((told.tokens, told.finish), (wanted, finish));
        assert_eq!(told.prefill, [0, 3]);
    }
    let counters = bench.broker.counters();
    assert!(counters.decode_steps > 0);
    assert_eq!(counters.engine_restarts, 0);
    let slots = bench.broker.slots();
    assert_eq!(slots.len(), 2);
    assert!(slots.iter().all(|slot| !slot.processing && slot.state == 0));
    assert_eq!(slots[0].prompt_tokens, 3);
}

#[test]
fn no_limit_ends_with_a_full_context() {
    let mut bench = bench(vec![], vec![], |_| {});
    bench.ready();
    for seed in 0..8 {
        let told = listen(bench.submit(&[3, 4], seed, None));
        assert_eq!(told.tokens, undisturbed(&[3, 4], seed, usize::MAX));
        if told.tokens.last() != Some(&EOG) {
            assert_eq!(told.finish, Finish::ContextFull);
        }
    }
}

#[test]
fn streams_outlive_engines() {
    let faults = vec![
        vec![Fault::DieAfter(5, 9)],
        vec![Fault::DieAfter(3, 11)],
        vec![Fault::DieAfter(0, 9)],
    ];
    let mut bench = bench(faults, vec![], |_| {});
    bench.ready();
    let handles: Vec<_> = (0..4)
        .map(|seed| (seed, bench.submit(&[5, seed], seed, Some(25))))
        .collect();
    for (seed, handle) in handles {
        let told = listen(handle);
        assert_eq!(
            told.tokens,
            undisturbed(&[5, seed], seed, 25),
            "seed {seed}"
        );
        assert_eq!(told.prefill, [0, 2], "progress is told once");
    }
    assert_eq!(bench.broker.counters().engine_restarts, 3);
    assert_eq!(bench.started.load(Ordering::SeqCst), 4);
}

#[test]
fn a_hung_engine_is_replaced() {
    let mut bench = bench(vec![vec![Fault::HangAfter(4)]], vec![], |config| {
        config.hang_timeout = Some(Duration::from_millis(400));
    });
    bench.ready();
    let told = listen(bench.submit(&[5, 6], 3, Some(20)));
    assert_eq!(told.tokens, undisturbed(&[5, 6], 3, 20));
    assert_eq!(bench.started.load(Ordering::SeqCst), 2);
}

#[test]
fn an_idle_engine_is_not_hung() {
    let mut bench = bench(vec![], vec![], |config| {
        config.hang_timeout = Some(Duration::from_millis(100));
    });
    bench.ready();
    thread::sleep(Duration::from_millis(400));
    assert_eq!(bench.started.load(Ordering::SeqCst), 1);
    let told = listen(bench.submit(&[5, 6], 3, Some(5)));
    assert_eq!(told.tokens, undisturbed(&[5, 6], 3, 5));
}

#[test]
fn a_job_that_ends_engines_fails_alone() {
    let mut bench = bench(vec![], vec![Fault::DieOn(13)], |_| {});
    bench.ready();
    let good = bench.submit(&[5], 1, Some(30));
    let bad = bench.submit(&[13], 2, Some(30));
    let later = bench.submit(&[6], 3, Some(30));
    let told = listen(bad);
    assert!(matches!(told.finish, Finish::Error(reason) if reason.contains("request")));
    assert_eq!(listen(good).tokens, undisturbed(&[5], 1, 30));
    assert_eq!(listen(later).tokens, undisturbed(&[6], 3, 30));
    assert_eq!(bench.broker.state(), BackendState::Ready);
}

#[test]
fn a_bad_model_is_final() {
    let mut bench = bench(vec![], vec![Fault::Refuse], |_| {});
    wait_for(|| matches!(bench.broker.state(), BackendState::Failed(_)));
    let notice = bench.notices.blocking_recv().unwrap();
    let Notice::Failed {
        failure,
        ever_ready,
    } = notice
    else {
        panic!("{notice:?}");
    };
    assert!(!ever_ready);
    assert_eq!(failure.reason, "cannot load `x.gguf`");
    assert_eq!(failure.hint.as_deref(), Some("look at it"));
    assert!(matches!(
        bench.broker.submit(job(&[1], 0, None)),
        Err(Refused::NotReady(BackendState::Failed(_)))
    ));
}

#[test]
fn the_queue_is_bounded() {
    let mut bench = bench(vec![vec![Fault::HangAfter(0)]], vec![], |config| {
        config.max_queue = 3;
    });
    bench.ready();
    let handles: Vec<_> = (0..5).map(|n| bench.submit(&[n], n, Some(4))).collect();
    let refused = bench.broker.submit(job(&[9], 9, None)).err();
    assert_eq!(refused, Some(Refused::QueueFull(3)));
    wait_for(|| {
        let counters = bench.broker.counters();
        (counters.processing, counters.deferred) == (2, 3)
    });
    let waiting = handles.into_iter().nth(4);
    drop(waiting);
    wait_for(|| bench.broker.submit(job(&[9], 9, None)).is_ok());
}

#[test]
fn who_waits_too_long_is_sent_away() {
    let mut bench = bench(vec![vec![Fault::HangAfter(3)]], vec![], |config| {
        config.engine.slots = 1;
        config.queue_timeout = Some(Duration::from_millis(100));
        config.hang_timeout = Some(Duration::from_millis(400));
    });
    bench.ready();
    let running = bench.submit(&[5, 6], 3, Some(20));
    let waiting = bench.submit(&[5], 1, Some(20));
    let told = listen(waiting);
    assert!(matches!(told.finish, Finish::Unserved(why) if why.contains("no slot")));
    assert!(told.prefill.is_empty());
    // What was begun waits for the next engine however long that takes.
    assert_eq!(listen(running).tokens, undisturbed(&[5, 6], 3, 20));
}

#[test]
fn a_wanted_slot_is_waited_for_and_nobody_else_waits() {
    let mut bench = bench(vec![], vec![], |config| config.engine.slots = 2);
    bench.ready();
    let wish = |seed| {
        let mut job = job(&[8], seed, Some(10));
        job.slot = Some(0);
        bench.broker.submit(job).unwrap()
    };
    let handles = [wish(1), wish(2), bench.submit(&[8], 3, Some(10))];
    for (seed, handle) in (1..).zip(handles) {
        assert_eq!(listen(handle).tokens, undisturbed(&[8], seed, 10));
    }
}

#[test]
fn dropping_cancels() {
    let mut bench = bench(vec![], vec![], |config| config.engine.slots = 1);
    bench.ready();
    let mut endless = bench.submit(&[2; 8], 5, None);
    let waiting = bench.submit(&[3], 6, Some(10));
    let _ = endless.events.blocking_recv();
    drop(endless);
    assert_eq!(listen(waiting).tokens, undisturbed(&[3], 6, 10));
    wait_for(|| bench.broker.counters().processing == 0);
    assert!(!bench.broker.slots()[0].processing);
}

#[test]
fn cpu_time_adds_up_over_engines() {
    let faults = vec![vec![Fault::DieAfter(5, 9)], vec![Fault::DieAfter(7, 9)]];
    let mut bench = bench(faults, vec![], |_| {});
    bench.ready();
    let seed = (0..).find(|&seed| undisturbed(&[3, 4], seed, 20).len() == 20);
    let told = listen(bench.submit(&[3, 4], seed.unwrap(), Some(20)));
    assert_eq!(told.cpu_ms.len(), 22);
    assert_eq!(told.cpu_ms[..3], [0.0, 4.0, 6.0]);
    assert!(told.cpu_ms.is_sorted(), "{:?}", told.cpu_ms);
    // Two tokens and 5, then those 7 as a prompt and 7, then those 14 and 8, by two milliseconds each.
    assert_eq!(told.cpu_ms[21], 2.0 * (7.0 + 14.0 + 22.0));
}

#[test]
fn the_meter_is_read_with_what_runs() {
    let mut bench = bench(vec![vec![Fault::HangAfter(0)]], vec![], |_| {});
    bench.ready();
    assert_eq!(bench.broker.energy(), None);
    let mut joules = 0.0;
    bench.broker.set_meter(Arc::new(Mutex::new(move || {
        joules += 5.0;
        joules
    })));
    assert_eq!(bench.broker.energy(), None, "idle power is not known");
    bench.broker.set_idle_watts(3.0);
    let before = bench.broker.energy().unwrap();
    let handle = bench.submit(&[1], 1, Some(4));
    let after = bench.broker.energy().unwrap();
    assert_eq!((before.joules, after.joules), (5.0, 10.0));
    assert_eq!((before.open, after.open, after.idle_w), (0, 1, 3.0));
    assert_eq!(after.accepted, before.accepted + 1);
    assert!(after.joules_since(&before).is_some());
    drop(handle);
}

#[test]
fn a_full_context_is_shifted() {
    let seed = (0..)
        .find(|&seed| undisturbed(&[3, 4], seed, usize::MAX).len() > CONTEXT - 2)
        .unwrap();
    let run = |faults: Vec<Vec<Fault>>| {
        let mut bench = bench(faults, vec![], |config| config.context_shift = true);
        bench.ready();
        let mut wanted = job(&[3, 4], seed, Some(150));
        wanted.n_keep = 1;
        wanted.eog_tokens.clear();
        listen(bench.broker.submit(wanted).unwrap())
    };
    let quiet = run(vec![]);
    assert_eq!(quiet.tokens.len(), 150);
    assert!(quiet.shifted);
    assert_eq!(quiet.finish, Finish::Limit);
    let disturbed = run(vec![
        vec![Fault::DieAfter(100, 9)],
        vec![Fault::DieAfter(7, 9)],
    ]);
    assert_eq!(disturbed.tokens, quiet.tokens);
}

#[test]
fn draining_finishes_what_runs_and_takes_nothing_new() {
    let mut bench = bench(vec![], vec![], |_| {});
    bench.ready();
    let handles: Vec<_> = (0..4).map(|n| bench.submit(&[n], n, Some(20))).collect();
    bench.broker.drain(LONG);
    assert!(matches!(
        bench.broker.submit(job(&[1], 0, None)),
        Err(Refused::NotReady(BackendState::Draining))
    ));
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(listen(handle).tokens, undisturbed(&[n], n, 20));
    }
    wait_for(|| bench.notices.try_recv() == Ok(Notice::Stopped));
}

#[test]
fn draining_has_a_deadline() {
    let mut bench = bench(vec![vec![Fault::HangAfter(3)]], vec![], |_| {});
    bench.ready();
    let handle = bench.submit(&[2], 1, Some(20));
    bench.broker.drain(Duration::from_millis(200));
    let told = listen(handle);
    assert_eq!(told.finish, Finish::Cancelled);
    wait_for(|| bench.notices.try_recv() == Ok(Notice::Stopped));
}

#[test]
fn embeddings_outlive_engines_and_come_whole() {
    let faults = vec![vec![Fault::DieInEmbedding], vec![Fault::DieOn(0)]];
    let mut bench = bench(faults, vec![], |_| {});
    bench.ready();
    let job = EmbedJob {
        tokens: vec![7, 8, 9],
        pooling: Some(Pooling::None),
        slot: None,
        tenure: 0,
    };
    let mut handle = bench.broker.embed(job).unwrap();
    let mut events = Vec::new();
    while let Some(event) = handle.events.blocking_recv() {
        events.push(event);
    }
    let [JobEvent::Prefill { total: 3, .. }, rest @ ..] = &events[..] else {
        panic!("{events:?}");
    };
    let vectors = vec![vec![7.0, 0.5], vec![9.0, 0.5]];
    let (finish, shifted) = (Finish::Limit, false);
    let wanted = [
        JobEvent::Embedding { vectors },
        JobEvent::Done { finish, shifted },
    ];
    assert_eq!(rest, wanted);
    assert_eq!(bench.broker.counters().engine_restarts, 1);
}

#[test]
fn slot_actions_are_answered_and_outlive_engines_but_for_what_is_lost() {
    let mut bench = bench(vec![vec![Fault::DieOnSlot]], vec![], |_| {});
    bench.ready();
    let ask = |slot, action| bench.broker.slot_action(slot, action).unwrap();
    let answer = |answer: oneshot::Receiver<_>| answer.blocking_recv().unwrap();
    let file = || "x".into();
    let lost = ask(0, SlotAction::Save(file()));
    let restored = ask(1, SlotAction::Restore(file()));
    let fault = answer(lost).unwrap_err();
    assert!(matches!(fault, SlotFault::Failed(reason) if reason.contains("before the slot")));
    assert_eq!(answer(restored).unwrap().n_tokens, 31);
    assert_eq!(bench.broker.slots()[1].kv_tokens, 31);
    assert_eq!(answer(ask(0, SlotAction::Save(file()))).unwrap().n_bytes, 7);
    answer(ask(1, SlotAction::Erase)).unwrap();
    assert_eq!(bench.broker.slots()[1].kv_tokens, 0);
    let fault = answer(ask(2, SlotAction::Erase)).unwrap_err();
    assert_eq!(fault, SlotFault::Refused("no such slot".into()));
}

#[test]
fn slot_actions_are_bounded_and_end_with_the_engine() {
    let mut bench = bench(vec![], vec![Fault::DieOnSlot], |_| {});
    bench.ready();
    let mut answers = Vec::new();
    let refused = loop {
        match bench.broker.slot_action(0, SlotAction::Erase) {
            Ok(answer) => answers.push(answer),
            Err(refused) => break refused,
        }
    };
    assert!(answers.len() >= MAX_CHORES);
    assert!(
        matches!(
            &refused,
            Refused::QueueFull(MAX_CHORES) | Refused::NotReady(_)
        ),
        "{refused:?}"
    );
    for answer in answers {
        let fault = answer.blocking_recv().unwrap().unwrap_err();
        assert_eq!(fault, SlotFault::Failed("there is no engine".into()));
    }
    assert!(matches!(bench.broker.state(), BackendState::Failed(_)));
}

#[test]
fn a_crash_loop_fails_the_jobs_and_says_so() {
    let mut faults = vec![vec![Fault::DieAfter(0, 9)]; 5];
    faults[0] = vec![Fault::DieAfter(1, 9)];
    let mut bench = bench(faults, vec![], |_| {});
    bench.ready();
    let told = listen(bench.submit(&[2], 1, Some(20)));
    assert_eq!(told.tokens, undisturbed(&[2], 1, 1));
    assert!(matches!(told.finish, Finish::Error(reason) if reason.contains("SIGKILL")));
    assert!(matches!(bench.broker.state(), BackendState::Failed(_)));
}

#[test]
fn engines_that_get_a_token_further_finish_the_job() {
    let mut bench = bench(vec![], vec![Fault::DieAfter(1, 9)], |_| {});
    bench.ready();
    let told = listen(bench.submit(&[2], 1, Some(12)));
    assert_eq!(told.tokens, undisturbed(&[2], 1, 12));
    assert_eq!(told.finish, Finish::Limit);
    assert!(bench.broker.counters().engine_restarts >= 11);
}

#[test]
fn an_engine_that_never_gets_ready_is_given_up() {
    let mut bench = bench(vec![], vec![Fault::DieAfter(0, 4)], |_| {});
    let Some(Notice::Failed {
        failure,
        ever_ready,
    }) = bench.notices.blocking_recv()
    else {
        panic!("no failure");
    };
    assert!(!ever_ready);
    assert!(failure.hint.unwrap().contains("--kernel"));
}

#[test]
fn tokens_that_arrive_together_keep_the_engines_times() {
    let (events, _) = unbounded_channel();
    let mut work = Work::new(1, job(&[5], 1, None), events);
    let at = [40.0, 41.5, 43.0, f64::NAN].map(|ms| work.sampled_at(ms));
    let since_first = at.map(|each| each.duration_since(at[0]).as_micros());
    assert_eq!(since_first, [0, 1500, 3000, 0]);
    work.resume();
    assert!(work.sampled_at(2.0) >= at[0]);
}

#[test]
fn late_events_of_unknown_jobs_are_ignored() {
    let mut seen = HashMap::new();
    let mut bench = bench(vec![], vec![], |_| {});
    bench.ready();
    for generation in [0, 1, 2] {
        for id in [0, 77] {
            let token = FromEngine::Token {
                id,
                token: 5,
                probs: None,
                mirostat_mu: None,
                draft: Draft::default(),
                ms: 0.0,
                cpu_ms: None,
            };
            let sent = bench
                .broker
                .inbox
                .send(Message::Frame(generation, Box::new(token)));
            seen.insert((generation, id), sent.is_ok());
        }
    }
    assert!(seen.values().all(|sent| *sent));
    let told = listen(bench.submit(&[5], 1, Some(10)));
    assert_eq!(told.tokens, undisturbed(&[5], 1, 10));
}

mod replacing;
