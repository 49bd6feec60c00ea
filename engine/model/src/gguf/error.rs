//! Why a file is refused, with what was found and what can be done.

use std::io;
use std::path::PathBuf;

use super::reader::MAX_DIMS;
use super::{TensorType, grouped};

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
    #[error("key `{key}` can't be overridden: it says where in the file the tensors are")]
    Fixed { key: String },
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
