//! Reads GGUF files, versions 2 and 3, little endian: the header's keys and the table of tensors.
//!
//! Total and bounded: any bytes give a [`Gguf`] or a [`GgufError`], and nothing is allocated before its length has been
//! checked against the file. Big arrays stay in the mapped file; a string array keeps one u32 per element. Format:
//! ggml's `docs/gguf.md`, plus bitnet.cpp's type 36 (I2_S, codes and one f32 scale per tensor), 38 and 39 (TL1, TL2).

mod error;
mod reader;
mod types;
mod value;

use std::collections::HashMap;
use std::path::Path;

use bitnet_kernels::SharedBytes;

pub use error::GgufError;
pub use types::TensorType;
pub use value::{Array, Element, Value};

use crate::os::{FileMap, read_whole};
use crate::protocol::{KeyOverride, KeyValue};
use TensorType as T;
use reader::{RawInfo, Reader, read_infos, read_values};

const ALIGNMENT_KEY: &str = "general.alignment";
/// Data alignment where that key says nothing, in bytes.
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

fn align_up(n: u64, alignment: u64) -> Option<u64> {
    n.checked_next_multiple_of(alignment)
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
    /// When the file has a value of another kind under one of them, or one says where its tensors are.
    pub fn with_keys(mut self, overrides: &[KeyOverride]) -> Result<Gguf, GgufError> {
        for KeyOverride { key, value } in overrides {
            if key == ALIGNMENT_KEY {
                return Err(GgufError::Fixed { key: key.clone() });
            }
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
        let alignment = alignment(value_index.get(ALIGNMENT_KEY).map(|&i| &values[i].1))?;
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
        key: ALIGNMENT_KEY.into(),
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
mod tests;
