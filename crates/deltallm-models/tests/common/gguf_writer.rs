//! A small GGUF writer that can also write what no sane writer would.

use deltallm_models::gguf::{Array, Value};
use deltallm_models::quant::TensorType;

#[derive(Clone)]
pub(crate) struct GgufWriter {
    pub(crate) version: u32,
    /// Counts to claim instead of the true ones.
    pub(crate) claimed_tensors: Option<u64>,
    pub(crate) claimed_entries: Option<u64>,
    alignment: usize,
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u8>)>,
    data: Vec<u8>,
}

impl GgufWriter {
    pub(crate) fn new() -> Self {
        Self {
            version: 3,
            claimed_tensors: None,
            claimed_entries: None,
            alignment: 32,
            entries: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Alignment for the data and, as `general.alignment`, for the reader; call before adding tensors.
    pub(crate) fn align(self, alignment: u32) -> Self {
        let mut writer = self.set("general.alignment", Value::U32(alignment));
        writer.alignment = alignment as usize;
        writer
    }

    /// Adds or replaces a metadata entry.
    pub(crate) fn set(self, key: &str, value: Value) -> Self {
        let mut payload = Vec::new();
        let type_id = put_value(&mut payload, &value);
        self.remove(key).raw_entry(key, type_id, &payload)
    }

    pub(crate) fn remove(mut self, key: &str) -> Self {
        self.entries.retain(|(name, _)| name != key);
        self
    }

    /// Adds an entry as it is, twice if called twice.
    pub(crate) fn raw_entry(mut self, key: &str, type_id: u32, payload: &[u8]) -> Self {
        let mut bytes = Vec::new();
        put_string(&mut bytes, key.as_bytes());
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(payload);
        self.entries.push((key.to_owned(), bytes));
        self
    }

    /// Adds bytes where an entry should be.
    pub(crate) fn raw_bytes(mut self, bytes: &[u8]) -> Self {
        self.entries.push((String::new(), bytes.to_vec()));
        self
    }

    /// Adds or replaces a tensor; `shape` has the outermost dimension first.
    pub(crate) fn tensor(mut self, name: &str, shape: &[usize], ty: TensorType, bytes: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend(bytes);
        let dims: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
        self.without_tensor(name).raw_tensor(name.as_bytes(), &dims, ty.id(), offset)
    }

    pub(crate) fn f32_tensor(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensor(name, shape, TensorType::F32, &bytes)
    }

    pub(crate) fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|(other, _)| other != name);
        self
    }

    pub(crate) fn only_tensors(mut self, wanted: impl Fn(&str) -> bool) -> Self {
        self.tensors.retain(|(name, _)| wanted(name));
        self
    }

    pub(crate) fn without_entries(mut self) -> Self {
        self.entries.clear();
        self
    }

    /// Adds a tensor's description as it is; `dims` has the innermost dimension first.
    pub(crate) fn raw_tensor(mut self, name: &[u8], dims: &[u64], type_id: u32, offset: u64) -> Self {
        let mut bytes = Vec::new();
        put_string(&mut bytes, name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push((String::from_utf8_lossy(name).into_owned(), bytes));
        self
    }

    pub(crate) fn raw_data(mut self, bytes: &[u8]) -> Self {
        self.data.extend(bytes);
        self
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.claimed_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.claimed_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (_, bytes) in self.entries.iter().chain(&self.tensors) {
            file.extend(bytes);
        }
        file.resize(file.len().next_multiple_of(self.alignment.max(1)), 0);
        file.extend(&self.data);
        file
    }
}

pub(crate) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

/// Appends a value without its type number and answers that.
fn put_value(out: &mut Vec<u8>, value: &Value) -> u32 {
    let (type_id, bytes) = match value {
        Value::U8(x) => (0, x.to_le_bytes().to_vec()),
        Value::I8(x) => (1, x.to_le_bytes().to_vec()),
        Value::U16(x) => (2, x.to_le_bytes().to_vec()),
        Value::I16(x) => (3, x.to_le_bytes().to_vec()),
        Value::U32(x) => (4, x.to_le_bytes().to_vec()),
        Value::I32(x) => (5, x.to_le_bytes().to_vec()),
        Value::F32(x) => (6, x.to_le_bytes().to_vec()),
        Value::Bool(x) => (7, vec![u8::from(*x)]),
        Value::U64(x) => (10, x.to_le_bytes().to_vec()),
        Value::I64(x) => (11, x.to_le_bytes().to_vec()),
        Value::F64(x) => (12, x.to_le_bytes().to_vec()),
        Value::String(x) => {
            put_string(out, x.as_bytes());
            return 8;
        }
        Value::Array(array) => {
            put_array(out, array);
            return 9;
        }
    };
    out.extend(bytes);
    type_id
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn put<T>(out: &mut Vec<u8>, type_id: u32, items: &[T], put_item: impl Fn(&mut Vec<u8>, &T)) {
        out.extend(type_id.to_le_bytes());
        out.extend((items.len() as u64).to_le_bytes());
        items.iter().for_each(|item| put_item(out, item));
    }
    match array {
        Array::U8(x) => put(out, 0, x, |out, x| out.extend(x.to_le_bytes())),
        Array::I8(x) => put(out, 1, x, |out, x| out.extend(x.to_le_bytes())),
        Array::U16(x) => put(out, 2, x, |out, x| out.extend(x.to_le_bytes())),
        Array::I16(x) => put(out, 3, x, |out, x| out.extend(x.to_le_bytes())),
        Array::U32(x) => put(out, 4, x, |out, x| out.extend(x.to_le_bytes())),
        Array::I32(x) => put(out, 5, x, |out, x| out.extend(x.to_le_bytes())),
        Array::F32(x) => put(out, 6, x, |out, x| out.extend(x.to_le_bytes())),
        Array::Bool(x) => put(out, 7, x, |out, x| out.push(u8::from(*x))),
        Array::String(x) => put(out, 8, x, |out, x| put_string(out, x.as_bytes())),
        Array::Array(x) => put(out, 9, x, put_array),
        Array::U64(x) => put(out, 10, x, |out, x| out.extend(x.to_le_bytes())),
        Array::I64(x) => put(out, 11, x, |out, x| out.extend(x.to_le_bytes())),
        Array::F64(x) => put(out, 12, x, |out, x| out.extend(x.to_le_bytes())),
    }
}
