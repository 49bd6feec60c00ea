//! Reads one setting's text. Every function returns the value, or what would have been right in words.

use std::path::PathBuf;
use std::time::Duration;

use bitnet_model::convert::lookup::Tiles;
use bitnet_model::grammar::GrammarError;
use bitnet_model::protocol::{
    Activation, Grammar, GrammarText, HeadMode, KeyOverride, KeyValue, KvType, Pooling,
    SamplerKind, WeightsHome,
};
use tracing::level_filters::LevelFilter;

use super::asked::LIST_SEPARATOR;
use super::{Affinity, CrashLoop, EngineChoice, KernelName, LogFormat, ModelSize, Numa, UseCase};

type Read<T> = Result<T, String>;

fn whole<T: std::str::FromStr + PartialOrd>(
    text: &str,
    at_least: T,
    at_most: T,
    what: &str,
) -> Read<T> {
    text.parse()
        .ok()
        .filter(|n| *n >= at_least && *n <= at_most)
        .ok_or_else(|| what.to_owned())
}

pub(super) fn text(text: &str) -> Read<String> {
    Ok(text.to_owned())
}

pub(super) fn list(text: &str) -> Read<Vec<String>> {
    let items = text
        .split([',', LIST_SEPARATOR])
        .map(str::trim)
        .filter(|item| !item.is_empty());
    Ok(items.map(str::to_owned).collect())
}

/// Never none: a flag whose shell variable is unset must not open the server.
pub(super) fn api_keys(text: &str) -> Read<Vec<String>> {
    let keys = list(text)?;
    match keys.is_empty() {
        true => Err("at least one key".to_owned()),
        false => Ok(keys),
    }
}

/// Nothing is no file.
pub(super) fn file(text: &str) -> Read<Option<PathBuf>> {
    Ok(Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty()))
}

/// As far as the kernel allows, or not at all.
pub(super) fn sandbox(text: &str) -> Read<bool> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err("`auto` or `off`".to_owned()),
    }
}

pub(super) fn switch(text: &str) -> Read<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "enabled" | "true" | "1" | "yes" => Ok(true),
        "off" | "disabled" | "false" | "0" | "no" => Ok(false),
        _ => Err("`on` or `off`".to_owned()),
    }
}

pub(super) fn number(text: &str) -> Read<f32> {
    text.parse()
        .ok()
        .filter(|x: &f32| x.is_finite())
        .ok_or_else(|| "a number".to_owned())
}

pub(super) fn positive(text: &str) -> Read<f32> {
    number(text)
        .ok()
        .filter(|x| *x > 0.0)
        .ok_or_else(|| "a number above 0".to_owned())
}

/// A number whose inverse is one, too; 0 is none.
pub(super) fn rope_factor(text: &str) -> Read<Option<f32>> {
    /// The inverses of much smaller ones are infinite.
    const LEAST: f32 = 1e-38;
    match number(text) {
        Ok(0.0) => Ok(None),
        Ok(factor) if factor >= LEAST => Ok(Some(factor)),
        _ => Err("a number from 1e-38 to 3.4e38, or 0 for the file's".to_owned()),
    }
}

pub(super) fn rope_freq_base(text: &str) -> Read<Option<f32>> {
    match number(text) {
        Ok(0.0) => Ok(None),
        _ => positive(text).map(Some),
    }
}

pub(super) fn count(text: &str) -> Read<usize> {
    whole(text, 1, 1 << 20, "a whole number from 1 to 1048576")
}

/// 0 or less is off.
pub(super) fn count_or_off(text: &str) -> Read<u32> {
    whole(
        text,
        i64::from(i32::MIN),
        i64::from(i32::MAX),
        "a whole number",
    )
    .map(|n| n.max(0) as u32)
}

pub(super) fn look_back(text: &str) -> Read<u32> {
    let n = whole(
        text,
        -1,
        i64::from(i32::MAX),
        "a whole number, or -1 for the whole context",
    )?;
    Ok(if n < 0 { u32::MAX } else { n as u32 })
}

/// `auto` and, as in llama-server, 0 or less are automatic. Of OpenMP's nested lists (`4,2`) the first level counts.
pub(super) fn threads(text: &str) -> Read<Option<usize>> {
    if text == "auto" {
        return Ok(None);
    }
    let first = text.split(',').next().unwrap_or(text).trim();
    let n = whole(
        first,
        -1,
        4096i64,
        "a number of threads up to 4096, or `auto`",
    )?;
    Ok(usize::try_from(n).ok().filter(|n| *n > 0))
}

/// 0 is all of the model's own.
pub(super) fn context(text: &str) -> Read<Option<usize>> {
    if text == "auto" {
        return Ok(None);
    }
    let n: usize = whole(
        text,
        0,
        1 << 24,
        "a number of tokens up to 16777216, or `auto`",
    )?;
    Ok(Some(n))
}

/// -1 is automatic, as in llama-server.
pub(super) fn slots(text: &str) -> Read<Option<usize>> {
    if text == "auto" || text == "-1" {
        return Ok(None);
    }
    whole(text, 1, 256, "a number of slots from 1 to 256, or `auto`").map(Some)
}

pub(super) fn batch(text: &str) -> Read<Option<usize>> {
    if text == "auto" {
        return Ok(None);
    }
    whole(
        text,
        1,
        1 << 16,
        "a number of tokens from 1 to 65536, or `auto`",
    )
    .map(Some)
}

pub(super) fn n_predict(text: &str) -> Read<Option<u32>> {
    let n = whole(
        text,
        -2,
        i64::from(i32::MAX),
        "a number of tokens, or -1 for no limit",
    )?;
    Ok(u32::try_from(n).ok())
}

/// -1 and llama-server's 4294967295 draw a new seed per request.
pub(super) fn seed(text: &str) -> Read<Option<u32>> {
    let n = whole(
        text,
        -1,
        i64::from(u32::MAX),
        "a whole number from 0 to 4294967294, or -1 for random",
    )?;
    Ok(u32::try_from(n).ok().filter(|n| *n != u32::MAX))
}

pub(super) fn port(text: &str) -> Read<u16> {
    whole(text, 0, u16::MAX, "a port number from 0 to 65535")
}

pub(super) fn hosts(text: &str) -> Read<Vec<String>> {
    let hosts: Vec<String> = list(text)?.into_iter().map(without_brackets).collect();
    let plain = |c: char| c.is_alphanumeric() || ".:-_%".contains(c);
    let good = |host: &String| host.ends_with(".sock") || host.chars().all(plain);
    match !hosts.is_empty() && hosts.iter().all(good) {
        true => Ok(hosts),
        false => Err(
            "an IP address or host name such as 127.0.0.1 or 0.0.0.0, or a path that ends in .sock"
                .to_owned(),
        ),
    }
}

fn without_brackets(host: String) -> String {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(bare) => bare.to_owned(),
        None => host,
    }
}

pub(super) fn api_prefix(text: &str) -> Read<String> {
    let bare = text.trim_end_matches('/');
    match bare.is_empty() || (bare.starts_with('/') && !bare.contains(['?', '#', ' ', '{', '}'])) {
        true => Ok(bare.to_owned()),
        false => Err("a path that begins with `/`".to_owned()),
    }
}

pub(super) fn json_object(text: &str) -> Read<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(text).map_err(|e| format!("a JSON object ({e})"))
}

/// Whether thoughts are split off.
pub(super) fn splits_reasoning(text: &str) -> Read<bool> {
    match text {
        "none" => Ok(false),
        "auto" | "deepseek" | "deepseek-legacy" => Ok(true),
        _ => Err("`none`, `deepseek` or `auto`".to_owned()),
    }
}

pub(super) fn pooling(text: &str) -> Read<Pooling> {
    match text {
        "none" => Ok(Pooling::None),
        "mean" => Ok(Pooling::Mean),
        "cls" => Ok(Pooling::Cls),
        "last" => Ok(Pooling::Last),
        _ => Err("`none`, `mean`, `cls` or `last`".to_owned()),
    }
}

pub(super) fn embd_normalize(text: &str) -> Read<i32> {
    whole(text, -1, 1 << 10, "a whole number from -1 to 1024")
}

/// An absolute path: the engine reads and writes there, too.
pub(super) fn folder(text: &str) -> Read<PathBuf> {
    std::fs::canonicalize(text)
        .ok()
        .filter(|path| path.is_dir())
        .ok_or_else(|| "a folder that exists".to_owned())
}

pub(super) fn megabytes(text: &str) -> Read<usize> {
    whole(text, 1, 4096, "a whole number from 1 to 4096").map(|n: usize| n << 20)
}

/// Megabytes, as bytes.
pub(super) fn memory(text: &str) -> Read<u64> {
    whole(text, 64, 1 << 30, "a number of megabytes from 64 on").map(|n: u64| n << 20)
}

pub(super) fn keep(text: &str) -> Read<i64> {
    whole(text, -1, 1 << 24, "a number of tokens, or -1 for all")
}

/// `15043+1` and `15043-1`, several separated by commas.
pub(super) fn logit_bias(text: &str) -> Read<Vec<(u32, f32)>> {
    list(text)?.iter().map(|item| one_bias(item)).collect()
}

/// `2560x6912=256/96`, several separated by commas.
pub(super) fn lookup_tiles(text: &str) -> Read<Vec<Tiles>> {
    list(text)?.iter().map(|item| item.parse()).collect()
}

fn one_bias(item: &str) -> Read<(u32, f32)> {
    let expected = || "TOKEN+BIAS or TOKEN-BIAS, such as `15043+1`".to_owned();
    let sign = item.find(['+', '-']).ok_or_else(expected)?;
    let token = item[..sign].parse().map_err(|_| expected())?;
    let bias = item[sign..].parse().map_err(|_| expected())?;
    match f32::is_nan(bias) {
        true => Err(expected()),
        false => Ok((token, bias.max(f32::MIN))),
    }
}

pub(super) fn seconds(text: &str) -> Read<Duration> {
    number(text)
        .ok()
        .filter(|s| (0.0..=86_400.0).contains(s))
        .map(Duration::from_secs_f32)
        .ok_or_else(|| "a number of seconds from 0 to 86400".to_owned())
}

/// 0 is never.
pub(super) fn queue_timeout(text: &str) -> Read<Option<Duration>> {
    seconds(text).map(|wait| (!wait.is_zero()).then_some(wait))
}

/// llama-server's: -1 is never.
pub(super) fn sleep_idle(text: &str) -> Read<Option<Duration>> {
    match text {
        "-1" | "off" => Ok(None),
        _ => seconds(text)
            .ok()
            .filter(|wait| !wait.is_zero())
            .map(Some)
            .ok_or_else(|| "a number of seconds up to 86400, or -1 for never".to_owned()),
    }
}

pub(super) fn crash_loop(text: &str) -> Read<CrashLoop> {
    match text {
        "stay" => Ok(CrashLoop::Stay),
        "exit" => Ok(CrashLoop::Exit),
        _ => Err("`stay` or `exit`".to_owned()),
    }
}

/// Several heartbeats of the engine: less would kill engines that are well.
pub(super) fn hang_timeout(text: &str) -> Read<Duration> {
    seconds(text)
        .ok()
        .filter(|wait| *wait >= Duration::from_secs(2))
        .ok_or_else(|| "a number of seconds from 2 to 86400, or `auto`".to_owned())
}

/// Only the form is checked here; whether this build and CPU have it, the plan says.
pub(super) fn kernel(text: &str) -> Read<KernelName> {
    let packing = text.split('/').next().unwrap_or(text);
    match packing {
        "i2_s" | "tl1" | "tl2" => Ok(text.to_owned()),
        _ => Err("`auto`, `i2_s`, `tl1`, `tl2` or one exactly, such as `i2_s/avx2`".to_owned()),
    }
}

pub(super) fn head(text: &str) -> Read<HeadMode> {
    match text {
        "exact" => Ok(HeadMode::Exact),
        "proven" => Ok(HeadMode::Proven),
        "full" => Ok(HeadMode::Full),
        "q8_0" => Ok(HeadMode::Q8_0),
        "q6_k" => Ok(HeadMode::Q6_K),
        _ => Err("`auto`, `exact`, `proven`, `full`, `q8_0` or `q6_k`".to_owned()),
    }
}

/// llama-server tells several kinds of n-grams apart; there is one here.
pub(super) fn spec(text: &str) -> Read<bool> {
    match text {
        "ngram" => Ok(true),
        "none" | "off" => Ok(false),
        text if text.starts_with("ngram-") => Ok(true),
        _ => Err("`ngram` or `none`: there is no speculation by another model".to_owned()),
    }
}

pub(super) fn draft_max(text: &str) -> Read<usize> {
    whole(text, 0, 64, "a whole number from 0 to 64")
}

pub(super) fn weights(text: &str) -> Read<WeightsHome> {
    match text {
        "huge_pages" => Ok(WeightsHome::HugePages),
        "mapped" => Ok(WeightsHome::Mapped),
        "copied" => Ok(WeightsHome::Copied),
        _ => Err("`auto`, `huge_pages`, `mapped` or `copied`".to_owned()),
    }
}

/// Whether the file is mapped and whether its weights are locked, where the mode says.
pub(super) fn load_mode(text: &str) -> Read<(Option<bool>, Option<bool>)> {
    match text {
        "auto" => Ok((None, None)),
        "mmap" => Ok((Some(true), None)),
        "mlock" => Ok((None, Some(true))),
        "mmap+mlock" => Ok((Some(true), Some(true))),
        "none" | "dio" => Ok((Some(false), None)),
        _ => Err("`auto`, `mmap`, `none`, `dio`, `mlock` or `mmap+mlock`".to_owned()),
    }
}

pub(super) fn numa(text: &str) -> Read<Numa> {
    match text {
        "distribute" => Ok(Numa::Distribute),
        "isolate" => Ok(Numa::Isolate),
        "numactl" => Ok(Numa::Numactl),
        _ => Err("`auto`, `distribute`, `isolate` or `numactl`".to_owned()),
    }
}

/// As a nice value.
pub(super) fn priority(text: &str) -> Read<i32> {
    match text {
        "-1" | "low" => Ok(5),
        "0" | "normal" => Ok(0),
        "1" | "medium" => Ok(-5),
        "2" | "high" => Ok(-10),
        "3" | "realtime" => Ok(-20),
        _ => Err("a whole number from -1 (low) to 3 (realtime)".to_owned()),
    }
}

/// `KEY=TYPE:VALUE`, several separated by commas; a comma in a text is written `\\,`.
pub(super) fn overridden_keys(text: &str) -> Read<Vec<KeyOverride>> {
    const COMMA: char = '\u{1d}';
    let text = text.replace("\\,", &COMMA.to_string());
    let items = text
        .split([',', LIST_SEPARATOR])
        .filter(|item| !item.is_empty());
    items
        .map(|item| overridden_key(&item.replace(COMMA, ",")))
        .collect::<Option<_>>()
        .ok_or_else(|| {
            "`KEY=TYPE:VALUE` with a type of `int`, `float`, `bool` or `str`, such as `tokenizer.ggml.add_bos_token=bool:false`".to_owned()
        })
}

fn overridden_key(item: &str) -> Option<KeyOverride> {
    let (key, typed) = item.split_once('=')?;
    let (kind, text) = typed.split_once(':')?;
    let value = match kind {
        "int" => KeyValue::Int(text.parse().ok()?),
        "float" => KeyValue::Float(text.parse().ok().filter(|x: &f64| x.is_finite())?),
        "bool" => KeyValue::Bool(match text {
            "true" => true,
            "false" => false,
            _ => return None,
        }),
        "str" => KeyValue::Str(text.to_owned()),
        _ => return None,
    };
    let key = key.trim().to_owned();
    (!key.is_empty()).then_some(KeyOverride { key, value })
}

pub(super) fn engine(text: &str) -> Read<EngineChoice> {
    match text {
        "" => Err("a path, `auto` or `builtin`".to_owned()),
        "builtin" | "built-in" => Ok(EngineChoice::BuiltIn),
        "auto" => Ok(EngineChoice::Auto),
        path => Ok(EngineChoice::At(PathBuf::from(path))),
    }
}

/// Repeated flags; commas belong to the arguments.
pub(super) fn arguments(text: &str) -> Read<Vec<String>> {
    Ok(text.split(LIST_SEPARATOR).map(str::to_owned).collect())
}

pub(super) fn affinity(text: &str) -> Read<Affinity> {
    match text {
        "auto" => Ok(Affinity::Auto),
        "none" | "off" => Ok(Affinity::None),
        list => list
            .parse()
            .map(Affinity::Cpus)
            .map_err(|_| "`auto`, `none` or a list of CPUs such as `0-3,6`".to_owned()),
    }
}

pub(super) fn use_case(text: &str) -> Read<UseCase> {
    match text.replace('-', "_").as_str() {
        "high_performance" => Ok(UseCase::HighPerformance),
        "balanced" | "auto" => Ok(UseCase::Balanced),
        "memory_efficient" => Ok(UseCase::MemoryEfficient),
        _ => Err("`high_performance`, `balanced` or `memory_efficient`".to_owned()),
    }
}

pub(super) fn model_size(text: &str) -> Read<ModelSize> {
    match text {
        "small" => Ok(ModelSize::Small),
        "medium" => Ok(ModelSize::Medium),
        "large" => Ok(ModelSize::Large),
        _ => Err("`small`, `medium`, `large` or `auto`".to_owned()),
    }
}

pub(super) fn activation(text: &str) -> Read<Option<Activation>> {
    match text {
        "relu2" => Ok(Some(Activation::Relu2)),
        "silu" => Ok(Some(Activation::Silu)),
        "gelu" => Ok(Some(Activation::Gelu)),
        "auto" => Ok(None),
        _ => Err("`relu2`, `silu` or `gelu`".to_owned()),
    }
}

/// llama-server's other types become the nearest there is; see [`kv_type_is_ours`].
pub(super) fn kv_type(text: &str) -> Read<KvType> {
    match text {
        "f32" => Ok(KvType::F32),
        "f16" | "auto" | "bf16" => Ok(KvType::F16),
        "q8_0" | "q5_1" | "q5_0" | "q4_1" | "q4_0" | "iq4_nl" => Ok(KvType::Q8_0),
        _ => Err("`f16`, `q8_0` or `f32`".to_owned()),
    }
}

/// Whether the cache is really kept as this type.
pub(super) fn kv_type_is_ours(text: &str) -> bool {
    matches!(text, "f16" | "f32" | "q8_0" | "auto")
}

/// Names and llama-server's numbers: 0 and 1 errors, 2 warnings, 3 information, 4 and up debugging.
pub(super) fn log_level(text: &str) -> Read<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "off" | "none" => Ok(LevelFilter::OFF),
        "error" | "0" | "1" => Ok(LevelFilter::ERROR),
        "warn" | "warning" | "2" => Ok(LevelFilter::WARN),
        "info" | "3" => Ok(LevelFilter::INFO),
        "debug" | "4" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        number if number.parse::<u32>().is_ok() => Ok(LevelFilter::DEBUG),
        _ => Err("`error`, `warn`, `info`, `debug`, `trace` or `off`".to_owned()),
    }
}

pub(super) fn log_format(text: &str) -> Read<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("`text` or `json`".to_owned()),
    }
}

/// Names as llama-server takes them. OLD's `tfs_z` and NEW's `infill` change nothing here and are passed over.
pub(super) fn samplers(text: &str) -> Read<Vec<SamplerKind>> {
    let names = text
        .split([';', ','])
        .map(str::trim)
        .filter(|name| !name.is_empty() && !matches!(*name, "tfs_z" | "infill"));
    let expected = "sampler names such as `penalties;top_k;typ_p;top_p;min_p;temperature`";
    names
        .map(|name| SamplerKind::by_name(name).ok_or_else(|| expected.to_owned()))
        .collect()
}

/// Letters as llama-server takes them; `f` was tail-free sampling.
pub(super) fn sampler_letters(text: &str) -> Read<Vec<SamplerKind>> {
    let letters = text.chars().filter(|letter| *letter != 'f');
    letters
        .map(SamplerKind::by_letter)
        .collect::<Option<_>>()
        .ok_or_else(|| "letters of samplers, such as `edskypmxt`".to_owned())
}

/// Texts with the escapes of a shell's user: `\\n` is a line break. `none` alone is none.
pub(super) fn breakers(text: &str) -> Read<Vec<String>> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let items = text.split(LIST_SEPARATOR).filter(|item| !item.is_empty());
    Ok(items
        .map(|item| item.replace("\\n", "\n").replace("\\t", "\t"))
        .collect())
}

pub(super) fn mirostat(text: &str) -> Read<u32> {
    whole(text, 0, 2, "0, 1 or 2")
}

/// How much the tokens before count in adaptive sampling.
pub(super) fn decay(text: &str) -> Read<f32> {
    let found = number(text)?;
    match (0.0..=0.99).contains(&found) {
        true => Ok(found),
        false => Err("0 to 0.99".to_owned()),
    }
}

/// One way to write a grammar.
pub(super) type ReadGrammar = fn(&str) -> Result<Grammar, String>;

pub(super) fn grammar(text: &str) -> Read<Grammar> {
    checked(match text.trim_start().starts_with("%llguidance") {
        true => GrammarText::Lark(text.to_owned()),
        false => GrammarText::Gbnf(text.to_owned()),
    })
}

pub(super) fn json_schema(text: &str) -> Read<Grammar> {
    checked(GrammarText::JsonSchema(text.to_owned()))
}

/// A Lark grammar that names tokens is judged where there is a vocabulary, request by request.
fn checked(text: GrammarText) -> Read<Grammar> {
    let grammar = Grammar {
        text,
        triggers: None,
    };
    let names_tokens = matches!(&grammar.text, GrammarText::Lark(text) if text.contains('<'));
    let no_vocabulary = || Err(GrammarError::Vocabulary("there is none yet".to_owned()));
    match bitnet_model::grammar::check(&grammar, no_vocabulary) {
        Err(error) if !names_tokens => Err(format!("a grammar that can be followed ({error})")),
        _ => Ok(grammar),
    }
}
