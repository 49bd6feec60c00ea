//! The argument vectors of the callers we know, and the parsing rules.

use std::collections::BTreeSet;

use super::*;
use crate::settings::{Dialect, Environment, Numa, Settings};
use bitnet_model::protocol::{KeyValue, ModelSource, WeightsHome};

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn flags(line: &str) -> Flags {
    match parse(words(line)) {
        Ok(Request::Serve(flags)) => flags,
        other => panic!("`{line}` gave {other:?}"),
    }
}

fn settings(line: &str) -> Settings {
    Settings::read(flags(line), &Environment::new(), Dialect::LlamaServer).unwrap()
}

fn model() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::with_suffix(".gguf").unwrap()
}

#[test]
fn bitnet_cpps_script() {
    let model = model();
    let path = model.path().to_str().unwrap();
    let s = settings(&format!(
        "-m {path} -c 2048 -t 2 -n 4096 -ngl 0 --temp 0.8 --host 127.0.0.1 --port 8080 -cb -p Be_brief."
    ));
    assert_eq!(s.model.value, ModelSource::File(model.path().to_owned()));
    assert_eq!(
        (s.ctx_size.value, s.threads.value, s.n_predict.value),
        (Some(2048), Some(2), Some(4096))
    );
    assert_eq!(
        (s.port.value, s.hosts.value),
        (8080, vec!["127.0.0.1".to_owned()])
    );
    assert_eq!(s.system_prompt.value.as_deref(), Some("Be_brief."));
    assert!(s.warnings.is_empty(), "{:?}", s.warnings);
}

#[test]
fn the_n8n_wrapper() {
    let model = model();
    let path = model.path().to_str().unwrap();
    let s = settings(&format!(
        "-m {path} -c 4096 -t 4 -ngl 0 --host 0.0.0.0 --port 8081 --metrics --slots --log-disable -cb --ctx-size 2048 \
         --batch-size 512 --cache-reuse 256"
    ));
    assert_eq!(
        (s.ctx_size.value, s.batch_size.value),
        (Some(2048), Some(512))
    );
    assert_eq!(s.ctx_size.source.to_string(), "flag --ctx-size");
    assert!(s.metrics.value && s.slots.value);
    assert_eq!(
        s.log_level.value,
        Some(tracing::level_filters::LevelFilter::ERROR)
    );
    assert!(s.warnings.is_empty(), "{:?}", s.warnings);
}

#[test]
fn the_old_launchers_documented_forms() {
    let s = settings(
        "--threads 8 --threads-batch 8 --ctx-size 4096 --batch-size 512 --no-mmap --mlock --numa --verbose",
    );
    assert_eq!(
        (s.threads.value, s.threads_batch.value, s.mlock.value),
        (Some(8), Some(8), true)
    );
    assert_eq!(s.weights.value, Some(WeightsHome::Copied));
    assert_eq!(s.numa.value, Some(Numa::Distribute));
    assert!(s.warnings.is_empty(), "{:?}", s.warnings);
}

#[test]
fn how_a_file_is_loaded() {
    let loaded = |line: &str| {
        let s = settings(line);
        (s.weights.value, s.mlock.value)
    };
    let copied = Some(WeightsHome::Copied);
    for (line, wanted) in [
        ("", (None, false)),
        ("--no-mmap", (copied, false)),
        ("--no-mmap --mmap", (None, false)),
        ("-lm none", (copied, false)),
        ("-lm dio --mmap", (None, false)),
        ("-lm mlock", (None, true)),
        ("--load-mode mmap+mlock", (None, true)),
        ("-lm auto --mlock", (None, true)),
    ] {
        assert_eq!(loaded(line), wanted, "{line}");
    }
    let env = Environment::from([("LLAMA_ARG_NO_MMAP".into(), "1".into())]);
    let s = Settings::read(flags(""), &env, Dialect::LlamaServer).unwrap();
    assert_eq!(s.weights.value, copied);
    assert_eq!(
        s.weights.source.to_string(),
        "environment LLAMA_ARG_NO_MMAP"
    );
    let error = Settings::read(flags("-lm x"), &Environment::new(), Dialect::LlamaServer);
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("flag -lm is `x`, expected `auto`"),
        "{error}"
    );
}

#[test]
fn positions_keys_and_priority() {
    let scale = |line: &str| settings(line).overrides.rope_freq_scale;
    assert_eq!(scale("--rope-freq-scale 0.5"), Some(0.5));
    assert_eq!(scale("--rope-scale 4"), Some(0.25));
    assert_eq!(scale("--rope-scale 4 --rope-scaling none"), Some(1.0));
    assert_eq!(
        (scale("--rope-scaling linear"), scale("--rope-freq-scale 0")),
        (None, None)
    );
    assert_eq!(scale("--rope-scale 0"), None);
    assert!(scale("--rope-scale 1e-38").unwrap().is_finite());
    for factor in ["1e-40", "-2", "1e39", "nan"] {
        let line = flags(&format!("--rope-scale {factor}"));
        let error = Settings::read(line, &Environment::new(), Dialect::LlamaServer).unwrap_err();
        let wanted = format!(
            "flag --rope-scale is `{factor}`, expected a number from 1e-38 to 3.4e38, or 0 for the file's"
        );
        assert_eq!(error.to_string(), wanted);
    }
    let s = settings("--rope-scaling yarn --prio 2");
    assert_eq!(
        (s.warnings.len(), s.nice.value),
        (1, -10),
        "{:?}",
        s.warnings
    );
    let s = settings(
        "--override-kv tokenizer.ggml.add_bos_token=bool:false,a.b=int:-3 --override-kv general.name=str:x=y:z --override-kv a.c=float:1e-5",
    );
    let keys = s
        .overrides
        .keys
        .iter()
        .map(|one| (one.key.as_str(), one.value.clone()));
    assert_eq!(
        keys.collect::<Vec<_>>(),
        [
            ("tokenizer.ggml.add_bos_token", KeyValue::Bool(false)),
            ("a.b", KeyValue::Int(-3)),
            ("general.name", KeyValue::Str("x=y:z".into())),
            ("a.c", KeyValue::Float(1e-5)),
        ]
    );
    assert!(s.warnings.is_empty(), "{:?}", s.warnings);
    for wrong in [
        "a",
        "a=int",
        "a=int:x",
        "a=bool:1",
        "=int:1",
        "a=u8:1",
        "a=float:nan",
    ] {
        let flags = flags(&format!("--override-kv {wrong}"));
        let error = Settings::read(flags, &Environment::new(), Dialect::LlamaServer);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("expected `KEY=TYPE:VALUE`"), "{error}");
    }
}

#[test]
fn escapes_stand_for_other_characters() {
    let stops = |args: &[&str]| {
        let Request::Serve(flags) = parse(args.iter().map(ToString::to_string)).unwrap() else {
            panic!("{args:?}");
        };
        Settings::read(flags, &Environment::new(), Dialect::LlamaServer).unwrap()
    };
    let s = stops(&[
        "-r",
        r"\n\nUser:",
        "-r",
        r"a\\n\x41\q",
        "-p",
        r"One\tline",
        "--dry-sequence-breaker",
        r"\n",
    ]);
    assert_eq!(s.stop.value, ["\n\nUser:", r"a\nA\q"]);
    assert_eq!(s.system_prompt.value.as_deref(), Some("One\tline"));
    assert_eq!(s.sampling.dry_sequence_breakers.value, ["\n"]);
    assert_eq!(stops(&["-r", r"\n", "--no-escape"]).stop.value, [r"\n"]);
    assert_eq!(unescaped(r"\x4"), r"\x4");
    assert_eq!(unescaped(r"é\xC3\"), r"é\xC3\");
}

#[test]
fn rules_of_the_original() {
    let s = settings("--ctx_size 512 -c 1024 --top_k=5 --seed -1 -t -1 --n-predict=-1");
    assert_eq!((s.ctx_size.value, s.sampling.top_k.value), (Some(1024), 5));
    assert_eq!(
        (s.sampling.seed.value, s.threads.value, s.n_predict.value),
        (None, None, None)
    );
    assert_eq!(settings("").port.value, 8080);
    let s = settings(
        "-fa on --log-colors -fa --port 9 --numa distribute --log-colors off -fa auto --temp 0",
    );
    assert_eq!((s.port.value, s.sampling.temperature.value), (9, 0.0));
    let s = settings("-C 0x2c --cache-type-k q5_0 -ngl 99");
    assert_eq!(
        s.cpu_affinity.value,
        crate::settings::Affinity::Cpus("2-3,5".parse().unwrap())
    );
    assert_eq!(s.warnings.len(), 2, "{:?}", s.warnings);
    let s = settings("--slots --no-slots -r User: -r A,B -lv 4 --host 1.2.3.4 --host ::1");
    assert!(!s.slots.value);
    assert_eq!(s.stop.value, ["User:", "A,B"]);
    assert_eq!(s.hosts.value, ["::1"]);
}

#[test]
fn errors_name_the_flag() {
    for (line, wanted) in [
        ("--treads 4", "invalid argument: --treads"),
        ("model.gguf", "invalid argument: model.gguf"),
        ("-c", "flag -c needs a value"),
        ("-cb=1", "invalid argument: -cb=1"),
        ("--metrics=1", "flag --metrics is `1`, expected no value"),
        (
            "-C zz",
            "flag -C is `zz`, expected a hexadecimal mask of CPUs such as `0xf`",
        ),
        (
            "--mmproj x",
            "flag --mmproj can't be used: the model reads text only",
        ),
    ] {
        assert_eq!(parse(words(line)).unwrap_err().to_string(), wanted);
    }
    let error =
        Settings::read(flags("-c many"), &Environment::new(), Dialect::LlamaServer).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("flag -c is `many`, expected a number of tokens"),
        "{error}"
    );
}

#[test]
fn cache_types_of_the_original_become_the_nearest() {
    let s = settings("-ctk f32 --cache-type-v q4_0");
    assert_eq!(s.kv_type.value, bitnet_model::protocol::KvType::Q8_0);
    assert_eq!(
        s.warnings,
        ["flag --cache-type-v q4_0 has no effect: the cache is kept as q8_0"]
    );
    let s = settings("-ctk q8_0 -ctv q8_0");
    assert_eq!(s.kv_type.value, bitnet_model::protocol::KvType::Q8_0);
    assert!(s.warnings.is_empty());
    let error = Settings::read(flags("-ctk i8"), &Environment::new(), Dialect::LlamaServer);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "flag -ctk is `i8`, expected `f16`, `q8_0` or `f32`");
}

#[test]
fn speculation_by_n_grams_is_ours_and_by_models_is_not() {
    for (line, draft_max) in [
        ("", 0),
        ("--spec-type none --draft-max 5", 0),
        ("--spec-type ngram-simple", 7),
        ("--spec-default --draft 16", 16),
        ("--spec-type ngram-mod --spec-draft-n-max 0", 0),
    ] {
        let s = settings(line);
        assert_eq!(s.draft_max(), draft_max, "{line}");
        let is_useless = line.contains("none");
        assert_eq!(
            s.warnings.len(),
            usize::from(is_useless),
            "{:?}",
            s.warnings
        );
    }
    let warnings = settings("-md draft.gguf").warnings;
    assert!(
        warnings[0].contains("`--spec ngram` does without one"),
        "{warnings:?}"
    );
    let read = |line| Settings::read(flags(line), &Environment::new(), Dialect::LlamaServer);
    let error = read("--spec-type draft-mtp").unwrap_err().to_string();
    assert!(
        error.starts_with("flag --spec-type is `draft-mtp`, expected `ngram` or `none`"),
        "{error}"
    );
    assert!(read("--spec-default --draft-max 65").is_err());
    // Another engine knows more of it.
    let s =
        settings("--engine /opt/llama-server --spec-type draft-mtp --draft-max 9 --spec-default");
    let args = [
        "--spec-type",
        "draft-mtp",
        "--draft-max",
        "9",
        "--spec-default",
    ];
    assert_eq!(s.external.args.value, args);
}

#[test]
fn help_and_version_win() {
    assert!(matches!(
        parse(words("-c 5 --version")),
        Ok(Request::Version)
    ));
    assert!(matches!(parse(words("--usage")), Ok(Request::Help)));
    let help = help();
    for flag in FLAGS {
        assert!(flag.names.iter().all(|name| help.contains(name)));
    }
}

#[test]
fn the_table_is_consistent() {
    let mut seen = BTreeSet::new();
    for flag in FLAGS {
        for name in flag.names.iter().chain(flag.env) {
            assert!(seen.insert(*name), "{name} twice");
        }
        if let Action::Set(key) | Action::SetTo(key, _) = flag.action {
            assert!(keys::find(key).is_some(), "no setting {key}");
        }
        for variable in flag.env {
            let of_a_setting = keys::KEYS.iter().any(|key| key.env.contains(variable));
            assert!(!of_a_setting, "{variable} stands in both tables");
        }
    }
}

#[test]
fn its_short_flags_are_known_in_other_command_lines() {
    let found = |line: &str| {
        let args: Vec<std::ffi::OsString> = line.split(' ').map(Into::into).collect();
        short_flag(&args)
    };
    for (line, flag) in [
        ("-m x -np 4", Some("-np")),
        ("-hf org/repo", Some("-hf")),
        ("serve -ngl 0", Some("-ngl")),
        ("-m x -t 4", None),
        ("-t4", None),
        ("--parallel 2", None),
        ("-m x -- -np", None),
        ("perplexity np", None),
    ] {
        assert_eq!(found(line).as_deref(), flag, "{line}");
    }
}

#[test]
fn another_engine_gets_what_means_nothing_here() {
    let s = settings(
        "--engine /opt/llama-server -fa on --numa distribute --temp 0.5 --lora-scaled a.gguf 0.5",
    );
    assert_eq!(s.numa.value, Some(Numa::Distribute));
    let args = ["-fa", "on", "--lora-scaled", "a.gguf", "0.5"];
    assert_eq!(s.external.args.value, args);
    assert!(s.warnings.is_empty(), "{:?}", s.warnings);
    assert!(parse(words("--lora-scaled a.gguf 0.5")).is_err());
}
