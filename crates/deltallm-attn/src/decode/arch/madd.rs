//! Scores of keys in 8 bits with AVX2: channels along the lanes, sixteen of them at a time widened to 16 bits and multiplied with the
//! codes of the queries ([`queries`](crate::decode::queries)). Delta-coded keys are written out before, a shuffle for every sixteen channels.

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use deltallm_core::{
    BLOCK_TOKENS,
    internal::{GROUP, Int8Rows},
};
use deltallm_simd::{
    convert::finite_f16_to_f32,
    fearless_simd::{Avx2, f32x4, f32x8, i8x16, i16x16, i32x8, kernel, prelude::*},
};
use half::f16;

use crate::decode::{
    ahead::Ahead,
    decode_simd::{DecodeSimd, ToScore},
    expand::{Masked, padded, row_stride},
    passes::{Pass, in_passes},
    queries::{CodedWord, WORD},
    row_scores::store,
};

/// Codes that are multiplied at a time.
const STEP: usize = 16;

/// Scores of the keys of a delta-coded block; `keys` is room for them.
#[inline(always)]
pub(crate) fn delta_scores(simd: Avx2, block: Masked<i8>, to: ToScore, keys: &mut Vec<i8>) {
    let stride = block.room(keys);
    simd.expand_i8(block, keys);
    let (rows, count) = (&keys[to.skip * stride..], block.tokens() - to.skip);
    // Somewhere in the loop over the rows is early enough.
    let [masks, ahead] = to.ahead;
    masks.steps(1).prefetch();
    in_passes(
        simd,
        to.queries.scales.len(),
        &mut Products {
            rows,
            stride,
            scales: None,
            count,
            to: ToScore { ahead: [ahead, Ahead::default()], ..to },
        },
    );
}

/// Scores of `count` rows. False, and nothing done, for rows of unequal groups.
#[inline(always)]
pub(crate) fn row_scores(simd: Avx2, rows: Int8Rows, count: usize, to: ToScore) -> bool {
    let stride = to.channels;
    let whole = stride.is_multiple_of(GROUP);
    if whole {
        let heads = to.queries.scales.len();
        in_passes(simd, heads, &mut Products { rows: rows.codes, stride, scales: Some(rows), count, to });
    }
    whole
}

struct Products<'a> {
    /// Rows that begin `stride` codes apart.
    rows: &'a [i8],
    stride: usize,
    /// Where their scales are, if they have any.
    scales: Option<Int8Rows<'a>>,
    count: usize,
    to: ToScore<'a>,
}

impl Pass<Avx2> for Products<'_> {
    /// Four rows at a time.
    #[inline(always)]
    fn pass<const G: usize>(&mut self, simd: Avx2, head: usize) {
        let (channels, count) = (self.to.channels, self.count);
        let words = channels.div_ceil(WORD);
        let mut queries = [&[][..]; G];
        let mut scales = [0.0; G];
        for i in 0..G {
            queries[i] = &self.to.queries.codes[(head + i) * words..][..words];
            scales[i] = self.to.queries.scales[head + i];
        }
        let [ahead, _] = std::mem::take(&mut self.to.ahead);
        let mut ahead = ahead.steps(count.div_ceil(4));
        for first in (0..count).step_by(4) {
            let here = (count - first).min(4);
            ahead.prefetch();
            // The last rows stand in for those that would follow them.
            let numbers = [0, 1, 2, 3].map(
                #[inline(always)]
                |i: usize| first + i.min(here - 1),
            );
            let mut rows = [&[][..]; 4];
            for (row, number) in rows.iter_mut().zip(numbers) {
                *row = &self.rows[number * self.stride..][..channels];
            }
            let sums = match self.scales {
                None => plain(simd, rows, queries),
                Some(Int8Rows { scales, .. }) => {
                    let groups = channels / GROUP;
                    let mut of_rows = [&[][..]; 4];
                    for (row, number) in of_rows.iter_mut().zip(numbers) {
                        *row = &scales[number * groups..][..groups];
                    }
                    scaled(simd, rows, of_rows, queries)
                }
            };
            for ((sums, scale), out) in
                sums.into_iter().zip(scales).zip(self.to.out[head * BLOCK_TOKENS..].chunks_mut(BLOCK_TOKENS))
            {
                let scores = f32x4::simd_from(simd, sums) * scale;
                store(&mut out[first..], scores.into(), here);
            }
        }
    }
}

/// Products of four rows.
#[inline(always)]
fn plain<const G: usize>(simd: Avx2, rows: [&[i8]; 4], queries: [&[CodedWord]; G]) -> [[f32; 4]; G] {
    let mut sums = [[zero(simd); 4]; G];
    for at in (0..rows[0].len()).step_by(STEP) {
        for (i, row) in rows.iter().enumerate() {
            let key = widen(simd, i8x16::from_slice(simd, &row[at..at + STEP]));
            for (sums, query) in sums.iter_mut().zip(queries) {
                sums[i] = add_products(simd, sums[i], key, codes(simd, query, at));
            }
        }
    }
    let mut results = [[0.0; 4]; G];
    for (result, [a, b, c, d]) in results.iter_mut().zip(sums) {
        *result = sums_over_lanes(simd, a, b, c, d).into();
    }
    results
}

/// Products of four rows with a scale to [`GROUP`] channels.
#[inline(always)]
fn scaled<const G: usize>(
    simd: Avx2,
    rows: [&[i8]; 4],
    scales: [&[f16]; 4],
    queries: [&[CodedWord]; G],
) -> [[f32; 4]; G] {
    let mut sums = [[f32x8::splat(simd, 0.0); 4]; G];
    for at in (0..rows[0].len()).step_by(GROUP) {
        for i in 0..4 {
            let row = &rows[i][at..at + GROUP];
            let low = widen(simd, i8x16::from_slice(simd, &row[..STEP]));
            let high = widen(simd, i8x16::from_slice(simd, &row[STEP..]));
            let scale = finite_f16_to_f32(scales[i][at / GROUP]);
            for (sums, query) in sums.iter_mut().zip(queries) {
                let sum = add_products(simd, zero(simd), low, codes(simd, query, at));
                let sum = add_products(simd, sum, high, codes(simd, query, at + STEP));
                sums[i] = to_f32(simd, sum).mul_add(scale, sums[i]);
            }
        }
    }
    sums.map(
        #[inline(always)]
        |sums| simd.sums(sums),
    )
}

/// The codes of the channels from `at` on.
#[inline(always)]
fn codes(simd: Avx2, query: &[CodedWord], at: usize) -> i16x16<Avx2> {
    i16x16::from_slice(simd, &query[at / WORD].codes[at % WORD..][..STEP])
}

#[inline(always)]
fn zero(simd: Avx2) -> __m256i {
    i32x8::splat(simd, 0).into()
}

kernel!(
    #[inline(always)]
    fn widen(avx2: Avx2, x: i8x16<Avx2>) -> __m256i {
        _mm256_cvtepi8_epi16(x.into())
    }
);

kernel!(
    #[inline(always)]
    fn add_products(avx2: Avx2, sum: __m256i, key: __m256i, query: i16x16<Avx2>) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(key, query.into()))
    }
);

kernel!(
    #[inline(always)]
    fn to_f32(avx2: Avx2, sum: __m256i) -> f32x8<Avx2> {
        _mm256_cvtepi32_ps(sum).simd_into(avx2)
    }
);

kernel!(
    /// The sums over the lanes of four vectors.
    #[inline(always)]
    fn sums_over_lanes(avx2: Avx2, a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> f32x4<Avx2> {
        let quads = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        let sums = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256::<1>(quads));
        _mm_cvtepi32_ps(sums).simd_into(avx2)
    }
);

/// For every byte of a mask, where its channels find their differences: the number of set bits before, or [`KEEP`].
static PLACES: [u64; 256] = places();

/// Marks a channel that is not transmitted; also when up to 8 is added.
const KEEP: u8 = 128;

const fn places() -> [u64; 256] {
    let (mut all, mut mask) = ([0; 256], 0);
    while mask < 256 {
        let (mut places, mut bit, mut count) = ([KEEP; 8], 0, 0);
        while bit < 8 {
            if mask >> bit & 1 == 1 {
                places[bit] = count;
                count += 1;
            }
            bit += 1;
        }
        all[mask] = u64::from_le_bytes(places);
        mask += 1;
    }
    all
}

/// Writes each token's key to `out`, as [`expand_by_bits`](crate::decode::expand::expand_by_bits).
#[inline(always)]
pub(crate) fn expand(simd: Avx2, block: Masked<i8>, out: &mut [i8]) {
    let stride = row_stride(block.frame.len());
    let words = stride / WORD;
    let (mut start, mut before): (usize, Option<&[i8]>) = (0, None);
    for (masks, row) in block.masks.chunks_exact(words).zip(out.chunks_exact_mut(stride)) {
        for (i, new) in row.chunks_exact_mut(STEP).enumerate() {
            let at = i * STEP;
            let mask = (masks[at / WORD] >> (at % WORD)) as u16;
            let differences = match block.values.get(start..start + STEP) {
                Some(values) => i8x16::from_slice(simd, values),
                None => padded(simd, block.values.get(start..).unwrap_or(&[])),
            };
            let key = match before {
                Some(key) => i8x16::from_slice(simd, &key[at..at + STEP]),
                None => padded(simd, block.frame.get(at..).unwrap_or(&[])),
            };
            update(simd, places_of(mask), differences, key).store_slice(new);
            start += mask.count_ones() as usize;
        }
        before = Some(row);
    }
}

/// Where sixteen channels find their differences, the first eight in the first number.
#[inline(always)]
fn places_of(mask: u16) -> [u64; 2] {
    let [low, high] = mask.to_le_bytes();
    let before = u64::from(low.count_ones()) * 0x0101_0101_0101_0101;
    [PLACES[usize::from(low)], PLACES[usize::from(high)] + before]
}

kernel!(
    /// Adds `differences[places[i]]` to the key, and nothing at places marked [`KEEP`].
    #[inline(always)]
    fn update(avx2: Avx2, places: [u64; 2], differences: i8x16<Avx2>, key: i8x16<Avx2>) -> i8x16<Avx2> {
        let places = _mm_set_epi64x(places[1] as i64, places[0] as i64);
        // A shuffle looks at the highest bit as well, and makes zeros where it is set.
        _mm_add_epi8(_mm_shuffle_epi8(differences.into(), places), key.into()).simd_into(avx2)
    }
);
