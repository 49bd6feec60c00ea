//! Conversions between f32 and the two 16-bit formats, bit-equal to the F16C instructions.

/// The f32 with the same value as the IEEE binary16 number `h`; a signalling NaN becomes quiet.
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let exponent = u32::from(h >> 10 & 0x1f);
    let fraction = u32::from(h & 0x3ff);
    let magnitude = match (exponent, fraction) {
        (0, _) => (fraction as f32 * SMALLEST_F16).to_bits(),
        (0x1f, 0) => 0x7f80_0000,
        (0x1f, _) => 0x7fc0_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The IEEE binary16 number nearest to `x`, ties to even; beyond 65,504 (from 65,520 on) infinity, NaN stays NaN.
pub fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let half = match magnitude {
        0x7f80_0001.. => 0x7e00 | magnitude >> 13 & 0x3ff,
        0x477f_f000.. => 0x7c00,
        0x3880_0000.. => (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x3800_0000) >> 13,
        // The unit in the last place of 0.5 is the smallest f16: the addition rounds to it.
        _ => (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits(),
    };
    sign | half as u16
}

/// The f32 whose upper 16 bits are `b`.
pub fn bf16_to_f32(b: u16) -> f32 {
    f32::from_bits(u32::from(b) << 16)
}

/// The bfloat16 nearest to `x`, ties to even; NaN stays NaN.
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// 2^-24
const SMALLEST_F16: f32 = f32::from_bits(0x3380_0000);

#[cfg(test)]
mod tests {
    use super::*;

    /// All of them, but where each one takes a millisecond.
    const STEP: usize = if cfg!(miri) { 101 } else { 1 };

    #[test]
    fn every_f16_survives_the_round_trip() {
        for h in (0..=u16::MAX).step_by(STEP) {
            let x = f16_to_f32(h);
            let quiet = if x.is_nan() { h | 0x200 } else { h };
            assert_eq!(f32_to_f16(x), quiet, "{h:#06x}");
        }
    }

    #[test]
    fn f16_rounds_to_nearest_even() {
        for h in (0..0x7bffu16).step_by(STEP) {
            let (low, high) = (f16_to_f32(h), f16_to_f32(h + 1));
            let middle = (low + high) / 2.0;
            let even = h + (h & 1);
            assert_eq!(f32_to_f16(middle), even, "{middle}");
            assert_eq!(f32_to_f16(middle.next_down()), h, "below {middle}");
            assert_eq!(f32_to_f16(middle.next_up()), h + 1, "above {middle}");
            assert_eq!(f32_to_f16(-middle), even | 0x8000, "-{middle}");
        }
        assert_eq!(f32_to_f16(65_519.996), 0x7bff);
        assert_eq!(f32_to_f16(65_520.0), 0x7c00);
        assert_eq!(f32_to_f16(f32::INFINITY), 0x7c00);
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        assert_eq!(f32_to_bf16(1.0), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
        assert_eq!(bf16_to_f32(0xc020), -2.5);
    }
}
