//! AVX2 with FMA and F16C: integers by `vpmaddubsw` into i16, widened to i32; floats in four registers of eight lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{PREFETCH_BYTES, finish};
use crate::QuantRows;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

pub(super) use super::avx2_planes::plane_sums;

float_kernels!(#[target_feature(enable = "avx2,fma,f16c")]);

/// Packed codes of a block, and its activations.
type Packed = [u8; BLOCK_BYTES];
type Activations = [i8; BLOCK_COLS];

/// Blocks that an i16 lane sums without overflow: 4 · 2 products a block, each up to 3 · 128, makes 3,072 · 10 = 30,720.
const CHUNK: usize = 10;
/// Rows of a tile. With three tokens, as most have: nine accumulators, three codes, one activation of sixteen registers.
const ROWS: usize = 3;
/// With more bytes of activations, which then don't stay in the first-level cache, unpacking rows to memory pays.
const NEAR_BYTES: usize = 30 << 10;
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
    let row_bytes = x.cols() / 4;
    if x.len() * x.cols() <= NEAR_BYTES || x.len() < ROWS {
        for (r, codes) in codes.chunks_exact(row_bytes).enumerate() {
            let mut t = 0;
            while t < x.len() {
                t += match x.len() - t {
                    1 => few::<1>(codes, scale, x, t, r, out),
                    2 | 4 => few::<2>(codes, scale, x, t, r, out),
                    _ => few::<3>(codes, scale, x, t, r, out),
                };
            }
        }
        return;
    }
    let grouped = out[0].len() - out[0].len() % ROWS;
    let (groups, rest) = codes.split_at(grouped * row_bytes);
    in_panels::<ROWS>(groups, scale, x, 0, out);
    in_panels::<1>(rest, scale, x, grouped, out);
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

/// Pairs of i16 as i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widened(x: __m256i) -> __m256i {
    _mm256_madd_epi16(x, _mm256_set1_epi16(1))
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
pub(super) fn sum_i32(x: __m256i) -> i32 {
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = _mm_add_epi32(x, _mm_unpackhi_epi64(x, x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<1>(x));
    _mm_cvtsi128_si32(x)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_bytes(x: &[u8; 32]) -> __m256i {
    // SAFETY: an unaligned load of the 32 bytes of the array.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_integers(x: &[i8; 32]) -> __m256i {
    // SAFETY: an unaligned load of the 32 bytes of the array.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
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

/// 32 lanes.
type Block = [__m256; 4];

/// Tokens that share a decoded block: eight accumulators, four registers of the block.
const GROUP: usize = 2;

type Register = __m256;
const REGISTERS: usize = 4;
/// Registers of values that four heads add up at a time.
const WIDE: usize = 2;

macro_rules! each {
    ($op:ident, $a:expr) => {
        [$op($a[0]), $op($a[1]), $op($a[2]), $op($a[3])]
    };
    ($op:ident, $a:expr, $b:expr) => {
        [
            $op($a[0], $b[0]),
            $op($a[1], $b[1]),
            $op($a[2], $b[2]),
            $op($a[3], $b[3]),
        ]
    };
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat(x: f32) -> Block {
    [_mm256_set1_ps(x); 4]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(x: &[f32; 32]) -> Block {
    let (eights, _) = x.as_chunks::<8>();
    each!(load8, eights)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load8(x: [f32; 8]) -> __m256 {
    // SAFETY: an unaligned load of the eight numbers of the array.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(x: Block, out: &mut [f32; 32]) {
    for (i, x) in x.into_iter().enumerate() {
        store_at(x, out, i);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store8(x: __m256, out: &mut [f32; 8]) {
    // SAFETY: an unaligned store to the eight numbers of the array.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) };
}

/// To the place of register `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_at(x: Register, out: &mut [f32; 32], i: usize) {
    store8(x, &mut out.as_chunks_mut().0[i]);
}

/// Register `i` of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn f32_at(x: &[f32; 32], i: usize) -> Register {
    load8(x.as_chunks().0[i])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn f16_at(x: &[u16; 32], i: usize) -> Register {
    load8_f16(x.as_chunks().0[i])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0_at([bytes]: &[Q8Block; 1], i: usize) -> Register {
    let codes = &bytes[2..].as_chunks::<8>().0[i];
    // SAFETY: an unaligned load of the eight bytes of the array.
    let codes = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
    _mm256_mul_ps(f16_scale([bytes[0], bytes[1]])[0], eight_integers(codes))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn plus(a: Block, b: Block) -> Block {
    each!(_mm256_add_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn minus(a: Block, b: Block) -> Block {
    each!(_mm256_sub_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn times(a: Block, b: Block) -> Block {
    each!(_mm256_mul_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn over(a: Block, b: Block) -> Block {
    each!(_mm256_div_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fma(a: Block, b: Block, c: Block) -> Block {
    [
        _mm256_fmadd_ps(a[0], b[0], c[0]),
        _mm256_fmadd_ps(a[1], b[1], c[1]),
        _mm256_fmadd_ps(a[2], b[2], c[2]),
        _mm256_fmadd_ps(a[3], b[3], c[3]),
    ]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fma_one(a: Register, b: Register, c: Register) -> Register {
    _mm256_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn max(a: Block, b: Block) -> Block {
    each!(_mm256_max_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn min(a: Block, b: Block) -> Block {
    each!(_mm256_min_ps, a, b)
}

/// 2^n, where `x` is n + `lanes::ROUND`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pow2(x: Block) -> Block {
    each!(pow2_8, x)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pow2_8(x: __m256) -> __m256 {
    let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(x));
    _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(127 << 23)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(x: Block) -> f32 {
    let x = _mm256_add_ps(_mm256_add_ps(x[0], x[2]), _mm256_add_ps(x[1], x[3]));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// The same of eight blocks: halves of pairs are added up until one register holds all sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_8(x: &[Block; 8]) -> [f32; 8] {
    let mut fours = [_mm256_setzero_ps(); 4];
    for (four, [a, b]) in fours.iter_mut().zip(x.as_chunks::<2>().0) {
        let eight = |x: &Block| _mm256_add_ps(_mm256_add_ps(x[0], x[2]), _mm256_add_ps(x[1], x[3]));
        let (a, b) = (eight(a), eight(b));
        let low = _mm256_permute2f128_ps::<0x20>(a, b);
        *four = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
    }
    let pairs = |a, b| {
        let low = _mm256_shuffle_ps::<0x44>(a, b);
        _mm256_add_ps(low, _mm256_shuffle_ps::<0xee>(a, b))
    };
    let (a, b) = (pairs(fours[0], fours[1]), pairs(fours[2], fours[3]));
    let even = _mm256_shuffle_ps::<0x88>(a, b);
    let all = _mm256_add_ps(even, _mm256_shuffle_ps::<0xdd>(a, b));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let mut sums = [0.0; 8];
    store8(_mm256_permutevar8x32_ps(all, order), &mut sums);
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn maximum(x: Block) -> f32 {
    let x = _mm256_max_ps(_mm256_max_ps(x[0], x[2]), _mm256_max_ps(x[1], x[3]));
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f16(x: &[u16; 32]) -> Block {
    let (eights, _) = x.as_chunks::<8>();
    each!(load8_f16, eights)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load8_f16(x: [u16; 8]) -> __m256 {
    // SAFETY: an unaligned load of the sixteen bytes of the array.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_f16_block(x: Block, out: &mut [u16; 32]) {
    for (x, out) in x.into_iter().zip(out.as_chunks_mut::<8>().0) {
        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
        // SAFETY: an unaligned store to the sixteen bytes of the array.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), halves) };
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn f32_unit(bytes: &[u8; 128]) -> [Block; 1] {
    let (eights, _) = bytes.as_chunks::<32>();
    [each!(load8_bytes, eights)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load8_bytes(x: [u8; 32]) -> __m256 {
    _mm256_castsi256_ps(load_bytes(&x))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn f16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    let (eights, _) = bytes.as_chunks::<16>();
    [each!(load8_f16_bytes, eights)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load8_f16_bytes(x: [u8; 16]) -> __m256 {
    _mm256_cvtph_ps(load16(&x))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load16(x: &[u8; 16]) -> __m128i {
    // SAFETY: an unaligned load of the sixteen bytes of the array.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bf16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    let (eights, _) = bytes.as_chunks::<16>();
    [each!(load8_bf16_bytes, eights)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load8_bf16_bytes(x: [u8; 16]) -> __m256 {
    let wide = _mm256_cvtepu16_epi32(load16(&x));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0_unit(bytes: &[u8; 34]) -> [Block; 1] {
    let codes = bytes.last_chunk().expect("34 bytes end with 32");
    [times(
        f16_scale([bytes[0], bytes[1]]),
        integers(load_bytes(codes)),
    )]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_0_unit(bytes: &[u8; 18]) -> [Block; 1] {
    let codes = load16(bytes.last_chunk().expect("18 bytes end with 16"));
    let pairs = _mm256_set_m128i(_mm_srli_epi16::<4>(codes), codes);
    let codes = _mm256_and_si256(pairs, _mm256_set1_epi8(15));
    let codes = _mm256_sub_epi8(codes, _mm256_set1_epi8(8));
    [times(integers(codes), f16_scale([bytes[0], bytes[1]]))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k_unit(bytes: &[u8; 210]) -> [Block; 8] {
    let (groups, _) = bytes.as_chunks::<32>();
    let d = f16_scale([bytes[208], bytes[209]])[0];
    let low = _mm256_set1_epi8(15);
    let mut blocks = [splat(0.0); 8];
    for half in 0..2 {
        let lows = [
            load_bytes(&groups[2 * half]),
            load_bytes(&groups[2 * half + 1]),
        ];
        let highs = load_bytes(&groups[4 + half]);
        let high = [
            _mm256_slli_epi16::<4>(highs),
            _mm256_slli_epi16::<2>(highs),
            highs,
            _mm256_srli_epi16::<2>(highs),
        ];
        for part in 0..4 {
            let nibbles = if part < 2 {
                lows[part]
            } else {
                _mm256_srli_epi16::<4>(lows[part - 2])
            };
            let nibbles = _mm256_and_si256(nibbles, low);
            let high = _mm256_and_si256(high[part], _mm256_set1_epi8(0x30));
            let codes = _mm256_sub_epi8(_mm256_or_si256(nibbles, high), _mm256_set1_epi8(32));
            let scale = |i: usize| {
                let sc = bytes[192 + 8 * half + 2 * part + i] as i8;
                _mm256_mul_ps(d, _mm256_set1_ps(f32::from(sc)))
            };
            let (first, second) = (scale(0), scale(1));
            blocks[4 * half + part] = times([first, first, second, second], integers(codes));
        }
    }
    blocks
}

/// The f16 in `bytes`, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn f16_scale(bytes: [u8; 2]) -> Block {
    let bits = _mm_set1_epi16(i16::from_le_bytes(bytes));
    [_mm256_cvtph_ps(bits); 4]
}

/// 32 × i8 as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn integers(x: __m256i) -> Block {
    let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let eights = [
        low,
        _mm_srli_si128::<8>(low),
        high,
        _mm_srli_si128::<8>(high),
    ];
    each!(eight_integers, eights)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn eight_integers(x: __m128i) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x))
}

/// Asks for the bytes that a walk over weights reaches a little later.
/// The intrinsic needs `unsafe` in older compilers only.
#[inline]
#[allow(unused_unsafe)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch(here: &[u8]) {
    let there = here.as_ptr().wrapping_add(PREFETCH_BYTES);
    // SAFETY: a prefetch of any address is allowed; it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(there.cast()) };
}
