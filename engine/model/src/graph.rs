//! The forward pass: a batch of tokens from any number of sequences in, logits for the entries that want them out.
//!
//! The calling thread tells the story and hands each step to the pool; a step ends when all workers are done. Matrices are
//! cut by output rows, attention by (token, key/value head), norms by token. Every number is computed by one expression
//! in one order whatever the cut, so the logits of a token do not depend on threads, on its neighbours in the batch, on
//! how a prompt was chunked, or on whether it was prompt or answer.
//!
//! Residual stream, norms, attention and logits are f32; the input of every ternary matrix is quantised to int8 per token,
//! once for q, k and v together and once for gate and up.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitnet_kernels::{Attend, DenseMatrix, Kernel, QuantRows};

use crate::facts::{ModelFacts, RopeStyle};
use crate::kv::{HeadCells, HeadCellsMut, KvCache};
use crate::os::split_columns;
use crate::pool::Pool;
use crate::protocol::{Activation, HeadMode};
use crate::sampler::{Logits, Want};
use crate::screening::{Crew, Job, Screening};
use crate::weights::{Layer, Projection, Weights};

/// One token of a batch. It takes the next position of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Sequence.
    pub slot: usize,
    /// Token id, below the vocabulary's size.
    pub token: u32,
    /// Compute the logits of what follows it.
    pub wants_logits: bool,
}

/// Sizes that buffers are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most entries in a batch.
    pub batch: usize,
    /// Most entries of a batch that want logits.
    pub logits: usize,
    /// Most positions of a slot.
    pub context: usize,
    /// Batches of at most this many entries use the decode workers, longer ones all.
    pub decode_batch: usize,
    /// Workers of a decode step.
    pub decode_workers: usize,
}

/// Weights, threads and buffers: everything a forward pass needs but the cache.
pub struct Model {
    weights: Weights,
    shape: Shape,
    limits: Limits,
    kernel: Kernel,
    pool: Pool,
    buffers: Buffers,
    scratch: Vec<Mutex<Scratch>>,
    screening: Option<Screening>,
}

#[derive(Debug, Clone)]
struct Shape {
    n_vocab: usize,
    n_embd: usize,
    n_ff: usize,
    n_head_kv: usize,
    head_dim: usize,
    /// Query heads per key/value head.
    group: usize,
    eps: f32,
    activation: Activation,
    rope_style: RopeStyle,
    /// `[head_dim / 2]` radians per position.
    rope_freqs: Vec<f64>,
}

/// What one step leaves for the next; `n` is the batch, up to [`Limits::batch`]. Pages that a small batch does not reach
/// are never touched. For 2B-4T and a batch of 512 about 37 MB, and 0.5 MB of logits per slot.
struct Buffers {
    /// `[n]` slot and position of each entry.
    places: Vec<Place>,
    /// `[n, head_dim / 2]` cosine and sine of each entry's RoPE angles.
    turns: Vec<(f32, f32)>,
    /// `[n, n_embd]` residual stream.
    x: Vec<f32>,
    /// `[n, ...]` int8 input of the next ternary matrices.
    quant: QuantRows,
    /// `[n, n_head * head_dim]`
    q: Vec<f32>,
    /// `[n, n_head_kv * head_dim]`
    k: Vec<f32>,
    /// `[n, n_head_kv * head_dim]`
    v: Vec<f32>,
    /// `[n, n_head * head_dim]` attention's output.
    attn: Vec<f32>,
    /// `[n, n_ff]` gated product.
    gated: Vec<f32>,
    /// `[n_logits, n_embd]` normed last rows.
    last: Vec<f32>,
    /// `[n_logits, n_vocab]`; first those of the entries that are not screened.
    logits: Vec<f32>,
    /// `[n_logits]` Whether the entry is screened.
    is_screened: Vec<bool>,
}

/// The buffers of one batch, cut to its length.
struct Rows<'a> {
    places: &'a [Place],
    turns: &'a [(f32, f32)],
    x: &'a mut [f32],
    quant: &'a mut QuantRows,
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
    attn: &'a mut [f32],
    gated: &'a mut [f32],
    last: &'a mut [f32],
    logits: &'a mut [f32],
    is_screened: &'a mut Vec<bool>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    slot: usize,
    position: usize,
}

/// One worker's own memory.
struct Scratch {
    /// A normed row: the longest of `n_embd` and `n_ff`.
    row: Vec<f32>,
    /// Turned query heads of one key/value head, or one turned key.
    heads: Vec<f32>,
    /// `[group, context]`
    scores: Vec<f32>,
    /// Two parts of a matrix product, each `[n, part]`.
    tile: [Vec<f32>; 2],
    rows: RowList,
}

/// Columns of a product that a worker takes at once when the batch is long: two f32 tiles of 512 tokens fit a 1 MB cache.
const PREFILL_PART: usize = 128;
/// As much for a short batch: parts are handed out one by one, so that a slow core delays the others by little.
const DECODE_PART: usize = 512;
/// Batches up to this length are short.
const SHORT_BATCH: usize = 8;
/// Parts per worker in a short batch.
const PARTS_PER_WORKER: usize = 4;

impl Model {
    /// Makes the buffers. `pool` must belong to the thread that will call [`Model::forward`].
    pub fn new(
        facts: &ModelFacts,
        weights: Weights,
        kernel: Kernel,
        pool: Pool,
        limits: Limits,
    ) -> Self {
        let shape = Shape::new(facts, &weights);
        let scratch = (0..pool.size()).map(|_| Mutex::new(Scratch::new(&shape, &limits)));
        Model {
            scratch: scratch.collect(),
            buffers: Buffers::new(&shape, &limits),
            weights,
            shape,
            limits,
            kernel,
            pool,
            screening: None,
        }
    }

    /// Screens the head from the moment the copies are complete.
    pub fn set_screening(&mut self, screening: Option<Screening>) {
        self.screening = screening;
    }

    /// Copies of the head.
    pub fn screening(&self) -> Option<&Screening> {
        self.screening.as_ref()
    }

    /// Screens by another mode, if there are copies.
    pub fn set_head(&mut self, mode: HeadMode) {
        if let Some(screening) = &mut self.screening {
            screening.set_mode(mode);
        }
    }

    /// Whether copies of the head are still to be made.
    pub fn is_screening_unmade(&self) -> bool {
        self.screening().is_some_and(|it| !it.is_made())
    }

    /// Goes on making copies of the head for about `time`, with all workers.
    pub fn make_screening(&mut self, time: Duration) {
        if let Some(screening) = &mut self.screening {
            let mut crew = Crew {
                kernel: self.kernel,
                n_workers: self.pool.size(),
                pool: &mut self.pool,
            };
            screening.make(&mut crew, time);
        }
    }

    /// Tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.shape.n_vocab
    }

    /// Workers of a prefill step.
    pub fn n_workers(&self) -> usize {
        self.pool.size()
    }

    /// Sizes of the buffers.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs a batch: each entry is appended to its slot in `kv`. Returns `[n_wanted, n_vocab]` logits in the order of the
    /// entries that want them; the caller may change them. `tick` is called after every layer.
    ///
    /// # Panics
    /// When the batch is empty or breaks [`Limits`], a token is not in the vocabulary, or a slot is full.
    pub fn forward(&mut self, batch: &[Entry], kv: &mut KvCache, tick: impl FnMut()) -> &mut [f32] {
        let n_wanted = self.run(batch, &[], kv, tick);
        &mut self.buffers.logits[..n_wanted * self.shape.n_vocab]
    }

    /// The same, but with no more logits than `wants` says, one for each entry that wants logits; see [`Model::logits`].
    ///
    /// # Panics
    /// As [`Model::forward`], and when `wants` has another length.
    pub fn forward_for(
        &mut self,
        batch: &[Entry],
        wants: &[Want<'_>],
        kv: &mut KvCache,
        tick: impl FnMut(),
    ) {
        let n_wanted = self.run(batch, wants, kv, tick);
        assert_eq!(
            wants.len(),
            n_wanted,
            "one want for each entry that wants logits"
        );
    }

    /// What the last pass computed, in the order of the entries that want logits. The caller may change them.
    pub fn logits(&mut self) -> impl Iterator<Item = Logits<'_>> {
        let Buffers {
            logits,
            is_screened,
            ..
        } = &mut self.buffers;
        let mut all = logits.chunks_exact_mut(self.shape.n_vocab).map(Logits::All);
        let mut best = self.screening.iter_mut().flat_map(Screening::found);
        is_screened.iter().map(move |is_screened| {
            let logits = match is_screened {
                true => best.next(),
                false => all.next(),
            };
            logits.expect("there are buffers for every entry that wants logits")
        })
    }

    /// The vector of one entry of the last batch behind the output norm; `out: [n_embd]`.
    ///
    /// # Panics
    /// When `out` has another length, or the buffers hold no such entry.
    pub fn hidden(&self, entry: usize, out: &mut [f32]) {
        let (kernel, n_embd) = (self.kernel, self.shape.n_embd);
        let row = &self.buffers.x[entry * n_embd..(entry + 1) * n_embd];
        kernel.rms_norm(row, &self.weights.output_norm, self.shape.eps, out);
    }

    /// Values of the residual stream.
    pub fn n_embd(&self) -> usize {
        self.shape.n_embd
    }

    /// Computes; returns the number of entries that want logits. Those without a want in `wants` want all.
    fn run(
        &mut self,
        batch: &[Entry],
        wants: &[Want<'_>],
        kv: &mut KvCache,
        mut tick: impl FnMut(),
    ) -> usize {
        let Limits {
            batch: longest,
            logits: most,
            decode_batch,
            decode_workers,
            ..
        } = self.limits;
        let n_wanted = batch.iter().filter(|entry| entry.wants_logits).count();
        assert!(
            (1..=longest).contains(&batch.len()),
            "{} entries in a batch of {longest}",
            batch.len()
        );
        assert!(
            n_wanted <= most,
            "{n_wanted} entries want logits, there is room for {most}"
        );

        let n_workers = if batch.len() <= decode_batch {
            decode_workers
        } else {
            self.pool.size()
        };
        let mut step = Step {
            kernel: self.kernel,
            shape: &self.shape,
            pool: &mut self.pool,
            scratch: &self.scratch,
            n_workers,
            n_tokens: batch.len(),
        };
        self.buffers.place(batch, kv, &self.shape);
        let mut rows = self.buffers.cut(batch.len(), n_wanted, &self.shape);

        step.embed(batch, &self.weights.embedding, rows.x);
        for (number, layer) in self.weights.layers.iter().enumerate() {
            step.attention(number, layer, &mut rows, kv);
            step.feed_forward(layer, &mut rows);
            tick();
        }
        let screening = self.screening.as_mut();
        step.head(batch, wants, &self.weights, screening, &mut rows);
        n_wanted
    }
}

/// The threads of one batch, and its steps.
struct Step<'a> {
    kernel: Kernel,
    shape: &'a Shape,
    pool: &'a mut Pool,
    scratch: &'a [Mutex<Scratch>],
    n_workers: usize,
    n_tokens: usize,
}

impl Step<'_> {
    fn embed(&mut self, batch: &[Entry], embedding: &DenseMatrix, x: &mut [f32]) {
        let kernel = self.kernel;
        let rows = batch.iter().zip(x.chunks_exact_mut(self.shape.n_embd));
        let n_workers = self.workers_for_rows();
        self.pool.for_each(n_workers, rows, |_, (entry, row)| {
            kernel.dense_row(embedding, entry.token as usize, row)
        });
    }

    /// `x += Wo attend(Wq h, Wk h, Wv h)` with `h = norm(x)`.
    fn attention(&mut self, number: usize, layer: &Layer, b: &mut Rows<'_>, kv: &mut KvCache) {
        self.norm_quantize(b.x, Some(&layer.attn_norm), b.quant);
        self.project(
            [
                (&layer.q, &mut *b.q),
                (&layer.k, &mut *b.k),
                (&layer.v, &mut *b.v),
            ],
            b.quant,
        );
        self.store(number, b, kv);
        self.attend(number, b, kv);
        self.norm_quantize(b.attn, layer.attn_sub_norm.as_deref(), b.quant);
        self.project_add(&layer.attn_output, b.quant, b.x);
    }

    /// `x += Wdown (act(Wgate h) * Wup h)` with `h = norm(x)`.
    fn feed_forward(&mut self, layer: &Layer, b: &mut Rows<'_>) {
        self.norm_quantize(b.x, Some(&layer.ffn_norm), b.quant);
        self.project_gated(&layer.gate, &layer.up, b.quant, b.gated);
        self.norm_quantize(b.gated, layer.ffn_sub_norm.as_deref(), b.quant);
        self.project_add(&layer.down, b.quant, b.x);
    }

    /// Logits of the entries that want them: all by the full head, or the best by screening.
    fn head(
        &mut self,
        batch: &[Entry],
        wants: &[Want<'_>],
        weights: &Weights,
        mut screening: Option<&mut Screening>,
        b: &mut Rows<'_>,
    ) {
        b.is_screened.clear();
        if b.last.is_empty() {
            return;
        }
        let (kernel, shape) = (self.kernel, self.shape);
        let wanted = batch.iter().zip(b.x.chunks_exact(shape.n_embd));
        let wanted = wanted
            .filter(|(entry, _)| entry.wants_logits)
            .map(|(_, row)| row);
        for (row, out) in wanted.zip(b.last.chunks_exact_mut(shape.n_embd)) {
            kernel.rms_norm(row, &weights.output_norm, shape.eps, out);
        }
        let last = b.last.chunks_exact(shape.n_embd);
        let wants = wants.iter().copied().chain(std::iter::repeat(Want::All));
        let mut inputs: [Vec<&[f32]>; 2] = Default::default();
        let mut screened_wants = Vec::new();
        for (input, want) in last.zip(wants) {
            let place = screened_wants.len();
            let is_screened = screening
                .as_mut()
                .is_some_and(|it| it.can_screen(place, input, want));
            if is_screened {
                screened_wants.push(want);
            }
            b.is_screened.push(is_screened);
            inputs[usize::from(is_screened)].push(input);
        }
        let [full, screened] = &inputs;
        let (logits, lower) = b.logits.split_at_mut(full.len() * shape.n_vocab);
        if !full.is_empty() {
            self.full_head(&weights.head, full, logits);
        }
        if let Some(screening) = screening.filter(|_| !screened.is_empty()) {
            let mut crew = Crew {
                kernel,
                pool: self.pool,
                n_workers: self.n_workers,
            };
            let job = Job {
                inputs: screened,
                wants: &screened_wants,
                lower,
            };
            screening.find(&mut crew, job);
        }
    }

    /// `logits: [inputs, n_vocab]`
    fn full_head(&mut self, head: &DenseMatrix, inputs: &[&[f32]], logits: &mut [f32]) {
        let (kernel, scratch, n_vocab) = (self.kernel, self.scratch, self.shape.n_vocab);
        let columns = split_columns(logits, inputs.len(), n_vocab, self.part(n_vocab));
        self.pool.run(self.n_workers, &|worker| {
            let rows = &mut lock(&scratch[worker]).rows;
            while let Some(part) = columns.take() {
                let range = part.range();
                rows.with(part.rows(), |out| {
                    kernel.dense_matmul(head, range, inputs, out)
                });
            }
        });
    }

    /// Each row of `x`, normed unless `norm` is `None`, as int8.
    fn norm_quantize(&mut self, x: &[f32], norm: Option<&[f32]>, quant: &mut QuantRows) {
        let (kernel, eps, scratch) = (self.kernel, self.shape.eps, self.scratch);
        let cols = x.len() / self.n_tokens;
        quant.resize(self.n_tokens, cols);
        let rows = x.chunks_exact(cols).zip(quant.rows_mut());
        self.pool.for_each(
            self.workers_for_rows(),
            rows,
            |worker, (row, out)| match norm {
                None => kernel.quantize(row, out),
                Some(norm) => {
                    let normed = &mut lock(&scratch[worker]).row[..cols];
                    kernel.rms_norm(row, norm, eps, normed);
                    kernel.quantize(normed, out);
                }
            },
        );
    }

    /// Several products of the same input: `out[t] = W x[t] + bias`.
    fn project<const N: usize>(&mut self, pairs: [(&Projection, &mut [f32]); N], x: &QuantRows) {
        let (kernel, scratch, n_tokens) = (self.kernel, self.scratch, self.n_tokens);
        let pairs = pairs.map(|(projection, out)| {
            let n_rows = projection.matrix.rows();
            (
                projection,
                split_columns(out, n_tokens, n_rows, self.part(n_rows)),
            )
        });
        self.pool.run(self.n_workers, &|worker| {
            let rows = &mut lock(&scratch[worker]).rows;
            for (projection, columns) in &pairs {
                while let Some(part) = columns.take() {
                    let range = part.range();
                    rows.with(part.rows(), |out| projection.apply(kernel, range, x, out));
                }
            }
        });
    }

    /// `x[t] += W input[t] + bias`.
    fn project_add(&mut self, projection: &Projection, input: &QuantRows, x: &mut [f32]) {
        let (kernel, scratch, n_tokens) = (self.kernel, self.scratch, self.n_tokens);
        let n_rows = projection.matrix.rows();
        let columns = split_columns(x, n_tokens, n_rows, self.part(n_rows));
        self.pool.run(self.n_workers, &|worker| {
            let scratch = &mut *lock(&scratch[worker]);
            while let Some(part) = columns.take() {
                let range = part.range();
                let tile = &mut scratch.tile[0][..n_tokens * range.len()];
                let products = tile.chunks_exact_mut(range.len());
                scratch.rows.with(products, |out| {
                    projection.apply(kernel, range.clone(), input, out)
                });
                for (x, product) in part.rows().zip(tile.chunks_exact(range.len())) {
                    kernel.add(x, product);
                }
            }
        });
    }

    /// `out[t] = act(Wgate x[t]) * (Wup x[t])`.
    fn project_gated(
        &mut self,
        gate: &Projection,
        up: &Projection,
        x: &QuantRows,
        out: &mut [f32],
    ) {
        let (kernel, scratch, n_tokens) = (self.kernel, self.scratch, self.n_tokens);
        let activation = self.shape.activation;
        let n_rows = gate.matrix.rows();
        let columns = split_columns(out, n_tokens, n_rows, self.part(n_rows));
        self.pool.run(self.n_workers, &|worker| {
            let Scratch { tile, rows, .. } = &mut *lock(&scratch[worker]);
            while let Some(part) = columns.take() {
                let range = part.range();
                let width = range.len();
                let [gates, ups] = tile.each_mut().map(|tile| &mut tile[..n_tokens * width]);
                rows.with(gates.chunks_exact_mut(width), |out| {
                    gate.apply(kernel, range.clone(), x, out)
                });
                rows.with(ups.chunks_exact_mut(width), |out| {
                    up.apply(kernel, range, x, out)
                });
                let inputs = gates.chunks_exact(width).zip(ups.chunks_exact(width));
                for ((gate, up), out) in inputs.zip(part.rows()) {
                    match activation {
                        Activation::Relu2 => kernel.relu2_mul(gate, up, out),
                        Activation::Silu => kernel.silu_mul(gate, up, out),
                    }
                }
            }
        });
    }

    /// Turns the batch's keys and writes keys and values to the cache.
    fn store(&mut self, layer: usize, b: &Rows<'_>, kv: &mut KvCache) {
        let (kernel, shape, scratch) = (self.kernel, self.shape, self.scratch);
        let head_dim = shape.head_dim;
        let stride = shape.n_head_kv * head_dim;
        let n_workers = self.workers_for_rows();
        self.pool
            .for_each(n_workers, kv.layer_mut(layer), |worker, mut writer| {
                let key = &mut lock(&scratch[worker]).heads[..head_dim];
                let places = b
                    .places
                    .iter()
                    .enumerate()
                    .filter(|(_, place)| place.slot == writer.slot);
                for (t, place) in places {
                    let start = t * stride + writer.head * head_dim;
                    shape.turn(
                        &b.k[start..start + head_dim],
                        turns_of(b.turns, t, head_dim),
                        key,
                    );
                    let value = &b.v[start..start + head_dim];
                    let cells = place.position * head_dim..(place.position + 1) * head_dim;
                    match &mut writer.cells {
                        HeadCellsMut::F16 { keys, values } => {
                            kernel.store_f16(key, &mut keys[cells.clone()]);
                            kernel.store_f16(value, &mut values[cells]);
                        }
                        HeadCellsMut::F32 { keys, values } => {
                            keys[cells.clone()].copy_from_slice(key);
                            values[cells].copy_from_slice(value);
                        }
                    }
                }
            });
    }

    /// Attention of every token over its own past.
    fn attend(&mut self, layer: usize, b: &mut Rows<'_>, kv: &KvCache) {
        let (kernel, shape, scratch) = (self.kernel, self.shape, self.scratch);
        let head_dim = shape.head_dim;
        let len = shape.group * head_dim;
        let Rows {
            q: queries,
            attn,
            places,
            turns,
            ..
        } = b;
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        self.pool.for_each(
            self.n_workers,
            attn.chunks_exact_mut(len).enumerate(),
            |worker, (item, out)| {
                let (t, head) = (item / shape.n_head_kv, item % shape.n_head_kv);
                let place = places[t];
                let turns = turns_of(turns, t, head_dim);
                let Scratch {
                    heads: q, scores, ..
                } = &mut *lock(&scratch[worker]);
                let heads = queries[item * len..(item + 1) * len].chunks_exact(head_dim);
                for (head, turned) in heads.zip(q.chunks_exact_mut(head_dim)) {
                    shape.turn(head, turns, turned);
                }
                let (q, n_pos) = (&q[..len], place.position + 1);
                match kv.head(layer, place.slot, head, n_pos) {
                    HeadCells::F16 { keys: k, values: v } => {
                        kernel.attend_f16(Attend {
                            q,
                            k,
                            v,
                            head_dim,
                            n_pos,
                            scale,
                            scores,
                            out,
                        });
                    }
                    HeadCells::F32 { keys: k, values: v } => {
                        kernel.attend_f32(Attend {
                            q,
                            k,
                            v,
                            head_dim,
                            n_pos,
                            scale,
                            scores,
                            out,
                        });
                    }
                }
            },
        );
    }

    /// Work of a microsecond per token is not worth waking anyone for a few tokens.
    fn workers_for_rows(&self) -> usize {
        if self.n_tokens < 4 { 1 } else { self.n_workers }
    }

    /// Columns of a product to take at once.
    fn part(&self, n_columns: usize) -> usize {
        if self.n_tokens > SHORT_BATCH {
            return PREFILL_PART;
        }
        let share = n_columns.div_ceil(self.n_workers * PARTS_PER_WORKER);
        share.next_multiple_of(32).min(DECODE_PART)
    }
}

impl Projection {
    /// `out[t] = (W x[t] + bias)[range]`.
    fn apply(
        &self,
        kernel: Kernel,
        range: std::ops::Range<usize>,
        x: &QuantRows,
        out: &mut [&mut [f32]],
    ) {
        kernel.matmul(&self.matrix, range.clone(), x, out);
        if let Some(bias) = &self.bias {
            for out in out {
                kernel.add(out, &bias[range.clone()]);
            }
        }
    }
}

impl Shape {
    fn new(facts: &ModelFacts, weights: &Weights) -> Self {
        let half = facts.head_dim / 2;
        let freqs =
            (0..half).map(|i| f64::from(facts.rope.freq_base).powf(-(i as f64) / half as f64));
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
            group: facts.n_head / facts.n_head_kv,
            eps: facts.norm_eps,
            activation: facts.activation,
            rope_style: facts.rope.style,
            rope_freqs: freqs.collect(),
        }
    }

    /// Rotary position embedding of one head (Su et al. 2021).
    fn turn(&self, head: &[f32], turns: &[(f32, f32)], out: &mut [f32]) {
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
    fn new(shape: &Shape, limits: &Limits) -> Self {
        let n = limits.batch;
        let n_kv = shape.n_head_kv * shape.head_dim;
        let n_attn = n_kv * shape.group;
        let zeros = |len: usize| vec![0.0; len];
        Buffers {
            places: Vec::with_capacity(n),
            turns: Vec::with_capacity(n * shape.rope_freqs.len()),
            x: zeros(n * shape.n_embd),
            quant: QuantRows::new(n, shape.n_embd.max(n_attn).max(shape.n_ff)),
            q: zeros(n * n_attn),
            k: zeros(n * n_kv),
            v: zeros(n * n_kv),
            attn: zeros(n * n_attn),
            gated: zeros(n * shape.n_ff),
            last: zeros(limits.logits * shape.n_embd),
            logits: zeros(limits.logits * shape.n_vocab),
            is_screened: Vec::with_capacity(limits.logits),
        }
    }

    /// The first rows of each buffer; what they hold is overwritten before it is read.
    fn cut(&mut self, n: usize, n_wanted: usize, shape: &Shape) -> Rows<'_> {
        let n_kv = shape.n_head_kv * shape.head_dim;
        let n_attn = n_kv * shape.group;
        Rows {
            places: &self.places,
            turns: &self.turns,
            x: &mut self.x[..n * shape.n_embd],
            quant: &mut self.quant,
            q: &mut self.q[..n * n_attn],
            k: &mut self.k[..n * n_kv],
            v: &mut self.v[..n * n_kv],
            attn: &mut self.attn[..n * n_attn],
            gated: &mut self.gated[..n * shape.n_ff],
            last: &mut self.last[..n_wanted * shape.n_embd],
            logits: &mut self.logits[..n_wanted * shape.n_vocab],
            is_screened: &mut self.is_screened,
        }
    }

    /// Gives each entry the next position of its slot, and works out its RoPE angles.
    fn place(&mut self, batch: &[Entry], kv: &mut KvCache, shape: &Shape) {
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
fn turns_of(turns: &[(f32, f32)], t: usize, head_dim: usize) -> &[(f32, f32)] {
    let half = head_dim / 2;
    &turns[t * half..(t + 1) * half]
}

impl Scratch {
    fn new(shape: &Shape, limits: &Limits) -> Self {
        let tile = (limits.batch * PREFILL_PART).max(SHORT_BATCH * DECODE_PART);
        let heads = shape.group * shape.head_dim;
        Scratch {
            row: vec![0.0; shape.n_embd.max(shape.n_ff).max(heads * shape.n_head_kv)],
            heads: vec![0.0; heads],
            scores: vec![0.0; shape.group * limits.context],
            tile: [vec![0.0; tile], vec![0.0; tile]],
            rows: RowList::default(),
        }
    }
}

/// Keeps the allocation of a list of borrowed rows from one use to the next.
#[derive(Default)]
struct RowList(Vec<&'static mut [f32]>);

impl RowList {
    fn with<'a>(
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
fn emptied<'b>(mut list: Vec<&mut [f32]>) -> Vec<&'b mut [f32]> {
    list.clear();
    list.into_iter()
        .map(|_| unreachable!("the list is empty"))
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
