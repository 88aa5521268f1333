//! Coded keys as forks and snapshots have them, and what they are charged.

use super::{
    Matrix,
    block::{Sealed, seal},
};
use crate::{
    budget::{MemoryBudget, Reservation, reserve_slot, table_capacity},
    delta::{
        codec::Codec,
        mask::{count, words},
        rule::Rule,
    },
    error::CoreError,
    kv_store::BLOCK_TOKENS,
    rows::MOST_TOKENS,
    snapshot::{SnapshotError, SnapshotReader, SnapshotWriter},
    token_store::TokenStore,
};

impl<C: Codec + Clone> TokenStore for Matrix<C> {
    /// Sealed blocks are shared, the open one is each one's own.
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let mut charge = budget.reservation();
        let slots = table_capacity(0, self.sealed.len());
        charge.grow(slots * size_of::<Sealed<C::Header>>() + self.open.room_bytes())?;
        let mut sealed = Vec::with_capacity(slots);
        sealed.extend_from_slice(&self.sealed);
        let (rule, codec, open) = (self.rule.clone(), self.codec.clone(), self.open.copy());
        Ok(Self { rule, codec, sealed, open, charge, ..*self })
    }

    fn uncharge(&mut self) -> Reservation {
        let mut all = self.charge.take();
        let charges = self.sealed.iter_mut().filter_map(|block| block.piece.uncharge());
        charges.for_each(|charge| all.merge(charge));
        all
    }

    fn unpaid(&self) -> usize {
        let own = if self.charge.bytes() == 0 { self.own_bytes() } else { 0 };
        self.sealed.iter().map(|block| block.piece.unpaid()).sum::<usize>() + own
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        if self.charge.bytes() == 0 {
            self.charge = charge.split(self.own_bytes());
        }
        self.sealed.iter_mut().for_each(|block| block.piece.charge_with(charge));
    }

    /// The open block too as a sealed one.
    fn save(&self, writer: &mut SnapshotWriter) {
        let thresholds = &self.rule.thresholds;
        writer.text(C::NAME);
        writer.floats(thresholds.start());
        writer.floats(thresholds.target().as_slice());
        let open = (self.open_tokens() > 0)
            .then(|| seal(&self.codec, &self.open.masks, &self.open.codes, &MemoryBudget::unlimited()).ok())
            .flatten();
        [self.len(), self.dropped, self.dropped_nonzeros].into_iter().for_each(|count| writer.count(count));
        for Sealed { piece, header } in self.sealed.iter().chain(&open) {
            writer.count(piece.data().len());
            writer.list(&C::header_to_words(*header));
            writer.piece(piece.clone());
        }
    }

    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let thresholds = &self.rule.thresholds;
        let name = reader.text()?;
        reader.expect("keys in", C::NAME, &name)?;
        let (start, target) = (reader.floats()?, reader.floats()?);
        if start != thresholds.start() || target != thresholds.target().as_slice() {
            let first = |row: &[f32]| format!("that begin with {:?}", row.first());
            let (expected, got) = (first(thresholds.start()), first(&start));
            return Err(SnapshotError::Other { what: "thresholds", expected, got });
        }
        let (channels, budget) = (self.channels(), self.charge.budget());
        let len = reader.count("keys", MOST_TOKENS)?;
        // The last one is never gone.
        let dropped = reader.count("blocks that are gone", len.saturating_sub(1) / BLOCK_TOKENS)?;
        let dropped_nonzeros = reader.count("changes", MOST_TOKENS)?;
        let mut loaded = Self::new(Rule::new(thresholds.clone())?, self.codec.clone(), budget);
        (loaded.dropped, loaded.dropped_nonzeros) = (dropped, dropped_nonzeros);
        // The last block is open, full or not.
        for first in (dropped * BLOCK_TOKENS..len).step_by(BLOCK_TOKENS) {
            let tokens = BLOCK_TOKENS.min(len - first);
            let block = loaded.load_block(tokens, reader)?;
            if first + BLOCK_TOKENS < len {
                reserve_slot(&mut loaded.sealed, &mut loaded.charge)?;
                loaded.sealed.push(block);
                continue;
            }
            loaded.count_sealed();
            let (masks, codes) = block.piece.data().split_at(tokens * words(channels) * size_of::<u64>());
            let (masks, view) = (bytemuck::cast_slice(masks), self.codec.sealed(block.header, codes));
            let escapes = C::escapes_before(view, tokens - 1).max(loaded.escapes);
            loaded.open.codes = self.codec.with_room(escapes);
            loaded.open.masks.reserve_exact(BLOCK_TOKENS * words(channels));
            loaded.charge.grow(loaded.open.room_bytes())?;
            self.codec.reopen(view, count(masks), &mut loaded.open.codes);
            loaded.open.masks.extend_from_slice(masks);
            loaded.codec.resume(&mut loaded.rule, masks, view);
        }
        let nonzeros = loaded.nonzeros();
        loaded.rule.rewind(len, nonzeros);
        Ok(loaded)
    }
}

impl<C: Codec> Matrix<C> {
    /// A block of `tokens` keys, whose numbers are known to fit each other.
    fn load_block(
        &self,
        tokens: usize,
        reader: &mut SnapshotReader,
    ) -> Result<Sealed<C::Header>, SnapshotError> {
        let channels = self.channels();
        let bytes = reader.count("bytes of a block", usize::MAX)?;
        let words_ = <[u32; 4]>::try_from(reader.list()?);
        let piece = reader.piece(bytes, self.charge.budget())?;
        let header = words_.ok().and_then(|words_| {
            let (masks, codes) =
                piece.data().split_at_checked(tokens * words(channels) * size_of::<u64>())?;
            let masks = bytemuck::cast_slice(masks);
            // No token sends a channel that there is not.
            let beyond = |mask: &[u64]| {
                mask.last().is_some_and(|last| !channels.is_multiple_of(64) && last >> (channels % 64) > 0)
            };
            let fits = !masks.chunks_exact(words(channels)).any(beyond);
            self.codec.checked(words_, masks, codes).filter(|_| fits)
        });
        let expected = "a block of coded keys whose parts fit each other";
        let invalid = SnapshotError::Invalid { what: "bytes", expected, got: bytes as u64 };
        Ok(Sealed { header: header.ok_or(invalid)?, piece })
    }
}

impl<C: Codec + Clone> Matrix<C> {
    /// A copy that shares nothing with this one, and that nobody has been charged.
    pub(crate) fn copied(&self) -> Result<Self, CoreError> {
        let unlimited = MemoryBudget::unlimited();
        let mut copy = TokenStore::fork(self, &unlimited)?;
        for block in &mut copy.sealed {
            block.piece.data_mut(&unlimited)?;
        }
        drop(copy.uncharge());
        // What it gets later is charged to the same account.
        copy.charge = self.charge.budget().reservation();
        Ok(copy)
    }
}
