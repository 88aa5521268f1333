//! The number types a cache can hold, and a typed buffer of them.

use std::{fmt, ops::Range, str::FromStr};

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{Charge, CoreError};

/// Element type of cached keys and values. Arithmetic is f32 whatever the storage.
///
/// ```
/// use deltallm_core::ElementType;
///
/// assert_eq!(ElementType::F16.bytes(), 2);
/// assert_eq!(ElementType::F16.round(2049.0), 2048.0);
/// assert!(ElementType::F16.check(&[1e5]).is_err()); // beyond 65504
/// assert!(ElementType::Bf16.check(&[1e5]).is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum ElementType {
    /// IEEE binary32: what the projections produce, stored as it is.
    #[default]
    F32,
    /// IEEE binary16: relative rounding error up to 2^-11, largest value 65504.
    F16,
    /// bfloat16: relative rounding error up to 2^-8, the range of f32.
    Bf16,
}

impl ElementType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Largest magnitude that is stored as a finite number.
    pub fn max_magnitude(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
        }
    }

    /// The value that comes back after `x` has been stored.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// [`round`](Self::round) of every number of `row` into `out`, which is as long.
    pub(crate) fn round_row(self, row: &[f32], out: &mut [f32]) {
        for (row, out) in row.chunks(64).zip(out.chunks_mut(64)) {
            match self {
                Self::F32 => out.copy_from_slice(row),
                Self::F16 => {
                    let stored = &mut [f16::ZERO; 64][..row.len()];
                    stored.convert_from_f32_slice(row);
                    stored.convert_to_f32_slice(out);
                }
                Self::Bf16 => {
                    let stored = &mut [bf16::ZERO; 64][..row.len()];
                    stored.convert_from_f32_slice(row);
                    stored.convert_to_f32_slice(out);
                }
            }
        }
    }

    /// Checks that every number of a row can be stored.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is NaN, infinite or too large.
    pub fn check(self, row: &[f32]) -> Result<(), CoreError> {
        if self.holds(row) {
            return Ok(());
        }
        let limit = self.max_magnitude();
        // NaN compares with nothing, so it counts as too large here.
        let channel = row.iter().position(|x| x.is_nan() || x.abs() > limit).unwrap_or(0);
        Err(CoreError::NotStorable { channel, element: self, limit, got: row[channel] })
    }

    /// Whether [`check`](Self::check) finds nothing, in one pass without branches, as the answer is nearly always yes. Inlined, so that
    /// it is compiled for the instructions of its caller.
    #[inline(always)]
    pub fn holds(self, row: &[f32]) -> bool {
        let limit = self.max_magnitude().to_bits();
        // In integers, whose vectors are the same for every CPU: a magnitude above the limit, and infinities and NaN are, borrows
        // from the sign bit.
        row.iter().fold(0, |all, x| all | limit.wrapping_sub(x.to_bits() & (u32::MAX >> 1))) >> 31 == 0
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for ElementType {
    type Err = CoreError;

    fn from_str(name: &str) -> Result<Self, CoreError> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(CoreError::UnknownName {
                what: "element type",
                expected: "f32, f16, bf16",
                got: name.to_owned(),
            }),
        }
    }
}

/// A growable buffer of one [`ElementType`], written and read as f32.
#[derive(Debug, Clone)]
pub(crate) enum Elements {
    /// binary32 elements.
    F32(Vec<f32>),
    /// binary16 elements.
    F16(Vec<f16>),
    /// bfloat16 elements.
    Bf16(Vec<bf16>),
}

impl Elements {
    /// An empty buffer with room for exactly `capacity` elements.
    pub(crate) fn with_capacity(element: ElementType, capacity: usize) -> Self {
        match element {
            ElementType::F32 => Self::F32(Vec::with_capacity(capacity)),
            ElementType::F16 => Self::F16(Vec::with_capacity(capacity)),
            ElementType::Bf16 => Self::Bf16(Vec::with_capacity(capacity)),
        }
    }

    /// Elements in the buffer.
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

    /// Whether `element` is a narrower type than the buffer's.
    pub(crate) fn narrows_to(&self, element: ElementType) -> bool {
        element.bytes() < self.element().bytes()
    }

    /// Converts elements that have been checked to a narrower type, keeps room for as many, and gives the freed bytes back. A
    /// buffer that is as narrow already stays as it is. While this runs the buffer exists in both types.
    pub(crate) fn convert(&mut self, element: ElementType, charge: &mut Charge) {
        if self.narrows_to(element) {
            let mut narrow = Self::with_capacity(element, self.capacity());
            narrow.copy_from(self);
            charge.shrink(self.capacity_bytes() - narrow.capacity_bytes());
            *self = narrow;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_storable_up_to_the_largest_magnitude() {
        for element in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
            let limit = element.max_magnitude();
            for x in [0.0, -0.0, f32::from_bits(1), -f32::MIN_POSITIVE, 1.0, limit, -limit] {
                assert_eq!(element.check(&[1.0, x]), Ok(()), "{element} {x}");
            }
            for x in
                [limit.next_up(), -limit.next_up(), f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN]
            {
                let mut row = [1.0; 37];
                row[29] = x;
                let error = element.check(&row).unwrap_err();
                assert!(
                    matches!(error, CoreError::NotStorable { channel: 29, .. }),
                    "{element} {x}: {error}"
                );
            }
        }
    }
}
