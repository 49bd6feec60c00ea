//! From plan and settings to the command line and environment of a llama-server. Pure.
//!
//! Only flags that its `--help` lists are given; a wish it has no flag for is a warning. Defaults of ours are not forced on it:
//! besides what the plan decides, it is told what the user said, as the user said it. Keys never stand on the command line.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::probe::Program;
use crate::plan::{Choice, Placement};
use crate::settings::{Said, Settings, Source, keys};

/// How a setting becomes arguments.
enum Form {
    /// The flag, then the text.
    Value,
    /// The flag, then the text, for each item of a list.
    Each,
    /// A flag for `on`, another one for `off`; empty: there is none.
    Switch(&'static [&'static str]),
}

/// Setting, flags of llama-server that mean it (the first one it has is taken), form.
type Passed = (&'static str, &'static [&'static str], Form);

use Form::{Each, Switch, Value};

/// What is passed on when it was said.
#[rustfmt::skip]
const PASSED: &[Passed] = &[
    ("alias", &["--alias", "-a"], Value),
    ("tags", &["--tags"], Value),
    ("chat-template-kwargs", &["--chat-template-kwargs"], Value),
    ("prefill-assistant", &["--prefill-assistant"], Switch(&["--no-prefill-assistant"])),
    ("reasoning-format", &["--reasoning-format"], Value),
    ("pooling", &["--pooling"], Value),
    ("embd-normalize", &["--embd-normalize"], Value),
    ("rope-freq-base", &["--rope-freq-base"], Value),
    ("rope-freq-scale", &["--rope-freq-scale"], Value),
    ("rope-scale", &["--rope-scale"], Value),
    ("rope-scaling", &["--rope-scaling"], Value),
    ("override-kv", &["--override-kv"], Each),
    ("numa", &["--numa"], Value),
    ("prio", &["--prio"], Value),
    ("mmap", &["--mmap"], Switch(&["--no-mmap"])),
    ("load-mode", &["--load-mode", "-lm"], Value),
    ("batch-size", &["--batch-size", "-b"], Value),
    ("ubatch-size", &["--ubatch-size", "-ub"], Value),
    ("mlock", &["--mlock"], Switch(&[])),
    ("slot-save-path", &["--slot-save-path"], Value),
    ("context-shift", &["--context-shift"], Switch(&["--no-context-shift"])),
    ("ui", &["--ui", "--webui"], Switch(&["--no-ui", "--no-webui"])),
    ("props", &["--props"], Switch(&[])),
    ("n-predict", &["--n-predict", "--predict", "-n"], Value),
    ("temp", &["--temp", "--temperature"], Value),
    ("top-k", &["--top-k"], Value),
    ("top-p", &["--top-p"], Value),
    ("min-p", &["--min-p"], Value),
    ("typical", &["--typical", "--typical-p"], Value),
    ("repeat-last-n", &["--repeat-last-n"], Value),
    ("repeat-penalty", &["--repeat-penalty"], Value),
    ("presence-penalty", &["--presence-penalty"], Value),
    ("frequency-penalty", &["--frequency-penalty"], Value),
    ("dynatemp-range", &["--dynatemp-range"], Value),
    ("dynatemp-exp", &["--dynatemp-exp"], Value),
    ("top-n-sigma", &["--top-n-sigma", "--top-nsigma"], Value),
    ("xtc-probability", &["--xtc-probability"], Value),
    ("xtc-threshold", &["--xtc-threshold"], Value),
    ("dry-multiplier", &["--dry-multiplier"], Value),
    ("dry-base", &["--dry-base"], Value),
    ("dry-allowed-length", &["--dry-allowed-length"], Value),
    ("dry-penalty-last-n", &["--dry-penalty-last-n"], Value),
    ("dry-sequence-breaker", &["--dry-sequence-breaker"], Each),
    ("mirostat", &["--mirostat"], Value),
    ("mirostat-ent", &["--mirostat-ent"], Value),
    ("mirostat-lr", &["--mirostat-lr"], Value),
    ("samplers", &["--samplers"], Value),
    ("sampling-seq", &["--sampling-seq", "--sampler-seq"], Value),
    ("grammar", &["--grammar"], Value),
    ("grammar-file", &["--grammar-file"], Value),
    ("json-schema", &["--json-schema", "-j"], Value),
    ("json-schema-file", &["--json-schema-file", "-jf"], Value),
    ("seed", &["--seed", "-s"], Value),
    ("logit-bias", &["--logit-bias", "-l"], Each),
    ("reverse-prompt", &["--reverse-prompt", "-r"], Each),
    ("special", &["--special", "-sp"], Switch(&[])),
    ("cache-prompt", &["--cache-prompt"], Switch(&["--no-cache-prompt"])),
    ("keep", &["--keep"], Value),
    ("ignore-eos", &["--ignore-eos"], Switch(&[])),
];

/// Settings that only the built-in engine has.
const BUILT_IN_ONLY: &[&str] = &[
    "head",
    "spec",
    "draft-max",
    "weights",
    "tune",
    "system-prompt",
    "max-tokens-cap",
    "activation",
    "untied-head",
    "pre-tokenizer",
    "lookup-tiles",
    "public-models",
    "sse-ping-interval",
    "model-size",
];

/// Variables that would undo what is decided here, tell secrets, or belong to this process alone.
const NOT_FOR_ENGINES: &[&str] = &[
    "LLAMA_API_KEY",
    "LLAMA_ARG_API_KEY_FILE",
    "LLAMA_ARG_API_PREFIX",
    "LLAMA_ARG_REUSE_PORT",
    "LLAMA_ARG_SSL_CERT_FILE",
    "LLAMA_ARG_SSL_KEY_FILE",
    "LLAMA_ARG_STATIC_PATH",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Variables by which the user has placed OpenMP's threads.
const OPENMP_PLACES: &[&str] = &[
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "OMP_PLACES",
    "OMP_PROC_BIND",
];

/// Slots and context of an engine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Room {
    /// Requests at a time.
    pub slots: Choice<usize>,
    /// Tokens per slot.
    pub slot_context: Choice<usize>,
}

/// Arguments, and what of the user's wishes they can't express.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Argv {
    /// Without program, address and keys.
    pub args: Vec<OsString>,
    /// One line each.
    pub warnings: Vec<String>,
}

impl Argv {
    fn push(
        &mut self,
        program: &Program,
        names: &[&'static str],
        value: impl AsRef<OsStr>,
    ) -> bool {
        let flag = program.flag(names);
        if let Some(flag) = flag {
            self.args.push(flag.into());
            self.args.push(value.as_ref().to_owned());
        }
        flag.is_some()
    }

    fn push_bare(&mut self, program: &Program, names: &[&'static str]) -> bool {
        let flag = program.flag(names);
        self.args.extend(flag.map(OsString::from));
        flag.is_some()
    }

    fn without_effect(&mut self, source: &Source, why: &str) {
        self.warnings.push(format!("{source} has no effect: {why}"));
    }
}

/// Model, plan, and everything the user said.
pub(crate) fn arguments(
    program: &Program,
    model: &Path,
    placement: &Placement,
    room: Option<&Room>,
    settings: &Settings,
) -> Argv {
    let mut argv = Argv::default();
    argv.push(program, &["--model", "-m"], model);
    let threads = placement.decode_cpus.value.len().to_string();
    argv.push(program, &["--threads", "-t"], &threads);
    let batch = placement.prefill_cpus.value.len().to_string();
    argv.push(program, &["--threads-batch", "-tb"], &batch);
    if let Some(room) = room {
        let (slots, context) = (room.slots.value, room.slot_context.value);
        argv.push(program, &["--parallel", "-np"], slots.to_string());
        // It divides its context by its slots.
        argv.push(
            program,
            &["--ctx-size", "-c"],
            (slots * context).to_string(),
        );
    }
    argv.push_bare(program, &["--cont-batching", "-cb"]);
    template(program, settings, &mut argv);
    kv_type(program, settings, &mut argv);
    if settings.metrics.value {
        argv.push_bare(program, &["--metrics"]);
    }
    let slots: &[&str] = match settings.slots.value {
        true => &["--slots"],
        false => &["--no-slots"],
    };
    argv.push_bare(program, slots);
    for passed in PASSED {
        if let Some(said) = settings.external.said(passed.0) {
            pass(program, passed, said, &mut argv);
        }
    }
    for name in BUILT_IN_ONLY {
        if let Some(said) = settings.external.said(name) {
            argv.without_effect(&said.source, "only the built-in engine has it");
        }
    }
    let further = settings.external.args.value.iter();
    argv.args.extend(further.map(OsString::from));
    argv
}

fn pass(program: &Program, (_, names, form): &Passed, said: &Said, argv: &mut Argv) {
    let has = match form {
        Value => argv.push(program, names, said.text()),
        Each => said.items().all(|item| argv.push(program, names, item)),
        Switch(off) => match said.is_on() {
            true => argv.push_bare(program, names),
            // Off is what it does without the flag that would switch it on.
            false => argv.push_bare(program, off) || off.is_empty(),
        },
    };
    if !has {
        argv.without_effect(&said.source, &format!("this engine has no `{}`", names[0]));
    }
}

/// Its name or its text; Jinja needs a flag in servers that also have another kind of template.
fn template(program: &Program, settings: &Settings, argv: &mut Argv) {
    let Some(text) = &settings.chat_template.value else {
        return;
    };
    if !argv.push(program, &["--chat-template"], text) {
        argv.without_effect(
            &settings.chat_template.source,
            "this engine has no `--chat-template`",
        );
    } else if text.contains("{%") || text.contains("{{") {
        argv.push_bare(program, &["--jinja"]);
    }
}

/// Values can be quantised only with flash attention, which the user may add: keys alone are safe everywhere.
fn kv_type(program: &Program, settings: &Settings, argv: &mut Argv) {
    let Some(said) = settings.external.said("kv-type") else {
        return;
    };
    let name = said.text();
    let has = argv.push(program, &["--cache-type-k", "-ctk"], name);
    if matches!(name, "f16" | "f32" | "bf16") {
        argv.push(program, &["--cache-type-v", "-ctv"], name);
    } else if has {
        argv.warnings.push(format!(
            "{} {name} is for the keys of the cache; for its values say `--engine-arg=--cache-type-v --engine-arg={name}` and switch flash attention on",
            said.source
        ));
    }
    if !has {
        argv.without_effect(&said.source, "this engine has no `--cache-type-k`");
    }
}

/// Variables to set and to remove for an engine that is started in this environment.
pub(crate) fn environment(
    program: &Program,
    placement: &Placement,
    ours: impl Iterator<Item = (OsString, OsString)>,
) -> (Vec<(OsString, OsString)>, Vec<OsString>) {
    let ours: Vec<(OsString, OsString)> = ours.collect();
    let is_set = |name: &str| {
        ours.iter()
            .any(|(set, value)| set == name && !value.is_empty())
    };
    let removed = ours.iter().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        NOT_FOR_ENGINES.contains(&name.as_ref()) || (name.starts_with("LLAMA_") && is_ours(&name))
    });
    let mut set: Vec<(OsString, OsString)> = Vec::new();
    let threads = placement.prefill_cpus.value.len().to_string();
    set.push(("OMP_NUM_THREADS".into(), threads.into()));
    if placement.pin.value && !OPENMP_PLACES.iter().any(|name| is_set(name)) {
        let cpus = placement.prefill_cpus.value.iter();
        let places: Vec<String> = cpus.map(|cpu| format!("{{{cpu}}}")).collect();
        set.push(("OMP_PLACES".into(), places.join(",").into()));
        set.push(("OMP_PROC_BIND".into(), "close".into()));
    }
    let libraries = ours
        .iter()
        .find(|(name, _)| name == "LD_LIBRARY_PATH")
        .map(|(_, value)| value.clone());
    if let Some(path) = program.library_path(libraries) {
        set.push(("LD_LIBRARY_PATH".into(), path));
    }
    let removed = removed.cloned().collect();
    (set, removed)
}

/// A variable that is a setting of ours: what it says is passed on as a flag.
fn is_ours(name: &str) -> bool {
    let of_key = |key: &keys::Key| {
        key.env.iter().any(|variable| {
            let no = variable.strip_prefix("LLAMA_ARG_");
            *variable == name || no.is_some_and(|no| name == format!("LLAMA_ARG_NO_{no}"))
        })
    };
    keys::KEYS.iter().any(of_key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Reason;
    use crate::settings::tests::settings;

    fn program(flags: &[&str]) -> Program {
        Program {
            path: "/opt/llama-server".into(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            unix_sockets: false,
            key_variable: true,
            version: None,
            libraries: vec!["/opt/lib".into()],
            words: None,
        }
    }

    fn choice<T>(value: T) -> Choice<T> {
        Choice {
            value,
            because: Reason::Default,
        }
    }

    fn placement(pin: bool) -> Placement {
        Placement {
            decode_cpus: choice(vec![4, 2]),
            prefill_cpus: choice(vec![4, 2, 5]),
            pin: choice(pin),
            warnings: Vec::new(),
        }
    }

    fn line(argv: &Argv) -> String {
        let words: Vec<_> = argv.args.iter().map(|arg| arg.to_string_lossy()).collect();
        words.join(" ")
    }

    const OLD: &[&str] = &[
        "--model",
        "--threads",
        "--threads-batch",
        "--ctx-size",
        "--parallel",
        "--cont-batching",
        "--chat-template",
        "--metrics",
        "--slots",
        "--predict",
        "--temp",
        "--logit-bias",
        "--alias",
        "--cache-type-k",
        "--cache-type-v",
        "--no-context-shift",
    ];

    #[test]
    fn plan_and_wishes_become_arguments() {
        let room = Room {
            slots: choice(4),
            slot_context: choice(1024),
        };
        let said = [
            ("engine", "/opt/llama-server"),
            ("temp", "0.2"),
            ("n-predict", "77"),
            ("alias", "a b"),
            ("context-shift", "off"),
            ("chat-template", "chatml"),
            ("engine-arg", "-fa"),
            ("xtc-threshold", "0.3"),
            ("head", "full"),
        ];
        let settings = settings(&said, &[]);
        let argv = arguments(
            &program(OLD),
            Path::new("/m.gguf"),
            &placement(true),
            Some(&room),
            &settings,
        );
        assert_eq!(
            line(&argv),
            "--model /m.gguf --threads 2 --threads-batch 3 --parallel 4 --ctx-size 4096 --cont-batching \
             --chat-template chatml --metrics --slots --alias a b --no-context-shift --predict 77 --temp 0.2 -fa"
        );
        assert_eq!(argv.warnings.len(), 2, "{:?}", argv.warnings);
        assert!(argv.warnings[0].contains("--xtc-threshold has no effect"));
        assert!(argv.warnings[1].contains("--head has no effect"));
    }

    #[test]
    fn keys_never_stand_on_the_command_line() {
        let settings = settings(
            &[("engine", "/x"), ("api-key", "top-secret")],
            &[("LLAMA_API_KEY", "also-secret")],
        );
        let flags: Vec<&str> = OLD
            .iter()
            .copied()
            .chain(["--api-key", "--api-key-file"])
            .collect();
        let argv = arguments(
            &program(&flags),
            Path::new("/m.gguf"),
            &placement(false),
            None,
            &settings,
        );
        assert!(!line(&argv).contains("secret") && !line(&argv).contains("api-key"));
        assert!(!format!("{:?}", settings.external).contains("secret"));
    }

    #[test]
    fn quantised_keys_and_lists() {
        let said = [
            ("engine", "/x"),
            ("kv-type", "q8_0"),
            ("logit-bias", "1+2,3-4"),
        ];
        let argv = arguments(
            &program(OLD),
            Path::new("/m.gguf"),
            &placement(false),
            None,
            &settings(&said, &[]),
        );
        assert!(line(&argv).contains("--cache-type-k q8_0"), "{argv:?}");
        assert!(!line(&argv).contains("--cache-type-v"), "{argv:?}");
        assert!(line(&argv).ends_with("--logit-bias 1+2 --logit-bias 3-4"));
        assert_eq!(argv.warnings.len(), 1);
    }

    #[test]
    fn environments() {
        let ours = |names: &[(&str, &str)]| {
            let pairs: Vec<(OsString, OsString)> = names
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect();
            pairs.into_iter()
        };
        let of = |names: &[(&str, &str)], pin: bool| {
            let (set, removed) = environment(&program(OLD), &placement(pin), ours(names));
            let set: Vec<String> = set
                .iter()
                .map(|(name, value)| format!("{}={}", name.display(), value.display()))
                .collect();
            let removed: Vec<String> = removed
                .iter()
                .map(|name| name.display().to_string())
                .collect();
            (set.join(" "), removed.join(" "))
        };
        let (set, removed) = of(
            &[
                ("LLAMA_API_KEY", "k"),
                ("LLAMA_ARG_PORT", "1"),
                ("LLAMA_ARG_NO_CONTEXT_SHIFT", "1"),
                ("LLAMA_ARG_FLASH_ATTN", "on"),
                ("HOME", "/root"),
                ("OMP_NUM_THREADS", "auto"),
            ],
            true,
        );
        assert_eq!(
            set,
            "OMP_NUM_THREADS=3 OMP_PLACES={4},{2},{5} OMP_PROC_BIND=close LD_LIBRARY_PATH=/opt/lib"
        );
        assert_eq!(
            removed,
            "LLAMA_API_KEY LLAMA_ARG_PORT LLAMA_ARG_NO_CONTEXT_SHIFT"
        );
        let (set, _) = of(
            &[("GOMP_CPU_AFFINITY", "0-3"), ("LD_LIBRARY_PATH", "/a")],
            true,
        );
        assert_eq!(set, "OMP_NUM_THREADS=3 LD_LIBRARY_PATH=/a:/opt/lib");
        assert_eq!(
            of(&[], false).0,
            "OMP_NUM_THREADS=3 LD_LIBRARY_PATH=/opt/lib"
        );
    }
}
