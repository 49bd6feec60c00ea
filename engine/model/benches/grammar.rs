//! What binding an answer to a grammar costs, next to the same steps without one.
//!
//!     cargo bench -p bitnet-model --bench grammar -- FILE
//!
//! One sequence, default sampling, 32 tokens a round, by turns without and with each grammar, screened head. Medians of the ratio of
//! rounds that stood side by side; wall clock, and CPU time of the whole process. Random weights draw what no grammar
//! allows, so nearly every token is drawn twice: the worst case.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bitnet_model::engine::Engine;
use bitnet_model::protocol::{
    Carried, EngineConfig, FromEngine, Grammar, GrammarText, HeadMode, KvType, ModelSource,
    Overrides, SamplingParams, Submit, WeightsHome,
};
use bitnet_model::scheduler::{Command, Scheduler};

const ROUNDS: usize = 9;
const TOKENS: u32 = 32;

fn main() {
    let file = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let Some(file) = file.map(PathBuf::from) else {
        println!(
            "skipped: no model file was given (`cargo bench -p bitnet-model --bench grammar -- FILE`)"
        );
        return;
    };
    let mut engine = match Engine::load(&config(file), || None) {
        Ok(engine) => engine,
        Err(error) => {
            println!("error: {error}");
            std::process::exit(1);
        }
    };
    engine.prepare(Duration::MAX);
    let events = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let inbox = std::rc::Rc::clone(&events);
    let mut scheduler = Scheduler::new(engine, move |event| inbox.borrow_mut().push(event));
    let mut id = 0;
    let mut round = |grammar: Option<GrammarText>| {
        id += 1;
        let submit = submit(id, grammar);
        scheduler.handle(Command::Submit(Box::new(submit)));
        let mut began = None;
        let mut n = 0;
        loop {
            scheduler.step();
            for event in events.borrow_mut().drain(..) {
                match event {
                    FromEngine::Token { .. } => {
                        // The first token ends the prompt; the vocabulary and the grammar are there by then.
                        began.get_or_insert_with(|| (Instant::now(), cpu_s()));
                        n += 1;
                    }
                    FromEngine::Done { .. } => {
                        let (wall, cpu) = began.expect("there is a token");
                        let steps = f64::from(n - 1);
                        return [
                            wall.elapsed().as_secs_f64() * 1e3 / steps,
                            (cpu_s() - cpu) * 1e3 / steps,
                        ];
                    }
                    _ => {}
                }
            }
        }
    };
    let grammars = [
        ("json schema", GrammarText::JsonSchema(SCHEMA.to_owned())),
        ("gbnf words", GrammarText::Gbnf(WORDS.to_owned())),
        (
            "gbnf any text",
            GrammarText::Gbnf("root ::= [^\\x00]*".to_owned()),
        ),
    ];
    println!(
        "grammar          free ms (CPU)   bound ms (CPU)   ratio of time (smallest, largest)   of CPU time"
    );
    for (name, text) in grammars {
        round(Some(text.clone()));
        let pairs: Vec<[[f64; 2]; 2]> = (0..ROUNDS)
            .map(|_| [round(None), round(Some(text.clone()))])
            .collect();
        let sorted = |value: &dyn Fn(&[[f64; 2]; 2]) -> f64| {
            let mut all: Vec<f64> = pairs.iter().map(value).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let median = |values: Vec<f64>| values[ROUNDS / 2];
        let ratios = sorted(&|pair| pair[1][0] / pair[0][0]);
        println!(
            "{name:15} {:6.2} ({:.2})   {:6.2} ({:.2})   {:.3} ({:.3}-{:.3})   {:.3}",
            median(sorted(&|pair| pair[0][0])),
            median(sorted(&|pair| pair[0][1])),
            median(sorted(&|pair| pair[1][0])),
            median(sorted(&|pair| pair[1][1])),
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1],
            median(sorted(&|pair| pair[1][1] / pair[0][1])),
        );
    }
}

const SCHEMA: &str = r#"{"type": "array", "minItems": 50, "items": {"type": "object", "properties": {"name": {"type": "string"},
"age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}}, "required": ["name", "age", "kind"], "additionalProperties": false}}"#;
const WORDS: &str = r#"root ::= (word ("," | ".")? " ")*
word ::= [a-z]+ | [0-9]{1,4}"#;

fn config(file: PathBuf) -> EngineConfig {
    let cpus: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .iter()
        .map(|core| core.id)
        .collect();
    EngineConfig {
        model: ModelSource::File(file),
        kernel: "i2_s".to_owned(),
        decode_cpus: cpus.clone(),
        prefill_cpus: cpus,
        pin: false,
        slots: 1,
        slot_context: 1024,
        prefill_batch: 128,
        kv_type: KvType::F16,
        head: HeadMode::Exact,
        draft_max: 0,
        mlock: false,
        overrides: Overrides::default(),
        weights: WeightsHome::HugePages,
    }
}

fn submit(id: u64, grammar: Option<GrammarText>) -> Submit {
    Submit {
        id,
        tokens: (1000..1064).collect(),
        max_tokens: TOKENS,
        eog_tokens: Vec::new(),
        cache_prompt: true,
        slot: None,
        sampling: SamplingParams {
            grammar: grammar.map(|text| Grammar {
                text,
                triggers: None,
            }),
            ..SamplingParams::default()
        },
        carried: Carried::default(),
        prompt_probs: None,
        draft_max: None,
    }
}

/// CPU time of this process so far, in seconds.
fn cpu_s() -> f64 {
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks = |place: usize| {
        fields
            .get(place)
            .and_then(|it| it.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / TICKS_PER_S
}
