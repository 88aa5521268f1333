//! Which instructions add up the products.
//!
//! A kernel multiplies *codes*, the weights plus one, which are 0, 1 or 2, with 8-bit activations, and answers sums of 32
//! bits. All are exact, so all are equal.

use deltallm_simd::{dot::ByteKernel, fearless_simd::prelude::*, weight_order::WeightOrder};

use super::{layout::QUADS, matrix::multiply_block, scalar, vector::multiply_token};
use crate::linear::kernels::{Line, PANEL, Quad};

/// The most tokens that a kernel takes at a time.
pub(super) const MAX_TOKENS: usize = 12;

/// How many tokens [`matrix`] takes at a time: as many as there are registers for their sums, on Neon twice as many.
pub(super) fn tokens(kernel: ByteKernel) -> usize {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        ByteKernel::AvxVnni(_) => 6,
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx512(_) => 12,
        _ => 4,
    }
}

/// `sums[panel][row] = sum over columns of code * activation`, for whole panels of packed lines, which are asked for in that order.
pub(super) fn vector(
    kernel: ByteKernel,
    order: WeightOrder,
    panels: &[Line],
    quads: &[Quad],
    sums: &mut [[i32; PANEL]],
) {
    assert!(quads.len().is_multiple_of(QUADS) && panels.len() * QUADS == quads.len() * sums.len());
    match kernel {
        ByteKernel::Scalar => scalar::vector(panels, quads, sums),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx2(avx2) => avx2.vectorize(
            #[inline(always)]
            || multiply_token(avx2, order, panels, quads, sums),
        ),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::AvxVnni(avx_vnni) => avx_vnni.vectorize(
            #[inline(always)]
            || multiply_token(avx_vnni, order, panels, quads, sums),
        ),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx512(avx512) => avx512.vectorize(
            #[inline(always)]
            || multiply_token(avx512, order, panels, quads, sums),
        ),
        #[cfg(target_arch = "aarch64")]
        ByteKernel::Neon(neon) => neon.vectorize(
            #[inline(always)]
            || multiply_token(neon, order, panels, quads, sums),
        ),
        #[cfg(target_arch = "aarch64")]
        ByteKernel::DotProd(dot_prod) => dot_prod.vectorize(
            #[inline(always)]
            || multiply_token(dot_prod, order, panels, quads, sums),
        ),
    }
}

/// `sums[token][panel][row]`: the same for a block of at most [`tokens`] tokens, `quads` being `[quads, tokens]`, with codes
/// that are unpacked.
pub(super) fn matrix(
    kernel: ByteKernel,
    codes: &[Line],
    quads: &[Quad],
    tokens: usize,
    sums: &mut [[i32; PANEL]],
) {
    assert!((1..=self::tokens(kernel)).contains(&tokens) && sums.len().is_multiple_of(tokens));
    assert_eq!(codes.len() * tokens, quads.len() * (sums.len() / tokens));
    match kernel {
        ByteKernel::Scalar => scalar::matrix(codes, quads, tokens, sums),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx2(avx2) => avx2.vectorize(
            #[inline(always)]
            || multiply_block::<_, 1, 4>(avx2, codes, quads, tokens, sums),
        ),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::AvxVnni(avx_vnni) => avx_vnni.vectorize(
            #[inline(always)]
            || multiply_block::<_, 1, 6>(avx_vnni, codes, quads, tokens, sums),
        ),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx512(avx512) => avx512.vectorize(
            #[inline(always)]
            || multiply_block::<_, 2, 12>(avx512, codes, quads, tokens, sums),
        ),
        #[cfg(target_arch = "aarch64")]
        ByteKernel::Neon(neon) => neon.vectorize(
            #[inline(always)]
            || multiply_block::<_, 1, 2>(neon, codes, quads, tokens, sums),
        ),
        #[cfg(target_arch = "aarch64")]
        ByteKernel::DotProd(dot_prod) => dot_prod.vectorize(
            #[inline(always)]
            || multiply_block::<_, 1, 4>(dot_prod, codes, quads, tokens, sums),
        ),
    }
}
