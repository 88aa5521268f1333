//! One block of coded keys: open, sealed, or as it is read.

use crate::{
    budget::MemoryBudget,
    delta::{
        codec::{Codec, OpenCodes},
        mask::{count, words},
    },
    error::CoreError,
    kv_store::BLOCK_TOKENS,
    piece::Piece,
};

/// Up to [`BLOCK_TOKENS`] coded keys, and room for more.
#[derive(Debug)]
pub(super) struct Open<T> {
    pub(super) codes: T,
    /// `[tokens, words]`: the channels each token transmits.
    pub(super) masks: Vec<u64>,
}

/// [`BLOCK_TOKENS`] coded keys: their masks, and then their numbers.
#[derive(Debug, Clone)]
pub(super) struct Sealed<H> {
    pub(super) piece: Piece,
    pub(super) header: H,
}

/// A block to be read.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a, V> {
    /// `[tokens, words]`.
    pub(crate) masks: &'a [u64],
    pub(crate) codes: V,
}

/// Bytes of the masks of a block that is full, or has room for it.
pub(super) fn mask_bytes(channels: usize) -> usize {
    words(channels).saturating_mul(BLOCK_TOKENS * size_of::<u64>())
}

impl<T: OpenCodes> Open<T> {
    pub(super) fn tokens(&self, channels: usize) -> usize {
        self.masks.len() / words(channels)
    }

    pub(super) fn clear(&mut self) {
        self.codes.clear();
        self.masks.clear();
    }

    /// Keeps the first `tokens` tokens.
    pub(super) fn truncate(&mut self, tokens: usize, channels: usize) {
        self.masks.truncate(tokens * words(channels));
        self.codes.truncate(tokens, count(&self.masks), channels);
    }

    pub(super) fn room_bytes(&self) -> usize {
        self.codes.room_bytes() + self.masks.capacity() * size_of::<u64>()
    }

    /// The same, with as much room.
    pub(super) fn copy(&self) -> Self {
        let mut masks = Vec::with_capacity(self.masks.capacity());
        masks.extend_from_slice(&self.masks);
        Self { codes: self.codes.copy(), masks }
    }
}

impl<'a, V: Copy> Block<'a, V> {
    pub(super) fn of_open<C: Codec<View<'a> = V>>(codec: &C, open: &'a Open<C::Codes>) -> Self {
        Self { masks: &open.masks, codes: codec.view(&open.codes) }
    }

    pub(super) fn of_sealed<C: Codec<View<'a> = V>>(
        codec: &C,
        Sealed { piece, header }: &'a Sealed<C::Header>,
        channels: usize,
    ) -> Self {
        let (masks, codes) = piece.data().split_at(mask_bytes(channels));
        Self { masks: bytemuck::cast_slice(masks), codes: codec.sealed(*header, codes) }
    }

    /// Escapes before the last of its tokens.
    pub(super) fn escapes<C: Codec<View<'a> = V>>(self, channels: usize) -> usize {
        C::escapes_before(self.codes, self.masks.len() / words(channels) - 1)
    }
}

/// A sealed block.
pub(super) fn seal<C: Codec>(
    codec: &C,
    masks: &[u64],
    codes: &C::Codes,
    budget: &MemoryBudget,
) -> Result<Sealed<C::Header>, CoreError> {
    let masks = bytemuck::cast_slice(masks);
    let mut piece = Piece::new(masks.len() + codec.sealed_bytes(codes), budget)?;
    let (place, numbers) = piece.data_mut(budget)?.split_at_mut(masks.len());
    place.copy_from_slice(masks);
    let header = codec.seal(codes, numbers);
    Ok(Sealed { piece, header })
}
