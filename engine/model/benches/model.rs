//! Decode and prefill speed of a model file, next to how fast this machine reads the same bytes.
//!
//!     cargo bench -p bitnet-model --bench model -- FILE [KERNEL] [mapped|batch]
//!
//! Medians of several runs, with the smallest and the largest; threads are bound to CPUs. Decode: one sequence, tokens 64
//! to 95, by turns with the full output head and with the screened one. Prefill: prompts of 512 tokens (fewer for a smaller context). Bandwidth: the embedding's pages, summed.
//!
//! With `batch` in place of `mapped`: steps of 1, 2, 4 and 8 sequences by turns, in tokens per second and in milliseconds of CPU time per
//! step, which on one thread is what the step takes on a machine that does nothing else.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitnet_kernels::probe::read_all;
use bitnet_model::engine::Engine;
use bitnet_model::gguf::Gguf;
use bitnet_model::graph::Entry;
use bitnet_model::pool::Pool;
use bitnet_model::protocol::{EngineConfig, HeadMode, KvType, ModelSource, Overrides, WeightsHome};
use bitnet_model::sampler::{Logits, Want};
use nix::time::{ClockId, clock_gettime};

const RUNS: usize = 5;
const CONTEXT: usize = 1024;
const PREFILL: usize = 512;
const DECODE: std::ops::Range<usize> = 64..96;
/// Sequences of a step.
const BATCHES: [usize; 4] = [1, 2, 4, 8];

fn main() {
    // Cargo passes `--bench`, too.
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"));
    let Some(file) = arguments.next().map(PathBuf::from) else {
        println!("skipped: no model file was given (`cargo bench -p bitnet-model -- FILE`)");
        return;
    };
    let kernel = arguments.next().unwrap_or_else(|| "i2_s".to_owned());
    let what = arguments.next();
    let home = match what.as_deref() {
        Some("mapped") => WeightsHome::Mapped,
        _ => WeightsHome::HugePages,
    };
    let cpus: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .iter()
        .map(|core| core.id)
        .collect();
    if what.as_deref() == Some("batch") {
        println!("threads  sequences  tok/s, all together    CPU ms per step");
        for n_threads in [1, 2].into_iter().filter(|&n| n <= cpus.len()) {
            let cpus = &cpus[..n_threads];
            on_its_own_thread(|| measure_batches(&config(&file, &kernel, home, cpus)));
        }
        return;
    }
    println!(
        "threads  load ms  copies ms  decode tok/s, full   exact                ratio                proven               prefill tok/s        read GB/s            full, exact read GB/s"
    );
    for n_threads in [1, 2].into_iter().filter(|&n| n <= cpus.len()) {
        let cpus = &cpus[..n_threads];
        let bandwidth = on_its_own_thread(|| bandwidth(&file, cpus));
        on_its_own_thread(|| measure(&config(&file, &kernel, home, cpus), &bandwidth));
    }
}

/// Measuring binds the thread it runs on, for good.
fn on_its_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().expect("measuring does not panic"))
}

fn load(config: &EngineConfig) -> Engine {
    Engine::load(config, || None).unwrap_or_else(|error| {
        println!("error: {error}");
        std::process::exit(1);
    })
}

/// Steps of several sequences, with the screened head.
fn measure_batches(config: &EngineConfig) {
    let mut config = config.clone();
    config.slots = BATCHES[BATCHES.len() - 1];
    let mut engine = load(&config);
    engine.prepare(Duration::MAX);
    let n_vocab = engine.model().n_vocab();
    for slot in 0..config.slots {
        let entry = |i: usize| Entry {
            slot,
            token: ((i + 31 * slot) * 7919 % n_vocab) as u32,
            wants_logits: false,
        };
        let batch: Vec<Entry> = (0..DECODE.start).map(entry).collect();
        engine.forward(&batch);
    }
    let mut rates = BATCHES.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..RUNS {
        for (n, (speeds, costs)) in BATCHES.into_iter().zip(&mut rates) {
            for slot in 0..n {
                engine.kv_mut().truncate(slot, DECODE.start);
            }
            let (began, cpu) = (Instant::now(), cpu_ms());
            for i in DECODE {
                let entry = |slot: usize| Entry {
                    slot,
                    token: ((i + 17 * slot) * 104_729 % n_vocab) as u32,
                    wants_logits: true,
                };
                let batch: Vec<Entry> = (0..n).map(entry).collect();
                let wants = vec![Want::Best { k: 40, also: &[] }; n];
                let logits: Vec<Logits<'_>> = engine.forward_for(&batch, &wants).collect();
                black_box(logits);
            }
            speeds.push((n * DECODE.len()) as f64 / began.elapsed().as_secs_f64());
            costs.push((cpu_ms() - cpu) / DECODE.len() as f64);
        }
    }
    for (n, (speeds, costs)) in BATCHES.into_iter().zip(rates) {
        let (speeds, costs) = (Spread::from(speeds), Spread::from(costs));
        let n_threads = config.decode_cpus.len();
        println!("{n_threads:7}  {n:9}  {speeds:21}  {costs:19}");
    }
}

/// CPU time of this process so far.
fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("there is such a clock");
    time.tv_sec() as f64 * 1e3 + time.tv_nsec() as f64 / 1e6
}

fn measure(config: &EngineConfig, bandwidth: &Spread) {
    let began = Instant::now();
    let mut engine = load(config);
    let load_ms = began.elapsed().as_secs_f64() * 1000.0;
    let began = Instant::now();
    engine.prepare(Duration::MAX);
    let copies_ms = began.elapsed().as_secs_f64() * 1000.0;
    let n_prefill = PREFILL.min(engine.facts().context_length);
    fill(&mut engine, DECODE.start);
    let prefill = Spread::of(|| {
        engine.kv_mut().truncate(0, 0);
        n_prefill as f64 / fill(&mut engine, n_prefill)
    });
    let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (head, speeds) in [HeadMode::Full, HeadMode::Exact, HeadMode::Proven]
            .into_iter()
            .zip(&mut speeds)
        {
            engine.kv_mut().truncate(0, DECODE.start);
            engine.set_head(head);
            speeds.push(DECODE.len() as f64 / decode(&mut engine));
        }
    }
    let ratio = Spread::from(
        speeds[1]
            .iter()
            .zip(&speeds[0])
            .map(|(a, b)| a / b)
            .collect(),
    );
    let [full, exact, proven] = speeds.map(Spread::from);
    let facts = engine.facts();
    let reads = |speed: &Spread, head_bytes: u64| {
        speed.median * (facts.weight_bytes + head_bytes) as f64 / 1e9
    };
    let plane_bytes = (facts.n_vocab * facts.n_embd / 2) as u64;
    println!(
        "{:7}  {load_ms:7.0}  {copies_ms:9.0}  {full:19}  {exact:19}  {ratio:19.2}  {proven:19}  {prefill:19}  {bandwidth:19}  {:.1}, {:.1}",
        config.decode_cpus.len(),
        reads(&full, facts.head_bytes),
        reads(&exact, plane_bytes),
    );
}

fn config(file: &Path, kernel: &str, home: WeightsHome, cpus: &[usize]) -> EngineConfig {
    EngineConfig {
        model: ModelSource::File(file.to_owned()),
        kernel: kernel.to_owned(),
        decode_cpus: cpus.to_vec(),
        prefill_cpus: cpus.to_vec(),
        pin: true,
        slots: 1,
        slot_context: CONTEXT,
        prefill_batch: PREFILL,
        kv_type: KvType::F16,
        head: HeadMode::Exact,
        draft_max: 0,
        weights: home,
        mlock: false,
        overrides: Overrides::default(),
    }
}

/// Evaluates a prompt of `n` tokens; seconds.
fn fill(engine: &mut Engine, n: usize) -> f64 {
    let n_vocab = engine.model().n_vocab() as u32;
    let token = |i: usize| (i as u32 * 7919) % n_vocab;
    let entry = |i: usize| Entry {
        slot: 0,
        token: token(i),
        wants_logits: i + 1 == n,
    };
    let batch: Vec<Entry> = (0..n).map(entry).collect();
    let began = Instant::now();
    black_box(engine.forward(&batch));
    began.elapsed().as_secs_f64()
}

/// Seconds for the tokens of `DECODE`.
fn decode(engine: &mut Engine) -> f64 {
    let began = Instant::now();
    for i in DECODE {
        let token = (i % engine.model().n_vocab()) as u32;
        let entry = Entry {
            slot: 0,
            token,
            wants_logits: true,
        };
        let want = Want::Best { k: 40, also: &[] };
        let logits: Vec<Logits<'_>> = engine.forward_for(&[entry], &[want]).collect();
        black_box(logits);
    }
    began.elapsed().as_secs_f64()
}

/// GB/s of reading the token embedding, half of it per thread and so on.
fn bandwidth(file: &Path, cpus: &[usize]) -> Spread {
    let gguf = Gguf::open(file).unwrap_or_else(|error| panic!("{error}"));
    let embedding = gguf
        .tensor("token_embd.weight")
        .expect("a model has an embedding");
    let bytes = gguf.data(embedding);
    let mut pool = Pool::new(cpus, true).expect("the system named these CPUs");
    let share = bytes.len().div_ceil(cpus.len());
    Spread::of(|| {
        let began = Instant::now();
        pool.run(cpus.len(), &|worker| {
            let end = bytes.len().min((worker + 1) * share);
            black_box(read_all(&bytes[worker * share..end]));
        });
        bytes.len() as f64 / began.elapsed().as_secs_f64() / 1e9
    })
}

struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut run: impl FnMut() -> f64) -> Self {
        Spread::from((0..RUNS).map(|_| run()).collect())
    }

    fn from(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Spread {
            median: values[RUNS / 2],
            least: values[0],
            most: values[RUNS - 1],
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Spread {
            median,
            least,
            most,
        } = self;
        let text = format!("{median:.digits$} ({least:.digits$}-{most:.digits$})");
        write!(f, "{text:width$}", width = f.width().unwrap_or(0))
    }
}
