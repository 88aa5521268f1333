//! The channels of a block's deltas, from the bits that say which there are: the part of a [`DeltaStream`] that compress
//! instructions are made for.

use deltallm_core::{DeltaMatrix, DeltaStream, unpack_masks};

use super::SimdLevel;

impl SimdLevel {
    /// The deltas of block `block` of `matrix` into `stream` (overwritten).
    pub(crate) fn stream(self, matrix: &DeltaMatrix, block: usize, stream: &mut DeltaStream) {
        matrix.stream_with(block, stream, |masks, words, channels, ends| {
            #[cfg(target_arch = "x86_64")]
            if self.level.as_avx512().is_some() {
                // SAFETY: the level proves that the CPU has the instructions.
                #[expect(unsafe_code, reason = "a function that needs instructions to be there")]
                return unsafe { avx512::unpack(masks, words, channels, ends) };
            }
            unpack_masks(masks, words, channels, ends);
        });
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics that write memory")]
mod avx512 {
    use std::arch::x86_64::*;

    /// Channels of a vector.
    const LANES: usize = 16;

    /// [`unpack_masks`](deltallm_core::unpack_masks).
    #[target_feature(enable = "avx512f,popcnt")]
    pub(super) fn unpack(masks: &[u64], words: usize, channels: &mut Vec<u32>, ends: &mut Vec<u32>) {
        let (mut count, mut len) = (0, channels.len());
        // A loop: the sum of an iterator may not be inlined, and counts without the instruction then.
        for word in masks {
            count += word.count_ones() as usize;
        }
        // The last vector is stored whole.
        channels.resize(len + count + LANES, 0);
        let iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for mask in masks.chunks_exact(words) {
            for (&word, first) in mask.iter().zip((0..).step_by(64)) {
                for quarter in 0..4 {
                    let bits = (word >> (16 * quarter)) as u16;
                    let numbers = _mm512_add_epi32(iota, _mm512_set1_epi32(first + 16 * quarter));
                    let packed = _mm512_maskz_compress_epi32(bits, numbers);
                    let to = &mut channels[len..len + LANES];
                    // SAFETY: `to` has as many numbers as the vector.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), packed) };
                    len += bits.count_ones() as usize;
                }
            }
            ends.push(len as u32);
        }
        channels.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use deltallm_core::{ElementType, MemoryBudget};
    use proptest::prelude::*;

    use super::*;

    /// A walk of keys, coded with one threshold.
    fn coded(channels: usize, tokens: usize, theta: f32, seed: u32) -> DeltaMatrix {
        let mut matrix = DeltaMatrix::new(vec![theta; channels], ElementType::F32).unwrap();
        let mut charge = MemoryBudget::unlimited().charge();
        let (mut state, mut key) = (seed, vec![0.0; channels]);
        for _ in 0..tokens {
            for x in &mut key {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *x += (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            }
            matrix.push(&key, &mut charge).unwrap();
        }
        matrix
    }

    #[test]
    #[ignore = "a measurement"]
    fn rates() {
        let matrix = coded(64, 2048, 0.5, 1);
        let mut stream = DeltaStream::default();
        for _ in 0..5 {
            for simd in SimdLevel::available() {
                let start = std::time::Instant::now();
                for _ in 0..20 {
                    (0..matrix.blocks()).for_each(|block| simd.stream(&matrix, block, &mut stream));
                }
                println!("{simd}: {:.1} ns a token", start.elapsed().as_nanos() as f64 / (20.0 * 2048.0));
            }
        }
    }

    proptest! {
        #[test]
        fn every_level_lists_the_same_deltas(
            channels in 1_usize..200, tokens in 1_usize..150, theta in 0.0_f32..1.5, seed: u32,
        ) {
            let matrix = coded(channels, tokens, theta, seed);
            for block in 0..matrix.blocks() {
                let mut expected = DeltaStream::default();
                matrix.stream(block, &mut expected);
                for simd in SimdLevel::available() {
                    // Overwrites what is there.
                    let mut stream = expected.clone();
                    simd.stream(&matrix, block, &mut stream);
                    prop_assert_eq!(stream.channels(), expected.channels(), "{}", simd);
                    prop_assert_eq!(stream.ends(), expected.ends());
                    prop_assert_eq!(stream.deltas(), expected.deltas());
                }
            }
        }
    }
}
