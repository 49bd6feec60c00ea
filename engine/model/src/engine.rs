//! The engine process: reads its configuration, loads and checks, then turns frames of submissions into frames of tokens.
//!
//! Threads: a reader (frames to commands), the scheduler with its pool (owns model, cache and slots) and a writer (events to
//! frames). Channels are bounded; a server that stops reading stops the engine. End of file on the reader ends [`run`].

use std::io::{self, Read, Write};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_kernels::{Kernel, MatrixError, Packing, ParseKernelError, SharedBytes};

use crate::facts::{FactsError, ModelFacts};
use crate::gguf::{Gguf, GgufError};
use crate::graph::{Entry, Limits, Model};
use crate::kv::{KvCache, KvError, KvShape};
use crate::os::{self, FileMap};
use crate::pool::{Pool, PoolError};
use crate::protocol::{
    EngineConfig, FromEngine, HeadMode, ModelSource, Overrides, ToEngine, WeightsHome, read_frame,
    write_frame,
};
use crate::quantised::{self, HeadError};
use crate::relocate::Relocation;
use crate::sampler::{Logits, Want};
use crate::sampler_maker::ReadTokenizer;
use crate::scheduler::{Command, Scheduler};
use crate::screening::Screening;
use crate::selftest;
use crate::slot_file::{self, Fingerprint};
use crate::tensors::TensorError;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// Commands and events that may wait for their reader.
const CHANNEL_FRAMES: usize = 1024;
/// Bytes the writer gathers before it writes although more events wait.
const WRITE_BYTES: usize = 64 << 10;
/// How long the end of [`run`] waits for the scheduler to notice; a step can take this long.
const END_WAIT: Duration = Duration::from_secs(1);
/// Most slots, and most tokens per step: guards against a configuration that can't be meant.
const MAX_SLOTS: usize = 1024;
const MAX_PREFILL_BATCH: usize = 1 << 16;
/// Guesses in a step that slots share, unless one alone may have more.
const SHARED_DRAFTS: usize = 16;

/// Why an engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A value of the configuration makes no sense.
    #[error("{0}")]
    Config(String),
    /// The kernel's name.
    #[error(transparent)]
    Kernel(#[from] ParseKernelError),
    /// No kernel computes what it should.
    #[error("no kernel passes its self-test: {0}")]
    SelfTest(String),
    /// This build carries no model.
    #[error("this binary has no demo model")]
    NoDemo,
    /// The file.
    #[error("cannot load {model}: {source}")]
    Gguf {
        /// Which one.
        model: String,
        /// Why.
        source: GgufError,
    },
    /// What it holds.
    #[error("cannot load {model}: {source}")]
    Facts {
        /// Which one.
        model: String,
        /// Why.
        source: FactsError,
    },
    /// A tensor.
    #[error("cannot load {model}: {source}")]
    Tensor {
        /// Which one.
        model: String,
        /// Why.
        source: TensorError,
    },
    /// An output head that was asked for and can't be made.
    #[error("cannot load {model}: {source}")]
    Head {
        /// Which one.
        model: String,
        /// Why.
        source: HeadError,
    },
    /// The cache.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The threads.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl LoadError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            LoadError::Gguf { source, .. } => source.hint().map(str::to_owned),
            LoadError::Facts { source, .. } => source.hint().map(str::to_owned),
            LoadError::Tensor { source, .. } => source.hint().map(str::to_owned),
            LoadError::Head { source, .. } => Some(source.hint()),
            LoadError::Kv(_) => Some("use fewer slots or a smaller context".to_owned()),
            _ => None,
        }
    }
}

/// Why [`run`] ended before its input did.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The other side broke the protocol or went away in the middle of a frame.
    #[error("the control stream is broken: {0}")]
    Control(#[from] io::Error),
    /// The first frame is something else.
    #[error("the first frame must be `start`")]
    NoStart,
    /// Reported to the server as `Failed`.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A thread panicked; the panic is on stderr.
    #[error("the {0} thread died")]
    Died(&'static str),
}

/// A loaded model with its cache: forward passes without a scheduler, for benchmarks, tests and the scheduler itself.
pub struct Engine {
    facts: ModelFacts,
    kernel: Kernel,
    model: Model,
    kv: KvCache,
    prefill_batch: usize,
    draft_max: usize,
    drafts_per_step: usize,
    /// The model file, if one is mapped.
    map: Option<FileMap>,
    mlock: bool,
    fingerprint: Fingerprint,
    /// Header and bytes, for the tokenizer.
    gguf: Gguf,
    overrides: Overrides,
}

impl Engine {
    /// Loads as `config` says; the calling thread becomes the first of the pool. `demo` gives the embedded model.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        config: &EngineConfig,
        demo: impl FnOnce() -> Option<SharedBytes>,
    ) -> Result<Self, LoadError> {
        Engine::load_to_score(config, demo, config.slots)
    }

    /// The same, with room for `n_logits` logits in one pass, so that a text can be scored faster than it is generated.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load_to_score(
        config: &EngineConfig,
        demo: impl FnOnce() -> Option<SharedBytes>,
        n_logits: usize,
    ) -> Result<Self, LoadError> {
        check(config)?;
        let wanted = selftest::choose(config.kernel.parse()?).map_err(LoadError::SelfTest)?;
        let model = name_of(&config.model);
        let gguf = open(config, demo)?;
        let facts =
            ModelFacts::read(&gguf, &config.overrides).map_err(|source| LoadError::Facts {
                model: model.clone(),
                source,
            })?;
        let fingerprint = slot_file::fingerprint(&gguf, &facts);
        let failed = |source| LoadError::Tensor {
            model: model.clone(),
            source,
        };
        let n_threads = config.prefill_cpus.len();
        let repack = |weights: &mut Weights| weights.repack(wanted.packing(), n_threads);
        let (kernel, mut weights) = load_weights(&gguf, &facts, wanted, repack).map_err(failed)?;
        let kernel = match kernel == wanted {
            true => kernel,
            false => selftest::choose(kernel).map_err(LoadError::SelfTest)?,
        };
        if kernel.packing() != Packing::I2S
            && let Some(map) = gguf.map()
        {
            // What the copies were made from is not read again.
            map.release_all();
        }
        let mut pool = Pool::new(&workers(config), config.pin)?;
        let head = quantised::target(&facts, config.head);
        let quantised = head.and_then(|head| match head {
            Some(ty) => quantised::replace(&mut weights.head, ty, kernel, &mut pool, gguf.map()),
            None => Ok(()),
        });
        quantised.map_err(|source| LoadError::Head { model, source })?;
        if config.mlock
            && let Err(error) = weights.lock_in_memory()
        {
            tracing::warn!(%error, "the weights can't be locked in memory; `ulimit -l` shows the limit");
        }
        let kv = KvCache::new(KvShape {
            n_slots: config.slots,
            context: config.slot_context,
            n_layer: facts.n_layer,
            n_head_kv: facts.n_head_kv,
            head_dim: facts.head_dim,
            kv_type: config.kv_type,
        })?;
        let drafts = drafts_per_step(config);
        let limits = Limits {
            batch: config.prefill_batch + config.slots + drafts,
            logits: n_logits.max(config.slots + drafts),
            context: config.slot_context,
            decode_batch: config.slots + drafts,
            decode_workers: config.decode_cpus.len(),
        };
        let screening = Screening::new(&weights.head, config.head, config.slots + drafts);
        let map = gguf.map().cloned();
        let relocation = match config.weights {
            WeightsHome::HugePages => Some(Relocation::new(map.clone(), &weights)),
            WeightsHome::Mapped | WeightsHome::Copied => None,
        };
        let mut model = Model::new(&facts, weights, kernel, pool, limits);
        model.set_screening(screening);
        model.set_relocation(relocation);
        model.set_map(map.clone().filter(|_| !config.mlock));
        Ok(Engine {
            model,
            map,
            mlock: config.mlock,
            fingerprint,
            facts,
            kernel,
            kv,
            prefill_batch: config.prefill_batch,
            draft_max: config.draft_max,
            drafts_per_step: drafts,
            gguf,
            overrides: config.overrides.clone(),
        })
    }

    /// What the file says.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// Reads the tokenizer when it is called: few generations need it here.
    pub(crate) fn tokenizer_reader(&self) -> ReadTokenizer {
        let (gguf, overrides) = (self.gguf.clone(), self.overrides.clone());
        Box::new(move || Tokenizer::from_gguf(&gguf, &overrides).map_err(|error| error.to_string()))
    }

    /// The kernel that passed its self-test.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The forward pass.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The cache.
    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    /// The cache, to forget tokens.
    pub fn kv_mut(&mut self) -> &mut KvCache {
        &mut self.kv
    }

    /// Both, to compute.
    pub fn parts(&mut self) -> (&mut Model, &mut KvCache) {
        (&mut self.model, &mut self.kv)
    }

    /// Tells this model's keys and values from those of others.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Sequences.
    pub fn n_slots(&self) -> usize {
        self.kv.shape().n_slots
    }

    /// Tokens per slot.
    pub fn context(&self) -> usize {
        self.kv.shape().context
    }

    /// Most prompt tokens in a step.
    pub fn prefill_batch(&self) -> usize {
        self.prefill_batch
    }

    /// Most tokens guessed ahead in a slot.
    pub fn draft_max(&self) -> usize {
        self.draft_max
    }

    /// Most tokens guessed ahead in a step, of all slots.
    pub fn drafts_per_step(&self) -> usize {
        self.drafts_per_step
    }

    /// One forward pass: `[n_wanted, n_vocab]` logits.
    ///
    /// # Panics
    /// As [`Model::forward`].
    pub fn forward(&mut self, batch: &[Entry]) -> &mut [f32] {
        self.model.forward(batch, &mut self.kv, || {})
    }

    /// One forward pass with no more logits than wanted.
    ///
    /// # Panics
    /// As [`Model::forward_for`].
    pub fn forward_for<'a>(
        &'a mut self,
        batch: &[Entry],
        wants: &[Want<'_>],
    ) -> impl Iterator<Item = Logits<'a>> + use<'a> {
        self.model.forward_for(batch, wants, &mut self.kv, || {});
        self.model.logits()
    }

    /// Finds the best tokens by another mode from now on, if the output head was loaded to be screened.
    pub fn set_head(&mut self, mode: HeadMode) {
        self.model.set_head(mode);
    }

    /// Gives memory back that is needed again only when there is work.
    pub fn rest(&mut self) {
        self.model.rest();
    }

    /// Whether [`Engine::prepare`] has something to do.
    pub fn is_unprepared(&self) -> bool {
        self.model.is_screening_unmade() || self.model.is_relocating()
    }

    /// Works for about `time` on what makes later steps faster: copies of the output head, then weights in huge pages.
    /// Changes no result.
    pub fn prepare(&mut self, time: Duration) {
        let began = Instant::now();
        if self.model.is_screening_unmade() {
            self.model.make_screening(time);
            if !self.model.is_screening_unmade() {
                self.head_is_screened();
            }
        }
        if !self.model.is_screening_unmade() && self.model.is_relocating() {
            self.model.relocate(time.saturating_sub(began.elapsed()));
            if !self.model.is_relocating() {
                self.weights_are_moved();
            }
        }
    }

    fn head_is_screened(&self) {
        tracing::info!("the output head is screened from now on");
        let Some(screening) = self.model.screening() else {
            return;
        };
        if self.mlock {
            let copies = screening.planes().map(os::lock_in_memory);
            if let Err(error) = copies.into_iter().collect::<io::Result<()>>() {
                tracing::warn!(%error, "the copies of the output head can't be locked in memory");
            }
        } else if let Some(map) = &self.map {
            // All of the head was read for the copies; few of its rows are needed from now on.
            map.release(self.model.weights().head.bytes());
        }
    }

    fn weights_are_moved(&self) {
        tracing::info!("the weights lie in huge pages from now on");
        if self.mlock
            && let Err(error) = self.model.weights().lock_in_memory()
        {
            tracing::warn!(%error, "the moved weights can't be locked in memory");
        }
    }

    /// A cautious guess, until the first prompt has been measured: 30 G multiply-adds a second for each thread.
    pub fn expected_prefill_tok_s(&self) -> f64 {
        30e9 * self.model.n_workers() as f64 / (self.facts.n_params.max(1)) as f64
    }
}

/// The weights in the packing of `kernel`. When there is no memory for `repack`: in I2_S, with the best kernel for that.
fn load_weights(
    gguf: &Gguf,
    facts: &ModelFacts,
    kernel: Kernel,
    repack: impl FnOnce(&mut Weights) -> Result<(), TensorError>,
) -> Result<(Kernel, Weights), TensorError> {
    let mut weights = Weights::load(gguf, facts)?;
    let packing = kernel.packing();
    if packing == Packing::I2S {
        return Ok((kernel, weights));
    }
    let began = Instant::now();
    let mb = facts.ternary_bytes(packing).div_ceil(1 << 20);
    match repack(&mut weights) {
        Ok(()) => {
            let ms = began.elapsed().as_secs_f64() * 1000.0;
            tracing::info!(%packing, mb, ms, "weights repacked");
            Ok((kernel, weights))
        }
        Err(TensorError::Matrix {
            source: MatrixError::OutOfMemory { .. },
            ..
        }) => {
            let best = Kernel::best();
            tracing::warn!(
                "no memory for {mb} MB of weights in {packing}; `{best}` is used in its place, with the same results"
            );
            Ok((best, Weights::load(gguf, facts)?))
        }
        Err(error) => Err(error),
    }
}

fn check(config: &EngineConfig) -> Result<(), LoadError> {
    let bounds = [
        ("slots", config.slots, MAX_SLOTS),
        ("slot_context", config.slot_context, u32::MAX as usize),
        ("prefill_batch", config.prefill_batch, MAX_PREFILL_BATCH),
        ("draft_max", config.draft_max.max(1), MAX_SLOTS),
        ("decode_cpus", config.decode_cpus.len(), MAX_SLOTS),
        ("prefill_cpus", config.prefill_cpus.len(), MAX_SLOTS),
    ];
    match bounds
        .into_iter()
        .find(|(_, found, most)| !(1..=*most).contains(found))
    {
        Some((name, found, most)) => Err(LoadError::Config(format!(
            "`{name}` is {found}, expected 1 to {most}"
        ))),
        None => Ok(()),
    }
}

/// Slots share them: more would make a step too long to be worth it.
fn drafts_per_step(config: &EngineConfig) -> usize {
    let all = config.draft_max * config.slots;
    all.min(config.draft_max.max(SHARED_DRAFTS))
}

/// CPUs of the pool: those of decode first, because decode uses the first workers.
fn workers(config: &EngineConfig) -> Vec<usize> {
    let mut cpus = config.decode_cpus.clone();
    // As many as asked for, also when the same CPU is named more than once.
    let others = config
        .prefill_cpus
        .iter()
        .filter(|cpu| !config.decode_cpus.contains(cpu));
    cpus.extend(others);
    if cpus.len() < config.prefill_cpus.len() {
        cpus = config.prefill_cpus.clone();
    }
    cpus
}

fn name_of(model: &ModelSource) -> String {
    match model {
        ModelSource::File(path) => format!("`{}`", path.display()),
        ModelSource::Demo => "the demo model".to_owned(),
    }
}

fn open(
    config: &EngineConfig,
    demo: impl FnOnce() -> Option<SharedBytes>,
) -> Result<Gguf, LoadError> {
    let failed = |source| LoadError::Gguf {
        model: name_of(&config.model),
        source,
    };
    let gguf = match &config.model {
        ModelSource::File(path) if config.weights == WeightsHome::Copied => Gguf::read(path),
        ModelSource::File(path) => Gguf::open(path),
        ModelSource::Demo => Gguf::from_bytes(demo().ok_or(LoadError::NoDemo)?),
    };
    let keys = &config.overrides.keys;
    gguf.and_then(|gguf| gguf.with_keys(keys)).map_err(failed)
}

/// Serves one server process: `start` is answered by `ready` or `failed`, then submissions by their events, until end of
/// file. `demo` gives the embedded model; `confine` is called on the calling thread once it is known what is to be loaded,
/// before anything of it is read and before other threads are started.
///
/// # Errors
/// [`RunError`]; a load error has been sent as `failed` before.
pub fn run(
    mut reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    demo: fn() -> Option<SharedBytes>,
    confine: impl FnOnce(&EngineConfig),
) -> Result<(), RunError> {
    let config = match read_frame(&mut reader)? {
        None => return Ok(()),
        Some(ToEngine::Start(config)) => *config,
        Some(_) => return Err(RunError::NoStart),
    };
    confine(&config);
    let (commands, inbox) = mpsc::sync_channel(CHANNEL_FRAMES);
    let (events, outbox) = mpsc::sync_channel(CHANNEL_FRAMES);
    let (ends, end) = mpsc::channel();
    let spawn = |name: &'static str, work: Box<dyn FnOnce() -> Result<(), RunError> + Send>| {
        let ends = Reports {
            name,
            ends: ends.clone(),
            result: None,
        };
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut ends = ends;
            ends.result = Some(work());
        })
    };
    let writer = spawn("writer", Box::new(move || write_events(writer, &outbox)))?;
    spawn("reader", Box::new(move || read_commands(reader, &commands)))?;
    spawn(
        "scheduler",
        Box::new(move || serve(&config, demo, &inbox, events)),
    )?;
    drop(ends);

    loop {
        match end.recv() {
            // The scheduler has dropped its end of the events; its own result follows.
            Ok(("writer", Ok(()))) => {}
            // End of file: let the scheduler finish its step, but don't insist.
            Ok(("reader", Ok(()))) => {
                let _ = end.recv_timeout(END_WAIT);
                return Ok(());
            }
            Ok((_, result)) => {
                // The last events, `failed` among them, are on their way.
                let began = Instant::now();
                while !writer.is_finished() && began.elapsed() < END_WAIT {
                    thread::sleep(Duration::from_millis(1));
                }
                return result;
            }
            Err(_) => return Ok(()),
        }
    }
}

/// Tells [`run`] that a thread has ended, also when it panics.
struct Reports {
    name: &'static str,
    ends: mpsc::Sender<(&'static str, Result<(), RunError>)>,
    result: Option<Result<(), RunError>>,
}

impl Drop for Reports {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or(Err(RunError::Died(self.name)));
        // Nobody listens any more when `run` has returned.
        let _ = self.ends.send((self.name, result));
    }
}

fn read_commands(mut reader: impl Read, commands: &SyncSender<Command>) -> Result<(), RunError> {
    while let Some(frame) = read_frame(&mut reader)? {
        let command = match frame {
            ToEngine::Submit(submit) => Command::Submit(submit),
            ToEngine::Embed(embed) => Command::Embed(embed),
            ToEngine::Cancel { id } => Command::Cancel(id),
            ToEngine::Slot { id, slot, action } => Command::Slot { id, slot, action },
            ToEngine::Start(_) => {
                tracing::warn!("a second `start` frame is ignored");
                continue;
            }
        };
        if commands.send(command).is_err() {
            break;
        }
    }
    Ok(())
}

/// Writes events as they come; those that wait together go out together.
fn write_events(mut writer: impl Write, events: &Receiver<FromEngine>) -> Result<(), RunError> {
    let mut bytes = Vec::with_capacity(WRITE_BYTES);
    while let Ok(event) = events.recv() {
        write_frame(&mut bytes, &event)?;
        while bytes.len() < WRITE_BYTES {
            let Ok(event) = events.try_recv() else { break };
            write_frame(&mut bytes, &event)?;
        }
        writer.write_all(&bytes)?;
        writer.flush()?;
        bytes.clear();
    }
    Ok(())
}

fn serve(
    config: &EngineConfig,
    demo: fn() -> Option<SharedBytes>,
    commands: &Receiver<Command>,
    events: SyncSender<FromEngine>,
) -> Result<(), RunError> {
    let began = Instant::now();
    // A send fails when the writer is gone: then the stream is broken and `run` is ending.
    let send = move |event| {
        let _ = events.send(event);
    };
    let engine = match Engine::load(config, demo) {
        Ok(engine) => engine,
        Err(error) => {
            let (message, hint) = (error.to_string(), error.hint());
            send(FromEngine::Failed { message, hint });
            return Err(error.into());
        }
    };
    let load_ms = began.elapsed().as_secs_f64() * 1000.0;
    tracing::info!(kernel = %engine.kernel(), load_ms, "engine ready");
    send(FromEngine::Ready { load_ms });
    Scheduler::new(engine, send).run(commands);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{KvType, Overrides};
    use crate::synth::{self, Shape};

    fn tiny() -> (Gguf, ModelFacts) {
        let bytes = synth::to_bytes(&Shape::preset("tiny").unwrap(), 3).unwrap();
        let gguf = Gguf::from_bytes(SharedBytes::new(bytes)).unwrap();
        let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
        (gguf, facts)
    }

    fn packings(weights: &Weights) -> Vec<Packing> {
        let layers = weights.layers.iter();
        let matrices = layers.flat_map(|layer| [&layer.q, &layer.v, &layer.down]);
        matrices.map(|it| it.matrix.packing()).collect()
    }

    #[test]
    fn weights_take_the_packing_of_the_kernel() {
        let (gguf, facts) = tiny();
        for kernel in Kernel::available() {
            let packing = kernel.packing();
            for n_threads in [1, 2, 64] {
                let repack = |weights: &mut Weights| weights.repack(packing, n_threads);
                let (used, weights) = load_weights(&gguf, &facts, kernel, repack).unwrap();
                assert_eq!(used, kernel);
                assert!(packings(&weights).iter().all(|it| *it == packing));
            }
        }
    }

    #[test]
    fn without_memory_for_a_copy_i2_s_is_used() {
        let (gguf, facts) = tiny();
        let refuse = |weights: &mut Weights| {
            weights.repack(Packing::Tl1, 1)?;
            Err(TensorError::Matrix {
                name: "blk.0.attn_q.weight".to_owned(),
                source: MatrixError::OutOfMemory { bytes: 1 },
            })
        };
        let tl1 = "tl1".parse().unwrap();
        let (used, weights) = load_weights(&gguf, &facts, tl1, refuse).unwrap();
        assert_eq!(used, Kernel::best());
        assert!(packings(&weights).iter().all(|it| *it == Packing::I2S));
    }

    #[test]
    fn a_tensor_that_a_packing_cannot_hold_is_named() {
        let shape = Shape::preset("tiny").unwrap();
        let mut bytes = synth::to_bytes(&shape, 3).unwrap();
        let gguf = Gguf::from_bytes(SharedBytes::new(bytes.clone())).unwrap();
        let name = "blk.1.ffn_up.weight";
        bytes[gguf.tensor(name).unwrap().offset as usize] |= 0b11;
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), &bytes).unwrap();
        let config = |kernel: &str| EngineConfig {
            model: ModelSource::File(path.path().to_owned()),
            kernel: kernel.to_owned(),
            decode_cpus: vec![0],
            prefill_cpus: vec![0],
            pin: false,
            slots: 1,
            slot_context: 16,
            prefill_batch: 4,
            kv_type: KvType::F16,
            weights: WeightsHome::HugePages,
            mlock: false,
            head: HeadMode::Full,
            draft_max: 0,
            overrides: Overrides::default(),
        };
        assert!(Engine::load(&config("i2_s"), || None).is_ok());
        let error = Engine::load(&config("tl2"), || None).err().unwrap();
        let message = error.to_string();
        let expected = format!(
            "tensor `{name}`: row 0, column 96 holds the code 3, which only i2_s can carry"
        );
        assert!(message.ends_with(&expected), "{message}");
        assert!(error.hint().unwrap().contains("`--kernel i2_s`"));
    }
}
