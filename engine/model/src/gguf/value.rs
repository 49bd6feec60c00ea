//! The header's values. Arrays stay where they lie in the file.

use std::fmt;

use bitnet_kernels::SharedBytes;

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
    pub(super) fn is_like(&self, other: &Value) -> bool {
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
    pub(super) fn bytes(self) -> Option<usize> {
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
    pub(super) element: Element,
    pub(super) len: usize,
    pub(super) bytes: SharedBytes,
    /// For strings: where each element (its length word) begins in `bytes`, and the end; `len + 1` entries.
    pub(super) starts: Vec<u32>,
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
