//! Numbers to Q6_K, inlined into every instruction set's own function, so that each compiles it for itself.

use super::lanes::ROUND;
use crate::{Q6Block, f16_to_f32, f32_to_f16};

/// Numbers that share a scale.
const PART: usize = 16;
const CODES: usize = 0;
const HIGH_BITS: usize = 128;
const SCALES: usize = 192;
const D: usize = 208;

/// Codes go from -32 to 31, so the step of a part, `d · sc`, reaches all its numbers within half a step when it is a 32nd of
/// the largest magnitude and a 31.5th of the largest on the other side of zero. `d` is a 127th of the block's largest step,
/// rounded up to f16, and `sc` is rounded up to an integer. NaN, infinity, and numbers beyond f16's reach make `d` NaN.
#[inline(always)]
pub(super) fn encode(x: &[f32; 256], out: &mut Q6Block) {
    let (parts, _) = x.as_chunks::<PART>();
    let mut steps = [0.0f32; 256 / PART];
    let (mut largest_step, mut largest) = (0.0f32, 0);
    for (step, part) in steps.iter_mut().zip(parts) {
        for x in part {
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        *step = least_step(part);
        largest_step = largest_step.max(step.abs());
    }
    *out = [0; 210];
    let half = f16_from_above(largest_step / 127.0);
    let d = f16_to_f32(half);
    if largest >= f32::INFINITY.to_bits() || !d.is_finite() {
        out[D..].copy_from_slice(&f32_to_f16(f32::NAN).to_le_bytes());
        return;
    }
    out[D..].copy_from_slice(&half.to_le_bytes());
    let mut codes = [0u8; 256];
    for (i, (part, step)) in parts.iter().zip(steps).enumerate() {
        let scale = match d > 0.0 {
            true => (step.abs() / d).ceil().min(127.0).copysign(step),
            false => 0.0,
        };
        out[SCALES + i] = scale as i8 as u8;
        let step = d * scale;
        let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
        for (code, x) in codes[i * PART..].iter_mut().zip(part) {
            let n_steps = (x * inverse).clamp(-32.0, 31.0);
            *code = ((n_steps + ROUND).to_bits() as u8).wrapping_add(32);
        }
    }
    pack(&codes, out);
}

/// Negative when the code -32 is for a positive number.
#[inline(always)]
fn least_step(part: &[f32; PART]) -> f32 {
    let (mut low, mut high) = (0.0f32, 0.0f32);
    for x in part {
        low = low.min(*x);
        high = high.max(*x);
    }
    match high > -low {
        true => -(high / 32.0).max(-low / 31.5),
        false => (-low / 32.0).max(high / 31.5),
    }
}

/// The smallest f16 that is not below `x`, which is not negative.
#[inline(always)]
fn f16_from_above(x: f32) -> u16 {
    let nearest = f32_to_f16(x);
    match f16_to_f32(nearest) < x {
        true => nearest + 1,
        false => nearest,
    }
}

/// Per half of 128: 64 bytes with the lower nibbles of two codes each, 32 bytes with the upper two bits of four.
#[inline(always)]
fn pack(codes: &[u8; 256], out: &mut Q6Block) {
    let (halves, _) = codes.as_chunks::<128>();
    for (half, codes) in halves.iter().enumerate() {
        let (low, high) = (CODES + 64 * half, HIGH_BITS + 32 * half);
        for l in 0..32 {
            let (a, b, c, d) = (codes[l], codes[l + 32], codes[l + 64], codes[l + 96]);
            out[low + l] = a & 15 | (c & 15) << 4;
            out[low + 32 + l] = b & 15 | (d & 15) << 4;
            out[high + l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
}
