//! A block of tokens: codes that are unpacked meet several tokens at a time, whose sums stay in registers.
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use deltallm_simd::fearless_simd::{i32x16, prelude::*};

use crate::linear::kernels::{ByteProducts, Line, PANEL, Quad, bytes_of, rows_of};

/// [`scalar::matrix`](super::scalar::matrix) with `P` panels side by side and at most `MOST` tokens at a time.
#[inline(always)]
pub(super) fn multiply_block<K: ByteProducts, const P: usize, const MOST: usize>(
    kernel: K,
    codes: &[Line],
    quads: &[Quad],
    tokens: usize,
    sums: &mut [[i32; PANEL]],
) {
    let panels = sums.len() / tokens;
    let mut first = 0;
    while first < tokens {
        let (quads, sums) = (&quads[first..], &mut sums[first * panels..]);
        first += match tokens - first {
            12.. if const { MOST >= 12 } => {
                some_tokens::<K, P, 12>(kernel, codes, quads, tokens, panels, sums)
            }
            8.. if const { MOST >= 8 } => some_tokens::<K, P, 8>(kernel, codes, quads, tokens, panels, sums),
            6.. if const { MOST == 6 } => some_tokens::<K, P, 6>(kernel, codes, quads, tokens, panels, sums),
            4.. if const { MOST >= 4 } => some_tokens::<K, P, 4>(kernel, codes, quads, tokens, panels, sums),
            2.. => some_tokens::<K, P, 2>(kernel, codes, quads, tokens, panels, sums),
            _ => some_tokens::<K, P, 1>(kernel, codes, quads, tokens, panels, sums),
        };
    }
}

/// The products of `N` tokens with all panels; answers `N`. `stride` is the tokens that `quads` has side by side.
#[inline(always)]
fn some_tokens<K: ByteProducts, const P: usize, const N: usize>(
    kernel: K,
    codes: &[Line],
    quads: &[Quad],
    stride: usize,
    panels: usize,
    sums: &mut [[i32; PANEL]],
) -> usize {
    let per_panel = codes.len() / panels;
    let mut panel = 0;
    while panel + P <= panels {
        let tile = tile::<K, P, N>(kernel, &codes[panel * per_panel..][..P * per_panel], quads, stride);
        for n in 0..N {
            for p in 0..P {
                sums[n * panels + panel + p] = rows_of(tile[n][p]);
            }
        }
        panel += P;
    }
    while panel < panels {
        let tile = tile::<K, 1, N>(kernel, &codes[panel * per_panel..][..per_panel], quads, stride);
        for n in 0..N {
            sums[n * panels + panel] = rows_of(tile[n][0]);
        }
        panel += 1;
    }
    N
}

/// The products of `N` tokens with `P` panels, kept in registers: every loop over them has a constant count.
#[inline(always)]
fn tile<K: ByteProducts, const P: usize, const N: usize>(
    kernel: K,
    codes: &[Line],
    quads: &[Quad],
    stride: usize,
) -> [[i32x16<K::Simd>; P]; N] {
    let (simd, count) = (kernel.simd(), codes.len() / P);
    let mut panels = [&[][..]; P];
    for p in 0..P {
        panels[p] = &codes[p * count..][..count];
    }
    let mut totals = [[i32x16::splat(simd, 0); P]; N];
    let mut start = 0;
    while start < count {
        // As many columns as the sums on the way hold.
        let end = start.saturating_add(K::SMALL_LINES).min(count);
        let mut sums = [[kernel.begin(0); P]; N];
        for (column, quads) in (start..end).zip(quads[start * stride..].chunks(stride)) {
            let Some(quads) = quads.first_chunk::<N>() else { break };
            let mut lines = [kernel.codes::<4>(bytes_of(simd, &Line::ZERO)); P];
            for p in 0..P {
                lines[p] = kernel.codes::<4>(bytes_of(simd, &panels[p][column]));
            }
            for n in 0..N {
                for p in 0..P {
                    sums[n][p] = kernel.add::<4>(sums[n][p], lines[p], quads[n]);
                }
            }
        }
        for n in 0..N {
            for p in 0..P {
                totals[n][p] += kernel.total::<4>(sums[n][p], 0);
            }
        }
        start = end;
    }
    totals
}
