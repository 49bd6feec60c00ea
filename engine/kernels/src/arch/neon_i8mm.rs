//! NEON with the int8 matrix extension: `smmla` multiplies eight columns of two rows with those of two tokens. Few tokens go by
//! `sdot`, floats are those of NEON.

use std::arch::aarch64::*;
use std::arch::asm;

use super::finish;
use super::neon_dotprod;
pub(super) use super::neon_dotprod::*;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};
use crate::{QuantRow, QuantRows};

/// Pairs of rows and of tokens of a tile: sixteen sums, four packed bytes, four codes, one activation of 32 registers.
const ROW_PAIRS: usize = 4;
const TOKEN_PAIRS: usize = 4;
/// From so many tokens on, tiles pay.
const TILES_FROM: usize = 4;
/// Bytes of activations that should stay in the second-level cache while all rows pass by.
const PANEL_BYTES: usize = 256 << 10;

/// What a tile multiplies: some rows and tokens, of which it takes the last one again where they end too early.
#[derive(Clone, Copy)]
struct Operands<'a> {
    /// Whole rows in I2_S.
    codes: &'a [u8],
    scale: f32,
    x: &'a QuantRows,
    rows: usize,
    /// One past the last token.
    tokens: usize,
}

/// `out[t][r]` for each row `r` of `codes`, I2_S, and each token `t`.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn matmul_i2_s(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
    if x.len() < TILES_FROM {
        return neon_dotprod::matmul_i2_s(codes, scale, x, out);
    }
    let rows = codes.len() / (x.cols() / 4);
    let panel = (PANEL_BYTES / x.cols() / (2 * TOKEN_PAIRS)).max(1) * 2 * TOKEN_PAIRS;
    for first in (0..x.len()).step_by(panel) {
        let tokens = x.len().min(first + panel);
        let operands = Operands {
            codes,
            scale,
            x,
            rows,
            tokens,
        };
        let whole = rows - rows % (2 * ROW_PAIRS);
        for r in (0..whole).step_by(2 * ROW_PAIRS) {
            tiles::<ROW_PAIRS>(operands, first, r, out);
        }
        for r in (whole..rows).step_by(2) {
            tiles::<1>(operands, first, r, out);
        }
    }
}

/// `R` pairs of rows from row `r` on, with the tokens from `first` on, several at a time.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn tiles<const R: usize>(operands: Operands<'_>, first: usize, r: usize, out: &mut [&mut [f32]]) {
    for t in (first..operands.tokens).step_by(2 * TOKEN_PAIRS) {
        match operands.tokens - t {
            1 | 2 => tile::<R, 1>(operands, t, r, out),
            3 | 4 => tile::<R, 2>(operands, t, r, out),
            5 | 6 => tile::<R, 3>(operands, t, r, out),
            _ => tile::<R, TOKEN_PAIRS>(operands, t, r, out),
        }
    }
}

/// `R` pairs of rows times `T` pairs of tokens.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn tile<const R: usize, const T: usize>(
    operands: Operands<'_>,
    t: usize,
    r: usize,
    out: &mut [&mut [f32]],
) {
    let Operands {
        codes,
        scale,
        x,
        rows,
        tokens,
    } = operands;
    let blocks = x.cols() / BLOCK_COLS;
    let codes: &[[u8; BLOCK_BYTES]] = codes.as_chunks().0;
    let row = |i: usize| (r + i).min(rows - 1);
    let token = |i: usize| (t + i).min(tokens - 1);
    let weights: [[&[[u8; BLOCK_BYTES]]; 2]; R] =
        std::array::from_fn(|p| [0, 1].map(|i| &codes[row(2 * p + i) * blocks..][..blocks]));
    let activations: [[&[[i8; BLOCK_COLS]]; 2]; T] = std::array::from_fn(|p| {
        [0, 1].map(|i| &x.row(token(2 * p + i)).values.as_chunks().0[..blocks])
    });
    let mut sums = [[vdupq_n_s32(0); R]; T];
    for i in 0..blocks {
        for eight in 0..BLOCK_BYTES / 8 {
            let mut packed = [vdupq_n_u8(0); R];
            for p in 0..R {
                let [a, b] = weights[p];
                packed[p] = load_byte_pair(&a[i], &b[i], eight);
            }
            for part in 0..4 {
                let mut codes = [vdupq_n_s8(0); R];
                for p in 0..R {
                    codes[p] = unpack(packed[p])[part];
                }
                for q in 0..T {
                    let [a, b] = activations[q];
                    let x = load_integer_pair(&a[i], &b[i], 4 * part + eight);
                    for p in 0..R {
                        sums[q][p] = smmla(sums[q][p], codes[p], x);
                    }
                }
            }
        }
    }
    for (q, sums) in sums.into_iter().enumerate() {
        for (p, sum) in sums.into_iter().enumerate() {
            for (i, products) in two_by_two(sum).into_iter().enumerate() {
                for (j, acc) in products.into_iter().enumerate() {
                    let (r, t) = (row(2 * p + i), token(2 * q + j));
                    let QuantRow { sum, scale: s, .. } = x.row(t);
                    out[t][r] = finish(acc, sum, s, scale);
                }
            }
        }
    }
}

/// `[row][token]` of the sums of a pair of rows and a pair of tokens.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn two_by_two(sums: int32x4_t) -> [[i32; 2]; 2] {
    let mut products = [[0; 2]; 2];
    // SAFETY: an unaligned store to the four numbers of the array.
    unsafe { vst1q_s32(products.as_mut_ptr().cast(), sums) };
    products
}

/// Lane 2·i + j: `sum` + Σ a[8·i + k]·b[8·j + k] over eight k. By `asm!`, since the intrinsic is not in stable compilers.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn smmla(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: reads and writes registers only; the caller has the instruction.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inlateout(vreg) sum,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Eight bytes of each of two blocks.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn load_byte_pair(a: &[u8; BLOCK_BYTES], b: &[u8; BLOCK_BYTES], eight: usize) -> uint8x16_t {
    let (a, b): (&[[u8; 8]], &[[u8; 8]]) = (a.as_chunks().0, b.as_chunks().0);
    // SAFETY: unaligned loads of eight bytes, of an array of eight each.
    unsafe { vcombine_u8(vld1_u8(a[eight].as_ptr()), vld1_u8(b[eight].as_ptr())) }
}

/// Eight activations of each of two blocks.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn load_integer_pair(a: &[i8; BLOCK_COLS], b: &[i8; BLOCK_COLS], eight: usize) -> int8x16_t {
    let (a, b): (&[[i8; 8]], &[[i8; 8]]) = (a.as_chunks().0, b.as_chunks().0);
    // SAFETY: unaligned loads of eight bytes, of an array of eight each.
    unsafe { vcombine_s8(vld1_s8(a[eight].as_ptr()), vld1_s8(b[eight].as_ptr())) }
}
