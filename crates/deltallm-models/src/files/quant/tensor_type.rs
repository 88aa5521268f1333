//! The types that can be read: their numbers, names and blocks.

use std::fmt;

use super::ternary;

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)] // The format's own names.
pub enum TensorType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// 8 bits, one scale for 32 elements.
    Q8_0,
    /// 4 bits, one scale for 32 elements.
    Q4_0,
    /// 4 bits, scale and minimum for 32 elements.
    Q4_1,
    /// 5 bits, one scale for 32 elements.
    Q5_0,
    /// 5 bits, scale and minimum for 32 elements.
    Q5_1,
    /// 4 bits, 8 groups with 6-bit scales and minima in a block of 256.
    Q4_K,
    /// 5 bits, 8 groups with 6-bit scales and minima in a block of 256.
    Q5_K,
    /// 6 bits, 16 groups with 8-bit scales in a block of 256.
    Q6_K,
    /// Ternary, 1.6 bits, one scale for 256 elements.
    TQ1_0,
    /// Ternary, 2 bits, one scale for 256 elements.
    TQ2_0,
    /// Ternary, 2 bits in blocks of 128, one scale for the tensor, after its blocks. Its number, 36, means this in files
    /// of BitNet models only.
    I2_S,
}

impl TensorType {
    /// Every type that can be read.
    pub const ALL: [Self; 14] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::I2_S,
    ];

    /// The type with this `ggml_type` number, if it is one that can be read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// Its `ggml_type` number, as GGUF files store it.
    pub fn id(self) -> u32 {
        self.layout().0
    }

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        self.layout().1
    }

    /// Elements per block; a row is a whole number of blocks.
    pub fn block_elements(self) -> usize {
        self.layout().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.layout().3
    }

    /// Bytes that a tensor of `elements` elements takes, or `None` if they are no whole number of blocks or overflow.
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        let block = self.block_elements() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.block_bytes() as u64)?.checked_add(self.tail_bytes() as u64)
    }

    /// Bytes after the blocks of a tensor.
    pub fn tail_bytes(self) -> usize {
        if self == Self::I2_S { ternary::I2_S_TAIL } else { 0 }
    }

    /// Number, name, elements and bytes per block.
    fn layout(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 2 + 16),
            Self::Q4_1 => (3, "Q4_1", 32, 4 + 16),
            Self::Q5_0 => (6, "Q5_0", 32, 2 + 4 + 16),
            Self::Q5_1 => (7, "Q5_1", 32, 4 + 4 + 16),
            Self::Q8_0 => (8, "Q8_0", 32, 2 + 32),
            Self::Q4_K => (12, "Q4_K", 256, 4 + 12 + 128),
            Self::Q5_K => (13, "Q5_K", 256, 4 + 12 + 32 + 128),
            Self::Q6_K => (14, "Q6_K", 256, 128 + 64 + 16 + 2),
            Self::BF16 => (30, "BF16", 1, 2),
            Self::TQ1_0 => (34, "TQ1_0", 256, 48 + 4 + 2),
            Self::TQ2_0 => (35, "TQ2_0", 256, 64 + 2),
            Self::I2_S => (36, "I2_S", 128, 32),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
