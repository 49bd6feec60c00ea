//! The f32 operations as text over blocks of 32 lanes; each instruction set expands it with its own block type.
//!
//! `float_kernels!` expects at the place of use, all with the given attributes:
//! `Block` (32 lanes, `Copy`); `splat load store plus minus times over fma max min pow2 sum maximum`; `load_f16 store_f16_block`;
//! the decoders `f32_unit f16_unit bf16_unit q8_0_unit q4_0_unit q6_k_unit`, bytes of a unit to its blocks; `GROUP`, how
//! many tokens or heads share the registers. `fma(a, b, c)` is a·b + c rounded once; `max(a, b)` is a > b ? a : b and `min`
//! a < b ? a : b, so a NaN in `b` stays; `sum` is the tree lane + 16, + 8, + 4, + 2, + 1.

/// Up to 32 numbers, the rest zero.
#[inline(always)]
pub(super) fn padded<E: Copy + Default, const N: usize>(x: &[E]) -> [E; N] {
    let mut block = [E::default(); N];
    block[..x.len()].copy_from_slice(x);
    block
}

/// 1.5 · 2^23: adding it rounds to an integer, ties to even, which then stands in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// exp(x) = 2^n · exp(r), n = round(x·log2 e), r = x - n·ln 2 in two parts. The constants are those of Cody and Waite (ln 2)
/// and Cephes' `expf` (polynomial); the argument is held in a range where 2^n is a normal number.
pub(super) mod exp {
    pub(in super::super) const LOWEST: f32 = -87.0;
    pub(in super::super) const HIGHEST: f32 = 88.0;
    pub(in super::super) const LN2_HIGH: f32 = 0.693_359_4;
    pub(in super::super) const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Of r², r³ and so on up to r^7, highest first.
    pub(in super::super) const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
}

macro_rules! float_kernels {
    ($(#[$isa:meta])*) => {
        use std::ops::Range as Dims;

        use super::lanes::{self, padded};
        use crate::{Attend, QuantRowMut};

        /// The first 32 numbers of `x`, or all there are and zeros.
        #[inline]
        $(#[$isa])*
        fn load_part(x: &[f32]) -> Block {
            match x.first_chunk() {
                Some(block) => load(block),
                None => load(&padded(x)),
            }
        }

        #[inline]
        $(#[$isa])*
        fn load_f16_part(x: &[u16]) -> Block {
            match x.first_chunk() {
                Some(block) => load_f16(block),
                None => load_f16(&padded(x)),
            }
        }

        /// Into the first 32 numbers of `out`, or as many as there are.
        #[inline]
        $(#[$isa])*
        fn store_part(x: Block, out: &mut [f32]) {
            match out.first_chunk_mut() {
                Some(block) => store(x, block),
                None => {
                    let mut block = [0.0; 32];
                    store(x, &mut block);
                    out.copy_from_slice(&block[..out.len()]);
                }
            }
        }

        #[inline]
        $(#[$isa])*
        fn exp(x: Block) -> Block {
            use lanes::exp::*;
            let x = min(splat(HIGHEST), max(splat(LOWEST), x));
            let rounded = fma(x, splat(std::f32::consts::LOG2_E), splat(lanes::ROUND));
            let n = minus(rounded, splat(lanes::ROUND));
            let r = fma(n, splat(-LN2_LOW), fma(n, splat(-LN2_HIGH), x));
            let mut p = splat(POLYNOMIAL[0]);
            for c in &POLYNOMIAL[1..] {
                p = fma(p, r, splat(*c));
            }
            let p = fma(p, times(r, r), plus(r, splat(1.0)));
            times(p, pow2(rounded))
        }

        $(#[$isa])*
        pub(super) fn quantize(x: &[f32], row: QuantRowMut<'_>) {
            // The bits of |x| order as integers; NaN is above infinity.
            let largest = x.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
            let largest = f32::from_bits(largest);
            if !largest.is_finite() {
                row.values.fill(0);
                *row.sum = 0;
                *row.scale = f32::NAN;
                return;
            }
            let s = 127.0 / largest.max(1e-5);
            let mut sum = 0;
            for (q, x) in row.values.iter_mut().zip(x) {
                *q = (x * s + lanes::ROUND).to_bits() as i8;
                sum += i32::from(*q);
            }
            *row.sum = sum;
            *row.scale = s;
        }

        $(#[$isa])*
        pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            let mut squares = splat(0.0);
            for x in x.chunks(32) {
                let x = load_part(x);
                squares = fma(x, x, squares);
            }
            let inverse = 1.0 / (sum(squares) / x.len() as f32 + eps).sqrt();
            for ((x, w), out) in x.iter().zip(weight).zip(out) {
                *out = x * inverse * w;
            }
        }

        $(#[$isa])*
        pub(super) fn relu2_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            for ((gate, up), out) in gate.iter().zip(up).zip(out) {
                // Written so that NaN stays NaN.
                let relu = if *gate < 0.0 { 0.0 } else { *gate };
                *out = relu * relu * up;
            }
        }

        $(#[$isa])*
        pub(super) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            for ((gate, up), out) in gate.chunks(32).zip(up.chunks(32)).zip(out.chunks_mut(32)) {
                let gate = load_part(gate);
                let e = exp(minus(splat(0.0), gate));
                let silu = over(gate, plus(e, splat(1.0)));
                store_part(times(silu, load_part(up)), out);
            }
        }

        $(#[$isa])*
        pub(super) fn add(x: &mut [f32], y: &[f32]) {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        }

        $(#[$isa])*
        pub(super) fn store_f16(x: &[f32], out: &mut [u16]) {
            for (x, out) in x.chunks(32).zip(out.chunks_mut(32)) {
                let block = load_part(x);
                match out.first_chunk_mut() {
                    Some(out) => store_f16_block(block, out),
                    None => {
                        let mut halves = [0; 32];
                        store_f16_block(block, &mut halves);
                        out.copy_from_slice(&halves[..out.len()]);
                    }
                }
            }
        }

        /// Scores become exp(score - max) · (1 / the sum of all exp(score - max)).
        $(#[$isa])*
        fn softmax(scores: &mut [f32]) {
            let mut largest = splat(f32::NEG_INFINITY);
            for part in scores.chunks(32) {
                let block = match part.first_chunk() {
                    Some(block) => load(block),
                    // Repeats the first score, which changes no maximum.
                    None => {
                        let mut block = [part[0]; 32];
                        block[..part.len()].copy_from_slice(part);
                        load(&block)
                    }
                };
                largest = max(block, largest);
            }
            let largest = splat(maximum(largest));
            let mut total = splat(0.0);
            for part in scores.chunks_mut(32) {
                let e = exp(minus(load_part(part), largest));
                store_part(e, part);
                total = plus(total, load_part(part));
            }
            let inverse = 1.0 / sum(total);
            for w in scores {
                *w *= inverse;
            }
        }

        attend_kernel!(attend_f16, u16, load_f16_part, $(#[$isa])*);
        attend_kernel!(attend_f32, f32, load_part, $(#[$isa])*);

        dense_kernel!(f32_matmul, f32_row, f32_unit, 32, 128, $(#[$isa])*);
        dense_kernel!(f16_matmul, f16_row, f16_unit, 32, 64, $(#[$isa])*);
        dense_kernel!(bf16_matmul, bf16_row, bf16_unit, 32, 64, $(#[$isa])*);
        dense_kernel!(q8_0_matmul, q8_0_row, q8_0_unit, 32, 34, $(#[$isa])*);
        dense_kernel!(q4_0_matmul, q4_0_row, q4_0_unit, 32, 18, $(#[$isa])*);
        dense_kernel!(q6_k_matmul, q6_k_row, q6_k_unit, 256, 210, $(#[$isa])*);
    };
}

/// Attention over a cache of `$element`, loaded by `$load_part`.
macro_rules! attend_kernel {
    ($attend:ident, $element:ty, $load_part:ident, $(#[$isa:meta])*) => {
        $(#[$isa])*
        pub(super) fn $attend(a: Attend<'_, $element>) {
            /// Positions whose values stay in the first-level cache while all heads use them.
            const POSITIONS: usize = 32;

            /// The scores of `N` heads; each key is loaded once for them.
            #[inline]
            $(#[$isa])*
            fn score<const N: usize>(q: [&[f32]; N], k: &[$element], scale: f32, scores: &mut [f32]) {
                let n_pos = scores.len() / N;
                for (p, k) in k.chunks_exact(q[0].len()).enumerate() {
                    let mut dots = [splat(0.0); N];
                    for (i, k) in k.chunks(32).enumerate() {
                        let k = $load_part(k);
                        for (dot, q) in dots.iter_mut().zip(q) {
                            *dot = fma(load_part(&q[32 * i..]), k, *dot);
                        }
                    }
                    for (h, dot) in dots.into_iter().enumerate() {
                        scores[h * n_pos + p] = sum(dot) * scale;
                    }
                }
            }

            /// Adds the weighted values of some positions, in their order, to up to 32 dimensions of `N` heads.
            #[inline]
            $(#[$isa])*
            fn weigh<const N: usize>(weights: [&[f32]; N], v: &[$element], dims: Dims<usize>, out: &mut [f32]) {
                let head_dim = out.len() / N;
                let mut sums = [splat(0.0); N];
                for (sum, out) in sums.iter_mut().zip(out.chunks_exact(head_dim)) {
                    *sum = load_part(&out[dims.clone()]);
                }
                for (p, v) in v.chunks_exact(head_dim).enumerate() {
                    let v = $load_part(&v[dims.clone()]);
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = fma(splat(weights[p]), v, *sum);
                    }
                }
                for (sum, out) in sums.into_iter().zip(out.chunks_exact_mut(head_dim)) {
                    store_part(sum, &mut out[dims.clone()]);
                }
            }

            let Attend { q, k, v, head_dim, n_pos, scale, scores, out } = a;
            let n_q = q.len() / head_dim;
            let grouped = n_q - n_q % GROUP;
            let q_head = |h: usize| &q[h * head_dim..][..head_dim];
            for h in (0..grouped).step_by(GROUP) {
                let q: [&[f32]; GROUP] = std::array::from_fn(|i| q_head(h + i));
                score(q, k, scale, &mut scores[h * n_pos..(h + GROUP) * n_pos]);
            }
            for h in grouped..n_q {
                score([q_head(h)], k, scale, &mut scores[h * n_pos..(h + 1) * n_pos]);
            }
            for scores in scores.chunks_exact_mut(n_pos) {
                softmax(scores);
            }

            out.fill(0.0);
            for (i, v) in v.chunks(POSITIONS * head_dim).enumerate() {
                let weights = |h: usize| &scores[h * n_pos + i * POSITIONS..][..v.len() / head_dim];
                for dim in (0..head_dim).step_by(32) {
                    let dims = dim..head_dim.min(dim + 32);
                    for h in (0..grouped).step_by(GROUP) {
                        let weights: [&[f32]; GROUP] = std::array::from_fn(|i| weights(h + i));
                        weigh(weights, v, dims.clone(), &mut out[h * head_dim..(h + GROUP) * head_dim]);
                    }
                    for h in grouped..n_q {
                        weigh([weights(h)], v, dims.clone(), &mut out[h * head_dim..(h + 1) * head_dim]);
                    }
                }
            }
        }
    };
}

/// Dense rows whose units of `$cols` numbers lie in `$bytes` bytes, decoded by `$decode`. Only units of 32 may end cut off.
macro_rules! dense_kernel {
    ($matmul:ident, $row:ident, $decode:ident, $cols:literal, $bytes:literal, $(#[$isa:meta])*) => {
        $(#[$isa])*
        pub(super) fn $row(row: &[u8], out: &mut [f32]) {
            for (unit, out) in row.chunks($bytes).zip(out.chunks_mut($cols)) {
                let blocks = match unit.first_chunk::<$bytes>() {
                    Some(unit) => $decode(unit),
                    None => $decode(&padded(unit)),
                };
                for (block, out) in blocks.into_iter().zip(out.chunks_mut(32)) {
                    store_part(block, out);
                }
            }
        }

        $(#[$isa])*
        pub(super) fn $matmul(rows: &[u8], row_bytes: usize, x: &[&[f32]], out: &mut [&mut [f32]]) {
            /// The products of one row with `N` tokens; the row is decoded once for them.
            #[inline]
            $(#[$isa])*
            fn dot<const N: usize>(row: &[u8], x: [&[f32]; N]) -> [f32; N] {
                const BLOCKS: usize = $cols / 32;
                let mut dots = [splat(0.0); N];
                let (units, rest) = row.as_chunks::<$bytes>();
                let whole: [&[[f32; 32]]; N] = x.map(|x| &x.as_chunks().0[..units.len() * BLOCKS]);
                for (u, unit) in units.iter().enumerate() {
                    for (b, block) in $decode(unit).into_iter().enumerate() {
                        for (dot, x) in dots.iter_mut().zip(whole) {
                            *dot = fma(load(&x[u * BLOCKS + b]), block, *dot);
                        }
                    }
                }
                if !rest.is_empty() {
                    let [block, ..] = $decode(&padded(rest));
                    for (dot, x) in dots.iter_mut().zip(x) {
                        *dot = fma(load_part(&x[units.len() * $cols..]), block, *dot);
                    }
                }
                let mut sums = [0.0; N];
                for (out, dot) in sums.iter_mut().zip(dots) {
                    *out = sum(dot);
                }
                sums
            }

            let grouped = x.len() - x.len() % GROUP;
            for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
                for t in (0..grouped).step_by(GROUP) {
                    let group: [&[f32]; GROUP] = std::array::from_fn(|i| x[t + i]);
                    for (i, dot) in dot(row, group).into_iter().enumerate() {
                        out[t + i][r] = dot;
                    }
                }
                for t in grouped..x.len() {
                    [out[t][r]] = dot(row, [x[t]]);
                }
            }
        }
    };
}
