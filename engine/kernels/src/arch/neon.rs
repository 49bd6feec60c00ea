//! NEON, which every AArch64 CPU has: integers by `smull` and `smlal` into i16, widened to i32; floats in eight registers of
//! four lanes.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::{LINE_BYTES, PREFETCH_BYTES, finish, prefetch_line};
use crate::QuantRows;
use crate::screen::{PLANE_BYTES, PLANE_COLS};
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

float_kernels!(#[target_feature(enable = "neon")]);

/// A tile: sixteen sums, the eight codes of a row's block, two narrow sums and one activation of 32 registers.
const ROWS: usize = 4;
const TOKENS: usize = 4;
const CHAINS: usize = 2;
const TILES_FROM: usize = TOKENS;

type Lanes = int32x4_t;

tiled_matmul!(matmul_i2_s #[target_feature(enable = "neon")]);

/// A narrow sum holds sixteen products, each up to 3 · 128: 6,144.
///
/// # Safety
/// `i` is below the length of all `rows` and all `x`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn step<const R: usize, const T: usize>(
    rows: [&[[u8; BLOCK_BYTES]]; R],
    x: [&[[i8; BLOCK_COLS]]; T],
    i: usize,
    sums: &mut [[Lanes; R]; T],
) {
    for r in 0..R {
        // SAFETY: the caller promised it.
        let codes = unpack_block(unsafe { rows[r].get_unchecked(i) });
        for t in 0..T {
            // SAFETY: the caller promised it.
            let x: &[[i8; 16]] = unsafe { x[t].get_unchecked(i) }.as_chunks().0;
            let first = load_integers(&x[0]);
            let mut low = vmull_s8(vget_low_s8(codes[0]), vget_low_s8(first));
            let mut high = vmull_high_s8(codes[0], first);
            for part in 1..8 {
                let x = load_integers(&x[part]);
                low = vmlal_s8(low, vget_low_s8(codes[part]), vget_low_s8(x));
                high = vmlal_high_s8(high, codes[part], x);
            }
            sums[t][r] = vpadalq_s16(sums[t][r], vaddq_s16(low, high));
        }
    }
}

/// The codes of a block in the order of their columns.
#[inline]
#[target_feature(enable = "neon")]
fn unpack_block(block: &[u8; BLOCK_BYTES]) -> [int8x16_t; 8] {
    let (halves, _) = block.as_chunks();
    let [a, c, e, g] = unpack(load_bytes(&halves[0]));
    let [b, d, f, h] = unpack(load_bytes(&halves[1]));
    [a, b, c, d, e, f, g, h]
}

/// The four groups of codes of some bytes, in the order of their columns.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn unpack(packed: uint8x16_t) -> [int8x16_t; 4] {
    let low = vdupq_n_u8(3);
    [
        vreinterpretq_s8_u8(vshrq_n_u8::<6>(packed)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<4>(packed), low)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<2>(packed), low)),
        vreinterpretq_s8_u8(vandq_u8(packed, low)),
    ]
}

#[inline]
#[target_feature(enable = "neon")]
fn no_lanes() -> Lanes {
    vdupq_n_s32(0)
}

#[inline]
#[target_feature(enable = "neon")]
fn add_lanes(a: Lanes, b: Lanes) -> Lanes {
    vaddq_s32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn sum_tile<const R: usize, const T: usize>(sums: &[[Lanes; R]; T]) -> [[i32; R]; T] {
    sums.map(|sums| sums.map(|sum| vaddvq_s32(sum)))
}

/// A row of a plane that is left alone has one chain: it waits for its turn in i16 only.
const PLANE_CHAINS: usize = 1;

plane_walk!(#[target_feature(enable = "neon")] 4: 2, 2: 4, 1: 4);

/// `R` rows of a plane times `T` vectors.
#[inline]
#[target_feature(enable = "neon")]
fn plane_tile<const R: usize, const T: usize, const S: usize>(
    rows: &[[u8; PLANE_BYTES]],
    x: [&[[i8; PLANE_COLS]]; T],
    ahead: Option<usize>,
) -> [[i32; R]; T] {
    /// Blocks that an i16 lane sums without overflow: 4 · 2 products a block, each up to 15 · 127, makes 15,240 · 2 = 30,480.
    const CHUNK: usize = 2;
    const { assert!(S == 1, "sums have one chain") };
    let blocks = rows.len() / R;
    let mut sums = [[no_lanes(); R]; T];
    for start in (0..blocks).step_by(CHUNK) {
        if let Some(ahead) = ahead {
            let ahead = rows.as_ptr().cast::<u8>().wrapping_add(ahead);
            for line in (0..R * CHUNK * PLANE_BYTES).step_by(LINE_BYTES) {
                prefetch_line(ahead.wrapping_add(start * R * PLANE_BYTES + line));
            }
        }
        let mut wide = [[vdupq_n_s16(0); R]; T];
        for i in start..blocks.min(start + CHUNK) {
            let mut codes = [[vdupq_n_s8(0); 4]; R];
            for (r, codes) in codes.iter_mut().enumerate() {
                *codes = nibbles(&rows[r * blocks + i]);
            }
            for t in 0..T {
                let (x, _) = x[t][i].as_chunks();
                for part in 0..4 {
                    let x = load_integers(&x[part]);
                    for r in 0..R {
                        let codes = codes[r][part];
                        wide[t][r] = vmlal_s8(wide[t][r], vget_low_s8(codes), vget_low_s8(x));
                        wide[t][r] = vmlal_high_s8(wide[t][r], codes, x);
                    }
                }
            }
        }
        for (sums, wide) in sums.iter_mut().zip(wide) {
            for (sum, wide) in sums.iter_mut().zip(wide) {
                *sum = vpadalq_s16(*sum, wide);
            }
        }
    }
    sum_tile(&sums)
}

/// The nibbles of a block of a plane, in the order of their columns.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn nibbles(block: &[u8; PLANE_BYTES]) -> [int8x16_t; 4] {
    let (halves, _) = block.as_chunks();
    let [a, b] = [load_bytes(&halves[0]), load_bytes(&halves[1])];
    let low = vdupq_n_u8(15);
    [
        vreinterpretq_s8_u8(vandq_u8(a, low)),
        vreinterpretq_s8_u8(vandq_u8(b, low)),
        vreinterpretq_s8_u8(vshrq_n_u8::<4>(a)),
        vreinterpretq_s8_u8(vshrq_n_u8::<4>(b)),
    ]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_bytes(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: an unaligned load of the sixteen bytes of the array.
    unsafe { vld1q_u8(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_integers(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: an unaligned load of the sixteen bytes of the array.
    unsafe { vld1q_s8(x.as_ptr()) }
}

/// 32 lanes.
type Block = [float32x4_t; 8];

/// Tokens that share a decoded block: sixteen accumulators, eight registers of the block.
const GROUP: usize = 2;

type Register = float32x4_t;
const REGISTERS: usize = 8;
/// Registers of values that four heads add up at a time.
const WIDE: usize = 4;

macro_rules! each {
    ($op:ident, $a:expr) => {
        [
            $op($a[0]),
            $op($a[1]),
            $op($a[2]),
            $op($a[3]),
            $op($a[4]),
            $op($a[5]),
            $op($a[6]),
            $op($a[7]),
        ]
    };
    ($op:ident, $a:expr, $b:expr) => {
        [
            $op($a[0], $b[0]),
            $op($a[1], $b[1]),
            $op($a[2], $b[2]),
            $op($a[3], $b[3]),
            $op($a[4], $b[4]),
            $op($a[5], $b[5]),
            $op($a[6], $b[6]),
            $op($a[7], $b[7]),
        ]
    };
}

#[inline]
#[target_feature(enable = "neon")]
fn splat(x: f32) -> Block {
    [vdupq_n_f32(x); 8]
}

#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[f32; 32]) -> Block {
    let (fours, _) = x.as_chunks::<4>();
    each!(load4, fours)
}

#[inline]
#[target_feature(enable = "neon")]
fn load4(x: [f32; 4]) -> float32x4_t {
    // SAFETY: an unaligned load of the four numbers of the array.
    unsafe { vld1q_f32(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(x: Block, out: &mut [f32; 32]) {
    for (i, x) in x.into_iter().enumerate() {
        store_at(x, out, i);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn store4(x: float32x4_t, out: &mut [f32; 4]) {
    // SAFETY: an unaligned store to the four numbers of the array.
    unsafe { vst1q_f32(out.as_mut_ptr(), x) };
}

/// To the place of register `i`.
#[inline]
#[target_feature(enable = "neon")]
fn store_at(x: Register, out: &mut [f32; 32], i: usize) {
    store4(x, &mut out.as_chunks_mut().0[i]);
}

/// Register `i` of a block.
#[inline]
#[target_feature(enable = "neon")]
fn f32_at(x: &[f32; 32], i: usize) -> Register {
    load4(x.as_chunks().0[i])
}

#[inline]
#[target_feature(enable = "neon")]
fn f16_at(x: &[u16; 32], i: usize) -> Register {
    load4_f16(x.as_chunks().0[i])
}

#[inline]
#[target_feature(enable = "neon")]
fn q8_0_at([bytes]: &[Q8Block; 1], i: usize) -> Register {
    let codes = &bytes[2..].as_chunks::<8>().0[i / 2];
    // SAFETY: an unaligned load of the eight bytes of the array.
    let codes = eight_integers(unsafe { vld1_s8(codes.as_ptr().cast()) });
    vmulq_f32(f16_scale([bytes[0], bytes[1]]), codes[i % 2])
}

#[inline]
#[target_feature(enable = "neon")]
fn plus(a: Block, b: Block) -> Block {
    each!(vaddq_f32, a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn minus(a: Block, b: Block) -> Block {
    each!(vsubq_f32, a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn times(a: Block, b: Block) -> Block {
    each!(vmulq_f32, a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn over(a: Block, b: Block) -> Block {
    each!(vdivq_f32, a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn fma(a: Block, b: Block, mut c: Block) -> Block {
    for i in 0..8 {
        c[i] = vfmaq_f32(c[i], a[i], b[i]);
    }
    c
}

#[inline]
#[target_feature(enable = "neon")]
fn fma_one(a: Register, b: Register, c: Register) -> Register {
    vfmaq_f32(c, a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn max(a: Block, b: Block) -> Block {
    each!(max4, a, b)
}

/// Not `fmax`, in which NaN wins on either side.
#[inline]
#[target_feature(enable = "neon")]
fn max4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vbslq_f32(vcgtq_f32(a, b), a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn min(a: Block, b: Block) -> Block {
    each!(min4, a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn min4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vbslq_f32(vcltq_f32(a, b), a, b)
}

/// 2^n, where `x` is n + `lanes::ROUND`.
#[inline]
#[target_feature(enable = "neon")]
fn pow2(x: Block) -> Block {
    each!(pow2_4, x)
}

#[inline]
#[target_feature(enable = "neon")]
fn pow2_4(x: float32x4_t) -> float32x4_t {
    let n = vshlq_n_u32::<23>(vreinterpretq_u32_f32(x));
    vreinterpretq_f32_u32(vaddq_u32(n, vdupq_n_u32(127 << 23)))
}

#[inline]
#[target_feature(enable = "neon")]
fn sum(x: Block) -> f32 {
    let x = sum_to_4(&x);
    let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
}

/// Lane + 16, + 8 and + 4.
#[inline]
#[target_feature(enable = "neon")]
fn sum_to_4(x: &Block) -> float32x4_t {
    let x = [
        vaddq_f32(x[0], x[4]),
        vaddq_f32(x[1], x[5]),
        vaddq_f32(x[2], x[6]),
        vaddq_f32(x[3], x[7]),
    ];
    vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]))
}

/// The sums of eight blocks.
#[inline]
#[target_feature(enable = "neon")]
fn sum_8(x: &[Block; 8]) -> [f32; 8] {
    let mut sums = [0.0; 8];
    for (sums, x) in sums
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .zip(x.as_chunks::<4>().0)
    {
        let pairs = |a: &Block, b: &Block| {
            let a = vreinterpretq_f64_f32(sum_to_4(a));
            let b = vreinterpretq_f64_f32(sum_to_4(b));
            let low = vreinterpretq_f32_f64(vzip1q_f64(a, b));
            vaddq_f32(low, vreinterpretq_f32_f64(vzip2q_f64(a, b)))
        };
        store4(vpaddq_f32(pairs(&x[0], &x[1]), pairs(&x[2], &x[3])), sums);
    }
    sums
}

#[inline]
#[target_feature(enable = "neon")]
fn maximum(x: Block) -> f32 {
    let x = [
        max4(x[0], x[4]),
        max4(x[1], x[5]),
        max4(x[2], x[6]),
        max4(x[3], x[7]),
    ];
    let x = max4(max4(x[0], x[2]), max4(x[1], x[3]));
    let x = max4(x, vextq_f32::<2>(x, x));
    vgetq_lane_f32::<0>(max4(x, vdupq_laneq_f32::<1>(x)))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_f16(x: &[u16; 32]) -> Block {
    let (fours, _) = x.as_chunks::<4>();
    each!(load4_f16, fours)
}

#[inline]
#[target_feature(enable = "neon")]
fn load4_f16(x: [u16; 4]) -> float32x4_t {
    // SAFETY: an unaligned load of the eight bytes of the array.
    from_f16(unsafe { vld1_u16(x.as_ptr()) })
}

/// By `asm!`, since the type that the intrinsic takes is not in older compilers.
#[inline]
#[target_feature(enable = "neon")]
fn from_f16(halves: uint16x4_t) -> float32x4_t {
    let numbers;
    // SAFETY: reads and writes registers only.
    unsafe {
        asm!(
            "fcvtl {0:v}.4s, {1:v}.4h",
            lateout(vreg) numbers,
            in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    numbers
}

#[inline]
#[target_feature(enable = "neon")]
fn store_f16_block(x: Block, out: &mut [u16; 32]) {
    for (x, out) in x.into_iter().zip(out.as_chunks_mut::<4>().0) {
        // SAFETY: an unaligned store to the eight bytes of the array.
        unsafe { vst1_u16(out.as_mut_ptr(), to_f16(x)) };
    }
}

/// To nearest, ties to even, as all arithmetic in Rust.
#[inline]
#[target_feature(enable = "neon")]
fn to_f16(numbers: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: reads and writes registers only.
    unsafe {
        asm!(
            "fcvtn {0:v}.4h, {1:v}.4s",
            lateout(vreg) halves,
            in(vreg) numbers,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    halves
}

#[inline]
#[target_feature(enable = "neon")]
fn f32_unit(bytes: &[u8; 128]) -> [Block; 1] {
    let (fours, _) = bytes.as_chunks::<16>();
    [each!(load4_bytes, fours)]
}

#[inline]
#[target_feature(enable = "neon")]
fn load4_bytes(x: [u8; 16]) -> float32x4_t {
    vreinterpretq_f32_u8(load_bytes(&x))
}

#[inline]
#[target_feature(enable = "neon")]
fn f16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    let (fours, _) = bytes.as_chunks::<8>();
    [each!(load4_f16_bytes, fours)]
}

#[inline]
#[target_feature(enable = "neon")]
fn load4_f16_bytes(x: [u8; 8]) -> float32x4_t {
    from_f16(load4_halves(x))
}

#[inline]
#[target_feature(enable = "neon")]
fn load4_halves(x: [u8; 8]) -> uint16x4_t {
    // SAFETY: an unaligned load of the eight bytes of the array.
    vreinterpret_u16_u8(unsafe { vld1_u8(x.as_ptr()) })
}

#[inline]
#[target_feature(enable = "neon")]
fn bf16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    let (fours, _) = bytes.as_chunks::<8>();
    [each!(load4_bf16_bytes, fours)]
}

#[inline]
#[target_feature(enable = "neon")]
fn load4_bf16_bytes(x: [u8; 8]) -> float32x4_t {
    vreinterpretq_f32_u32(vshll_n_u16::<16>(load4_halves(x)))
}

#[inline]
#[target_feature(enable = "neon")]
fn q8_0_unit(bytes: &[u8; 34]) -> [Block; 1] {
    let codes: &[u8; 32] = bytes.last_chunk().expect("34 bytes end with 32");
    let (halves, _) = codes.as_chunks();
    let codes = [load_bytes(&halves[0]), load_bytes(&halves[1])];
    [times(
        [f16_scale([bytes[0], bytes[1]]); 8],
        integers(codes[0], codes[1]),
    )]
}

#[inline]
#[target_feature(enable = "neon")]
fn q4_0_unit(bytes: &[u8; 18]) -> [Block; 1] {
    let codes = load_bytes(bytes.last_chunk().expect("18 bytes end with 16"));
    let middle = vdupq_n_u8(8);
    let low = vsubq_u8(vandq_u8(codes, vdupq_n_u8(15)), middle);
    let high = vsubq_u8(vshrq_n_u8::<4>(codes), middle);
    [times(
        integers(low, high),
        [f16_scale([bytes[0], bytes[1]]); 8],
    )]
}

#[inline]
#[target_feature(enable = "neon")]
fn q6_k_unit(bytes: &[u8; 210]) -> [Block; 8] {
    let d = f16_scale([bytes[208], bytes[209]]);
    let mut blocks = [splat(0.0); 8];
    for half in 0..2 {
        for part in 0..4 {
            let low = &bytes[64 * half + 32 * (part % 2)..];
            let high = &bytes[128 + 32 * half..];
            let first = q6_k_codes(low, high, part);
            let second = q6_k_codes(&low[16..], &high[16..], part);
            let scale = |i: usize| {
                let sc = bytes[192 + 8 * half + 2 * part + i] as i8;
                vmulq_f32(d, vdupq_n_f32(f32::from(sc)))
            };
            let (a, b) = (scale(0), scale(1));
            blocks[4 * half + part] = times([a, a, a, a, b, b, b, b], integers(first, second));
        }
    }
    blocks
}

/// Sixteen codes of a part: four bits of `low`, two of `high`.
#[inline]
#[target_feature(enable = "neon")]
fn q6_k_codes(low: &[u8], high: &[u8], part: usize) -> uint8x16_t {
    let low = load_bytes(low.first_chunk().expect("a part ends before the scales"));
    let high = load_bytes(high.first_chunk().expect("a part ends before the scales"));
    let low = match part {
        0 | 1 => vandq_u8(low, vdupq_n_u8(15)),
        _ => vshrq_n_u8::<4>(low),
    };
    let high = match part {
        0 => vshlq_n_u8::<4>(high),
        1 => vshlq_n_u8::<2>(high),
        2 => high,
        _ => vshrq_n_u8::<2>(high),
    };
    let codes = vorrq_u8(low, vandq_u8(high, vdupq_n_u8(0x30)));
    vsubq_u8(codes, vdupq_n_u8(32))
}

/// The f16 in `bytes`, in every lane.
#[inline]
#[target_feature(enable = "neon")]
fn f16_scale(bytes: [u8; 2]) -> float32x4_t {
    from_f16(vdup_n_u16(u16::from_le_bytes(bytes)))
}

/// 32 × i8 as f32.
#[inline]
#[target_feature(enable = "neon")]
fn integers(low: uint8x16_t, high: uint8x16_t) -> Block {
    let (low, high) = (vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high));
    let [a, b] = eight_integers(vget_low_s8(low));
    let [c, d] = eight_integers(vget_high_s8(low));
    let [e, f] = eight_integers(vget_low_s8(high));
    let [g, h] = eight_integers(vget_high_s8(high));
    [a, b, c, d, e, f, g, h]
}

#[inline]
#[target_feature(enable = "neon")]
fn eight_integers(x: int8x8_t) -> [float32x4_t; 2] {
    let x = vmovl_s8(x);
    [
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))),
        vcvtq_f32_s32(vmovl_high_s16(x)),
    ]
}

/// Asks for the bytes that a walk over weights reaches a little later.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn prefetch(here: &[u8]) {
    prefetch_at(here, PREFETCH_BYTES);
}

/// Asks for what lies `ahead` bytes further on. By `asm!`, since the intrinsic is not in stable compilers.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn prefetch_at(here: &[u8], ahead: usize) {
    let there = here.as_ptr().wrapping_add(ahead);
    // SAFETY: a prefetch of any address is allowed; it reads nothing.
    unsafe {
        asm!(
            "prfm pldl1keep, [{}]",
            in(reg) there,
            options(readonly, nostack, preserves_flags)
        );
    }
}
