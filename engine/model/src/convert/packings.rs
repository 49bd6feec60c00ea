//! Ternary matrices between the packings of GGUF files. In the middle are plain weights, one i8 of -1, 0 or +1 each.
//!
//! | Packing | Bits | Scale |
//! |---|---|---|
//! | I2_S | 2: codes 0, 1, 2, 32 bytes per 128 weights, the first 32 in the highest bits; rows follow each other without gaps | one f32 behind the codes |
//! | TL1, TL2 | 2 and 1.67: see `lookup` | one f32 behind the codes |
//! | TQ2_0 | 2 + f16 per 256 weights, 32 bytes per 128, the first 32 in the lowest bits | f16 in each block |
//! | TQ1_0 | 1.6 + f16 per 256 weights, five weights to a byte | f16 in each block |

use bitnet_kernels::{f16_to_f32, f32_to_f16};
use sha2::{Digest, Sha256};

use super::lookup::{self, Tiles, TilesError};
use crate::gguf::TensorType;

/// Bytes behind the codes of I2_S, TL1 and TL2; the first four hold the scale.
const TAIL_BYTES: usize = 32;
/// Weights per block of TQ1_0 and TQ2_0.
const TQ_BLOCK: usize = 256;

/// A ternary matrix: `[rows, cols]` weights of -1, 0 and +1 and what they are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub struct Trits {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Row-major.
    pub weights: Vec<i8>,
    /// Finite, not negative.
    pub scale: f32,
}

/// How the bytes of I2_S are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum I2sLayout {
    /// Blocks of 128 weights in 32 bytes: Microsoft's files, and what this program writes.
    #[default]
    Blocks128,
    /// Blocks of 64 weights in 16 bytes: what bitnet.cpp built for ARM has written since January 2026.
    Blocks64,
}

/// Why weights can't change their packing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PackError {
    #[error(transparent)]
    Tiles(#[from] TilesError),
    #[error("{ty} needs rows of a multiple of {block} weights, they have {cols}")]
    Row {
        ty: TensorType,
        cols: usize,
        block: usize,
    },
    #[error("I2_S holds whole blocks of 128 weights, not {weights}")]
    Blocks { weights: usize },
    #[error("the code 3 at weight {index}, expected 0, 1 and 2 only")]
    Code { index: usize },
    #[error(
        "the scales {first} and {other} (block {block}), only one scale per tensor can be held exactly"
    )]
    Scales {
        first: f32,
        other: f32,
        block: usize,
    },
    #[error("the scale {found}, expected a finite number that isn't negative")]
    Scale { found: f32 },
    #[error("the scale {found}, which f16 cannot hold; I2_S, TL1 and TL2 can")]
    HalfScale { found: f32 },
    #[error("{found} bytes, expected {expected}")]
    Length { found: usize, expected: usize },
}

impl Trits {
    /// SHA-256 of the weights, the same for every packing: of shape and I2_S codes, the last block filled up with zeros.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((self.rows as u64).to_le_bytes());
        hash.update((self.cols as u64).to_le_bytes());
        let mut codes = Vec::with_capacity(CHUNK / 4);
        for chunk in self.weights.chunks(CHUNK) {
            codes.clear();
            i2_s_codes(chunk, &mut codes);
            hash.update(&codes);
        }
        hash.finalize().into()
    }

    /// [`Trits::digest`] and the scale of an I2_S tensor `[rows, cols]` of whole blocks, whose codes are what is hashed; `None`
    /// for bytes that are no such tensor.
    pub(crate) fn digest_of_i2_s(
        data: &[u8],
        (rows, cols): (usize, usize),
    ) -> Option<([u8; 32], f32)> {
        let (codes, scale) = codes_and_scale(data, rows * cols / 4).ok()?;
        if !(rows * cols).is_multiple_of(128) || has_code_3(codes) {
            return None;
        }
        Some((digest_of_codes((rows, cols), codes), scale))
    }

    /// Weights that are zero, of all.
    pub fn zeros(&self) -> usize {
        // Short sums of bytes, 255 at most; one long count of words would be ten times as slow.
        let zeros = |weights: &[i8]| weights.iter().map(|&w| u8::from(w == 0)).sum::<u8>();
        let chunks = self.weights.chunks(u8::MAX as usize);
        chunks.map(|weights| usize::from(zeros(weights))).sum()
    }

    /// The bytes of a GGUF tensor of type `ty`; `tiles` for TL1 and TL2.
    ///
    /// # Errors
    /// When the type can't hold the shape or the scale.
    ///
    /// # Panics
    /// When `ty` isn't ternary, or TL1 and TL2 come without tiles.
    pub fn pack(
        &self,
        ty: TensorType,
        tiles: Option<Tiles>,
        out: &mut Vec<u8>,
    ) -> Result<(), PackError> {
        out.clear();
        let whole_rows = |block: usize| {
            if self.cols.is_multiple_of(block) {
                return Ok(());
            }
            Err(PackError::Row {
                ty,
                cols: self.cols,
                block,
            })
        };
        match ty {
            TensorType::I2S => {
                whole_rows(128)?;
                i2_s_codes(&self.weights, out);
            }
            TensorType::TL1 | TensorType::TL2 => {
                let tiles = tiles.expect("look-up layouts come with their tiles");
                lookup::pack(ty, tiles, &self.weights, out);
                let dims = [self.cols as u64, self.rows as u64];
                let bytes = ty.data_bytes(&dims).expect("the tiles suit the shape") as usize;
                out.resize(bytes - TAIL_BYTES, 0);
            }
            TensorType::TQ1_0 | TensorType::TQ2_0 => {
                whole_rows(TQ_BLOCK)?;
                let half = half_scale(self.scale)?;
                for block in self.weights.as_chunks::<TQ_BLOCK>().0 {
                    match ty {
                        TensorType::TQ1_0 => tq1_0_block(block, out),
                        _ => tq2_0_block(block, out),
                    }
                    out.extend_from_slice(&half.to_le_bytes());
                }
                return Ok(());
            }
            _ => panic!("{ty} is no ternary packing"),
        }
        let codes = out.len();
        out.extend_from_slice(&self.scale.to_le_bytes());
        out.resize(codes + TAIL_BYTES, 0);
        Ok(())
    }

    /// The matrix `[rows, cols]` in the bytes of a GGUF tensor of type `ty`; `tiles` for TL1 and TL2. `exact_scale` stands in
    /// for the f16 scale of TQ1_0 and TQ2_0 when it rounds to it.
    ///
    /// # Errors
    /// When the bytes are not such a matrix.
    ///
    /// # Panics
    /// As [`Trits::pack`].
    pub fn unpack(
        ty: TensorType,
        data: &[u8],
        (rows, cols): (usize, usize),
        layout: I2sLayout,
        tiles: Option<Tiles>,
        exact_scale: Option<f32>,
    ) -> Result<Trits, PackError> {
        let (weights, scale) = match ty {
            TensorType::I2S => {
                let weights = rows * cols;
                if !weights.is_multiple_of(128) {
                    return Err(PackError::Blocks { weights });
                }
                let (codes, scale) = codes_and_scale(data, rows * cols / 4)?;
                (i2_s_weights(codes, layout)?, scale)
            }
            TensorType::TL1 | TensorType::TL2 => {
                let dims = [cols as u64, rows as u64];
                let bytes = ty.data_bytes(&dims).unwrap_or(0) as usize;
                let (codes, scale) = codes_and_scale(data, bytes.saturating_sub(TAIL_BYTES))?;
                let tiles = tiles.expect("look-up layouts come with their tiles");
                (lookup::unpack(ty, tiles, codes)?, scale)
            }
            TensorType::TQ1_0 | TensorType::TQ2_0 => {
                tq_weights(ty, data, (rows, cols), exact_scale)?
            }
            _ => panic!("{ty} is no ternary packing"),
        };
        if !scale.is_finite() || scale < 0.0 {
            return Err(PackError::Scale { found: scale });
        }
        Ok(Trits {
            rows,
            cols,
            weights,
            scale,
        })
    }
}

fn digest_of_codes((rows, cols): (usize, usize), codes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((rows as u64).to_le_bytes());
    hash.update((cols as u64).to_le_bytes());
    hash.update(codes);
    hash.finalize().into()
}

/// Weights hashed at a time; a multiple of 128.
const CHUNK: usize = 1 << 16;

fn half_scale(scale: f32) -> Result<u16, PackError> {
    let half = f32_to_f16(scale);
    let kept = f16_to_f32(half);
    if kept.is_infinite() || (kept == 0.0 && scale != 0.0) {
        return Err(PackError::HalfScale { found: scale });
    }
    Ok(half)
}

fn codes_and_scale(data: &[u8], code_bytes: usize) -> Result<(&[u8], f32), PackError> {
    let wrong = PackError::Length {
        found: data.len(),
        expected: code_bytes + TAIL_BYTES,
    };
    let (codes, tail) = data.split_at_checked(code_bytes).ok_or(wrong.clone())?;
    let scale = tail.first_chunk::<4>().ok_or(wrong)?;
    Ok((codes, f32::from_le_bytes(*scale)))
}

/// Appends I2_S codes; a last block of fewer than 128 weights is filled up with zeros.
pub(crate) fn i2_s_codes(weights: &[i8], out: &mut Vec<u8>) {
    let (blocks, rest) = weights.as_chunks::<128>();
    let start = out.len();
    out.resize(start + blocks.len() * 32, 0);
    let (bytes, _) = out[start..].as_chunks_mut::<32>();
    for (bytes, block) in bytes.iter_mut().zip(blocks) {
        i2_s_block(block, bytes);
    }
    if !rest.is_empty() {
        let mut block = [0; 128];
        block[..rest.len()].copy_from_slice(rest);
        let mut bytes = [0; 32];
        i2_s_block(&block, &mut bytes);
        out.extend_from_slice(&bytes);
    }
}

fn i2_s_block(block: &[i8; 128], bytes: &mut [u8; 32]) {
    let code = |i: usize| (block[i] + 1) as u8;
    for (m, byte) in bytes.iter_mut().enumerate() {
        *byte = code(m) << 6 | code(m + 32) << 4 | code(m + 64) << 2 | code(m + 96);
    }
}

/// Whether one of the four codes in any byte is 3.
pub(super) fn has_code_3(codes: &[u8]) -> bool {
    codes.iter().fold(0, |seen, byte| seen | byte & byte >> 1) & 0x55 != 0
}

fn i2_s_weights(codes: &[u8], layout: I2sLayout) -> Result<Vec<i8>, PackError> {
    let mut weights = vec![0i8; codes.len() * 4];
    match layout {
        I2sLayout::Blocks128 => unpack_blocks::<32, 128>(codes, &mut weights),
        I2sLayout::Blocks64 => unpack_blocks::<16, 64>(codes, &mut weights),
    }
    match has_code_3(codes) {
        false => Ok(weights),
        true => Err(code_3(&weights)),
    }
}

/// Codes of 3 became +2.
fn code_3(weights: &[i8]) -> PackError {
    let index = weights.iter().position(|&w| w == 2).unwrap_or(0);
    PackError::Code { index }
}

fn unpack_blocks<const BYTES: usize, const WEIGHTS: usize>(codes: &[u8], weights: &mut [i8]) {
    let blocks = codes.as_chunks::<BYTES>().0.iter();
    for (bytes, block) in blocks.zip(weights.as_chunks_mut::<WEIGHTS>().0) {
        let (quarters, _) = block.as_chunks_mut::<BYTES>();
        let [a, b, c, d] = quarters else {
            unreachable!("a block has four quarters")
        };
        // Shifts by constants, so that each loop is a few vector instructions.
        (0..BYTES).for_each(|i| a[i] = (bytes[i] >> 6) as i8 - 1);
        (0..BYTES).for_each(|i| b[i] = (bytes[i] >> 4 & 3) as i8 - 1);
        (0..BYTES).for_each(|i| c[i] = (bytes[i] >> 2 & 3) as i8 - 1);
        (0..BYTES).for_each(|i| d[i] = (bytes[i] & 3) as i8 - 1);
    }
}

fn tq2_0_block(block: &[i8; TQ_BLOCK], out: &mut Vec<u8>) {
    for half in block.as_chunks::<128>().0 {
        let code = |i: usize| (half[i] + 1) as u8;
        let byte = |m: usize| code(m) | code(m + 32) << 2 | code(m + 64) << 4 | code(m + 96) << 6;
        out.extend((0..32).map(byte));
    }
}

fn tq1_0_block(block: &[i8; TQ_BLOCK], out: &mut Vec<u8>) {
    let byte = |first: usize, step: usize, n: usize| {
        // Base 3, the first weight most significant, as a fraction of 256 that decodes by multiplying.
        let trit = |i: usize| {
            if i < n {
                (block[first + i * step] + 1) as u16
            } else {
                0
            }
        };
        let value = (0..5).fold(0, |value, i| value * 3 + trit(i));
        (value * 256).div_ceil(243) as u8
    };
    out.extend((0..32).map(|m| byte(m, 32, 5)));
    out.extend((0..16).map(|m| byte(160 + m, 16, 5)));
    out.extend((0..4).map(|j| byte(240 + j, 4, 4)));
}

fn tq_weights(
    ty: TensorType,
    data: &[u8],
    (rows, cols): (usize, usize),
    exact_scale: Option<f32>,
) -> Result<(Vec<i8>, f32), PackError> {
    let block_bytes = ty.block().map_or(1, |block| block.1 as usize);
    let expected = rows * cols / TQ_BLOCK * block_bytes;
    if data.len() != expected || !cols.is_multiple_of(TQ_BLOCK) {
        let found = data.len();
        return Err(PackError::Length { found, expected });
    }
    let mut weights = vec![0i8; rows * cols];
    let (mut scale, mut silent) = (None, None);
    let blocks = weights.as_chunks_mut::<TQ_BLOCK>().0;
    for (number, (bytes, block)) in data.chunks_exact(block_bytes).zip(blocks).enumerate() {
        let (codes, half) = bytes.split_at(block_bytes - 2);
        let d = f16_to_f32(u16::from_le_bytes([half[0], half[1]]));
        match ty {
            TensorType::TQ1_0 => tq1_0_weights(codes, block),
            _ => tq2_0_weights(codes, block),
        }
        if d == 0.0 {
            block.fill(0);
        } else if let Some(at) = place_of_code_3(block) {
            let index = number * TQ_BLOCK + at;
            return Err(PackError::Code { index });
        }
        if block.iter().fold(0, |seen, w| seen | w) == 0 && d.is_finite() {
            silent.get_or_insert(d);
            continue;
        }
        let first = *scale.get_or_insert(d);
        if first != d {
            return Err(PackError::Scales {
                first,
                other: d,
                block: number,
            });
        }
    }
    let found = scale.or(silent.filter(|d| *d > 0.0)).unwrap_or(1.0);
    let exact = exact_scale.filter(|exact| f16_to_f32(f32_to_f16(*exact)) == found);
    Ok((weights, exact.unwrap_or(found)))
}

fn place_of_code_3(block: &[i8; TQ_BLOCK]) -> Option<usize> {
    let most = block.iter().fold(-1, |most: i8, &w| most.max(w));
    (most > 1).then(|| block.iter().position(|&w| w > 1))?
}

fn tq2_0_weights(codes: &[u8], block: &mut [i8; TQ_BLOCK]) {
    let halves = codes.as_chunks::<32>().0.iter();
    for (bytes, half) in halves.zip(block.as_chunks_mut::<128>().0) {
        let (quarters, _) = half.as_chunks_mut::<32>();
        let [a, b, c, d] = quarters else {
            unreachable!("half a block has four quarters")
        };
        (0..32).for_each(|i| a[i] = (bytes[i] & 3) as i8 - 1);
        (0..32).for_each(|i| b[i] = (bytes[i] >> 2 & 3) as i8 - 1);
        (0..32).for_each(|i| c[i] = (bytes[i] >> 4 & 3) as i8 - 1);
        (0..32).for_each(|i| d[i] = (bytes[i] >> 6) as i8 - 1);
    }
}

fn tq1_0_weights(codes: &[u8], block: &mut [i8; TQ_BLOCK]) {
    let weight = |byte: u8, n: usize| {
        let t = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
        ((u16::from(t) * 3) >> 8) as i8 - 1
    };
    for n in 0..5 {
        (0..32).for_each(|m| block[32 * n + m] = weight(codes[m], n));
        (0..16).for_each(|m| block[160 + 16 * n + m] = weight(codes[32 + m], n));
    }
    for n in 0..4 {
        (0..4).for_each(|j| block[240 + 4 * n + j] = weight(codes[48 + j], n));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Weights from a fixed seed, a third of each kind.
    pub(crate) fn random_trits(n: usize) -> Vec<i8> {
        let mut rng = crate::synth::random::Rng::new(5, n as u64);
        (0..n).map(|_| (rng.u64() % 3) as i8 - 1).collect()
    }

    fn trits(rows: usize, cols: usize, scale: f32) -> Trits {
        Trits {
            rows,
            cols,
            weights: random_trits(rows * cols),
            scale,
        }
    }

    fn turn(trits: &Trits, ty: TensorType) -> Trits {
        let tiles = match ty {
            TensorType::TL1 | TensorType::TL2 => {
                Some(Tiles::find_or_choose(ty, trits.rows, trits.cols, &[]).unwrap())
            }
            _ => None,
        };
        let mut bytes = vec![9; 7];
        trits.pack(ty, tiles, &mut bytes).unwrap();
        let dims = [trits.cols as u64, trits.rows as u64];
        assert_eq!(Some(bytes.len() as u64), ty.data_bytes(&dims), "{ty}");
        let shape = (trits.rows, trits.cols);
        let layout = I2sLayout::Blocks128;
        Trits::unpack(ty, &bytes, shape, layout, tiles, Some(trits.scale)).unwrap()
    }

    #[test]
    fn all_packings_give_the_weights_back() {
        for (rows, cols) in [(32, 256), (64, 512), (96, 768), (320, 2560)] {
            // Not representable in f16.
            let start = trits(rows, cols, 1.218_854_8);
            let order = [
                TensorType::I2S,
                TensorType::TQ2_0,
                TensorType::I2S,
                TensorType::TL2,
                TensorType::TQ1_0,
                TensorType::TL1,
                TensorType::I2S,
            ];
            let end = order
                .iter()
                .fold(start.clone(), |trits, &ty| turn(&trits, ty));
            assert_eq!(end, start);
            assert_eq!(end.digest(), start.digest());
        }
    }

    #[test]
    fn the_digest_of_codes_is_that_of_their_weights() {
        let start = trits(3, 640, 0.25);
        let mut bytes = Vec::new();
        start.pack(TensorType::I2S, None, &mut bytes).unwrap();
        let found = Trits::digest_of_i2_s(&bytes, (3, 640));
        assert_eq!(found, Some((start.digest(), 0.25)));
        assert_eq!(Trits::digest_of_i2_s(&bytes[..40], (3, 640)), None);
        bytes[479] |= 0b11;
        assert_eq!(Trits::digest_of_i2_s(&bytes, (3, 640)), None);
    }

    #[test]
    fn codes_of_3_are_seen_in_every_place() {
        for byte in 0..=u8::MAX {
            let codes = [byte >> 6, byte >> 4 & 3, byte >> 2 & 3, byte & 3];
            assert_eq!(
                has_code_3(&[0x55, byte, 0xaa]),
                codes.contains(&3),
                "{byte:02x}"
            );
        }
    }

    #[test]
    fn zeros_are_counted_across_chunks() {
        for n in [1, 254, 255, 256, 1000] {
            let weights: Vec<i8> = (0..n).map(|i| i8::from(i % 10 == 0)).collect();
            let expected = weights.iter().filter(|w| **w == 0).count();
            let (rows, scale) = (1, 1.0);
            let cols = n;
            assert_eq!(
                Trits {
                    rows,
                    cols,
                    weights,
                    scale
                }
                .zeros(),
                expected
            );
        }
    }

    #[test]
    fn the_digest_sees_every_weight_and_the_shape() {
        let start = trits(3, 640, 1.0);
        let mut other = start.clone();
        other.weights[1919] = if other.weights[1919] == 1 { 0 } else { 1 };
        assert_ne!(start.digest(), other.digest());
        let turned = Trits {
            rows: 640,
            cols: 3,
            ..start.clone()
        };
        assert_ne!(start.digest(), turned.digest());
    }

    /// The example of the format's description: w[0] = +1, w[33] = -1, w[127] = +1.
    #[test]
    fn i2_s_bytes() {
        let mut weights = vec![0; 128];
        (weights[0], weights[33], weights[127]) = (1, -1, 1);
        let matrix = Trits {
            rows: 1,
            cols: 128,
            weights,
            scale: 0.5,
        };
        let mut bytes = Vec::new();
        matrix.pack(TensorType::I2S, None, &mut bytes).unwrap();
        let mut expected = vec![0x55; 32];
        (expected[0], expected[1], expected[31]) = (0x95, 0x45, 0x56);
        expected.extend_from_slice(&0.5f32.to_le_bytes());
        expected.resize(64, 0);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_64_layout_is_another_order_of_the_same_codes() {
        let mut data = vec![0x55; 32];
        // Weight 0 in the first block of 64, weight 64 + 17 in the second: byte 16 + 1, bits 5:4.
        (data[0], data[17]) = (0x95, 0x65);
        data.resize(64, 0);
        let read = |layout| {
            let shape = (1, 128);
            let trits = Trits::unpack(TensorType::I2S, &data, shape, layout, None, None).unwrap();
            let set = trits.weights.iter().enumerate().filter(|w| *w.1 != 0);
            set.map(|(i, w)| (i, *w)).collect::<Vec<_>>()
        };
        assert_eq!(read(I2sLayout::Blocks64), [(0, 1), (81, 1)]);
        assert_eq!(read(I2sLayout::Blocks128), [(0, 1), (49, 1)]);
    }

    #[test]
    fn what_cannot_be_held_is_refused() {
        let mut out = Vec::new();
        let pack = |trits: Trits, ty, out: &mut Vec<u8>| trits.pack(ty, None, out);
        assert!(matches!(
            pack(trits(2, 192, 1.0), TensorType::I2S, &mut out),
            Err(PackError::Row { block: 128, .. })
        ));
        assert!(matches!(
            pack(trits(2, 128, 1.0), TensorType::TQ2_0, &mut out),
            Err(PackError::Row { block: 256, .. })
        ));
        for scale in [1e-9, 1e6] {
            assert!(matches!(
                pack(trits(1, 256, scale), TensorType::TQ1_0, &mut out),
                Err(PackError::HalfScale { .. })
            ));
        }
        trits(1, 128, 1.0)
            .pack(TensorType::I2S, None, &mut out)
            .unwrap();
        let unpack = |data: &[u8]| {
            Trits::unpack(
                TensorType::I2S,
                data,
                (1, 128),
                I2sLayout::default(),
                None,
                None,
            )
        };
        out[3] |= 0b11 << 4;
        assert_eq!(unpack(&out), Err(PackError::Code { index: 35 }));
        assert!(matches!(unpack(&out[..34]), Err(PackError::Length { .. })));
        let mut negative = out.clone();
        negative[3] = 0x55;
        negative[32..36].copy_from_slice(&(-1.0f32).to_le_bytes());
        assert!(matches!(unpack(&negative), Err(PackError::Scale { .. })));
    }

    #[test]
    fn a_scale_that_does_not_round_to_the_blocks_is_not_taken() {
        let start = trits(1, 256, 0.75);
        let mut bytes = Vec::new();
        start.pack(TensorType::TQ2_0, None, &mut bytes).unwrap();
        let read = |exact| {
            let layout = I2sLayout::default();
            let ty = TensorType::TQ2_0;
            Trits::unpack(ty, &bytes, (1, 256), layout, None, exact)
                .unwrap()
                .scale
        };
        assert_eq!(read(Some(0.750_01)), 0.750_01);
        assert_eq!(read(Some(0.8)), 0.75);
        assert_eq!(read(None), 0.75);
    }
}
