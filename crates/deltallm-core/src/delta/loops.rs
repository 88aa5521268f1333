//! The inner loops of delta coding: pure functions over slices of one key.
//!
//! Sets of channels are bits, channel `j` at bit `j % 64` of word `j / 64`. The results are the same at every
//! instruction set: nothing is added up, and products are rounded before they are compared.

use deltallm_simd::fearless_simd::prelude::*;

use super::mask::words;
use crate::quantise::nearest;

/// The channels that have moved by more than `factor` times their threshold (`docs/method.md`, equation 1).
#[inline(always)]
pub(super) fn moved<S: Simd>(
    simd: S,
    key: &[f32],
    reference: &[f32],
    thresholds: &[f32],
    factor: f32,
    words: &mut [u64],
) {
    let width = S::f32s::LEN;
    for (number, word) in words.iter_mut().enumerate() {
        let channels = 64 * number..key.len().min(64 * number + 64);
        let (key, reference) = (&key[channels.clone()], &reference[channels.clone()]);
        let thresholds = &thresholds[channels];
        let whole = key.len() / width * width;
        *word = 0;
        for start in (0..whole).step_by(width) {
            let distance = load(simd, key, start) - load(simd, reference, start);
            let far = distance.abs().simd_gt(load(simd, thresholds, start) * factor);
            *word |= far.to_bitmask() << start;
        }
        for i in whole..key.len() {
            *word |= u64::from((key[i] - reference[i]).abs() > thresholds[i] * factor) << i;
        }
    }
}

/// Adds the channels that are not zero.
pub(super) fn or_nonzero(key: &[f32], words: &mut [u64]) {
    for (word, key) in words.iter_mut().zip(key.chunks(64)) {
        for (i, k) in key.iter().enumerate() {
            *word |= u64::from(*k != 0.0) << i;
        }
    }
}

/// Takes the new value in the channels of `words`.
#[inline(always)]
pub(super) fn select<S: Simd>(simd: S, words: &[u64], new: &[f32], reference: &mut [f32]) {
    select_lanes::<S, S::f32s>(simd, words, new, reference);
}

/// The same for codes.
#[inline(always)]
pub(super) fn select_codes<S: Simd>(simd: S, words: &[u64], new: &[i8], reference: &mut [i8]) {
    select_lanes::<S, S::i8s>(simd, words, new, reference);
}

#[inline(always)]
fn select_lanes<S: Simd, V: SimdBase<S>>(
    simd: S,
    words: &[u64],
    new: &[V::Element],
    reference: &mut [V::Element],
) {
    for ((word, new), reference) in words.iter().zip(new.chunks(64)).zip(reference.chunks_mut(64)) {
        let whole = new.len() / V::LEN * V::LEN;
        for start in (0..whole).step_by(V::LEN) {
            let mask = V::Mask::from_bitmask(simd, low_bits(word >> start, V::LEN));
            let (new, old) = (&new[start..][..V::LEN], &mut reference[start..][..V::LEN]);
            mask.select(V::from_slice(simd, new), V::from_slice(simd, old)).store_slice(old);
        }
        for i in whole..new.len() {
            if word >> i & 1 == 1 {
                reference[i] = new[i];
            }
        }
    }
}

/// The numbers of up to 64 channels whose bits are set, packed into the front of `packed`, which has room for a vector
/// more; returns how many.
#[inline(always)]
pub(super) fn compress<S: Simd>(simd: S, word: u64, values: &[f32], packed: &mut [f32]) -> usize {
    let width = S::f32s::LEN;
    let (mut count, whole) = (0, values.len() / width * width);
    for start in (0..whole).step_by(width) {
        let bits = low_bits(word >> start, width);
        let mask = S::mask32s::from_bitmask(simd, bits);
        load(simd, values, start).compress(mask).store_slice(&mut packed[count..][..width]);
        count += bits.count_ones() as usize;
    }
    for (i, value) in values.iter().enumerate().skip(whole) {
        packed[count] = *value;
        count += (word >> i & 1) as usize;
    }
    count
}

/// Takes the next of `values` in each of up to 64 channels whose bit is set; returns how many.
#[inline(always)]
pub(super) fn expand<S: Simd>(simd: S, word: u64, values: &[f32], row: &mut [f32]) -> usize {
    let width = S::f32s::LEN;
    let (mut count, whole) = (0, row.len() / width * width);
    for start in (0..whole).step_by(width) {
        let bits = low_bits(word >> start, width);
        let mask = S::mask32s::from_bitmask(simd, bits);
        let rest = &values[count..];
        let next = if rest.len() >= width {
            load(simd, rest, 0)
        } else {
            let mut padded = [0.0; 16];
            padded[..rest.len()].copy_from_slice(rest);
            load(simd, &padded, 0)
        };
        next.expand_merge(mask, load(simd, row, start)).store_slice(&mut row[start..][..width]);
        count += bits.count_ones() as usize;
    }
    for (i, x) in row.iter_mut().enumerate().skip(whole) {
        if word >> i & 1 == 1 {
            *x = values[count];
            count += 1;
        }
    }
    count
}

#[inline(always)]
fn load<S: Simd>(simd: S, x: &[f32], start: usize) -> S::f32s {
    S::f32s::from_slice(simd, &x[start..][..S::f32s::LEN])
}

/// The lowest `count` bits, 1 to 64 of them.
#[inline(always)]
fn low_bits(word: u64, count: usize) -> u64 {
    word & (u64::MAX >> (64 - count))
}

/// The nearest codes in -127..=127: `key / step`.
#[inline(always)]
pub(super) fn to_codes(key: &[f32], inverse_steps: &[f32], codes: &mut [i8]) {
    for ((code, k), inverse) in codes.iter_mut().zip(key).zip(inverse_steps) {
        let x = k * inverse;
        let x = if x < 127.0 { x } else { 127.0 };
        let x = if x > -127.0 { x } else { -127.0 };
        *code = nearest(x) as i8;
    }
}

/// `code * step`.
#[inline(always)]
pub(super) fn from_codes(codes: &[i8], steps: &[f32], values: &mut [f32]) {
    for ((value, code), step) in values.iter_mut().zip(codes).zip(steps) {
        *value = f32::from(*code) * step;
    }
}

/// The codes of up to 64 channels whose bits are set, packed into the front of `packed`; returns how many.
#[inline]
pub(super) fn compress_codes(word: u64, codes: &[i8], packed: &mut [i8; 64]) -> usize {
    let mut count = 0;
    // Written always and counted if wanted: a branch would be guessed wrongly too often.
    for (i, code) in codes.iter().enumerate() {
        packed[count & 63] = *code;
        count += (word >> i & 1) as usize;
    }
    count
}

/// Keys from the frame `key` and the transmitted values.
#[inline(always)]
pub(super) fn expand_keys<S: Simd>(
    simd: S,
    masks: &[u64],
    values: &[f32],
    mut key: Vec<f32>,
    rows: &mut [f32],
) {
    let (channels, mut start) = (key.len(), 0);
    for (mask, row) in masks.chunks_exact(words(channels)).zip(rows.chunks_exact_mut(channels)) {
        for (word, part) in mask.iter().zip(key.chunks_mut(64)) {
            start += expand(simd, *word, &values[start..], part);
        }
        row.copy_from_slice(&key);
    }
}

#[cfg(test)]
mod tests {
    use deltallm_simd::{Isa, dispatch};
    use deltallm_testing::numbers;

    use super::*;
    use crate::delta::mask::{self, contains};

    /// The channels for which `holds`, as bits.
    fn set(channels: usize, holds: impl Fn(usize) -> bool) -> Vec<u64> {
        let mut words = vec![0; words(channels)];
        (0..channels).filter(|j| holds(*j)).for_each(|j| words[j / 64] |= 1 << (j % 64));
        words
    }

    #[test]
    fn all_instruction_sets_choose_and_round_alike() {
        for channels in [1, 7, 16, 63, 64, 65, 80, 130] {
            let [key, reference, thresholds] = [1, 2, 3].map(|seed| numbers(channels, seed));
            let thresholds: Vec<f32> = thresholds.iter().map(|x| x.abs()).collect();
            let inverse: Vec<f32> = thresholds.iter().map(|x| 40.0 / x.max(1e-3)).collect();
            let sent = set(channels, |j| (key[j] - reference[j]).abs() > thresholds[j] * 0.7);
            let code = |j: usize| (key[j] * inverse[j]).clamp(-127.0, 127.0).round_ties_even() as i8;
            let expected: Vec<i8> = (0..channels).map(code).collect();
            let taken = |old: &[f32]| -> Vec<f32> {
                (0..channels).map(|j| if contains(&sent, j) { key[j] } else { old[j] }).collect()
            };
            for isa in Isa::available() {
                let mut words = vec![u64::MAX; sent.len()];
                dispatch!(isa, simd => moved(simd, &key, &reference, &thresholds, 0.7, &mut words));
                assert_eq!(words, sent, "{isa}: {channels} channels");
                let mut row = reference.clone();
                dispatch!(isa, simd => select(simd, &sent, &key, &mut row));
                assert_eq!(row, taken(&reference), "{isa}: {channels} channels");
                let (mut codes, mut held) = (vec![0; channels], vec![1; channels]);
                dispatch!(isa, simd => {
                    to_codes(&key, &inverse, &mut codes);
                    select_codes(simd, &sent, &codes, &mut held);
                    from_codes(&codes, &thresholds, &mut row);
                });
                assert_eq!(codes, expected, "{isa}: {channels} channels");
                let kept = |j| if contains(&sent, j) { codes[j] } else { 1 };
                assert_eq!(held, (0..channels).map(kept).collect::<Vec<_>>(), "{isa}: {channels} channels");
                let value = |j: usize| f32::from(codes[j]) * thresholds[j];
                assert_eq!(row, (0..channels).map(value).collect::<Vec<_>>(), "{isa}: {channels} channels");
            }
        }
    }

    #[test]
    fn all_instruction_sets_read_back_what_they_pack() {
        for channels in [1, 7, 16, 63, 64, 65, 80, 130] {
            let (frame, tokens) = (numbers(channels, 1), 5);
            let (mut masks, mut values, mut expected) = (Vec::new(), Vec::new(), Vec::new());
            let mut key = frame.clone();
            for token in 0..tokens {
                let new = numbers(channels, 2 + token as u64);
                let sent = set(channels, |j| token == 4 || (j * 7 + token).is_multiple_of(3));
                for j in (0..channels).filter(|j| contains(&sent, *j)) {
                    key[j] = new[j];
                    values.push(new[j]);
                }
                for isa in Isa::available() {
                    let mut packed = Vec::new();
                    for (word, new) in sent.iter().zip(new.chunks(64)) {
                        let mut room = [0.0; 64 + 16];
                        let count = dispatch!(isa, simd => compress(simd, *word, new, &mut room));
                        packed.extend_from_slice(&room[..count]);
                    }
                    assert_eq!(packed, values[values.len() - packed.len()..], "{isa}: {channels} channels");
                    assert_eq!(packed.len(), mask::count(&sent));
                }
                masks.extend(sent);
                expected.extend_from_slice(&key);
            }
            for isa in Isa::available() {
                let mut rows = vec![0.0; tokens * channels];
                dispatch!(isa, simd => expand_keys(simd, &masks, &values, frame.clone(), &mut rows));
                assert_eq!(rows, expected, "{isa}: {channels} channels");
            }
        }
    }
}
