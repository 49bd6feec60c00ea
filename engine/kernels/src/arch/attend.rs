//! Attention as text over blocks of 32 lanes; each instruction set expands it for each kind of cache.
//!
//! Scores and weighted sums are computed for `HEADS` heads at a time, so that a key or a value is loaded once for them, and for
//! some positions at a time, so that these stay in the first-level cache while all heads and tokens use them. A score is one
//! `sum`; a column of the output sums over the positions in their order. So no number depends on what it was computed with.

/// Heads that share each key and value: with two keys, or two registers of values, eight sums.
pub(super) const HEADS: usize = 4;
/// Positions whose keys or values are used together.
pub(super) const POSITIONS: usize = 64;

/// Attention over a cache of `$element`, register `i` of 32 numbers loaded by `$at`; 32 numbers, or those that are left at the end of a head, by `$load_part`.
macro_rules! attend_kernel {
    ($cells:ident, $element:ty, $at:ident, $load_part:ident, $(#[$isa:meta])*) => {
        pub(super) mod $cells {
            use super::*;
            use super::super::attend::{HEADS, POSITIONS};
            use super::super::{LINE_BYTES, PREFETCH_BYTES, prefetch_line};
            use crate::{Attend, Score, Weigh};

            /// Cells of 32 numbers.
            const PER_BLOCK: usize = <$element as CacheCell>::PER_BLOCK;
            type Lanes = [$element; PER_BLOCK];

            /// Some tokens. Positions by positions for all of them, so that the cache comes from memory once.
            $(#[$isa])*
            pub(in super::super) fn attend(all: &mut [Attend<'_, $element>]) {
                match all.first().map(|a| a.head_dim) {
                    Some(64) => heads::<2>(all),
                    Some(96) => heads::<3>(all),
                    Some(128) => heads::<4>(all),
                    Some(256) => heads::<8>(all),
                    _ => all.iter_mut().for_each(|a| any_heads(a)),
                }
            }

            /// The scores of a range of positions.
            $(#[$isa])*
            pub(in super::super) fn score(s: &mut Score<'_, $element>) {
                match s.head_dim {
                    64 => score_some::<2>(s),
                    96 => score_some::<3>(s),
                    128 => score_some::<4>(s),
                    256 => score_some::<8>(s),
                    head_dim => {
                        let n_pos = s.k.len() / <$element>::per_head(head_dim);
                        let heads = s.q.chunks_exact(head_dim).zip(s.scores.chunks_exact_mut(n_pos));
                        heads.for_each(|(q, scores)| score_any(q, s.k, s.scale, scores));
                    }
                }
            }

            /// The weighted values of a range of columns.
            $(#[$isa])*
            pub(in super::super) fn weigh(w: &mut Weigh<'_, $element>) {
                w.out.fill(0.0);
                let n_columns = w.columns.len();
                let is_known = [32, 64, w.head_dim].contains(&n_columns);
                match w.head_dim {
                    64 if is_known => weigh_some::<2>(w),
                    96 if is_known => weigh_some::<3>(w),
                    128 if is_known => weigh_some::<4>(w),
                    256 if is_known => weigh_some::<8>(w),
                    head_dim => {
                        let stride = <$element>::per_head(head_dim);
                        let rows = w.weights.chunks_exact(w.n_pos).zip(w.out.chunks_exact_mut(n_columns));
                        rows.for_each(|(weights, out)| weigh_any(weights, w.v, stride, w.columns.start / 32, out));
                    }
                }
            }

            /// Heads of `B` blocks.
            $(#[$isa])*
            fn heads<const B: usize>(all: &mut [Attend<'_, $element>]) {
                let longest = all.iter().map(|a| a.n_pos).max().unwrap_or(0);
                for start in (0..longest).step_by(POSITIONS) {
                    for a in all.iter_mut().filter(|a| a.n_pos > start) {
                        let range = start..a.n_pos.min(start + POSITIONS);
                        let k = &a.k[range.start * B * PER_BLOCK..range.end * B * PER_BLOCK];
                        score_heads::<B>(a.q, k, a.scale, a.scores, a.n_pos, range);
                    }
                }
                for a in all.iter_mut() {
                    a.scores.chunks_exact_mut(a.n_pos).for_each(|row| softmax(row));
                    a.out.fill(0.0);
                }
                for start in (0..longest).step_by(POSITIONS) {
                    for a in all.iter_mut().filter(|a| a.n_pos > start) {
                        let range = start..a.n_pos.min(start + POSITIONS);
                        let v = &a.v[range.start * B * PER_BLOCK..range.end * B * PER_BLOCK];
                        weigh_heads::<B, B>(a.scores, a.n_pos, range, v, 0, a.out);
                    }
                }
            }

            /// The same, one part of it.
            $(#[$isa])*
            fn score_some<const B: usize>(s: &mut Score<'_, $element>) {
                let n_pos = s.k.len() / (B * PER_BLOCK);
                for start in (0..n_pos).step_by(POSITIONS) {
                    let range = start..n_pos.min(start + POSITIONS);
                    let k = &s.k[range.start * B * PER_BLOCK..range.end * B * PER_BLOCK];
                    score_heads::<B>(s.q, k, s.scale, s.scores, n_pos, range);
                }
            }

            /// The same, the other part.
            $(#[$isa])*
            fn weigh_some<const B: usize>(w: &mut Weigh<'_, $element>) {
                for start in (0..w.n_pos).step_by(POSITIONS) {
                    let range = start..w.n_pos.min(start + POSITIONS);
                    let v = &w.v[range.start * B * PER_BLOCK..range.end * B * PER_BLOCK];
                    match w.columns.len() {
                        32 => weigh_heads::<B, 1>(w.weights, w.n_pos, range, v, w.columns.start / 32, w.out),
                        64 => weigh_heads::<B, 2>(w.weights, w.n_pos, range, v, w.columns.start / 32, w.out),
                        _ => weigh_heads::<B, B>(w.weights, w.n_pos, range, v, 0, w.out),
                    }
                }
            }

            /// The places of some positions in the rows of `N` heads, from head `first` on.
            #[inline]
            fn rows<const N: usize>(rows: &mut [f32], stride: usize, first: usize, range: Positions<usize>) -> [&mut [f32]; N] {
                let mut rows = rows.chunks_exact_mut(stride).skip(first);
                std::array::from_fn(|_| &mut rows.next().expect("a row per head")[range.clone()])
            }

            /// Asks for what lies `ahead` bytes behind the start of `here`.
            #[inline]
            $(#[$isa])*
            fn ask(here: &[Lanes], ahead: usize) {
                let start = here.as_ptr().cast::<u8>().wrapping_add(ahead);
                for line in (0..size_of_val(here)).step_by(LINE_BYTES) {
                    prefetch_line(start.wrapping_add(line));
                }
            }

            /// `scores: [n_q, n_pos]`, of which those of `range` are computed from its keys `k`.
            #[inline]
            $(#[$isa])*
            fn score_heads<const B: usize>(
                q: &[f32],
                k: &[$element],
                scale: f32,
                scores: &mut [f32],
                n_pos: usize,
                range: Positions<usize>,
            ) {
                let n_q = q.len() / (32 * B);
                let mut first = 0;
                while first < n_q {
                    let (q, is_first) = (&q[first * 32 * B..], first == 0);
                    if first + HEADS <= n_q {
                        let scores = rows(scores, n_pos, first, range.clone());
                        score_rows::<HEADS, B>(&q[..HEADS * 32 * B], k, scale, is_first, scores);
                        first += HEADS;
                    } else {
                        let scores = rows(scores, n_pos, first, range.clone());
                        score_rows::<1, B>(&q[..32 * B], k, scale, is_first, scores);
                        first += 1;
                    }
                }
            }

            /// `scores[h][p]` of `N` heads; each key is loaded once for them. The first to read these keys asks for more.
            #[inline]
            $(#[$isa])*
            fn score_rows<const N: usize, const B: usize>(
                q: &[f32],
                k: &[$element],
                scale: f32,
                is_first: bool,
                scores: [&mut [f32]; N],
            ) {
                let q: &[[[f32; 32]; B]] = q.as_chunks().0.as_chunks().0;
                let q: &[[[f32; 32]; B]; N] = q.try_into().expect("q holds N heads");
                let k: &[[Lanes; B]] = k.as_chunks().0.as_chunks().0;
                let (pairs, last) = k.as_chunks::<2>();
                for (i, k) in pairs.iter().enumerate() {
                    if is_first {
                        ask(k.as_flattened(), PREFETCH_BYTES);
                    }
                    let found = dots(q, k, scale);
                    for h in 0..N {
                        scores[h].as_chunks_mut().0[i] = found[h];
                    }
                }
                if let [last] = last {
                    let found = dots(q, &[*last], scale);
                    for h in 0..N {
                        scores[h][2 * pairs.len()] = found[h][0];
                    }
                }
            }

            /// `scale` times the products of `N` heads with `P` keys, register by register of the blocks, so that all sums have one.
            #[inline]
            $(#[$isa])*
            fn dots<const N: usize, const P: usize, const B: usize>(
                q: &[[[f32; 32]; B]; N],
                k: &[[Lanes; B]; P],
                scale: f32,
            ) -> [[f32; P]; N] {
                let mut dots = [[splat(0.0); P]; N];
                for i in 0..REGISTERS {
                    let mut sums = [[splat(0.0)[0]; P]; N];
                    for b in 0..B {
                        let mut keys = [splat(0.0)[0]; P];
                        for p in 0..P {
                            keys[p] = $at(&k[p][b], i);
                        }
                        for h in 0..N {
                            let q = f32_at(&q[h][b], i);
                            for p in 0..P {
                                sums[h][p] = fma_one(q, keys[p], sums[h][p]);
                            }
                        }
                    }
                    for h in 0..N {
                        for p in 0..P {
                            dots[h][p][i] = sums[h][p];
                        }
                    }
                }
                let mut found = [[0.0; P]; N];
                let (eights, others) = dots.as_flattened().as_chunks();
                let (found_8, found_others) = found.as_flattened_mut().as_chunks_mut();
                for (found, dots) in found_8.iter_mut().zip(eights) {
                    *found = sum_8(dots);
                }
                for (found, dot) in found_others.iter_mut().zip(others) {
                    *found = sum(*dot);
                }
                for score in found.as_flattened_mut() {
                    *score *= scale;
                }
                found
            }

            /// Adds the weighted values `v` of `range` to `out: [n_q, 32 · C]`, columns from those of block `block` on;
            /// `weights: [n_q, n_pos]`.
            #[inline]
            $(#[$isa])*
            fn weigh_heads<const B: usize, const C: usize>(
                weights: &[f32],
                n_pos: usize,
                range: Positions<usize>,
                v: &[$element],
                block: usize,
                out: &mut [f32],
            ) {
                let weights = |h: usize| &weights[h * n_pos..][range.clone()];
                let n_q = out.len() / (32 * C);
                let mut first = 0;
                while first < n_q {
                    let (out, is_first) = (&mut out[first * 32 * C..], first == 0);
                    if first + HEADS <= n_q {
                        let weights = std::array::from_fn(|h| weights(first + h));
                        weigh_rows::<HEADS, B, C>(weights, v, block, is_first, &mut out[..HEADS * 32 * C]);
                        first += HEADS;
                    } else {
                        weigh_rows::<1, B, C>([weights(first)], v, block, is_first, &mut out[..32 * C]);
                        first += 1;
                    }
                }
            }

            /// Adds the weighted values of some positions, in their order, to `C` blocks of `N` heads. The first to read these
            /// values asks for more.
            #[inline]
            $(#[$isa])*
            fn weigh_rows<const N: usize, const B: usize, const C: usize>(
                weights: [&[f32]; N],
                v: &[$element],
                block: usize,
                is_first: bool,
                out: &mut [f32],
            ) {
                let v: &[[Lanes; B]] = v.as_chunks().0.as_chunks().0;
                let out: &mut [[[f32; 32]; C]] = out.as_chunks_mut().0.as_chunks_mut().0;
                let out: &mut [[[f32; 32]; C]; N] = out.try_into().expect("out holds N heads");
                assert!(block + C <= B, "columns of a head");
                for c in 0..C {
                    for start in (0..REGISTERS).step_by(WIDE) {
                        let mut sums = [[splat(0.0)[0]; WIDE]; N];
                        for h in 0..N {
                            for i in 0..WIDE {
                                sums[h][i] = f32_at(&out[h][c], start + i);
                            }
                        }
                        for (p, v) in v.iter().enumerate() {
                            let v = &v[block + c];
                            if is_first && start + WIDE == REGISTERS {
                                ask(std::slice::from_ref(v), POSITIONS * size_of::<[Lanes; B]>());
                            }
                            for i in 0..WIDE {
                                let v = $at(v, start + i);
                                for h in 0..N {
                                    sums[h][i] = fma_one(splat(weights[h][p])[0], v, sums[h][i]);
                                }
                            }
                        }
                        for h in 0..N {
                            for i in 0..WIDE {
                                store_at(sums[h][i], &mut out[h][c], start + i);
                            }
                        }
                    }
                }
            }

            /// Heads of any dimension, one by one.
            $(#[$isa])*
            fn any_heads(a: &mut Attend<'_, $element>) {
                let cells = <$element>::per_head(a.head_dim);
                let heads = a.q.chunks_exact(a.head_dim).zip(a.out.chunks_exact_mut(a.head_dim));
                for ((q, out), scores) in heads.zip(a.scores.chunks_exact_mut(a.n_pos)) {
                    score_any(q, a.k, a.scale, scores);
                    softmax(scores);
                    out.fill(0.0);
                    weigh_any(scores, a.v, cells, 0, out);
                }
            }

            $(#[$isa])*
            fn score_any(q: &[f32], k: &[$element], scale: f32, scores: &mut [f32]) {
                let cells = <$element>::per_head(q.len());
                for (k, score) in k.chunks_exact(cells).zip(scores) {
                    let mut dot = splat(0.0);
                    for (q, k) in q.chunks(32).zip(k.chunks(PER_BLOCK)) {
                        dot = fma(load_part(q), $load_part(k), dot);
                    }
                    *score = sum(dot) * scale;
                }
            }

            /// Columns from those of block `first` on.
            $(#[$isa])*
            fn weigh_any(weights: &[f32], v: &[$element], stride: usize, first: usize, out: &mut [f32]) {
                for (weight, v) in weights.iter().zip(v.chunks_exact(stride)) {
                    for (out, v) in out.chunks_mut(32).zip(v[first * PER_BLOCK..].chunks(PER_BLOCK)) {
                        store_part(fma(splat(*weight), $load_part(v), load_part(out)), out);
                    }
                }
            }
        }
    };
}
