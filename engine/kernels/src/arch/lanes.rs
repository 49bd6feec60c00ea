//! The f32 operations as text over blocks of 32 lanes; each instruction set expands it with its own block type.
//!
//! `float_kernels!` expects at the place of use, all with the given attributes:
//! `Block` (32 lanes, `Copy`) of `REGISTERS` times `Register`, with `fma_one sum_8 store_at f32_at f16_at q8_0_at`, and `WIDE`, how many of them attention adds up at a time; `splat load store plus minus times over fma max min pow2 sum maximum`; `load_f16 store_f16_block`;
//! the decoders `f32_unit f16_unit bf16_unit q8_0_unit q4_0_unit q6_k_unit`, bytes of a unit to its blocks; `GROUP`, how
//! many tokens share the registers. `fma(a, b, c)` is a·b + c rounded once; `max(a, b)` is a > b ? a : b and `min`
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

/// exp(x) = 2^n · exp(r), n = round(x·log2 e), r = x - n·ln 2 in two parts; ln 2 and the polynomial are those of Cephes' `expf`.
/// The argument is held between `LOWEST` and `HIGHEST`, where 2^n is a normal number; NaN stays NaN.
pub(super) mod exp {
    /// Bound of the relative error; a test measures it against f64.
    #[cfg(test)]
    pub(in super::super) const ERROR: f32 = 1.2e-7;
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
        use super::lanes::{self, padded};
        use std::ops::Range as Positions;
        use crate::{CacheCell, Q6Block, Q8Block, QuantRowMut};

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

        #[inline]
        $(#[$isa])*
        fn load_q8_0([unit]: &[Q8Block; 1]) -> Block {
            let [block] = q8_0_unit(unit);
            block
        }

        #[inline]
        $(#[$isa])*
        fn load_q8_0_part(x: &[Q8Block]) -> Block {
            load_q8_0(&[x[0]])
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
        pub(super) fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            use std::f32::consts::FRAC_2_SQRT_PI;
            /// 2·√(2/π)
            const FIRST: f32 = 2.0 * FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
            for ((gate, up), out) in gate.chunks(32).zip(up.chunks(32)).zip(out.chunks_mut(32)) {
                let gate = load_part(gate);
                // (1 + tanh(y/2))/2 = 1/(1 + e^-y)
                let slope = fma(times(gate, gate), splat(FIRST * 0.044_715), splat(FIRST));
                let e = exp(minus(splat(0.0), times(gate, slope)));
                let gelu = over(gate, plus(e, splat(1.0)));
                store_part(times(gelu, load_part(up)), out);
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

        /// `round(x / d)` with `d = max |x| / 127` as f16; NaN and infinity give the scale NaN.
        $(#[$isa])*
        pub(super) fn store_q8_0(x: &[f32], out: &mut [Q8Block]) {
            for (x, out) in x.chunks(32).zip(out) {
                let largest = x.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
                let scale = crate::f32_to_f16(f32::from_bits(largest) / 127.0);
                let d = crate::f16_to_f32(scale);
                *out = [0; 34];
                if !d.is_finite() {
                    let nan = crate::f32_to_f16(f32::NAN).to_le_bytes();
                    out[..2].copy_from_slice(&nan);
                    continue;
                }
                out[..2].copy_from_slice(&scale.to_le_bytes());
                let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
                for (code, x) in out[2..].iter_mut().zip(x) {
                    // A scale of few bits can be too small for the largest number.
                    let steps = (x * inverse).clamp(-127.0, 127.0);
                    *code = (steps + lanes::ROUND).to_bits() as u8;
                }
            }
        }

        /// Whole blocks.
        $(#[$isa])*
        pub(super) fn store_q6_k(x: &[f32], out: &mut [Q6Block]) {
            for (x, out) in x.as_chunks().0.iter().zip(out) {
                super::q6_k::encode(x, out);
            }
        }

        /// Scores become exp(score - max) · (1 / the sum of all exp(score - max)).
        $(#[$isa])*
        pub(super) fn softmax(scores: &mut [f32]) {
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

        attend_kernel!(cells_f16, u16, f16_at, load_f16_part, $(#[$isa])*);
        attend_kernel!(cells_f32, f32, f32_at, load_part, $(#[$isa])*);
        attend_kernel!(cells_q8_0, Q8Block, q8_0_at, load_q8_0_part, $(#[$isa])*);

        dense_kernel!(f32_matmul, f32_row, f32_unit, 32, 128, $(#[$isa])*);
        dense_kernel!(f16_matmul, f16_row, f16_unit, 32, 64, $(#[$isa])*);
        dense_kernel!(bf16_matmul, bf16_row, bf16_unit, 32, 64, $(#[$isa])*);
        dense_kernel!(q8_0_matmul, q8_0_row, q8_0_unit, 32, 34, $(#[$isa])*);
        dense_kernel!(q4_0_matmul, q4_0_row, q4_0_unit, 32, 18, $(#[$isa])*);
        dense_kernel!(q6_k_matmul, q6_k_row, q6_k_unit, 256, 210, $(#[$isa])*);
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
            fn dot<const N: usize>(row: &[u8], is_walk: bool, x: [&[f32]; N]) -> [f32; N] {
                const BLOCKS: usize = $cols / 32;
                let mut dots = [splat(0.0); N];
                let (units, rest) = row.as_chunks::<$bytes>();
                let whole: [&[[f32; 32]]; N] = x.map(|x| &x.as_chunks().0[..units.len() * BLOCKS]);
                for (u, unit) in units.iter().enumerate() {
                    if is_walk {
                        prefetch(unit);
                    }
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

            // Behind a single row comes nothing that is wanted.
            let is_walk = rows.len() > row_bytes;
            let grouped = x.len() - x.len() % GROUP;
            for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
                for t in (0..grouped).step_by(GROUP) {
                    let group: [&[f32]; GROUP] = std::array::from_fn(|i| x[t + i]);
                    for (i, dot) in dot(row, is_walk, group).into_iter().enumerate() {
                        out[t + i][r] = dot;
                    }
                }
                for t in grouped..x.len() {
                    [out[t][r]] = dot(row, is_walk, [x[t]]);
                }
            }
        }
    };
}
