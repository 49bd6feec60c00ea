//! Plain Rust: the reference that every instruction set equals bit for bit.

use super::finish;
use crate::lookup::{self, GROUP_ROWS, GroupedRows};
use crate::screen::{PLANE_BYTES, PLANE_COLS};
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};
use crate::{QuantRows, bf16_to_f32, f16_to_f32, f32_to_f16};

float_kernels!();

/// `out[t][r]` for each row `r` of `codes`, I2_S, and each token `t`.
pub(super) fn matmul_i2_s(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
    for (r, codes) in codes.chunks_exact(x.cols() / 4).enumerate() {
        for (t, out) in out.iter_mut().enumerate() {
            let x = x.row(t);
            out[r] = finish(dot_i2_s(codes, x.values), x.sum, x.scale, scale);
        }
    }
}

fn dot_i2_s(codes: &[u8], x: &[i8]) -> i32 {
    let mut sum = 0;
    for (codes, x) in codes
        .chunks_exact(BLOCK_BYTES)
        .zip(x.chunks_exact(BLOCK_COLS))
    {
        for (x, shift) in x.chunks_exact(BLOCK_BYTES).zip([6, 4, 2, 0]) {
            for (code, x) in codes.iter().zip(x) {
                sum += i32::from(code >> shift & 3) * i32::from(*x);
            }
        }
    }
    sum
}

/// `out[n][r] = Σ nibble·x[n]` for each row `r` of `plane`.
pub(super) fn plane_sums(plane: &[u8], x: &[&[i8]], out: &mut [&mut [i32]]) {
    for (x, out) in x.iter().zip(out) {
        for (row, out) in plane.chunks_exact(x.len() / 2).zip(&mut **out) {
            *out = 0;
            let blocks = row
                .chunks_exact(PLANE_BYTES)
                .zip(x.chunks_exact(PLANE_COLS));
            for (nibbles, x) in blocks {
                for (i, x) in x.iter().enumerate() {
                    let nibble = nibbles[i % PLANE_BYTES] >> (i / PLANE_BYTES * 4) & 15;
                    *out += i32::from(nibble) * i32::from(*x);
                }
            }
        }
    }
}

/// `out[t][r]` for the wanted rows of TL1 (`WIDTH` 2) or TL2 (3) and each token `t`, by the weights that the indices stand for.
pub(super) fn matmul_lookup<const WIDTH: usize>(
    rows: GroupedRows<'_>,
    scale: f32,
    x: &QuantRows,
    out: &mut [&mut [f32]],
) {
    let group_bytes = lookup::group_bytes(WIDTH, x.cols());
    for (t, out) in out.iter_mut().enumerate() {
        let x = x.row(t);
        for (r, out) in (rows.skip..).zip(out.iter_mut()) {
            let group = &rows.groups[r / GROUP_ROWS * group_bytes..][..group_bytes];
            let sum = dot_lookup::<WIDTH>(group, r % GROUP_ROWS, x.values);
            *out = finish(sum, 0, x.scale, scale);
        }
    }
}

/// Row `r` of a group.
fn dot_lookup<const WIDTH: usize>(group: &[u8], r: usize, x: &[i8]) -> i32 {
    let mut sum = 0;
    let blocks = group.chunks_exact(lookup::block_bytes(WIDTH));
    for (block, x) in blocks.zip(x.chunks(lookup::block_cols(WIDTH))) {
        for (j, x) in x.chunks(WIDTH).enumerate() {
            let weights = lookup::weights::<WIDTH>(block, r, j);
            for (w, x) in weights.iter().zip(x) {
                sum += i32::from(*w) * i32::from(*x);
            }
        }
    }
    sum
}

/// 32 lanes.
type Block = [f32; 32];

/// Tokens that share a decoded block.
const GROUP: usize = 4;

type Register = f32;
const REGISTERS: usize = 32;
/// Registers of values that four heads add up at a time.
const WIDE: usize = 32;

fn map2(a: Block, b: Block, f: impl Fn(f32, f32) -> f32) -> Block {
    std::array::from_fn(|i| f(a[i], b[i]))
}

fn splat(x: f32) -> Block {
    [x; 32]
}

fn load(x: &[f32; 32]) -> Block {
    *x
}

fn store(x: Block, out: &mut [f32; 32]) {
    *out = x;
}

fn store_at(x: Register, out: &mut [f32; 32], i: usize) {
    out[i] = x;
}

fn f32_at(x: &[f32; 32], i: usize) -> Register {
    x[i]
}

fn f16_at(x: &[u16; 32], i: usize) -> Register {
    f16_to_f32(x[i])
}

fn q8_0_at([bytes]: &[Q8Block; 1], i: usize) -> Register {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])) * f32::from(bytes[2 + i] as i8)
}

fn plus(a: Block, b: Block) -> Block {
    map2(a, b, |a, b| a + b)
}

fn minus(a: Block, b: Block) -> Block {
    map2(a, b, |a, b| a - b)
}

fn times(a: Block, b: Block) -> Block {
    map2(a, b, |a, b| a * b)
}

fn over(a: Block, b: Block) -> Block {
    map2(a, b, |a, b| a / b)
}

fn fma(a: Block, b: Block, c: Block) -> Block {
    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

fn fma_one(a: Register, b: Register, c: Register) -> Register {
    a.mul_add(b, c)
}

fn max(a: Block, b: Block) -> Block {
    map2(a, b, |a, b| if a > b { a } else { b })
}

fn min(a: Block, b: Block) -> Block {
    map2(a, b, |a, b| if a < b { a } else { b })
}

/// 2^n, where `x` is n + `lanes::ROUND`.
fn pow2(x: Block) -> Block {
    x.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(127 << 23)))
}

fn sum(x: Block) -> f32 {
    fold(x, |a, b| a + b)
}

fn sum_8(x: &[Block; 8]) -> [f32; 8] {
    x.map(sum)
}

fn maximum(x: Block) -> f32 {
    fold(x, |a, b| if a > b { a } else { b })
}

/// Lane + 16, then + 8, + 4, + 2, + 1.
fn fold(mut x: Block, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

fn load_f16(x: &[u16; 32]) -> Block {
    x.map(f16_to_f32)
}

fn store_f16_block(x: Block, out: &mut [u16; 32]) {
    *out = x.map(f32_to_f16);
}

fn f32_unit(bytes: &[u8; 128]) -> [Block; 1] {
    let (numbers, _) = bytes.as_chunks();
    [std::array::from_fn(|i| f32::from_le_bytes(numbers[i]))]
}

fn f16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    let (numbers, _) = bytes.as_chunks();
    [std::array::from_fn(|i| {
        f16_to_f32(u16::from_le_bytes(numbers[i]))
    })]
}

fn bf16_unit(bytes: &[u8; 64]) -> [Block; 1] {
    let (numbers, _) = bytes.as_chunks();
    [std::array::from_fn(|i| {
        bf16_to_f32(u16::from_le_bytes(numbers[i]))
    })]
}

fn q8_0_unit(bytes: &[u8; 34]) -> [Block; 1] {
    let d = f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
    [std::array::from_fn(|i| d * f32::from(bytes[2 + i] as i8))]
}

fn q4_0_unit(bytes: &[u8; 18]) -> [Block; 1] {
    let d = f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
    [std::array::from_fn(|i| {
        let code = bytes[2 + i % 16] >> (i / 16 * 4) & 15;
        f32::from(code as i8 - 8) * d
    })]
}

fn q6_k_unit(bytes: &[u8; 210]) -> [Block; 8] {
    let d = f16_to_f32(u16::from_le_bytes([bytes[208], bytes[209]]));
    std::array::from_fn(|block| {
        let (half, part) = (block / 4, block % 4);
        let low = &bytes[64 * half + 32 * (part % 2)..][..32];
        let high = &bytes[128 + 32 * half..][..32];
        let scales = &bytes[192 + 8 * half + 2 * part..][..2];
        std::array::from_fn(|i| {
            let code = low[i] >> (part / 2 * 4) & 15 | (high[i] >> (2 * part) & 3) << 4;
            d * f32::from(scales[i / 16] as i8) * f32::from(code as i8 - 32)
        })
    })
}

fn prefetch(_: &[u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worst relative error over the range, every 997th f32 on either side of zero.
    #[test]
    fn exp_is_within_its_bound() {
        let step = if cfg!(miri) { 9_999_991 } else { 997 };
        let positive = (0..=lanes::exp::HIGHEST.to_bits()).step_by(step);
        let negative = ((-0.0f32).to_bits()..=lanes::exp::LOWEST.to_bits()).step_by(step);
        let inputs: Vec<f32> = positive.chain(negative).map(f32::from_bits).collect();
        let mut worst = (0.0, 0.0);
        for x in inputs.chunks(32) {
            for (x, y) in x.iter().zip(exp(load_part(x))) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(y) - exact).abs() / exact;
                if error > worst.0 {
                    worst = (error, *x);
                }
            }
        }
        assert!(worst.0 <= f64::from(lanes::exp::ERROR), "{worst:?}");
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        assert_eq!(exp(splat(0.0))[0], 1.0);
        assert_eq!(exp(splat(-1e30))[0], exp(splat(lanes::exp::LOWEST))[0]);
        assert_eq!(
            exp(splat(f32::INFINITY))[0],
            exp(splat(lanes::exp::HIGHEST))[0]
        );
        assert!(exp(splat(f32::NAN))[0].is_nan());
    }
}
