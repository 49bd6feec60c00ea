//! NEON with the dot product extension: `sdot` sums four products of code and activation into an i32 lane at once. Floats are
//! those of NEON.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::finish;
pub(super) use super::neon::*;
use crate::QuantRows;
use crate::screen::PLANE_BYTES;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

/// A tile: sixteen sums, four packed bytes or codes, one activation of 32 registers.
const ROWS: usize = 4;
const TOKENS: usize = 4;
const CHAINS: usize = 4;
const TILES_FROM: usize = TOKENS;

type Lanes = int32x4_t;

tiled_matmul!(#[target_feature(enable = "neon,dotprod")]);

/// # Safety
/// `i` is below the length of all `rows` and all `x`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn step<const R: usize, const T: usize>(
    rows: [&[[u8; BLOCK_BYTES]]; R],
    x: [&[[i8; BLOCK_COLS]]; T],
    i: usize,
    sums: &mut [[Lanes; R]; T],
) {
    for half in 0..2 {
        let mut packed = [vdupq_n_u8(0); R];
        for r in 0..R {
            // SAFETY: the caller promised it.
            let halves: &[[u8; 16]] = unsafe { rows[r].get_unchecked(i) }.as_chunks().0;
            packed[r] = load_bytes(&halves[half]);
        }
        for part in 0..4 {
            let mut codes = [vdupq_n_s8(0); R];
            for r in 0..R {
                codes[r] = unpack(packed[r])[part];
            }
            for t in 0..T {
                // SAFETY: the caller promised it.
                let x: &[[i8; 16]] = unsafe { x[t].get_unchecked(i) }.as_chunks().0;
                let x = load_integers(&x[2 * part + half]);
                for r in 0..R {
                    sums[t][r] = sdot(sums[t][r], codes[r], x);
                }
            }
        }
    }
}

/// By `asm!`, since the intrinsic is not in stable compilers.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: reads and writes registers only; the caller has the instruction.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inlateout(vreg) sum,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn no_lanes() -> Lanes {
    vdupq_n_s32(0)
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_lanes(a: Lanes, b: Lanes) -> Lanes {
    vaddq_s32(a, b)
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sum_tile<const R: usize, const T: usize>(sums: &[[Lanes; R]; T]) -> [[i32; R]; T] {
    sums.map(|sums| sums.map(|sum| vaddvq_s32(sum)))
}

/// `out[r] = Σ nibble·(128·high + low)` for each row of `plane`.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn plane_sums(plane: &[u8], high: &[i8], low: &[i8], out: &mut [i32]) {
    type Part = [i8; 16];
    let high: &[[Part; 4]] = high.as_chunks().0.as_chunks().0;
    let low: &[[Part; 4]] = &low.as_chunks().0.as_chunks().0[..high.len()];
    for (row, out) in plane.chunks_exact(high.len() * PLANE_BYTES).zip(out) {
        let row: &[[u8; PLANE_BYTES]] = &row.as_chunks().0[..high.len()];
        // Two chains of additions for each part of the query.
        let mut of_high = [no_lanes(); 2];
        let mut of_low = [no_lanes(); 2];
        for (i, block) in row.iter().enumerate() {
            if i % 2 == 0 {
                prefetch(block);
            }
            let nibbles = nibbles(block);
            for part in 0..4 {
                let (high, low) = (load_integers(&high[i][part]), load_integers(&low[i][part]));
                of_high[part % 2] = sdot(of_high[part % 2], nibbles[part], high);
                of_low[part % 2] = sdot(of_low[part % 2], nibbles[part], low);
            }
        }
        let of_high = vaddq_s32(of_high[0], of_high[1]);
        let of_low = vaddq_s32(of_low[0], of_low[1]);
        *out = vaddvq_s32(vaddq_s32(vshlq_n_s32::<7>(of_high), of_low));
    }
}
