//! What `config.json` of a Hugging Face directory says, in the words of a GGUF header.

use std::path::Path;

use super::error::ConvertError;
use super::json::{Json, short};
use super::master::Masters;
use crate::facts::{Architecture, Linear};
use crate::protocol::Pooling;
use crate::synth::header::Header;

/// A model's shape and conventions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelConfig {
    pub(crate) architecture: Architecture,
    pub(crate) name: String,
    pub(crate) n_layer: usize,
    pub(crate) n_embd: usize,
    pub(crate) n_ff: usize,
    pub(crate) n_head: usize,
    pub(crate) n_head_kv: usize,
    pub(crate) head_dim: usize,
    pub(crate) n_vocab: usize,
    pub(crate) context_length: usize,
    pub(crate) rope_freq_base: f32,
    pub(crate) norm_eps: f32,
    /// `tie_word_embeddings`, where it is said.
    pub(crate) tied: Option<bool>,
    /// Packed weights are W = code / weight_scale (plain BitLinear), not code * weight_scale (AutoBitLinear).
    pub(crate) divides_by_scale: bool,
    pub(crate) masters: Masters,
    /// How an embedding model's texts are embedded.
    pub(crate) pooling: Option<Pooling>,
    /// What was decided against or without the file, one sentence each.
    pub(crate) notes: Vec<String>,
}

impl ModelConfig {
    /// Reads `config.json`; `absmean`: master weights are of a BitNet even if the file doesn't say so.
    ///
    /// # Errors
    /// When it describes no model that can be converted.
    pub(crate) fn read(directory: &Path, absmean: bool) -> Result<ModelConfig, ConvertError> {
        let config = Json::read(&directory.join("config.json"))?;
        let architecture = architecture(&config)?;
        let mut notes = Vec::new();
        refuse_other_graphs(&config, architecture, &mut notes)?;
        let quantization = config.text("quantization_config.quant_method");
        if let Some(method) = quantization.filter(|method| *method != "bitnet") {
            let _ = method;
            return Err(config.wrong("quantization_config.quant_method", "`bitnet`"));
        }
        let n_embd = config.required("hidden_size")?;
        let n_head = config.required("num_attention_heads")?;
        let pooling = match architecture.has_head_norms() {
            true => Some(pooling(directory, &mut notes)?),
            false => None,
        };
        if !n_embd.is_multiple_of(n_head) && config.value("head_dim").is_none() {
            return Err(config.wrong("hidden_size", &format!("a multiple of {n_head} (heads)")));
        }
        let n_head_kv = config.count("num_key_value_heads")?.unwrap_or(n_head);
        if !n_head.is_multiple_of(n_head_kv) {
            return Err(config.wrong("num_key_value_heads", &format!("a divisor of {n_head}")));
        }
        let head_dim = config.count("head_dim")?.unwrap_or(n_embd / n_head);
        if !head_dim.is_multiple_of(2) {
            return Err(config.wrong("head_dim", "an even number"));
        }
        let scalar = config.number("query_pre_attn_scalar")?;
        if scalar.is_some_and(|scalar| scalar != head_dim as f32) {
            let expected = format!("{head_dim} (values per head)");
            return Err(config.wrong("query_pre_attn_scalar", &expected));
        }
        let trained_ternary = architecture.is_bitnet() || quantization.is_some() || absmean;
        Ok(ModelConfig {
            architecture,
            name: name(directory),
            n_layer: config.required("num_hidden_layers")?,
            n_embd,
            n_ff: config.required("intermediate_size")?,
            n_head,
            n_head_kv,
            head_dim,
            n_vocab: config.required("vocab_size")?,
            context_length: config.required("max_position_embeddings")?,
            rope_freq_base: rope_freq_base(&config)?,
            norm_eps: config
                .number("rms_norm_eps")?
                .filter(|eps| (0.0..1.0).contains(eps))
                .ok_or_else(|| config.wrong("rms_norm_eps", "a number from 0 to 1"))?,
            tied: config.truth("tie_word_embeddings")?,
            divides_by_scale: config.text("quantization_config.linear_class")
                != Some("autobitlinear"),
            masters: match trained_ternary {
                true => Masters::Absmean,
                false => Masters::Ternary,
            },
            pooling,
            notes,
        })
    }

    /// `[rows, cols]` of a ternary matrix: outputs, inputs.
    pub(crate) fn linear_shape(&self, linear: Linear) -> (usize, usize) {
        let n_attn = self.n_head * self.head_dim;
        let n_kv = self.n_head_kv * self.head_dim;
        match linear {
            Linear::Q => (n_attn, self.n_embd),
            Linear::K | Linear::V => (n_kv, self.n_embd),
            Linear::AttnOutput => (self.n_embd, n_attn),
            Linear::Gate | Linear::Up => (self.n_ff, self.n_embd),
            Linear::Down => (self.n_embd, self.n_ff),
        }
    }

    /// The architecture's keys, in the order of Microsoft's file.
    pub(crate) fn keys(&self, header: &mut Header) {
        let arch = self.architecture.name();
        header.str("general.architecture", arch);
        header.str("general.name", &self.name);
        let mut number =
            |suffix: &str, value: usize| header.u32(&format!("{arch}.{suffix}"), value as u32);
        number("vocab_size", self.n_vocab);
        number("context_length", self.context_length);
        number("embedding_length", self.n_embd);
        number("block_count", self.n_layer);
        number("feed_forward_length", self.n_ff);
        number("rope.dimension_count", self.head_dim);
        number("attention.head_count", self.n_head);
        number("attention.head_count_kv", self.n_head_kv);
        if self.architecture.has_head_norms() || self.head_dim * self.n_head != self.n_embd {
            number("attention.key_length", self.head_dim);
            number("attention.value_length", self.head_dim);
        }
        let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
        header.f32(&eps, self.norm_eps);
        header.f32(&format!("{arch}.rope.freq_base"), self.rope_freq_base);
        if let Some(pooling) = self.pooling {
            let number = match pooling {
                Pooling::None => 0,
                Pooling::Mean => 1,
                Pooling::Cls => 2,
                Pooling::Last => 3,
            };
            header.u32(&format!("{arch}.pooling_type"), number);
        }
    }
}

/// The directory's name; of a hub cache (`models--OWNER--NAME/snapshots/HASH`) the repository's.
fn name(directory: &Path) -> String {
    let whole = directory.canonicalize();
    let whole = whole.as_deref().unwrap_or(directory);
    let parts = whole.components().rev();
    let names = parts.map(|part| part.as_os_str().to_string_lossy().into_owned());
    let names: Vec<String> = names.take(3).collect();
    let repository = names.get(2).and_then(|name| name.strip_prefix("models--"));
    let repository = repository.and_then(|name| name.rsplit("--").next());
    let own = || names.first().cloned().unwrap_or_default();
    repository.map_or_else(own, str::to_owned)
}

/// Squared ReLU is the graph of `bitnet-b1.58`, SiLU that of `bitnet`. Microsoft's embedding models name themselves by
/// `model_type`, whatever their class.
fn architecture(config: &Json) -> Result<Architecture, ConvertError> {
    const KNOWN: &str = "`BitNetForCausalLM` (or `BitnetForCausalLM`), `LlamaForCausalLM` with ternary weights, or a BitNet \
                         embedding model (`Qwen3Model`, `Gemma3TextModel`)";
    let class = config.value("architectures").and_then(|list| list.get(0));
    let class = class.and_then(|name| name.as_str());
    let family = match class {
        Some("BitNetForCausalLM" | "BitnetForCausalLM") => Architecture::BitnetB158,
        Some("LlamaForCausalLM") => Architecture::Llama,
        _ => match config.text("model_type") {
            Some("qwen3") => Architecture::Qwen3,
            Some("gemma3_text") => Architecture::Gemma3,
            _ => return Err(config.wrong("architectures", KNOWN)),
        },
    };
    let (key, expected) = match family {
        Architecture::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
        _ => ("hidden_act", "silu"),
    };
    match (family, config.text(key).unwrap_or(expected)) {
        (Architecture::BitnetB158, "relu2") => Ok(Architecture::BitnetB158),
        (Architecture::BitnetB158, "silu") => Ok(Architecture::Bitnet),
        (Architecture::BitnetB158, _) => Err(config.wrong(key, "`relu2` or `silu`")),
        (_, found) if found == expected => Ok(family),
        _ => Err(config.wrong(key, &format!("`{expected}`"))),
    }
}

/// Options that would silently change the result.
fn refuse_other_graphs(
    config: &Json,
    architecture: Architecture,
    notes: &mut Vec<String>,
) -> Result<(), ConvertError> {
    let window = config.value("sliding_window").and_then(|n| n.as_u64());
    let context = config.count("max_position_embeddings")?.unwrap_or(0) as u64;
    let is_used = config.flag("use_sliding_window") != Some(false) && has_windows(config);
    if let Some(window) = window.filter(|&window| window < context && is_used) {
        if architecture != Architecture::Gemma3 {
            return Err(config.wrong("sliding_window", "none (full attention)"));
        }
        notes.push(format!(
            "config.json has layers that see {window} tokens back; here all layers see the whole text, as Microsoft's converter has it, so \
             longer texts get other vectors than Transformers gives them"
        ));
    }
    if config.flag("quantization_config.use_rms_norm") == Some(true) {
        let expected = "false (a norm inside each linear is not supported)";
        return Err(config.wrong("quantization_config.use_rms_norm", expected));
    }
    if config.flag("use_bidirectional_attention") == Some(true) {
        return Err(config.wrong("use_bidirectional_attention", "false (causal attention)"));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if config.value(key).is_some() {
            return Err(config.wrong(key, "none (logits without a cap)"));
        }
    }
    Ok(())
}

/// Some layer sees a window only, or nobody says which do.
fn has_windows(config: &Json) -> bool {
    let layers = config.value("layer_types").and_then(|list| list.as_array());
    layers.is_none_or(|layers| layers.iter().any(|layer| layer != "full_attention"))
}

/// What Sentence Transformers' `modules.json` and the folder of its pooling say; the last token where nothing does.
fn pooling(directory: &Path, notes: &mut Vec<String>) -> Result<Pooling, ConvertError> {
    const FOLDER: &str = "1_Pooling";
    let listed = directory.join("modules.json");
    let folder = match listed.exists() {
        true => pooling_folder(&listed)?,
        false => Some(FOLDER.to_owned()),
    };
    let path = folder.map(|folder| directory.join(folder).join("config.json"));
    let Some(path) = path.filter(|path| path.exists()) else {
        notes.push("the repository doesn't say how texts are pooled: the last token, as BitNet embedding models have it".to_owned());
        return Ok(Pooling::Last);
    };
    let config = Json::read(&path)?;
    let modes = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let said = modes.iter().find(|mode| config.flag(mode.0) == Some(true));
    let said = said.map(|mode| mode.1);
    said.ok_or_else(|| {
        let reason = "it names no pooling by the mean, the first or the last token";
        ConvertError::file(&path, reason)
    })
}

/// The folder beside `modules.json` whose module pools.
fn pooling_folder(path: &Path) -> Result<Option<String>, ConvertError> {
    let modules = super::json::list(path)?;
    let text = |module: &serde_json::Value, key: &str| {
        let value = module.get(key).and_then(|value| value.as_str());
        value.map(str::to_owned)
    };
    let pools = |module: &&serde_json::Value| {
        text(module, "type").is_some_and(|kind| kind.ends_with("Pooling"))
    };
    let Some(module) = modules.iter().find(pools) else {
        return Ok(None);
    };
    let folder = text(module, "path").unwrap_or_default();
    if Path::new(&folder)
        .file_name()
        .is_none_or(|name| name != folder.as_str())
    {
        let reason = format!("the pooling's folder is `{folder}`, expected one beside the file");
        return Err(ConvertError::file(path, reason));
    }
    Ok(Some(folder))
}

/// Transformers 4 says `rope_theta` and `rope_scaling`, 5 says `rope_parameters`; of Gemma 3 these have one entry for layers
/// with a window and one for the others, where 4 has `rope_local_base_freq`.
fn rope_freq_base(config: &Json) -> Result<f32, ConvertError> {
    let kinds =
        ["full_attention", "sliding_attention"].map(|kind| format!("rope_parameters.{kind}"));
    let nested = kinds.iter().filter(|key| config.value(key).is_some());
    let mut keys: Vec<&str> = nested.map(String::as_str).collect();
    if keys.is_empty() {
        keys.push("rope_parameters");
    }
    for key in keys.iter().copied().chain(["rope_scaling"]) {
        refuse_scaling(config, key)?;
    }
    let mut bases = vec![("rope_theta".to_owned(), config.number("rope_theta")?)];
    bases.push((
        "rope_local_base_freq".to_owned(),
        config.number("rope_local_base_freq")?,
    ));
    for key in keys {
        let key = format!("{key}.rope_theta");
        let base = config.number(&key)?;
        bases.push((key, base));
    }
    let mut found = bases.iter().filter_map(|(key, base)| Some((key, (*base)?)));
    let (_, base) = found.next().unwrap_or((&bases[0].0, 10_000.0));
    if let Some((other, _)) = found.find(|(_, other)| *other != base) {
        return Err(config.wrong(other, &format!("{base} (one base for all layers)")));
    }
    match base {
        base if base.is_finite() && base > 1.0 => Ok(base),
        _ => Err(config.wrong("rope_theta", "a number above 1")),
    }
}

fn refuse_scaling(config: &Json, key: &str) -> Result<(), ConvertError> {
    let Some(scaling) = config.value(key) else {
        return Ok(());
    };
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
    let kind = kind.and_then(|kind| kind.as_str()).unwrap_or("default");
    let factor = scaling.get("factor").and_then(|factor| factor.as_f64());
    if kind == "default" || kind == "linear" && factor == Some(1.0) {
        return Ok(());
    }
    Err(ConvertError::Key {
        path: config.path().to_owned(),
        key: key.to_owned(),
        found: short(scaling),
        expected: "none (scaled positions are not supported)".to_owned(),
    })
}
