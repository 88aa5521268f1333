//! The float types a cache can hold.

use std::fmt;

use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Element type of cached keys and values.
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

    /// The name, as in messages and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
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
        f.write_str(self.name())
    }
}
