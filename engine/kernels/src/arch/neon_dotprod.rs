//! NEON with the dot product extension: `sdot` sums four products of code and activation into an i32 lane at once. Floats are
//! those of NEON.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

pub(super) use super::neon::*;
use super::{LINE_BYTES, finish, prefetch_line};
use crate::QuantRows;
use crate::screen::{PLANE_BYTES, PLANE_COLS};
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

/// A tile: sixteen sums, four packed bytes or codes, one activation of 32 registers.
const ROWS: usize = 4;
const TOKENS: usize = 4;
const CHAINS: usize = 4;
const TILES_FROM: usize = TOKENS;

type Lanes = int32x4_t;

tiled_matmul!(matmul_i2_s #[target_feature(enable = "neon,dotprod")]);

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

/// Chains of a row of a plane that is left alone.
const PLANE_CHAINS: usize = 4;

// Sixteen sums, four packed rows or their nibbles, one vector of 32 registers.
plane_walk!(#[target_feature(enable = "neon,dotprod")] 4: 4, 2: 4, 1: 4);

/// `R` rows of a plane times `T` vectors, in `S` chains of additions each.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn plane_tile<const R: usize, const T: usize, const S: usize>(
    rows: &[[u8; PLANE_BYTES]],
    x: [&[[i8; PLANE_COLS]]; T],
    ahead: Option<usize>,
) -> [[i32; R]; T] {
    let blocks = rows.len() / R;
    let mut sums = [[[no_lanes(); R]; T]; S];
    for i in 0..blocks {
        if let Some(ahead) = ahead.filter(|_| i % 2 == 0) {
            let ahead = rows.as_ptr().cast::<u8>().wrapping_add(ahead);
            for line in (0..R * 2 * PLANE_BYTES).step_by(LINE_BYTES) {
                prefetch_line(ahead.wrapping_add(i * R * PLANE_BYTES + line));
            }
        }
        for part in 0..4 {
            let sums = &mut sums[part % S];
            let mut codes = [vdupq_n_s8(0); R];
            for (r, codes) in codes.iter_mut().enumerate() {
                *codes = nibbles(&rows[r * blocks + i])[part];
            }
            for t in 0..T {
                let (x, _) = x[t][i].as_chunks();
                let x = load_integers(&x[part]);
                for r in 0..R {
                    sums[t][r] = sdot(sums[t][r], codes[r], x);
                }
            }
        }
    }
    let mut found = [[0; R]; T];
    for sums in &sums {
        let of_chain = sum_tile(sums);
        for (found, sum) in found
            .as_flattened_mut()
            .iter_mut()
            .zip(of_chain.as_flattened())
        {
            *found += sum;
        }
    }
    found
}
