//! What `config.json` of a Hugging Face directory says, in the words of a GGUF header.

use std::path::Path;

use super::error::ConvertError;
use super::json::{Json, short};
use super::master::Masters;
use crate::facts::Architecture;
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
}

impl ModelConfig {
    /// Reads `config.json`; `absmean`: master weights are of a BitNet even if the file doesn't say so.
    ///
    /// # Errors
    /// When it describes no model that can be converted.
    pub(crate) fn read(directory: &Path, absmean: bool) -> Result<ModelConfig, ConvertError> {
        let config = Json::read(&directory.join("config.json"))?;
        let architecture = architecture(&config)?;
        refuse_other_graphs(&config)?;
        let quantization = config.text("quantization_config.quant_method");
        if let Some(method) = quantization.filter(|method| *method != "bitnet") {
            let _ = method;
            return Err(config.wrong("quantization_config.quant_method", "`bitnet`"));
        }
        let n_embd = config.required("hidden_size")?;
        let n_head = config.required("num_attention_heads")?;
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
            tied: config.flag("tie_word_embeddings"),
            divides_by_scale: config.text("quantization_config.linear_class")
                != Some("autobitlinear"),
            masters: match trained_ternary {
                true => Masters::Absmean,
                false => Masters::Ternary,
            },
        })
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
        if self.head_dim * self.n_head != self.n_embd {
            number("attention.key_length", self.head_dim);
            number("attention.value_length", self.head_dim);
        }
        let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
        header.f32(&eps, self.norm_eps);
        header.f32(&format!("{arch}.rope.freq_base"), self.rope_freq_base);
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

/// Squared ReLU is the graph of `bitnet-b1.58`, SiLU that of `bitnet`.
fn architecture(config: &Json) -> Result<Architecture, ConvertError> {
    const KNOWN: &str =
        "`BitNetForCausalLM` (or `BitnetForCausalLM`), or `LlamaForCausalLM` with ternary weights";
    let class = config.value("architectures").and_then(|list| list.get(0));
    let class = class
        .and_then(|name| name.as_str())
        .ok_or_else(|| config.wrong("architectures", KNOWN))?;
    let activation = config.text("hidden_act").unwrap_or("silu");
    match (class, activation) {
        ("BitNetForCausalLM" | "BitnetForCausalLM", "relu2") => Ok(Architecture::BitnetB158),
        ("BitNetForCausalLM" | "BitnetForCausalLM", "silu") => Ok(Architecture::Bitnet),
        ("LlamaForCausalLM", "silu") => Ok(Architecture::Llama),
        ("LlamaForCausalLM", _) => Err(config.wrong("hidden_act", "`silu`")),
        ("BitNetForCausalLM" | "BitnetForCausalLM", _) => {
            Err(config.wrong("hidden_act", "`relu2` or `silu`"))
        }
        _ => Err(config.wrong("architectures", KNOWN)),
    }
}

/// Options that would silently change the result.
fn refuse_other_graphs(config: &Json) -> Result<(), ConvertError> {
    let window = config.value("sliding_window").and_then(|n| n.as_u64());
    let context = config.count("max_position_embeddings")?.unwrap_or(0) as u64;
    if window.is_some_and(|window| window < context) {
        return Err(config.wrong("sliding_window", "none (full attention)"));
    }
    if config.flag("quantization_config.use_rms_norm") == Some(true) {
        let expected = "false (a norm inside each linear is not supported)";
        return Err(config.wrong("quantization_config.use_rms_norm", expected));
    }
    Ok(())
}

/// Transformers 4 says `rope_theta` and `rope_scaling`, 5 says `rope_parameters`.
fn rope_freq_base(config: &Json) -> Result<f32, ConvertError> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(scaling) = config.value(key) else {
            continue;
        };
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
        let kind = kind.and_then(|kind| kind.as_str()).unwrap_or("default");
        let factor = scaling.get("factor").and_then(|factor| factor.as_f64());
        if !(kind == "default" || kind == "linear" && factor == Some(1.0)) {
            return Err(ConvertError::Key {
                path: config.path().to_owned(),
                key: key.to_owned(),
                found: short(scaling),
                expected: "none (scaled positions are not supported)".to_owned(),
            });
        }
    }
    let base = match config.number("rope_theta")? {
        Some(base) => Some(base),
        None => config.number("rope_parameters.rope_theta")?,
    };
    match base.unwrap_or(10_000.0) {
        base if base.is_finite() && base > 1.0 => Ok(base),
        _ => Err(config.wrong("rope_theta", "a number above 1")),
    }
}
