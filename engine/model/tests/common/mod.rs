//! Engines for tests: small models from the generator, small configurations, a scheduler whose events are kept.
// Each test binary uses its share of this.
#![allow(dead_code)]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bitnet_model::engine::Engine;
use bitnet_model::protocol::{
    Carried, Embed, EngineConfig, Finish, FromEngine, HeadMode, KvType, ModelSource, Overrides,
    Pooling, SamplingParams, SlotAction, SlotFault, SlotReport, Submit, TokenProbs, WeightsHome,
};
use bitnet_model::scheduler::{Command, Scheduler};
use bitnet_model::synth::{Shape, write};

/// A file of `tests/data`.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A generated model of a preset, in `directory`.
pub(crate) fn model(directory: &Path, preset: &str) -> PathBuf {
    let path = directory.join(format!("{preset}.gguf"));
    let shape = Shape::preset(preset).expect("the preset exists");
    write(&shape, 7, &path, &mut |_, _| {}).expect("the model is written");
    path
}

/// One slot, one thread, everything else small.
pub(crate) fn config(model: &Path) -> EngineConfig {
    EngineConfig {
        model: ModelSource::File(model.to_owned()),
        kernel: "i2_s".to_owned(),
        decode_cpus: vec![0],
        prefill_cpus: vec![0],
        pin: false,
        slots: 1,
        slot_context: 128,
        prefill_batch: 32,
        kv_type: KvType::F16,
        head: HeadMode::Full,
        draft_max: 0,
        weights: WeightsHome::HugePages,
        mlock: false,
        overrides: Overrides::default(),
    }
}

/// Loads, or fails the test with the reason.
pub(crate) fn load(config: &EngineConfig) -> Engine {
    Engine::load(config, || None).unwrap_or_else(|error| panic!("{error}"))
}

/// Samples from the whole chain, 12 tokens.
pub(crate) fn submit(id: u64, tokens: &[u32]) -> Submit {
    Submit {
        id,
        tokens: tokens.to_vec(),
        max_tokens: 12,
        eog_tokens: Vec::new(),
        cache_prompt: true,
        slot: None,
        sampling: SamplingParams {
            seed: 40 + id as u32,
            n_probs: 2,
            repeat_penalty: 1.1,
            ..SamplingParams::default()
        },
        carried: Carried::default(),
        prompt_probs: None,
        draft_max: None,
    }
}

/// Tokens from a seed, below 256.
pub(crate) fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (seed.wrapping_mul(97).wrapping_add(i * i * 31 + i * 7)) % 256)
        .collect()
}

/// Makes the embedding of one token NaN: all bits set, whatever the float type.
pub(crate) fn poison_embedding(path: &Path, token: u32) {
    let gguf = bitnet_model::gguf::Gguf::open(path).unwrap();
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    let row_bytes = (embedding.bytes / embedding.rows()) as usize;
    let start = embedding.offset as usize + token as usize * row_bytes;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[start..start + row_bytes].fill(0xff);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// What one generation produced.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) slot: Option<usize>,
    pub(crate) cached: usize,
    /// `processed` of each prefill event.
    pub(crate) progress: Vec<usize>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) probs: Vec<Option<TokenProbs>>,
    pub(crate) finish: Option<Finish>,
}

/// How a prompt was divided depends on how long steps took.
impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        (self.slot, self.cached, &self.finish) == (other.slot, other.cached, &other.finish)
            && (&self.tokens, &self.probs) == (&other.tokens, &other.probs)
    }
}

type Events = Rc<RefCell<Vec<FromEngine>>>;

/// A scheduler and the events it sent.
pub(crate) struct Run {
    pub(crate) scheduler: Scheduler<Box<dyn FnMut(FromEngine)>>,
    pub(crate) events: Events,
}

impl Run {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        Run::of(load(config))
    }

    pub(crate) fn of(engine: Engine) -> Self {
        let events = Events::default();
        let sink = Rc::clone(&events);
        let send: Box<dyn FnMut(FromEngine)> = Box::new(move |event| sink.borrow_mut().push(event));
        Run {
            scheduler: Scheduler::new(engine, send),
            events,
        }
    }

    pub(crate) fn submit(&mut self, submit: Submit) {
        self.scheduler.handle(Command::Submit(Box::new(submit)));
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        self.scheduler.handle(Command::Cancel(id));
    }

    /// Does a slot action, and what else there is to do.
    pub(crate) fn act(&mut self, slot: usize, action: SlotAction) -> Result<SlotReport, SlotFault> {
        self.events.borrow_mut().clear();
        self.scheduler.handle(Command::Slot {
            id: 7,
            slot,
            action,
        });
        self.finish();
        let events = self.events.borrow();
        let answer = events.iter().find_map(|event| match event {
            FromEngine::Slot { id: 7, result } => Some(result.clone()),
            _ => None,
        });
        answer.expect("every action is answered")
    }

    /// Steps until nothing is left to do.
    pub(crate) fn finish(&mut self) {
        while self.scheduler.has_work() {
            self.scheduler.step();
        }
    }

    /// Job and its CPU time, in the order of events.
    pub(crate) fn cpu_ms(&self) -> Vec<(u64, f64)> {
        let events = self.events.borrow();
        let told = events.iter().filter_map(|event| match event {
            FromEngine::Prefill { id, cpu_ms, .. } | FromEngine::Token { id, cpu_ms, .. } => {
                Some((*id, cpu_ms.expect("this system tells CPU time")))
            }
            _ => None,
        });
        told.collect()
    }

    /// Submits, finishes, and tells what came of it.
    pub(crate) fn generate(&mut self, job: Submit) -> Outcome {
        let id = job.id;
        self.events.borrow_mut().clear();
        self.submit(job);
        self.finish();
        self.outcome(id)
    }

    /// All that happened to one generation; checks the order of events.
    pub(crate) fn outcome(&self, wanted: u64) -> Outcome {
        let mut outcome = Outcome::default();
        for event in &*self.events.borrow() {
            match event {
                FromEngine::Prefill {
                    id,
                    slot,
                    cached,
                    processed,
                    ..
                } if *id == wanted => {
                    assert!(outcome.tokens.is_empty() && outcome.finish.is_none());
                    if outcome.slot.is_none() {
                        assert_eq!(processed, cached, "the first event comes before any work");
                    }
                    (outcome.slot, outcome.cached) = (Some(*slot), *cached);
                    outcome.progress.push(*processed);
                }
                FromEngine::Token {
                    id, token, probs, ..
                } if *id == wanted => {
                    assert!(outcome.slot.is_some() && outcome.finish.is_none());
                    outcome.tokens.push(*token);
                    outcome.probs.push(probs.clone());
                }
                FromEngine::Done { id, finish } if *id == wanted => {
                    assert!(outcome.finish.is_none(), "done comes once");
                    outcome.finish = Some(finish.clone());
                }
                _ => {}
            }
        }
        outcome
    }
}

/// Has a text embedded.
pub(crate) fn ask(run: &mut Run, id: u64, tokens: &[u32], pooling: Option<Pooling>) {
    let embed = Embed {
        id,
        tokens: tokens.to_vec(),
        pooling,
        slot: None,
    };
    run.scheduler.handle(Command::Embed(Box::new(embed)));
}

/// The vectors of a text, and how it ended.
pub(crate) fn told(run: &Run, wanted: u64) -> (Vec<Vec<f32>>, Option<Finish>) {
    let (mut all, mut end) = (Vec::new(), None);
    for event in &*run.events.borrow() {
        match event {
            FromEngine::Embedding { id, vectors } if *id == wanted => {
                assert!(end.is_none());
                all.extend(vectors.clone());
            }
            FromEngine::Done { id, finish } if *id == wanted => end = Some(finish.clone()),
            _ => {}
        }
    }
    (all, end)
}

/// The vectors of a text, alone.
pub(crate) fn embed(run: &mut Run, tokens: &[u32], pooling: Option<Pooling>) -> Vec<Vec<f32>> {
    run.events.borrow_mut().clear();
    ask(run, 1, tokens, pooling);
    run.finish();
    let (vectors, end) = told(run, 1);
    assert_eq!(end, Some(Finish::Limit));
    vectors
}
