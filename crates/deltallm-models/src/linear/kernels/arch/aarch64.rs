//! NEON, with dot products of bytes (`sdot`) or without.
//!
//! Without, products are added up in 16 bits (`smlal`). A code of half a byte is at most 15 and an activation at most 127, so 8
//! products, 15240, fit; codes of at most 2 and activations of at least -128 give -256 at least, and 128 fit. Products of
//! codes of 5 and 6 bits are widened at once, and so are those of 8 bits less 128, which are signed bytes.

use std::arch::aarch64::*;

use deltallm_simd::{
    convert::Convert,
    fearless_simd::{Neon, f32x16, i8x16, i16x8, i32x4, i32x16, kernel, prelude::*, u8x64},
    features::DotProd,
};

use crate::linear::kernels::{ByteProducts, Quad, RowFactors, bits};

impl ByteProducts for DotProd {
    type Simd = Neon;
    /// Less 128 where they have 8 bits.
    type Codes = [i8x16<Neon>; 4];
    type Sums = [i32x4<Neon>; 4];

    const SIGNED: bool = true;
    const SMALL_LINES: usize = usize::MAX;

    #[inline(always)]
    fn simd(self) -> Neon {
        self.neon()
    }

    #[inline(always)]
    fn codes<const BITS: u32>(self, bytes: u8x64<Neon>) -> [i8x16<Neon>; 4] {
        signed::<BITS>(bytes)
    }

    #[inline(always)]
    fn begin(self, start: i32) -> [i32x4<Neon>; 4] {
        [i32x4::splat(self.neon(), start); 4]
    }

    #[inline(always)]
    fn add<const BITS: u32>(
        self,
        mut sums: [i32x4<Neon>; 4],
        codes: [i8x16<Neon>; 4],
        quad: Quad,
    ) -> [i32x4<Neon>; 4] {
        let quads = broadcast(self.neon(), quad);
        for quarter in 0..4 {
            sums[quarter] = self.dot(sums[quarter], codes[quarter], quads);
        }
        sums
    }

    #[inline(always)]
    fn total<const BITS: u32>(self, sums: [i32x4<Neon>; 4], _: i32) -> i32x16<Neon> {
        whole(sums)
    }

    #[inline(always)]
    fn widen(self, factors: &RowFactors) -> f32x16<Neon> {
        widen(self.neon(), factors)
    }
}

impl ByteProducts for Neon {
    type Simd = Self;
    /// Less 128 where they have 8 bits.
    type Codes = [i8x16<Self>; 4];
    /// For codes of 4 bits eight sums of 16 bits, two for each row, in two vectors; otherwise in 32 bits.
    type Sums = [[i32x4<Self>; 2]; 4];

    const SIGNED: bool = true;
    const SMALL_LINES: usize = 128;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn codes<const BITS: u32>(self, bytes: u8x64<Self>) -> [i8x16<Self>; 4] {
        signed::<BITS>(bytes)
    }

    #[inline(always)]
    fn begin(self, _: i32) -> [[i32x4<Self>; 2]; 4] {
        [[i32x4::splat(self, 0); 2]; 4]
    }

    #[inline(always)]
    fn add<const BITS: u32>(
        self,
        mut sums: [[i32x4<Self>; 2]; 4],
        codes: [i8x16<Self>; 4],
        quad: Quad,
    ) -> [[i32x4<Self>; 2]; 4] {
        let quads = broadcast(self, quad);
        for quarter in 0..4 {
            let [low, high] = sums[quarter];
            sums[quarter] = if BITS > 4 {
                [
                    add_wide_low(self, low, codes[quarter], quads),
                    add_wide_high(self, high, codes[quarter], quads),
                ]
            } else {
                let low = add_low(self, low.bitcast(), codes[quarter], quads);
                [low.bitcast(), add_high(self, high.bitcast(), codes[quarter], quads).bitcast()]
            };
        }
        sums
    }

    #[inline(always)]
    fn total<const BITS: u32>(self, sums: [[i32x4<Self>; 2]; 4], start: i32) -> i32x16<Self> {
        let mut totals = [i32x4::splat(self, start); 4];
        for quarter in 0..4 {
            let [mut low, mut high] = sums[quarter];
            if BITS <= 4 {
                (low, high) = (pairs(self, low.bitcast()), pairs(self, high.bitcast()));
            }
            totals[quarter] += pair_sums(self, low, high);
        }
        whole(totals)
    }

    #[inline(always)]
    fn widen(self, factors: &RowFactors) -> f32x16<Self> {
        widen(self, factors)
    }
}

/// The four quarters of a line, four rows each.
#[inline(always)]
fn signed<const BITS: u32>(bytes: u8x64<Neon>) -> [i8x16<Neon>; 4] {
    let (low, high) = if BITS == 8 { bytes ^ 0x80 } else { bytes }.split();
    let ((a, b), (c, d)) = (low.split(), high.split());
    [a.bitcast(), b.bitcast(), c.bitcast(), d.bitcast()]
}

#[inline(always)]
fn whole([a, b, c, d]: [i32x4<Neon>; 4]) -> i32x16<Neon> {
    a.combine(b).combine(c.combine(d))
}

/// A quad in all lanes.
#[inline(always)]
fn broadcast(neon: Neon, quad: Quad) -> i8x16<Neon> {
    i32x4::splat(neon, bits(quad)).bitcast()
}

#[inline(always)]
fn widen(neon: Neon, factors: &RowFactors) -> f32x16<Neon> {
    let [a, b, c, d] = [0, 4, 8, 12].map(
        #[inline(always)]
        |first| neon.f16s(&factors.0[first..first + 4]),
    );
    a.combine(b).combine(c.combine(d))
}

kernel!(
    /// Adds the products of the lower eight bytes.
    #[inline(always)]
    fn add_low(neon: Neon, sums: i16x8<Neon>, codes: i8x16<Neon>, quads: i8x16<Neon>) -> i16x8<Neon> {
        vmlal_s8(sums.into(), vget_low_s8(codes.into()), vget_low_s8(quads.into())).simd_into(neon)
    }
);

kernel!(
    /// Adds the products of the upper eight bytes.
    #[inline(always)]
    fn add_high(neon: Neon, sums: i16x8<Neon>, codes: i8x16<Neon>, quads: i8x16<Neon>) -> i16x8<Neon> {
        vmlal_high_s8(sums.into(), codes.into(), quads.into()).simd_into(neon)
    }
);

kernel!(
    /// Adds the products of the lower eight bytes, two neighbours to a sum.
    #[inline(always)]
    fn add_wide_low(neon: Neon, sums: i32x4<Neon>, codes: i8x16<Neon>, quads: i8x16<Neon>) -> i32x4<Neon> {
        let products = vmull_s8(vget_low_s8(codes.into()), vget_low_s8(quads.into()));
        vpadalq_s16(sums.into(), products).simd_into(neon)
    }
);

kernel!(
    /// Adds the products of the upper eight bytes, two neighbours to a sum.
    #[inline(always)]
    fn add_wide_high(neon: Neon, sums: i32x4<Neon>, codes: i8x16<Neon>, quads: i8x16<Neon>) -> i32x4<Neon> {
        vpadalq_s16(sums.into(), vmull_high_s8(codes.into(), quads.into())).simd_into(neon)
    }
);

kernel!(
    /// Sums of two neighbours each.
    #[inline(always)]
    fn pairs(neon: Neon, sums: i16x8<Neon>) -> i32x4<Neon> {
        vpaddlq_s16(sums.into()).simd_into(neon)
    }
);

kernel!(
    /// Sums of two neighbours each, of the one and then of the other.
    #[inline(always)]
    fn pair_sums(neon: Neon, a: i32x4<Neon>, b: i32x4<Neon>) -> i32x4<Neon> {
        vpaddq_s32(a.into(), b.into()).simd_into(neon)
    }
);
