//! Plans a GGUF from a Hugging Face directory: which tensor becomes which, in the order of Microsoft's file.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::Dtype;

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::error::ConvertError;
use super::lookup::Tiles;
use super::master::Masters;
use super::vocabulary::{BITNET_TEMPLATE, Vocabulary, Wishes};
use super::{Options, Origin, Plan, Planned, Source, file_type, note_on_readers, packing_for};
use crate::facts::{self, Architecture, Norm, OUTPUT, OUTPUT_NORM, TOKEN_EMBD};
use crate::gguf::TensorType;
use crate::synth::header::Header;

const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const LAST_NORM: &str = "norm.weight";
/// Before all names but the head's; checkpoints of a model without a head may do without.
const PREFIX: &str = "model.";

/// Vocabulary of Llama 3, which 2B-4T uses.
const LLAMA3_VOCAB: usize = 128_256;

/// A ternary matrix of a checkpoint: `[rows, cols]`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    /// The weights: floats, or U8 `[rows / 4, cols]`.
    pub(super) name: String,
    /// The scale beside packed weights.
    pub(super) scale: Option<String>,
    /// W = code / scale, not code * scale.
    pub(super) divides: bool,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Heads whose rows are interleaved; 0: rows stay in order.
    pub(super) heads: usize,
    pub(super) masters: Masters,
}

/// Reads configuration, headers and tokenizer.
pub(super) fn plan(directory: &Path, options: &Options) -> Result<Plan, ConvertError> {
    if !directory.join("config.json").exists() {
        return Err(ConvertError::Source {
            path: directory.to_owned(),
            found: "a directory without config.json".to_owned(),
            expected: "a Hugging Face directory or a GGUF file",
        });
    }
    let mut config = ModelConfig::read(directory, options.absmean)?;
    let checkpoint = Checkpoint::open(directory)?;
    let wishes = Wishes {
        pre_tokenizer: options.pre_tokenizer.as_deref(),
        chat_template: options.chat_template.as_deref(),
        ends_texts: config.pooling.is_some(),
    };
    let mut vocabulary = Vocabulary::read(directory, config.n_vocab, &wishes)?;
    let mut notes = std::mem::take(&mut config.notes);
    notes.append(&mut vocabulary.notes);
    if vocabulary.chat_template.is_none() && config.pooling.is_none() {
        notes.push(match supply_template(&config) {
            Some(template) => {
                vocabulary.chat_template = Some(template.to_owned());
                "the repository has no chat template: written is that of BitNet b1.58 2B-4T"
                    .to_owned()
            }
            None => "the repository has no chat template, so the file has none".to_owned(),
        });
    }
    let prefix = match checkpoint.get(EMBEDDING) {
        Some(_) => "",
        None => PREFIX,
    };
    let first = input_norm(prefix, 0, facts::Linear::Q);
    let input_norms = checkpoint.get(&first).is_some();
    if input_norms {
        // Nothing but BitNet has norms inside its linears.
        config.masters = Masters::Absmean;
    }
    let outtype = outtype(&config, options, &mut notes);
    notes.extend(note_on_readers(config.architecture.name(), outtype));
    let mut builder = Builder {
        config: &config,
        checkpoint: &checkpoint,
        prefix,
        input_norms,
        outtype,
        tiles: &options.tiles,
        embedding_type: options.embedding_type.unwrap_or(TensorType::F16),
        used: BTreeSet::new(),
        tensors: Vec::new(),
    };
    builder.all(&mut notes)?;
    let tensors = builder.tensors;
    let mut keys = Header::default();
    config.keys(&mut keys);
    keys.bool("tokenizer.ggml.add_bos_token", vocabulary.adds_bos);
    keys.u32("general.file_type", file_type(outtype));
    vocabulary.keys(&mut keys);
    keys.u32("general.quantization_version", 2);
    Ok(Plan {
        source: Source::HuggingFace(checkpoint),
        keys,
        tensors,
        outtype,
        layout: options.layout,
        notes,
    })
}

/// The packing asked for; without a wish I2_S, or what holds the model's matrices.
fn outtype(config: &ModelConfig, options: &Options, notes: &mut Vec<String>) -> TensorType {
    let shapes = facts::Linear::ALL.map(|linear| config.linear_shape(linear));
    options.outtype.unwrap_or_else(|| {
        let (ty, note) = packing_for(&shapes, &options.tiles);
        notes.extend(note);
        ty
    })
}

/// `PREFIXlayers.0.self_attn.q_proj`
fn stem(prefix: &str, layer: usize, linear: facts::Linear) -> String {
    use facts::Linear as L;
    let name = match linear {
        L::Q => "self_attn.q_proj",
        L::K => "self_attn.k_proj",
        L::V => "self_attn.v_proj",
        L::AttnOutput => "self_attn.o_proj",
        L::Gate => "mlp.gate_proj",
        L::Up => "mlp.up_proj",
        L::Down => "mlp.down_proj",
    };
    format!("{prefix}layers.{layer}.{name}")
}

/// The norm of a linear's own input.
fn input_norm(prefix: &str, layer: usize, linear: facts::Linear) -> String {
    format!("{}.norm.weight", stem(prefix, layer, linear))
}

/// Copies of 2B-4T without a template get its own.
fn supply_template(config: &ModelConfig) -> Option<&'static str> {
    let is_2b = config.architecture == Architecture::BitnetB158 && config.n_vocab == LLAMA3_VOCAB;
    is_2b.then_some(BITNET_TEMPLATE)
}

struct Builder<'a> {
    config: &'a ModelConfig,
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
    /// The linears have norms of their own input.
    input_norms: bool,
    outtype: TensorType,
    tiles: &'a [Tiles],
    embedding_type: TensorType,
    used: BTreeSet<String>,
    tensors: Vec<Planned>,
}

impl Builder<'_> {
    fn all(&mut self, notes: &mut Vec<String>) -> Result<(), ConvertError> {
        let config = self.config;
        let matrix = [config.n_vocab, config.n_embd];
        let embedding_type = self.embedding_type;
        let embedding = format!("{}{EMBEDDING}", self.prefix);
        self.floats(TOKEN_EMBD, &embedding, &matrix, embedding_type)?;
        let has_head = self.checkpoint.get(HEAD).is_some();
        let tied = match config.pooling {
            Some(_) => Some(true),
            None => config.tied,
        };
        match (has_head, tied) {
            (true, Some(true)) => {
                self.used.insert(HEAD.to_owned());
                notes.push(format!("`{HEAD}` is left out: the head is the embedding"));
            }
            (true, _) => {
                self.floats(OUTPUT, HEAD, &matrix, embedding_type)?;
                if config.architecture.is_bitnet() {
                    notes.push(format!(
                        "the model has an output head of its own, which readers of `{}` ignore by default; serve it with `--untied-head`",
                        config.architecture
                    ));
                }
            }
            (false, Some(false)) => {
                self.checkpoint.expect(HEAD, &matrix)?;
            }
            (false, _) => {}
        }
        for layer in 0..config.n_layer {
            self.layer(layer)?;
        }
        let last = format!("{}{LAST_NORM}", self.prefix);
        self.norm_weights(OUTPUT_NORM.to_owned(), last, config.n_embd)?;
        self.refuse_strays()
    }

    fn layer(&mut self, layer: usize) -> Result<(), ConvertError> {
        use facts::Linear as L;
        let has = |norm: Norm| self.config.architecture.norms().contains(&norm);
        let has = [
            Norm::FfnSub,
            Norm::AttnSub,
            Norm::PostFfn,
            Norm::PostAttn,
            Norm::QHead,
        ]
        .map(has);
        let [ffn_sub, attn_sub, post_ffn, post_attn, heads] = has;
        let optional = |there: bool, norm: Norm| there.then_some(norm);
        self.norm(layer, Norm::Attn)?;
        self.linear(layer, L::Down)?;
        for norm in [
            optional(ffn_sub, Norm::FfnSub),
            optional(post_ffn, Norm::PostFfn),
        ] {
            norm.map_or(Ok(()), |norm| self.norm(layer, norm))?;
        }
        self.linear(layer, L::Gate)?;
        self.linear(layer, L::Up)?;
        self.norm(layer, Norm::Ffn)?;
        for norm in [
            optional(attn_sub, Norm::AttnSub),
            optional(post_attn, Norm::PostAttn),
            optional(heads, Norm::QHead),
            optional(heads, Norm::KHead),
        ] {
            norm.map_or(Ok(()), |norm| self.norm(layer, norm))?;
        }
        for linear in [L::K, L::AttnOutput, L::Q, L::V] {
            self.linear(layer, linear)?;
        }
        Ok(())
    }

    fn norm(&mut self, layer: usize, norm: Norm) -> Result<(), ConvertError> {
        let config = self.config;
        let is_gemma = config.architecture == Architecture::Gemma3;
        let (names, len): (&[&str], usize) = match norm {
            Norm::Attn => (&["input_layernorm"], config.n_embd),
            Norm::Ffn if is_gemma => (&["pre_feedforward_layernorm"], config.n_embd),
            Norm::Ffn | Norm::PostAttn => (&["post_attention_layernorm"], config.n_embd),
            Norm::PostFfn => (&["post_feedforward_layernorm"], config.n_embd),
            Norm::QHead => (&["self_attn.q_norm"], config.head_dim),
            Norm::KHead => (&["self_attn.k_norm"], config.head_dim),
            Norm::AttnSub => (
                &["self_attn.attn_sub_norm", "self_attn.inner_attn_ln"],
                config.n_head * config.head_dim,
            ),
            Norm::FfnSub => (&["mlp.ffn_sub_norm", "mlp.ffn_layernorm"], config.n_ff),
        };
        let full = |name: &&str| format!("{}layers.{layer}.{name}.weight", self.prefix);
        let there = names.iter().map(full);
        let mut there = there.filter(|name| self.checkpoint.get(name).is_some());
        let name = there.next().unwrap_or_else(|| full(&names[0]));
        self.norm_weights(norm.name(layer), name, len)
    }

    /// A norm of the graph. Gemma multiplies by 1 + w.
    fn norm_weights(&mut self, name: String, from: String, len: usize) -> Result<(), ConvertError> {
        let origin = Origin::Floats {
            name: from,
            heads: 0,
            plus_one: self.config.architecture == Architecture::Gemma3,
        };
        self.values(name, &[len], TensorType::F32, origin)
    }

    fn linear(&mut self, layer: usize, linear: facts::Linear) -> Result<(), ConvertError> {
        use facts::Linear as L;
        let config = self.config;
        let (rows, cols) = config.linear_shape(linear);
        // The graph of `llama` turns neighbouring values, the others values half a head apart, as Transformers does.
        let heads = match (config.architecture, linear) {
            (Architecture::Llama, L::Q) => config.n_head,
            (Architecture::Llama, L::K) => config.n_head_kv,
            _ => 0,
        };
        let stem = stem(self.prefix, layer, linear);
        let origin = self.origin(&stem, rows, cols, heads)?;
        let name = linear.weight_name(layer);
        let tiles = self.tiles(&origin.name, rows, cols)?;
        let dims = vec![cols as u64, rows as u64];
        self.add(name, dims, self.outtype, tiles, Origin::Linear(origin))?;
        let bias = format!("{stem}.bias");
        if linear.may_have_bias() && self.checkpoint.get(&bias).is_some() {
            let origin = Origin::Floats {
                name: bias,
                heads,
                plus_one: false,
            };
            self.values(linear.bias_name(layer), &[rows], TensorType::F32, origin)?;
        }
        if self.input_norms {
            let norm = input_norm(self.prefix, layer, linear);
            self.floats(&linear.norm_in_name(layer), &norm, &[cols], TensorType::F32)?;
        }
        Ok(())
    }

    /// Checks what a linear is made of.
    fn origin(
        &mut self,
        stem: &str,
        rows: usize,
        cols: usize,
        heads: usize,
    ) -> Result<Linear, ConvertError> {
        let name = format!("{stem}.weight");
        let scale = format!("{stem}.weight_scale");
        let packed = self.checkpoint.get(&name).map(|entry| entry.dtype) == Some(Dtype::U8);
        let wrong =
            |reason: String| ConvertError::tensor(self.checkpoint.path_of(&name), &name, reason);
        let shape = match packed {
            true if !rows.is_multiple_of(4) => {
                return Err(wrong(format!(
                    "packed U8, but {rows} rows, no multiple of 4"
                )));
            }
            true => [rows / 4, cols],
            false => [rows, cols],
        };
        let entry = self.checkpoint.expect(&name, &shape)?;
        let floats = [Dtype::BF16, Dtype::F16, Dtype::F32];
        if !packed && !floats.contains(&entry.dtype) {
            return Err(wrong(format!(
                "{}, expected BF16, F16 or F32 weights, or packed U8 with a `weight_scale`",
                entry.dtype
            )));
        }
        let has_scale = self.checkpoint.get(&scale);
        if packed && has_scale.is_none() {
            return Err(wrong(format!("packed, but its scale `{scale}` is missing")));
        }
        if let Some(entry) = has_scale {
            let one = entry.shape.iter().product::<usize>() == 1;
            if !one || !floats.contains(&entry.dtype) {
                let reason = format!(
                    "{} of the shape {:?}, expected one float",
                    entry.dtype, entry.shape
                );
                return Err(ConvertError::tensor(
                    self.checkpoint.path_of(&scale),
                    &scale,
                    reason,
                ));
            }
        }
        let scale = has_scale.is_some().then_some(scale);
        self.used.insert(name.clone());
        self.used.extend(scale.clone());
        Ok(Linear {
            name,
            divides: self.config.divides_by_scale,
            rows,
            cols,
            heads,
            masters: match scale {
                Some(_) => Masters::Ternary,
                None => self.config.masters,
            },
            scale,
        })
    }

    fn tiles(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Tiles>, ConvertError> {
        let ty = self.outtype;
        if !matches!(ty, TensorType::TL1 | TensorType::TL2) {
            return Ok(None);
        }
        let tiles = Tiles::find_or_choose(ty, rows, cols, self.tiles);
        let path = self.checkpoint.path_of(name);
        tiles
            .map(Some)
            .map_err(|error| ConvertError::tensor(path, name, error))
    }

    fn floats(
        &mut self,
        name: &str,
        from: &str,
        shape: &[usize],
        ty: TensorType,
    ) -> Result<(), ConvertError> {
        let origin = Origin::Floats {
            name: from.to_owned(),
            heads: 0,
            plus_one: false,
        };
        self.values(name.to_owned(), shape, ty, origin)
    }

    /// Floats that stay floats.
    fn values(
        &mut self,
        name: String,
        shape: &[usize],
        ty: TensorType,
        origin: Origin,
    ) -> Result<(), ConvertError> {
        let Origin::Floats { name: from, .. } = &origin else {
            unreachable!("floats of a checkpoint");
        };
        let entry = self.checkpoint.expect(from, shape)?;
        if !matches!(entry.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            let reason = format!("{}, expected BF16, F16 or F32", entry.dtype);
            let path = self.checkpoint.path_of(from);
            return Err(ConvertError::tensor(path, from, reason));
        }
        self.used.insert(from.clone());
        let dims = shape.iter().rev().map(|&dim| dim as u64).collect();
        self.add(name, dims, ty, None, origin)
    }

    fn add(
        &mut self,
        name: String,
        dims: Vec<u64>,
        ty: TensorType,
        tiles: Option<Tiles>,
        origin: Origin,
    ) -> Result<(), ConvertError> {
        let block = match ty {
            TensorType::I2S => 128,
            _ => ty.block().map_or(1, |block| block.0),
        };
        if !dims[0].is_multiple_of(block) || ty.data_bytes(&dims).is_none() {
            let from = match &origin {
                Origin::Linear(linear) => &linear.name,
                Origin::Floats { name, .. } => name,
                _ => &name,
            };
            let reason = format!(
                "{ty} needs rows of a multiple of {block} weights, they have {}",
                dims[0]
            );
            return Err(ConvertError::tensor(
                self.checkpoint.path_of(from),
                from,
                reason,
            ));
        }
        self.tensors.push(Planned {
            name,
            dims,
            ty,
            tiles,
            origin,
        });
        Ok(())
    }

    fn refuse_strays(&self) -> Result<(), ConvertError> {
        let harmless = |name: &str| name.ends_with("rotary_emb.inv_freq");
        let mut names = self.checkpoint.names();
        match names.find(|name| !self.used.contains(*name) && !harmless(name)) {
            None => Ok(()),
            Some(name) => {
                let reason = format!(
                    "it has no place in the graph of `{}`; leaving it out would give wrong text",
                    self.config.architecture
                );
                let path = self.checkpoint.path_of(name);
                Err(ConvertError::tensor(path, name, reason))
            }
        }
    }
}
