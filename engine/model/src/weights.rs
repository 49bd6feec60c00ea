//! A model's weights in the form the forward pass uses them: matrices over the file's own bytes, norms and biases as f32.

use std::io;

use bitnet_kernels::{DenseMatrix, PackedMatrix};

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

/// One transformer layer. The sub-norms are there in BitNet architectures and absent in `llama`.
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
    /// `[n_head * head_dim]`, over the concatenated heads.
    pub attn_sub_norm: Option<Vec<f32>>,
    /// `[n_embd, n_head * head_dim]`
    pub attn_output: Projection,
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
}

/// A ternary linear: `y = W x + bias`.
#[derive(Debug)]
pub struct Projection {
    /// `[rows, cols]`; its scale includes the optional `.scale` tensor.
    pub matrix: PackedMatrix,
    /// `[rows]`
    pub bias: Option<Vec<f32>>,
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
        let sub_norm = |kind: Norm| facts.sub_norms.then(|| norm(kind)).transpose();
        let linear = |linear: Linear| {
            Ok::<_, TensorError>(Projection {
                matrix: tensors::linear(gguf, facts, layer, linear)?,
                bias: tensors::bias(gguf, facts, layer, linear)?,
            })
        };
        Ok(Layer {
            attn_norm: norm(Norm::Attn)?,
            q: linear(Linear::Q)?,
            k: linear(Linear::K)?,
            v: linear(Linear::V)?,
            attn_sub_norm: sub_norm(Norm::AttnSub)?,
            attn_output: linear(Linear::AttnOutput)?,
            ffn_norm: norm(Norm::Ffn)?,
            gate: linear(Linear::Gate)?,
            up: linear(Linear::Up)?,
            ffn_sub_norm: sub_norm(Norm::FfnSub)?,
            down: linear(Linear::Down)?,
        })
    }

    fn projections(&self) -> [&Projection; 7] {
        [
            &self.q,
            &self.k,
            &self.v,
            &self.attn_output,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }
}
