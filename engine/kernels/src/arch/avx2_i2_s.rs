//! I2_S by AVX2: `vpmaddubsw` into i16, widened to i32 before it could overflow.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{load_bytes, load_integers, prefetch, sum_i32, widened};
use super::finish;
use super::tiles::{NEAR_ROWS, near_tokens, take_near};
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
/// Rows of a tile. With three tokens, as most have: nine accumulators, three codes, one activation of sixteen registers.
const ROWS: usize = 3;
/// Up to so many tokens, codes are unpacked in registers for up to `FEW_TOKENS` at a time; for more, unpacking rows to memory pays.
const FEW: usize = 16;
const FEW_TOKENS: usize = 4;
/// Tokens whose sums wait on the stack while chunks of unpacked rows meet them all.
const PANEL: usize = 96;
/// Groups of rows whose chunks are unpacked together, 15 KB: as often is each activation used once it is in the first-level
/// cache.
const GROUPS: usize = 4;

/// Sums of groups of `R` rows with tokens, and a chunk of unpacked codes of those rows.
struct Panel<const R: usize> {
    sums: [[[__m256i; R]; PANEL]; GROUPS],
    unpacked: [[[[u8; 32]; R]; 4 * CHUNK]; GROUPS],
}

/// `out[t][r]` for each row `r` of `codes`, I2_S, and each token `t`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_i2_s(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
    if x.len() <= FEW {
        return in_registers(codes, scale, x, out);
    }
    let row_bytes = x.cols() / 4;
    let grouped = out[0].len() - out[0].len() % ROWS;
    let (groups, rest) = codes.split_at(grouped * row_bytes);
    in_panels::<ROWS>(groups, scale, x, 0, out);
    in_panels::<1>(rest, scale, x, grouped, out);
}

/// All rows, a block of them after another, which comes from memory once, with as many tokens at a time as stay in the first-level
/// cache.
#[target_feature(enable = "avx2,fma,f16c")]
fn in_registers(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
    let row_bytes = x.cols() / 4;
    let near = near_tokens(x.cols(), FEW_TOKENS);
    let blocks = codes.chunks(NEAR_ROWS * row_bytes);
    for (codes, first_row) in blocks.zip((0..).step_by(NEAR_ROWS)) {
        let mut first = 0;
        while first < x.len() {
            let end = first + take_near(x.len() - first, near);
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

/// All rows, `R` of them a group, the first of them row `r`.
#[target_feature(enable = "avx2,fma,f16c")]
fn in_panels<const R: usize>(
    codes: &[u8],
    scale: f32,
    x: &QuantRows,
    r: usize,
    out: &mut [&mut [f32]],
) {
    let mut panel = Panel::<R> {
        sums: [[[_mm256_setzero_si256(); R]; PANEL]; GROUPS],
        unpacked: [[[[0; 32]; R]; 4 * CHUNK]; GROUPS],
    };
    for first in (0..x.len()).step_by(PANEL) {
        let out = &mut out[first..x.len().min(first + PANEL)];
        let rows = codes.chunks(GROUPS * R * x.cols() / 4);
        for (codes, r) in rows.zip((r..).step_by(GROUPS * R)) {
            panel.multiply(codes, scale, x, first, r, out);
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

impl<const R: usize> Panel<R> {
    /// Up to `GROUPS` times `R` rows, the first of them row `r`, with the tokens from `first` on: unpacked once per chunk for
    /// all of them.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn multiply(
        &mut self,
        codes: &[u8],
        scale: f32,
        x: &QuantRows,
        first: usize,
        r: usize,
        out: &mut [&mut [f32]],
    ) {
        let blocks = x.cols() / BLOCK_COLS;
        let rows: &[Packed] = codes.as_chunks().0;
        let n_groups = rows.len() / (R * blocks);
        for sums in &mut self.sums[..n_groups] {
            sums[..out.len()].fill([_mm256_setzero_si256(); R]);
        }
        for start in (0..blocks).step_by(CHUNK) {
            let chunk = start..blocks.min(start + CHUNK);
            self.unpack(rows, blocks, chunk.clone());
            let token =
                |t: usize| &x.row(first + t).values.as_chunks().0[4 * chunk.start..4 * chunk.end];
            let mut t = 0;
            while t < out.len() {
                t += match out.len() - t {
                    1 => self.add(n_groups, t, [token(t)]),
                    2 | 4 => self.add(n_groups, t, [token(t), token(t + 1)]),
                    _ => self.add(n_groups, t, [token(t), token(t + 1), token(t + 2)]),
                };
            }
        }
        for (t, out) in out.iter_mut().enumerate() {
            let (x, out) = (x.row(first + t), &mut out[r..r + n_groups * R]);
            for (start, out) in (0..).step_by(4).zip(out.chunks_mut(4)) {
                // By loops: closures handed to functions without these features are not inlined.
                let mut sums = [_mm256_setzero_si256(); 4];
                for (row, sum) in (start..start + out.len()).zip(&mut sums) {
                    *sum = self.sums[row / R][t][row % R];
                }
                for (sum, out) in sum_4(sums).into_iter().zip(out) {
                    *out = finish(sum, x.sum, x.scale, scale);
                }
            }
        }
    }

    /// The blocks of `chunk` of all rows; those of the next rows are asked for.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn unpack(&mut self, rows: &[Packed], blocks: usize, chunk: Range<usize>) {
        let ahead = rows.len() * BLOCK_BYTES;
        let groups = rows.chunks_exact(R * blocks);
        for (rows, unpacked) in groups.zip(&mut self.unpacked) {
            for (r, row) in rows.chunks_exact(blocks).enumerate() {
                let row = &row[chunk.clone()];
                for (i, (packed, parts)) in
                    row.iter().zip(unpacked.as_chunks_mut::<4>().0).enumerate()
                {
                    if i % 2 == 0 {
                        super::prefetch_line(packed.as_ptr().wrapping_add(ahead));
                    }
                    for (part, codes) in parts.iter_mut().zip(unpack(load_bytes(packed))) {
                        store_codes(codes, &mut part[r]);
                    }
                }
            }
        }
    }

    /// Adds the products of a chunk, `x`, of the tokens from `t` on; says how many they are.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn add<const T: usize>(&mut self, n_groups: usize, t: usize, x: [&[[i8; 32]]; T]) -> usize {
        let groups = self.unpacked.iter().zip(&mut self.sums);
        for (unpacked, sums) in groups.take(n_groups) {
            tile::<R, T>(&unpacked[..x[0].len()], x, &mut sums[t..]);
        }
        T
    }
}

/// Adds up to `CHUNK` blocks of `R` rows times `T` tokens to `sums[t][r]`; `codes[i][r]` and `x[t][i]` are parts of 32.
///
/// The loop takes one part at a time: with four, the compiler mixes them and spills sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const R: usize, const T: usize>(
    codes: &[[[u8; 32]; R]],
    x: [&[[i8; 32]]; T],
    sums: &mut [[__m256i; R]],
) {
    let mut wide = [[_mm256_setzero_si256(); R]; T];
    for (i, codes) in codes.iter().enumerate() {
        for t in 0..T {
            let x = load_integers(&x[t][i]);
            for r in 0..R {
                let products = _mm256_maddubs_epi16(load_bytes(&codes[r]), x);
                wide[t][r] = _mm256_add_epi16(wide[t][r], products);
            }
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        for (sum, wide) in sums.iter_mut().zip(wide) {
            *sum = _mm256_add_epi32(*sum, widened(wide));
        }
    }
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

/// The sum of each register.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_4(x: [__m256i; 4]) -> [i32; 4] {
    let (a, b) = (_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
    let x = _mm256_hadd_epi32(a, b);
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let mut found = [0; 4];
    // SAFETY: an unaligned store to the four numbers of the array.
    unsafe { _mm_storeu_si128(found.as_mut_ptr().cast(), x) };
    found
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_activations(x: &Activations, part: usize) -> __m256i {
    load_integers(&x.as_chunks().0[part])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_codes(codes: __m256i, out: &mut [u8; 32]) {
    // SAFETY: an unaligned store to the 32 bytes of the array.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), codes) };
}
