//! AVX-VNNI: `vpdpbusd` sums four products of code and activation into an i32 lane at once. Floats are those of AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

pub(super) use super::avx2::{
    add, bf16_matmul, bf16_row, cells_f16, cells_f32, cells_q8_0, f16_matmul, f16_row, f32_matmul,
    f32_row, gelu_mul, plane_sums, q4_0_matmul, q4_0_row, q6_k_matmul, q6_k_row, q8_0_matmul,
    q8_0_row, quantize, relu2_mul, rms_norm, silu_mul, softmax, store_f16, store_q6_k, store_q8_0,
};
use super::avx2::{load_activations, load_bytes, sum_i32, unpack};
use super::finish;
use super::tiles::token_panel;
use crate::QuantRows;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

/// A tile: six sums, three codes, three packed blocks, one activation of sixteen registers. With three tokens it is slower by a third.
const ROWS: usize = 3;
const TOKENS: usize = 2;
const CHAINS: usize = 4;
const TILES_FROM: usize = 2;

type Lanes = __m256i;

tiled_matmul!(#[target_feature(enable = "avx2,fma,f16c,avxvnni")]);

/// # Safety
/// `i` is below the length of all `rows` and all `x`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn step<const R: usize, const T: usize>(
    rows: [&[[u8; BLOCK_BYTES]]; R],
    x: [&[[i8; BLOCK_COLS]]; T],
    i: usize,
    sums: &mut [[Lanes; R]; T],
) {
    for part in 0..4 {
        let mut codes = [no_lanes(); R];
        for r in 0..R {
            // SAFETY: the caller promised it.
            codes[r] = unpack(load_bytes(unsafe { rows[r].get_unchecked(i) }))[part];
        }
        for t in 0..T {
            // SAFETY: the caller promised it.
            let x = load_activations(unsafe { x[t].get_unchecked(i) }, part);
            for r in 0..R {
                sums[t][r] = _mm256_dpbusd_avx_epi32(sums[t][r], codes[r], x);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn no_lanes() -> Lanes {
    _mm256_setzero_si256()
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn add_lanes(a: Lanes, b: Lanes) -> Lanes {
    _mm256_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn sum_tile<const R: usize, const T: usize>(sums: &[[Lanes; R]; T]) -> [[i32; R]; T] {
    sums.map(|sums| sums.map(|sum| sum_i32(sum)))
}
