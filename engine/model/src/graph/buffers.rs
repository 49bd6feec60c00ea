//! What a forward pass needs beside the weights: the buffers of a batch, each worker's own memory, and RoPE's angles.

use std::mem;

use bitnet_kernels::QuantRows;

use super::attention::SPLIT_HEADS;
use super::{Entry, Limits};
use crate::facts::{ModelFacts, Norm, RopeStyle, padded_cols};
use crate::kv::KvCache;
use crate::protocol::Activation;
use crate::weights::Weights;

/// Columns of a product that a worker takes at once, at most, when the batch is long: kernels that make tables for a batch want
/// hundreds to use them.
pub const PREFILL_PART: usize = 640;
/// As much for a short batch: parts are handed out one by one, so that a slow core delays the others by little.
pub(super) const DECODE_PART: usize = 512;
/// Batches up to this length are short.
pub(super) const SHORT_BATCH: usize = 8;
/// Tokens that attention takes together at most: more would not read the cache much less often.
const MOST_ATTEND_TOKENS: usize = 8;
/// Parts per worker in a short batch.
pub(super) const PARTS_PER_WORKER: usize = 4;

#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) n_vocab: usize,
    pub(super) n_embd: usize,
    pub(super) n_ff: usize,
    pub(super) n_head_kv: usize,
    pub(super) head_dim: usize,
    /// The linears have norms of their own input.
    pub(super) input_norms: bool,
    /// `n_embd` where what a block adds is normed, else 0.
    pub(super) n_added: usize,
    pub(super) embedding_scale: f32,
    /// Query heads per key/value head.
    pub(super) group: usize,
    /// Positions of a slot.
    pub(super) context: usize,
    /// 1 / sqrt(head_dim)
    pub(super) attention_scale: f32,
    pub(super) eps: f32,
    pub(super) activation: Activation,
    pub(super) rope_style: RopeStyle,
    /// `[head_dim / 2]` radians per position.
    pub(super) rope_freqs: Vec<f64>,
}

/// What one step leaves for the next; `n` is the batch, up to [`Limits::batch`]. Pages that a small batch does not reach
/// are never touched. For 2B-4T and a batch of 512 about 37 MB, and 0.5 MB of logits per slot.
pub(super) struct Buffers {
    /// `[n]` slot and position of each entry.
    pub(super) places: Vec<Place>,
    /// `[n, head_dim / 2]` cosine and sine of each entry's RoPE angles.
    pub(super) turns: Vec<(f32, f32)>,
    /// `[n, n_embd]` residual stream.
    pub(super) x: Vec<f32>,
    /// `[n, ...]` int8 input of the next ternary matrices, filled up with zeros as their rows are.
    pub(super) quant: QuantRows,
    /// `[n, n_embd]` as much for the up matrix, where it has a norm of its own.
    pub(super) quant_up: QuantRows,
    /// `[n, n_embd]` what a block adds, where that is normed first.
    pub(super) added: Vec<f32>,
    /// `[n, n_head * head_dim]`
    pub(super) q: Vec<f32>,
    /// `[n, n_head_kv * head_dim]`
    pub(super) k: Vec<f32>,
    /// `[n, n_head_kv * head_dim]`
    pub(super) v: Vec<f32>,
    /// `[n, n_head * head_dim]` attention's output.
    pub(super) attn: Vec<f32>,
    /// `[tokens, n_head * head_dim]` turned query heads of tokens whose attention is divided finely.
    pub(super) split_queries: Vec<f32>,
    /// `[tokens, n_head * context]` their scores.
    pub(super) split_scores: Vec<f32>,
    /// `[n, n_ff]` gated product.
    pub(super) gated: Vec<f32>,
    /// `[n_logits, n_embd]` normed last rows.
    pub(super) last: Vec<f32>,
    /// `[n_logits, n_vocab]`; first those of the entries that are not screened.
    pub(super) logits: Vec<f32>,
    /// `[n_logits]` Whether the entry is screened.
    pub(super) is_screened: Vec<bool>,
}

/// The buffers of one batch, cut to its length.
pub(super) struct Rows<'a> {
    pub(super) places: &'a [Place],
    pub(super) turns: &'a [(f32, f32)],
    pub(super) x: &'a mut [f32],
    pub(super) quant: &'a mut QuantRows,
    pub(super) quant_up: &'a mut QuantRows,
    pub(super) added: &'a mut [f32],
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) attn: &'a mut [f32],
    pub(super) split_queries: &'a mut [f32],
    pub(super) split_scores: &'a mut [f32],
    pub(super) gated: &'a mut [f32],
    pub(super) last: &'a mut [f32],
    pub(super) logits: &'a mut [f32],
    pub(super) is_screened: &'a mut Vec<bool>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) slot: usize,
    pub(super) position: usize,
}

impl Place {
    /// Positions that its token looks at.
    pub(super) fn n_pos(&self) -> usize {
        self.position + 1
    }
}

/// One worker's own memory.
pub(super) struct Scratch {
    /// Normed rows: the longest of `n_embd`, `n_ff` and all heads together.
    pub(super) normed: [Vec<f32>; 2],
    /// `[head_dim]` a normed head.
    pub(super) normed_head: Vec<f32>,
    /// `[attend_tokens, group * head_dim]` turned query heads of one key/value head, or one turned key.
    pub(super) heads: Vec<f32>,
    /// `[attend_tokens, group, context]`
    pub(super) scores: Vec<f32>,
    /// Two parts of a matrix product, each `[n, part]`.
    pub(super) tile: [Vec<f32>; 2],
    pub(super) rows: RowList,
    /// A row of the embedding as it lies in the file.
    pub(super) embedding_row: Vec<u8>,
}

impl Shape {
    pub(super) fn new(facts: &ModelFacts, weights: &Weights, context: usize) -> Self {
        let half = facts.head_dim / 2;
        let (base, scale) = (
            f64::from(facts.rope.freq_base),
            f64::from(facts.rope.freq_scale),
        );
        let freqs = (0..half).map(|i| scale * base.powf(-(i as f64) / half as f64));
        let freqs = freqs
            .enumerate()
            .map(|(i, freq)| match &weights.rope_factors {
                Some(factors) => freq / f64::from(factors[i]),
                None => freq,
            });
        Shape {
            n_vocab: facts.n_vocab,
            n_embd: facts.n_embd,
            n_ff: facts.n_ff,
            n_head_kv: facts.n_head_kv,
            head_dim: facts.head_dim,
            input_norms: facts.input_norms,
            n_added: match facts.norms().contains(&Norm::PostAttn) {
                true => facts.n_embd,
                false => 0,
            },
            embedding_scale: facts.embedding_scale,
            group: facts.n_head / facts.n_head_kv,
            context,
            attention_scale: (1.0 / (facts.head_dim as f64).sqrt()) as f32,
            eps: facts.norm_eps,
            activation: facts.activation,
            rope_style: facts.rope.style,
            rope_freqs: freqs.collect(),
        }
    }

    /// Values of the query heads that share a key/value head.
    pub(super) fn heads_len(&self) -> usize {
        self.group * self.head_dim
    }

    /// Tokens of a slot that attention takes together. Their scores take no more memory than those of all heads of one.
    pub(super) fn attend_tokens(&self) -> usize {
        self.n_head_kv.min(MOST_ATTEND_TOKENS)
    }

    /// Most tokens of a decode step whose attention is divided more finely than by heads.
    fn split_tokens(&self, limits: &Limits) -> usize {
        if limits.decode_workers == 1 {
            return 0;
        }
        let few = (SPLIT_HEADS * limits.decode_workers - 1) / self.n_head_kv;
        few.min(limits.decode_batch)
    }

    /// Rotary position embedding of one head (Su et al. 2021).
    pub(super) fn turn(&self, head: &[f32], turns: &[(f32, f32)], out: &mut [f32]) {
        match self.rope_style {
            RopeStyle::Neox => {
                let half = head.len() / 2;
                let (a, b) = head.split_at(half);
                let (out_a, out_b) = out.split_at_mut(half);
                for i in 0..half {
                    let (cos, sin) = turns[i];
                    out_a[i] = a[i] * cos - b[i] * sin;
                    out_b[i] = b[i] * cos + a[i] * sin;
                }
            }
            RopeStyle::Interleaved => {
                let pairs = head.chunks_exact(2).zip(out.chunks_exact_mut(2));
                for ((pair, out), &(cos, sin)) in pairs.zip(turns) {
                    out[0] = pair[0] * cos - pair[1] * sin;
                    out[1] = pair[1] * cos + pair[0] * sin;
                }
            }
        }
    }
}

impl Buffers {
    pub(super) fn new(shape: &Shape, limits: &Limits) -> Self {
        let n = limits.batch;
        let n_kv = shape.n_head_kv * shape.head_dim;
        let n_attn = n_kv * shape.group;
        let zeros = |len: usize| vec![0.0; len];
        Buffers {
            places: Vec::with_capacity(n),
            turns: Vec::with_capacity(n * shape.rope_freqs.len()),
            x: zeros(n * shape.n_embd),
            quant: QuantRows::new(n, padded_cols(shape.n_embd.max(n_attn).max(shape.n_ff))),
            quant_up: match shape.input_norms {
                true => QuantRows::new(n, padded_cols(shape.n_embd)),
                false => QuantRows::new(0, 0),
            },
            added: zeros(n * shape.n_added),
            q: zeros(n * n_attn),
            k: zeros(n * n_kv),
            v: zeros(n * n_kv),
            attn: zeros(n * n_attn),
            split_queries: zeros(shape.split_tokens(limits) * n_attn),
            split_scores: zeros(
                shape.split_tokens(limits) * n_attn / shape.head_dim * shape.context,
            ),
            gated: zeros(n * shape.n_ff),
            last: zeros(limits.logits * shape.n_embd),
            logits: zeros(limits.logits * shape.n_vocab),
            is_screened: Vec::with_capacity(limits.logits),
        }
    }

    /// The first rows of each buffer; what they hold is overwritten before it is read.
    pub(super) fn cut(&mut self, n: usize, n_wanted: usize, shape: &Shape) -> Rows<'_> {
        let n_kv = shape.n_head_kv * shape.head_dim;
        let n_attn = n_kv * shape.group;
        Rows {
            places: &self.places,
            turns: &self.turns,
            x: &mut self.x[..n * shape.n_embd],
            quant: &mut self.quant,
            quant_up: &mut self.quant_up,
            added: &mut self.added[..n * shape.n_added],
            q: &mut self.q[..n * n_attn],
            k: &mut self.k[..n * n_kv],
            v: &mut self.v[..n * n_kv],
            attn: &mut self.attn[..n * n_attn],
            split_queries: &mut self.split_queries,
            split_scores: &mut self.split_scores,
            gated: &mut self.gated[..n * shape.n_ff],
            last: &mut self.last[..n_wanted * shape.n_embd],
            logits: &mut self.logits[..n_wanted * shape.n_vocab],
            is_screened: &mut self.is_screened,
        }
    }

    /// Gives each entry the next position of its slot, and works out its RoPE angles.
    pub(super) fn place(&mut self, batch: &[Entry], kv: &mut KvCache, shape: &Shape) {
        self.places.clear();
        self.turns.clear();
        for &Entry { slot, token, .. } in batch {
            assert!(
                (token as usize) < shape.n_vocab,
                "token {token} of {}",
                shape.n_vocab
            );
            let position = kv.tokens(slot).len();
            kv.push(slot, token);
            self.places.push(Place { slot, position });
            self.turns.extend(shape.rope_freqs.iter().map(|freq| {
                let (sin, cos) = (position as f64 * freq).sin_cos();
                (cos as f32, sin as f32)
            }));
        }
    }
}

/// The angles of one entry.
pub(super) fn turns_of(turns: &[(f32, f32)], t: usize, head_dim: usize) -> &[(f32, f32)] {
    let half = head_dim / 2;
    &turns[t * half..(t + 1) * half]
}

impl Scratch {
    pub(super) fn new(shape: &Shape, limits: &Limits) -> Self {
        let columns = shape.n_embd.max(shape.n_ff).next_multiple_of(32);
        let (long, short) = (PREFILL_PART.min(columns), DECODE_PART.min(columns));
        let tile = (limits.batch * long).max(SHORT_BATCH * short);
        let heads = shape.group * shape.head_dim;
        let row = shape.n_embd.max(shape.n_ff).max(heads * shape.n_head_kv);
        Scratch {
            normed: [vec![0.0; row], vec![0.0; row]],
            normed_head: vec![0.0; shape.head_dim],
            heads: vec![0.0; shape.attend_tokens() * heads],
            scores: vec![0.0; shape.attend_tokens() * shape.group * limits.context],
            tile: [vec![0.0; tile], vec![0.0; tile]],
            rows: RowList::default(),
            embedding_row: Vec::new(),
        }
    }
}

/// Keeps the allocation of a list of borrowed rows from one use to the next.
#[derive(Default)]
pub(super) struct RowList(Vec<&'static mut [f32]>);

impl RowList {
    pub(super) fn with<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a mut [f32]>,
        use_rows: impl FnOnce(&mut [&mut [f32]]),
    ) {
        let mut list: Vec<&'a mut [f32]> = emptied(mem::take(&mut self.0));
        list.extend(rows);
        use_rows(&mut list);
        self.0 = emptied(list);
    }
}

/// The same vector without its elements, free to hold others of the same size; collecting in place keeps the allocation.
pub(super) fn emptied<'b>(mut list: Vec<&mut [f32]>) -> Vec<&'b mut [f32]> {
    list.clear();
    list.into_iter()
        .map(|_| unreachable!("the list is empty"))
        .collect()
}
