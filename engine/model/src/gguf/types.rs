//! How tensors are stored: the types by their numbers in the file, and the bytes each takes.

use std::fmt;

use super::align_up;

/// How a tensor's weights are stored. Types this program never computes with are kept, too: a file may carry them.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorType {
    F32,
    F16,
    BF16,
    F64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    I8,
    I16,
    I32,
    I64,
    TQ1_0,
    TQ2_0,
    /// Ternary, 2 bits, blocks of 128 along a row, one f32 scale after the codes.
    I2S,
    /// Ternary, bitnet.cpp's look-up layout for ARM.
    TL1,
    /// Ternary, bitnet.cpp's look-up layout for x86; shares its id with MXFP4.
    TL2,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
    /// A type id not known here.
    Unknown(u32),
}

use TensorType as T;

/// Id, type, name, weights and bytes per block; no block for the types with a size formula of their own.
type TypeEntry = (u32, TensorType, &'static str, Option<(u64, u64)>);

const TYPES: &[TypeEntry] = &[
    (0, T::F32, "F32", Some((1, 4))),
    (1, T::F16, "F16", Some((1, 2))),
    (2, T::Q4_0, "Q4_0", Some((32, 18))),
    (3, T::Q4_1, "Q4_1", Some((32, 20))),
    (6, T::Q5_0, "Q5_0", Some((32, 22))),
    (7, T::Q5_1, "Q5_1", Some((32, 24))),
    (8, T::Q8_0, "Q8_0", Some((32, 34))),
    (10, T::Q2K, "Q2_K", Some((256, 84))),
    (11, T::Q3K, "Q3_K", Some((256, 110))),
    (12, T::Q4K, "Q4_K", Some((256, 144))),
    (13, T::Q5K, "Q5_K", Some((256, 176))),
    (14, T::Q6K, "Q6_K", Some((256, 210))),
    (24, T::I8, "I8", Some((1, 1))),
    (25, T::I16, "I16", Some((1, 2))),
    (26, T::I32, "I32", Some((1, 4))),
    (27, T::I64, "I64", Some((1, 8))),
    (28, T::F64, "F64", Some((1, 8))),
    (30, T::BF16, "BF16", Some((1, 2))),
    (34, T::TQ1_0, "TQ1_0", Some((256, 54))),
    (35, T::TQ2_0, "TQ2_0", Some((256, 66))),
    (36, T::I2S, "I2_S", None),
    (38, T::TL1, "TL1", None),
    (39, T::MXFP4, "MXFP4", Some((32, 17))),
    (39, T::TL2, "TL2", None),
    (40, T::NVFP4, "NVFP4", Some((64, 36))),
    (41, T::Q1_0, "Q1_0", Some((128, 18))),
    (42, T::Q2_0, "Q2_0", Some((64, 18))),
];

impl TensorType {
    /// By the number in the file; 39 is read as MXFP4, [`Gguf`](super::Gguf) knows when it is TL2.
    pub fn from_id(id: u32) -> TensorType {
        let known = TYPES.iter().find(|entry| entry.0 == id);
        known.map_or(T::Unknown(id), |entry| entry.1)
    }

    /// The number in the file.
    pub fn id(self) -> u32 {
        match self {
            T::Unknown(id) => id,
            _ => self.entry().map_or(0, |entry| entry.0),
        }
    }

    /// Weights per block and bytes per block; `None` for types whose size has a formula of its own or is unknown.
    pub fn block(self) -> Option<(u64, u64)> {
        self.entry().and_then(|entry| entry.3)
    }

    /// Bytes of a tensor of these dimensions; `None` when the type's size is unknown, a row isn't a whole number of
    /// blocks, or the number doesn't fit.
    pub fn data_bytes(self, dims: &[u64]) -> Option<u64> {
        let n = elements(dims)?;
        let cols = dims.first().copied().unwrap_or(1);
        match self {
            T::I2S | T::TL1 => (n % 4 == 0).then_some(n / 4)?.checked_add(32),
            T::TL2 => tl2_bytes(cols, n.checked_div(cols)?),
            _ => {
                let (weights, bytes) = self.block()?;
                (cols % weights == 0)
                    .then_some(n / weights)?
                    .checked_mul(bytes)
            }
        }
    }

    fn entry(self) -> Option<&'static TypeEntry> {
        TYPES.iter().find(|entry| entry.1 == self)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.entry(), self) {
            (Some(entry), _) => f.write_str(entry.2),
            (None, T::Unknown(id)) => write!(f, "type {id}"),
            (None, _) => f.write_str("unknown type"),
        }
    }
}

/// bitnet.cpp's size of a TL2 tensor: columns in triples at 5 bits, the last 256 in pairs at 4 bits, rounded up to 32,
/// plus 32 for the scale.
fn tl2_bytes(cols: u64, rows: u64) -> Option<u64> {
    let triples = cols.checked_sub(256)?.checked_mul(rows)? / 3 * 5 / 8;
    let pairs = 256u64.checked_mul(rows)? / 2 * 4 / 8;
    align_up(triples.checked_add(pairs)?, 32)?.checked_add(32)
}

pub(super) fn elements(dims: &[u64]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))
}
