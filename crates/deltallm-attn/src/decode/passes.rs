//! The query heads of a group, as many at a time as the registers hold.

use super::decode_simd::DecodeSimd;

/// Work that several heads share, because they read the same rows.
pub(crate) trait Pass<S: DecodeSimd> {
    /// Does it for the heads `head..head + G`.
    fn pass<const G: usize>(&mut self, simd: S, head: usize);
}

/// Does the work of all heads, in passes as even as possible: 5 heads are better 3 + 2 than 4 + 1.
#[inline(always)]
pub(crate) fn in_passes<S: DecodeSimd>(simd: S, heads: usize, work: &mut impl Pass<S>) {
    let mut head = 0;
    while head < heads {
        let passes = (heads - head).div_ceil(S::HEADS);
        let pass = (heads - head).div_ceil(passes);
        match pass {
            1 => work.pass::<1>(simd, head),
            2 if const { S::HEADS >= 2 } => work.pass::<2>(simd, head),
            3 if const { S::HEADS >= 3 } => work.pass::<3>(simd, head),
            4 if const { S::HEADS >= 4 } => work.pass::<4>(simd, head),
            // Not reached: a pass has at most `HEADS` heads, which no instruction set has more than four of.
            _ => {}
        }
        head += pass;
    }
}
