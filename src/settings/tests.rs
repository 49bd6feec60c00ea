//! Sources and precedence, values good and bad, model directories.

use std::path::PathBuf;

use super::*;

fn flags(values: &[(&'static str, &str)]) -> Flags {
    let values = values
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned(), format!("--{name}")));
    Flags {
        values: values.collect(),
        ..Flags::default()
    }
}

fn env(values: &[(&str, &str)]) -> Environment {
    values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Settings of these flags and variables.
pub(crate) fn settings(said: &[(&'static str, &str)], variables: &[(&str, &str)]) -> Settings {
    read(said, variables).unwrap()
}

fn read(
    said: &[(&'static str, &str)],
    variables: &[(&str, &str)],
) -> Result<Settings, SettingsError> {
    Settings::read(flags(said), &env(variables), Dialect::Launch)
}

fn message(said: &[(&'static str, &str)], variables: &[(&str, &str)]) -> String {
    read(said, variables).unwrap_err().to_string()
}

#[test]
fn defaults_are_the_documented_ones() {
    let s = settings(&[], &[]);
    assert_eq!(
        (s.hosts.value, s.port.value),
        (vec!["127.0.0.1".to_owned()], 8081)
    );
    assert_eq!(
        (s.model.value, s.model.source),
        (ModelSource::Demo, Source::Default)
    );
    assert_eq!(s.sampling.params(), SamplingParams::default());
    assert_eq!(s.drain_timeout.value, Duration::from_secs(4));
    assert!(s.metrics.value && s.slots.value && !s.props.value);
    assert!(s.warnings.is_empty() && s.notices.is_empty());
    let llama = Settings::read(Flags::default(), &env(&[]), Dialect::LlamaServer).unwrap();
    assert_eq!((llama.port.value, llama.metrics.value), (8080, false));
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bitnet.toml");
    std::fs::write(
        &file,
        "threads = 2\nport = 9000\ntop_k = 7\nmlock = true\nalias = [\"a\", \"b\"]\n",
    )
    .unwrap();
    let config = file.to_str().unwrap();
    let s = settings(
        &[("config", config), ("threads", "6")],
        &[("OMP_NUM_THREADS", "4"), ("PORT", "9001")],
    );
    assert_eq!(
        (s.threads.value, s.threads.source.to_string().as_str()),
        (Some(6), "flag --threads")
    );
    assert_eq!(
        (s.port.value, s.port.source.to_string().as_str()),
        (9001, "environment PORT")
    );
    assert_eq!(s.sampling.top_k.value, 7);
    assert_eq!(s.sampling.top_k.source.to_string(), "bitnet.toml");
    assert_eq!(s.sampling.top_p.source.to_string(), "default");
    assert!(s.mlock.value);
    assert_eq!(s.alias.value, ["a", "b"]);
}

#[test]
fn old_variables_keep_working() {
    let s = settings(
        &[],
        &[
            ("HOST", "0.0.0.0"),
            ("PORT", "8081"),
            ("OMP_NUM_THREADS", "auto"),
            ("BITNET_KERNEL", "auto"),
            ("CPU_AFFINITY", "auto"),
            ("USE_CASE", "memory_efficient"),
            ("MODEL_SIZE", "medium"),
            ("MODEL_PATH", ""),
            ("LLAMA_CTX_SIZE", "2048"),
            ("LLAMA_BATCH_SIZE", "256"),
            ("LLAMA_LOG_LEVEL", "warn"),
        ],
    );
    assert_eq!(s.hosts.value, ["0.0.0.0"]);
    assert_eq!(
        (s.threads.value, s.kernel.value, s.cpu_affinity.value),
        (None, None, Affinity::Auto)
    );
    assert_eq!(
        (s.use_case.value, s.model_size.value),
        (UseCase::MemoryEfficient, Some(ModelSize::Medium))
    );
    assert_eq!(
        (s.model.value, s.model.source),
        (ModelSource::Demo, Source::Default)
    );
    assert_eq!(
        (s.ctx_size.value, s.batch_size.value),
        (Some(2048), Some(256))
    );
    assert_eq!(
        s.log_level.value,
        Some(tracing::level_filters::LevelFilter::WARN)
    );
    let s = settings(
        &[],
        &[
            ("OMP_NUM_THREADS", "4,2"),
            ("CPU_AFFINITY", "0-3,6"),
            ("BITNET_KERNEL", "tl2"),
        ],
    );
    assert_eq!(
        (s.threads.value, s.kernel.value.as_deref()),
        (Some(4), Some("tl2"))
    );
    assert_eq!(
        s.cpu_affinity.value,
        Affinity::Cpus("0-3,6".parse().unwrap())
    );
}

#[test]
fn a_bad_value_names_variable_found_and_expected() {
    for (variable, value, wanted) in [
        (
            "PORT",
            "99999",
            "environment PORT is `99999`, expected a port number from 0 to 65535",
        ),
        (
            "OMP_NUM_THREADS",
            "many",
            "environment OMP_NUM_THREADS is `many`, expected a number of threads up to 4096, or `auto`",
        ),
        (
            "CPU_AFFINITY",
            "3-1",
            "environment CPU_AFFINITY is `3-1`, expected `auto`, `none` or a list of CPUs such as `0-3,6`",
        ),
        (
            "BITNET_KERNEL",
            "i2s",
            "environment BITNET_KERNEL is `i2s`, expected `auto`, `i2_s`, `tl1`, `tl2` or one exactly, such as `i2_s/avx2`",
        ),
        (
            "USE_CASE",
            "fast",
            "environment USE_CASE is `fast`, expected `high_performance`, `balanced` or `memory_efficient`",
        ),
        (
            "MODEL_SIZE",
            "huge",
            "environment MODEL_SIZE is `huge`, expected `small`, `medium`, `large` or `auto`",
        ),
        (
            "HOST",
            "http://x",
            "environment HOST is `http://x`, expected an IP address or host name such as 127.0.0.1 or 0.0.0.0, or a path that ends in .sock",
        ),
        (
            "LLAMA_ARG_MLOCK",
            "maybe",
            "environment LLAMA_ARG_MLOCK is `maybe`, expected `on` or `off`",
        ),
        (
            "MODEL_PATH",
            "/nowhere/m.gguf",
            "no model at `/nowhere/m.gguf`, named by environment MODEL_PATH",
        ),
    ] {
        assert_eq!(message(&[], &[(variable, value)]), wanted);
    }
    assert_eq!(
        message(&[("top-p", "nan")], &[]),
        "flag --top-p is `nan`, expected a number"
    );
    assert_eq!(
        message(&[("repeat-penalty", "0")], &[]),
        "flag --repeat-penalty is `0`, expected a number above 0"
    );
}

#[test]
fn llama_variables_are_read_or_reported() {
    let s = settings(
        &[],
        &[
            ("LLAMA_ARG_CTX_SIZE", "4096"),
            ("LLAMA_ARG_N_PARALLEL", "2"),
            ("LLAMA_ARG_NO_CONTEXT_SHIFT", "1"),
            ("LLAMA_ARG_NO_ENDPOINT_SLOTS", ""),
            ("LLAMA_ARG_N_GPU_LAYERS", "0"),
            ("LLAMA_ARG_NO_JINJA", "1"),
            ("LLAMA_ARG_CTX_SIEZ", "1"),
        ],
    );
    assert_eq!((s.ctx_size.value, s.parallel.value), (Some(4096), Some(2)));
    assert!(!s.context_shift.value && !s.slots.value);
    assert_eq!(
        s.slots.source.to_string(),
        "environment LLAMA_ARG_NO_ENDPOINT_SLOTS"
    );
    assert_eq!(s.warnings.len(), 2, "{:?}", s.warnings);
    assert!(
        s.warnings
            .contains(&"environment LLAMA_ARG_CTX_SIEZ is not known and has no effect".to_owned())
    );
    assert!(
        message(&[], &[("LLAMA_ARG_HF_FILE", "a/b")])
            .starts_with("environment LLAMA_ARG_HF_FILE is set: ")
    );
}

#[test]
fn the_settings_file_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text, wanted) in [
        ("unknown.toml", "thread = 2", "`thread` is not a setting"),
        ("table.toml", "[threads]\nn = 2", "`threads` is a table"),
        ("broken.toml", "threads = ", "cannot read settings file"),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        let error = message(&[("config", path.to_str().unwrap())], &[]);
        assert!(error.contains(wanted) && error.contains(name), "{error}");
    }
    let error = message(&[("config", "/nowhere.toml")], &[]);
    assert!(
        error.starts_with("cannot read `/nowhere.toml` named by flag --config"),
        "{error}"
    );
}

#[test]
fn errors_of_the_settings_file_name_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bitnet.toml");
    let config = path.to_str().unwrap();
    std::fs::write(&path, "# mine\nport = 99999\n").unwrap();
    assert_eq!(
        message(&[("config", config)], &[]),
        "bitnet.toml says `port = 99999`, expected a port number from 0 to 65535"
    );
    std::fs::write(&path, "threads = 2\nport = = 1\n").unwrap();
    let error = message(&[("config", config)], &[]);
    assert!(error.contains(": line 2: "), "{error}");
}

#[test]
fn of_template_and_template_file_the_stronger_source_wins() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("template.jinja");
    std::fs::write(&path, "from file").unwrap();
    let file = path.to_str().unwrap();
    let by_variable = [("LLAMA_ARG_CHAT_TEMPLATE_FILE", file)];
    let s = settings(&[("chat-template", "chatml")], &by_variable);
    assert_eq!(s.chat_template.value.as_deref(), Some("chatml"));
    let s = settings(
        &[("chat-template", "chatml"), ("chat-template-file", file)],
        &[],
    );
    assert_eq!(s.chat_template.value.as_deref(), Some("from file"));
    let s = settings(&[], &by_variable);
    assert_eq!(s.chat_template.value.as_deref(), Some("from file"));
}

#[test]
fn a_directory_stands_for_the_one_model_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let empty = settings(&[], &[("MODEL_PATH", path)]);
    assert_eq!(empty.model.value, ModelSource::Demo);
    assert!(
        empty.notices[0].contains("serving the bundled demo model"),
        "{:?}",
        empty.notices
    );
    assert!(message(&[("model", path)], &[]).starts_with("no .gguf file in"));
    std::fs::write(directory.path().join("one.gguf"), "").unwrap();
    std::fs::write(directory.path().join("README.md"), "").unwrap();
    let one = settings(&[], &[("MODEL_PATH", path)]);
    assert_eq!(
        one.model.value,
        ModelSource::File(directory.path().join("one.gguf"))
    );
    std::fs::write(directory.path().join("two.GGUF"), "").unwrap();
    let error = read(&[], &[("MODEL_PATH", path)]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("expected one: one.gguf, two.GGUF"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("one.gguf"));
}

#[test]
fn keys_come_from_variable_flag_and_file() {
    let s = settings(&[], &[("LLAMA_API_KEY", "a, b")]);
    assert_eq!(s.api_keys.value.0, ["a", "b"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    std::fs::write(&file, "# mine\nsecret\n\n other \n").unwrap();
    let s = settings(&[("api-key-file", file.to_str().unwrap())], &[]);
    let printed = format!("{s:?}");
    assert!(!printed.contains("secret") && printed.contains("2 keys"));
    assert_eq!(s.api_keys.value.0, ["secret", "other"]);
    assert!(
        settings(&[], &[("LLAMA_API_KEY", "")])
            .api_keys
            .value
            .0
            .is_empty()
    );
    assert!(message(&[("api-key", "")], &[]).ends_with("expected at least one key"));
    assert!(message(&[("api-key", " , ")], &[]).ends_with("expected at least one key"));
    std::fs::write(&file, "# none\n").unwrap();
    assert!(
        message(&[("api-key-file", file.to_str().unwrap())], &[])
            .ends_with("expected a file with at least one key")
    );
}

#[test]
fn guessing_ahead_is_asked_for() {
    assert_eq!(settings(&[], &[]).draft_max(), 0);
    assert_eq!(settings(&[], &[("BITNET_SPEC", "ngram")]).draft_max(), 7);
    let said = [("spec", "ngram"), ("draft-max", "12")];
    assert_eq!(settings(&said, &[("BITNET_SPEC", "none")]).draft_max(), 12);
    assert!(message(&[("spec", "model")], &[]).contains("expected `ngram` or `none`"));
    assert!(message(&[("draft-max", "65")], &[]).ends_with("expected a whole number from 0 to 64"));
}

#[test]
fn values_of_special_form() {
    let s = settings(
        &[
            ("logit-bias", "5+1.5"),
            ("logit-bias", "7-inf,9-2"),
            ("reverse-prompt", "a, b"),
            ("reverse-prompt", "User:"),
            ("samplers", "penalties;dry;top_k;temperature"),
            ("seed", "4294967295"),
            ("n-predict", "-1"),
            ("temp", "-1"),
            ("host", "[::1],/run/x.sock"),
            ("ubatch-size", "128"),
            ("batch-size", "2048"),
            ("repeat-last-n", "-1"),
            ("chat-template-kwargs", "{\"a\":1}"),
            ("api-prefix", "/llm/"),
        ],
        &[],
    );
    assert_eq!(
        s.sampling.logit_bias.value,
        [(5, 1.5), (7, f32::MIN), (9, -2.0)]
    );
    assert_eq!(s.stop.value, ["a, b", "User:"]);
    let chain = [
        SamplerKind::Penalties,
        SamplerKind::Dry,
        SamplerKind::TopK,
        SamplerKind::Temperature,
    ];
    assert_eq!(s.sampling.samplers.value, chain);
    assert_eq!(
        (
            s.sampling.seed.value,
            s.n_predict.value,
            s.sampling.temperature.value
        ),
        (None, None, 0.0)
    );
    assert_eq!(s.hosts.value, ["::1", "/run/x.sock"]);
    assert_eq!(s.batch_size.value, Some(128));
    assert_eq!(s.sampling.repeat_last_n.value, u32::MAX);
    assert_eq!(s.chat_template_kwargs.value["a"], 1);
    assert_eq!(s.api_prefix.value, "/llm");
}

#[test]
fn sources_read_well() {
    assert_eq!(
        Source::File(PathBuf::from("/etc/bitnet-launch/bitnet.toml")).to_string(),
        "bitnet.toml"
    );
    assert_eq!(Source::Default.to_string(), "default");
}

#[test]
fn a_port_of_auto_is_the_usual_one() {
    let s = settings(&[], &[("PORT", "auto")]);
    assert_eq!(s.port.value, 8081);
}

#[test]
fn engines_get_the_time_of_several_heartbeats() {
    for short in ["0", "1.9", "-3"] {
        let text = message(&[("hang-timeout", short)], &[]);
        assert!(text.ends_with("from 2 to 86400, or `auto`"), "{text}");
    }
    assert_eq!(
        settings(&[("hang-timeout", "auto")], &[])
            .hang_timeout
            .value,
        None
    );
}

#[test]
fn the_whole_sampler_chain_can_be_set() {
    let s = settings(
        &[
            ("sampling-seq", "txk"),
            ("dry-multiplier", "0.8"),
            ("dry-penalty-last-n", "-1"),
            ("dry-sequence-breaker", "\\n"),
            ("dry-sequence-breaker", ";"),
            ("xtc-probability", "0.5"),
            ("top-n-sigma", "1.5"),
            ("mirostat", "2"),
            ("mirostat-lr", "0.2"),
            ("grammar", "root ::= \"a\""),
        ],
        &[],
    );
    let params = s.sampling.params();
    let chain = [
        SamplerKind::Temperature,
        SamplerKind::Xtc,
        SamplerKind::TopK,
    ];
    assert_eq!(params.samplers, chain);
    assert_eq!(
        (params.dry_multiplier, params.dry_penalty_last_n),
        (0.8, u32::MAX)
    );
    assert_eq!(params.dry_sequence_breakers, ["\n", ";"]);
    assert_eq!((params.xtc_probability, params.top_n_sigma), (0.5, 1.5));
    assert_eq!((params.mirostat, params.mirostat_eta), (2, 0.2));
    assert!(params.grammar.is_some());
    let none = settings(&[("dry-sequence-breaker", "none")], &[]);
    assert!(none.sampling.params().dry_sequence_breakers.is_empty());
    for (name, value) in [
        ("mirostat", "3"),
        ("sampling-seq", "q"),
        ("grammar", "root ::= ("),
        ("json-schema", "5"),
    ] {
        assert!(read(&[(name, value)], &[]).is_err(), "{name} {value}");
    }
}
