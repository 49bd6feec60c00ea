//! Dense matrices in the formats embeddings and output heads come in. Layouts: ggml's `ggml-common.h`, little endian.

use std::fmt;
use std::ops::Range;

use crate::{MatrixError, SharedBytes};

/// 256 numbers as Q6_K: lower nibbles and upper bits of their codes, 16 scales, a scale of these in f16.
pub type Q6Block = [u8; 210];

/// How the numbers of a dense matrix are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(non_camel_case_types)]
pub enum DenseType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    BF16,
    /// Blocks of 32: f16 scale d, 32 × i8 q; w = d·q.
    Q8_0,
    /// Blocks of 256: 6-bit codes, 16 × i8 scales sc, f16 d; w = (d·sc)·(code - 32).
    Q6_K,
    /// Blocks of 32: f16 scale d, 32 × 4-bit codes; w = (code - 8)·d.
    Q4_0,
}

impl DenseType {
    /// Columns of a row come in multiples of this.
    pub fn block_cols(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q6_K => 256,
        }
    }

    /// Bytes of [`block_cols`](Self::block_cols) numbers.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q6_K => 210,
            Self::Q4_0 => 18,
        }
    }

    /// Bytes of a row; `None` when `cols` is not a multiple of the block or the bytes can't be counted.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let whole = cols.is_multiple_of(self.block_cols());
        (cols / self.block_cols())
            .checked_mul(self.block_bytes())
            .filter(|_| whole)
    }
}

impl fmt::Display for DenseType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A dense `[rows, cols]` matrix, row-major. Shape and length are checked once, here.
#[derive(Clone, Debug)]
pub struct DenseMatrix {
    bytes: SharedBytes,
    ty: DenseType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
}

impl DenseMatrix {
    /// A matrix over existing bytes.
    ///
    /// # Errors
    /// When there are no rows or columns, the columns don't fill blocks, or the length doesn't fit the shape.
    pub fn new(
        bytes: SharedBytes,
        ty: DenseType,
        rows: usize,
        cols: usize,
    ) -> Result<Self, MatrixError> {
        let shape = MatrixError::Shape { rows, cols };
        if rows == 0 || cols == 0 {
            return Err(shape);
        }
        let multiple_of = ty.block_cols();
        if !cols.is_multiple_of(multiple_of) {
            return Err(MatrixError::Columns {
                found: cols,
                multiple_of,
            });
        }
        let row_bytes = ty.row_bytes(cols).ok_or(shape)?;
        let expected = row_bytes.checked_mul(rows).ok_or(shape)?;
        if bytes.len() != expected {
            let found = bytes.len();
            return Err(MatrixError::Length { expected, found });
        }
        Ok(DenseMatrix {
            bytes,
            ty,
            rows,
            cols,
            row_bytes,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the numbers are stored.
    pub fn ty(&self) -> DenseType {
        self.ty
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// All rows.
    pub fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// The bytes of a row.
    ///
    /// # Panics
    /// When `row` is out of range.
    pub fn row(&self, row: usize) -> &[u8] {
        self.range_bytes(row..row + 1)
    }

    /// Asks for a row that will be read soon.
    pub fn prefetch_row(&self, row: usize) {
        crate::arch::prefetch_all(self.range_bytes(row..row + 1));
    }

    /// The bytes of `rows`.
    pub(crate) fn range_bytes(&self, rows: Range<usize>) -> &[u8] {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of a matrix with {} rows",
            self.rows
        );
        &self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes]
    }
}
