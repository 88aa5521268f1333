//! Which keys can matter at all: a first pass over the far history in 8 bits.
//!
//! Where values are skipped, most keys are scored only to find that no query of the tile comes near them. The
//! dot-product instructions of 8-bit integers find that out at up to four times the speed of an f32 FMA (`vpdpbusd` of
//! AVX512-VNNI and AVX-VNNI, `sdot` of Arm). The answer is a superset: keys whose score *could* be above the threshold of
//! a query. They are then scored in full and tested again, so the results are those of testing every key.
//!
//! A channel of the keys is coded as `k = center + step * code + r` with `code` in -128..=127 and `|r| <= step / 2`; a query
//! times the steps as `q step = unit * code + e`. So
//!
//! `q . k = q . center + unit * sum(code code) + e . code + q . r`,
//!
//! and by the inequality of Cauchy and Schwarz the last two terms are at most `|e| |code| + |q step| |r / step|`. The norms
//! of the queries are taken per query, those of the keys as the largest of a block.

pub(crate) mod operands;

use std::ops::Range;

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::{Isa, dispatch, dot::ByteKernel, fearless_simd::prelude::*, math::ROUND};

#[cfg(target_arch = "aarch64")]
use super::arch::first_pass_aarch64 as aarch64;
#[cfg(target_arch = "x86_64")]
use super::arch::first_pass_x86 as x86;
use operands::Operands;

/// Channels up to which a key has codes for the first pass: the sums of its products fit in 32 bits.
const MOST_FIRST_PASS_CHANNELS: usize = 4096;

/// A first pass with one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct FirstPass {
    isa: Isa,
    dots: ByteKernel,
}

/// Keys of one kv head as 8-bit codes.
#[derive(Debug, Default)]
pub(crate) struct KeyCodes {
    /// The tokens that are here.
    tokens: Range<usize>,
    /// `[tokens, quads]`: four channels a number, each code with [`FirstPass::shift`] added.
    quads: Vec<u32>,
    /// `[head_dim]`.
    centers: Vec<f32>,
    steps: Vec<f32>,
    /// Of every [`BLOCK_TOKENS`] tokens, counted from the first that is here.
    norms: Vec<Norms>,
}

/// The largest norms of a block of keys.
#[derive(Debug, Clone, Copy, Default)]
struct Norms {
    codes: f32,
    /// Of what the codes leave over, in steps.
    rests: f32,
}

/// A tile of queries as 8-bit codes for certain [`KeyCodes`]; all but the first are `[lanes]`.
#[derive(Debug, Default)]
pub(crate) struct QueryCodes {
    /// `[quads, lanes]`.
    quads: Vec<u32>,
    units: Vec<f32>,
    /// `q . center`, and the same of magnitudes.
    bases: Vec<f32>,
    magnitudes: Vec<f32>,
    /// Norms of `q step` and of what its codes leave over.
    norms: Vec<f32>,
    rests: Vec<f32>,
    /// The sum of the codes times minus [`FirstPass::shift`]: takes back what was added to the keys'.
    offsets: Vec<i32>,
    /// What the sums of a block start from: they end below zero for keys that cannot be above the threshold.
    starts: Vec<i32>,
}

/// Beyond the largest sum of products by far, and far from the end of 32 bits.
const FAR: f32 = 268_435_456.0;

impl FirstPass {
    /// The first pass over keys whose values may be skipped, if the CPU has the dot products of bytes that make it worth while (or
    /// the instruction set exists to be compared with).
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        let dots = ByteKernel::of(isa);
        let worth_while = match dots {
            #[cfg(target_arch = "x86_64")]
            ByteKernel::Avx512(_) | ByteKernel::AvxVnni(_) => true,
            #[cfg(target_arch = "aarch64")]
            ByteKernel::DotProd(_) => true,
            _ => matches!(isa, Isa::Scalar(_)),
        };
        worth_while.then_some(Self { isa, dots })
    }

    /// What is added to the codes of keys: the instructions of x86 take one of their factors without a sign.
    fn shift(self) -> f32 {
        match self.dots {
            #[cfg(target_arch = "aarch64")]
            ByteKernel::DotProd(_) => 0.0,
            _ => 128.0,
        }
    }

    /// Codes of the keys `[tokens, head_dim]`; `None` where a channel's range is beyond f32, or too many are to be added up
    /// in 32 bits.
    pub(crate) fn keys(self, tokens: Range<usize>, keys: &[f32], head_dim: usize) -> Option<KeyCodes> {
        let mut out = KeyCodes { tokens, ..KeyCodes::default() };
        dispatch!(self.isa, simd => out.fill(simd, keys, head_dim, self.shift()));
        let finite = out.centers.iter().chain(&out.steps).all(|x| x.is_finite());
        (finite && head_dim <= MOST_FIRST_PASS_CHANNELS).then_some(out)
    }

    /// Codes of a tile of queries, `[head_dim, lanes]`.
    pub(crate) fn set_queries(self, keys: &KeyCodes, queries: &[f32], lanes: usize, out: &mut QueryCodes) {
        dispatch!(self.isa, simd => out.fill(simd, keys, queries, lanes, self.shift()));
    }

    /// Appends to `selected` those of `tokens` whose score could be above the threshold in any lane, in order.
    pub(crate) fn candidates(
        self,
        keys: &KeyCodes,
        tokens: Range<usize>,
        queries: &mut QueryCodes,
        thresholds: &[f32],
        selected: &mut Vec<usize>,
    ) {
        let depth = keys.steps.len().div_ceil(4);
        let range = tokens.start - keys.tokens.start..tokens.end - keys.tokens.start;
        let mut start = range.start;
        while start < range.end {
            let block = start / BLOCK_TOKENS;
            let end = range.end.min((block + 1) * BLOCK_TOKENS);
            let norms = keys.norms[block];
            dispatch!(self.isa, simd => queries.set_starts(simd, norms, thresholds));
            let rows = &keys.quads[start * depth..end * depth];
            let operands = Operands::new(rows, depth, &queries.quads, &queries.starts);
            let mut bits = match self.dots {
                #[cfg(target_arch = "x86_64")]
                ByteKernel::Avx512(avx512) => x86::candidates_avx512(avx512, operands),
                #[cfg(target_arch = "x86_64")]
                ByteKernel::AvxVnni(avx_vnni) => x86::candidates_avx2(avx_vnni, operands),
                #[cfg(target_arch = "aarch64")]
                ByteKernel::DotProd(dot_prod) => aarch64::candidates(dot_prod, operands),
                _ => portable(operands),
            };
            while bits != 0 {
                selected.push(keys.tokens.start + start + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
            start = end;
        }
    }
}

/// Bit `i`: the sum of key `i` ends at zero or above in some lane.
fn portable(operands: Operands) -> u64 {
    let Operands { keys, depth, queries, starts } = operands;
    let lanes = starts.len();
    let mut bits = 0;
    for (row, key) in keys.chunks_exact(depth).enumerate() {
        let above = (0..lanes).any(|lane| {
            let column = queries.iter().skip(lane).step_by(lanes);
            let dot = |sum: i32, (key, query): (&u32, &u32)| {
                let products = key.to_le_bytes().into_iter().zip(query.to_le_bytes());
                sum + products.map(|(k, q)| i32::from(k) * i32::from(q as i8)).sum::<i32>()
            };
            key.iter().zip(column).fold(starts[lane], dot) >= 0
        });
        bits |= u64::from(above) << row;
    }
    bits
}

impl KeyCodes {
    #[inline(always)]
    fn fill<S: Simd>(&mut self, _: S, keys: &[f32], head_dim: usize, shift: f32) {
        let first = &keys[..head_dim.min(keys.len())];
        let (mut low, mut high) = (first.to_vec(), first.to_vec());
        for key in keys.chunks_exact(head_dim) {
            for ((low, high), x) in low.iter_mut().zip(&mut high).zip(key) {
                *low = if *x < *low { *x } else { *low };
                *high = if *x > *high { *x } else { *high };
            }
        }
        // A little more than the range, so that rounding stays inside of the codes; not zero, which has no inverse.
        let step = |(low, high): (&f32, &f32)| ((high - low) / 254.0).max(f32::MIN_POSITIVE);
        self.steps = low.iter().zip(&high).map(step).collect();
        self.centers = low.iter().zip(&high).map(|(low, high)| low * 0.5 + high * 0.5).collect();
        let inverse: Vec<f32> = self.steps.iter().map(|step| 1.0 / step).collect();

        let depth = head_dim.div_ceil(4);
        let tokens = keys.len() / head_dim.max(1);
        self.quads.resize(tokens * depth, 0);
        self.norms.resize(tokens.div_ceil(BLOCK_TOKENS), Norms::default());
        let (mut codes, mut squares, mut bytes) =
            (vec![0.0; 4 * depth], vec![0.0; head_dim], vec![0; 4 * depth]);
        for (token, (key, quads)) in
            keys.chunks_exact(head_dim).zip(self.quads.chunks_exact_mut(depth)).enumerate()
        {
            for ((((code, square), x), center), inverse) in
                codes.iter_mut().zip(&mut squares).zip(key).zip(&self.centers).zip(&inverse)
            {
                let scaled = (x - center) * inverse;
                *code = (scaled + ROUND) - ROUND;
                *square = (scaled - *code) * (scaled - *code);
            }
            for (byte, code) in bytes.iter_mut().zip(&codes) {
                *byte = (code + (ROUND + shift)).to_bits() as u8;
            }
            for (quad, bytes) in quads.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *quad = u32::from_le_bytes(*bytes);
            }
            let norms = &mut self.norms[token / BLOCK_TOKENS];
            norms.rests = norms.rests.max(sum(&squares));
            for code in &mut codes {
                *code *= *code;
            }
            norms.codes = norms.codes.max(sum(&codes));
        }
        for norms in &mut self.norms {
            (norms.codes, norms.rests) = (norms.codes.sqrt(), norms.rests.sqrt());
        }
    }
}

/// The sum, in an order that vectors can follow.
#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let (parts, rest) = x.as_chunks::<16>();
    for part in parts {
        for i in 0..16 {
            sums[i] += part[i];
        }
    }
    sums.iter().chain(rest).sum()
}

impl QueryCodes {
    #[inline(always)]
    fn fill<S: Simd>(&mut self, simd: S, keys: &KeyCodes, queries: &[f32], lanes: usize, shift: f32) {
        let width = S::f32s::LEN;
        let Self { quads, units, bases, magnitudes, norms, rests, offsets, starts } = self;
        quads.resize(keys.steps.len().div_ceil(4) * lanes, 0);
        for column in [&mut *units, bases, magnitudes, norms, rests] {
            column.resize(lanes, 0.0);
        }
        for column in [&mut *offsets, starts] {
            column.resize(lanes, 0);
        }
        let zero = S::f32s::splat(simd, 0.0);
        for lane in (0..lanes).step_by(width) {
            let columns = lane..lane + width;
            let [mut most, mut norm, mut base, mut magnitude] = [zero; 4];
            for ((row, step), center) in queries.chunks_exact(lanes).zip(&keys.steps).zip(&keys.centers) {
                let query = S::f32s::from_slice(simd, &row[columns.clone()]);
                let (scaled, part) = (query * *step, query * *center);
                most = most.max(scaled.abs());
                norm = scaled.mul_add(scaled, norm);
                base += part;
                magnitude += part.abs();
            }
            // Not zero, which has no inverse.
            let unit = (most * (1.0 / 127.0)).max(f32::MIN_POSITIVE);
            let inverse = S::f32s::splat(simd, 1.0) / unit;
            let [mut rest, mut sum] = [zero; 2];
            for (four, quads) in quads.chunks_exact_mut(lanes).enumerate() {
                let mut quad = S::u32s::splat(simd, 0);
                for channel in 4 * four..keys.steps.len().min(4 * four + 4) {
                    let query = S::f32s::from_slice(simd, &queries[channel * lanes + lane..][..width]);
                    let scaled = query * keys.steps[channel] * inverse;
                    let shifted = scaled + ROUND;
                    let code = shifted - ROUND;
                    let left = scaled - code;
                    rest = left.mul_add(left, rest);
                    sum += code;
                    let byte = shifted.bitcast::<S::u32s>() & S::u32s::splat(simd, 0xff);
                    quad |= byte << (channel % 4 * 8) as u32;
                }
                quad.store_slice(&mut quads[columns.clone()]);
            }
            unit.store_slice(&mut units[columns.clone()]);
            base.store_slice(&mut bases[columns.clone()]);
            magnitude.store_slice(&mut magnitudes[columns.clone()]);
            norm.sqrt().store_slice(&mut norms[columns.clone()]);
            (rest.sqrt() * unit).store_slice(&mut rests[columns.clone()]);
            // Zero where the queries left the range of f32 and have no codes: then everything passes, see `set_starts`.
            (sum * -shift).to_int_precise::<S::i32s>().store_slice(&mut offsets[columns]);
        }
    }

    #[inline(always)]
    fn set_starts<S: Simd>(&mut self, simd: S, keys: Norms, thresholds: &[f32]) {
        let width = S::f32s::LEN;
        for lane in (0..thresholds.len()).step_by(width) {
            let error =
                load(simd, &self.norms, lane) * keys.rests + load(simd, &self.rests, lane) * keys.codes;
            let (threshold, unit) = (load(simd, thresholds, lane), load(simd, &self.units, lane));
            let (base, magnitude) = (load(simd, &self.bases, lane), load(simd, &self.magnitudes, lane));
            // What the f32 arithmetic of this bound, and of the scores, may be off by.
            let rounding = (threshold.abs() + magnitude) * 1e-5 + unit * 8.0;
            let limit = (threshold - base - error - rounding) / unit;
            // Comparisons and not `max`: a limit that is no number lets everything pass.
            let far = S::f32s::splat(simd, FAR);
            let limit = limit.simd_gt(-far).select(limit, -far);
            let limit = limit.simd_lt(far).select(limit, far);
            let offset = S::i32s::from_slice(simd, &self.offsets[lane..][..width]);
            (offset - limit.to_int::<S::i32s>()).store_slice(&mut self.starts[lane..][..width]);
        }
    }
}

#[inline(always)]
fn load<S: Simd>(simd: S, column: &[f32], lane: usize) -> S::f32s {
    S::f32s::from_slice(simd, &column[lane..][..S::f32s::LEN])
}

#[cfg(test)]
mod tests;
