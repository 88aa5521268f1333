//! What the codecs of delta matrices have in common.

use std::fmt::Debug;

use deltallm_simd::{Isa, dispatch};

use super::{loops::expand_keys, mask::words, rule::Rule};
use crate::element::ElementType;

/// A way to hold the key frame and the transmitted values of a block: rounds them on the way in, reads them back, and counts
/// their bytes. The last block is *open*, with room for all of its tokens; the others are *sealed*, as bytes one after the other.
pub(super) trait Codec: Debug {
    /// The numbers of the open block.
    type Codes: OpenCodes;

    /// The numbers of any block, to be read.
    type View<'a>: Copy;

    /// What is known of a sealed block without looking at it: how many numbers there are of each kind.
    type Header: Copy + Debug;

    /// The name in a snapshot.
    const NAME: &str;

    /// The float type whose numbers can be coded.
    fn takes(&self) -> ElementType;

    /// The numbers of a block that has not begun, without room.
    fn empty(&self) -> Self::Codes;

    /// The same with room for a whole block, which takes one more key beside so many escapes.
    fn with_room(&self, escapes: usize) -> Self::Codes;

    /// Begins a block with the reference as its key frame, within the room it has. The reference becomes what the frame gives back.
    fn start(&mut self, rule: &mut Rule, codes: &mut Self::Codes);

    /// Appends the channels `rule.sent` of a key, token number `token` of the block, and counts it. There is room for them.
    fn append(&mut self, key: &[f32], rule: &mut Rule, token: usize, codes: &mut Self::Codes);

    /// The numbers of the open block.
    fn view<'a>(&self, codes: &'a Self::Codes) -> Self::View<'a>;

    /// Bytes of the numbers once they are sealed.
    fn sealed_bytes(&self, codes: &Self::Codes) -> usize;

    /// Writes the numbers to the beginning of `data`, which starts at a multiple of 8 bytes.
    fn seal(&self, codes: &Self::Codes, data: &mut [u8]) -> Self::Header;

    /// The numbers of a sealed block.
    fn sealed<'a>(&self, header: Self::Header, data: &'a [u8]) -> Self::View<'a>;

    /// Numbers by which a header is written and read.
    fn header_to_words(header: Self::Header) -> [u32; 4];

    /// Parses a header from a snapshot; `None` unless a block with it and these masks fits in `data`, so that later reads stay in bounds. The
    /// masks name existing channels only.
    fn checked(&self, words: [u32; 4], masks: &[u64], data: &[u8]) -> Option<Self::Header>;

    /// Makes `codes` a copy of another block, which transmits `sent` values, within the room it has.
    fn reopen(&self, view: Self::View<'_>, sent: usize, codes: &mut Self::Codes);

    /// Sets the reference to the last key of a block as it is reconstructed, so that coding can go on there.
    fn resume(&mut self, rule: &mut Rule, masks: &[u64], view: Self::View<'_>) {
        resume_reference(self, rule, masks, view);
    }

    /// The key frame, `[channels]`; zeros for a block that has not begun.
    fn frame(&self, masks: &[u64], view: Self::View<'_>) -> Vec<f32>;

    /// The transmitted values of all tokens as f32: borrowed where they already are, else converted into `scratch`.
    fn values<'s, 'a: 's>(&self, masks: &[u64], view: Self::View<'a>, scratch: &'s mut Vec<f32>)
    -> &'s [f32];

    /// The keys of a block, `[tokens, channels]`, into `rows` (overwritten).
    fn keys(&self, rule: &Rule, masks: &[u64], view: Self::View<'_>, rows: &mut Vec<f32>) {
        let (channels, mut scratch) = (rule.channels(), Vec::new());
        let values = self.values(masks, view, &mut scratch);
        let frame = self.frame(masks, view);
        rows.clear();
        rows.resize(masks.len() / words(channels) * channels, 0.0);
        dispatch!(Isa::best(), simd => expand_keys(simd, masks, values, frame, rows));
    }

    /// Numbers beside the codes that had come before token number `token` of a block; 0 where all numbers are codes.
    fn escapes_before(_view: Self::View<'_>, _token: usize) -> usize {
        0
    }

    /// Bytes to be charged before `tokens` (at least 1) more keys come to a block that holds `written`, besides those of whole
    /// blocks: exactly for one key, at most for several.
    fn missing(&self, codes: &Self::Codes, written: usize, tokens: usize) -> usize;

    /// Allocates what [`missing`](Self::missing) says of one key.
    fn make_room(&self, codes: &mut Self::Codes, written: usize);

    /// Bytes of a sealed block that has got `tokens` more keys, should they transmit as much as they can.
    fn most_bytes(&self, codes: &Self::Codes, tokens: usize) -> usize;
}

/// Sets the reference to the last key of a block as it is reconstructed.
pub(super) fn resume_reference<C: Codec + ?Sized>(
    codec: &C,
    rule: &mut Rule,
    masks: &[u64],
    view: C::View<'_>,
) {
    let mut rows = Vec::new();
    codec.keys(rule, masks, view, &mut rows);
    let last = rows.len() - rule.channels();
    rule.reference.copy_from_slice(&rows[last..]);
}

/// The numbers of the open block: its key frame and what its tokens transmit.
pub(super) trait OpenCodes: Debug {
    /// Forgets everything but keeps the room.
    fn clear(&mut self);

    /// Keeps the first `tokens` tokens, which transmit `sent` values.
    fn truncate(&mut self, tokens: usize, sent: usize, channels: usize);

    /// The same numbers, with as much room.
    fn copy(&self) -> Self;

    /// Gives back room for more escapes than a key needs that comes to so many of them.
    fn shrink_room(&mut self, _channels: usize, _escapes: usize) {}

    /// Bytes of all there is room for.
    fn room_bytes(&self) -> usize;
}
