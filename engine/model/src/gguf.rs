//! Reads GGUF files, versions 2 and 3, little endian: the header's keys and the table of tensors.
//!
//! Total and bounded: any bytes give a [`Gguf`] or a [`GgufError`], and nothing is allocated before its length has been
//! checked against the file. Big arrays stay in the mapped file; a string array keeps one u32 per element. Format:
//! ggml's `docs/gguf.md`, plus bitnet.cpp's type 36 (I2_S, codes and one f32 scale per tensor), 38 and 39 (TL1, TL2).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bitnet_kernels::SharedBytes;

use crate::os::{FileMap, read_whole};
use crate::protocol::{KeyOverride, KeyValue};

/// Most dimensions a tensor has.
const MAX_DIMS: u32 = 4;
/// Bytes of the shortest key/value pair: an empty key's length, a type and one byte.
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor entry: an empty name's length, no dimensions, type and offset.
const MIN_INFO_BYTES: u64 = 8 + 4 + 4 + 8;
/// Data alignment where `general.alignment` says nothing, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A GGUF file's header over its mapped bytes.
#[derive(Debug, Clone)]
pub struct Gguf {
    bytes: SharedBytes,
    /// The mapping behind `bytes`, if a file is.
    map: Option<FileMap>,
    version: u32,
    alignment: u64,
    data_start: u64,
    values: Vec<(String, Value)>,
    value_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
}

/// One tensor of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// For example `blk.0.attn_q.weight`.
    pub name: String,
    /// Fastest first: a matrix of `rows` outputs and `cols` inputs is `[cols, rows]`.
    pub dims: Vec<u64>,
    /// Storage type.
    pub ty: TensorType,
    /// From the start of the file, in bytes.
    pub offset: u64,
    /// Length of the data in bytes; inside the file.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Weights in a row: the first dimension.
    pub fn cols(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Number of rows: all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }
}

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
    /// By the number in the file; 39 is read as MXFP4, [`Gguf`] knows when it is TL2.
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

fn elements(dims: &[u64]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))
}

fn align_up(n: u64, alignment: u64) -> Option<u64> {
    n.checked_next_multiple_of(alignment)
}

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

impl Value {
    /// Any integer type, when the number isn't negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// Either float type.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// Of one kind: both integers, floats, bools or strings.
    fn is_like(&self, other: &Value) -> bool {
        let kind = |value: &Value| match value {
            Value::F32(_) | Value::F64(_) => 1,
            Value::Bool(_) => 2,
            Value::String(_) => 3,
            Value::Array(_) => 4,
            _ => 0,
        };
        kind(self) == kind(other)
    }

    /// For messages: `u32`, `string`, `array of f32`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.element),
            Value::U8(_) => "u8".into(),
            Value::I8(_) => "i8".into(),
            Value::U16(_) => "u16".into(),
            Value::I16(_) => "i16".into(),
            Value::U32(_) => "u32".into(),
            Value::I32(_) => "i32".into(),
            Value::U64(_) => "u64".into(),
            Value::I64(_) => "i64".into(),
            Value::F32(_) => "f32".into(),
            Value::F64(_) => "f64".into(),
            Value::Bool(_) => "bool".into(),
            Value::String(_) => "string".into(),
        }
    }
}

/// Element type of an array.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    Bool,
    String,
}

impl Element {
    /// The number in the file.
    pub(crate) fn id(self) -> u32 {
        match self {
            Element::U8 => 0,
            Element::I8 => 1,
            Element::U16 => 2,
            Element::I16 => 3,
            Element::U32 => 4,
            Element::I32 => 5,
            Element::F32 => 6,
            Element::Bool => 7,
            Element::String => 8,
            Element::U64 => 10,
            Element::I64 => 11,
            Element::F64 => 12,
        }
    }

    /// Bytes of one element; `None` for strings.
    fn bytes(self) -> Option<usize> {
        match self {
            Element::U8 | Element::I8 | Element::Bool => Some(1),
            Element::U16 | Element::I16 => Some(2),
            Element::U32 | Element::I32 | Element::F32 => Some(4),
            Element::U64 | Element::I64 | Element::F64 => Some(8),
            Element::String => None,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::U8 => "u8",
            Element::I8 => "i8",
            Element::U16 => "u16",
            Element::I16 => "i16",
            Element::U32 => "u32",
            Element::I32 => "i32",
            Element::U64 => "u64",
            Element::I64 => "i64",
            Element::F32 => "f32",
            Element::F64 => "f64",
            Element::Bool => "bool",
            Element::String => "string",
        })
    }
}

/// An array of the header, left where it lies in the file.
#[derive(Debug, Clone)]
pub struct Array {
    element: Element,
    len: usize,
    bytes: SharedBytes,
    /// For strings: where each element (its length word) begins in `bytes`, and the end; `len + 1` entries.
    starts: Vec<u32>,
}

impl PartialEq for Array {
    fn eq(&self, other: &Self) -> bool {
        self.element == other.element && self.len == other.len && *self.bytes == *other.bytes
    }
}

impl Array {
    /// Element type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements as the file holds them: numbers one after the other, strings with their lengths in front.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The strings' bytes (UTF-8 is not checked); empty for other element types.
    pub fn strings(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let bytes: &[u8] = &self.bytes;
        self.starts
            .windows(2)
            .map(move |span| &bytes[span[0] as usize + 8..span[1] as usize])
    }

    /// One string's bytes.
    pub fn string(&self, index: usize) -> Option<&[u8]> {
        let (&start, &end) = (self.starts.get(index)?, self.starts.get(index + 1)?);
        self.bytes.get(start as usize + 8..end as usize)
    }

    /// The numbers; `None` when the elements are not f32.
    pub fn f32s(&self) -> Option<impl ExactSizeIterator<Item = f32>> {
        (self.element == Element::F32).then(|| self.words().map(f32::from_le_bytes))
    }

    /// The numbers; `None` when the elements are not i32 or u32.
    pub fn i32s(&self) -> Option<impl ExactSizeIterator<Item = i32>> {
        matches!(self.element, Element::I32 | Element::U32)
            .then(|| self.words().map(i32::from_le_bytes))
    }

    fn words(&self) -> impl ExactSizeIterator<Item = [u8; 4]> {
        self.bytes.as_chunks::<4>().0.iter().copied()
    }
}

/// Why a file is not a GGUF this program reads.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum GgufError {
    #[error("cannot open `{}`: {cause}", path.display())]
    Open { path: PathBuf, cause: io::Error },
    #[error("`{}` is a directory, expected a GGUF file", path.display())]
    Directory { path: PathBuf },
    #[error("the file is empty, expected a GGUF file")]
    Empty,
    #[error("this is {found}, expected a GGUF file")]
    Foreign { found: String },
    #[error("GGUF version {found} is not supported, versions 2 and 3 are")]
    Version { found: u32 },
    #[error("this GGUF is big-endian, only little-endian files are supported")]
    BigEndian,
    #[error(
        "{what} needs {} bytes at offset {}, the file ends after {}",
        grouped(*needed), grouped(*offset), grouped(*file)
    )]
    Truncated {
        what: String,
        needed: u64,
        offset: u64,
        file: u64,
    },
    #[error("{what} announces {} entries at offset {}, the rest of the file holds {} at most",
        grouped(*count), grouped(*offset), grouped(*most))]
    Count {
        what: String,
        count: u64,
        offset: u64,
        most: u64,
    },
    #[error("{what} at offset {} is not UTF-8", grouped(*offset))]
    Utf8 { what: String, offset: u64 },
    #[error("key `{key}` is in the file twice")]
    DuplicateKey { key: String },
    #[error("a key at offset {} is empty", grouped(*offset))]
    EmptyKey { offset: u64 },
    #[error("key `{key}` has value type {found}, known are 0 to 12")]
    ValueType { key: String, found: u32 },
    #[error("key `{key}` is an array of arrays, which GGUF readers refuse")]
    NestedArray { key: String },
    #[error("key `{key}` is {} bytes of strings, at most {} are supported", grouped(*bytes), grouped(u32::MAX.into()))]
    ArrayTooBig { key: String, bytes: u64 },
    #[error("key `{key}` holds the byte {found} as bool, expected 0 or 1")]
    Bool { key: String, found: u8 },
    #[error("key `{key}` is {found}, expected {expected}")]
    WrongType {
        key: String,
        expected: &'static str,
        found: String,
    },
    #[error("key `{key}` is {found} in the file, its override {given}")]
    Override {
        key: String,
        found: String,
        given: &'static str,
    },
    #[error("`general.alignment` is {found}, expected a power of two up to 1,048,576")]
    Alignment { found: u64 },
    #[error("tensor `{name}` is in the file twice")]
    DuplicateTensor { name: String },
    #[error("tensor `{name}` has {found} dimensions, at most {MAX_DIMS} are supported")]
    Dims { name: String, found: u32 },
    #[error("tensor `{name}` has the shape {dims:?}, which no memory holds")]
    Shape { name: String, dims: Vec<u64> },
    #[error("tensor `{name}` has rows of {cols} weights, {ty} needs a multiple of {block}")]
    Row {
        name: String,
        cols: u64,
        ty: TensorType,
        block: u64,
    },
    #[error("tensor `{name}` begins at {found} in the data, expected a multiple of {alignment}")]
    Misaligned {
        name: String,
        found: u64,
        alignment: u64,
    },
    #[error("tensors `{first}` and `{second}` overlap in the file")]
    Overlap { first: String, second: String },
}

impl GgufError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            GgufError::Truncated { .. } | GgufError::Count { .. } => Some(
                "the download may be incomplete; compare the file's size with its source and fetch it again",
            ),
            GgufError::Foreign { found } if found.contains("LFS") => {
                Some("fetch the file itself, for example with `git lfs pull`")
            }
            GgufError::Foreign { found } if found.contains("HTML") => {
                Some("the download saved a web page; use the file's direct address")
            }
            GgufError::Foreign { .. } => Some(
                "models are files like `ggml-model-i2_s.gguf` from microsoft/bitnet-b1.58-2B-4T-gguf",
            ),
            GgufError::Version { .. } | GgufError::BigEndian => {
                Some("convert the model again with a current converter on a little-endian machine")
            }
            _ => None,
        }
    }
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// When the file can't be mapped or isn't a sound GGUF.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let failed = |cause| GgufError::Open {
            path: path.to_owned(),
            cause,
        };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            return Err(GgufError::Directory {
                path: path.to_owned(),
            });
        }
        if metadata.is_file() && metadata.len() == 0 {
            return Err(GgufError::Empty);
        }
        let map = FileMap::open(path).map_err(failed)?;
        let mut gguf = Gguf::from_bytes(map.bytes())?;
        gguf.map = Some(map);
        Ok(gguf)
    }

    /// The same from a copy of the whole file in memory: nothing that happens to the file later is seen.
    ///
    /// # Errors
    /// When the file can't be read or isn't a sound GGUF.
    pub fn read(path: &Path) -> Result<Gguf, GgufError> {
        let failed = |cause| GgufError::Open {
            path: path.to_owned(),
            cause,
        };
        Gguf::from_bytes(read_whole(path).map_err(failed)?)
    }

    /// The same header with other values for these keys.
    ///
    /// # Errors
    /// When the file has a value of another kind under one of them.
    pub fn with_keys(mut self, overrides: &[KeyOverride]) -> Result<Gguf, GgufError> {
        for KeyOverride { key, value } in overrides {
            let (value, given) = match value.clone() {
                KeyValue::Int(n) => (Value::I64(n), "an integer"),
                KeyValue::Float(x) => (Value::F64(x), "a float"),
                KeyValue::Bool(on) => (Value::Bool(on), "a bool"),
                KeyValue::Str(text) => (Value::String(text), "a string"),
            };
            match self.value_index.get(key) {
                Some(&at) if self.values[at].1.is_like(&value) => self.values[at].1 = value,
                Some(&at) => {
                    return Err(GgufError::Override {
                        key: key.clone(),
                        found: self.values[at].1.type_name(),
                        given,
                    });
                }
                None => {
                    self.value_index.insert(key.clone(), self.values.len());
                    self.values.push((key.clone(), value));
                }
            }
        }
        Ok(self)
    }

    /// Reads the header of a GGUF that is in memory.
    ///
    /// # Errors
    /// When the bytes are not a sound GGUF.
    pub fn from_bytes(bytes: SharedBytes) -> Result<Gguf, GgufError> {
        refuse_foreign(&bytes)?;
        let mut reader = Reader {
            bytes: &bytes,
            at: 4,
        };
        let version = reader.version()?;
        let n_tensors = reader.u64("the header's tensor count")?;
        let n_values = reader.u64("the header's key count")?;
        let values = read_values(&mut reader, n_values)?;
        let value_index = index(values.iter().map(|(key, _)| key))
            .map_err(|key| GgufError::DuplicateKey { key })?;
        let alignment = alignment(value_index.get("general.alignment").map(|&i| &values[i].1))?;
        let infos = read_infos(&mut reader, n_tensors)?;
        let tensor_index = index(infos.iter().map(|info| &info.name))
            .map_err(|name| GgufError::DuplicateTensor { name })?;
        let header_end = reader.at as u64;
        let mut gguf = Gguf {
            data_start: align_up(header_end, alignment).unwrap_or(header_end),
            bytes,
            map: None,
            version,
            alignment,
            values,
            value_index,
            tensors: Vec::new(),
            tensor_index,
        };
        gguf.tensors = gguf.place(infos)?;
        Ok(gguf)
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of the tensors in bytes, a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the data section begins, in bytes.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Length of the whole file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// All keys with their values, in file order.
    pub fn values(&self) -> &[(String, Value)] {
        &self.values
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.value_index.get(key).map(|&i| &self.values[i].1)
    }

    /// A number that isn't negative; `None` without the key.
    ///
    /// # Errors
    /// When the key is there with another type.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an integer that isn't negative", Value::as_u64)
    }

    /// A number that fits u32; `None` without the key.
    ///
    /// # Errors
    /// When the key is there with another type.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an integer of 32 bits that isn't negative", |value| {
            value.as_u64().and_then(|v| v.try_into().ok())
        })
    }

    /// A float; `None` without the key.
    ///
    /// # Errors
    /// When the key is there with another type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// A bool; `None` without the key.
    ///
    /// # Errors
    /// When the key is there with another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A string; `None` without the key.
    ///
    /// # Errors
    /// When the key is there with another type.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of this element type; `None` without the key.
    ///
    /// # Errors
    /// When the key is there with another type.
    pub fn array(&self, key: &str, element: Element) -> Result<Option<&Array>, GgufError> {
        let expected = match element {
            Element::String => "an array of strings",
            Element::F32 => "an array of f32",
            _ => "an array of i32",
        };
        self.typed(key, expected, |value| {
            value.as_array().filter(|array| array.element == element)
        })
    }

    fn typed<'a, V>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<V>,
    ) -> Result<Option<V>, GgufError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| GgufError::WrongType {
            key: key.to_owned(),
            expected,
            found: value.type_name(),
        })
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor's data: `info.bytes` bytes of the file.
    ///
    /// # Panics
    /// When `info` isn't from this file.
    pub fn data(&self, info: &TensorInfo) -> SharedBytes {
        let start = info.offset as usize;
        self.bytes
            .slice(start..start + info.bytes as usize)
            .expect("tensors were checked against the file when it was read")
    }

    /// The mapping that all data lies in, if a file is mapped.
    pub fn map(&self) -> Option<&FileMap> {
        self.map.as_ref()
    }

    /// Turns table entries into tensors inside the file: types settled, sizes known, no two overlapping.
    fn place(&self, infos: Vec<RawInfo>) -> Result<Vec<TensorInfo>, GgufError> {
        let mut order: Vec<usize> = (0..infos.len()).collect();
        order.sort_by_key(|&i| infos[i].offset);
        let mut ends = vec![u64::MAX; infos.len()];
        for pair in order.windows(2) {
            ends[pair[0]] = infos[pair[1]].offset;
        }
        let tensors: Vec<TensorInfo> = infos
            .into_iter()
            .zip(ends)
            .map(|(info, end)| self.place_one(info, end))
            .collect::<Result<_, _>>()?;
        for pair in order.windows(2) {
            let (first, second) = (&tensors[pair[0]], &tensors[pair[1]]);
            if first.offset + first.bytes > second.offset {
                return Err(GgufError::Overlap {
                    first: first.name.clone(),
                    second: second.name.clone(),
                });
            }
        }
        Ok(tensors)
    }

    /// `next`: offset of the tensor behind this one in the data section, `u64::MAX` for the last.
    fn place_one(&self, info: RawInfo, next: u64) -> Result<TensorInfo, GgufError> {
        if !info.offset.is_multiple_of(self.alignment) {
            return Err(GgufError::Misaligned {
                name: info.name,
                found: info.offset,
                alignment: self.alignment,
            });
        }
        let file = self.file_bytes();
        let offset = self.data_start.saturating_add(info.offset);
        let room = if next == u64::MAX {
            file.saturating_sub(offset)
        } else {
            next - info.offset
        };
        let ty = self.settle_type(&info, room);
        let bytes = data_bytes(&info, ty, room)?;
        if offset.checked_add(bytes).is_none_or(|end| end > file) {
            return Err(GgufError::Truncated {
                what: format!("tensor `{}`", info.name),
                needed: bytes,
                offset,
                file,
            });
        }
        Ok(TensorInfo {
            name: info.name,
            dims: info.dims,
            ty,
            offset,
            bytes,
        })
    }

    /// Id 39 is TL2 in bitnet.cpp's files and MXFP4 everywhere else: the file type and the tensor's room decide.
    fn settle_type(&self, info: &RawInfo, room: u64) -> TensorType {
        let ty = TensorType::from_id(info.ty);
        if ty != T::MXFP4 || !matches!(self.u64("general.file_type"), Ok(Some(39))) {
            return ty;
        }
        let fits = |ty: TensorType| {
            let padded = ty
                .data_bytes(&info.dims)
                .and_then(|n| align_up(n, self.alignment));
            padded == Some(room) || ty.data_bytes(&info.dims) == Some(room)
        };
        let arch = self
            .str("general.architecture")
            .ok()
            .flatten()
            .unwrap_or("");
        let bitnet = arch.starts_with("bitnet") && !fits(T::MXFP4);
        if bitnet || fits(T::TL2) { T::TL2 } else { ty }
    }
}

/// Length of a tensor's data, given the room up to the next tensor.
fn data_bytes(info: &RawInfo, ty: TensorType, room: u64) -> Result<u64, GgufError> {
    if let Some(bytes) = ty.data_bytes(&info.dims) {
        // Some writers end an I2_S tensor after its scale instead of padding the scale to 32 bytes.
        let least = bytes.saturating_sub(28);
        return Ok(if ty == T::I2S && (least..bytes).contains(&room) {
            room
        } else {
            bytes
        });
    }
    match (ty, ty.block()) {
        (_, Some((block, _))) => Err(GgufError::Row {
            name: info.name.clone(),
            cols: info.dims.first().copied().unwrap_or(1),
            ty,
            block,
        }),
        (T::I2S | T::TL1, _) => Err(GgufError::Row {
            name: info.name.clone(),
            cols: info.dims.first().copied().unwrap_or(1),
            ty,
            block: 4,
        }),
        // Of no size known here: whatever is there. Whoever needs the tensor refuses it by name.
        _ => Ok(room),
    }
}

/// A tensor entry as it stands in the file; the offset counts from the data section.
struct RawInfo {
    name: String,
    dims: Vec<u64>,
    ty: u32,
    offset: u64,
}

fn refuse_foreign(bytes: &[u8]) -> Result<(), GgufError> {
    if bytes.is_empty() {
        return Err(GgufError::Empty);
    }
    if bytes.starts_with(b"GGUF") {
        return Ok(());
    }
    if b"GGUF".starts_with(bytes) {
        return Err(GgufError::Truncated {
            what: "the header".into(),
            needed: 24,
            offset: 0,
            file: bytes.len() as u64,
        });
    }
    if bytes.starts_with(b"FUGG") {
        return Err(GgufError::BigEndian);
    }
    let head = &bytes[..bytes.len().min(512)];
    let lower = head.to_ascii_lowercase();
    let text = lower.trim_ascii_start();
    let magic = |words: &[&[u8]]| words.iter().any(|word| bytes.starts_with(word));
    let found = if text.starts_with(b"version https://git-lfs") {
        "a Git LFS pointer".to_owned()
    } else if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") {
        "an HTML page".to_owned()
    } else if text.starts_with(b"<?xml") {
        "an XML document".to_owned()
    } else if is_safetensors(bytes) {
        "a safetensors file".to_owned()
    } else if magic(&[b"PK\x03\x04"]) {
        "a zip archive (perhaps a PyTorch checkpoint)".to_owned()
    } else if magic(&[b"\x80\x02", b"\x80\x04"]) {
        "a Python pickle (perhaps a PyTorch checkpoint)".to_owned()
    } else if magic(&[
        b"lmgg", b"tjgg", b"fmgg", b"algg", b"ggml", b"ggjt", b"ggmf", b"ggla",
    ]) {
        "a model in one of ggml's formats from before GGUF".to_owned()
    } else if magic(&[b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"]) {
        "a compressed file".to_owned()
    } else if text.starts_with(b"{") || text.starts_with(b"[") {
        "a JSON text".to_owned()
    } else {
        format!(
            "a file that begins with `{}`",
            bytes[..bytes.len().min(4)].escape_ascii()
        )
    };
    Err(GgufError::Foreign { found })
}

/// safetensors: u64 length of a JSON header, then the header.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= 100 << 20
}

fn alignment(value: Option<&Value>) -> Result<u64, GgufError> {
    let Some(value) = value else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let found = value.as_u64().ok_or_else(|| GgufError::WrongType {
        key: "general.alignment".into(),
        expected: "an integer that isn't negative",
        found: value.type_name(),
    })?;
    if found.is_power_of_two() && found <= 1 << 20 {
        Ok(found)
    } else {
        Err(GgufError::Alignment { found })
    }
}

/// Positions by name; `Err` with the first name that comes twice.
fn index<'a>(names: impl Iterator<Item = &'a String>) -> Result<HashMap<String, usize>, String> {
    let mut positions = HashMap::new();
    for (i, name) in names.enumerate() {
        if positions.insert(name.clone(), i).is_some() {
            return Err(name.clone());
        }
    }
    Ok(positions)
}

fn read_values(reader: &mut Reader<'_>, count: u64) -> Result<Vec<(String, Value)>, GgufError> {
    let count = reader.count("the table of keys", count, MIN_PAIR_BYTES)?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let at = reader.at as u64;
        let key = reader.string("a key")?;
        if key.is_empty() {
            return Err(GgufError::EmptyKey { offset: at });
        }
        let value = reader.value(&key)?;
        values.push((key, value));
    }
    Ok(values)
}

fn read_infos(reader: &mut Reader<'_>, count: u64) -> Result<Vec<RawInfo>, GgufError> {
    let count = reader.count("the table of tensors", count, MIN_INFO_BYTES)?;
    let mut infos = Vec::with_capacity(count);
    for _ in 0..count {
        infos.push(read_info(reader)?);
    }
    Ok(infos)
}

fn read_info(reader: &mut Reader<'_>) -> Result<RawInfo, GgufError> {
    let name = reader.string("a tensor's name")?;
    let what = "the table of tensors";
    let n_dims = reader.u32(what)?;
    if n_dims > MAX_DIMS {
        return Err(GgufError::Dims {
            name,
            found: n_dims,
        });
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        dims.push(reader.u64(what)?);
    }
    // 2^48 weights at a time keep every later byte count far from overflow.
    if elements(&dims).is_none_or(|n| n == 0 || n > 1 << 48) {
        return Err(GgufError::Shape { name, dims });
    }
    let ty = reader.u32(what)?;
    let offset = reader.u64(what)?;
    if offset > i64::MAX as u64 {
        return Err(GgufError::Truncated {
            what: format!("tensor `{name}`"),
            needed: 1,
            offset,
            file: reader.bytes.len() as u64,
        });
    }
    Ok(RawInfo {
        name,
        dims,
        ty,
        offset,
    })
}

/// A position in the header. Every read checks its length first.
struct Reader<'a> {
    bytes: &'a SharedBytes,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Moves past `length` bytes and says where they are.
    fn skip(&mut self, length: u64, what: &str) -> Result<Range<usize>, GgufError> {
        if length > self.rest() {
            return Err(GgufError::Truncated {
                what: what.to_owned(),
                needed: length,
                offset: self.at as u64,
                file: self.bytes.len() as u64,
            });
        }
        let start = self.at;
        self.at += length as usize;
        Ok(start..self.at)
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let range = self.skip(N as u64, what)?;
        let mut word = [0; N];
        word.copy_from_slice(&self.bytes[range]);
        Ok(word)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.take(what).map(u64::from_le_bytes)
    }

    fn version(&mut self) -> Result<u32, GgufError> {
        match self.u32("the header")? {
            version @ 2..=3 => Ok(version),
            // A version above 65,535 is a small one read in the wrong byte order.
            found if found & 0xffff == 0 && found != 0 => Err(GgufError::BigEndian),
            found => Err(GgufError::Version { found }),
        }
    }

    /// A number of entries, each at least `least` bytes long.
    fn count(&self, what: &str, count: u64, least: u64) -> Result<usize, GgufError> {
        let most = self.rest() / least;
        if count > most {
            return Err(GgufError::Count {
                what: what.to_owned(),
                count,
                offset: self.at as u64,
                most,
            });
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        let range = self.skip(length, what)?;
        match std::str::from_utf8(&self.bytes[range.clone()]) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(GgufError::Utf8 {
                what: what.to_owned(),
                offset: range.start as u64,
            }),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let ty = self.u32(key)?;
        let what = &format!("key `{key}`");
        Ok(match ty {
            0 => Value::U8(self.take(what).map(u8::from_le_bytes)?),
            1 => Value::I8(self.take(what).map(i8::from_le_bytes)?),
            2 => Value::U16(self.take(what).map(u16::from_le_bytes)?),
            3 => Value::I16(self.take(what).map(i16::from_le_bytes)?),
            4 => Value::U32(self.take(what).map(u32::from_le_bytes)?),
            5 => Value::I32(self.take(what).map(i32::from_le_bytes)?),
            6 => Value::F32(self.take(what).map(f32::from_le_bytes)?),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.array(key)?),
            10 => Value::U64(self.u64(what)?),
            11 => Value::I64(self.take(what).map(i64::from_le_bytes)?),
            12 => Value::F64(self.take(what).map(f64::from_le_bytes)?),
            found => {
                return Err(GgufError::ValueType {
                    key: key.to_owned(),
                    found,
                });
            }
        })
    }

    fn bool(&mut self, key: &str) -> Result<bool, GgufError> {
        match self.take::<1>(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::Bool {
                key: key.to_owned(),
                found,
            }),
        }
    }

    fn array(&mut self, key: &str) -> Result<Array, GgufError> {
        let what = format!("key `{key}`");
        let element = match self.u32(&what)? {
            0 => Element::U8,
            1 => Element::I8,
            2 => Element::U16,
            3 => Element::I16,
            4 => Element::U32,
            5 => Element::I32,
            6 => Element::F32,
            7 => Element::Bool,
            8 => Element::String,
            9 => {
                return Err(GgufError::NestedArray {
                    key: key.to_owned(),
                });
            }
            10 => Element::U64,
            11 => Element::I64,
            12 => Element::F64,
            found => {
                return Err(GgufError::ValueType {
                    key: key.to_owned(),
                    found,
                });
            }
        };
        let announced = self.u64(&what)?;
        let len = self.count(&what, announced, element.bytes().unwrap_or(8) as u64)?;
        let start = self.at;
        let starts = match element.bytes() {
            Some(bytes) => {
                self.skip((len * bytes) as u64, &what)?;
                Vec::new()
            }
            None => self.string_starts(key, len)?,
        };
        Ok(Array {
            element,
            len,
            bytes: self
                .bytes
                .slice(start..self.at)
                .expect("the reader stays inside the file"),
            starts,
        })
    }

    /// Walks over `len` strings; `len * 8` bytes are there.
    fn string_starts(&mut self, key: &str, len: usize) -> Result<Vec<u32>, GgufError> {
        let bytes: &[u8] = self.bytes;
        let begin = self.at;
        let mut starts = Vec::with_capacity(len + 1);
        let mut at = begin;
        for _ in 0..len {
            starts.push((at - begin) as u32);
            let end = bytes[at..].first_chunk::<8>().and_then(|word| {
                let length = u64::from_le_bytes(*word);
                let end = length.checked_add(at as u64 + 8)?;
                (end <= bytes.len() as u64).then_some(end as usize)
            });
            let Some(end) = end else {
                self.at = at;
                let what = format!("key `{key}`");
                let length = self.u64(&what)?;
                self.skip(length, &what)?;
                unreachable!("one of the two reads reports what does not fit");
            };
            if end - begin > u32::MAX as usize {
                return Err(GgufError::ArrayTooBig {
                    key: key.to_owned(),
                    bytes: (end - begin) as u64,
                });
            }
            at = end;
        }
        starts.push((at - begin) as u32);
        self.at = at;
        Ok(starts)
    }
}

/// A number with thousands separators, for messages.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::ModelFacts;
    use crate::protocol::Overrides;
    use crate::synth::header::Header;
    use crate::synth::{self, Shape};
    use crate::tokenizer::Tokenizer;

    fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
        Gguf::from_bytes(SharedBytes::new(bytes.to_vec()))
    }

    fn message(bytes: &[u8]) -> String {
        parse(bytes).expect_err("a bad file").to_string()
    }

    /// A header with one bad thing in it.
    fn with(edit: impl FnOnce(&mut Header)) -> Vec<u8> {
        let mut header = Header::default();
        edit(&mut header);
        header.bytes()
    }

    fn small_model() -> Vec<u8> {
        let tiny = Shape::preset("tiny").unwrap();
        let shape = Shape {
            n_layer: 1,
            n_embd: 128,
            n_ff: 128,
            n_head: 2,
            n_head_kv: 1,
            n_vocab: 280,
            ..tiny
        };
        synth::to_bytes(&shape, 5).unwrap()
    }

    #[test]
    fn reads_every_value_type() {
        let gguf = parse(&with(|h| {
            h.value("u8", 0, &[200]);
            h.value("i8", 1, &[0xff]);
            h.value("u16", 2, &500u16.to_le_bytes());
            h.value("i16", 3, &(-5i16).to_le_bytes());
            h.u32("u32", 70_000);
            h.value("i32", 5, &7i32.to_le_bytes());
            h.f32("f32", 0.5);
            h.bool("bool", true);
            h.str("string", "grüße");
            h.strings("strings", &["a", "", "ccc"]);
            h.i32s("i32s", &[1, -2]);
            h.f32s("f32s", &[0.25, 4.0]);
            h.value("u64", 10, &(1u64 << 40).to_le_bytes());
            h.value("i64", 11, &(-9i64).to_le_bytes());
            h.value("f64", 12, &0.125f64.to_le_bytes());
        }))
        .unwrap();
        for (key, expected) in [
            ("u8", Some(200)),
            ("u16", Some(500)),
            ("u32", Some(70_000)),
            ("i32", Some(7)),
            ("u64", Some(1 << 40)),
            ("gone", None),
        ] {
            assert_eq!(gguf.u64(key).unwrap(), expected, "{key}");
        }
        assert_eq!(
            (gguf.f32("f32").unwrap(), gguf.f32("f64").unwrap()),
            (Some(0.5), Some(0.125))
        );
        assert_eq!(
            (gguf.bool("bool").unwrap(), gguf.str("string").unwrap()),
            (Some(true), Some("grüße"))
        );
        let strings = gguf.array("strings", Element::String).unwrap().unwrap();
        assert_eq!(
            strings.strings().collect::<Vec<_>>(),
            [b"a".as_slice(), b"", b"ccc"]
        );
        assert_eq!(
            (strings.string(2), strings.string(3)),
            (Some(b"ccc".as_slice()), None)
        );
        let numbers = gguf.value("i32s").unwrap().as_array().unwrap();
        assert_eq!(numbers.i32s().unwrap().collect::<Vec<_>>(), [1, -2]);
        assert_eq!(
            gguf.value("f32s")
                .unwrap()
                .as_array()
                .unwrap()
                .f32s()
                .unwrap()
                .sum::<f32>(),
            4.25
        );
        assert_eq!(
            gguf.u64("i8").unwrap_err().to_string(),
            "key `i8` is i8, expected an integer that isn't negative"
        );
        assert_eq!(
            gguf.u32("u64").unwrap_err().to_string(),
            "key `u64` is u64, expected an integer of 32 bits that isn't negative"
        );
        assert_eq!(
            gguf.array("i32s", Element::F32).unwrap_err().to_string(),
            "key `i32s` is array of i32, expected an array of f32"
        );
    }

    #[test]
    fn foreign_files_are_named() {
        for (bytes, name) in [
            (
                b"version https://git-lfs.github.com/spec/v1\n".as_slice(),
                "a Git LFS pointer",
            ),
            (b"\n <!DOCTYPE html><html>", "an HTML page"),
            (
                b"PK\x03\x04 and so on",
                "a zip archive (perhaps a PyTorch checkpoint)",
            ),
            (
                b"\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}",
                "a safetensors file",
            ),
            (
                b"tjgg\x03\0\0\0",
                "a model in one of ggml's formats from before GGUF",
            ),
            (b"{\"error\": \"not found\"}", "a JSON text"),
            (b"\x1f\x8b\x08", "a compressed file"),
            (b"\x7fELF\x02", "a file that begins with `\\x7fELF`"),
        ] {
            let error = parse(bytes).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("this is {name}, expected a GGUF file")
            );
            assert!(error.hint().is_some());
        }
        assert_eq!(message(b""), "the file is empty, expected a GGUF file");
        assert_eq!(
            message(b"GG"),
            "the header needs 24 bytes at offset 0, the file ends after 2"
        );
        let version = |v: u32| [b"GGUF".as_slice(), &v.to_le_bytes(), &[0; 16]].concat();
        assert_eq!(
            message(&version(1)),
            "GGUF version 1 is not supported, versions 2 and 3 are"
        );
        assert_eq!(
            message(&version(4)),
            "GGUF version 4 is not supported, versions 2 and 3 are"
        );
        assert_eq!(
            message(&version(3 << 24)),
            "this GGUF is big-endian, only little-endian files are supported"
        );
        assert!(parse(&version(2)).is_ok());
    }

    #[test]
    fn announced_lengths_are_checked_first() {
        let counts = |tensors: u64, values: u64| {
            [
                b"GGUF".as_slice(),
                &3u32.to_le_bytes(),
                &tensors.to_le_bytes(),
                &values.to_le_bytes(),
            ]
            .concat()
        };
        assert!(message(&counts(0, u64::MAX)).starts_with(
            "the table of keys announces 18,446,744,073,709,551,615 entries at offset 24"
        ));
        assert!(
            message(&counts(1 << 40, 0))
                .starts_with("the table of tensors announces 1,099,511,627,776 entries")
        );
        let array =
            |element: u32, n: u64| [element.to_le_bytes().as_slice(), &n.to_le_bytes()].concat();
        for element in [0, 6, 8, 12] {
            let text = message(&with(|h| h.value("k", 9, &array(element, u64::MAX / 2))));
            assert!(text.contains("key `k` announces"), "{text}");
        }
        let text = message(&with(|h| h.value("k", 8, &u64::MAX.to_le_bytes())));
        assert!(
            text.starts_with("key `k` needs 18,446,744,073,709,551,615 bytes at offset"),
            "{text}"
        );
        let one_string = [array(8, 1), u64::MAX.to_le_bytes().to_vec()].concat();
        let text = message(&with(|h| h.value("k", 9, &one_string)));
        assert!(text.starts_with("key `k` needs"), "{text}");
    }

    #[test]
    fn bad_headers_are_refused() {
        type Bad<'a> = (&'a dyn Fn(&mut Header), &'a str);
        let table: &[Bad<'_>] = &[
            (
                &|h| (0..2).for_each(|_| h.u32("twice", 1)),
                "key `twice` is in the file twice",
            ),
            (&|h| h.u32("", 1), "a key at offset 24 is empty"),
            (
                &|h| h.value("k", 13, &[]),
                "key `k` has value type 13, known are 0 to 12",
            ),
            (
                &|h| h.value("k", 7, &[2]),
                "key `k` holds the byte 2 as bool, expected 0 or 1",
            ),
            (
                &|h| h.value("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]),
                "key `k` at offset 45 is not UTF-8",
            ),
            (
                &|h| h.value("k", 9, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                "key `k` is an array of arrays, which GGUF readers refuse",
            ),
            (
                &|h| h.u32("general.alignment", 0),
                "`general.alignment` is 0, expected a power of two up to 1,048,576",
            ),
            (
                &|h| h.u32("general.alignment", 3),
                "`general.alignment` is 3, expected a power of two up to 1,048,576",
            ),
            (
                &|h| h.str("general.alignment", "x"),
                "key `general.alignment` is string, expected an integer that isn't negative",
            ),
            (
                &|h| (0..2).for_each(|_| h.tensor_at("t", &[8], 0, 0)),
                "tensor `t` is in the file twice",
            ),
            (
                &|h| h.tensor_at("t", &[1; 5], 0, 0),
                "tensor `t` has 5 dimensions, at most 4 are supported",
            ),
            (
                &|h| h.tensor_at("t", &[1 << 40, 1 << 40], 0, 0),
                "tensor `t` has the shape [1099511627776, 1099511627776], which no memory holds",
            ),
            (
                &|h| h.tensor_at("t", &[4, 0], 0, 0),
                "tensor `t` has the shape [4, 0], which no memory holds",
            ),
            (
                &|h| h.tensor_at("t", &[8], 0, 7),
                "tensor `t` begins at 7 in the data, expected a multiple of 32",
            ),
            (
                &|h| h.tensor_at("t", &[33], 8, 0),
                "tensor `t` has rows of 33 weights, Q8_0 needs a multiple of 32",
            ),
            (
                &|h| h.tensor_at("t", &[2, 3], 36, 0),
                "tensor `t` has rows of 2 weights, I2_S needs a multiple of 4",
            ),
            (
                &|h| h.tensor_at("t", &[8], 0, 1 << 62),
                "tensor `t` needs 32 bytes at offset 4,611,686,018,427,387,968, the file ends after 64",
            ),
            (
                &|h| h.tensor_at("t", &[8], 0, u64::MAX - 31),
                "tensor `t` needs 1 bytes at offset 18,446,744,073,709,551,584, the file ends after 64",
            ),
        ];
        for (edit, expected) in table {
            assert_eq!(&message(&with(|h| edit(h))), expected);
        }
    }

    #[test]
    fn tensors_lie_inside_the_file_and_apart() {
        let mut bytes = with(|h| {
            h.tensor_at("blk.3.ffn_down.weight", &[1024, 1024], 1, 0);
        });
        bytes.resize(bytes.len() + 1000, 0);
        let error = parse(&bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `blk.3.ffn_down.weight` needs 2,097,152 bytes at offset 96, the file ends after 1,096"
        );
        assert!(error.hint().unwrap().contains("incomplete"));
        let mut bytes = with(|h| {
            h.tensor_at("a", &[16], 0, 0);
            h.tensor_at("b", &[8], 0, 32);
        });
        bytes.resize(bytes.len() + 64, 0);
        assert_eq!(message(&bytes), "tensors `a` and `b` overlap in the file");
    }

    #[test]
    fn unknown_types_stay_and_short_i2_s_tails_are_accepted() {
        let mut bytes = with(|h| {
            h.tensor_at("mystery", &[100], 143, 0);
            h.tensor_at("short", &[128, 4], 36, 64);
            h.tensor_at("last", &[128, 1], 36, 224);
        });
        bytes.resize(bytes.len() + 224 + 36, 0);
        let gguf = parse(&bytes).unwrap();
        let of = |name: &str| gguf.tensor(name).map(|info| (info.ty, info.bytes)).unwrap();
        assert_eq!(of("mystery"), (TensorType::Unknown(143), 64));
        assert_eq!(of("mystery").0.to_string(), "type 143");
        assert_eq!(of("short"), (TensorType::I2S, 160));
        assert_eq!(of("last"), (TensorType::I2S, 36));
        assert_eq!(gguf.data(gguf.tensor("last").unwrap()).len(), 36);
        bytes.truncate(bytes.len() - 1);
        assert!(message(&bytes).starts_with("tensor `last` needs 64 bytes"));
    }

    /// Id 39: TL2 where bitnet.cpp wrote the file, MXFP4 elsewhere.
    #[test]
    fn id_39_is_settled_by_the_file() {
        let read = |arch: &str, file_type: u32, ty: TensorType| {
            let dims = [2560, 640];
            let bytes = ty.data_bytes(&dims).unwrap();
            let mut file = with(|h| {
                h.str("general.architecture", arch);
                h.u32("general.file_type", file_type);
                h.tensor_at("w", &dims, 39, 0);
                h.tensor_at("n", &[8], 0, bytes.next_multiple_of(32));
            });
            file.resize(file.len() + bytes.next_multiple_of(32) as usize + 32, 0);
            parse(&file).unwrap().tensor("w").unwrap().ty
        };
        assert_eq!(read("bitnet-b1.58", 39, TensorType::TL2), TensorType::TL2);
        assert_eq!(read("llama", 39, TensorType::TL2), TensorType::TL2);
        assert_eq!(read("gpt-oss", 38, TensorType::MXFP4), TensorType::MXFP4);
        assert_eq!(read("llama", 39, TensorType::MXFP4), TensorType::MXFP4);
    }

    #[test]
    fn type_ids_come_back() {
        for id in 0..300 {
            assert_eq!(TensorType::from_id(id).id(), id);
        }
        assert_eq!(TensorType::TL2.id(), 39);
    }

    #[test]
    fn keys_take_other_values_of_their_kind() {
        let set = |key: &str, value: KeyValue| KeyOverride {
            key: key.to_owned(),
            value,
        };
        let gguf = || parse(&small_model()).unwrap();
        let changed = gguf()
            .with_keys(&[
                set("bitnet-b1.58.block_count", KeyValue::Int(7)),
                set("bitnet-b1.58.rope.freq_base", KeyValue::Float(1.5)),
                set("general.name", KeyValue::Str("first".into())),
                set("general.name", KeyValue::Str("last".into())),
                set("a.new.key", KeyValue::Bool(true)),
            ])
            .unwrap();
        assert_eq!(changed.u64("bitnet-b1.58.block_count").unwrap(), Some(7));
        assert_eq!(
            changed.f32("bitnet-b1.58.rope.freq_base").unwrap(),
            Some(1.5)
        );
        assert_eq!(changed.str("general.name").unwrap(), Some("last"));
        assert_eq!(changed.bool("a.new.key").unwrap(), Some(true));
        assert_eq!(changed.values().len(), gguf().values().len() + 1);
        for (key, value, found) in [
            ("general.name", KeyValue::Int(1), "string"),
            (
                "tokenizer.ggml.tokens",
                KeyValue::Str("x".into()),
                "array of string",
            ),
            ("bitnet-b1.58.block_count", KeyValue::Float(7.0), "u32"),
        ] {
            let error = gguf()
                .with_keys(&[set(key, value)])
                .unwrap_err()
                .to_string();
            let wanted = format!("key `{key}` is {found} in the file, its override ");
            assert!(error.starts_with(&wanted), "{error}");
        }
    }

    #[test]
    fn missing_files_and_directories() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone.gguf");
        let error = Gguf::open(&gone).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot open `{}`: ", gone.display())),
            "{error}"
        );
        assert!(matches!(
            Gguf::open(directory.path()),
            Err(GgufError::Directory { .. })
        ));
        let empty = directory.path().join("empty.gguf");
        std::fs::write(&empty, b"").unwrap();
        assert!(matches!(Gguf::open(&empty), Err(GgufError::Empty)));
        let model = directory.path().join("model.gguf");
        std::fs::write(&model, small_model()).unwrap();
        assert_eq!(Gguf::open(&model).unwrap().tensors().len(), 13);
        let copy = Gguf::read(&model).unwrap();
        assert_eq!(copy.tensors(), Gguf::open(&model).unwrap().tensors());
        assert!(copy.map().is_none());
        std::fs::remove_file(&model).unwrap();
        assert!(matches!(Gguf::read(&model), Err(GgufError::Open { .. })));
    }

    #[test]
    fn a_model_cut_anywhere_is_an_error() {
        let bytes = small_model();
        let data_start = parse(&bytes).unwrap().data_start() as usize;
        let whole = SharedBytes::new(bytes);
        let data_cuts = (data_start..whole.len()).step_by(997);
        for end in (0..data_start)
            .chain(data_cuts)
            .chain(whole.len() - 40..whole.len())
        {
            assert!(
                Gguf::from_bytes(whole.slice(0..end).unwrap()).is_err(),
                "cut at {end}"
            );
        }
    }

    #[test]
    fn flipped_bits_never_panic() {
        let sound = small_model();
        let header_bytes = parse(&sound).unwrap().data_start();
        let mut rng = synth::random::Rng::new(11, 0);
        for round in 0..4000 {
            let mut bytes = sound.clone();
            let mut flips = Vec::new();
            for _ in 0..1 + rng.u64() % 4 {
                // Mostly the structured beginning, where lengths and counts are.
                let most = if rng.u64().is_multiple_of(2) {
                    1200
                } else {
                    header_bytes
                };
                let (at, bit) = (rng.u64() % most, rng.u64() % 8);
                bytes[at as usize] ^= 1 << bit;
                flips.push((at, bit));
            }
            let read = std::panic::catch_unwind(|| {
                let Ok(gguf) = Gguf::from_bytes(SharedBytes::new(bytes)) else {
                    return;
                };
                let _ = ModelFacts::read(&gguf, &Overrides::default())
                    .map_err(|error| error.to_string());
                gguf.tensors().iter().for_each(|info| drop(gguf.data(info)));
                if round % 20 == 0 {
                    let tokenizer = Tokenizer::from_gguf(&gguf, &Overrides::default());
                    let _ = tokenizer
                        .map(|tokenizer| tokenizer.encode("Hello there\n 123", true, true));
                }
            });
            assert!(read.is_ok(), "(byte, bit) flips: {flips:?}");
        }
    }

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_769_472, "1,769,472"),
        ] {
            assert_eq!(grouped(n), text);
        }
    }
}
