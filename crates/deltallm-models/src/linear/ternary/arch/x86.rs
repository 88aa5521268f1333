//! AVX-512, AVX-VNNI and AVX2.
//!
//! A shift is saved where a mask leaves the codes of columns `4 i..4 i + 4` times `4^i`: their products are added up apart, and
//! the sums are divided, which leaves no remainder.
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use deltallm_simd::{
    fearless_simd::{Avx2, Avx512, i32x16, prelude::*},
    features::AvxVnni,
    weight_order::WeightOrder,
};

use crate::linear::kernels::{ByteProducts, Line, Quad, bytes_of};
use crate::linear::ternary::{layout::QUADS, vector::PackedProducts};

impl PackedProducts for Avx512 {
    /// Two lines at a time hide the latency.
    #[inline(always)]
    fn panel_sums(self, order: WeightOrder, panel: &[Line], quads: &[[Quad; QUADS]]) -> i32x16<Self> {
        masked_sums::<_, 2>(self, order, panel, quads)
    }
}

impl PackedProducts for AvxVnni {
    #[inline(always)]
    fn panel_sums(self, order: WeightOrder, panel: &[Line], quads: &[[Quad; QUADS]]) -> i32x16<Avx2> {
        masked_sums::<_, 1>(self, order, panel, quads)
    }
}

/// With codes that are left where they are: times 1, 4, 16 and 64. `L` lines at a time.
#[inline(always)]
fn masked_sums<K: ByteProducts, const L: usize>(
    kernel: K,
    order: WeightOrder,
    panel: &[Line],
    quads: &[[Quad; QUADS]],
) -> i32x16<K::Simd> {
    const { assert!(!K::SIGNED && K::SMALL_LINES == usize::MAX, "sums of 32 bits of unsigned bytes") };
    let mut sums = [[kernel.begin(0); QUADS]; L];
    let (lines, rest_lines) = panel.as_chunks::<L>();
    let (quads, rest_quads) = quads.as_chunks::<L>();
    for (lines, quads) in lines.iter().zip(quads) {
        for l in 0..L {
            add_masked(kernel, order, &mut sums[l], &lines[l], &quads[l]);
        }
    }
    for (line, quads) in rest_lines.iter().zip(rest_quads) {
        add_masked(kernel, order, &mut sums[0], line, quads);
    }
    let mut total = i32x16::splat(kernel.simd(), 0);
    for i in 0..QUADS {
        let mut sum = kernel.total::<8>(sums[0][i], 0);
        for l in 1..L {
            sum += kernel.total::<8>(sums[l][i], 0);
        }
        total += sum >> (2 * i) as u32;
    }
    total
}

#[inline(always)]
fn add_masked<K: ByteProducts>(
    kernel: K,
    order: WeightOrder,
    sums: &mut [K::Sums; QUADS],
    line: &Line,
    quads: &[Quad; QUADS],
) {
    order.prefetch_after(line);
    let bytes = bytes_of(kernel.simd(), line);
    for i in 0..QUADS {
        sums[i] = kernel.add::<8>(sums[i], kernel.codes::<8>(bytes & (3 << (2 * i))), quads[i]);
    }
}

impl PackedProducts for Avx2 {
    /// With codes times 1 and 4.
    #[inline(always)]
    fn panel_sums(self, order: WeightOrder, panel: &[Line], quads: &[[Quad; QUADS]]) -> i32x16<Self> {
        /// Lines whose products fit 16 bits: a line adds two sums of two products of at least -2048 where codes are times 4.
        const LINES: usize = 8;
        let mut totals = [i32x16::splat(self, 0); 2];
        for (lines, quads) in panel.chunks(LINES).zip(quads.chunks(LINES)) {
            let [mut ones, mut fours] = [self.begin(0); 2];
            for (line, quads) in lines.iter().zip(quads) {
                order.prefetch_after(line);
                let low = bytes_of(self, line);
                let high = low >> 4;
                ones = self.add::<4>(ones, self.codes::<4>(low & 3), quads[0]);
                fours = self.add::<4>(fours, self.codes::<4>(low & 12), quads[1]);
                ones = self.add::<4>(ones, self.codes::<4>(high & 3), quads[2]);
                fours = self.add::<4>(fours, self.codes::<4>(high & 12), quads[3]);
            }
            totals[0] += self.total::<4>(ones, 0);
            totals[1] += self.total::<4>(fours, 0);
        }
        totals[0] + (totals[1] >> 2)
    }
}
