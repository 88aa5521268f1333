//! 8-bit products with AVX512-VNNI and AVX-VNNI.

use deltallm_simd::{
    dot::dot_avx512,
    fearless_simd::{Avx2, Avx512, prelude::*},
    features::AvxVnni,
};

use crate::prefill::first_pass::operands::Operands;

/// Bit `i`: the sum of key `i` ends at zero or above in some lane.
pub(crate) fn candidates_avx512(avx512: Avx512, operands: Operands) -> u64 {
    assert!(operands.starts.len().is_multiple_of(16));
    avx512.vectorize(
        #[inline(always)]
        || panels(avx512, operands),
    )
}

/// The same with 256-bit vectors.
pub(crate) fn candidates_avx2(avx_vnni: AvxVnni, operands: Operands) -> u64 {
    assert!(operands.starts.len().is_multiple_of(8));
    avx_vnni.vectorize(
        #[inline(always)]
        || panels(avx_vnni, operands),
    )
}

/// Instructions that multiply, on vectors of one length.
trait Dot: Copy {
    /// The instruction set of the vectors.
    type Simd: Simd;

    /// Vectors that registers hold.
    const REGISTERS: usize;

    fn simd(self) -> Self::Simd;

    /// Adds to every lane the products of the four codes of a key with its own four.
    fn dot(self, sums: Sums<Self>, key: u32, queries: Quads<Self>) -> Sums<Self>;
}

/// A vector of sums.
type Sums<D> = <<D as Dot>::Simd as Simd>::i32s;

/// A vector of four codes each.
type Quads<D> = <<D as Dot>::Simd as Simd>::u32s;

impl Dot for Avx512 {
    type Simd = Self;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn dot(self, sums: Sums<Self>, key: u32, queries: Quads<Self>) -> Sums<Self> {
        dot_avx512(self, sums, Quads::<Self>::splat(self, key).bitcast(), queries.bitcast())
    }
}

impl Dot for AvxVnni {
    type Simd = Avx2;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.avx2()
    }

    #[inline(always)]
    fn dot(self, sums: Sums<Self>, key: u32, queries: Quads<Self>) -> Sums<Self> {
        Self::dot(self, sums, Quads::<Self>::splat(self.avx2(), key).bitcast(), queries.bitcast())
    }
}

#[inline(always)]
fn panels<D: Dot>(dot: D, operands: Operands) -> u64 {
    let (lanes, width) = (operands.starts.len(), Sums::<D>::LEN);
    let (mut bits, mut lane) = (0, 0);
    while lane < lanes {
        let (more, vectors) = match (lanes - lane) / width {
            1 => (panel::<D, 8, 1>(dot, operands, lane), 1),
            // Of 16 registers 12 hold sums. Not of 4 keys and 3 vectors: that leaves one for the keys, and compilers then keep
            // a sum in memory.
            _ if const { D::REGISTERS == 16 } => (panel::<D, 6, 2>(dot, operands, lane), 2),
            2 => (panel::<D, 8, 2>(dot, operands, lane), 2),
            3 => (panel::<D, 8, 3>(dot, operands, lane), 3),
            6 => (panel::<D, 4, 6>(dot, operands, lane), 6),
            _ => (panel::<D, 6, 4>(dot, operands, lane), 4),
        };
        (bits, lane) = (bits | more, lane + width * vectors);
    }
    bits
}

/// The keys that are wanted by the `N` vectors at `lane`, `R` at a time.
#[inline(always)]
fn panel<D: Dot, const R: usize, const N: usize>(dot: D, operands: Operands, lane: usize) -> u64 {
    let (mut bits, mut row) = (0, 0);
    while row + R <= operands.rows() {
        bits |= wanted::<D, R, N>(dot, operands, row, lane) << row;
        row += R;
    }
    if R > 4 && row + 4 <= operands.rows() {
        bits |= wanted::<D, 4, N>(dot, operands, row, lane) << row;
        row += 4;
    }
    while row < operands.rows() {
        bits |= wanted::<D, 1, N>(dot, operands, row, lane) << row;
        row += 1;
    }
    bits
}

/// The products of `R` keys and `N` vectors, kept in registers: every loop over them has a constant count.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
fn wanted<D: Dot, const R: usize, const N: usize>(
    dot: D,
    operands: Operands,
    row: usize,
    lane: usize,
) -> u64 {
    let (simd, width) = (dot.simd(), Sums::<D>::LEN);
    let Operands { keys, depth, queries, starts } = operands;
    let zero = Sums::<D>::splat(simd, 0);
    let mut sums = [[zero; N]; R];
    let columns = &starts[lane..][..N * width];
    for n in 0..N {
        let start = Sums::<D>::from_slice(simd, &columns[n * width..][..width]);
        for r in 0..R {
            sums[r][n] = start;
        }
    }
    let mut rows = [&[][..]; R];
    for r in 0..R {
        rows[r] = &keys[(row + r) * depth..][..depth];
    }
    for (d, columns) in queries.chunks_exact(starts.len()).enumerate().take(depth) {
        let columns = &columns[lane..][..N * width];
        let mut quads = [Quads::<D>::splat(simd, 0); N];
        for n in 0..N {
            quads[n] = Quads::<D>::from_slice(simd, &columns[n * width..][..width]);
        }
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = dot.dot(sums[r][n], rows[r][d], quads[n]);
            }
        }
    }
    let mut bits = 0;
    for r in 0..R {
        // Of an "and", the sign says whether all are below zero.
        let mut all = sums[r][0];
        for n in 1..N {
            all &= sums[r][n];
        }
        bits |= u64::from(!all.simd_lt(zero).all_true()) << r;
    }
    bits
}
