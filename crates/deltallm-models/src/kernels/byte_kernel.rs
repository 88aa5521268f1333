//! Which instructions multiply bytes.

use std::fmt;

use deltallm_attn::SimdLevel;

/// The instructions that a [`TernaryLinear`](crate::TernaryLinear) or a [`QuantisedLinear`](crate::QuantisedLinear) multiplies
/// with: a proof that this machine has them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ByteKernel(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instructions {
    Scalar,
    /// `vpmaddubsw`, with FMA and F16C; only made where they were detected, as all that follow.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// `vpdpbusd` of 256 bits, and what `Avx2` has.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// `vpdpbusd` of 512 bits, with AVX512-F and -BW.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// `smlal`.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl ByteKernel {
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
        let kernels: Vec<(bool, Instructions)> = match level.name() {
            #[cfg(target_arch = "x86_64")]
            "avx2" => {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                let vnni = avx2 && is_x86_feature_detected!("avxvnni");
                vec![(avx2, Instructions::Avx2), (vnni, Instructions::AvxVnni)]
            }
            #[cfg(target_arch = "x86_64")]
            "avx512" => {
                let vnni = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni");
                vec![(vnni, Instructions::Avx512Vnni)]
            }
            #[cfg(target_arch = "aarch64")]
            "neon" => {
                let neon = std::arch::is_aarch64_feature_detected!("neon");
                let dot = neon && std::arch::is_aarch64_feature_detected!("dotprod");
                vec![(neon, Instructions::Neon), (dot, Instructions::NeonDot)]
            }
            _ => Vec::new(),
        };
        kernels.into_iter().filter(|(has, _)| *has).map(|(_, instructions)| Self(instructions))
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

    pub(crate) fn instructions(self) -> Instructions {
        self.0
    }
}

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
