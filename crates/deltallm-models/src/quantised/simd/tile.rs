//! The loops that all levels share. The codes of a block are unpacked once for all tokens of the batch, then multiplied with a
//! few tokens at a time, so that sums of products stay in registers; the sums of blocks are in the first cache.
#![allow(unsafe_code, reason = "functions that need instructions to be there")]
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use crate::kernels::{Halves, Line, PANEL, Quad, prefetch_after};
use crate::quantised::{
    activations::{Batch, BlockScale},
    layout::{Form, Panel},
};

/// Vectors of some instruction set. A method that has `WIDE` is for codes of a byte if it is set, and of half a byte if not.
///
/// # Safety
/// All functions: the CPU has the instructions of the implementation.
pub(super) trait Level {
    /// Whether wide codes are signed here: what they are less 128.
    const SIGNED: bool;
    /// 16 rows by 4 columns of codes, a byte each.
    type Codes: Copy;
    /// A sum of products for each of 16 rows.
    type Sums: Copy;
    /// A number for each of 16 rows.
    type Floats: Copy;

    /// Codes in the low halves of bytes.
    unsafe fn low(line: &Line) -> Self::Codes;
    /// Codes in the high halves of bytes.
    unsafe fn high(line: &Line) -> Self::Codes;
    /// Codes of a byte each.
    unsafe fn wide(line: &Line) -> Self::Codes;

    /// Sums without products yet. `start` is to be added, either here or in [`total`](Self::total).
    unsafe fn begin(start: i32) -> Self::Sums;
    /// Adds the products of four columns. Called at most 8 times between `begin` and `total`.
    unsafe fn add<const WIDE: bool>(sums: Self::Sums, codes: Self::Codes, quad: Quad) -> Self::Sums;
    /// The sums as numbers.
    unsafe fn total<const WIDE: bool>(sums: Self::Sums, start: i32) -> Self::Floats;

    unsafe fn zero() -> Self::Floats;
    unsafe fn widen(halves: &Halves) -> Self::Floats;
    unsafe fn load(row: &[f32; PANEL]) -> Self::Floats;
    unsafe fn store(floats: Self::Floats, row: &mut [f32; PANEL]);
    /// `a * b`.
    unsafe fn scale(a: Self::Floats, b: f32) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The same with one number for all rows.
    unsafe fn multiply_add_one(a: Self::Floats, b: f32, c: Self::Floats) -> Self::Floats;
}

/// [`scalar::multiply`](crate::quantised::scalar::multiply) with `P` panels side by side and `N` tokens at a time: as many
/// as registers hold the sums of.
///
/// # Safety
/// The CPU has the instructions of `L`. The sizes have been checked.
#[inline(always)]
pub(super) unsafe fn multiply<L: Level, const P: usize, const N: usize>(
    form: Form,
    panels: &[Panel<'_>; P],
    batch: Batch<'_>,
    sums: &mut [[f32; PANEL]],
) {
    let sums = sums.as_chunks_mut().0;
    // SAFETY: as the caller promises.
    unsafe {
        match (form.wide, form.minima, form.block) {
            (false, false, _) => blocks::<L, P, N, 8, false, false>(panels, batch, sums),
            (false, true, _) => blocks::<L, P, N, 8, false, true>(panels, batch, sums),
            (true, true, _) => blocks::<L, P, N, 8, true, true>(panels, batch, sums),
            (true, false, 16) => blocks::<L, P, N, 4, true, false>(panels, batch, sums),
            (true, false, _) => blocks::<L, P, N, 8, true, false>(panels, batch, sums),
        }
    }
}

/// A block of `P` panels.
struct Block<L: Level, const P: usize, const QUADS: usize> {
    codes: [[L::Codes; QUADS]; P],
    scales: [L::Floats; P],
    /// Without meaning where there are none.
    minima: [L::Floats; P],
}

/// All blocks, one after the other.
#[inline(always)]
unsafe fn blocks<
    L: Level,
    const P: usize,
    const N: usize,
    const QUADS: usize,
    const WIDE: bool,
    const MINIMA: bool,
>(
    panels: &[Panel<'_>; P],
    batch: Batch<'_>,
    sums: &mut [[[f32; PANEL]; P]],
) {
    let quads = batch.codes.as_chunks::<QUADS>().0.chunks_exact(batch.tokens);
    for (index, (quads, scales)) in quads.zip(batch.scales.chunks_exact(batch.tokens)).enumerate() {
        // SAFETY: as the caller promises.
        unsafe {
            let block = unpack::<L, P, QUADS, WIDE, MINIMA>(panels, index);
            let (quads, rest_quads) = quads.as_chunks::<N>();
            let (scales, rest_scales) = scales.as_chunks::<N>();
            let (sums, rest_sums) = sums.as_chunks_mut::<N>();
            for ((quads, scales), sums) in quads.iter().zip(scales).zip(sums) {
                tokens::<L, P, N, QUADS, WIDE, MINIMA>(&block, quads, scales, sums);
            }
            for ((quads, scales), sums) in rest_quads.iter().zip(rest_scales).zip(rest_sums) {
                let sums = std::slice::from_mut(sums).as_chunks_mut().0;
                for sums in sums {
                    tokens::<L, P, 1, QUADS, WIDE, MINIMA>(&block, &[*quads], &[*scales], sums);
                }
            }
        }
    }
}

/// Block `index` of the panels.
#[inline(always)]
unsafe fn unpack<L: Level, const P: usize, const QUADS: usize, const WIDE: bool, const MINIMA: bool>(
    panels: &[Panel<'_>; P],
    index: usize,
) -> Block<L, P, QUADS> {
    // SAFETY: as the caller promises.
    unsafe {
        let zero = L::zero();
        let mut block =
            Block { codes: [[L::wide(&Line::ZERO); QUADS]; P], scales: [zero; P], minima: [zero; P] };
        for p in 0..P {
            if WIDE {
                let lines = &panels[p].lines[index * QUADS..][..QUADS];
                for quad in 0..QUADS {
                    prefetch_after(&lines[quad]);
                    block.codes[p][quad] = L::wide(&lines[quad]);
                }
            } else {
                let lines = &panels[p].lines[index * (QUADS / 2)..][..QUADS / 2];
                for i in 0..QUADS / 2 {
                    prefetch_after(&lines[i]);
                    block.codes[p][2 * i] = L::low(&lines[i]);
                    block.codes[p][2 * i + 1] = L::high(&lines[i]);
                }
            }
            let count = 1 + usize::from(MINIMA);
            let factors = &panels[p].factors[index * count..][..count];
            prefetch_after(&factors[0]);
            block.scales[p] = L::widen(&factors[0]);
            if MINIMA {
                block.minima[p] = L::widen(&factors[1]);
            }
        }
        block
    }
}

/// A block times `N` tokens. Every loop has a constant count.
#[inline(always)]
unsafe fn tokens<
    L: Level,
    const P: usize,
    const N: usize,
    const QUADS: usize,
    const WIDE: bool,
    const MINIMA: bool,
>(
    block: &Block<L, P, QUADS>,
    quads: &[[Quad; QUADS]; N],
    scales: &[BlockScale; N],
    sums: &mut [[[f32; PANEL]; P]; N],
) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut products = [[L::begin(0); P]; N];
        // With minima there is no offset to take away. To say so saves registers that are needed.
        let mut start = [0; N];
        if !MINIMA || L::SIGNED && WIDE {
            for n in 0..N {
                start[n] = scales[n].start;
                products[n] = [L::begin(start[n]); P];
            }
        }
        for quad in 0..QUADS {
            for n in 0..N {
                for p in 0..P {
                    products[n][p] = L::add::<WIDE>(products[n][p], block.codes[p][quad], quads[n][quad]);
                }
            }
        }
        for n in 0..N {
            for p in 0..P {
                let total = L::total::<WIDE>(products[n][p], start[n]);
                let factor = L::scale(block.scales[p], scales[n].scale);
                let mut sum = L::multiply_add(total, factor, L::load(&sums[n][p]));
                if MINIMA {
                    sum = L::multiply_add_one(block.minima[p], scales[n].sum, sum);
                }
                L::store(sum, &mut sums[n][p]);
            }
        }
    }
}
