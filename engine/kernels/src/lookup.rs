//! TL1 and TL2: weights as indices into small tables of sums, laid out so that one table look-up serves 32 rows.
//!
//! Named after, and with the mathematics of, bitnet.cpp's TL1 and TL2; the byte order is our own, for any shape.
//!
//! | | TL1 | TL2 |
//! |---|---|---|
//! | weights per lookup (the `WIDTH` of the code) | 2 | 3 |
//! | index, 4 bits | `3·(w0 + 1) + w1 + 1`, 0 to 8 | `abs(w0 + 3·w1 + 9·w2)`, 0 to 13 |
//! | sign, 1 bit | none | set when `w0 + 3·w1 + 9·w2 < 0` |
//! | bytes of a block | 128 | 160 |
//!
//! Rows come in groups of 32, a group's blocks one after another; a block is eight lookups wide (16 or 24 columns). Byte
//! `32·i + r` of a block holds the indices of lookups `2·i` (low nibble) and `2·i + 1` (high nibble) of row `r`. In TL2, 32
//! bytes with the signs follow: bit `7 - j` of byte `r` for lookup `j`. Rows and columns beyond the matrix are zeros.

use crate::MatrixError;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

/// Rows that one lookup serves.
pub(crate) const GROUP_ROWS: usize = 32;
/// Lookups per row and block.
pub(crate) const BLOCK_LOOKUPS: usize = 8;
/// Bytes of the indices of a block.
const INDEX_BYTES: usize = GROUP_ROWS * BLOCK_LOOKUPS / 2;
/// Columns packed at a time: whole blocks of I2_S, TL1 and TL2.
const SPAN_COLS: usize = 3 * BLOCK_COLS;

/// Columns of a block.
pub(crate) const fn block_cols(width: usize) -> usize {
    width * BLOCK_LOOKUPS
}

/// Bytes of a block.
pub(crate) const fn block_bytes(width: usize) -> usize {
    match width {
        2 => INDEX_BYTES,
        _ => INDEX_BYTES + GROUP_ROWS,
    }
}

/// Bytes of 32 rows.
pub(crate) fn group_bytes(width: usize, cols: usize) -> usize {
    cols.div_ceil(block_cols(width)) * block_bytes(width)
}

/// Bytes of a matrix; `None` beyond the address space.
pub(crate) fn matrix_bytes(width: usize, rows: usize, cols: usize) -> Option<usize> {
    rows.div_ceil(GROUP_ROWS)
        .checked_mul(group_bytes(width, cols))
}

/// Rows of a matrix in a lookup packing, with the groups they lie in.
#[derive(Clone, Copy)]
pub(crate) struct GroupedRows<'a> {
    /// Whole groups.
    pub(crate) groups: &'a [u8],
    /// Rows of the first group before the wanted ones.
    pub(crate) skip: usize,
}

/// The weights of lookup `j` of row `r` of a block.
#[inline]
pub(crate) fn weights<const WIDTH: usize>(block: &[u8], r: usize, j: usize) -> [i8; WIDTH] {
    let index = block[j / 2 * GROUP_ROWS + r] >> (j % 2 * 4) & 15;
    let weight = |i| weight_of::<WIDTH>(index, i);
    let negative = WIDTH == 3 && block[INDEX_BYTES + r] >> (7 - j) & 1 == 1;
    std::array::from_fn(|i| if negative { -weight(i) } else { weight(i) })
}

/// Weight `i` of those that `index` stands for, the sign left aside.
pub(crate) const fn weight_of<const WIDTH: usize>(index: u8, i: usize) -> i8 {
    match (WIDTH, i) {
        (2, 0) => (index / 3) as i8 - 1,
        (2, _) => (index % 3) as i8 - 1,
        // Balanced ternary digits, lowest first.
        (_, 0) => (index + 1) as i8 % 3 - 1,
        (_, 1) => ((index + 1) / 3 + 1) as i8 % 3 - 1,
        (_, _) => (index + 4) as i8 / 9,
    }
}

/// Packs `rows` rows of I2_S codes, `[rows, cols / 4]`, into `out` of [`matrix_bytes`].
///
/// # Errors
/// At the first code 3: row and column.
pub(crate) fn pack<const WIDTH: usize>(
    codes: &[u8],
    cols: usize,
    out: &mut [u8],
) -> Result<(), MatrixError> {
    let row_bytes = cols / 4;
    let groups = codes.chunks(GROUP_ROWS * row_bytes);
    let mut span = [[1; GROUP_ROWS]; SPAN_COLS];
    for (g, (codes, out)) in groups
        .zip(out.chunks_exact_mut(group_bytes(WIDTH, cols)))
        .enumerate()
    {
        if let Some((row, col)) = find_code_3(codes, row_bytes) {
            let row = g * GROUP_ROWS + row;
            return Err(MatrixError::Code { row, col });
        }
        let span_bytes = SPAN_COLS / block_cols(WIDTH) * block_bytes(WIDTH);
        for (s, out) in out.chunks_mut(span_bytes).enumerate() {
            turn(codes, row_bytes, s * SPAN_COLS / 4, &mut span);
            let blocks = out.chunks_exact_mut(block_bytes(WIDTH));
            for (block, codes) in blocks.zip(span.chunks_exact(block_cols(WIDTH))) {
                pack_block::<WIDTH>(codes, block);
            }
        }
    }
    Ok(())
}

fn find_code_3(codes: &[u8], row_bytes: usize) -> Option<(usize, usize)> {
    let is_3 = |byte: u8| byte & byte >> 1 & 0b01_01_01_01;
    if codes.iter().fold(0, |any, byte| any | is_3(*byte)) == 0 {
        return None;
    }
    let at = codes.iter().position(|byte| is_3(*byte) != 0)?;
    let (row, byte) = (at / row_bytes, at % row_bytes);
    let part = is_3(codes[at]).leading_zeros() as usize / 2;
    let col = byte / BLOCK_BYTES * BLOCK_COLS + part * BLOCK_BYTES + byte % BLOCK_BYTES;
    Some((row, col))
}

/// The codes of up to 32 rows from byte `first` of each row on, column by column; 1 where there is no row or column.
fn turn(codes: &[u8], row_bytes: usize, first: usize, out: &mut [[u8; GROUP_ROWS]; SPAN_COLS]) {
    let bytes = row_bytes.saturating_sub(first).min(SPAN_COLS / 4);
    for (b, out) in out.chunks_exact_mut(BLOCK_COLS).enumerate() {
        let mut packed = [[0b01_01_01_01; GROUP_ROWS]; BLOCK_BYTES];
        if b * BLOCK_BYTES < bytes {
            for (r, row) in codes.chunks_exact(row_bytes).enumerate() {
                let block = &row[first + b * BLOCK_BYTES..][..BLOCK_BYTES];
                for (packed, byte) in packed.iter_mut().zip(block) {
                    packed[r] = *byte;
                }
            }
        }
        for (part, out) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            for (out, packed) in out.iter_mut().zip(&packed) {
                *out = packed.map(|byte| byte >> (6 - 2 * part) & 3);
            }
        }
    }
}

/// `codes`: those of a block's columns, of all 32 rows.
fn pack_block<const WIDTH: usize>(codes: &[[u8; GROUP_ROWS]], block: &mut [u8]) {
    let (indices, signs) = block.split_at_mut(INDEX_BYTES);
    indices.fill(0);
    signs.fill(0);
    for (j, codes) in codes.chunks_exact(WIDTH).enumerate() {
        let indices = &mut indices[j / 2 * GROUP_ROWS..][..GROUP_ROWS];
        for (r, index) in indices.iter_mut().enumerate() {
            let value = match WIDTH {
                2 => 3 * codes[0][r] + codes[1][r],
                _ => (codes[0][r] + 3 * codes[1][r] + 9 * codes[2][r]).abs_diff(13),
            };
            *index |= value << (j % 2 * 4);
        }
        for (r, sign) in signs.iter_mut().enumerate() {
            let negative = codes[0][r] + 3 * codes[1][r] + 9 * codes[WIDTH - 1][r] < 13;
            *sign |= u8::from(negative) << (7 - j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every index and sign stands for the weights it was made of, and for no others.
    #[test]
    fn indices_and_weights_agree() {
        for a in 0..3 {
            for b in 0..3 {
                let mut codes = [[1; GROUP_ROWS]; 16];
                (codes[6][5], codes[7][5]) = (a, b);
                let mut block = [0; block_bytes(2)];
                pack_block::<2>(&codes, &mut block);
                assert_eq!(weights::<2>(&block, 5, 3), [a as i8 - 1, b as i8 - 1]);
                assert_eq!(weights::<2>(&block, 4, 3), [0, 0]);
                for c in 0..3 {
                    let mut codes = [[1; GROUP_ROWS]; 24];
                    (codes[21][31], codes[22][31], codes[23][31]) = (a, b, c);
                    let mut block = [0; block_bytes(3)];
                    pack_block::<3>(&codes, &mut block);
                    let expected = [a as i8 - 1, b as i8 - 1, c as i8 - 1];
                    assert_eq!(weights::<3>(&block, 31, 7), expected);
                    assert_eq!(weights::<3>(&block, 30, 7), [0, 0, 0]);
                }
            }
        }
    }
}
