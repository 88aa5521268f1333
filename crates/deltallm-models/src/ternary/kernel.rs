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

use std::fmt;

use deltallm_attn::SimdLevel;

use super::{
    activations::{self, TokenScale},
    layout::{Line, PANEL, QUADS, Quad},
    scalar,
};

/// The most tokens that a kernel takes at a time.
pub(super) const MAX_TOKENS: usize = 12;

/// The instructions that a [`TernaryLinear`](super::TernaryLinear) multiplies with: a proof that this machine has them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TernaryKernel(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    Scalar,
    /// `vpmaddubsw`; only made where it was detected, as all that follow.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// `vpdpbusd` of 256 bits.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// `vpdpbusd` of 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// `smlal`.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl TernaryKernel {
    /// All that this machine has, slowest first. `scalar` is always there.
    pub fn available() -> Vec<Self> {
        let mut kernels = vec![Self(Instructions::Scalar)];
        for level in SimdLevel::available() {
            kernels.extend(Self::of_level(level));
        }
        kernels
    }

    /// The fastest of a level.
    pub fn of(level: SimdLevel) -> Self {
        let levels = SimdLevel::available();
        // AVX-512 without the dot products does with AVX2.
        let slower = levels.iter().take_while(|slower| **slower != level);
        let kernels = slower.chain([&level]).flat_map(|level| Self::of_level(*level));
        kernels.last().unwrap_or(Self(Instructions::Scalar))
    }

    /// What a level adds to the levels below it, slowest first.
    fn of_level(level: SimdLevel) -> impl Iterator<Item = Self> {
        let kernels: &[(bool, Instructions)] = match level.name() {
            #[cfg(target_arch = "x86_64")]
            "avx2" => &[(avx2::detect(), Instructions::Avx2), (avx_vnni::detect(), Instructions::AvxVnni)],
            #[cfg(target_arch = "x86_64")]
            "avx512" => &[(avx512::detect(), Instructions::Avx512Vnni)],
            #[cfg(target_arch = "aarch64")]
            "neon" => &[(neon::detect(), Instructions::Neon), (neon_dot::detect(), Instructions::NeonDot)],
            _ => &[],
        };
        kernels
            .iter()
            .filter(|(has, _)| *has)
            .map(|(_, instructions)| Self(*instructions))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`, `neon` or `neon-dot`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Instructions::NeonDot => "neon-dot",
        }
    }

    /// How many tokens [`matrix`](Self::matrix) takes at a time: as many as there are registers for their sums.
    pub(super) fn tokens(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::AvxVnni => 6,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => 12,
            _ => 4,
        }
    }

    /// Rounds a token to 8 bits; see [`activations::quantise`].
    pub(super) fn quantise(self, x: &[f32], codes: &mut [i8]) -> TokenScale {
        match self.0 {
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
        match self.0 {
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
        match self.0 {
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

impl fmt::Debug for TernaryKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for TernaryKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
