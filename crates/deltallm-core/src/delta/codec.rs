//! What the codecs of delta matrices have in common.

use std::fmt::Debug;

use deltallm_simd::dispatch;

use super::{loops::expand_keys, rule::Rule};
use crate::{element::ElementType, mask::words};

/// A way to hold the key frame and the transmitted values of a block: rounds them on the way in, reads them back, and counts
/// their bytes.
pub(super) trait Codec: Debug {
    /// The numbers of one block.
    type Codes: Codes;

    /// The float type whose numbers can be coded.
    fn takes(&self) -> ElementType;

    /// The numbers of a block that has not begun, without room.
    fn empty(&self) -> Self::Codes;

    /// Begins a block with the reference as its key frame, within the room it has. The reference becomes what the frame gives back.
    fn start(&mut self, rule: &mut Rule, codes: &mut Self::Codes);

    /// Appends the channels `rule.sent` of a key, token number `token` of the block, and counts it. There is room for them.
    fn append(&mut self, key: &[f32], rule: &mut Rule, token: usize, codes: &mut Self::Codes);

    /// Sets the reference to the last key of a block as it is reconstructed, so that coding can go on there.
    fn resume(&mut self, rule: &mut Rule, masks: &[u64], codes: &Self::Codes);

    /// The key frame, `[channels]`; zeros for a block that has not begun.
    fn frame(&self, masks: &[u64], codes: &Self::Codes) -> Vec<f32>;

    /// The transmitted values of all tokens as f32: borrowed where they already are, else converted into `scratch`.
    fn values<'a>(&self, masks: &[u64], codes: &'a Self::Codes, scratch: &'a mut Vec<f32>) -> &'a [f32];

    /// The keys of a block, `[tokens, channels]`, into `rows` (overwritten).
    fn keys(&self, rule: &Rule, masks: &[u64], codes: &Self::Codes, rows: &mut Vec<f32>) {
        let (channels, mut scratch) = (rule.channels(), Vec::new());
        let values = self.values(masks, codes, &mut scratch);
        let frame = self.frame(masks, codes);
        rows.clear();
        rows.resize(masks.len() / words(channels) * channels, 0.0);
        dispatch!(rule.isa, simd => expand_keys(simd, masks, values, frame, rows));
    }

    /// Bytes to be charged before `tokens` (at least 1) more keys come to a block that holds `written`, besides those of whole
    /// blocks: exactly for one key, at most for several.
    fn missing(&self, codes: &Self::Codes, written: usize, tokens: usize) -> usize;

    /// Allocates what [`missing`](Self::missing) says of one key.
    fn make_room(&self, codes: &mut Self::Codes, written: usize);

    /// Bytes of a block, without spare room, that has got `tokens` more keys, should they transmit as much as they can.
    fn most_bytes(&self, codes: &Self::Codes, tokens: usize) -> usize;
}

/// The numbers of one block: its key frame and what its tokens transmit. A clone has no spare room.
pub(super) trait Codes: Debug + Clone {
    /// Transmitted values.
    fn sent(&self, channels: usize) -> usize;

    /// Forgets everything but keeps the room.
    fn clear(&mut self);

    /// Keeps the first `tokens` tokens, which transmit `sent` values.
    fn truncate(&mut self, tokens: usize, sent: usize, channels: usize);

    /// Takes over the contents of the sealed block `other`, without allocating.
    fn reopen(&mut self, other: Self);

    /// Numbers beside the codes that had come before token number `token` of the block; 0 where all numbers are codes.
    fn escapes_before(&self, _token: usize) -> usize {
        0
    }

    /// Gives back room for more of these than a key needs that comes to so many of them.
    fn shrink_room(&mut self, _channels: usize, _escapes: usize) {}

    /// Bytes of what is held.
    fn used_bytes(&self) -> usize;

    /// Bytes of all there is room for.
    fn room_bytes(&self) -> usize;
}
