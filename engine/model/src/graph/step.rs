//! The steps of a forward pass: each is handed to the pool and done when all workers are.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitnet_kernels::{DenseMatrix, Kernel, QuantRowMut, QuantRows};

use super::Entry;
use super::buffers::{
    DECODE_PART, PARTS_PER_WORKER, PREFILL_PART, Rows, SHORT_BATCH, Scratch, Shape, turns_of,
};
use crate::facts::padded_cols;
use crate::kv::{HeadCellsMut, KvCache};
use crate::os::{FileMap, split_columns};
use crate::pool::Pool;
use crate::protocol::Activation;
use crate::sampler::Want;
use crate::screening::{Crew, Job, Screening};
use crate::weights::{Layer, Projection, Weights};

/// The threads of one batch, and its steps.
pub(super) struct Step<'a> {
    pub(super) kernel: Kernel,
    pub(super) shape: &'a Shape,
    pub(super) pool: &'a mut Pool,
    pub(super) scratch: &'a [Mutex<Scratch>],
    pub(super) n_workers: usize,
    pub(super) n_tokens: usize,
    /// The file in which single rows of embedding and head may lie.
    pub(super) file: Option<&'a FileMap>,
}

impl Step<'_> {
    pub(super) fn embed(&mut self, batch: &[Entry], embedding: &DenseMatrix, x: &mut [f32]) {
        let (kernel, scale) = (self.kernel, self.shape.embedding_scale);
        let (file, scratch) = (self.file, self.scratch);
        let rows = batch.iter().zip(x.chunks_exact_mut(self.shape.n_embd));
        let n_workers = self.workers_for_rows();
        self.pool.for_each(n_workers, rows, |worker, (entry, row)| {
            let buffer = &mut lock(&scratch[worker]).embedding_row;
            let bytes = embedding.row(entry.token as usize);
            let bytes = file.map_or(bytes, |file| file.read(bytes, buffer));
            kernel.dense_values(embedding.ty(), bytes, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }

    /// `x += Wo attend(Wq h, Wk h, Wv h)` with `h = norm(x)`.
    pub(super) fn attention(
        &mut self,
        number: usize,
        layer: &Layer,
        b: &mut Rows<'_>,
        kv: &mut KvCache,
    ) {
        let norm = Some(&layer.attn_norm[..]);
        let all = [
            (&layer.q, &mut *b.q),
            (&layer.k, &mut *b.k),
            (&layer.v, &mut *b.v),
        ];
        if self.shape.input_norms {
            for pair in all {
                self.norm_quantize(b.x, [norm, pair.0.norm_in.as_deref()], b.quant);
                self.project([pair], b.quant);
            }
        } else {
            self.norm_quantize(b.x, [norm, None], b.quant);
            self.project(all, b.quant);
        }
        self.store(number, layer, b, kv);
        self.attend(number, layer, b, kv);
        let norms = [
            layer.attn_sub_norm.as_deref(),
            layer.attn_output.norm_in.as_deref(),
        ];
        self.norm_quantize(b.attn, norms, b.quant);
        self.project_to_stream(&layer.attn_output, layer.post_attn_norm.as_deref(), b);
    }

    /// `x += Wdown (act(Wgate h) * Wup h)` with `h = norm(x)`.
    pub(super) fn feed_forward(&mut self, layer: &Layer, b: &mut Rows<'_>) {
        let norm = Some(&layer.ffn_norm[..]);
        self.norm_quantize(b.x, [norm, layer.gate.norm_in.as_deref()], b.quant);
        let up_input = match self.shape.input_norms {
            true => {
                self.norm_quantize(b.x, [norm, layer.up.norm_in.as_deref()], b.quant_up);
                &*b.quant_up
            }
            false => &*b.quant,
        };
        let pairs = [(&layer.gate, &*b.quant), (&layer.up, up_input)];
        self.project_gated(pairs, b.gated);
        let norms = [layer.ffn_sub_norm.as_deref(), layer.down.norm_in.as_deref()];
        self.norm_quantize(b.gated, norms, b.quant);
        self.project_to_stream(&layer.down, layer.post_ffn_norm.as_deref(), b);
    }

    /// `x += norm(W input + bias)`, the norm only where there is one; the input is in `b.quant`.
    fn project_to_stream(
        &mut self,
        projection: &Projection,
        norm: Option<&[f32]>,
        b: &mut Rows<'_>,
    ) {
        let Some(norm) = norm else {
            return self.project_add(projection, b.quant, b.x);
        };
        self.project([(projection, &mut *b.added)], b.quant);
        let (kernel, eps, scratch) = (self.kernel, self.shape.eps, self.scratch);
        let n_embd = self.shape.n_embd;
        let rows = b
            .added
            .chunks_exact(n_embd)
            .zip(b.x.chunks_exact_mut(n_embd));
        let n_workers = self.workers_for_rows();
        self.pool.for_each(n_workers, rows, |worker, (added, x)| {
            let normed = &mut lock(&scratch[worker]).normed[0][..n_embd];
            kernel.rms_norm(added, norm, eps, normed);
            kernel.add(x, normed);
        });
    }

    /// Logits of the entries that want them: all by the full head, or the best by screening.
    pub(super) fn head(
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
                file: self.file,
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
    pub(super) fn full_head(&mut self, head: &DenseMatrix, inputs: &[&[f32]], logits: &mut [f32]) {
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

    /// Each row of `x`, behind the norms there are, as int8; zeros up to the columns of the matrices.
    pub(super) fn norm_quantize(
        &mut self,
        x: &[f32],
        norms: [Option<&[f32]>; 2],
        quant: &mut QuantRows,
    ) {
        let (kernel, eps, scratch) = (self.kernel, self.shape.eps, self.scratch);
        let cols = x.len() / self.n_tokens;
        quant.resize(self.n_tokens, padded_cols(cols));
        let rows = x.chunks_exact(cols).zip(quant.rows_mut());
        let n_workers = self.workers_for_rows();
        self.pool.for_each(n_workers, rows, |worker, (row, out)| {
            let mut scratch = lock(&scratch[worker]);
            let [first, second] = scratch.normed.each_mut().map(|row| &mut row[..cols]);
            let mut input = row;
            for (norm, normed) in norms.into_iter().zip([first, second]) {
                if let Some(norm) = norm {
                    kernel.rms_norm(input, norm, eps, normed);
                    input = normed;
                }
            }
            let QuantRowMut { values, scale, sum } = out;
            let (values, padding) = values.split_at_mut(cols);
            padding.fill(0);
            kernel.quantize(input, QuantRowMut { values, scale, sum });
        });
    }

    /// Several products of the same input: `out[t] = W x[t] + bias`.
    pub(super) fn project<const N: usize>(
        &mut self,
        pairs: [(&Projection, &mut [f32]); N],
        x: &QuantRows,
    ) {
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
    pub(super) fn project_add(
        &mut self,
        projection: &Projection,
        input: &QuantRows,
        x: &mut [f32],
    ) {
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

    /// `out[t] = act(Wgate x[t]) * (Wup y[t])` of two linears and their inputs.
    fn project_gated(
        &mut self,
        [(gate, gate_input), (up, up_input)]: [(&Projection, &QuantRows); 2],
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
                    gate.apply(kernel, range.clone(), gate_input, out)
                });
                rows.with(ups.chunks_exact_mut(width), |out| {
                    up.apply(kernel, range, up_input, out)
                });
                let inputs = gates.chunks_exact(width).zip(ups.chunks_exact(width));
                for ((gate, up), out) in inputs.zip(part.rows()) {
                    match activation {
                        Activation::Relu2 => kernel.relu2_mul(gate, up, out),
                        Activation::Silu => kernel.silu_mul(gate, up, out),
                        Activation::Gelu => kernel.gelu_mul(gate, up, out),
                    }
                }
            }
        });
    }

    /// Turns the batch's keys and writes keys and values to the cache.
    fn store(&mut self, number: usize, layer: &Layer, b: &Rows<'_>, kv: &mut KvCache) {
        let (kernel, shape, scratch) = (self.kernel, self.shape, self.scratch);
        let head_dim = shape.head_dim;
        let stride = shape.n_head_kv * head_dim;
        let n_workers = self.workers_for_rows();
        self.pool
            .for_each(n_workers, kv.layer_mut(number), |worker, mut writer| {
                let Scratch {
                    heads, normed_head, ..
                } = &mut *lock(&scratch[worker]);
                let key = &mut heads[..head_dim];
                let places = b
                    .places
                    .iter()
                    .enumerate()
                    .filter(|(_, place)| place.slot == writer.slot);
                for (t, place) in places {
                    let start = t * stride + writer.head * head_dim;
                    let mut input = &b.k[start..start + head_dim];
                    if let Some(norm) = &layer.k_head_norm {
                        kernel.rms_norm(input, norm, shape.eps, normed_head);
                        input = normed_head;
                    }
                    shape.turn(input, turns_of(b.turns, t, head_dim), key);
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
                        HeadCellsMut::Q8_0 { keys, values } => {
                            let n = head_dim.div_ceil(32);
                            let cells = place.position * n..(place.position + 1) * n;
                            kernel.store_q8_0(key, &mut keys[cells.clone()]);
                            kernel.store_q8_0(value, &mut values[cells]);
                        }
                    }
                }
            });
    }

    /// Work of a microsecond per token is not worth waking anyone for a few tokens.
    pub(super) fn workers_for_rows(&self) -> usize {
        if self.n_tokens < 4 { 1 } else { self.n_workers }
    }

    /// Columns of a product to take at once.
    pub(super) fn part(&self, n_columns: usize) -> usize {
        let (n_parts, most) = match self.n_tokens > SHORT_BATCH {
            true => {
                let n_parts = n_columns.div_ceil(PREFILL_PART);
                (n_parts.next_multiple_of(self.n_workers), PREFILL_PART)
            }
            false => (self.n_workers * PARTS_PER_WORKER, DECODE_PART),
        };
        n_columns.div_ceil(n_parts).next_multiple_of(32).min(most)
    }
}

impl Projection {
    /// `out[t] = (W x[t] + bias)[range]`.
    pub(super) fn apply(
        &self,
        kernel: Kernel,
        range: Range<usize>,
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
