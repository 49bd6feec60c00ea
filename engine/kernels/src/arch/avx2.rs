//! AVX2 with FMA and F16C: floats in four registers of eight lanes; integers in `avx2_i2_s.rs`, `avx2_lookup.rs` and
//! `avx2_planes.rs`.

use std::arch::x86_64::*;

use super::PREFETCH_BYTES;

pub(super) use super::avx2_i2_s::matmul_i2_s;
pub(super) use super::avx2_planes::plane_sums;

float_kernels!(#[target_feature(enable = "avx2,fma,f16c")]);

/// Pairs of i16 as i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widened(x: __m256i) -> __m256i {
    _mm256_madd_epi16(x, _mm256_set1_epi16(1))
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
