//! Differences of keys by the compress instructions of AVX-512.

use std::arch::x86_64::*;

use deltallm_simd::fearless_simd::kernel;

/// Channels of a vector.
const LANES: usize = 16;

kernel!(
    /// The differences of a block of keys, by compress instructions; see [`KeyStreams`](crate::prefill::stream::KeyStreams).
    pub(crate) fn push_block(
        avx512: Avx512,
        rows: &[f32],
        head_dim: usize,
        ends: &mut Vec<u32>,
        channels: &mut Vec<u8>,
        deltas: &mut Vec<f32>,
    ) {
        let mut before = vec![0.0; head_dim];
        let iota = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for row in rows.chunks_exact(head_dim) {
            // Vectors are stored whole.
            let mut len = deltas.len();
            channels.reserve(row.len() + LANES);
            deltas.reserve(row.len() + LANES);
            for first in (0..row.len()).step_by(LANES) {
                let lanes = _cvtu32_mask16((1_u32 << (row.len() - first).min(LANES)) - 1);
                // SAFETY: the vectors are read and written as far as the rows go; the lists have room for `LANES` numbers behind
                // the `len` that came from the channels before `first`.
                unsafe {
                    let x = _mm512_maskz_loadu_ps(lanes, row.as_ptr().add(first));
                    let last = _mm512_maskz_loadu_ps(lanes, before.as_ptr().add(first));
                    let delta = _mm512_sub_ps(x, last);
                    let sent = _mm512_cmp_ps_mask(delta, _mm512_setzero_ps(), _CMP_NEQ_UQ);
                    let numbers = _mm_add_epi8(iota, _mm_set1_epi8(first as i8));
                    let numbers = _mm_maskz_compress_epi8(sent, numbers);
                    _mm_storeu_si128(channels.as_mut_ptr().add(len).cast(), numbers);
                    _mm512_storeu_ps(deltas.as_mut_ptr().add(len), _mm512_maskz_compress_ps(sent, delta));
                    _mm512_mask_storeu_ps(before.as_mut_ptr().add(first), lanes, x);
                    len += sent.count_ones() as usize;
                }
            }
            // SAFETY: so many have been written.
            unsafe {
                channels.set_len(len);
                deltas.set_len(len);
            }
            ends.push(len as u32);
        }
    }
);
