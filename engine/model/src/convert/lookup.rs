//! bitnet.cpp's look-up layouts TL1 (type 38) and TL2 (type 39): weights to bytes and back.
//!
//! Both cut a matrix into tiles whose sizes are not in the file: bitnet.cpp takes them from a table it was built with. Here
//! they come from the user, from a key that this program writes, or from the presets of bitnet.cpp, in this order.
//!
//! - TL1: pairs of neighbouring columns as one of 9 values, two pairs to a byte.
//! - TL2: triples as one of 14 magnitudes (two to a byte) and a sign bit; the columns behind the last whole tile as pairs.
//!
//! The orders of bytes are those of bitnet.cpp's converter (`utils/convert-hf-to-gguf-bitnet.py`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::gguf::TensorType;

/// Key under which this program writes the tiles it used: one string per shape.
pub const TILES_KEY: &str = "bitnet_launch.lookup_tiles";

/// Rows of a TL2 chunk.
const TL2_CHUNK: usize = 32;
/// In a TL2 chunk, eight rows at a time are stored in this order.
const TL2_ORDER: [usize; 4] = [0, 2, 1, 3];
/// Columns of a tile of pairs at the end of a TL2 matrix.
const TL2_PAIR_COLS: usize = 32;

/// How one shape of matrix is cut: text form `ROWSxCOLS=BM/BK` or, for TL1, `ROWSxCOLS=BM/BK/CHUNK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// Outputs of the matrix.
    pub rows: usize,
    /// Inputs of the matrix.
    pub cols: usize,
    /// Rows of a tile; divides `rows`.
    pub bm: usize,
    /// Columns of a tile.
    pub bk: usize,
    /// Rows of a chunk inside a tile: 32, for TL1 also 64.
    pub chunk: usize,
}

/// Rows, columns, rows of a tile, columns of a tile, rows of a chunk.
type Preset = [usize; 5];

/// bitnet.cpp's `preset_kernels`, Llama3-8B-1.58, bitnet_b1_58-3B and bitnet_b1_58-large.
const TL1_PRESETS: &[Preset] = &[
    [14336, 4096, 256, 128, 64],
    [4096, 14336, 256, 128, 32],
    [1024, 4096, 128, 64, 64],
    [4096, 4096, 128, 64, 32],
    [3200, 8640, 160, 64, 32],
    [3200, 3200, 320, 128, 64],
    [8640, 3200, 320, 64, 32],
    [1536, 4096, 256, 128, 32],
    [1536, 1536, 128, 64, 64],
    [4096, 1536, 256, 128, 32],
];
const TL2_PRESETS: &[Preset] = &[
    [14336, 4096, 256, 96, 32],
    [4096, 14336, 128, 96, 32],
    [1024, 4096, 256, 96, 32],
    [4096, 4096, 128, 96, 32],
    [3200, 8640, 160, 96, 32],
    [3200, 3200, 320, 96, 32],
    [8640, 3200, 320, 96, 32],
    [1536, 4096, 256, 96, 32],
    [1536, 1536, 128, 192, 32],
    [4096, 1536, 256, 96, 32],
];

/// Why a matrix can't be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum TilesError {
    #[error("no tile sizes are known for {ty} matrices of {rows} x {cols}")]
    Unknown {
        ty: TensorType,
        rows: usize,
        cols: usize,
    },
    #[error("the tiles `{tiles}` do not suit {ty}: {because}")]
    Unsuitable {
        ty: TensorType,
        tiles: Tiles,
        because: &'static str,
    },
    #[error("{ty} cannot hold a matrix of {rows} x {cols}: {because}")]
    Shape {
        ty: TensorType,
        rows: usize,
        cols: usize,
        because: &'static str,
    },
    #[error("the {ty} code {code} at byte {} is none that a writer makes", offset)]
    Code {
        ty: TensorType,
        code: u8,
        offset: usize,
    },
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tiles {
            rows,
            cols,
            bm,
            bk,
            chunk,
        } = self;
        write!(f, "{rows}x{cols}={bm}/{bk}/{chunk}")
    }
}

impl FromStr for Tiles {
    type Err = String;

    fn from_str(text: &str) -> Result<Tiles, String> {
        let wanted =
            || "ROWSxCOLS=BM/BK or ROWSxCOLS=BM/BK/CHUNK, such as 2560x6912=256/96".to_owned();
        let number = |text: &str| {
            let number = text.trim().parse().ok();
            number
                .filter(|n| (1..=1 << 24).contains(n))
                .ok_or_else(wanted)
        };
        let (shape, tiles) = text.split_once('=').ok_or_else(wanted)?;
        let (rows, cols) = shape.split_once('x').ok_or_else(wanted)?;
        let mut sizes = tiles.split('/').map(number);
        let mut next = || sizes.next().unwrap_or_else(|| Err(wanted()));
        let tiles = Tiles {
            rows: number(rows)?,
            cols: number(cols)?,
            bm: next()?,
            bk: next()?,
            chunk: sizes.next().unwrap_or(Ok(TL2_CHUNK))?,
        };
        if sizes.next().is_some() {
            return Err(wanted());
        }
        Ok(tiles)
    }
}

impl Tiles {
    /// The tiles of a shape: the first of `known` that fits it, else bitnet.cpp's preset.
    ///
    /// # Errors
    /// When neither has any, or they don't suit the type.
    pub fn find(
        ty: TensorType,
        rows: usize,
        cols: usize,
        known: &[Tiles],
    ) -> Result<Tiles, TilesError> {
        let said = known.iter().find(|t| (t.rows, t.cols) == (rows, cols));
        let tiles = said.copied().or_else(|| preset(ty, rows, cols));
        let tiles = tiles.ok_or(TilesError::Unknown { ty, rows, cols })?;
        tiles.check(ty)?;
        Ok(tiles)
    }

    /// As [`Tiles::find`]; for a shape nobody has tiles for, the largest that suit it.
    ///
    /// # Errors
    /// When no tiles suit the shape.
    pub fn find_or_choose(
        ty: TensorType,
        rows: usize,
        cols: usize,
        known: &[Tiles],
    ) -> Result<Tiles, TilesError> {
        match Tiles::find(ty, rows, cols, known) {
            Err(TilesError::Unknown { .. }) => {}
            found => return found,
        }
        let widths: &[usize] = match ty {
            TensorType::TL1 => &[128, 64, 32, 16, 8],
            _ => &[96, 192],
        };
        let heights = [256, 320, 160, 128, 96, 64, 32];
        let all = heights.into_iter().flat_map(|bm| {
            let tiles = move |&bk| Tiles {
                rows,
                cols,
                bm,
                bk,
                chunk: TL2_CHUNK,
            };
            widths.iter().map(tiles)
        });
        let mut refused = None;
        for tiles in all {
            match tiles.check(ty) {
                Ok(()) => return Ok(tiles),
                Err(TilesError::Unsuitable { because, .. }) => {
                    refused.get_or_insert(because);
                }
                Err(error) => return Err(error),
            }
        }
        Err(TilesError::Shape {
            ty,
            rows,
            cols,
            because: refused.unwrap_or("no tiles suit it"),
        })
    }

    fn check(self, ty: TensorType) -> Result<(), TilesError> {
        let Tiles {
            rows,
            cols,
            bm,
            bk,
            chunk,
        } = self;
        let because = if bm == 0 || bk == 0 || chunk == 0 {
            "a size is 0"
        } else if !rows.is_multiple_of(bm) {
            "the rows are no multiple of BM"
        } else if !bm.is_multiple_of(chunk) {
            "BM is no multiple of the chunk's rows"
        } else if ty == TensorType::TL1 {
            if !matches!(chunk, 32 | 64) {
                "the chunk has 32 or 64 rows"
            } else if !cols.is_multiple_of(bk) {
                "the columns are no multiple of BK"
            } else if !bk.is_multiple_of(256 / chunk) {
                "BK is no multiple of 256 / chunk"
            } else {
                return Ok(());
            }
        } else if chunk != TL2_CHUNK {
            "the chunk has 32 rows"
        } else if !matches!(bk, 96 | 192) {
            "BK is 96 or 192"
        } else if cols < 256 {
            "rows have at least 256 weights"
        } else if !(cols % bk).is_multiple_of(TL2_PAIR_COLS) {
            "the columns behind the last tile are no multiple of 32"
        } else {
            return Ok(());
        };
        Err(TilesError::Unsuitable {
            ty,
            tiles: self,
            because,
        })
    }
}

fn preset(ty: TensorType, rows: usize, cols: usize) -> Option<Tiles> {
    let presets = match ty {
        TensorType::TL1 => TL1_PRESETS,
        _ => TL2_PRESETS,
    };
    let found = presets.iter().find(|p| (p[0], p[1]) == (rows, cols))?;
    let [rows, cols, bm, bk, chunk] = *found;
    Some(Tiles {
        rows,
        cols,
        bm,
        bk,
        chunk,
    })
}

/// Where a byte's two groups of weights are: its row, and the first column of the first group. The second group follows it.
type Place = (usize, usize);

impl Tiles {
    /// Calls `place` for each byte of a TL1 matrix, in order.
    fn tl1_places(self, mut place: impl FnMut(Place)) {
        let by = 256 / self.chunk;
        for tile_row in (0..self.rows).step_by(self.bm) {
            for tile_col in (0..self.cols).step_by(self.bk) {
                for chunk in (tile_row..tile_row + self.bm).step_by(self.chunk) {
                    for y in (tile_col..tile_col + self.bk).step_by(by) {
                        for rows in (chunk..chunk + self.chunk).step_by(16) {
                            for col in (y..y + by).step_by(4) {
                                (rows..rows + 16).for_each(|row| place((row, col)));
                            }
                        }
                    }
                }
            }
        }
    }

    /// Columns stored as triples in TL2.
    fn triple_cols(self) -> usize {
        self.cols / self.bk * self.bk
    }

    /// Calls `place` for each byte of triples in TL2.
    fn tl2_triples(self, place: impl FnMut(Place)) {
        self.tl2_bytes(0..self.triple_cols(), self.bk, 6, place);
    }

    /// Calls `place` for each byte of pairs in TL2.
    fn tl2_pairs(self, place: impl FnMut(Place)) {
        self.tl2_bytes(self.triple_cols()..self.cols, TL2_PAIR_COLS, 4, place);
    }

    fn tl2_bytes(
        self,
        cols: std::ops::Range<usize>,
        width: usize,
        byte_cols: usize,
        mut place: impl FnMut(Place),
    ) {
        for tile_row in (0..self.rows).step_by(self.bm) {
            for tile_col in cols.clone().step_by(width) {
                for chunk in (tile_row..tile_row + self.bm).step_by(TL2_CHUNK) {
                    for col in (tile_col..tile_col + width).step_by(byte_cols) {
                        for octet in TL2_ORDER {
                            let first = chunk + octet * 8;
                            (first..first + 8).for_each(|row| place((row, col)));
                        }
                    }
                }
            }
        }
    }

    /// Calls `place` for each word of 16 signs in TL2, with the row of its even bits and its first column; odd bits belong
    /// to the row 16 below, two bits to a triple, the highest first.
    fn tl2_signs(self, mut place: impl FnMut(Place)) {
        for tile_row in (0..self.rows).step_by(self.bm) {
            for tile_col in (0..self.triple_cols()).step_by(self.bk) {
                for chunk in (tile_row..tile_row + self.bm).step_by(TL2_CHUNK) {
                    for col in (tile_col..tile_col + self.bk).step_by(24) {
                        (chunk..chunk + 16).for_each(|row| place((row, col)));
                    }
                }
            }
        }
    }
}

/// Appends the codes of `trits`, `[rows, cols]`, as TL1 or TL2, without padding and scale.
pub(crate) fn pack(ty: TensorType, tiles: Tiles, trits: &[i8], out: &mut Vec<u8>) {
    let at = |row: usize, col: usize| row * tiles.cols + col;
    let pair = |i: usize| (3 * trits[i] + trits[i + 1] + 4) as u8;
    if ty == TensorType::TL1 {
        return tiles.tl1_places(|(row, col)| {
            let i = at(row, col);
            out.push(pair(i) << 4 | pair(i + 2));
        });
    }
    let triple = |i: usize| 9 * trits[i] + 3 * trits[i + 1] + trits[i + 2];
    tiles.tl2_triples(|(row, col)| {
        let i = at(row, col);
        out.push(triple(i).unsigned_abs() << 4 | triple(i + 3).unsigned_abs());
    });
    tiles.tl2_signs(|(row, col)| {
        let mut word = 0u16;
        for bit in 0..16 {
            let i = at(row + 16 * (bit % 2), col + bit / 2 * 3);
            word |= u16::from(triple(i) < 0) << (15 - bit);
        }
        out.extend_from_slice(&word.to_le_bytes());
    });
    tiles.tl2_pairs(|(row, col)| {
        let i = at(row, col);
        out.push(pair(i) << 4 | pair(i + 2));
    });
}

/// The weights of TL1 or TL2 codes, `[rows, cols]`.
///
/// # Errors
/// When a code is none that a writer makes.
pub(crate) fn unpack(ty: TensorType, tiles: Tiles, data: &[u8]) -> Result<Vec<i8>, TilesError> {
    let mut trits = vec![0i8; tiles.rows * tiles.cols];
    let mut bad = None;
    let mut bytes = data.iter().copied().enumerate();
    let mut next = || {
        bytes
            .next()
            .expect("the reader checked the tensor's length")
    };
    let at = |row: usize, col: usize| row * tiles.cols + col;
    let mut put_pair = |i: usize, code: u8, offset: usize, trits: &mut [i8]| {
        if code > 8 {
            bad.get_or_insert((code, offset));
            return;
        }
        trits[i..i + 2].copy_from_slice(&PAIRS[code as usize]);
    };
    if ty == TensorType::TL1 {
        tiles.tl1_places(|(row, col)| {
            let ((offset, byte), i) = (next(), at(row, col));
            put_pair(i, byte >> 4, offset, &mut trits);
            put_pair(i + 2, byte & 15, offset, &mut trits);
        });
        return bad.map_or(Ok(trits), |(code, offset)| {
            Err(TilesError::Code { ty, code, offset })
        });
    }
    let mut wrong = None;
    tiles.tl2_triples(|(row, col)| {
        let ((offset, byte), i) = (next(), at(row, col));
        for (i, code) in [(i, byte >> 4), (i + 3, byte & 15)] {
            match TRIPLES.get(code as usize) {
                Some(triple) => trits[i..i + 3].copy_from_slice(triple),
                None => _ = wrong.get_or_insert((code, offset)),
            }
        }
    });
    tiles.tl2_signs(|(row, col)| {
        let word = u16::from_le_bytes([next().1, next().1]);
        for bit in (0..16).filter(|bit| word >> (15 - bit) & 1 == 1) {
            let i = at(row + 16 * (bit % 2), col + bit / 2 * 3);
            trits[i..i + 3].iter_mut().for_each(|w| *w = -*w);
        }
    });
    tiles.tl2_pairs(|(row, col)| {
        let ((offset, byte), i) = (next(), at(row, col));
        put_pair(i, byte >> 4, offset, &mut trits);
        put_pair(i + 2, byte & 15, offset, &mut trits);
    });
    match wrong.or(bad) {
        Some((code, offset)) => Err(TilesError::Code { ty, code, offset }),
        None => Ok(trits),
    }
}

/// Weights of the pair with index 3 w0 + w1 + 4.
const PAIRS: [[i8; 2]; 9] = [
    [-1, -1],
    [-1, 0],
    [-1, 1],
    [0, -1],
    [0, 0],
    [0, 1],
    [1, -1],
    [1, 0],
    [1, 1],
];

/// Weights of the triple with 9 w0 + 3 w1 + w2 = index.
const TRIPLES: [[i8; 3]; 14] = [
    [0, 0, 0],
    [0, 0, 1],
    [0, 1, -1],
    [0, 1, 0],
    [0, 1, 1],
    [1, -1, -1],
    [1, -1, 0],
    [1, -1, 1],
    [1, 0, -1],
    [1, 0, 0],
    [1, 0, 1],
    [1, 1, -1],
    [1, 1, 0],
    [1, 1, 1],
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::packings::tests::random_trits;

    #[test]
    fn tables_follow_their_formulas() {
        for (index, [a, b]) in PAIRS.into_iter().enumerate() {
            assert_eq!(index as i8, 3 * a + b + 4);
        }
        for (index, [a, b, c]) in TRIPLES.into_iter().enumerate() {
            assert_eq!(index as i8, 9 * a + 3 * b + c);
        }
    }

    #[test]
    fn every_preset_is_a_bijection() {
        for (ty, presets) in [
            (TensorType::TL1, TL1_PRESETS),
            (TensorType::TL2, TL2_PRESETS),
        ] {
            for &[rows, cols, bm, ..] in presets {
                let tiles = Tiles::find(ty, rows, cols, &[]).unwrap();
                // One row of tiles is enough: the others repeat it.
                let tiles = Tiles { rows: bm, ..tiles };
                let trits = random_trits(tiles.rows * cols);
                let mut bytes = Vec::new();
                pack(ty, tiles, &trits, &mut bytes);
                let most = ty.data_bytes(&[cols as u64, bm as u64]).unwrap() - 32;
                assert!(bytes.len() as u64 <= most, "{ty} {tiles}");
                assert_eq!(unpack(ty, tiles, &bytes).unwrap(), trits, "{ty} {tiles}");
            }
        }
    }

    /// Sections 3.3 and 3.4 of the format's description, as index arithmetic.
    #[test]
    fn bytes_lie_where_the_description_says() {
        let (rows, cols) = (128, 512);
        let trits = random_trits(rows * cols);
        let w = |m: usize, k: usize| i32::from(trits[m * cols + k]);
        let pair = |m, p| (3 * w(m, 2 * p) + w(m, 2 * p + 1) + 4) as u8;
        let tiles: Tiles = "128x512=128/64/64".parse().unwrap();
        let (bm, bk, chunk, by) = (128, 64, 64, 4);
        let mut expected = Vec::new();
        for ik in 0..cols / bk {
            for ib in 0..bm / chunk {
                for iy in 0..bk / by {
                    for c in 0..chunk / 16 {
                        for d in 0..by / 4 {
                            for r in 0..16 {
                                let m = ib * chunk + 16 * c + r;
                                let p = ik * bk / 2 + iy * by / 2 + 2 * d;
                                expected.push(pair(m, p) << 4 | pair(m, p + 1));
                            }
                        }
                    }
                }
            }
        }
        let mut bytes = Vec::new();
        pack(TensorType::TL1, tiles, &trits, &mut bytes);
        assert_eq!(bytes, expected);

        let tiles: Tiles = "128x512=64/96".parse().unwrap();
        let (bm, bk) = (64, 96);
        let triple = |m, t: usize| 9 * w(m, 3 * t) + 3 * w(m, 3 * t + 1) + w(m, 3 * t + 2);
        let magnitude = |m, t| triple(m, t).unsigned_abs() as u8;
        let row = |q: usize| [0, 2, 1, 3][q / 8] * 8 + q % 8;
        let (triples, tail) = (480, 32);
        let mut expected = Vec::new();
        for im in 0..rows / bm {
            for ik in 0..triples / bk {
                for (ib, iy) in (0..bm / 32).flat_map(|ib| (0..bk / 6).map(move |iy| (ib, iy))) {
                    for q in 0..32 {
                        let (m, t) = (im * bm + ib * 32 + row(q), ik * bk / 3 + 2 * iy);
                        expected.push(magnitude(m, t) << 4 | magnitude(m, t + 1));
                    }
                }
            }
        }
        for im in 0..rows / bm {
            for ik in 0..triples / bk {
                for (ib, iy) in (0..bm / 32).flat_map(|ib| (0..bk / 24).map(move |iy| (ib, iy))) {
                    for r in 0..16 {
                        let mut word = 0u16;
                        for (t, h) in (0..8).flat_map(|t| [(t, 0), (t, 1)]) {
                            let m = im * bm + ib * 32 + 16 * h + r;
                            let negative = triple(m, ik * bk / 3 + 8 * iy + t) < 0;
                            word |= u16::from(negative) << (15 - (2 * t + h));
                        }
                        expected.extend_from_slice(&word.to_le_bytes());
                    }
                }
            }
        }
        for im in 0..rows / bm {
            for ik in 0..tail / 32 {
                for (ib, iy) in (0..bm / 32).flat_map(|ib| (0..8).map(move |iy| (ib, iy))) {
                    for q in 0..32 {
                        let m = im * bm + ib * 32 + row(q);
                        let p = triples / 2 + 16 * ik + 2 * iy;
                        expected.push(pair(m, p) << 4 | pair(m, p + 1));
                    }
                }
            }
        }
        let mut bytes = Vec::new();
        pack(TensorType::TL2, tiles, &trits, &mut bytes);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn tiles_are_found_chosen_and_refused() {
        let text = "640x2560=128/64/32";
        let said: Tiles = text.parse().unwrap();
        assert_eq!(said.to_string(), text);
        assert_eq!(
            Tiles::find(TensorType::TL1, 640, 2560, &[said]).unwrap(),
            said
        );
        let unknown = Tiles::find(TensorType::TL2, 2560, 6912, &[]).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "no tile sizes are known for TL2 matrices of 2560 x 6912"
        );
        for ty in [TensorType::TL1, TensorType::TL2] {
            for (rows, cols) in [(2560, 6912), (6912, 2560), (640, 2560), (128, 256)] {
                let tiles = Tiles::find_or_choose(ty, rows, cols, &[]).unwrap();
                let trits = random_trits(rows * cols);
                let mut bytes = Vec::new();
                pack(ty, tiles, &trits, &mut bytes);
                assert_eq!(unpack(ty, tiles, &bytes).unwrap(), trits, "{ty} {tiles}");
            }
        }
        for (ty, tiles, because) in [
            (TensorType::TL1, "640x2560=100/64/32", "no multiple of BM"),
            (TensorType::TL1, "640x2560=128/48/32", "no multiple of BK"),
            (TensorType::TL1, "640x2560=128/64/16", "32 or 64"),
            (TensorType::TL2, "640x2560=128/64/32", "96 or 192"),
            (TensorType::TL2, "640x2560=128/96/64", "32 rows"),
            (TensorType::TL2, "640x2560=640/192/32", ""),
            (TensorType::TL2, "640x128=128/96/32", "at least 256"),
            (TensorType::TL2, "640x1000=128/96/32", "multiple of 32"),
        ] {
            let tiles: Tiles = tiles.parse().unwrap();
            match Tiles::find(ty, tiles.rows, tiles.cols, &[tiles]) {
                Ok(_) => assert!(because.is_empty(), "{tiles}"),
                Err(error) => assert!(
                    !because.is_empty() && error.to_string().contains(because),
                    "{error}"
                ),
            }
        }
        for text in [
            "",
            "1x2",
            "1x2=3",
            "ax2=3/4",
            "1x2=3/4/5/6",
            "0x2=3/4",
            "1x2=3/",
        ] {
            assert!(text.parse::<Tiles>().is_err(), "{text}");
        }
    }

    #[test]
    fn codes_no_writer_makes_are_refused() {
        let tiles: Tiles = "32x256=32/64/32".parse().unwrap();
        let mut bytes = Vec::new();
        pack(TensorType::TL1, tiles, &random_trits(32 * 256), &mut bytes);
        bytes[5] = 0x9f;
        let error = unpack(TensorType::TL1, tiles, &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the TL1 code 9 at byte 5 is none that a writer makes"
        );
        let tiles: Tiles = "32x256=32/96/32".parse().unwrap();
        let mut bytes = Vec::new();
        pack(TensorType::TL2, tiles, &random_trits(32 * 256), &mut bytes);
        bytes[7] = 0x0e;
        assert!(unpack(TensorType::TL2, tiles, &bytes).is_err());
    }
}
