//! What attention works on: all of it in one call, or its parts, so that several threads can share one head.

use std::ops::Range;

use crate::arch::Cells;

/// 32 numbers of a q8_0 cache, as GGML's Q8_0: a scale in f16 (two bytes, little-endian), then 32 codes as int8.
pub type Q8Block = [u8; 34];

/// What a cache of keys and values is made of.
pub trait CacheCell: Copy + Cells {
    /// Cells that hold 32 numbers.
    const PER_BLOCK: usize;
    /// Cells of a head; the last block of a head is filled with zeros.
    fn per_head(head_dim: usize) -> usize {
        head_dim.div_ceil(32 / Self::PER_BLOCK)
    }
}

impl CacheCell for u16 {
    const PER_BLOCK: usize = 32;
}

impl CacheCell for f32 {
    const PER_BLOCK: usize = 32;
}

impl CacheCell for Q8Block {
    const PER_BLOCK: usize = 1;
}

/// The query heads that share one key/value head, for one token. `E` is the cell of the cache: `u16` (f16 bits), `f32`
/// or [`Q8Block`]; a head takes `E::per_head(head_dim)` of them, which `head_cells` stands for below.
///
/// Per query head: `score[p] = scale · <q, k[p]>`, `e = exp(score - max)`, `w = e · (1 / Σ e)`,
/// `out = Σ w[p]·v[p]` in the order of positions. The result depends on `q`, `k`, `v`, `n_pos` and `scale`
/// only. Large negative differences saturate: exp is never below e^-87.
#[derive(Debug)]
pub struct Attend<'a, E = u16> {
    /// `[n_q, head_dim]`; its length says how many query heads there are.
    pub q: &'a [f32],
    /// `[n_pos, head_cells]`, contiguous positions; more may follow.
    pub k: &'a [E],
    /// `[n_pos, head_cells]`, contiguous positions; more may follow.
    pub v: &'a [E],
    /// Numbers per head.
    pub head_dim: usize,
    /// Positions to look at, at least 1.
    pub n_pos: usize,
    /// Factor of the scores, usually 1/√head_dim.
    pub scale: f32,
    /// Scratch, at least `n_q · n_pos`; overwritten.
    pub scores: &'a mut [f32],
    /// `[n_q, head_dim]`, overwritten.
    pub out: &'a mut [f32],
}

impl<E: CacheCell> Attend<'_, E> {
    /// Checks all lengths and cuts the slices to them.
    ///
    /// # Panics
    /// When a length doesn't fit the shape.
    pub(crate) fn check(&mut self) {
        assert!(
            self.head_dim > 0 && self.n_pos > 0,
            "attention needs a head dimension and a position"
        );
        assert!(
            self.q.len().is_multiple_of(self.head_dim),
            "q must be [n_q, head_dim]"
        );
        assert_eq!(self.out.len(), self.q.len(), "out must be [n_q, head_dim]");
        let n_q = self.q.len() / self.head_dim;
        let cache = self
            .n_pos
            .checked_mul(E::per_head(self.head_dim))
            .expect("the cache fits memory");
        let scores = n_q.checked_mul(self.n_pos).expect("the scores fit memory");
        assert!(
            self.k.len() >= cache && self.v.len() >= cache,
            "k and v must hold [n_pos, head_cells]"
        );
        assert!(self.scores.len() >= scores, "scores must hold [n_q, n_pos]");
        self.k = &self.k[..cache];
        self.v = &self.v[..cache];
        self.scores = &mut std::mem::take(&mut self.scores)[..scores];
    }
}

/// The first part of [`Attend`]: the scores of some positions, `scores[h][p] = scale · <q[h], k[p]>`.
#[derive(Debug)]
pub struct Score<'a, E = u16> {
    /// `[n_q, head_dim]`
    pub q: &'a [f32],
    /// `[positions, head_cells]`
    pub k: &'a [E],
    /// Numbers per head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// `[n_q, positions]`, overwritten. `Kernel::softmax` makes weights of the scores of all positions.
    pub scores: &'a mut [f32],
}

/// The last part of [`Attend`]: some columns of the weighted sum of all values.
#[derive(Debug)]
pub struct Weigh<'a, E = u16> {
    /// `[n_q, n_pos]`
    pub weights: &'a [f32],
    /// Positions.
    pub n_pos: usize,
    /// `[n_pos, head_cells]`; more may follow.
    pub v: &'a [E],
    /// Numbers per head.
    pub head_dim: usize,
    /// Which of them; it begins at a multiple of 32 and ends at one or with the head.
    pub columns: Range<usize>,
    /// `[n_q, columns]`, overwritten.
    pub out: &'a mut [f32],
}

impl<E: CacheCell> Score<'_, E> {
    /// Checks all lengths.
    ///
    /// # Panics
    /// When a length doesn't fit the shape.
    pub(crate) fn check(&self) {
        assert!(
            self.head_dim > 0 && self.q.len().is_multiple_of(self.head_dim),
            "q must be [n_q, head_dim]"
        );
        let n_pos = self.k.len() / E::per_head(self.head_dim);
        assert!(
            n_pos > 0 && self.k.len() == n_pos * E::per_head(self.head_dim),
            "k must be [positions, head_cells]"
        );
        assert_eq!(
            self.scores.len(),
            self.q.len() / self.head_dim * n_pos,
            "scores must be [n_q, positions]"
        );
    }
}

impl<E: CacheCell> Weigh<'_, E> {
    /// Checks all lengths and cuts `v` to them.
    ///
    /// # Panics
    /// When a length doesn't fit the shape.
    pub(crate) fn check(&mut self) {
        let Range { start, end } = self.columns;
        assert!(
            start < end
                && end <= self.head_dim
                && start.is_multiple_of(32)
                && (end.is_multiple_of(32) || end == self.head_dim),
            "columns {start}..{end} are not whole blocks of a head of {}",
            self.head_dim
        );
        assert!(
            self.n_pos > 0 && self.weights.len().is_multiple_of(self.n_pos),
            "weights must be [n_q, n_pos]"
        );
        assert_eq!(
            self.out.len(),
            self.weights.len() / self.n_pos * (end - start),
            "out must be [n_q, columns]"
        );
        let cache = self.n_pos.checked_mul(E::per_head(self.head_dim));
        self.v = cache
            .and_then(|cache| self.v.get(..cache))
            .expect("v must hold [n_pos, head_cells]");
    }
}
