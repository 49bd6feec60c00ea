//! Builds GGUF headers: keys and tensors in the order they are added, each tensor right behind the one before.

use crate::gguf::{TensorType, Value};

/// Alignment of the data section and of each tensor, in bytes.
pub(crate) const ALIGNMENT: u64 = 32;

/// A header under construction.
#[derive(Debug, Default, Clone)]
pub(crate) struct Header {
    values: Vec<u8>,
    n_values: u64,
    infos: Vec<u8>,
    n_tensors: u64,
    data_bytes: u64,
}

impl Header {
    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.value(key, 4, &value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.value(key, 6, &value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.value(key, 7, &[value.into()]);
    }

    pub(crate) fn str(&mut self, key: &str, value: &str) {
        self.value(key, 8, &string(value));
    }

    pub(crate) fn strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) {
        let mut bytes = array_head(8, values.len());
        for value in values {
            bytes.extend_from_slice(&string(value.as_ref()));
        }
        self.value(key, 9, &bytes);
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) {
        let mut bytes = array_head(6, values.len());
        values
            .iter()
            .for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        self.value(key, 9, &bytes);
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        let mut bytes = array_head(5, values.len());
        values
            .iter()
            .for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        self.value(key, 9, &bytes);
    }

    /// A value in the file's own form: `ty` and its bytes.
    pub(crate) fn value(&mut self, key: &str, ty: u32, bytes: &[u8]) {
        self.values.extend_from_slice(&string(key));
        self.values.extend_from_slice(&ty.to_le_bytes());
        self.values.extend_from_slice(bytes);
        self.n_values += 1;
    }

    /// A value of another file.
    pub(crate) fn copy(&mut self, key: &str, value: &Value) {
        match value {
            Value::U8(v) => self.value(key, 0, &v.to_le_bytes()),
            Value::I8(v) => self.value(key, 1, &v.to_le_bytes()),
            Value::U16(v) => self.value(key, 2, &v.to_le_bytes()),
            Value::I16(v) => self.value(key, 3, &v.to_le_bytes()),
            Value::U32(v) => self.u32(key, *v),
            Value::I32(v) => self.value(key, 5, &v.to_le_bytes()),
            Value::F32(v) => self.f32(key, *v),
            Value::Bool(v) => self.bool(key, *v),
            Value::String(text) => self.str(key, text),
            Value::U64(v) => self.value(key, 10, &v.to_le_bytes()),
            Value::I64(v) => self.value(key, 11, &v.to_le_bytes()),
            Value::F64(v) => self.value(key, 12, &v.to_le_bytes()),
            Value::Array(array) => {
                let mut bytes = array_head(array.element().id(), array.len());
                bytes.extend_from_slice(array.bytes());
                self.value(key, 9, &bytes);
            }
        }
    }

    /// Adds a tensor of a type with a known size; returns that size in bytes.
    pub(crate) fn tensor(&mut self, name: &str, dims: &[u64], ty: TensorType) -> u64 {
        let bytes = ty.data_bytes(dims).expect("a shape that suits the type");
        self.tensor_at(name, dims, ty.id(), self.data_bytes);
        self.data_bytes += bytes.next_multiple_of(ALIGNMENT);
        bytes
    }

    /// Adds a tensor entry, right or wrong.
    pub(crate) fn tensor_at(&mut self, name: &str, dims: &[u64], ty: u32, offset: u64) {
        self.infos.extend_from_slice(&string(name));
        self.infos
            .extend_from_slice(&(dims.len() as u32).to_le_bytes());
        dims.iter()
            .for_each(|dim| self.infos.extend_from_slice(&dim.to_le_bytes()));
        self.infos.extend_from_slice(&ty.to_le_bytes());
        self.infos.extend_from_slice(&offset.to_le_bytes());
        self.n_tensors += 1;
    }

    /// Bytes of the data section so far, padding included.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// The header, padded to the alignment: the data section follows.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend_from_slice(&3u32.to_le_bytes());
        bytes.extend_from_slice(&self.n_tensors.to_le_bytes());
        bytes.extend_from_slice(&self.n_values.to_le_bytes());
        bytes.extend_from_slice(&self.values);
        bytes.extend_from_slice(&self.infos);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        bytes
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn array_head(element: u32, len: usize) -> Vec<u8> {
    let mut bytes = element.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(len as u64).to_le_bytes());
    bytes
}
