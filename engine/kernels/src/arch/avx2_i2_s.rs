//! I2_S by AVX2: `vpmaddubsw` into i16, widened to i32 before it could overflow; for many tokens, `avx2_fours`.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{load_bytes, load_integers, prefetch, sum_i32, widened};
use super::tiles::{NEAR_ROWS, near_tokens, take_near};
use super::{avx2_fours, finish};
use crate::QuantRows;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

/// Packed codes of a block, and its activations.
type Packed = [u8; BLOCK_BYTES];
type Activations = [i8; BLOCK_COLS];

/// Blocks that an i16 lane sums without overflow: 4 · 2 products a block, each up to 3 · 128, makes 3,072 · 10 = 30,720.
const CHUNK: usize = 10;
/// Blocks that a single token takes together, two cache lines: products with codes four times too large add up to
/// 2 · 2 · 12 · 128 = 6,144 a block, 24,576 in an i16 lane, and with a quarter of it the others to 12,288.
const MASKED_CHUNK: usize = 4;
/// Tokens that codes unpacked in registers meet.
const FEW_TOKENS: usize = 4;

/// `out[t][r]` for each row `r` of `codes`, I2_S, and each token `t`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_i2_s(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
    let mut first = 0;
    if avx2_fours::pays(x, out) {
        let others = |codes: &[u8], tokens, r, out: &mut [&mut [f32]]| {
            in_registers(codes, scale, x, tokens, r, out);
        };
        first = avx2_fours::matmul_i2_s(codes, scale, x, out, others);
    }
    in_registers(codes, scale, x, first..x.len(), 0, out);
}

/// Rows, the first of them row `r`, with `tokens`: a block of rows after another, which comes from memory once, with as many tokens at
/// a time as stay in the first-level cache.
#[target_feature(enable = "avx2,fma,f16c")]
fn in_registers(
    codes: &[u8],
    scale: f32,
    x: &QuantRows,
    tokens: Range<usize>,
    r: usize,
    out: &mut [&mut [f32]],
) {
    let row_bytes = x.cols() / 4;
    let near = near_tokens(x.cols(), FEW_TOKENS);
    let blocks = codes.chunks(NEAR_ROWS * row_bytes);
    for (codes, first_row) in blocks.zip((r..).step_by(NEAR_ROWS)) {
        let mut first = tokens.start;
        while first < tokens.end {
            let end = first + take_near(tokens.end - first, near);
            for (codes, r) in codes.chunks_exact(row_bytes).zip(first_row..) {
                let mut t = first;
                while t < end {
                    t += match end - t {
                        1 => one(codes, scale, x, t, r, out),
                        2 => few::<2>(codes, scale, x, t, r, out),
                        3 | 5 | 6 => few::<3>(codes, scale, x, t, r, out),
                        _ => few::<FEW_TOKENS>(codes, scale, x, t, r, out),
                    };
                }
            }
            first = end;
        }
    }
}

/// Row `r` with token `t`, with one shift for four groups of codes; says that it is one token.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn one(
    codes: &[u8],
    scale: f32,
    x: &QuantRows,
    t: usize,
    r: usize,
    out: &mut [&mut [f32]],
) -> usize {
    let x = x.row(t);
    let (chunks, rest) = codes.as_chunks::<BLOCK_BYTES>().0.as_chunks();
    let (x_chunks, x_rest) = x.values.as_chunks().0.as_chunks();
    let mut sum = _mm256_setzero_si256();
    for (chunk, x) in chunks.iter().zip(x_chunks) {
        sum = _mm256_add_epi32(sum, masked_products::<MASKED_CHUNK>(chunk, x));
    }
    for (block, x) in rest.iter().zip(x_rest) {
        sum = _mm256_add_epi32(sum, masked_products(&[*block], &[*x]));
    }
    out[t][r] = finish(sum_i32(sum), x.sum, x.scale, scale);
    1
}

/// Eight i32 sums of the products of up to `MASKED_CHUNK` blocks; the walk's next ones are asked for.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn masked_products<const N: usize>(blocks: &[Packed; N], x: &[Activations; N]) -> __m256i {
    const { assert!(N <= MASKED_CHUNK, "i16 lanes would overflow") };
    let (mut once, mut four_times) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for i in 0..N {
        if i % 2 == 0 {
            prefetch(&blocks[i]);
        }
        let codes = masked_codes(load_bytes(&blocks[i]));
        let products =
            |part: usize| _mm256_maddubs_epi16(codes[part], load_activations(&x[i], part));
        four_times = _mm256_add_epi16(four_times, _mm256_add_epi16(products(0), products(2)));
        once = _mm256_add_epi16(once, _mm256_add_epi16(products(1), products(3)));
    }
    widened(_mm256_add_epi16(once, _mm256_srai_epi16::<2>(four_times)))
}

/// Row `r` with `T` tokens from `t` on, unpacked in registers; says how many they are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn few<const T: usize>(
    codes: &[u8],
    scale: f32,
    x: &QuantRows,
    t: usize,
    r: usize,
    out: &mut [&mut [f32]],
) -> usize {
    let blocks: &[Packed] = codes.as_chunks().0;
    let mut activations: [&[Activations]; T] = [&[]; T];
    for (i, activations) in activations.iter_mut().enumerate() {
        *activations = &x.row(t + i).values.as_chunks().0[..blocks.len()];
    }
    let mut sums = [_mm256_setzero_si256(); T];
    for first in (0..blocks.len()).step_by(CHUNK) {
        let mut wide = [_mm256_setzero_si256(); T];
        for i in first..blocks.len().min(first + CHUNK) {
            prefetch(&blocks[i]);
            let codes = unpack(load_bytes(&blocks[i]));
            for (wide, x) in wide.iter_mut().zip(activations) {
                *wide = _mm256_add_epi16(*wide, block_products(codes, &x[i]));
            }
        }
        for (sum, wide) in sums.iter_mut().zip(wide) {
            *sum = _mm256_add_epi32(*sum, widened(wide));
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        let x = x.row(t + i);
        out[t + i][r] = finish(sum_i32(sum), x.sum, x.scale, scale);
    }
    T
}

/// Rounds of ten products and additions of registers, each 32 multiply-adds: what [`crate::probe`] measures.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn byte_products(rounds: usize) -> i32 {
    let mut sums = [_mm256_setzero_si256(); 10];
    let (codes, x) = (_mm256_set1_epi8(1), _mm256_set1_epi8(-1));
    for _ in 0..rounds {
        for sum in &mut sums {
            let products: __m256i;
            // SAFETY: reads and writes registers only. By `asm!`, since the compiler would multiply once.
            unsafe {
                std::arch::asm!(
                    "vpmaddubsw {0}, {1}, {2}",
                    lateout(ymm_reg) products,
                    in(ymm_reg) codes,
                    in(ymm_reg) x,
                    options(nomem, nostack, preserves_flags)
                );
            }
            *sum = _mm256_add_epi16(*sum, products);
        }
    }
    sum_i32(sums.into_iter().fold(x, |a, b| _mm256_add_epi32(a, b)))
}

/// The four groups of 32 codes of a block, in the order of their columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack(packed: __m256i) -> [__m256i; 4] {
    let low = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(_mm256_srli_epi16::<6>(packed), low),
        _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low),
        _mm256_and_si256(_mm256_srli_epi16::<2>(packed), low),
        _mm256_and_si256(packed, low),
    ]
}

/// The four groups of 32 codes of a block, in the order of their columns, with one shift for all: the first and the third lie
/// two bits higher, so that they count four times.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn masked_codes(packed: __m256i) -> [__m256i; 4] {
    let (once, four_times) = (_mm256_set1_epi8(3), _mm256_set1_epi8(3 << 2));
    let first = _mm256_srli_epi16::<4>(packed);
    [
        _mm256_and_si256(first, four_times),
        _mm256_and_si256(first, once),
        _mm256_and_si256(packed, four_times),
        _mm256_and_si256(packed, once),
    ]
}

/// Sixteen i16 sums of the 128 products of a block, each of eight products.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block_products(codes: [__m256i; 4], x: &Activations) -> __m256i {
    let [a, b, c, d] = [
        _mm256_maddubs_epi16(codes[0], load_activations(x, 0)),
        _mm256_maddubs_epi16(codes[1], load_activations(x, 1)),
        _mm256_maddubs_epi16(codes[2], load_activations(x, 2)),
        _mm256_maddubs_epi16(codes[3], load_activations(x, 3)),
    ];
    _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_activations(x: &Activations, part: usize) -> __m256i {
    load_integers(&x.as_chunks().0[part])
}
