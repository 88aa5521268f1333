//! The ways to cut a piece into two pieces, found in time that grows with its length and no faster.

use std::collections::HashSet;

use super::vocabulary::MAX_TOKEN_BYTES;

/// Odd, and of no pattern: 2^64 over the golden ratio.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes of all pieces, such that the hash of every part of a text follows from those of its beginnings.
pub(super) struct Cuts {
    pieces: HashSet<u64>,
    powers: Vec<u64>,
}

impl Cuts {
    /// Of pieces of at most [`MAX_TOKEN_BYTES`].
    pub(super) fn new<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Self {
        let powers = std::iter::successors(Some(1), |power: &u64| Some(power.wrapping_mul(BASE)));
        Self {
            pieces: pieces.into_iter().map(|piece| beginnings(piece)[piece.len()]).collect(),
            powers: powers.take(MAX_TOKEN_BYTES + 1).collect(),
        }
    }

    /// Where `piece` can be cut such that both sides are pieces. Two texts of the same hash, which are rare, may make it a place too
    /// many.
    pub(super) fn of(&self, piece: &str) -> Vec<usize> {
        let hashes = beginnings(piece);
        let whole = hashes[piece.len()];
        let both_known = |cut: &usize| {
            let left = hashes[*cut];
            let right = whole.wrapping_sub(left.wrapping_mul(self.powers[piece.len() - cut]));
            self.pieces.contains(&left) && self.pieces.contains(&right)
        };
        piece.char_indices().skip(1).map(|(cut, _)| cut).filter(both_known).collect()
    }
}

/// The hash of the first 0, 1, 2, ... bytes.
fn beginnings(text: &str) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(text.len() + 1);
    hashes.push(0_u64);
    for byte in text.bytes() {
        let last = hashes[hashes.len() - 1];
        hashes.push(last.wrapping_mul(BASE).wrapping_add(u64::from(byte) + 1));
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_those_between_two_pieces() {
        let pieces = ["a", "b", "ab", "abab", "é", "bé", "aa"];
        let cuts = Cuts::new(pieces);
        assert_eq!(cuts.of("abab"), [2]);
        assert_eq!(cuts.of("abé"), [1, 2]);
        assert_eq!(cuts.of("aaa"), [1, 2]);
        assert!(cuts.of("a").is_empty() && cuts.of("").is_empty());
        assert_eq!(cuts.of("ba"), [1]);
    }
}
