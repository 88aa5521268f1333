//! Products of bytes: which instructions this machine has for them. The instructions themselves are in `arch`.

use std::fmt;

use fearless_simd::Fallback;
#[cfg(target_arch = "aarch64")]
use fearless_simd::Neon;
#[cfg(target_arch = "x86_64")]
use fearless_simd::{Avx2, Avx512};

use crate::Isa;
#[cfg(target_arch = "x86_64")]
pub use crate::arch::dot_avx512;
#[cfg(target_arch = "x86_64")]
use crate::features::AvxVnni;
#[cfg(target_arch = "aarch64")]
use crate::features::DotProd;

/// The instructions that multiply bytes: a proof that this machine has them.
#[derive(Clone, Copy)]
pub enum ByteKernel {
    /// Without vector instructions.
    Scalar,
    /// `vpmaddubsw`.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// `vpdpbusd` with 256 bits.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    /// `vpdpbusd` with 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// `smlal`.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// `sdot`.
    #[cfg(target_arch = "aarch64")]
    DotProd(DotProd),
}

impl ByteKernel {
    /// All that this machine has, slowest first. `scalar` is always there.
    pub fn available() -> Vec<Self> {
        Isa::available()
            .into_iter()
            .flat_map(|isa| [Some(Self::plain(isa)), Self::dot(isa)])
            .flatten()
            .collect()
    }

    /// The fastest of an instruction set.
    pub fn of(isa: Isa) -> Self {
        Self::dot(isa).unwrap_or(Self::plain(isa))
    }

    /// What every CPU of an instruction set has.
    fn plain(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => Self::Avx2(avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => Self::Avx512(avx512),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => Self::Neon(neon),
            _ => Self::Scalar,
        }
    }

    /// What this CPU may have beside it.
    fn dot(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => AvxVnni::of(avx2).map(Self::AvxVnni),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => DotProd::of(neon).map(Self::DotProd),
            _ => None,
        }
    }

    /// The instruction set that it belongs to.
    pub const fn isa(self) -> Isa {
        match self {
            Self::Scalar => Isa::Scalar(Fallback::new()),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => Isa::Avx2(avx2),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(avx_vnni) => Isa::Avx2(avx_vnni.avx2()),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => Isa::Avx512(avx512),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(neon) => Isa::Neon(neon),
            #[cfg(target_arch = "aarch64")]
            Self::DotProd(dot_prod) => Isa::Neon(dot_prod.neon()),
        }
    }

    /// `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`, `neon` or `neon-dot`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::DotProd(_) => "neon-dot",
        }
    }
}

impl PartialEq for ByteKernel {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for ByteKernel {}

impl fmt::Debug for ByteKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ByteKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "aarch64")]
    use fearless_simd::i8x16;
    use fearless_simd::prelude::*;
    #[cfg(target_arch = "x86_64")]
    use fearless_simd::{u8x32, u8x64};

    use super::*;

    #[test]
    fn every_instruction_set_has_a_kernel_and_the_best_has_the_last() {
        let kernels = ByteKernel::available();
        for isa in Isa::available() {
            assert!(kernels.contains(&ByteKernel::of(isa)), "{isa}");
            assert_eq!(ByteKernel::of(isa).isa(), isa);
        }
        assert_eq!(ByteKernel::of(Isa::available()[0]).name(), "scalar");
        assert_eq!(Some(&ByteKernel::of(Isa::best())), kernels.last());
    }

    #[test]
    fn the_kernel_of_an_instruction_set_is_the_fastest_that_this_machine_has() {
        for isa in Isa::available() {
            let fastest = ByteKernel::available().into_iter().rfind(|kernel| kernel.isa() == isa);
            assert_eq!(Some(ByteKernel::of(isa)), fastest, "{isa}");
        }
    }

    /// Bytes of both signs, the ends of their range among them.
    fn bytes<const N: usize>(factor: usize) -> [u8; N] {
        std::array::from_fn(|i| match i % 7 {
            0 => 0x80,
            1 => 0x7f,
            2 => 0xff,
            _ => (i * factor) as u8,
        })
    }

    /// Lane by lane; `other` is the lane of `b` that is multiplied.
    fn expected(
        sums: &[i32],
        a: &[u8],
        b: &[u8],
        number: impl Fn(u8) -> i32,
        other: impl Fn(usize) -> usize,
    ) -> Vec<i32> {
        let lane = |lane: usize| -> i32 {
            let product = |i: usize| number(a[4 * lane + i]) * i32::from(b[4 * other(lane) + i] as i8);
            sums[lane] + (0..4).map(product).sum::<i32>()
        };
        (0..sums.len()).map(lane).collect()
    }

    #[test]
    fn instructions_add_up_the_products_of_four_bytes() {
        for kernel in ByteKernel::available() {
            match kernel {
                #[cfg(target_arch = "x86_64")]
                ByteKernel::AvxVnni(token) => {
                    let (sums, a, b): ([i32; 8], [u8; 32], [u8; 32]) =
                        (std::array::from_fn(|i| i as i32 * 1000 - 7), bytes(13), bytes(29));
                    let simd = token.avx2();
                    let signed = u8x32::from_slice(simd, &b).bitcast();
                    let got = token.dot(sums.simd_into(simd), a.simd_into(simd), signed);
                    assert_eq!(got.as_slice(), expected(&sums, &a, &b, i32::from, |lane| lane));
                }
                #[cfg(target_arch = "x86_64")]
                ByteKernel::Avx512(simd) => {
                    let (sums, a, b): ([i32; 16], [u8; 64], [u8; 64]) =
                        (std::array::from_fn(|i| i as i32 * 1000 - 7), bytes(13), bytes(29));
                    let signed = u8x64::from_slice(simd, &b).bitcast();
                    let got = dot_avx512(simd, sums.simd_into(simd), a.simd_into(simd), signed);
                    assert_eq!(got.as_slice(), expected(&sums, &a, &b, i32::from, |lane| lane));
                }
                #[cfg(target_arch = "aarch64")]
                ByteKernel::DotProd(token) => {
                    let (sums, a, b): ([i32; 4], [u8; 16], [u8; 16]) =
                        (std::array::from_fn(|i| i as i32 * 1000 - 7), bytes(13), bytes(29));
                    let simd = token.neon();
                    let signed = |x: [u8; 16]| -> i8x16<Neon> { x.map(u8::cast_signed).simd_into(simd) };
                    let number = |x: u8| i32::from(x.cast_signed());
                    let got = token.dot(sums.simd_into(simd), signed(a), signed(b));
                    assert_eq!(got.as_slice(), expected(&sums, &a, &b, number, |lane| lane));
                    let got = token.dot_lane::<2>(sums.simd_into(simd), signed(a), signed(b));
                    assert_eq!(got.as_slice(), expected(&sums, &a, &b, number, |_| 2));
                }
                _ => {}
            }
        }
    }
}
