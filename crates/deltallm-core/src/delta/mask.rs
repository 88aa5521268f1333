//! Sets of channels as bits: channel `j` is bit `j % 64` of word `j / 64`.

/// Words of 64 bits that `channels` bits need.
pub(crate) fn words(channels: usize) -> usize {
    channels.div_ceil(64)
}

/// The channels of a set, ascending.
pub(crate) fn bits(words: &[u64]) -> impl Iterator<Item = usize> + '_ {
    words.iter().zip((0..).step_by(64)).flat_map(|(&word, first)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                first + bit
            })
        })
    })
}

/// Channels in a set.
pub(crate) fn count(words: &[u64]) -> usize {
    words.iter().map(|word| word.count_ones() as usize).sum()
}

/// Whether a set has `channel`.
pub(crate) fn contains(words: &[u64], channel: usize) -> bool {
    words.get(channel / 64).is_some_and(|word| word >> (channel % 64) & 1 == 1)
}

/// The channels of the sets of several tokens, ascending token by token, and where each token ends in them. `masks` has
/// `words` words for every token.
pub(crate) fn unpack(masks: &[u64], words: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut channels, mut ends) = (Vec::new(), Vec::new());
    for mask in masks.chunks_exact(words) {
        for (&word, first) in mask.iter().zip((0..).step_by(64)) {
            let mut rest = word;
            while rest != 0 {
                channels.push(first + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        ends.push(channels.len() as u32);
    }
    (channels, ends)
}
