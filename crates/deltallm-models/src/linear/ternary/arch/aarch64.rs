//! NEON, with dot products of bytes or without.
//!
//! A shift is saved where a mask leaves the codes of columns `4 i..4 i + 4` times `4^i`: their products are added up apart, and
//! the sums are divided, which leaves no remainder.
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use deltallm_simd::{
    fearless_simd::{Neon, i32x16, prelude::*},
    features::DotProd,
    weight_order::WeightOrder,
};

use crate::linear::kernels::{ByteProducts, Line, Quad, bytes_of};
use crate::linear::ternary::{layout::QUADS, vector::PackedProducts};

impl PackedProducts for Neon {
    /// With all codes shifted to their place: products are added up in 16 bits.
    #[inline(always)]
    fn panel_sums(self, _: WeightOrder, panel: &[Line], quads: &[[Quad; QUADS]]) -> i32x16<Self> {
        const LINES: usize = <Neon as ByteProducts>::SMALL_LINES / QUADS;
        let mut total = i32x16::splat(self, 0);
        for (lines, quads) in panel.chunks(LINES).zip(quads.chunks(LINES)) {
            let mut sums = self.begin(0);
            for (line, quads) in lines.iter().zip(quads) {
                let bytes = bytes_of(self, line);
                for i in 0..QUADS {
                    let codes = self.codes::<4>((bytes >> (2 * i) as u32) & 3);
                    sums = self.add::<4>(sums, codes, quads[i]);
                }
            }
            total += self.total::<4>(sums, 0);
        }
        total
    }
}

impl PackedProducts for DotProd {
    /// With codes times 1, 4 and 16, but for the last, which the sign would be in the way of.
    #[inline(always)]
    fn panel_sums(self, _: WeightOrder, panel: &[Line], quads: &[[Quad; QUADS]]) -> i32x16<Neon> {
        let mut sums = [self.begin(0); QUADS];
        for (line, quads) in panel.iter().zip(quads) {
            let bytes = bytes_of(self.neon(), line);
            let codes = [bytes & 3, bytes & 12, bytes & 48, bytes >> 6];
            for i in 0..QUADS {
                sums[i] = self.add::<4>(sums[i], self.codes::<4>(codes[i]), quads[i]);
            }
        }
        let [a, b, c, d] = sums.map(
            #[inline(always)]
            |sums| self.total::<4>(sums, 0),
        );
        (a + (b >> 2)) + (d + (c >> 4))
    }
}
