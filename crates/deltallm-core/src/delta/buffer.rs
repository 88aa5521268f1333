//! A buffer of numbers in one float type.

use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::element::ElementType;

/// A growable buffer of one [`ElementType`], written and read as f32.
#[derive(Debug)]
pub(crate) enum FloatBuffer {
    /// binary32 elements.
    F32(Vec<f32>),
    /// binary16 elements.
    F16(Vec<f16>),
    /// bfloat16 elements.
    Bf16(Vec<bf16>),
}

impl FloatBuffer {
    /// An empty buffer with room for exactly `capacity` elements.
    pub(crate) fn with_capacity(element: ElementType, capacity: usize) -> Self {
        match element {
            ElementType::F32 => Self::F32(Vec::with_capacity(capacity)),
            ElementType::F16 => Self::F16(Vec::with_capacity(capacity)),
            ElementType::Bf16 => Self::Bf16(Vec::with_capacity(capacity)),
        }
    }

    /// Numbers in the buffer.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }

    /// Appends `row`, each element rounded to the buffer's type.
    pub(crate) fn extend(&mut self, row: &[f32]) {
        match self {
            Self::F32(v) => v.extend_from_slice(row),
            Self::F16(v) => {
                let start = v.len();
                v.resize(start + row.len(), f16::ZERO);
                v[start..].convert_from_f32_slice(row);
            }
            Self::Bf16(v) => {
                let start = v.len();
                v.resize(start + row.len(), bf16::ZERO);
                v[start..].convert_from_f32_slice(row);
            }
        }
    }

    /// Drops everything from `len` on; the capacity stays.
    pub(crate) fn truncate(&mut self, len: usize) {
        match self {
            Self::F32(v) => v.truncate(len),
            Self::F16(v) => v.truncate(len),
            Self::Bf16(v) => v.truncate(len),
        }
    }

    /// The type of the elements.
    pub(crate) fn element(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F16(_) => ElementType::F16,
            Self::Bf16(_) => ElementType::Bf16,
        }
    }

    /// Elements there is room for without allocating.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::F32(v) => v.capacity(),
            Self::F16(v) => v.capacity(),
            Self::Bf16(v) => v.capacity(),
        }
    }

    /// Bytes of all elements there is room for.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.capacity() * self.element().bytes()
    }

    /// The elements as bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice(v),
            Self::F16(v) => bytemuck::cast_slice(v),
            Self::Bf16(v) => bytemuck::cast_slice(v),
        }
    }

    /// Replaces the contents by those of `other`, rounded to this buffer's type.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.truncate(0);
        self.extend(other.read(0..other.len(), &mut Vec::new()));
    }

    /// The elements of `range` as f32: borrowed where they already are, else converted into `scratch`.
    pub(crate) fn read<'a>(&'a self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::F32(v) => &v[range],
            Self::F16(v) => {
                scratch.resize(range.len(), 0.0);
                v[range].convert_to_f32_slice(scratch);
                scratch
            }
            Self::Bf16(v) => {
                scratch.resize(range.len(), 0.0);
                v[range].convert_to_f32_slice(scratch);
                scratch
            }
        }
    }
}
