//! Bytes of coded keys: held, to be charged, and planned.

use super::{
    Matrix,
    block::{Sealed, mask_bytes},
};
use crate::{
    budget::{StoreBytes, table_capacity},
    delta::{codec::Codec, steps::StepCodec},
    kv_store::BLOCK_TOKENS,
    piece::Piece,
};

impl<C: Codec> Matrix<C> {
    pub(crate) fn bytes(&self) -> StoreBytes {
        let data = self.sealed_bytes + self.open.room_bytes();
        Self::in_table(data, self.sealed.len(), self.sealed.capacity())
    }

    pub(super) fn in_table(data: usize, blocks: usize, slots: usize) -> StoreBytes {
        let table = slots.saturating_mul(size_of::<Sealed<C::Header>>());
        StoreBytes { data, table: table.saturating_add(blocks.saturating_mul(Piece::OVERHEAD)) }
    }

    /// Bytes of the table and of the open block.
    pub(super) fn own_bytes(&self) -> usize {
        self.sealed.capacity() * size_of::<Sealed<C::Header>>() + self.open.room_bytes()
    }

    /// Bytes to be charged before `tokens` more keys come, besides those of sealed blocks.
    pub(super) fn missing(&self, tokens: usize) -> usize {
        let masks = if self.open.masks.capacity() == 0 { mask_bytes(self.channels()) } else { 0 };
        masks + self.codec.missing(&self.open.codes, self.open_tokens(), tokens)
    }

    /// Bytes that appending `tokens` keys would charge at most; for one key exactly.
    pub(crate) fn growth(&self, tokens: usize) -> usize {
        if tokens == 0 {
            return 0;
        }
        // A full block is sealed when the next key comes. What will be in it is not known before it is full.
        let written = self.open_tokens();
        let seals = (written.saturating_add(tokens) - 1) / BLOCK_TOKENS;
        let slots = self.sealed.capacity();
        let table = table_capacity(slots, self.sealed.len().saturating_add(seals));
        let most = |codes: &C::Codes, tokens| {
            Piece::data_bytes(self.codec.most_bytes(codes, tokens) + mask_bytes(self.channels()))
        };
        let sealed = match seals {
            0 => 0,
            _ => {
                let others = (seals - 1).saturating_mul(most(&self.codec.empty(), BLOCK_TOKENS));
                most(&self.open.codes, BLOCK_TOKENS - written).saturating_add(others)
            }
        };
        Self::in_table(sealed, seals, table - slots).total().saturating_add(self.missing(tokens))
    }

    /// Bytes once `tokens` keys are held, should the codes of a sealed block take `sealed` bytes and those of the open one
    /// `open`.
    pub(crate) fn bytes_at(tokens: usize, channels: usize, [sealed, open]: [usize; 2]) -> StoreBytes {
        // The last block stays open until a key comes that does not fit.
        let full = tokens.div_ceil(BLOCK_TOKENS) - 1;
        let [sealed, open] = [sealed, open].map(|codes| codes.saturating_add(mask_bytes(channels)));
        let data = full.saturating_mul(Piece::data_bytes(sealed)).saturating_add(open);
        Self::in_table(data, full, table_capacity(0, full))
    }
}

impl Matrix<StepCodec> {
    /// Bytes once one more key has come, had all of them come one after the other: the same whatever has been taken back meanwhile.
    pub(crate) fn bytes_with_next(&self) -> StoreBytes {
        let (channels, written) = (self.channels(), self.open_tokens());
        let seals = written == BLOCK_TOKENS;
        let last = Piece::data_bytes(self.codec.sealed_bytes(&self.open.codes) + mask_bytes(channels));
        let sealed = self.sealed_bytes + if seals { last } else { 0 };
        // Every key is pushed beside the escapes that came before it, and the room stays from block to block.
        let before = if seals { BLOCK_TOKENS - 1 } else { written };
        let escapes = StepCodec::escapes_before(self.codec.view(&self.open.codes), before);
        let open = mask_bytes(channels) + self.codec.open_bytes(escapes.max(self.escapes));
        let blocks = self.sealed.len() + usize::from(seals);
        Self::in_table(sealed + open, blocks, table_capacity(0, blocks))
    }
}
