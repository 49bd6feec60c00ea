//! AVX-512 with VNNI: integers by `vpdpbusd` on 64 codes at a time; floats in two registers of sixteen lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{LINE_BYTES, PREFETCH_BYTES, finish, prefetch_line};
use crate::QuantRows;
use crate::screen::{PLANE_BYTES, PLANE_COLS};
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

float_kernels!(#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]);

/// A tile: sixteen sums, four codes, one activation and the shifts of 32 registers.
const ROWS: usize = 4;
const TOKENS: usize = 4;
const CHAINS: usize = 4;
const TILES_FROM: usize = 2;

type Lanes = __m512i;

tiled_matmul!(matmul_i2_s #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]);

/// # Safety
/// `i` is below the length of all `rows` and all `x`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn step<const R: usize, const T: usize>(
    rows: [&[[u8; BLOCK_BYTES]]; R],
    x: [&[[i8; BLOCK_COLS]]; T],
    i: usize,
    sums: &mut [[Lanes; R]; T],
) {
    for half in 0..2 {
        let mut codes = [no_lanes(); R];
        for r in 0..R {
            // SAFETY: the caller promised it.
            codes[r] = unpack_half(unsafe { rows[r].get_unchecked(i) }, half);
        }
        for t in 0..T {
            // SAFETY: the caller promised it.
            let x = load_activations(unsafe { x[t].get_unchecked(i) }, half);
            for r in 0..R {
                sums[t][r] = _mm512_dpbusd_epi32(sums[t][r], codes[r], x);
            }
        }
    }
}

/// 64 codes of a block in the order of their columns: the packed bytes twice, each copy with its own shift.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn unpack_half(packed: &[u8; BLOCK_BYTES], half: usize) -> __m512i {
    let shifts = match half {
        0 => _mm512_setr_epi64(6, 6, 6, 6, 4, 4, 4, 4),
        _ => _mm512_setr_epi64(2, 2, 2, 2, 0, 0, 0, 0),
    };
    // SAFETY: an unaligned load of the 32 bytes of the array.
    let packed = unsafe { _mm256_loadu_si256(packed.as_ptr().cast()) };
    let twice = _mm512_broadcast_i64x4(packed);
    _mm512_and_si512(_mm512_srlv_epi64(twice, shifts), _mm512_set1_epi8(3))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_activations(x: &[i8; BLOCK_COLS], half: usize) -> __m512i {
    let x: &[i8; 64] = &x.as_chunks().0[half];
    // SAFETY: an unaligned load of the 64 bytes of the array.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn no_lanes() -> Lanes {
    _mm512_setzero_si512()
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_lanes(a: Lanes, b: Lanes) -> Lanes {
    _mm512_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn sum_tile<const R: usize, const T: usize>(sums: &[[Lanes; R]; T]) -> [[i32; R]; T] {
    let mut found = [[0; R]; T];
    let (sixteens, others) = sums.as_flattened().as_chunks();
    let (found_16, found_others) = found.as_flattened_mut().as_chunks_mut();
    for (found, sums) in found_16.iter_mut().zip(sixteens) {
        *found = sum_16(sums);
    }
    for (found, sum) in found_others.iter_mut().zip(others) {
        *found = _mm512_reduce_add_epi32(*sum);
    }
    found
}

/// The sum of each register: halves of pairs are added up until one register holds all sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn sum_16(x: &[Lanes; 16]) -> [i32; 16] {
    let mut fours = [no_lanes(); 4];
    for (four, x) in fours.iter_mut().zip(x.as_chunks::<4>().0) {
        let pair = |a, b| add_lanes(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (a, b) = (pair(x[0], x[1]), pair(x[2], x[3]));
        *four = add_lanes(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    let pair = |a, b| {
        let low = _mm512_shuffle_i32x4::<0x44>(a, b);
        add_lanes(low, _mm512_shuffle_i32x4::<0xee>(a, b))
    };
    let (a, b) = (pair(fours[0], fours[1]), pair(fours[2], fours[3]));
    let low = _mm512_shuffle_i32x4::<0x88>(a, b);
    let all = add_lanes(low, _mm512_shuffle_i32x4::<0xdd>(a, b));
    let mut found = [0; 16];
    // SAFETY: an unaligned store to the sixteen numbers of the array.
    unsafe { _mm512_storeu_si512(found.as_mut_ptr().cast(), all) };
    found
}

/// Chains of a single row of a plane.
const PLANE_CHAINS: usize = 4;

// Sixteen sums at most: one register takes those of a tile.
plane_walk!(#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")] 8: 2, 4: 4, 2: 4, 1: 4);

/// `R` rows times `T` vectors, in `S` chains of additions each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn plane_tile<const R: usize, const T: usize, const S: usize>(
    rows: &[[u8; PLANE_BYTES]],
    x: [&[[i8; PLANE_COLS]]; T],
    ahead: Option<usize>,
) -> [[i32; R]; T] {
    const { assert!(R * T <= 16, "one register takes the sums of a tile") };
    let blocks = rows.len() / R;
    for x in x {
        assert!(x.len() == blocks, "vectors are as long as rows");
    }
    let mut sums = [[[no_lanes(); R]; T]; S];
    for first in (0..blocks).step_by(S) {
        if let Some(ahead) = ahead {
            let ahead = rows.as_ptr().cast::<u8>().wrapping_add(ahead);
            for line in (0..R * S * PLANE_BYTES).step_by(LINE_BYTES) {
                prefetch_line(ahead.wrapping_add(first * R * PLANE_BYTES + line));
            }
        }
        for (i, sums) in (first..blocks).zip(&mut sums) {
            let mut nibbles = [no_lanes(); R];
            for (r, nibbles) in nibbles.iter_mut().enumerate() {
                // SAFETY: r < R and i < blocks, and there are R * blocks of them.
                *nibbles = unpack_nibbles(unsafe { rows.get_unchecked(r * blocks + i) });
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                // SAFETY: i < blocks, the length of each vector; an unaligned load of the 64 bytes of an array.
                let x = unsafe { _mm512_loadu_si512(x.get_unchecked(i).as_ptr().cast()) };
                for r in 0..R {
                    sums[r] = _mm512_dpbusd_epi32(sums[r], nibbles[r], x);
                }
            }
        }
    }
    let mut all = [no_lanes(); 16];
    for sums in &sums {
        for (all, sum) in all.iter_mut().zip(sums.as_flattened()) {
            *all = add_lanes(*all, *sum);
        }
    }
    let mut found = [[0; R]; T];
    if R * T <= 2 {
        for (found, sum) in found.as_flattened_mut().iter_mut().zip(all) {
            *found = _mm512_reduce_add_epi32(sum);
        }
        return found;
    }
    let sixteen = sum_16(&all);
    found.as_flattened_mut().copy_from_slice(&sixteen[..R * T]);
    found
}

/// 64 nibbles of a block in the order of their columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn unpack_nibbles(packed: &[u8; PLANE_BYTES]) -> __m512i {
    let shifts = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    // SAFETY: an unaligned load of the 32 bytes of the array.
    let packed = unsafe { _mm256_loadu_si256(packed.as_ptr().cast()) };
    let twice = _mm512_broadcast_i64x4(packed);
    _mm512_and_si512(_mm512_srlv_epi64(twice, shifts), _mm512_set1_epi8(15))
}

/// 32 lanes.
type Block = [__m512; 2];

/// Tokens that share a decoded block.
const GROUP: usize = 4;

type Register = __m512;
const REGISTERS: usize = 2;
/// Registers of values that four heads add up at a time.
const WIDE: usize = 2;

macro_rules! each {
    ($op:ident, $a:expr) => {
        [$op($a[0]), $op($a[1])]
    };
    ($op:ident, $a:expr, $b:expr) => {
        [$op($a[0], $b[0]), $op($a[1], $b[1])]
    };
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn splat(x: f32) -> Block {
    [_mm512_set1_ps(x); 2]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn load(x: &[f32; 32]) -> Block {
    [f32_at(x, 0), f32_at(x, 1)]
}

/// Register `i` of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn f32_at(x: &[f32; 32], i: usize) -> Register {
    let x: &[f32; 16] = &x.as_chunks().0[i];
    // SAFETY: an unaligned load of the sixteen numbers of the array.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn f16_at(x: &[u16; 32], i: usize) -> Register {
    let x: &[u16; 16] = &x.as_chunks().0[i];
    // SAFETY: an unaligned load of the 32 bytes of the array.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn q8_0_at([bytes]: &[Q8Block; 1], i: usize) -> Register {
    let codes = load_16(&bytes[2..].as_chunks().0[i]);
    _mm512_mul_ps(f16_scale([bytes[0], bytes[1]])[0], sixteen_integers(codes))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn store(x: Block, out: &mut [f32; 32]) {
    for (i, x) in x.into_iter().enumerate() {
        store_at(x, out, i);
    }
}

/// To the place of register `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn store_at(x: Register, out: &mut [f32; 32], i: usize) {
    let out: &mut [f32; 16] = &mut out.as_chunks_mut().0[i];
    // SAFETY: an unaligned store to the sixteen numbers of the array.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn plus(a: Block, b: Block) -> Block {
    each!(_mm512_add_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn minus(a: Block, b: Block) -> Block {
    each!(_mm512_sub_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn times(a: Block, b: Block) -> Block {
    each!(_mm512_mul_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn over(a: Block, b: Block) -> Block {
    each!(_mm512_div_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn fma(a: Block, b: Block, c: Block) -> Block {
    [
        _mm512_fmadd_ps(a[0], b[0], c[0]),
        _mm512_fmadd_ps(a[1], b[1], c[1]),
    ]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn fma_one(a: Register, b: Register, c: Register) -> Register {
    _mm512_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn max(a: Block, b: Block) -> Block {
    each!(_mm512_max_ps, a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn min(a: Block, b: Block) -> Block {
    each!(_mm512_min_ps, a, b)
}

/// 2^n, where `x` is n + `lanes::ROUND`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn pow2(x: Block) -> Block {
    each!(pow2_16, x)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn pow2_16(x: __m512) -> __m512 {
    let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(x));
    _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(127 << 23)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn sum(x: Block) -> f32 {
    let x = _mm512_add_ps(x[0], x[1]);
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), upper_half(x));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// The same of eight blocks: halves of pairs are added up until one register holds all sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn sum_8(x: &[Block; 8]) -> [f32; 8] {
    let mut eights = [_mm512_setzero_ps(); 4];
    for (eight, [a, b]) in eights.iter_mut().zip(x.as_chunks::<2>().0) {
        let (a, b) = (_mm512_add_ps(a[0], a[1]), _mm512_add_ps(b[0], b[1]));
        let low = _mm512_shuffle_f32x4::<0x44>(a, b);
        *eight = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xee>(a, b));
    }
    let fours = |a, b| {
        let low = _mm512_shuffle_f32x4::<0x88>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xdd>(a, b))
    };
    let (a, b) = (fours(eights[0], eights[1]), fours(eights[2], eights[3]));
    let low = _mm512_shuffle_ps::<0x44>(a, b);
    let pairs = _mm512_add_ps(low, _mm512_shuffle_ps::<0xee>(a, b));
    let odd = _mm512_shuffle_ps::<0xf5>(pairs, pairs);
    let all = _mm512_add_ps(pairs, odd);
    let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    let all = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all));
    let mut sums = [0.0; 8];
    // SAFETY: an unaligned store to the eight numbers of the array.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), all) };
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn maximum(x: Block) -> f32 {
    let x = _mm512_max_ps(x[0], x[1]);
    let x = _mm256_max_ps(_mm512_castps512_ps256(x), upper_half(x));
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn upper_half(x: __m512) -> __m256 {
    _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_f16(x: &[u16; 32]) -> Block {
    [f16_at(x, 0), f16_at(x, 1)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn from_f16(halves: __m512i) -> Block {
    let low = _mm512_castsi512_si256(halves);
    let high = _mm512_extracti64x4_epi64::<1>(halves);
    [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn store_f16_block(x: Block, out: &mut [u16; 32]) {
    for (x, out) in x.into_iter().zip(out.as_chunks_mut::<16>().0) {
        let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
        // SAFETY: an unaligned store to the 32 bytes of the array.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), halves) };
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_bytes(x: &[u8; 64]) -> __m512i {
    // SAFETY: an unaligned load of the 64 bytes of the array.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn f32_unit(bytes: &[u8; 128]) -> [Block; 1] {
    let (sixteens, _) = bytes.as_chunks::<64>();
    let bits = [load_bytes(&sixteens[0]), load_bytes(&sixteens[1])];
    [each!(_mm512_castsi512_ps, bits)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn f16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    [from_f16(load_bytes(bytes))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn bf16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    let halves = load_bytes(bytes);
    let parts = [
        _mm512_castsi512_si256(halves),
        _mm512_extracti64x4_epi64::<1>(halves),
    ];
    [each!(widen_bf16, parts)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn widen_bf16(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn q8_0_unit(bytes: &[u8; 34]) -> [Block; 1] {
    let codes = bytes.last_chunk().expect("34 bytes end with 32");
    [times(
        f16_scale([bytes[0], bytes[1]]),
        integers(load_32(codes)),
    )]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn q4_0_unit(bytes: &[u8; 18]) -> [Block; 1] {
    let codes = load_16(bytes.last_chunk().expect("18 bytes end with 16"));
    let pairs = _mm256_set_m128i(_mm_srli_epi16::<4>(codes), codes);
    let codes = _mm256_and_si256(pairs, _mm256_set1_epi8(15));
    let codes = _mm256_sub_epi8(codes, _mm256_set1_epi8(8));
    [times(integers(codes), f16_scale([bytes[0], bytes[1]]))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn q6_k_unit(bytes: &[u8; 210]) -> [Block; 8] {
    let (groups, _) = bytes.as_chunks::<32>();
    let d = f16_scale([bytes[208], bytes[209]])[0];
    let low = _mm256_set1_epi8(15);
    let mut blocks = [splat(0.0); 8];
    for half in 0..2 {
        let lows = [load_32(&groups[2 * half]), load_32(&groups[2 * half + 1])];
        let highs = load_32(&groups[4 + half]);
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
                _mm512_mul_ps(d, _mm512_set1_ps(f32::from(sc)))
            };
            let (first, second) = (scale(0), scale(1));
            blocks[4 * half + part] = times([first, second], integers(codes));
        }
    }
    blocks
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_16(x: &[u8; 16]) -> __m128i {
    // SAFETY: an unaligned load of the sixteen bytes of the array.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_32(x: &[u8; 32]) -> __m256i {
    // SAFETY: an unaligned load of the 32 bytes of the array.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

/// The f16 in `bytes`, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn f16_scale(bytes: [u8; 2]) -> Block {
    let bits = _mm256_set1_epi16(i16::from_le_bytes(bytes));
    [_mm512_cvtph_ps(bits); 2]
}

/// 32 × i8 as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn integers(x: __m256i) -> Block {
    let halves = [_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x)];
    each!(sixteen_integers, halves)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn sixteen_integers(x: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))
}

/// Asks for the bytes that a walk over weights reaches a little later.
/// The intrinsic needs `unsafe` in older compilers only.
#[inline]
#[allow(unused_unsafe)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn prefetch(here: &[u8]) {
    let there = here.as_ptr().wrapping_add(PREFETCH_BYTES);
    // SAFETY: a prefetch of any address is allowed; it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(there.cast()) };
}
