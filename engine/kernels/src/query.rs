//! A vector to be multiplied with the rows of a screened head, in 15 bits and in 8; `screen` says what is known of either.

use crate::screen::{
    NIBBLE_OFFSET, NORM_SLACK, PLANE_COLS, PLANE_ROWS, ROUND, SMALLEST, Screen, largest_magnitude,
};

/// Largest value of a quantised query: 127 · 128.
const LARGEST_QUERY: f32 = 16_256.0;
/// Steps of the query in 8 bits by which its product with a row of length 1 may be off.
const DITHER_STEPS: f32 = 4.5;
/// Values of the low part of a query.
const LOW_VALUES: f32 = 128.0;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// A vector that is multiplied with all rows.
#[derive(Clone, Default, Debug)]
pub struct Query {
    /// The high and the low part, one behind the other from `start` on, where a cache line begins.
    values: Vec<i8>,
    start: usize,
    /// Values of a part.
    len: usize,
    /// In 15 bits.
    pub(crate) fine: Reading,
    /// In 8 bits, if they will do.
    pub(crate) coarse: Reading,
}

/// A query as it is read: in how many parts, and what they are off.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Reading {
    /// The high part, or both.
    pub(crate) n_parts: usize,
    /// Of the parts' values.
    sum: i32,
    /// Of a step of the parts' product.
    pub(crate) scale: f32,
    /// At least |h| and |ĥ|.
    pub(crate) norm: f32,
    /// At least |w·(h - ĥ)| of a row of length 1.
    pub(crate) error: f32,
}

impl Query {
    /// Takes `h`, `[cols]`. One that is zero, too small or not finite [can't be screened](crate::ScreenedHead::can_screen).
    pub fn set(&mut self, h: &[f32]) {
        self.len = h.len().next_multiple_of(PLANE_COLS);
        self.values.clear();
        self.values.resize(2 * self.len + LINE_BYTES - 1, 0);
        let start = self.values.as_ptr().align_offset(LINE_BYTES);
        self.start = start.min(LINE_BYTES - 1);
        let (high_part, low_part) = self.values[self.start..].split_at_mut(self.len);
        let largest = largest_magnitude(h);
        if !(SMALLEST..SMALLEST.recip()).contains(&largest) {
            self.fine = Reading {
                n_parts: 2,
                ..Reading::default()
            };
            self.coarse = self.fine;
            return;
        }
        let inverse = LARGEST_QUERY / largest;
        let scale = largest / LARGEST_QUERY;
        let (mut sum, mut coarse_sum) = (0, 0);
        let (mut squares, mut errors, mut coarse_squares) = (0.0f64, 0.0f64, 0.0f64);
        let parts = high_part.iter_mut().zip(low_part);
        for (column, (h, (high_part, low_part))) in h.iter().zip(parts).enumerate() {
            let code = (h * inverse + ROUND) - ROUND;
            let (high, low) = dithered(column, code as i32);
            (*high_part, *low_part) = (high as i8, low as i8);
            sum += code as i32;
            coarse_sum += high;
            let (h, quantised) = (f64::from(*h), f64::from(code) * f64::from(scale));
            let coarse = f64::from(LOW_VALUES * high as f32) * f64::from(scale);
            squares += (h * h).max(quantised * quantised);
            errors += (h - quantised) * (h - quantised);
            coarse_squares += (h * h).max(coarse * coarse);
        }
        self.fine = Reading {
            n_parts: 2,
            sum,
            scale,
            norm: squares.sqrt() as f32 * NORM_SLACK,
            error: errors.sqrt() as f32 * NORM_SLACK,
        };
        let dither = DITHER_STEPS * LOW_VALUES * scale * NORM_SLACK;
        self.coarse = match dither <= self.fine.norm / (h.len() as f32).sqrt() {
            true => Reading {
                n_parts: 1,
                sum: coarse_sum,
                scale: LOW_VALUES * scale,
                norm: coarse_squares.sqrt() as f32 * NORM_SLACK,
                error: self.fine.error + dither,
            },
            false => self.fine,
        };
    }

    pub(crate) fn reading(&self, screen: Screen) -> &Reading {
        match screen {
            Screen::Exact => &self.coarse,
            Screen::Proven => &self.fine,
        }
    }

    pub(crate) fn parts(&self, screen: Screen) -> impl Iterator<Item = &[i8]> {
        let parts = self.both_parts().into_iter();
        parts.take(self.reading(screen).n_parts)
    }

    pub(crate) fn both_parts(&self) -> [&[i8]; 2] {
        let (high, low) = self.values[self.start..].split_at(self.len);
        [high, &low[..self.len]]
    }
}

/// `code = 128·high + low`. The multiple of 128 above is taken as often as `code` is near to it: by seven bits that are fixed for each column.
fn dithered(column: usize, code: i32) -> (i32, i32) {
    let high = (code + random_bits(column)) >> 7;
    (high, code - (high << 7))
}

/// 0 ..= 127, by the mixer of SplitMix64 (Steele, Lea and Flood 2014).
fn random_bits(column: usize) -> i32 {
    let x = (column as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ x >> 31) >> 57) as i32
}

impl Reading {
    /// What the sums of the parts with a row come to, in steps of the row.
    pub(crate) fn estimate(&self, parts: &[i32]) -> f32 {
        let sum = match *parts {
            [high, low] => 128 * high + low,
            _ => parts[0],
        };
        (sum - NIBBLE_OFFSET * self.sum) as f32 * self.scale
    }

    /// Adds as much for some rows, `steps` times `scales`; `parts`: the sums of each part.
    pub(crate) fn add_estimates(
        &self,
        parts: &[[i32; PLANE_ROWS]],
        scales: &[f32; PLANE_ROWS],
        steps: f32,
        out: &mut [f32; PLANE_ROWS],
    ) {
        let mut sums = parts[0];
        if let [_, low] = parts {
            for r in 0..PLANE_ROWS {
                sums[r] = 128 * sums[r] + low[r];
            }
        }
        for r in 0..PLANE_ROWS {
            let sum = sums[r] - NIBBLE_OFFSET * self.sum;
            out[r] += sum as f32 * (scales[r] * steps * self.scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_code_and_rounded_up_as_often_as_they_are_near() {
        const COLUMNS: usize = 8192;
        for code in [
            -16_256, -16_255, -129, -128, -1, 0, 1, 64, 127, 4000, 16_255, 16_256,
        ] {
            let mut sum = 0;
            for column in 0..COLUMNS {
                let (high, low) = dithered(column, code);
                assert_eq!(128 * high + low, code, "column {column}");
                assert!(high.abs() <= 127 && low.abs() <= 127, "{code} in {column}");
                sum += i64::from(low);
            }
            // The mean of the low part is 0, its deviation 64 at most.
            let deviations = sum as f64 / (64.0 * (COLUMNS as f64).sqrt());
            assert!(deviations.abs() < 4.0, "{code}: {deviations} deviations");
        }
    }

    #[test]
    fn a_query_with_one_number_above_all_is_read_in_15_bits() {
        let mut query = Query::default();
        let mut h: Vec<f32> = (0..2560).map(|i| (i as f32).sin()).collect();
        query.set(&h);
        assert_eq!(query.parts(Screen::Exact).count(), 1);
        assert_eq!(query.parts(Screen::Proven).count(), 2);
        h[77] = 60.0;
        query.set(&h);
        assert_eq!(query.parts(Screen::Exact).count(), 2);
    }
}
