//! The sparse product: scores of delta-coded keys.

use deltallm_core::DeltaStream;
use fearless_simd::prelude::*;

/// See [`super::SimdLevel::delta_scores`]. `frame` holds the scores of the key frame, from which
/// `s(m,t) = s(m,t-1) + q_m . delta_t` (`docs/method.md`, equation 3), for all lanes at once, so
/// that unstructured zeros are skipped without gathering anything.
#[inline(always)]
pub(super) fn scores<S: Simd>(
    simd: S,
    stream: &DeltaStream,
    skip: usize,
    queries: &[f32],
    lanes: usize,
    frame: &[f32],
    out: &mut [f32],
) {
    // The running scores of a panel stay in registers over the block.
    let mut lane = 0;
    while lane + 8 * S::f32s::LEN <= lanes {
        panel::<S, 8>(simd, stream, skip, queries, lanes, lane, frame, out);
        lane += 8 * S::f32s::LEN;
    }
    while lane + 2 * S::f32s::LEN <= lanes {
        panel::<S, 2>(simd, stream, skip, queries, lanes, lane, frame, out);
        lane += 2 * S::f32s::LEN;
    }
    if lane < lanes {
        panel::<S, 1>(simd, stream, skip, queries, lanes, lane, frame, out);
    }
}

/// The `N` vectors that start at `lane`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn panel<S: Simd, const N: usize>(
    simd: S,
    stream: &DeltaStream,
    skip: usize,
    queries: &[f32],
    lanes: usize,
    lane: usize,
    frame: &[f32],
    out: &mut [f32],
) {
    let width = S::f32s::LEN;
    let frame = &frame[lane..][..N * width];
    let mut sums = [S::f32s::splat(simd, 0.0); N];
    for (sum, frame) in sums.iter_mut().zip(frame.chunks_exact(width)) {
        *sum = S::f32s::from_slice(simd, frame);
    }
    let mut start = 0;
    let rows = out.len() / lanes;
    for (token, &end) in stream.ends().iter().enumerate().take(skip + rows) {
        let range = start..end as usize;
        start = end as usize;
        for (channel, delta) in stream.channels()[range.clone()].iter().zip(&stream.deltas()[range]) {
            let delta = S::f32s::splat(simd, *delta);
            let query = &queries[*channel as usize * lanes + lane..][..N * width];
            for (sum, query) in sums.iter_mut().zip(query.chunks_exact(width)) {
                *sum = delta.mul_add(S::f32s::from_slice(simd, query), *sum);
            }
        }
        let Some(row) = token.checked_sub(skip) else { continue };
        let out = &mut out[row * lanes + lane..][..N * width];
        for (sum, out) in sums.iter().zip(out.chunks_exact_mut(width)) {
            sum.store_slice(out);
        }
    }
}
