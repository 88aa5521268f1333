//! The loops that all instruction sets share. The codes of a block are unpacked once for all tokens of the batch, then multiplied
//! with a few tokens at a time, so that sums of products stay in registers; the sums of blocks are in the first cache.
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use deltallm_simd::{
    fearless_simd::{f32x16, prelude::*, u8x64},
    weight_order::WeightOrder,
};

use super::{
    activations::{Batch, BlockScale},
    layout::{Form, Panel},
};
use crate::linear::kernels::{ByteProducts, PANEL, Quad, bytes_of};

/// [`scalar::multiply`](super::scalar::multiply) with `P` panels side by side and `N` tokens at a time: as many as registers hold
/// the sums of. The sizes have been checked.
#[inline(always)]
pub(super) fn multiply_panels<K: ByteProducts, const P: usize, const N: usize>(
    kernel: K,
    order: WeightOrder,
    form: Form,
    panels: &[Panel<'_>; P],
    batch: Batch<'_>,
    sums: &mut [[f32; PANEL]],
) {
    let sums = sums.as_chunks_mut().0;
    match (form.wide, form.minima, form.block) {
        (false, false, _) => blocks::<K, P, N, 8, false, false>(kernel, order, panels, batch, sums),
        (false, true, _) => blocks::<K, P, N, 8, false, true>(kernel, order, panels, batch, sums),
        (true, true, _) => blocks::<K, P, N, 8, true, true>(kernel, order, panels, batch, sums),
        (true, false, 16) => blocks::<K, P, N, 4, true, false>(kernel, order, panels, batch, sums),
        (true, false, _) => blocks::<K, P, N, 8, true, false>(kernel, order, panels, batch, sums),
    }
}

/// A block of `P` panels.
struct Block<K: ByteProducts, const P: usize, const QUADS: usize> {
    codes: [[K::Codes; QUADS]; P],
    scales: [f32x16<K::Simd>; P],
    /// Without meaning where there are none.
    minima: [f32x16<K::Simd>; P],
}

/// All blocks, one after the other.
#[inline(always)]
fn blocks<
    K: ByteProducts,
    const P: usize,
    const N: usize,
    const QUADS: usize,
    const WIDE: bool,
    const MINIMA: bool,
>(
    kernel: K,
    order: WeightOrder,
    panels: &[Panel<'_>; P],
    batch: Batch<'_>,
    sums: &mut [[[f32; PANEL]; P]],
) {
    let quads = batch.codes.as_chunks::<QUADS>().0.chunks_exact(batch.tokens);
    for (index, (quads, scales)) in quads.zip(batch.scales.chunks_exact(batch.tokens)).enumerate() {
        let block = unpack::<K, P, QUADS, WIDE, MINIMA>(kernel, order, panels, index);
        let (quads, rest_quads) = quads.as_chunks::<N>();
        let (scales, rest_scales) = scales.as_chunks::<N>();
        let (sums, rest_sums) = sums.as_chunks_mut::<N>();
        for ((quads, scales), sums) in quads.iter().zip(scales).zip(sums) {
            tokens::<K, P, N, QUADS, WIDE, MINIMA>(kernel, &block, quads, scales, sums);
        }
        for ((quads, scales), sums) in rest_quads.iter().zip(rest_scales).zip(rest_sums) {
            let sums = std::array::from_mut(sums);
            tokens::<K, P, 1, QUADS, WIDE, MINIMA>(kernel, &block, &[*quads], &[*scales], sums);
        }
    }
}

/// Block `index` of the panels.
#[inline(always)]
fn unpack<K: ByteProducts, const P: usize, const QUADS: usize, const WIDE: bool, const MINIMA: bool>(
    kernel: K,
    order: WeightOrder,
    panels: &[Panel<'_>; P],
    index: usize,
) -> Block<K, P, QUADS> {
    let simd = kernel.simd();
    let (nothing, zero) = (kernel.codes::<WIDE>(u8x64::splat(simd, 0)), f32x16::splat(simd, 0.0));
    let mut block = Block { codes: [[nothing; QUADS]; P], scales: [zero; P], minima: [zero; P] };
    for p in 0..P {
        if WIDE {
            let lines = &panels[p].lines[index * QUADS..][..QUADS];
            for quad in 0..QUADS {
                order.prefetch_after(&lines[quad]);
                block.codes[p][quad] = kernel.codes::<WIDE>(bytes_of(simd, &lines[quad]));
            }
        } else {
            let lines = &panels[p].lines[index * (QUADS / 2)..][..QUADS / 2];
            for i in 0..QUADS / 2 {
                order.prefetch_after(&lines[i]);
                let bytes = bytes_of(simd, &lines[i]);
                block.codes[p][2 * i] = kernel.codes::<WIDE>(bytes & 0xf);
                block.codes[p][2 * i + 1] = kernel.codes::<WIDE>(bytes >> 4);
            }
        }
        let count = 1 + usize::from(MINIMA);
        let factors = &panels[p].factors[index * count..][..count];
        order.prefetch_after(&factors[0]);
        block.scales[p] = kernel.widen(&factors[0]);
        if MINIMA {
            block.minima[p] = kernel.widen(&factors[1]);
        }
    }
    block
}

/// A block times `N` tokens. Every loop has a constant count.
#[inline(always)]
fn tokens<
    K: ByteProducts,
    const P: usize,
    const N: usize,
    const QUADS: usize,
    const WIDE: bool,
    const MINIMA: bool,
>(
    kernel: K,
    block: &Block<K, P, QUADS>,
    quads: &[[Quad; QUADS]; N],
    scales: &[BlockScale; N],
    sums: &mut [[[f32; PANEL]; P]; N],
) {
    // With AVX2 alone wide codes need a register of ones. Compilers would rather keep the factors of the block in one, which are needed
    // once, and read the ones again for every product (a tenth of the time; Xeon, 28 November 2026): so the block stays in memory.
    let needs_ones = const { cfg!(target_arch = "x86_64") && K::SIGNED && WIDE && QUADS == 8 };
    let block = if needs_ones { std::hint::black_box(block) } else { block };
    let mut products = [[kernel.begin(0); P]; N];
    // With minima there is no offset to take away. To say so saves registers that are needed.
    let mut start = [0; N];
    if !MINIMA || K::SIGNED && WIDE {
        for n in 0..N {
            start[n] = scales[n].start;
            products[n] = [kernel.begin(start[n]); P];
        }
    }
    for quad in 0..QUADS {
        for n in 0..N {
            for p in 0..P {
                products[n][p] = kernel.add::<WIDE>(products[n][p], block.codes[p][quad], quads[n][quad]);
            }
        }
    }
    for n in 0..N {
        for p in 0..P {
            let total: f32x16<K::Simd> = kernel.total::<WIDE>(products[n][p], start[n]).to_float();
            let factor = block.scales[p] * scales[n].scale;
            let mut sum = total.mul_add(factor, f32x16::from_slice(kernel.simd(), &sums[n][p]));
            if MINIMA {
                sum = block.minima[p].mul_add(scales[n].sum, sum);
            }
            sum.store_slice(&mut sums[n][p]);
        }
    }
}
