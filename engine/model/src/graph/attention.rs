//! Attention of a batch, divided among the workers.
//!
//! Many tokens: some of one slot together, one key/value head at a time, so that its keys and values come from memory once for
//! them; head by head, so that they stay in the caches from one item to the next. Few tokens far into their context, where whole
//! heads would not divide well: scores by ranges of positions, then weights, then values by ranges of columns. A score is one
//! sum and a column sums over all positions in their order, so both ways give the same bits.

use std::iter;
use std::mem;
use std::ops::Range;

use bitnet_kernels::{Attend, CacheCell, Kernel, Score, Weigh};

use super::buffers::{Place, Rows, Scratch, Shape, turns_of};
use super::step::{Step, lock};
use crate::kv::{HeadCells, KvCache};
use crate::os::{ColumnPart, Columns, split_columns};
use crate::weights::Layer;

/// From so many positions on, the two waits more that dividing heads costs are worth it.
const SPLIT_FROM: usize = 512;
/// Positions whose scores a worker computes at once.
const SPLIT_POSITIONS: usize = 256;
/// Columns of values that a worker computes at once: two cache lines of each row in f16. Half as many where there would be
/// too few parts.
const SPLIT_COLUMNS: usize = 64;
/// Heads per worker from which on they divide well as they are.
pub(super) const SPLIT_HEADS: usize = 4;

/// The queries of a batch, and what they look at.
struct Heads<'a> {
    kernel: Kernel,
    shape: &'a Shape,
    layer: &'a Layer,
    /// Of the layer.
    number: usize,
    kv: &'a KvCache,
    queries: &'a [f32],
    places: &'a [Place],
    turns: &'a [(f32, f32)],
}

/// What a worker does at a time for tokens far into their context.
enum Part<'a> {
    /// All of a head of token `t`.
    Head {
        t: usize,
        head: usize,
        out: &'a mut [f32],
    },
    /// The scores of the divided head `i` over some positions.
    Scores { i: usize, columns: ColumnPart<'a> },
}

impl Step<'_> {
    /// Attention of every token over its own past.
    pub(super) fn attend(&mut self, number: usize, layer: &Layer, b: &mut Rows<'_>, kv: &KvCache) {
        let heads = Heads {
            kernel: self.kernel,
            shape: self.shape,
            layer,
            number,
            kv,
            queries: b.q,
            places: b.places,
            turns: b.turns,
        };
        let longest = b.places.iter().map(Place::n_pos).max().unwrap_or(0);
        let queries_len = self.shape.heads_len() * self.shape.n_head_kv * self.n_tokens;
        if longest >= SPLIT_FROM && queries_len <= b.split_queries.len() {
            let queries = &mut b.split_queries[..queries_len];
            self.attend_in_parts(&heads, queries, b.split_scores, b.attn);
        } else {
            self.attend_by_heads(&heads, b.attn);
        }
    }

    fn attend_by_heads(&mut self, heads: &Heads<'_>, attn: &mut [f32]) {
        let (shape, scratch) = (self.shape, self.scratch);
        let (stride, len) = (shape.heads_len() * shape.n_head_kv, shape.heads_len());
        let mut rest = attn;
        let mut first = 0;
        let runs = heads.places.chunk_by(|a, b| a.slot == b.slot);
        let blocks = runs.flat_map(|run| run.chunks(shape.attend_tokens()));
        let blocks = blocks.map(|block| {
            let (rows, others) = mem::take(&mut rest).split_at_mut(block.len() * stride);
            rest = others;
            first += block.len();
            let tokens = first - block.len()..first;
            (tokens, split_columns(rows, block.len(), stride, len))
        });
        let blocks: Vec<_> = blocks.collect();
        let items = (0..shape.n_head_kv).flat_map(|_| &blocks);
        self.pool
            .for_each(self.n_workers, items, |worker, (tokens, columns)| {
                let Some(part) = columns.take() else { return };
                let scratch = &mut *lock(&scratch[worker]);
                let head = part.range().start / len;
                let turned = &mut scratch.heads[..tokens.len() * len];
                heads.turn(tokens.clone(), head, turned, &mut scratch.normed_head);
                heads.attend(tokens.clone(), head, scratch, part.rows());
            });
    }

    /// Of each token as many heads as there are for every worker, and the scores of the others, whose weights and values
    /// follow. `queries: [n, n_head_kv, group, head_dim]` and `scores: [n, n_head_kv * group * context]` for the time between.
    fn attend_in_parts(
        &mut self,
        heads: &Heads<'_>,
        queries: &mut [f32],
        scores: &mut [f32],
        attn: &mut [f32],
    ) {
        let (kernel, shape, scratch) = (self.kernel, self.shape, self.scratch);
        let (group, head_dim, len) = (shape.group, shape.head_dim, shape.heads_len());
        let n_split = shape.n_head_kv % self.n_workers;
        let n_whole = shape.n_head_kv - n_split;
        let n_items = heads.places.len() * n_split;
        // A token, and a head that is divided.
        let item = |i: usize| (i / n_split, n_whole + i % n_split);

        let queries = &mut queries[..n_items * len];
        for (i, turned) in queries.chunks_exact_mut(len).enumerate() {
            let (t, head) = item(i);
            let normed_head = &mut lock(&scratch[0]).normed_head;
            heads.turn(t..t + 1, head, turned, normed_head);
        }
        let queries = &*queries;

        let mut rows: Vec<(usize, &mut [f32])> = Vec::with_capacity(n_items);
        let scores = scores.chunks_exact_mut(shape.n_head_kv * group * shape.context);
        for (place, scores) in heads.places.iter().zip(scores) {
            let n_pos = place.n_pos();
            let scores = scores.chunks_exact_mut(group * n_pos).take(n_split);
            rows.extend(scores.map(|scores| (n_pos, scores)));
        }
        let (whole, split): (Vec<_>, Vec<_>) = attn
            .chunks_exact_mut(shape.n_head_kv * len)
            .map(|outs| outs.split_at_mut(n_whole * len))
            .unzip();

        let whole = whole.into_iter().enumerate().flat_map(|(t, outs)| {
            let outs = outs.chunks_exact_mut(len).enumerate();
            outs.map(move |(head, out)| Part::Head { t, head, out })
        });
        let columns = rows
            .iter_mut()
            .map(|(n_pos, scores)| split_columns(scores, group, *n_pos, SPLIT_POSITIONS));
        let columns: Vec<_> = columns.collect();
        let scores = parts_of(&columns).map(|(i, columns)| Part::Scores { i, columns });
        let parts = whole.chain(scores);
        self.pool.for_each(self.n_workers, parts, |worker, part| {
            let scratch = &mut *lock(&scratch[worker]);
            match part {
                Part::Head { t, head, out } => {
                    let turned = &mut scratch.heads[..len];
                    heads.turn(t..t + 1, head, turned, &mut scratch.normed_head);
                    heads.attend(t..t + 1, head, scratch, iter::once(out));
                }
                Part::Scores { i, columns } => {
                    let (range, (t, head)) = (columns.range(), item(i));
                    let some = &mut scratch.scores[..group * range.len()];
                    let q = &queries[i * len..(i + 1) * len];
                    heads.score(t, head, range, q, some);
                    fill(columns, some);
                }
            }
        });
        if n_items == 0 {
            return;
        }

        let all = rows
            .iter_mut()
            .flat_map(|(n_pos, scores)| scores.chunks_exact_mut(*n_pos));
        self.pool
            .for_each(self.n_workers, all, |_, row| kernel.softmax(row));

        let outs = split
            .into_iter()
            .flat_map(|outs| outs.chunks_exact_mut(len));
        let is_enough = n_items * head_dim / SPLIT_COLUMNS >= self.n_workers;
        let width = if is_enough {
            SPLIT_COLUMNS
        } else {
            SPLIT_COLUMNS / 2
        };
        let columns: Vec<_> = outs
            .map(|out| split_columns(out, group, head_dim, width))
            .collect();
        let parts = parts_of(&columns);
        self.pool
            .for_each(self.n_workers, parts, |worker, (i, columns)| {
                let (range, (t, head)) = (columns.range(), item(i));
                let some = &mut lock(&scratch[worker]).heads[..group * range.len()];
                heads.weigh(t, head, range, rows[i].1, some);
                fill(columns, some);
            });
    }
}

/// All parts of all matrices, with the numbers of these.
fn parts_of<'a>(all: &[Columns<'a>]) -> impl Iterator<Item = (usize, ColumnPart<'a>)> {
    let all = all.iter().enumerate();
    all.flat_map(|(i, columns)| iter::from_fn(move || Some((i, columns.take()?))))
}

/// Rows that lie one behind the other to the places of a part.
fn fill(part: ColumnPart<'_>, rows: &[f32]) {
    let len = part.range().len();
    for (to, row) in part.rows().zip(rows.chunks_exact(len)) {
        to.copy_from_slice(row);
    }
}

impl Heads<'_> {
    /// The query heads of some tokens that share a key/value head, normed and turned; `turned: [tokens, group, head_dim]`.
    fn turn(&self, tokens: Range<usize>, head: usize, turned: &mut [f32], normed_head: &mut [f32]) {
        let (head_dim, len) = (self.shape.head_dim, self.shape.heads_len());
        for (t, turned) in tokens.zip(turned.chunks_exact_mut(len)) {
            let item = t * self.shape.n_head_kv + head;
            let heads = self.queries[item * len..(item + 1) * len].chunks_exact(head_dim);
            for (mut head, turned) in heads.zip(turned.chunks_exact_mut(head_dim)) {
                if let Some(norm) = &self.layer.q_head_norm {
                    self.kernel
                        .rms_norm(head, norm, self.shape.eps, normed_head);
                    head = normed_head;
                }
                let turns = turns_of(self.turns, t, head_dim);
                self.shape.turn(head, turns, turned);
            }
        }
    }

    /// What the last of some tokens of one slot looks at.
    fn cells(&self, tokens: &Range<usize>, head: usize) -> HeadCells<'_> {
        let place = &self.places[tokens.end - 1];
        self.kv.head(self.number, place.slot, head, place.n_pos())
    }

    /// Attention of the turned heads of some tokens of one slot.
    fn attend<'o>(
        &self,
        tokens: Range<usize>,
        head: usize,
        scratch: &mut Scratch,
        outs: impl Iterator<Item = &'o mut [f32]>,
    ) {
        match self.cells(&tokens, head) {
            HeadCells::F16 { keys, values } => {
                self.attend_cells(tokens, [keys, values], scratch, outs)
            }
            HeadCells::F32 { keys, values } => {
                self.attend_cells(tokens, [keys, values], scratch, outs)
            }
            HeadCells::Q8_0 { keys, values } => {
                self.attend_cells(tokens, [keys, values], scratch, outs)
            }
        }
    }

    fn attend_cells<'o, E: CacheCell>(
        &self,
        tokens: Range<usize>,
        [k, v]: [&[E]; 2],
        scratch: &mut Scratch,
        outs: impl Iterator<Item = &'o mut [f32]>,
    ) {
        let head_dim = self.shape.head_dim;
        let Scratch { heads, scores, .. } = scratch;
        let heads = heads.chunks_exact(self.shape.heads_len());
        let scores = scores.chunks_exact_mut(self.shape.group * self.shape.context);
        let places = self.places[tokens].iter();
        let tokens = places.zip(heads).zip(scores.zip(outs));
        let all = tokens.map(|((place, q), (scores, out))| Attend {
            q,
            k,
            v,
            head_dim,
            n_pos: place.n_pos(),
            scale: self.shape.attention_scale,
            scores,
            out,
        });
        let mut all: Vec<_> = all.collect();
        self.kernel.attend(&mut all);
    }

    /// The scores of token `t` over some positions; `q: [group, head_dim]` turned, `scores: [group, range]`.
    fn score(&self, t: usize, head: usize, range: Range<usize>, q: &[f32], scores: &mut [f32]) {
        match self.cells(&(t..t + 1), head) {
            HeadCells::F16 { keys, .. } => self.score_cells(keys, range, q, scores),
            HeadCells::F32 { keys, .. } => self.score_cells(keys, range, q, scores),
            HeadCells::Q8_0 { keys, .. } => self.score_cells(keys, range, q, scores),
        }
    }

    fn score_cells<E: CacheCell>(
        &self,
        k: &[E],
        range: Range<usize>,
        q: &[f32],
        scores: &mut [f32],
    ) {
        let head_dim = self.shape.head_dim;
        let cells = E::per_head(head_dim);
        self.kernel.score(Score {
            q,
            k: &k[range.start * cells..range.end * cells],
            head_dim,
            scale: self.shape.attention_scale,
            scores,
        });
    }

    /// Some columns of what token `t` gets; `weights: [group, n_pos]`, `out: [group, columns]`.
    fn weigh(
        &self,
        t: usize,
        head: usize,
        columns: Range<usize>,
        weights: &[f32],
        out: &mut [f32],
    ) {
        match self.cells(&(t..t + 1), head) {
            HeadCells::F16 { values, .. } => self.weigh_cells(values, columns, weights, out),
            HeadCells::F32 { values, .. } => self.weigh_cells(values, columns, weights, out),
            HeadCells::Q8_0 { values, .. } => self.weigh_cells(values, columns, weights, out),
        }
    }

    fn weigh_cells<E: CacheCell>(
        &self,
        v: &[E],
        columns: Range<usize>,
        weights: &[f32],
        out: &mut [f32],
    ) {
        self.kernel.weigh(Weigh {
            weights,
            n_pos: weights.len() / self.shape.group,
            v,
            head_dim: self.shape.head_dim,
            columns,
            out,
        });
    }
}
