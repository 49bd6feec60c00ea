//! AVX-VNNI: `vpdpbusd` sums four products of code and activation into an i32 lane at once. Floats, and products of many tokens, are
//! those of AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

pub(super) use super::avx2::{
    add, bf16_matmul, bf16_row, cells_f16, cells_f32, cells_q8_0, f16_matmul, f16_row, f32_matmul,
    f32_row, gelu_mul, q4_0_matmul, q4_0_row, q6_k_matmul, q6_k_row, q8_0_matmul, q8_0_row,
    quantize, relu2_mul, rms_norm, silu_mul, softmax, store_f16, store_q6_k, store_q8_0,
};
use super::avx2::{load_bytes, load_integers, sum_i32};
use super::avx2_i2_s::{load_activations, masked_codes};
use super::{LINE_BYTES, avx2_fours, avx2_i2_s, finish, prefetch_line};
use crate::QuantRows;
use crate::screen::{PLANE_BYTES, PLANE_COLS};
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

/// A tile: two sums for each of two rows and three tokens, twelve that don't wait for each other, of sixteen registers. Eight,
/// with two tokens, still leave room for codes.
const ROWS: usize = 2;
const TOKENS: usize = 3;
const CHAINS: usize = 4;
const TILES_FROM: usize = 2;

/// Products with codes as they are, and with codes that lie two bits higher: four times too large, until [`sum_tile`].
///
/// A lane adds up eight products of a block, each up to 4 · 3 · 128: 402,653,184 of the most columns that a matrix has.
type Lanes = [__m256i; 2];

/// `out[t][r]` for each row `r` of `codes`, I2_S, and each token `t`; where looking sums up pays, as AVX2 does.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) fn matmul_i2_s(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
    match avx2_fours::pays(x, out) {
        true => avx2_i2_s::matmul_i2_s(codes, scale, x, out),
        false => matmul_tiles(codes, scale, x, out),
    }
}

tiled_matmul!(matmul_tiles #[target_feature(enable = "avx2,fma,f16c,avxvnni")]);

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
        let mut codes = [_mm256_setzero_si256(); R];
        for r in 0..R {
            // SAFETY: the caller promised it.
            let mut packed = unsafe { rows[r].get_unchecked(i) };
            if R * T > 4 {
                packed = unknown(packed);
            }
            codes[r] = masked_codes(load_bytes(packed))[part];
        }
        for t in 0..T {
            // SAFETY: the caller promised it.
            let x = load_activations(unsafe { x[t].get_unchecked(i) }, part);
            for r in 0..R {
                let sum = &mut sums[t][r][1 - part % 2];
                *sum = _mm256_dpbusd_avx_epi32(*sum, codes[r], x);
            }
        }
    }
}

/// The same bytes, of which the compiler knows nothing: it loads them again for each part, where it would keep parts of a tile
/// in registers that its sums need.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn unknown(packed: &[u8; BLOCK_BYTES]) -> &[u8; BLOCK_BYTES] {
    let mut at: *const [u8; BLOCK_BYTES] = packed;
    // SAFETY: no instruction, so it stays the address of `packed`.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) at, options(readonly, nostack, preserves_flags));
        &*at
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn no_lanes() -> Lanes {
    [_mm256_setzero_si256(); 2]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn add_lanes(a: Lanes, b: Lanes) -> Lanes {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn sum_tile<const R: usize, const T: usize>(sums: &[[Lanes; R]; T]) -> [[i32; R]; T] {
    let mut found = [[0; R]; T];
    for (found, sums) in found.iter_mut().zip(sums) {
        for (found, [once, four_times]) in found.iter_mut().zip(sums) {
            let once_more = _mm256_srai_epi32::<2>(*four_times);
            *found = sum_i32(_mm256_add_epi32(*once, once_more));
        }
    }
    found
}

/// Chains of a row of a plane that is left alone.
const PLANE_CHAINS: usize = 2;

// Eight sums, two rows of nibbles, one vector of sixteen registers.
plane_walk!(#[target_feature(enable = "avx2,fma,f16c,avxvnni")] 4: 2, 2: 4, 1: 4);

/// `R` rows times `T` vectors, in `S` chains of additions each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn plane_tile<const R: usize, const T: usize, const S: usize>(
    rows: &[[u8; PLANE_BYTES]],
    x: [&[[i8; PLANE_COLS]]; T],
    ahead: Option<usize>,
) -> [[i32; R]; T] {
    let blocks = rows.len() / R;
    for x in x {
        assert!(x.len() == blocks, "vectors are as long as rows");
    }
    let nibble = _mm256_set1_epi8(15);
    let mut sums = [[[_mm256_setzero_si256(); R]; T]; S];
    for first in (0..blocks).step_by(2 * S) {
        if let Some(ahead) = ahead {
            let ahead = rows.as_ptr().cast::<u8>().wrapping_add(ahead);
            for line in (0..R * 2 * S * PLANE_BYTES).step_by(LINE_BYTES) {
                prefetch_line(ahead.wrapping_add(first * R * PLANE_BYTES + line));
            }
        }
        for i in first..blocks.min(first + 2 * S) {
            let sums = &mut sums[i % S];
            for half in 0..2 {
                let mut nibbles = [nibble; R];
                for (r, nibbles) in nibbles.iter_mut().enumerate() {
                    // SAFETY: r < R and i < blocks, and there are R * blocks of them.
                    let both = load_bytes(unsafe { rows.get_unchecked(r * blocks + i) });
                    let wanted = match half {
                        0 => both,
                        _ => _mm256_srli_epi16::<4>(both),
                    };
                    *nibbles = _mm256_and_si256(wanted, nibble);
                }
                for t in 0..T {
                    // SAFETY: i < blocks, the length of each vector.
                    let x: &[[i8; 32]] = unsafe { x[t].get_unchecked(i) }.as_chunks().0;
                    let x = load_integers(&x[half]);
                    for r in 0..R {
                        sums[t][r] = _mm256_dpbusd_avx_epi32(sums[t][r], nibbles[r], x);
                    }
                }
            }
        }
    }
    let mut found = [[0; R]; T];
    for sums in &sums {
        for (found, sum) in found.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
            *found += sum_i32(*sum);
        }
    }
    found
}
