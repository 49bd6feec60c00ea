//! Reads keys and tensor entries, each length checked against the file before it is believed.

use std::ops::Range;

use bitnet_kernels::SharedBytes;

use super::types::elements;
use super::{Array, Element, GgufError, Value};

/// Most dimensions a tensor has.
pub(super) const MAX_DIMS: u32 = 4;
/// Bytes of the shortest key/value pair: an empty key's length, a type and one byte.
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor entry: an empty name's length, no dimensions, type and offset.
const MIN_INFO_BYTES: u64 = 8 + 4 + 4 + 8;
/// A tensor entry as it stands in the file; the offset counts from the data section.
pub(super) struct RawInfo {
    pub(super) name: String,
    pub(super) dims: Vec<u64>,
    pub(super) ty: u32,
    pub(super) offset: u64,
}

pub(super) fn read_values(
    reader: &mut Reader<'_>,
    count: u64,
) -> Result<Vec<(String, Value)>, GgufError> {
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

pub(super) fn read_infos(reader: &mut Reader<'_>, count: u64) -> Result<Vec<RawInfo>, GgufError> {
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
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a SharedBytes,
    pub(super) at: usize,
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

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.take(what).map(u64::from_le_bytes)
    }

    pub(super) fn version(&mut self) -> Result<u32, GgufError> {
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
