//! AVX-512, AVX-VNNI and AVX2.
//!
//! The first two have dot products of bytes (`vpdpbusd`). AVX2 alone multiplies bytes to sums of two products in 16 bits
//! (`vpmaddubsw`): a code of half a byte is at most 15 and an activation at most 127, so 8 sums of two products, 30480, fit; codes of at
//! most 2 and activations of at least -128 give -512 at least, and 64 fit. With codes of 5 and 6 bits a sum of two products is at most
//! 16002, and it is widened at once. So is that of codes of 8 bits, which are less 128 first: their signs move over to the activations, and
//! a sum of two products is at most 32512.

use std::arch::x86_64::*;

use deltallm_simd::{
    convert::Convert,
    dot::dot_avx512,
    fearless_simd::{
        Avx2, Avx512, f32x16, i8x32, i8x64, i16x16, i32x8, i32x16, kernel, prelude::*, u8x32, u8x64,
    },
    features::AvxVnni,
};

use crate::linear::kernels::{ByteProducts, Quad, RowFactors, bits};

impl ByteProducts for Avx512 {
    type Simd = Self;
    type Codes = u8x64<Self>;
    type Sums = i32x16<Self>;

    const SIGNED: bool = false;
    const SMALL_LINES: usize = usize::MAX;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn codes<const BITS: u32>(self, bytes: u8x64<Self>) -> u8x64<Self> {
        bytes
    }

    #[inline(always)]
    fn begin(self, start: i32) -> i32x16<Self> {
        i32x16::splat(self, start)
    }

    #[inline(always)]
    fn add<const BITS: u32>(self, sums: i32x16<Self>, codes: u8x64<Self>, quad: Quad) -> i32x16<Self> {
        let quads: i8x64<_> = i32x16::splat(self, bits(quad)).bitcast();
        dot_avx512(self, sums, codes, quads)
    }

    #[inline(always)]
    fn total<const BITS: u32>(self, sums: i32x16<Self>, _: i32) -> i32x16<Self> {
        sums
    }

    #[inline(always)]
    fn widen(self, factors: &RowFactors) -> f32x16<Self> {
        self.f16s(&factors.0)
    }
}

impl ByteProducts for AvxVnni {
    type Simd = Avx2;
    type Codes = u8x64<Avx2>;
    type Sums = i32x16<Avx2>;

    const SIGNED: bool = false;
    const SMALL_LINES: usize = usize::MAX;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.avx2()
    }

    #[inline(always)]
    fn codes<const BITS: u32>(self, bytes: u8x64<Avx2>) -> u8x64<Avx2> {
        bytes
    }

    #[inline(always)]
    fn begin(self, start: i32) -> i32x16<Avx2> {
        i32x16::splat(self.avx2(), start)
    }

    #[inline(always)]
    fn add<const BITS: u32>(self, sums: i32x16<Avx2>, codes: u8x64<Avx2>, quad: Quad) -> i32x16<Avx2> {
        let quads = broadcast(self.avx2(), quad);
        let ([low, high], [codes_low, codes_high]) = (halves(sums), halves(codes));
        self.dot(low, codes_low, quads).combine(self.dot(high, codes_high, quads))
    }

    #[inline(always)]
    fn total<const BITS: u32>(self, sums: i32x16<Avx2>, _: i32) -> i32x16<Avx2> {
        sums
    }

    #[inline(always)]
    fn widen(self, factors: &RowFactors) -> f32x16<Avx2> {
        widen(self.avx2(), factors)
    }
}

impl ByteProducts for Avx2 {
    type Simd = Self;
    /// Codes; of those of 8 bits the magnitude of what they are less 128. Beside it what has the sign.
    type Codes = [u8x64<Self>; 2];
    /// In 16 bits for codes of 4 bits.
    type Sums = i32x16<Self>;

    const SIGNED: bool = true;
    const SMALL_LINES: usize = 64;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn codes<const BITS: u32>(self, bytes: u8x64<Self>) -> [u8x64<Self>; 2] {
        if BITS < 8 {
            return [bytes; 2];
        }
        let signed = bytes ^ 0x80;
        let [low, high] = halves(signed);
        [magnitudes(self, low).combine(magnitudes(self, high)), signed]
    }

    #[inline(always)]
    fn begin(self, _: i32) -> i32x16<Self> {
        i32x16::splat(self, 0)
    }

    #[inline(always)]
    fn add<const BITS: u32>(self, sums: i32x16<Self>, codes: [u8x64<Self>; 2], quad: Quad) -> i32x16<Self> {
        let quads = broadcast(self, quad);
        let ([low, high], [codes_low, codes_high]) = (halves(sums), halves(codes[0]));
        if BITS == 8 {
            let [signs_low, signs_high] = halves(codes[1]);
            let low = low + pairs(self, products(self, codes_low, with_signs(self, quads, signs_low)));
            let high = high + pairs(self, products(self, codes_high, with_signs(self, quads, signs_high)));
            return low.combine(high);
        }
        if BITS > 4 {
            let low = low + pairs(self, products(self, codes_low, quads));
            let high = high + pairs(self, products(self, codes_high, quads));
            return low.combine(high);
        }
        let low = low.bitcast::<i16x16<_>>() + products(self, codes_low, quads);
        let high = high.bitcast::<i16x16<_>>() + products(self, codes_high, quads);
        low.bitcast::<i32x8<_>>().combine(high.bitcast::<i32x8<_>>())
    }

    #[inline(always)]
    fn total<const BITS: u32>(self, sums: i32x16<Self>, start: i32) -> i32x16<Self> {
        let [mut low, mut high] = halves(sums);
        if BITS <= 4 {
            (low, high) = (pairs(self, low.bitcast()), pairs(self, high.bitcast()));
        }
        (low + start).combine(high + start)
    }

    #[inline(always)]
    fn widen(self, factors: &RowFactors) -> f32x16<Self> {
        widen(self, factors)
    }
}

/// Rows 0 to 7 and 8 to 15.
#[inline(always)]
fn halves<V: SimdSplit<Avx2>>(line: V) -> [V::Split; 2] {
    line.split().into()
}

/// A quad in all lanes.
#[inline(always)]
fn broadcast(avx2: Avx2, quad: Quad) -> i8x32<Avx2> {
    i32x8::splat(avx2, bits(quad)).bitcast()
}

#[inline(always)]
fn widen(avx2: Avx2, factors: &RowFactors) -> f32x16<Avx2> {
    let (low, high) = factors.0.split_at(8);
    avx2.f16s(low).combine(avx2.f16s(high))
}

kernel!(
    /// Products of bytes, the sums of two neighbours each.
    #[inline(always)]
    fn products(avx2: Avx2, codes: u8x32<Avx2>, quads: i8x32<Avx2>) -> i16x16<Avx2> {
        _mm256_maddubs_epi16(codes.into(), quads.into()).simd_into(avx2)
    }
);

kernel!(
    /// Sums of two neighbours each.
    #[inline(always)]
    fn pairs(avx2: Avx2, sums: i16x16<Avx2>) -> i32x8<Avx2> {
        _mm256_madd_epi16(sums.into(), _mm256_set1_epi16(1)).simd_into(avx2)
    }
);

kernel!(
    /// Quads with the signs of codes.
    #[inline(always)]
    fn with_signs(avx2: Avx2, quads: i8x32<Avx2>, signs: u8x32<Avx2>) -> i8x32<Avx2> {
        _mm256_sign_epi8(quads.into(), signs.into()).simd_into(avx2)
    }
);

kernel!(
    /// Magnitudes of signed bytes.
    #[inline(always)]
    fn magnitudes(avx2: Avx2, signed: u8x32<Avx2>) -> u8x32<Avx2> {
        _mm256_abs_epi8(signed.into()).simd_into(avx2)
    }
);
