//! A model's weights in the form the forward pass uses them: matrices over the file's own bytes or, for packings other than
//! I2_S, over copies; norms and biases as f32.

use std::io;
use std::thread;

use bitnet_kernels::{DenseMatrix, PackedMatrix, Packing};

use crate::facts::{Linear, ModelFacts, Norm};
use crate::gguf::Gguf;
use crate::os;
use crate::tensors::{self, TensorError};

/// All weights of a model.
#[derive(Debug)]
pub struct Weights {
    /// `[n_vocab, n_embd]`
    pub embedding: DenseMatrix,
    /// First layer first.
    pub layers: Vec<Layer>,
    /// `[n_embd]`
    pub output_norm: Vec<f32>,
    /// `[n_vocab, n_embd]`; the embedding when the head is tied.
    pub head: DenseMatrix,
    /// `[head_dim / 2]` divisors of the RoPE frequencies.
    pub rope_factors: Option<Vec<f32>>,
}

/// One transformer layer. Norms that an architecture lacks are `None`; see [`Norm`].
#[derive(Debug)]
pub struct Layer {
    /// `[n_embd]`
    pub attn_norm: Vec<f32>,
    /// `[n_head * head_dim, n_embd]`
    pub q: Projection,
    /// `[n_head_kv * head_dim, n_embd]`
    pub k: Projection,
    /// `[n_head_kv * head_dim, n_embd]`
    pub v: Projection,
    /// `[head_dim]`, over each query head.
    pub q_head_norm: Option<Vec<f32>>,
    /// `[head_dim]`, over each key head.
    pub k_head_norm: Option<Vec<f32>>,
    /// `[n_head * head_dim]`, over the concatenated heads.
    pub attn_sub_norm: Option<Vec<f32>>,
    /// `[n_embd, n_head * head_dim]`
    pub attn_output: Projection,
    /// `[n_embd]`, over what attention adds.
    pub post_attn_norm: Option<Vec<f32>>,
    /// `[n_embd]`
    pub ffn_norm: Vec<f32>,
    /// `[n_ff, n_embd]`
    pub gate: Projection,
    /// `[n_ff, n_embd]`
    pub up: Projection,
    /// `[n_ff]`, over the gated product.
    pub ffn_sub_norm: Option<Vec<f32>>,
    /// `[n_embd, n_ff]`
    pub down: Projection,
    /// `[n_embd]`, over what the feed-forward block adds.
    pub post_ffn_norm: Option<Vec<f32>>,
}

/// A ternary linear: `y = W norm_in(x) + bias`.
#[derive(Debug)]
pub struct Projection {
    /// `[rows, cols]`, columns filled up to whole blocks with zeros; its scale includes the optional `.scale` tensor.
    pub matrix: PackedMatrix,
    /// `[rows]`
    pub bias: Option<Vec<f32>>,
    /// `[cols]`, over the input, behind every other norm.
    pub norm_in: Option<Vec<f32>>,
}

impl Weights {
    /// Takes the weights out of a file whose header gave `facts`. I2_S and dense matrices stay where they are.
    ///
    /// # Errors
    /// Names the tensor that can't be used.
    pub fn load(gguf: &Gguf, facts: &ModelFacts) -> Result<Self, TensorError> {
        let layers = (0..facts.n_layer).map(|layer| Layer::load(gguf, facts, layer));
        Ok(Weights {
            embedding: tensors::embedding(gguf, facts)?,
            layers: layers.collect::<Result<_, _>>()?,
            output_norm: tensors::output_norm(gguf, facts)?,
            head: tensors::head(gguf, facts)?,
            rope_factors: tensors::rope_factors(gguf, facts)?,
        })
    }

    /// Copies the ternary matrices into another packing, layers in parallel. After an error some are copied, some are not.
    ///
    /// # Errors
    /// Names the first tensor that `packing` can't hold, or that there is no memory for.
    pub fn repack(&mut self, packing: Packing, n_threads: usize) -> Result<(), TensorError> {
        let share = self.layers.len().div_ceil(n_threads.max(1)).max(1);
        let shares = self.layers.chunks_mut(share).enumerate();
        let repack = |first: usize, layers: &mut [Layer]| {
            let mut layers = (first..).zip(layers);
            layers.try_for_each(|(number, layer)| layer.repack(number, packing))
        };
        thread::scope(|scope| {
            let threads: Vec<_> = shares
                .map(|(i, layers)| scope.spawn(move || repack(i * share, layers)))
                .collect();
            let results = threads.into_iter().map(|thread| {
                let result = thread.join();
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// Keeps all matrices in memory.
    ///
    /// # Errors
    /// The system's refusal; what was locked before it stays locked.
    pub fn lock_in_memory(&self) -> io::Result<()> {
        let projections = self.layers.iter().flat_map(Layer::projections);
        let ternary = projections.map(|projection| projection.matrix.bytes());
        let mut all = ternary.chain([self.embedding.bytes(), self.head.bytes()]);
        all.try_for_each(|bytes| os::lock_in_memory(bytes))
    }
}

impl Layer {
    fn load(gguf: &Gguf, facts: &ModelFacts, layer: usize) -> Result<Self, TensorError> {
        let norm = |norm: Norm| tensors::norm(gguf, facts, layer, norm);
        let optional = |kind: Norm| {
            let is_there = facts.norms().contains(&kind);
            is_there.then(|| norm(kind)).transpose()
        };
        let norm_in = |linear: Linear| {
            let norm = || tensors::norm_in(gguf, facts, layer, linear);
            facts.input_norms.then(norm).transpose()
        };
        let linear = |linear: Linear| {
            Ok::<_, TensorError>(Projection {
                matrix: tensors::linear(gguf, facts, layer, linear)?,
                bias: tensors::bias(gguf, facts, layer, linear)?,
                norm_in: norm_in(linear)?,
            })
        };
        Ok(Layer {
            attn_norm: norm(Norm::Attn)?,
            q: linear(Linear::Q)?,
            k: linear(Linear::K)?,
            v: linear(Linear::V)?,
            q_head_norm: optional(Norm::QHead)?,
            k_head_norm: optional(Norm::KHead)?,
            attn_sub_norm: optional(Norm::AttnSub)?,
            attn_output: linear(Linear::AttnOutput)?,
            post_attn_norm: optional(Norm::PostAttn)?,
            ffn_norm: norm(Norm::Ffn)?,
            gate: linear(Linear::Gate)?,
            up: linear(Linear::Up)?,
            ffn_sub_norm: optional(Norm::FfnSub)?,
            down: linear(Linear::Down)?,
            post_ffn_norm: optional(Norm::PostFfn)?,
        })
    }

    fn repack(&mut self, number: usize, packing: Packing) -> Result<(), TensorError> {
        for linear in Linear::ALL {
            let projection = self.projection_mut(linear);
            let copy = projection.matrix.repack(packing);
            projection.matrix = copy.map_err(|source| TensorError::Matrix {
                name: linear.weight_name(number),
                source,
            })?;
        }
        Ok(())
    }

    /// One of the linears.
    pub fn projection(&self, linear: Linear) -> &Projection {
        match linear {
            Linear::Q => &self.q,
            Linear::K => &self.k,
            Linear::V => &self.v,
            Linear::AttnOutput => &self.attn_output,
            Linear::Gate => &self.gate,
            Linear::Up => &self.up,
            Linear::Down => &self.down,
        }
    }

    /// One of the linears, to put its matrix elsewhere.
    pub fn projection_mut(&mut self, linear: Linear) -> &mut Projection {
        match linear {
            Linear::Q => &mut self.q,
            Linear::K => &mut self.k,
            Linear::V => &mut self.v,
            Linear::AttnOutput => &mut self.attn_output,
            Linear::Gate => &mut self.gate,
            Linear::Up => &mut self.up,
            Linear::Down => &mut self.down,
        }
    }

    fn projections(&self) -> [&Projection; 7] {
        Linear::ALL.map(|linear| self.projection(linear))
    }
}
