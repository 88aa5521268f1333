//! Which instructions add up the products.
//!
//! A kernel multiplies *codes*, the weights plus one, which are 0, 1 or 2, with 8-bit activations, and answers sums of 32
//! bits. All are exact, so all are equal.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;

use super::{
    activations::{self, TokenScale},
    layout::QUADS,
    scalar,
};
use crate::kernels::{ByteKernel, Instructions, Line, PANEL, Quad};

/// The most tokens that a kernel takes at a time.
pub(super) const MAX_TOKENS: usize = 12;

impl ByteKernel {
    /// How many tokens [`matrix`](Self::matrix) takes at a time: as many as there are registers for their sums.
    pub(super) fn tokens(self) -> usize {
        match self.instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::AvxVnni => 6,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => 12,
            _ => 4,
        }
    }

    /// Rounds a token to 8 bits; see [`activations::quantise`].
    pub(super) fn quantise(self, x: &[f32], codes: &mut [i8]) -> TokenScale {
        match self.instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 | Instructions::AvxVnni => avx2::quantise(x, codes),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => avx512::quantise(x, codes),
            _ => activations::quantise(x, codes),
        }
    }

    /// `sums[panel][row] = sum over columns of code * activation`, for whole panels of packed lines.
    pub(super) fn vector(self, panels: &[Line], quads: &[Quad], sums: &mut [[i32; PANEL]]) {
        assert!(quads.len().is_multiple_of(QUADS) && panels.len() * QUADS == quads.len() * sums.len());
        match self.instructions() {
            Instructions::Scalar => scalar::vector(panels, quads, sums),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => avx2::vector(panels, quads, sums),
            #[cfg(target_arch = "x86_64")]
            Instructions::AvxVnni => avx_vnni::vector(panels, quads, sums),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => avx512::vector(panels, quads, sums),
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => neon::vector(panels, quads, sums),
            #[cfg(target_arch = "aarch64")]
            Instructions::NeonDot => neon_dot::vector(panels, quads, sums),
        }
    }

    /// `sums[token][panel][row]`: the same for a block of at most [`tokens`](Self::tokens) tokens, `quads` being `[quads,
    /// tokens]`, with codes that are unpacked.
    pub(super) fn matrix(self, codes: &[Line], quads: &[Quad], tokens: usize, sums: &mut [[i32; PANEL]]) {
        assert!((1..=self.tokens()).contains(&tokens) && sums.len().is_multiple_of(tokens));
        assert_eq!(codes.len() * tokens, quads.len() * (sums.len() / tokens));
        match self.instructions() {
            Instructions::Scalar => scalar::matrix(codes, quads, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => avx2::matrix(codes, quads, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Instructions::AvxVnni => avx_vnni::matrix(codes, quads, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => avx512::matrix(codes, quads, tokens, sums),
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => neon::matrix(codes, quads, tokens, sums),
            #[cfg(target_arch = "aarch64")]
            Instructions::NeonDot => neon_dot::matrix(codes, quads, tokens, sums),
        }
    }
}
