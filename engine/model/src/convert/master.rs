//! Ternary weights out of a Hugging Face checkpoint: absmean of master weights, and the packed form of Transformers.

use bitnet_kernels::{bf16_to_f32, f16_to_f32};
use safetensors::Dtype;

use super::packings::{Trits, has_code_3};

/// Smallest scale absmean gives.
const LEAST_SCALE: f64 = 1e-5;
/// Numbers summed side by side.
const LANES: usize = 8;

/// Why a matrix of a checkpoint can't become ternary.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum MasterError {
    #[error("{found} at index {index}, expected finite weights")]
    NotFinite { found: f32, index: usize },
    #[error("real-valued weights in a model that doesn't say it was trained with ternary ones")]
    NotTernary,
    #[error("the code 3 in byte {offset} of the packed weights, expected 0, 1 and 2 only")]
    Code { offset: usize },
    #[error("{found}, expected BF16, F16 or F32 weights, or packed U8 with a `weight_scale`")]
    Dtype { found: Dtype },
    #[error("the scale {found}, expected a finite number above 0")]
    Scale { found: f32 },
}

/// What master weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Masters {
    /// Of a model trained as BitNet: absmean gives what the training's forward pass used.
    Absmean,
    /// Already ternary times a constant; anything else is refused.
    Ternary,
}

/// Ternary weights of a `[rows, cols]` matrix of floats.
///
/// A matrix whose values are all 0, +s or -s is taken as it is, with the scale s: absmean would shrink it. Otherwise
/// s = max(mean|W|, 1e-5), and a weight is the sign of W where |W * (1/s)| rounds to 1 or more, half to even.
/// The mean is summed in f64 and rounded once; Transformers sums in f32, which may differ in the last bits.
///
/// # Errors
/// When a value is not finite, or `masters` doesn't allow what is there.
pub(crate) fn quantize(
    dtype: Dtype,
    data: &[u8],
    (rows, cols): (usize, usize),
    masters: Masters,
) -> Result<Trits, MasterError> {
    let halves = |data: &[u8], to_f32: fn(u16) -> f32| -> Vec<f32> {
        let (halves, _) = data.as_chunks::<2>();
        halves
            .iter()
            .map(|h| to_f32(u16::from_le_bytes(*h)))
            .collect()
    };
    let read: &dyn Fn(&[u8], &mut [f32]) = match dtype {
        Dtype::BF16 => &|data, out| {
            let halves = data.as_chunks::<2>().0.iter();
            out.iter_mut()
                .zip(halves)
                .for_each(|(x, h)| *x = bf16_to_f32(u16::from_le_bytes(*h)));
        },
        Dtype::F16 => &|data, out| out.copy_from_slice(&halves(data, f16_to_f32)),
        Dtype::F32 => &|data, out| {
            let words = data.as_chunks::<4>().0.iter();
            out.iter_mut()
                .zip(words)
                .for_each(|(x, w)| *x = f32::from_le_bytes(*w));
        },
        found => return Err(MasterError::Dtype { found }),
    };
    let value_bytes = dtype.bitsize() / 8;
    let n = rows * cols;
    let mut chunk = [0f32; 4096];
    let mut seen = Seen::default();
    for data in data.chunks(chunk.len() * value_bytes) {
        let values = &mut chunk[..data.len() / value_bytes];
        read(data, values);
        seen.add(values);
    }
    if !seen.sum().is_finite() {
        let mut at = 0;
        for data in data.chunks(chunk.len() * value_bytes) {
            let values = &mut chunk[..data.len() / value_bytes];
            read(data, values);
            if let Some(i) = values.iter().position(|x| !x.is_finite()) {
                let (found, index) = (values[i], at + i);
                return Err(MasterError::NotFinite { found, index });
            }
            at += values.len();
        }
    }
    let scale = match (seen.constant(), masters) {
        (Some(scale), _) => scale,
        (None, Masters::Absmean) => (seen.sum() / n as f64).max(LEAST_SCALE) as f32,
        (None, Masters::Ternary) => return Err(MasterError::NotTernary),
    };
    let inverse = 1.0 / scale;
    let mut weights = vec![0i8; n];
    let parts = data.chunks(chunk.len() * value_bytes);
    for (data, weights) in parts.zip(weights.chunks_mut(chunk.len())) {
        let values = &mut chunk[..weights.len()];
        read(data, values);
        for (w, x) in weights.iter_mut().zip(&*values) {
            let x = x * inverse;
            *w = i8::from(x > 0.5) - i8::from(x < -0.5);
        }
    }
    Ok(Trits {
        rows,
        cols,
        weights,
        scale,
    })
}

/// Sum, smallest and largest magnitude of the values seen.
struct Seen {
    sums: [f64; LANES],
    /// As bits, less one: zero wraps to the largest.
    least: [u32; LANES],
    most: [u32; LANES],
}

impl Default for Seen {
    fn default() -> Seen {
        Seen {
            sums: [0.0; LANES],
            least: [u32::MAX; LANES],
            most: [0; LANES],
        }
    }
}

impl Seen {
    fn add(&mut self, values: &[f32]) {
        let (groups, rest) = values.as_chunks::<LANES>();
        for group in groups {
            for (lane, &x) in group.iter().enumerate() {
                self.one(lane, x);
            }
        }
        rest.iter().for_each(|&x| self.one(0, x));
    }

    fn one(&mut self, lane: usize, x: f32) {
        let bits = x.to_bits() & 0x7fff_ffff;
        self.sums[lane] += f64::from(f32::from_bits(bits));
        self.least[lane] = self.least[lane].min(bits.wrapping_sub(1));
        self.most[lane] = self.most[lane].max(bits);
    }

    fn sum(&self) -> f64 {
        self.sums.iter().sum()
    }

    /// The one magnitude other than zero, where there is only one and an f32 holds its inverse, too.
    fn constant(&self) -> Option<f32> {
        let most = self.most.iter().max().copied().unwrap_or(0);
        let least = self
            .least
            .iter()
            .min()
            .map_or(0, |bits| bits.wrapping_add(1));
        let scale = f32::from_bits(most);
        (most == least && most > 0 && scale.is_normal() && (1.0 / scale).is_normal())
            .then_some(scale)
    }
}

/// Ternary weights of Transformers' packed form: byte (r, c) of `[rows / 4, cols]` holds, from the low bits up, rows
/// r, r + rows/4, r + rows/2 and r + 3 rows/4 of column c as 0, 1, 2.
///
/// # Errors
/// When a code is 3 or the scale no number above zero.
pub(crate) fn unpack(
    data: &[u8],
    (rows, cols): (usize, usize),
    scale: f32,
) -> Result<Trits, MasterError> {
    if !scale.is_finite() || scale <= 0.0 {
        return Err(MasterError::Scale { found: scale });
    }
    if has_code_3(data) {
        let offset = data.iter().position(|&byte| has_code_3(&[byte]));
        return Err(MasterError::Code {
            offset: offset.unwrap_or(0),
        });
    }
    let mut weights = vec![0i8; rows * cols];
    for (quarter, weights) in weights.chunks_exact_mut(data.len()).enumerate() {
        match quarter {
            0 => codes_at::<0>(data, weights),
            1 => codes_at::<2>(data, weights),
            2 => codes_at::<4>(data, weights),
            _ => codes_at::<6>(data, weights),
        }
    }
    Ok(Trits {
        rows,
        cols,
        weights,
        scale,
    })
}

/// The code at one place of each byte; a constant shift makes this a few vector instructions.
fn codes_at<const SHIFT: usize>(data: &[u8], weights: &mut [i8]) {
    for (w, byte) in weights.iter_mut().zip(data) {
        *w = (byte >> SHIFT & 3) as i8 - 1;
    }
}

/// Reorders the rows of each head from RoPE pairs (i, i + dims/2) to pairs (2i, 2i + 1), as the graph of `llama` wants them.
/// `values`: `[heads * dims, row]`.
pub(crate) fn interleave<T: Copy>(values: &mut [T], heads: usize, row: usize) {
    let head = values.len() / heads.max(1);
    let half = head / row / 2;
    let mut scratch = Vec::with_capacity(head);
    for head in values.chunks_exact_mut(head.max(1)) {
        scratch.clear();
        for i in 0..half {
            for b in 0..2 {
                let from = (b * half + i) * row;
                scratch.extend_from_slice(&head[from..from + row]);
            }
        }
        head.copy_from_slice(&scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_kernels::{f32_to_bf16, f32_to_f16};

    fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        let one = |x: &f32| match dtype {
            Dtype::BF16 => f32_to_bf16(*x).to_le_bytes().to_vec(),
            Dtype::F16 => f32_to_f16(*x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(one).collect()
    }

    #[test]
    fn absmean_rounds_half_to_even() {
        // Mean 2: half of it, 1, is a tie and becomes 0.
        let values = [4.0, -1.0, 1.0, 1.25, -1.25, 0.0, 5.5, -2.0];
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
            let trits = quantize(dtype, &bytes(dtype, &values), (2, 4), Masters::Absmean).unwrap();
            assert_eq!(trits.scale, 2.0, "{dtype}");
            assert_eq!(trits.weights, [1, 0, 0, 1, -1, 0, 1, -1], "{dtype}");
        }
    }

    #[test]
    fn long_matrices_are_read_to_their_end() {
        let values: Vec<f32> = (0..3 * 4099).map(|i| [1.0, -0.25, 0.75][i % 3]).collect();
        let data = bytes(Dtype::F32, &values);
        let trits = quantize(Dtype::F32, &data, (3, 4099), Masters::Absmean).unwrap();
        assert_eq!(trits.scale, 2.0 / 3.0);
        let expected: Vec<i8> = (0..3 * 4099).map(|i| [1, 0, 1][i % 3]).collect();
        assert_eq!(trits.weights, expected);
    }

    #[test]
    fn ternary_values_keep_their_scale() {
        let values = [0.75, 0.0, -0.75, 0.0, 0.0, 0.0, 0.75, 0.0];
        for masters in [Masters::Absmean, Masters::Ternary] {
            let data = bytes(Dtype::BF16, &values);
            let trits = quantize(Dtype::BF16, &data, (1, 8), masters).unwrap();
            assert_eq!(trits.scale, 0.75);
            assert_eq!(trits.weights, [1, 0, -1, 0, 0, 0, 1, 0]);
        }
        let zeros = quantize(Dtype::F32, &[0; 32], (1, 8), Masters::Absmean).unwrap();
        assert_eq!((zeros.scale, zeros.zeros()), (1e-5, 8));
    }

    #[test]
    fn what_is_no_ternary_matrix_is_refused() {
        let mut values = vec![0.5; 5000];
        values[4500] = 0.25;
        let real = quantize(
            Dtype::F32,
            &bytes(Dtype::F32, &values),
            (1, 5000),
            Masters::Ternary,
        );
        assert_eq!(real, Err(MasterError::NotTernary));
        values[4999] = f32::INFINITY;
        let infinite = quantize(
            Dtype::F32,
            &bytes(Dtype::F32, &values),
            (1, 5000),
            Masters::Absmean,
        );
        assert_eq!(
            infinite.unwrap_err().to_string(),
            "inf at index 4999, expected finite weights"
        );
        assert!(matches!(
            quantize(Dtype::I64, &[0; 64], (1, 8), Masters::Absmean),
            Err(MasterError::Dtype { .. })
        ));
        assert_eq!(
            unpack(&[0x55, 0x71], (4, 2), 1.0),
            Err(MasterError::Code { offset: 1 })
        );
        assert!(unpack(&[0x55], (4, 1), f32::NAN).is_err());
    }

    #[test]
    fn packed_rows_lie_a_quarter_apart() {
        // Row r of 8 rows and one column: bits 2 * (r / 2) of byte r % 2.
        let codes = [2u8, 0, 1, 1, 0, 2, 2, 1];
        let byte = |r: usize| (0..4).fold(0, |b, q| b | codes[2 * q + r] << (2 * q));
        let trits = unpack(&[byte(0), byte(1)], (8, 1), 0.5).unwrap();
        assert_eq!(trits.weights, codes.map(|c| c as i8 - 1));
        assert_eq!(trits.scale, 0.5);
    }

    #[test]
    fn heads_are_interleaved_one_by_one() {
        // Two heads of four rows, two columns.
        let mut rows: Vec<usize> = (0..16).collect();
        interleave(&mut rows, 2, 2);
        assert_eq!(rows, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
    }
}
