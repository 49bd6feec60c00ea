//! Ternary weight matrices in memory: I2_S here, TL1 and TL2 in `lookup.rs`.
//!
//! I2_S as Microsoft's bitnet.cpp writes it on x86 ("128 layout"): codes 0, 1, 2 for -1, 0, +1; each row is cut into
//! blocks of 128 weights = 32 bytes; weight j of a block lies in byte j % 32, shifted left by 6 - 2·(j / 32).

use std::fmt;
use std::ops::Range;

use crate::lookup::{self, GROUP_ROWS, GroupedRows};
use crate::{Packing, SharedBytes};

/// Weights per block; columns are a multiple of it.
pub(crate) const BLOCK_COLS: usize = 128;
/// Bytes per block.
pub(crate) const BLOCK_BYTES: usize = 32;
/// With more columns an i32 sum of 128 · 3 · cols could overflow.
const MAX_COLS: usize = 1 << 22;

/// A `[rows, cols]` matrix of -1, 0 and +1, packed, times one f32 scale. Shape and length are checked once, here.
///
/// The bytes of I2_S are not scanned: the code 3, which no writer produces, counts as +2 in every kernel, and can't be repacked.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    bytes: SharedBytes,
    packing: Packing,
    rows: usize,
    cols: usize,
    scale: f32,
}

impl PackedMatrix {
    /// A matrix over existing I2_S code bytes: `rows · cols / 4` of them, row-major, without the tail that holds the scale
    /// in a file.
    ///
    /// # Errors
    /// When `cols` is not a positive multiple of 128, the length doesn't fit the shape, or `scale` is not finite.
    pub fn i2_s(
        bytes: SharedBytes,
        rows: usize,
        cols: usize,
        scale: f32,
    ) -> Result<Self, MatrixError> {
        let expected = packed_bytes(rows, cols)?;
        if bytes.len() != expected {
            let found = bytes.len();
            return Err(MatrixError::Length { expected, found });
        }
        if !scale.is_finite() {
            return Err(MatrixError::Scale { found: scale });
        }
        Ok(PackedMatrix {
            bytes,
            packing: Packing::I2S,
            rows,
            cols,
            scale,
        })
    }

    /// Packs `weights`, `[rows, cols]` row-major values -1, 0, +1.
    ///
    /// # Errors
    /// As [`i2_s`](Self::i2_s), and when a weight is something else.
    pub fn from_ternary(
        packing: Packing,
        rows: usize,
        cols: usize,
        scale: f32,
        weights: &[i8],
    ) -> Result<Self, MatrixError> {
        let expected = packed_bytes(rows, cols)? * 4;
        if weights.len() != expected {
            let found = weights.len();
            return Err(MatrixError::Length { expected, found });
        }
        if let Some(index) = weights.iter().position(|w| !(-1..=1).contains(w)) {
            let found = weights[index];
            return Err(MatrixError::NotTernary { index, found });
        }
        Self::i2_s(SharedBytes::new(pack_i2_s(weights)), rows, cols, scale)?.repack(packing)
    }

    /// The same weights in another packing.
    ///
    /// # Errors
    /// When a code of I2_S is 3, or there is no memory for the copy.
    pub fn repack(&self, packing: Packing) -> Result<Self, MatrixError> {
        if packing == self.packing {
            return Ok(self.clone());
        }
        if self.packing != Packing::I2S {
            return self.to_i2_s()?.repack(packing);
        }
        let (rows, cols) = (self.rows, self.cols);
        let bytes = packing.matrix_bytes(rows, cols);
        let mut bytes = zeros(bytes.ok_or(MatrixError::Shape { rows, cols })?)?;
        match packing {
            Packing::I2S => bytes.copy_from_slice(&self.bytes),
            Packing::Tl1 => lookup::pack::<2>(&self.bytes, cols, &mut bytes)?,
            Packing::Tl2 => lookup::pack::<3>(&self.bytes, cols, &mut bytes)?,
        }
        Ok(PackedMatrix {
            bytes: SharedBytes::new(bytes),
            packing,
            ..*self
        })
    }

    /// The same matrix over a copy of its bytes.
    ///
    /// # Panics
    /// When `copy` has another length.
    pub fn moved_to(&self, copy: SharedBytes) -> Self {
        assert_eq!(copy.len(), self.bytes.len(), "not a copy of this matrix");
        PackedMatrix {
            bytes: copy,
            ..*self
        }
    }

    fn to_i2_s(&self) -> Result<Self, MatrixError> {
        let mut bytes = zeros(packed_bytes(self.rows, self.cols)?)?;
        let mut weights = vec![0; self.cols];
        for (r, bytes) in bytes.chunks_exact_mut(self.cols / 4).enumerate() {
            self.ternary_row(r, &mut weights);
            bytes.copy_from_slice(&pack_i2_s(&weights));
        }
        Self::i2_s(SharedBytes::new(bytes), self.rows, self.cols, self.scale)
    }

    /// Rows: outputs of the linear.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of the linear.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What -1 and +1 stand for.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// How the weights lie in [`bytes`](Self::bytes).
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// The packed weights.
    pub fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// Row `r` as -1, 0, +1 (and +2 for the code 3).
    ///
    /// # Panics
    /// When `r` is out of range or `out` is not `[cols]`.
    pub fn ternary_row(&self, r: usize, out: &mut [i8]) {
        assert_eq!(out.len(), self.cols, "out must be [cols]");
        match self.packing {
            Packing::I2S => self.i2_s_row(r, out),
            Packing::Tl1 => self.lookup_row::<2>(r, out),
            Packing::Tl2 => self.lookup_row::<3>(r, out),
        }
    }

    fn i2_s_row(&self, r: usize, out: &mut [i8]) {
        let blocks = self.row_bytes(r..r + 1).chunks_exact(BLOCK_BYTES);
        for (block, out) in blocks.zip(out.chunks_exact_mut(BLOCK_COLS)) {
            for (j, w) in out.iter_mut().enumerate() {
                *w = (block[j % BLOCK_BYTES] >> shift(j) & 3) as i8 - 1;
            }
        }
    }

    fn lookup_row<const WIDTH: usize>(&self, r: usize, out: &mut [i8]) {
        let GroupedRows { groups, skip } = self.grouped_rows(r..r + 1);
        let blocks = groups.chunks_exact(lookup::block_bytes(WIDTH));
        for (block, out) in blocks.zip(out.chunks_mut(lookup::block_cols(WIDTH))) {
            for (j, out) in out.chunks_mut(WIDTH).enumerate() {
                out.copy_from_slice(&lookup::weights::<WIDTH>(block, skip, j)[..out.len()]);
            }
        }
    }

    /// The packed bytes of `rows` in I2_S.
    pub(crate) fn row_bytes(&self, rows: Range<usize>) -> &[u8] {
        self.check_rows(&rows);
        let bytes = self.cols / 4;
        &self.bytes[rows.start * bytes..rows.end * bytes]
    }

    /// The groups that hold `rows` in a packing with tables.
    pub(crate) fn grouped_rows(&self, rows: Range<usize>) -> GroupedRows<'_> {
        self.check_rows(&rows);
        let group_bytes = self.bytes.len() / self.rows.div_ceil(GROUP_ROWS);
        let (first, skip) = (rows.start / GROUP_ROWS, rows.start % GROUP_ROWS);
        let end = match rows.is_empty() {
            true => first,
            false => rows.end.div_ceil(GROUP_ROWS),
        };
        GroupedRows {
            groups: &self.bytes[first * group_bytes..end * group_bytes],
            skip,
        }
    }

    fn check_rows(&self, rows: &Range<usize>) {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of a matrix with {} rows",
            self.rows
        );
    }
}

/// # Errors
/// When the allocator refuses.
fn zeros(bytes: usize) -> Result<Vec<u8>, MatrixError> {
    let mut zeros = Vec::new();
    let refused = |_| MatrixError::OutOfMemory { bytes };
    zeros.try_reserve_exact(bytes).map_err(refused)?;
    zeros.resize(bytes, 0);
    Ok(zeros)
}

fn packed_bytes(rows: usize, cols: usize) -> Result<usize, MatrixError> {
    if rows == 0 || cols == 0 || cols > MAX_COLS {
        return Err(MatrixError::Shape { rows, cols });
    }
    if !cols.is_multiple_of(BLOCK_COLS) {
        let multiple_of = BLOCK_COLS;
        return Err(MatrixError::Columns {
            found: cols,
            multiple_of,
        });
    }
    // Counted in weights, so that four bytes per packed byte can't overflow either.
    let weights = rows
        .checked_mul(cols)
        .ok_or(MatrixError::Shape { rows, cols })?;
    Ok(weights / 4)
}

fn pack_i2_s(weights: &[i8]) -> Vec<u8> {
    let mut bytes = vec![0; weights.len() / 4];
    let blocks = bytes.chunks_exact_mut(BLOCK_BYTES);
    for (block, weights) in blocks.zip(weights.chunks_exact(BLOCK_COLS)) {
        for (j, w) in weights.iter().enumerate() {
            block[j % BLOCK_BYTES] |= ((w + 1) as u8) << shift(j);
        }
    }
    bytes
}

fn shift(j: usize) -> usize {
    6 - 2 * (j / BLOCK_BYTES)
}

/// Why bytes are not the matrix they are said to be.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum MatrixError {
    /// No rows or columns, or more than can be summed or addressed.
    Shape {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// Columns don't fill whole blocks.
    Columns {
        /// Columns asked for.
        found: usize,
        /// Columns per block of the format.
        multiple_of: usize,
    },
    /// Bytes (or weights, when packing) don't fit the shape.
    Length {
        /// What the shape needs.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// The scale is infinite or NaN.
    Scale {
        /// The scale given.
        found: f32,
    },
    /// A weight to pack is not -1, 0 or +1.
    NotTernary {
        /// Where, row-major.
        index: usize,
        /// The weight.
        found: i8,
    },
    /// A code of I2_S stands for no weight and has no place in another packing.
    Code {
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// No memory for a copy.
    OutOfMemory {
        /// What the copy needs.
        bytes: usize,
    },
}

impl fmt::Display for MatrixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { rows, cols } => {
                write!(f, "a matrix can't have {rows} rows and {cols} columns")
            }
            Self::Columns { found, multiple_of } => {
                write!(f, "{found} columns are not a multiple of {multiple_of}")
            }
            Self::Length { expected, found } => {
                write!(f, "{found} bytes where the shape needs {expected}")
            }
            Self::Scale { found } => write!(f, "the scale is {found}, not a finite number"),
            Self::NotTernary { index, found } => {
                write!(f, "weight {index} is {found}, not -1, 0 or 1")
            }
            Self::Code { row, col } => {
                write!(
                    f,
                    "row {row}, column {col} holds the code 3, which only i2_s can carry"
                )
            }
            Self::OutOfMemory { bytes } => {
                let mb = bytes.div_ceil(1 << 20);
                write!(f, "there is no memory for a copy of {mb} MB")
            }
        }
    }
}

impl std::error::Error for MatrixError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_the_worked_example() {
        let mut weights = [0i8; 128];
        weights[0] = 1;
        weights[33] = -1;
        weights[127] = 1;
        let m = PackedMatrix::from_ternary(Packing::I2S, 1, 128, 1.0, &weights).unwrap();
        let mut expected = [0x55u8; 32];
        expected[0] = 0x95;
        expected[1] = 0x45;
        expected[31] = 0x56;
        assert_eq!(&**m.bytes(), expected);
        let mut row = [9; 128];
        m.ternary_row(0, &mut row);
        assert_eq!(row, weights);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let bytes = |n| SharedBytes::new(vec![0u8; n]);
        let table = [
            (
                PackedMatrix::i2_s(bytes(0), 0, 128, 1.0),
                MatrixError::Shape { rows: 0, cols: 128 },
            ),
            (
                PackedMatrix::i2_s(bytes(0), 1, 0, 1.0),
                MatrixError::Shape { rows: 1, cols: 0 },
            ),
            (
                PackedMatrix::i2_s(bytes(16), 1, 64, 1.0),
                MatrixError::Columns {
                    found: 64,
                    multiple_of: 128,
                },
            ),
            (
                PackedMatrix::i2_s(bytes(33), 1, 128, 1.0),
                MatrixError::Length {
                    expected: 32,
                    found: 33,
                },
            ),
            (
                PackedMatrix::i2_s(bytes(32), usize::MAX, 128, 1.0),
                MatrixError::Shape {
                    rows: usize::MAX,
                    cols: 128,
                },
            ),
            (
                PackedMatrix::i2_s(bytes(32), 1, 128, f32::INFINITY),
                MatrixError::Scale {
                    found: f32::INFINITY,
                },
            ),
            (
                PackedMatrix::from_ternary(Packing::I2S, 1, 128, 1.0, &[2; 128]),
                MatrixError::NotTernary { index: 0, found: 2 },
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found.unwrap_err(), expected);
        }
    }
}
