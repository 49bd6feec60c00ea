//! Gathers what the four sources say as text under key names, and reads it into [`Settings`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitnet_model::protocol::{
    Grammar, KvType, ModelSource, Overrides, SamplerKind, SamplingParams, WeightsHome,
};

use bitnet_server::ApiKeys;

use super::keys::{self, Key, Shape};
use super::{
    Affinity, CrashLoop, Dialect, EngineChoice, Environment, External, LogFormat, Sampling,
    Setting, Settings, SettingsError, Source, TlsFiles, UseCase, values,
};
use crate::llama_argv;
use crate::models::locate::{Found, locate};

/// Tokens guessed ahead in one step, if nobody says how many: together with the token before them as many as kernels take at once.
const DRAFT_MAX: usize = 7;

/// Between the values of a repeated flag or of an array: a character nobody types.
pub(super) const LIST_SEPARATOR: char = '\u{1f}';

/// Text under key names, best source only.
#[derive(Default)]
pub(super) struct Asked(BTreeMap<&'static str, Setting<String>>);

impl Asked {
    pub(super) fn add_flags(&mut self, values: Vec<(&'static str, String, String)>) {
        let mut flags: BTreeMap<&'static str, Setting<String>> = BTreeMap::new();
        for (name, value, flag) in values {
            let list = keys::find(name).is_some_and(|key| matches!(key.shape, Shape::List(_)));
            match flags.get_mut(name) {
                Some(setting) if list => {
                    setting.value.push(LIST_SEPARATOR);
                    setting.value.push_str(&value);
                }
                _ => {
                    let source = Source::Flag(flag);
                    flags.insert(name, Setting { value, source });
                }
            }
        }
        self.0.extend(flags);
    }

    /// Empty variables count as unset, as in the compose files that pass `${VAR:-}`.
    pub(super) fn add_environment(&mut self, env: &Environment) {
        for key in keys::KEYS {
            if let Some(setting) = from_environment(key, env) {
                self.0.insert(key.name, setting);
            }
        }
    }

    /// Variables of llama-server that nobody here reads. Another engine reads them itself.
    pub(super) fn judge_environment(
        &self,
        env: &Environment,
        warnings: &mut Vec<String>,
    ) -> Result<(), SettingsError> {
        if self.wants_another_engine() {
            return Ok(());
        }
        for (name, value) in env
            .iter()
            .filter(|(name, value)| name.starts_with("LLAMA_ARG_") && !value.is_empty())
        {
            if !is_read(name) {
                llama_argv::judge_variable(name, value, warnings)?;
            }
        }
        Ok(())
    }

    /// The settings file to read, and whether it must be there.
    pub(super) fn config_file(&self) -> Option<(PathBuf, bool)> {
        if let Some(asked) = self.0.get("config") {
            return Some((PathBuf::from(&asked.value), true));
        }
        ["bitnet.toml", "/etc/bitnet-launch/bitnet.toml"]
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
            .map(|path| (path, false))
    }

    pub(super) fn add_file(&mut self, path: &Path, required: bool) -> Result<(), SettingsError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) if required => {
                let source_ = self.0["config"].source.clone();
                let path = path.to_owned();
                return Err(SettingsError::Unreadable {
                    source_,
                    path,
                    cause,
                });
            }
            Err(cause) => {
                let cause = cause.to_string();
                let path = path.to_owned();
                return Err(SettingsError::File { path, cause });
            }
        };
        let bad = |cause: String| SettingsError::File {
            path: path.to_owned(),
            cause,
        };
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| bad(with_line(&text, &error)))?;
        for (name, value) in &table {
            let key = keys::find(&name.replace('_', "-")).ok_or_else(|| {
                bad(format!(
                    "`{name}` is not a setting; `bitnet-launch --help` lists them"
                ))
            })?;
            let value = toml_text(value)
                .ok_or_else(|| bad(format!("`{name}` is a table, expected a plain value")))?;
            let source = Source::File(path.to_owned());
            self.0.entry(key.name).or_insert(Setting { value, source });
        }
        Ok(())
    }

    pub(super) fn into_settings(
        self,
        dialect: Dialect,
        mut warnings: Vec<String>,
        env: &Environment,
    ) -> Result<Settings, SettingsError> {
        let defaults = SamplingParams::default();
        let mut notices = Vec::new();
        self.warn_of_kv_type(&mut warnings);
        self.warn_of_drafts(&mut warnings);
        let number = |name, default| self.or(name, default, values::number);
        let llama = dialect == Dialect::LlamaServer;
        Ok(Settings {
            model: self.model(env, &mut notices)?,
            alias: self.or("alias", Vec::new(), values::list)?,
            tags: self.or("tags", Vec::new(), values::list)?,
            model_size: self.optional("model-size", values::model_size)?,
            chat_template: self.chat_template()?,
            system_prompt: self.optional("system-prompt", values::text)?,
            overrides: Overrides {
                activation: self.or("activation", None, values::activation)?.value,
                untied_head: self
                    .or("untied-head", None, |v| values::switch(v).map(Some))?
                    .value,
                pre_tokenizer: self
                    .or("pre-tokenizer", None, |v| values::text(v).map(Some))?
                    .value,
                rope_freq_base: self
                    .or("rope-freq-base", None, values::rope_freq_base)?
                    .value,
                rope_freq_scale: self.rope_freq_scale(&mut warnings)?,
                keys: self
                    .or("override-kv", Vec::new(), values::overridden_keys)?
                    .value,
                lookup_tiles: self
                    .or("lookup-tiles", Vec::new(), values::lookup_tiles)?
                    .value,
            },
            kernel: self.optional("kernel", values::kernel)?,
            head: self.optional("head", values::head)?,
            spec: self.or("spec", false, values::spec)?,
            draft_tokens: self.or("draft-max", DRAFT_MAX, values::draft_max)?,
            weights: self.weights()?,
            threads: self.or("threads", None, values::threads)?,
            threads_batch: self.or("threads-batch", None, values::threads)?,
            cpu_affinity: self.or("cpu-affinity", Affinity::Auto, values::affinity)?,
            numa: self.optional("numa", values::numa)?,
            nice: self.or("prio", 0, values::priority)?,
            use_case: self.or("use-case", UseCase::Balanced, values::use_case)?,
            ctx_size: self.or("ctx-size", None, values::context)?,
            parallel: self.or("parallel", None, values::slots)?,
            batch_size: self.batch_size()?,
            kv_type: self.or("kv-type", KvType::F16, values::kv_type)?,
            external: self.external()?,
            mlock: self.mlock()?,
            tune: self.or("tune", false, values::switch)?,
            per_node: self.or("per-node", false, values::switch)?,
            memory_bytes: self.optional("memory", values::memory)?,
            replan: self.or("replan", false, values::switch)?,
            sandbox: self.or("sandbox", true, values::sandbox)?,
            context_shift: self.or("context-shift", false, values::switch)?,
            chat_template_kwargs: self.or(
                "chat-template-kwargs",
                serde_json::Map::new(),
                values::json_object,
            )?,
            prefill_assistant: self.or("prefill-assistant", true, values::switch)?,
            split_reasoning: self.or("reasoning-format", false, values::splits_reasoning)?,
            skip_chat_parsing: self.or("skip-chat-parsing", false, values::switch)?,
            static_path: self.or("path", None, |v| values::folder(v).map(Some))?,
            pooling: self.or("pooling", None, |v| values::pooling(v).map(Some))?,
            embd_normalize: self.or("embd-normalize", 2, values::embd_normalize)?,
            slot_save_path: self.or("slot-save-path", None, |v| values::folder(v).map(Some))?,
            hosts: self.or("host", vec!["127.0.0.1".to_owned()], values::hosts)?,
            port: self.port(llama)?,
            reuse_port: self.or("reuse-port", false, values::switch)?,
            tls: self.tls()?,
            api_keys: self.api_keys()?,
            public_models: self.or("public-models", false, values::switch)?,
            timeout: self.or("timeout", Duration::from_secs(600), values::seconds)?,
            sse_ping: self.or(
                "sse-ping-interval",
                Duration::from_secs(30),
                values::seconds,
            )?,
            api_prefix: self.or("api-prefix", String::new(), values::api_prefix)?,
            cors_origins: self.or("cors-origins", Vec::new(), values::list)?,
            cors_methods: self.or("cors-methods", None, |v| values::text(v).map(Some))?,
            cors_headers: self.or("cors-headers", None, |v| values::text(v).map(Some))?,
            cors_credentials: self.or("cors-credentials", true, values::switch)?,
            ui: self.or("ui", true, values::switch)?,
            max_queue: self.or("max-queue", 64, values::count)?,
            agent_check_port: self.or("agent-check-port", None, |v| values::port(v).map(Some))?,
            full_speed_tok_s: self.or("full-speed", 100.0, values::positive)?,
            queue_timeout: self.or("queue-timeout", None, values::queue_timeout)?,
            max_body_bytes: self.or("max-body", 64 << 20, values::megabytes)?,
            drain_notice: self.or("drain-notice", Duration::ZERO, values::seconds)?,
            drain_timeout: self.or("drain-timeout", Duration::from_secs(4), values::seconds)?,
            hang_timeout: self.optional("hang-timeout", values::hang_timeout)?,
            crash_loop: self.or("crash-loop", CrashLoop::Stay, values::crash_loop)?,
            reload_gap: self.or("reload-gap", false, values::switch)?,
            sleep_idle: self.or("sleep-idle-seconds", None, values::sleep_idle)?,
            metrics: self.or("metrics", !llama, values::switch)?,
            slots: self.or("slots", true, values::switch)?,
            props: self.or("props", false, values::switch)?,
            n_predict: self.or("n-predict", None, values::n_predict)?,
            max_tokens_cap: self.or("max-tokens-cap", None, values::n_predict)?,
            stop: self.stop_texts(),
            special: self.or("special", false, values::switch)?,
            cache_prompt: self.or("cache-prompt", true, values::switch)?,
            keep: self.or("keep", 0, values::keep)?,
            sampling: Sampling {
                temperature: number("temp", defaults.temperature)?.map(|t| t.max(0.0)),
                top_k: self.or("top-k", defaults.top_k, values::count_or_off)?,
                top_p: number("top-p", defaults.top_p)?,
                min_p: number("min-p", defaults.min_p)?,
                typical_p: number("typical", defaults.typical_p)?,
                repeat_last_n: self.or(
                    "repeat-last-n",
                    defaults.repeat_last_n,
                    values::look_back,
                )?,
                repeat_penalty: self.or(
                    "repeat-penalty",
                    defaults.repeat_penalty,
                    values::positive,
                )?,
                presence_penalty: number("presence-penalty", defaults.presence_penalty)?,
                frequency_penalty: number("frequency-penalty", defaults.frequency_penalty)?,
                dynatemp_range: number("dynatemp-range", defaults.dynatemp_range)?,
                dynatemp_exponent: number("dynatemp-exp", defaults.dynatemp_exponent)?,
                top_n_sigma: number("top-n-sigma", defaults.top_n_sigma)?,
                xtc_probability: number("xtc-probability", defaults.xtc_probability)?,
                xtc_threshold: number("xtc-threshold", defaults.xtc_threshold)?,
                dry_multiplier: number("dry-multiplier", defaults.dry_multiplier)?,
                dry_base: number("dry-base", defaults.dry_base)?,
                dry_allowed_length: self.or(
                    "dry-allowed-length",
                    defaults.dry_allowed_length,
                    values::count_or_off,
                )?,
                dry_penalty_last_n: self.or(
                    "dry-penalty-last-n",
                    defaults.dry_penalty_last_n,
                    values::look_back,
                )?,
                dry_sequence_breakers: self.or(
                    "dry-sequence-breaker",
                    defaults.dry_sequence_breakers,
                    values::breakers,
                )?,
                mirostat: self.or("mirostat", defaults.mirostat, values::mirostat)?,
                mirostat_tau: number("mirostat-ent", defaults.mirostat_tau)?,
                mirostat_eta: number("mirostat-lr", defaults.mirostat_eta)?,
                adaptive_target: number("adaptive-target", defaults.adaptive_target)?,
                adaptive_decay: self.or(
                    "adaptive-decay",
                    defaults.adaptive_decay,
                    values::decay,
                )?,
                grammar: self.grammar()?,
                samplers: self.samplers(defaults.samplers)?,
                logit_bias: self.or("logit-bias", Vec::new(), values::logit_bias)?,
                seed: self.or("seed", None, values::seed)?,
                ignore_eos: self.or("ignore-eos", false, values::switch)?,
            },
            log_level: self.optional("log-level", values::log_level)?,
            log_format: self.or("log-format", LogFormat::Text, values::log_format)?,
            log_file: self.or("log-file", None, values::file)?,
            warnings,
            notices,
        })
    }

    /// A value, or the default.
    fn or<T>(
        &self,
        name: &str,
        default: T,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Setting<T>, SettingsError> {
        debug_assert!(keys::find(name).is_some(), "`{name}` is not in the table");
        let Some(asked) = self.0.get(name) else {
            let source = Source::Default;
            return Ok(Setting {
                value: default,
                source,
            });
        };
        let value = read(asked.value.trim()).map_err(|expected| SettingsError::Bad {
            source_: asked.source.clone(),
            found: match asked.source {
                Source::File(_) => format!("{name} = {}", asked.value),
                _ => asked.value.clone(),
            },
            expected,
        })?;
        let source = asked.source.clone();
        Ok(Setting { value, source })
    }

    /// A value, or `None` for `auto` and for nothing said.
    fn optional<T>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Setting<Option<T>>, SettingsError> {
        self.or(name, None, |text| match text {
            "auto" => Ok(None),
            text => read(text).map(Some),
        })
    }

    fn model(
        &self,
        env: &Environment,
        notices: &mut Vec<String>,
    ) -> Result<Setting<ModelSource>, SettingsError> {
        let Some(asked) = self.0.get("model") else {
            return Ok(Setting {
                value: ModelSource::Demo,
                source: Source::Default,
            });
        };
        let source = asked.source.clone();
        let value = locate_model(Path::new(asked.value.trim()), &source, env, notices)?;
        Ok(Setting { value, source })
    }

    /// Both files or none.
    fn tls(&self) -> Result<Option<TlsFiles>, SettingsError> {
        let certificate = self.or("ssl-cert-file", None, values::file)?;
        let key = self.or("ssl-key-file", None, values::file)?;
        let alone = |source_: Source, found: PathBuf, other: &str| SettingsError::Bad {
            source_,
            found: found.display().to_string(),
            expected: format!("`{other}` beside it"),
        };
        match (certificate.value, key.value) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
            (Some(found), None) => Err(alone(certificate.source, found, "ssl-key-file")),
            (None, Some(found)) => Err(alone(key.source, found, "ssl-cert-file")),
            (None, None) => Ok(None),
        }
    }

    fn external(&self) -> Result<External, SettingsError> {
        let is_wanted = self.wants_another_engine();
        let said = self.0.iter();
        let said = said.filter(|(name, _)| is_wanted && !name.starts_with("api-key"));
        Ok(External {
            said: said.map(|(name, asked)| (*name, asked.into())).collect(),
            engine: self.or("engine", EngineChoice::BuiltIn, values::engine)?,
            args: self.or("engine-arg", Vec::new(), values::arguments)?,
            check: self.or("engine-check", true, values::switch)?,
            exec: self.or("exec", false, values::switch)?,
        })
    }

    fn wants_another_engine(&self) -> bool {
        let engine = self
            .0
            .get("engine")
            .map(|asked| values::engine(asked.value.trim()));
        matches!(engine, Some(Ok(choice)) if choice != EngineChoice::BuiltIn)
    }

    fn warn_of_kv_type(&self, warnings: &mut Vec<String>) {
        if let Some(Setting { value, source }) = self.0.get("kv-type")
            && !self.wants_another_engine()
            && !values::kv_type_is_ours(value)
            && let Ok(nearest) = values::kv_type(value)
        {
            warnings.push(format!(
                "{source} {value} has no effect: the cache is kept as {}",
                nearest.name()
            ));
        }
    }

    /// A length of drafts alone drafts nothing.
    fn warn_of_drafts(&self, warnings: &mut Vec<String>) {
        let is_off = self
            .0
            .get("spec")
            .is_none_or(|it| values::spec(&it.value) == Ok(false));
        if let Some(Setting { value, source }) = self.0.get("draft-max")
            && is_off
            && value != "0"
        {
            warnings.push(format!(
                "{source} {value} has no effect without `--spec ngram`"
            ));
        }
    }

    /// Stop texts may hold commas and blanks: repeated flags are kept apart by [`LIST_SEPARATOR`], and only by it.
    fn stop_texts(&self) -> Setting<Vec<String>> {
        let Some(asked) = self.0.get("reverse-prompt") else {
            let (value, source) = (Vec::new(), Source::Default);
            return Setting { value, source };
        };
        let texts = asked
            .value
            .split(LIST_SEPARATOR)
            .filter(|text| !text.is_empty());
        Setting {
            value: texts.map(str::to_owned).collect(),
            source: asked.source.clone(),
        }
    }

    /// By name, or by letters.
    fn samplers(
        &self,
        default: Vec<SamplerKind>,
    ) -> Result<Setting<Vec<SamplerKind>>, SettingsError> {
        match self.0.contains_key("samplers") {
            true => self.or("samplers", default, values::samplers),
            false => self.or("sampling-seq", default, values::sampler_letters),
        }
    }

    /// The first of the four ways to give one; what is wrong with it is said at the start, not to each client.
    fn grammar(&self) -> Result<Setting<Option<Grammar>>, SettingsError> {
        let ways: [(&str, values::ReadGrammar); 2] = [
            ("grammar", values::grammar),
            ("json-schema", values::json_schema),
        ];
        for (name, read) in ways {
            if self.0.contains_key(name) {
                return self.or(name, None, |text| read(text).map(Some));
            }
            let file = format!("{name}-file");
            if let Some(asked) = self.0.get(file.as_str()) {
                let text = read_text(asked)?;
                return self.or(&file, None, |_| read(&text).map(Some));
            }
        }
        self.or("grammar", None, |_| Ok(None))
    }

    fn chat_template(&self) -> Result<Setting<Option<String>>, SettingsError> {
        let file = self.0.get("chat-template-file");
        let text = self.0.get("chat-template");
        match (file, text) {
            (Some(file), text) if text.is_none_or(|text| file.source.wins_over(&text.source)) => {
                Ok(Setting {
                    value: Some(read_text(file)?),
                    source: file.source.clone(),
                })
            }
            _ => self.or("chat-template", None, |text| Ok(Some(text.to_owned()))),
        }
    }

    /// `--weights`, else what `--mmap` or `--load-mode` say.
    fn weights(&self) -> Result<Setting<Option<WeightsHome>>, SettingsError> {
        let asked = self.optional("weights", values::weights)?;
        let mmap = self.or("mmap", true, values::switch)?;
        let mode = self.or("load-mode", (None, None), values::load_mode)?;
        let copied = |source| Setting {
            value: Some(WeightsHome::Copied),
            source,
        };
        Ok(match (asked.value, mmap.value, mode.value.0) {
            (None, false, _) => copied(mmap.source),
            (None, true, Some(false)) if mmap.source == Source::Default => copied(mode.source),
            _ => asked,
        })
    }

    fn mlock(&self) -> Result<Setting<bool>, SettingsError> {
        let asked = self.or("mlock", false, values::switch)?;
        let mode = self.or("load-mode", (None, None), values::load_mode)?;
        Ok(match (&asked.source, mode.value.1) {
            (Source::Default, Some(value)) => Setting {
                value,
                source: mode.source,
            },
            _ => asked,
        })
    }

    fn rope_freq_scale(&self, warnings: &mut Vec<String>) -> Result<Option<f32>, SettingsError> {
        let above_0 = |text: &str| match values::number(text) {
            Ok(0.0) => Ok(None),
            _ => values::positive(text).map(Some),
        };
        let scale = self.or("rope-freq-scale", None, above_0)?;
        let factor = self.or("rope-scale", None, values::rope_factor)?;
        let method = self.or("rope-scaling", None, |text| match text {
            "none" | "linear" | "yarn" => Ok(Some(text.to_owned())),
            _ => Err("`none` or `linear`".to_owned()),
        })?;
        if method.value.as_deref() == Some("yarn") && !self.wants_another_engine() {
            warnings.push(format!(
                "{} yarn has no effect: positions are scaled linearly",
                method.source
            ));
        }
        Ok(match (method.value.as_deref(), scale.value, factor.value) {
            (Some("none"), ..) => Some(1.0),
            (_, Some(scale), _) => Some(scale),
            (_, None, Some(factor)) => Some(1.0 / factor),
            _ => None,
        })
    }

    fn port(&self, llama: bool) -> Result<Setting<u16>, SettingsError> {
        let default = if llama { 8080 } else { 8081 };
        let asked = self.optional("port", values::port)?;
        Ok(Setting {
            value: asked.value.unwrap_or(default),
            source: asked.source,
        })
    }

    fn api_keys(&self) -> Result<Setting<ApiKeys>, SettingsError> {
        let mut keys = self.or("api-key", Vec::new(), values::api_keys)?;
        if let Some(file) = self.0.get("api-key-file") {
            let text = read_text(file)?;
            let lines = text.lines().map(str::trim);
            keys.value.extend(
                lines
                    .filter(|l| !l.is_empty() && !l.starts_with('#'))
                    .map(str::to_owned),
            );
            keys.source = file.source.clone();
            if keys.value.is_empty() {
                return Err(SettingsError::Bad {
                    source_: file.source.clone(),
                    found: file.value.clone(),
                    expected: "a file with at least one key".to_owned(),
                });
            }
        }
        Ok(keys.map(ApiKeys))
    }

    /// The smaller of batch and micro-batch.
    fn batch_size(&self) -> Result<Setting<Option<usize>>, SettingsError> {
        let batch = self.or("batch-size", None, values::batch)?;
        let micro = self.or("ubatch-size", None, values::batch)?;
        Ok(match (batch.value, micro.value) {
            (Some(b), Some(u)) if b <= u => batch,
            (_, Some(_)) => micro,
            _ => batch,
        })
    }
}

/// The key's value in the environment. For switches, `LLAMA_ARG_NO_X` set to anything means off.
fn from_environment(key: &Key, env: &Environment) -> Option<Setting<String>> {
    for name in key.env {
        if key.shape == Shape::Switch
            && let Some(no) = negative_name(name)
            && env.contains_key(&no)
        {
            return Some(Setting {
                value: "off".to_owned(),
                source: Source::Environment(no),
            });
        }
        if let Some(value) = env.get(*name).filter(|value| !value.is_empty()) {
            return Some(Setting {
                value: value.clone(),
                source: Source::Environment((*name).to_owned()),
            });
        }
    }
    None
}

fn negative_name(name: &str) -> Option<String> {
    name.strip_prefix("LLAMA_ARG_")
        .map(|rest| format!("LLAMA_ARG_NO_{rest}"))
}

fn is_read(variable: &str) -> bool {
    keys::KEYS.iter().any(|key| {
        key.env.contains(&variable)
            || (key.shape == Shape::Switch
                && key
                    .env
                    .iter()
                    .any(|name| negative_name(name).as_deref() == Some(variable)))
    })
}

fn with_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    match error.span() {
        Some(span) => {
            let line = 1 + text[..span.start.min(text.len())].matches('\n').count();
            format!("line {line}: {message}")
        }
        None => message.to_owned(),
    }
}

fn toml_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(n) => Some(n.to_string()),
        toml::Value::Float(x) => Some(x.to_string()),
        toml::Value::Boolean(on) => Some(if *on { "on" } else { "off" }.to_owned()),
        toml::Value::Array(items) => items
            .iter()
            .map(toml_text)
            .collect::<Option<Vec<_>>>()
            .map(|v| v.join(&LIST_SEPARATOR.to_string())),
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn read_text(file: &Setting<String>) -> Result<String, SettingsError> {
    let path = PathBuf::from(file.value.trim());
    std::fs::read_to_string(&path).map_err(|cause| SettingsError::Unreadable {
        source_: file.source.clone(),
        path,
        cause,
    })
}

/// A file is itself; a directory is the one GGUF file in it; a name is looked up in the cache. An empty directory named by the environment (the container
/// image names its volume that way) means the demo model.
fn locate_model(
    path: &Path,
    source: &Source,
    env: &Environment,
    notices: &mut Vec<String>,
) -> Result<ModelSource, SettingsError> {
    if path.is_file() {
        return Ok(ModelSource::File(path.to_owned()));
    }
    let source_ = source.clone();
    let path = path.to_owned();
    if !path.is_dir() {
        let name = path.to_string_lossy().into_owned();
        return match locate(&name, env) {
            Found::File(file) => {
                notices.push(format!(
                    "Found model {name} ({source}) in {}",
                    file.display()
                ));
                Ok(ModelSource::File(file))
            }
            Found::ToConvert(directory) => Err(SettingsError::NotConverted {
                source_,
                name,
                directory,
            }),
            Found::NotHere => Err(SettingsError::NotPulled { source_, name }),
            Found::NoName => Err(SettingsError::NoModel { source_, path }),
        };
    }
    let mut found = match gguf_files(&path) {
        Ok(found) => found,
        Err(cause) => {
            return Err(SettingsError::Unreadable {
                source_,
                path,
                cause,
            });
        }
    };
    match (found.len(), source) {
        (1, _) => {
            let file = path.join(found.remove(0));
            notices.push(format!("Found model {} ({source})", file.display()));
            Ok(ModelSource::File(file))
        }
        (0, Source::Environment(_)) => {
            notices.push(format!(
                "No .gguf file in {} ({source}): serving the bundled demo model; put a model there to serve it",
                path.display()
            ));
            Ok(ModelSource::Demo)
        }
        (0, _) => Err(SettingsError::EmptyDirectory { source_, path }),
        _ => Err(SettingsError::SeveralModels {
            source_,
            path,
            found,
        }),
    }
}

fn gguf_files(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.to_ascii_lowercase().ends_with(".gguf") && entry.path().is_file() {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}
