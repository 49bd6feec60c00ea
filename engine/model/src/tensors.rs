//! Turns tensors of a file into what the kernels compute with. I2_S and dense tensors stay where they are in the mapped
//! file; TQ1_0 and TQ2_0 are rewritten as I2_S, which loses nothing when all blocks of a tensor share one scale; so are
//! bitnet.cpp's TL1 and TL2, and matrices whose rows are no whole blocks of I2_S: their rows are filled up with zeros.

use bitnet_kernels::{
    DenseMatrix, DenseType, MatrixError, PackedMatrix, SharedBytes, bf16_to_f32, f16_to_f32,
};

use crate::convert::lookup::Tiles;
use crate::convert::packings::{I2sLayout, PackError, Trits, i2_s_codes};
use crate::convert::{exact_scale, refined_scale};
use crate::facts::{
    self, DENSE_TYPES, FactsError, Linear, ModelFacts, Norm, OUTPUT_NORM, ROPE_FREQS,
    TERNARY_BLOCK, TERNARY_TYPES, TOKEN_EMBD, VECTOR_TYPES, padded_cols,
};
use crate::gguf::{Gguf, TensorInfo, TensorType, grouped};

/// Weights per block of TQ1_0 and TQ2_0.
const TQ_BLOCK: usize = 256;
/// Four I2_S codes of zero.
const ZEROS: u8 = 0b01_01_01_01;

/// Why a tensor can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TensorError {
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error("tensor `{name}`: {source}")]
    Matrix { name: String, source: MatrixError },
    #[error("tensor `{name}` has the scale {found}, expected a finite number that isn't negative")]
    Scale { name: String, found: f32 },
    #[error(
        "tensor `{name}` ({ty}) has the scales {first} and {other} (block {}); only one scale per tensor can be held exactly",
        grouped(*block as u64)
    )]
    Scales {
        name: String,
        ty: TensorType,
        first: f32,
        other: f32,
        block: usize,
    },
    #[error("tensor `{name}` ({ty}) holds a weight of +2 scales in block {}, expected -1, 0 and +1 only", grouped(*block as u64))]
    NotTernary {
        name: String,
        ty: TensorType,
        block: usize,
    },
    #[error("tensor `{name}`: {source}")]
    Packing { name: String, source: PackError },
    #[error("tensor `{name}` holds {found} at index {}", grouped(*index as u64))]
    NotFinite {
        name: String,
        index: usize,
        found: f32,
    },
}

impl TensorError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            TensorError::Facts(error) => error.hint(),
            TensorError::Scales { .. } | TensorError::NotTernary { .. } => Some(
                "the weights are not ternary with one scale per matrix; use the model's I2_S file",
            ),
            TensorError::Scale { .. } | TensorError::NotFinite { .. } => {
                Some("the file may be damaged; compare its checksum with the source")
            }
            TensorError::Matrix {
                source: MatrixError::Code { .. },
                ..
            } => {
                Some("`--kernel i2_s` takes the weights as they are; a sound file has no such code")
            }
            TensorError::Packing {
                source: PackError::Tiles(_),
                ..
            } => Some(
                "the tile sizes are not in the file: name those it was made with, `--lookup-tiles ROWSxCOLS=BM/BK`",
            ),
            TensorError::Matrix { .. } | TensorError::Packing { .. } => None,
        }
    }
}

/// A ternary matrix of a layer: `[rows, cols]` as [`ModelFacts::linear_shape`] says.
///
/// # Errors
/// When the tensor is missing, of another shape or type, or its content isn't ternary with one scale.
pub fn linear(
    gguf: &Gguf,
    facts: &ModelFacts,
    layer: usize,
    linear: Linear,
) -> Result<PackedMatrix, TensorError> {
    let (rows, cols) = facts.linear_shape(linear);
    ternary(
        gguf,
        &linear.weight_name(layer),
        rows,
        cols,
        &facts.lookup_tiles,
    )
}

/// The bias of one of the attention's linears, `[rows]`; few models have any.
///
/// # Errors
/// When the tensor is there with another shape or type.
pub fn bias(
    gguf: &Gguf,
    facts: &ModelFacts,
    layer: usize,
    linear: Linear,
) -> Result<Option<Vec<f32>>, TensorError> {
    let (rows, _) = facts.linear_shape(linear);
    optional_vector(gguf, &linear.bias_name(layer), rows)
}

/// A norm of a layer, [`ModelFacts::norm_len`] long.
///
/// # Errors
/// When the tensor is missing or of another shape or type.
pub fn norm(
    gguf: &Gguf,
    facts: &ModelFacts,
    layer: usize,
    norm: Norm,
) -> Result<Vec<f32>, TensorError> {
    vector(gguf, &norm.name(layer), facts.norm_len(norm))
}

/// The norm of a linear's own input, as long as the linear's rows.
///
/// # Errors
/// When the tensor is missing or of another shape or type.
pub fn norm_in(
    gguf: &Gguf,
    facts: &ModelFacts,
    layer: usize,
    linear: Linear,
) -> Result<Vec<f32>, TensorError> {
    let (_, cols) = facts.linear_shape(linear);
    vector(gguf, &linear.norm_in_name(layer), cols)
}

/// The norm before the output head, `[n_embd]`.
///
/// # Errors
/// When the tensor is missing or of another shape or type.
pub fn output_norm(gguf: &Gguf, facts: &ModelFacts) -> Result<Vec<f32>, TensorError> {
    vector(gguf, OUTPUT_NORM, facts.n_embd)
}

/// The token embedding, `[n_vocab, n_embd]`.
///
/// # Errors
/// When the tensor is missing or of another shape or type.
pub fn embedding(gguf: &Gguf, facts: &ModelFacts) -> Result<DenseMatrix, TensorError> {
    dense(gguf, TOKEN_EMBD, facts.n_vocab, facts.n_embd)
}

/// The output head, `[n_vocab, n_embd]`; the embedding's bytes when tied.
///
/// # Errors
/// When the tensor is missing or of another shape or type.
pub fn head(gguf: &Gguf, facts: &ModelFacts) -> Result<DenseMatrix, TensorError> {
    dense(gguf, facts.head_name(), facts.n_vocab, facts.n_embd)
}

/// What RoPE's frequencies are divided by, `[rope.dims / 2]`; `None` for a model without.
///
/// # Errors
/// When the tensor is there with another shape or type.
pub fn rope_factors(gguf: &Gguf, facts: &ModelFacts) -> Result<Option<Vec<f32>>, TensorError> {
    optional_vector(gguf, ROPE_FREQS, facts.rope.dims / 2)
}

/// A ternary matrix by name, with [`padded_cols`] of `cols`; `tiles` of TL1 and TL2 shapes. A one-element tensor `….scale`
/// beside it is multiplied onto its scale.
///
/// # Errors
/// When the tensor is missing, of another shape or type, or its content isn't ternary with one scale.
pub fn ternary(
    gguf: &Gguf,
    name: &str,
    rows: usize,
    cols: usize,
    tiles: &[Tiles],
) -> Result<PackedMatrix, TensorError> {
    let info = facts::check(gguf, name, &[cols as u64, rows as u64], TERNARY_TYPES)?;
    let data = gguf.data(info);
    let (codes, scale) = match info.ty {
        TensorType::I2S if cols.is_multiple_of(TERNARY_BLOCK) => i2_s_parts(&data, rows * cols / 4),
        TensorType::I2S | TensorType::TL1 | TensorType::TL2 => {
            repacked_as_i2_s(info, &data, tiles)?
        }
        _ => {
            let (codes, scale) = tq_to_i2_s(info, &data, rows * cols / 4)?;
            (codes, refined_scale(scale, exact_scale(gguf, name)))
        }
    };
    let scale = scale * extra_scale(gguf, name)?;
    if !scale.is_finite() || scale < 0.0 {
        return Err(TensorError::Scale {
            name: name.to_owned(),
            found: scale,
        });
    }
    let matrix = PackedMatrix::i2_s(codes, rows, padded_cols(cols), scale);
    matrix.map_err(|source| TensorError::Matrix {
        name: name.to_owned(),
        source,
    })
}

/// A dense matrix by name.
///
/// # Errors
/// When the tensor is missing or of another shape or type.
pub fn dense(
    gguf: &Gguf,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<DenseMatrix, TensorError> {
    let info = facts::check(gguf, name, &[cols as u64, rows as u64], DENSE_TYPES)?;
    let ty = match info.ty {
        TensorType::F32 => DenseType::F32,
        TensorType::F16 => DenseType::F16,
        TensorType::BF16 => DenseType::BF16,
        TensorType::Q8_0 => DenseType::Q8_0,
        TensorType::Q6K => DenseType::Q6_K,
        _ => DenseType::Q4_0,
    };
    DenseMatrix::new(gguf.data(info), ty, rows, cols).map_err(|source| TensorError::Matrix {
        name: name.to_owned(),
        source,
    })
}

/// A vector of floats by name, all of them finite.
///
/// # Errors
/// When the tensor is missing, of another shape or type, or holds infinity or NaN.
pub fn vector(gguf: &Gguf, name: &str, len: usize) -> Result<Vec<f32>, TensorError> {
    let info = facts::check(gguf, name, &[len as u64], VECTOR_TYPES)?;
    let values = floats(info.ty, &gguf.data(info));
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(index) => Err(TensorError::NotFinite {
            name: name.to_owned(),
            index,
            found: values[index],
        }),
    }
}

fn optional_vector(gguf: &Gguf, name: &str, len: usize) -> Result<Option<Vec<f32>>, TensorError> {
    gguf.tensor(name)
        .map(|_| vector(gguf, name, len))
        .transpose()
}

/// `blk.0.attn_q.scale` beside `blk.0.attn_q.weight`; 1 without.
fn extra_scale(gguf: &Gguf, name: &str) -> Result<f32, TensorError> {
    let Some(stem) = name.strip_suffix("weight") else {
        return Ok(1.0);
    };
    let scale = optional_vector(gguf, &format!("{stem}scale"), 1)?;
    Ok(scale.map_or(1.0, |scale| scale[0]))
}

fn floats(ty: TensorType, data: &[u8]) -> Vec<f32> {
    let halves = || {
        data.as_chunks::<2>()
            .0
            .iter()
            .map(|half| u16::from_le_bytes(*half))
    };
    match ty {
        TensorType::F16 => halves().map(f16_to_f32).collect(),
        TensorType::BF16 => halves().map(bf16_to_f32).collect(),
        _ => data
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| f32::from_le_bytes(*word))
            .collect(),
    }
}

/// Codes, then one f32.
fn i2_s_parts(data: &SharedBytes, code_bytes: usize) -> (SharedBytes, f32) {
    let slice = |range| {
        data.slice(range)
            .expect("the reader checked the tensor's length")
    };
    let tail = slice(code_bytes..code_bytes + 4);
    let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    (slice(0..code_bytes), scale)
}

/// Of TL1 and TL2, and of I2_S whose blocks run across rows. Each row begins a block.
fn repacked_as_i2_s(
    info: &TensorInfo,
    data: &[u8],
    tiles: &[Tiles],
) -> Result<(SharedBytes, f32), TensorError> {
    let shape = (info.rows() as usize, info.cols() as usize);
    let unpack = || {
        let tiles = match info.ty {
            TensorType::I2S => None,
            _ => Some(Tiles::find(info.ty, shape.0, shape.1, tiles)?),
        };
        let layout = I2sLayout::default();
        Trits::unpack(info.ty, data, shape, layout, tiles, None)
    };
    let trits = unpack().map_err(|source| TensorError::Packing {
        name: info.name.clone(),
        source,
    })?;
    let mut codes = Vec::with_capacity(shape.0 * padded_cols(shape.1) / 4);
    for row in trits.weights.chunks(shape.1.max(1)) {
        i2_s_codes(row, &mut codes);
    }
    Ok((SharedBytes::new(codes), trits.scale))
}

fn tq_to_i2_s(
    info: &TensorInfo,
    data: &[u8],
    code_bytes: usize,
) -> Result<(SharedBytes, f32), TensorError> {
    let convert: fn(&[u8], &mut [u8]) = if info.ty == TensorType::TQ1_0 {
        tq1_0_codes
    } else {
        tq2_0_codes
    };
    let block_bytes = info.ty.block().map_or(1, |block| block.1 as usize);
    let mut codes = vec![0; code_bytes];
    let mut scale = None;
    let blocks = data.chunks_exact(block_bytes);
    for (block, (source, codes)) in blocks.zip(codes.chunks_exact_mut(TQ_BLOCK / 4)).enumerate() {
        let d = f16_to_f32(u16::from_le_bytes([
            source[block_bytes - 2],
            source[block_bytes - 1],
        ]));
        convert(source, codes);
        if d == 0.0 {
            codes.fill(ZEROS);
        } else if codes.iter().any(|b| b & b >> 1 & 0b01_01_01_01 != 0) {
            return Err(TensorError::NotTernary {
                name: info.name.clone(),
                ty: info.ty,
                block,
            });
        }
        if codes.iter().all(|&b| b == ZEROS) && d.is_finite() {
            continue;
        }
        let first = *scale.get_or_insert(d);
        if first != d {
            return Err(TensorError::Scales {
                name: info.name.clone(),
                ty: info.ty,
                first,
                other: d,
                block,
            });
        }
    }
    Ok((SharedBytes::new(codes), scale.unwrap_or(1.0)))
}

/// Both formats put weight `32 g + m` of 128 into byte `m`: TQ2_0 from the low bits up, I2_S from the high bits down.
fn tq2_0_codes(block: &[u8], codes: &mut [u8]) {
    for (code, &b) in codes.iter_mut().zip(block) {
        *code = b << 6 | (b & 0b1100) << 2 | (b >> 2 & 0b1100) | b >> 6;
    }
}

/// Five weights per byte, base 3, as a fraction of 256.
fn tq1_0_codes(block: &[u8], codes: &mut [u8]) {
    codes.fill(0);
    let mut put = |weight: usize, byte: u8, n: usize| {
        let t = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
        let trit = ((u16::from(t) * 3) >> 8) as u8;
        codes[weight / 128 * 32 + weight % 32] |= trit << (6 - weight % 128 / 32 * 2);
    };
    for n in 0..5 {
        (0..32).for_each(|m| put(32 * n + m, block[m], n));
        (0..16).for_each(|m| put(160 + 16 * n + m, block[32 + m], n));
    }
    for n in 0..4 {
        (0..4).for_each(|m| put(240 + 4 * n + m, block[48 + m], n));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Overrides;
    use crate::synth::header::{ALIGNMENT, Header};
    use crate::synth::{self, Shape};
    use bitnet_kernels::f32_to_f16;

    /// A file of one tensor.
    fn file(name: &str, dims: &[u64], ty: TensorType, data: &[u8]) -> Gguf {
        files(&[(name, dims, ty, data)])
    }

    fn files(tensors: &[(&str, &[u64], TensorType, &[u8])]) -> Gguf {
        let mut header = Header::default();
        for (name, dims, ty, data) in tensors {
            assert_eq!(header.tensor(name, dims, *ty), data.len() as u64);
        }
        let mut bytes = header.bytes();
        for (.., data) in tensors {
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        }
        Gguf::from_bytes(SharedBytes::new(bytes)).unwrap()
    }

    fn weights(n: usize) -> Vec<i8> {
        let mut state = 1u32;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as i8 % 3
            })
            .map(|w| w.signum())
            .collect()
    }

    /// Encodes as the fact sheet describes it.
    fn tq2_0(weights: &[i8], d: f32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in weights.chunks(256) {
            let mut qs = [0u8; 64];
            for (j, l, m) in cube([2, 4, 32]) {
                qs[32 * j + m] |= ((block[128 * j + 32 * l + m] + 1) as u8) << (2 * l);
            }
            bytes.extend_from_slice(&qs);
            bytes.extend_from_slice(&f32_to_f16(d).to_le_bytes());
        }
        bytes
    }

    fn tq1_0(weights: &[i8], d: f32) -> Vec<u8> {
        let byte = |trits: [i8; 5]| {
            let v = trits.iter().fold(0u32, |v, &w| v * 3 + (w + 1) as u32);
            (v * 256).div_ceil(243) as u8
        };
        let mut bytes = Vec::new();
        for block in weights.chunks(256) {
            (0..32).for_each(|m| bytes.push(byte(std::array::from_fn(|n| block[32 * n + m]))));
            (0..16)
                .for_each(|m| bytes.push(byte(std::array::from_fn(|n| block[160 + 16 * n + m]))));
            (0..4).for_each(|j| {
                bytes.push(byte(std::array::from_fn(|n| {
                    if n < 4 { block[240 + 4 * n + j] } else { -1 }
                })));
            });
            bytes.extend_from_slice(&f32_to_f16(d).to_le_bytes());
        }
        bytes
    }

    fn cube([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
    }

    fn unpack(matrix: &PackedMatrix) -> Vec<i8> {
        let mut weights = vec![0; matrix.rows() * matrix.cols()];
        for (r, row) in weights.chunks_mut(matrix.cols()).enumerate() {
            matrix.ternary_row(r, row);
        }
        weights
    }

    #[test]
    fn tq_tensors_become_the_same_weights() {
        let expected = weights(3 * 512);
        for (ty, data) in [
            (TensorType::TQ1_0, tq1_0(&expected, 0.75)),
            (TensorType::TQ2_0, tq2_0(&expected, 0.75)),
        ] {
            let matrix = ternary(&file("w", &[512, 3], ty, &data), "w", 3, 512, &[]).unwrap();
            assert_eq!(unpack(&matrix), expected, "{ty}");
            assert_eq!(matrix.scale(), 0.75);
        }
    }

    #[test]
    fn tq_scales_must_agree_where_they_matter() {
        let expected = weights(512);
        for (ty, encode) in [
            (TensorType::TQ1_0, tq1_0 as fn(&[i8], f32) -> Vec<u8>),
            (TensorType::TQ2_0, tq2_0),
        ] {
            let pair = |d| [encode(&expected[..256], 0.5), encode(&expected[256..], d)].concat();
            let load = |data: &[u8]| ternary(&file("w", &[512, 1], ty, data), "w", 1, 512, &[]);
            match load(&pair(0.25)) {
                Err(TensorError::Scales {
                    first,
                    other,
                    block,
                    ..
                }) => assert_eq!((first, other, block), (0.5, 0.25, 1)),
                other => panic!("{other:?}"),
            }
            let mut zeros = expected.clone();
            zeros[256..].fill(0);
            assert_eq!(unpack(&load(&pair(0.0)).unwrap()), zeros, "{ty}");
            let silent = [encode(&expected[..256], 0.5), encode(&[0; 256], 9.0)].concat();
            assert_eq!(unpack(&load(&silent).unwrap()), zeros, "{ty}");
            assert!(load(&pair(f32::INFINITY)).is_err());
        }
    }

    #[test]
    fn the_fourth_code_of_tq2_0_is_refused() {
        let mut data = tq2_0(&weights(256), 1.0);
        data[7] |= 0b11 << 4;
        let error = ternary(
            &file("w", &[256, 1], TensorType::TQ2_0, &data),
            "w",
            1,
            256,
            &[],
        )
        .unwrap_err();
        assert!(
            matches!(error, TensorError::NotTernary { block: 0, .. }),
            "{error}"
        );
    }

    /// The fact sheet's example: w[0] = +1, w[33] = -1, w[127] = +1.
    #[test]
    fn i2_s_codes_and_scale() {
        let mut data = vec![0x55; 32];
        (data[0], data[1], data[31]) = (0x95, 0x45, 0x56);
        data.extend_from_slice(&1.2188548f32.to_le_bytes());
        data.resize(64, 0xee);
        let extra = 2f32.to_le_bytes();
        let gguf = files(&[
            ("blk.0.attn_q.weight", &[128, 1], TensorType::I2S, &data),
            ("blk.0.attn_q.scale", &[1], TensorType::F32, &extra),
        ]);
        let matrix = ternary(&gguf, "blk.0.attn_q.weight", 1, 128, &[]).unwrap();
        assert_eq!(matrix.scale(), 2.0 * 1.2188548);
        let weights = unpack(&matrix);
        let set: Vec<(usize, i8)> = weights
            .into_iter()
            .enumerate()
            .filter(|w| w.1 != 0)
            .collect();
        assert_eq!(set, [(0, 1), (33, -1), (127, 1)]);
    }

    #[test]
    fn lookup_layouts_become_the_same_weights() {
        let (rows, cols) = (128, 512);
        let trits = Trits {
            rows,
            cols,
            weights: weights(rows * cols),
            scale: 1.2188548,
        };
        for ty in [TensorType::TL1, TensorType::TL2] {
            let tiles = Tiles::find_or_choose(ty, rows, cols, &[]).unwrap();
            let mut data = Vec::new();
            trits.pack(ty, Some(tiles), &mut data).unwrap();
            let mut header = Header::default();
            header.str("general.architecture", "bitnet");
            header.u32("general.file_type", 39);
            header.tensor("w", &[cols as u64, rows as u64], ty);
            let mut bytes = header.bytes();
            bytes.extend_from_slice(&data);
            let gguf = Gguf::from_bytes(SharedBytes::new(bytes)).unwrap();
            let matrix = ternary(&gguf, "w", rows, cols, &[tiles]).unwrap();
            assert_eq!(unpack(&matrix), trits.weights, "{ty}");
            assert_eq!(matrix.scale(), trits.scale);
            let error = ternary(&gguf, "w", rows, cols, &[]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("tensor `w`: no tile sizes are known for {ty} matrices of 128 x 512")
            );
            assert!(error.hint().unwrap().contains("--lookup-tiles"));
        }
    }

    #[test]
    fn bad_scales_and_norms_are_refused() {
        for scale in [f32::NAN, f32::INFINITY, -1.0] {
            let mut data = vec![0x55; 32];
            data.extend_from_slice(&scale.to_le_bytes());
            data.resize(64, 0);
            let error = ternary(
                &file("w", &[128, 1], TensorType::I2S, &data),
                "w",
                1,
                128,
                &[],
            )
            .unwrap_err();
            assert!(matches!(error, TensorError::Scale { .. }), "{error}");
        }
        let data: Vec<u8> = [1.0, f32::NAN]
            .iter()
            .flat_map(|v: &f32| v.to_le_bytes())
            .collect();
        let error = vector(&file("n", &[2], TensorType::F32, &data), "n", 2).unwrap_err();
        assert_eq!(error.to_string(), "tensor `n` holds NaN at index 1");
        let error = vector(&file("n", &[2], TensorType::F32, &data), "n", 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `n` has the shape [2], expected [3]"
        );
    }

    #[test]
    fn every_tensor_of_a_tiny_model_loads() {
        for name in ["tiny", "tiny-silu", "tiny-llama"] {
            let bytes = synth::to_bytes(&Shape::preset(name).unwrap(), 3).unwrap();
            let gguf = Gguf::from_bytes(SharedBytes::new(bytes)).unwrap();
            let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
            for layer in 0..facts.n_layer {
                for part in Linear::ALL {
                    let matrix = linear(&gguf, &facts, layer, part).unwrap();
                    let zeros = unpack(&matrix).iter().filter(|&&w| w == 0).count();
                    let share = zeros as f64 / (matrix.rows() * matrix.cols()) as f64;
                    assert!((share - 0.42).abs() < 0.02, "{share}");
                    assert!(bias(&gguf, &facts, layer, part).unwrap().is_none());
                }
                for &part in facts.norms() {
                    norm(&gguf, &facts, layer, part).unwrap();
                }
            }
            output_norm(&gguf, &facts).unwrap();
            embedding(&gguf, &facts).unwrap();
            head(&gguf, &facts).unwrap();
            assert!(rope_factors(&gguf, &facts).unwrap().is_none());
        }
    }
}
