//! Differences of 8-bit codes: from half a byte, as they are stored, to a byte, as they are added.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

use super::expand::{grow, padded};

/// The differences of a block, one to a byte; bytes after them are not read.
#[derive(Debug, Default)]
pub(crate) struct UnpackedDifferences {
    bytes: Vec<i8>,
    /// Those that did not fit half a byte, and a vector of zeros.
    wide: Vec<i8>,
}

impl UnpackedDifferences {
    /// Reads those of [`StepCodes`](deltallm_core::internal::StepCodes): 0 in `packed` stands for the next one of `wide`.
    pub(crate) fn unpack(&mut self, isa: Isa, packed: &[u8], wide: &[i8]) -> &[i8] {
        dispatch!(isa, simd => self.unpack_vectors(simd, packed, wide));
        &self.bytes
    }

    #[inline(always)]
    fn unpack_vectors<S: Simd>(&mut self, simd: S, packed: &[u8], wide: &[i8]) {
        let lanes = S::u8s::LEN;
        self.wide.clear();
        self.wide.extend_from_slice(wide);
        self.wide.resize(wide.len() + lanes, 0);
        let mut done = 0;
        grow(&mut self.bytes, 2 * packed.len().next_multiple_of(lanes));
        for (packed, out) in packed.chunks(lanes).zip(self.bytes.chunks_exact_mut(2 * lanes)) {
            let pairs = padded::<S, S::u8s>(simd, packed);
            let (low, high) = (pairs & 15, pairs >> 4);
            let halves = [low.zip_low(high), low.zip_high(high)];
            for (nibbles, out) in halves.into_iter().zip(out.chunks_exact_mut(lanes)) {
                let differences: S::i8s = ((nibbles ^ 8) - 8).bitcast();
                let is_wide = nibbles.simd_eq(0);
                let next = S::i8s::from_slice(simd, &self.wide[done..done + lanes]);
                next.expand_merge(is_wide, differences).store_slice(out);
                // There is one for each zero, but for those of the padding.
                done = wide.len().min(done + is_wide.to_bitmask().count_ones() as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_comes_back_for_every_instruction_set_and_length() {
        // Wide ones more often than in keys.
        let all: Vec<i8> =
            (0..400_i32).map(|i| if i % 3 == 0 { (i * 37) as i8 } else { (i * 5 % 17 - 8) as i8 }).collect();
        for isa in Isa::available() {
            let mut differences = UnpackedDifferences::default();
            for count in (0..all.len()).rev().step_by(3).chain([1, 0]) {
                let all = &all[..count];
                let nibble = |x: Option<&i8>| x.filter(|x| (-7..8).contains(*x)).map_or(0, |x| *x as u8 & 15);
                let packed: Vec<u8> =
                    all.chunks(2).map(|pair| nibble(pair.first()) | nibble(pair.get(1)) << 4).collect();
                let wide: Vec<i8> = all.iter().copied().filter(|x| !(-7..8).contains(x) || *x == 0).collect();
                let unpacked = differences.unpack(isa, &packed, &wide);
                assert_eq!(unpacked[..count], *all, "{isa}: {count} differences");
            }
        }
    }
}
