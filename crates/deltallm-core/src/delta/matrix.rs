//! Coded keys in blocks, for any codec.

use super::{
    codec::{Codec, Codes},
    float::FloatCodec,
    rule::Rule,
    steps::StepCodec,
};
use crate::{
    budget::{MemoryBudget, Reservation, StoreBytes, reserve_slot, table_capacity},
    element::ElementType,
    error::CoreError,
    mask::{count, words},
    store::BLOCK_TOKENS,
};

/// Coded keys of one kv head.
#[derive(Debug)]
pub(super) struct Matrix<C: Codec> {
    rule: Rule,
    codec: C,
    sealed: Vec<Block<C::Codes>>,
    /// Blocks dropped from the front, and the entries transmitted in them.
    dropped: usize,
    dropped_nonzeros: usize,
    /// The block that is being written, with room for a whole one once the first key has come.
    open: Block<C::Codes>,
}

/// Up to [`BLOCK_TOKENS`] coded keys.
#[derive(Debug, Clone)]
pub(super) struct Block<T> {
    pub(super) codes: T,
    /// `[tokens, words]`: the channels each token transmits.
    pub(super) masks: Vec<u64>,
}

/// Bytes of the masks of a block that is full, or has room for it.
fn mask_bytes(channels: usize) -> usize {
    words(channels).saturating_mul(BLOCK_TOKENS * size_of::<u64>())
}

impl<T: Codes> Block<T> {
    fn tokens(&self, channels: usize) -> usize {
        self.masks.len() / words(channels)
    }

    fn clear(&mut self) {
        self.codes.clear();
        self.masks.clear();
    }

    /// Keeps the first `tokens` tokens.
    fn truncate(&mut self, tokens: usize, channels: usize) {
        self.masks.truncate(tokens * words(channels));
        self.codes.truncate(tokens, count(&self.masks), channels);
    }

    /// Takes over the contents of the sealed block `other`, without allocating.
    fn reopen(&mut self, other: Self) {
        self.masks.clear();
        self.masks.extend_from_slice(&other.masks);
        self.codes.reopen(other.codes);
    }

    fn used_bytes(&self) -> usize {
        self.codes.used_bytes() + size_of_val(&self.masks[..])
    }

    fn room_bytes(&self) -> usize {
        self.codes.room_bytes() + self.masks.capacity() * size_of::<u64>()
    }
}

impl<C: Codec> Matrix<C> {
    pub(super) fn new(rule: Rule, codec: C) -> Self {
        let open = Block { codes: codec.empty(), masks: Vec::new() };
        Self { rule, codec, sealed: Vec::new(), dropped: 0, dropped_nonzeros: 0, open }
    }

    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn codec(&self) -> &C {
        &self.codec
    }

    fn channels(&self) -> usize {
        self.rule.channels()
    }

    fn open_tokens(&self) -> usize {
        self.open.tokens(self.channels())
    }

    pub(super) fn len(&self) -> usize {
        self.full_blocks() * BLOCK_TOKENS + self.open_tokens()
    }

    /// Blocks before the open one, those that have been dropped included.
    fn full_blocks(&self) -> usize {
        self.dropped + self.sealed.len()
    }

    /// The first token that is held.
    pub(super) fn first(&self) -> usize {
        self.dropped * BLOCK_TOKENS
    }

    pub(super) fn nonzeros(&self) -> usize {
        self.dropped_nonzeros + self.blocks().map(|block| block.codes.sent(self.channels())).sum::<usize>()
    }

    /// The blocks that are held, with at least one token.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block<C::Codes>> {
        let open = (self.open_tokens() > 0).then_some(&self.open);
        self.sealed.iter().chain(open)
    }

    /// Block `number`, or `None` for one that is not there.
    pub(super) fn block(&self, number: usize) -> Option<&Block<C::Codes>> {
        let open = (number == self.full_blocks() && self.open_tokens() > 0).then_some(&self.open);
        self.sealed.get(number.checked_sub(self.dropped)?).or(open)
    }

    /// What [`nonzeros`](Self::nonzeros) will be once these keys, `[tokens, channels]`, have been appended too.
    pub(super) fn nonzeros_with(&self, keys: &[f32]) -> usize
    where
        C: Clone,
    {
        let mut charge = MemoryBudget::unlimited().reservation();
        let mut ahead = Self::new(self.rule.clone(), self.codec.clone());
        if self.open_tokens() > 0 {
            ahead.make_room();
            ahead.open.reopen(self.open.clone());
        }
        let counted = self.rule.nonzeros();
        for key in keys.chunks_exact(self.channels()) {
            // No budget says no, so every key comes in.
            let _ = ahead.push(key, &mut charge);
        }
        self.nonzeros() + ahead.rule.nonzeros() - counted
    }

    /// Appends a key that has been checked.
    pub(super) fn push(&mut self, key: &[f32], reservation: &mut Reservation) -> Result<(), CoreError> {
        self.prepare(reservation)?;
        self.rule.choose(key);
        self.append(key);
        Ok(())
    }

    /// Makes room for the next key, and begins its block.
    fn prepare(&mut self, reservation: &mut Reservation) -> Result<(), CoreError> {
        if self.open_tokens() == BLOCK_TOKENS {
            self.seal(reservation)?;
        }
        let written = self.open_tokens();
        reservation.grow(self.missing(1))?;
        self.make_room();
        if written == 0 {
            self.codec.start(&mut self.rule, &mut self.open.codes);
        }
        Ok(())
    }

    /// Allocates what [`missing`](Self::missing) says of one key.
    fn make_room(&mut self) {
        let written = self.open_tokens();
        self.codec.make_room(&mut self.open.codes, written);
        if self.open.masks.capacity() == 0 {
            self.open.masks.reserve_exact(BLOCK_TOKENS * words(self.channels()));
        }
    }

    /// Appends the channels of a key that the rule has chosen.
    fn append(&mut self, key: &[f32]) {
        let token = self.open_tokens();
        self.open.masks.extend_from_slice(&self.rule.sent);
        self.codec.append(key, &mut self.rule, token, &mut self.open.codes);
    }

    /// Moves the full open block into an allocation of exactly its size.
    fn seal(&mut self, reservation: &mut Reservation) -> Result<(), CoreError> {
        reserve_slot(&mut self.sealed, reservation)?;
        reservation.grow(self.open.used_bytes())?;
        // A clone has room for what it holds and no more.
        self.sealed.push(self.open.clone());
        self.open.clear();
        Ok(())
    }

    /// Drops the full blocks that hold nothing but tokens before `first`. Each block can be read on its own.
    pub(super) fn drop_before(&mut self, first: usize, reservation: &mut Reservation) {
        let held = self.bytes();
        let blocks = (first / BLOCK_TOKENS).saturating_sub(self.dropped).min(self.sealed.len());
        let channels = self.channels();
        self.dropped_nonzeros +=
            self.sealed.drain(..blocks).map(|block| block.codes.sent(channels)).sum::<usize>();
        self.dropped += blocks;
        reservation.shrink(held.beyond(self.bytes()));
    }

    /// Back to the state in which token `len - 1` had just been pushed; `len` is less than there are, and 0 or beyond what has
    /// been dropped.
    pub(super) fn truncate(&mut self, len: usize, reservation: &mut Reservation) {
        let (channels, held) = (self.channels(), self.bytes());
        if len == 0 {
            (self.dropped, self.dropped_nonzeros) = (0, 0);
        }
        // The last block stays open, full or not.
        let full = (len.saturating_sub(1) / BLOCK_TOKENS).saturating_sub(self.dropped);
        if full < self.sealed.len() {
            // Block `full` goes back into the open block's room, the ones after it go.
            self.sealed.truncate(full + 1);
            if let Some(block) = self.sealed.pop() {
                self.open.reopen(block);
            }
        }
        self.open.truncate(len - (self.dropped + full) * BLOCK_TOKENS, channels);
        // What keys that are gone had room for does not outlive them.
        self.sealed.shrink_to(table_capacity(0, self.sealed.len()));
        let before_last = |block: &Block<C::Codes>| block.codes.escapes_before(block.tokens(channels) - 1);
        let escapes = self.blocks().map(before_last).max().unwrap_or(0);
        self.open.codes.shrink_room(channels, escapes);
        reservation.shrink(held.beyond(self.bytes()));
        let last = if self.open_tokens() > 0 { Some(&self.open) } else { self.sealed.last() };
        match last {
            Some(block) => self.codec.resume(&mut self.rule, &block.masks, &block.codes),
            None => self.rule.reference.fill(0.0),
        }
        let nonzeros = self.nonzeros();
        self.rule.rewind(len, nonzeros);
    }

    /// The keys of a block, `[tokens, channels]`, into `rows` (overwritten).
    pub(super) fn keys(&self, block: &Block<C::Codes>, rows: &mut Vec<f32>) {
        self.codec.keys(&self.rule, &block.masks, &block.codes, rows);
    }

    /// The same transmitted channels in another codec's codes.
    pub(super) fn converted<D: Codec>(
        &self,
        codec: D,
        reservation: &mut Reservation,
    ) -> Result<Matrix<D>, CoreError> {
        let mut copy = Matrix::new(Rule::new(self.rule.thresholds.clone())?, codec);
        (copy.dropped, copy.dropped_nonzeros) = (self.dropped, self.dropped_nonzeros);
        copy.rule.rewind(self.first(), self.dropped_nonzeros);
        let mut rows = Vec::new();
        for block in self.blocks() {
            self.keys(block, &mut rows);
            // The frame of the copy is rounded from this frame and not from the copy's last key: no error adds up.
            copy.rule.reference = self.codec.frame(&block.masks, &block.codes);
            let masks = block.masks.chunks_exact(words(self.channels()));
            for (key, sent) in rows.chunks_exact(self.channels()).zip(masks) {
                copy.prepare(reservation)?;
                copy.rule.sent.copy_from_slice(sent);
                copy.append(key);
            }
        }
        Ok(copy)
    }
}

/// Bytes.
impl<C: Codec> Matrix<C> {
    pub(super) fn bytes(&self) -> StoreBytes {
        let sealed: usize = self.sealed.iter().map(Block::used_bytes).sum();
        Self::in_table(sealed + self.open.room_bytes(), self.sealed.capacity())
    }

    fn in_table(data: usize, slots: usize) -> StoreBytes {
        StoreBytes { data, table: slots.saturating_mul(size_of::<Block<C::Codes>>()) }
    }

    /// Bytes to be charged before `tokens` more keys come, besides those of sealed blocks.
    fn missing(&self, tokens: usize) -> usize {
        let masks = if self.open.masks.capacity() == 0 { mask_bytes(self.channels()) } else { 0 };
        masks + self.codec.missing(&self.open.codes, self.open_tokens(), tokens)
    }

    /// Bytes that appending `tokens` keys would charge at most; for one key exactly.
    pub(super) fn growth(&self, tokens: usize) -> usize {
        if tokens == 0 {
            return 0;
        }
        // A full block is sealed when the next key comes. What will be in it is not known before it is full.
        let written = self.open_tokens();
        let seals = (written.saturating_add(tokens) - 1) / BLOCK_TOKENS;
        let slots = self.sealed.capacity();
        let table = table_capacity(slots, self.sealed.len().saturating_add(seals));
        let most =
            |codes: &C::Codes, tokens| self.codec.most_bytes(codes, tokens) + mask_bytes(self.channels());
        let sealed = match seals {
            0 => 0,
            _ => {
                let others = (seals - 1).saturating_mul(most(&self.codec.empty(), BLOCK_TOKENS));
                most(&self.open.codes, BLOCK_TOKENS - written).saturating_add(others)
            }
        };
        Self::in_table(sealed, table - slots).total().saturating_add(self.missing(tokens))
    }

    /// Bytes once `tokens` keys are held, should the codes of a sealed block take `sealed` bytes and those of the open one
    /// `open`.
    pub(super) fn bytes_at(tokens: usize, channels: usize, [sealed, open]: [usize; 2]) -> StoreBytes {
        // The last block stays open until a key comes that does not fit.
        let full = tokens.div_ceil(BLOCK_TOKENS) - 1;
        let [sealed, open] = [sealed, open].map(|codes| codes.saturating_add(mask_bytes(channels)));
        let data = full.saturating_mul(sealed).saturating_add(open);
        Self::in_table(data, table_capacity(0, full))
    }
}

/// Keys in steps.
impl Matrix<StepCodec> {
    /// Bytes once one more key has come, had all of them come one after the other: the same whatever has been taken back meanwhile.
    pub(super) fn bytes_with_next(&self) -> StoreBytes {
        let (channels, written) = (self.channels(), self.open_tokens());
        let seals = written == BLOCK_TOKENS;
        let sealed: usize = self.sealed.iter().map(Block::used_bytes).sum();
        let sealed = sealed + if seals { self.open.used_bytes() } else { 0 };
        // Every key is pushed beside the escapes that came before it, and the room stays from block to block.
        let last = BLOCK_TOKENS - 1;
        let others = self.sealed.iter().map(|block| block.codes.escapes_before(last)).max();
        let escapes = self.open.codes.escapes_before(if seals { last } else { written });
        let open = mask_bytes(channels) + self.codec.open_bytes(escapes.max(others.unwrap_or(0)));
        Self::in_table(sealed + open, table_capacity(0, self.sealed.len() + usize::from(seals)))
    }
}

/// A narrower float type.
impl Matrix<FloatCodec> {
    fn narrows_to(&self, element: ElementType) -> bool {
        element.bytes() < self.codec.element().bytes()
    }

    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub(super) fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let mut rows = Vec::new();
        if self.narrows_to(element) {
            for block in self.blocks() {
                // A key frame is the last row of the block before.
                self.keys(block, &mut rows);
                rows.chunks_exact(self.channels()).try_for_each(|row| element.check(row))?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub(super) fn narrow(
        &mut self,
        element: ElementType,
        reservation: &mut Reservation,
    ) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if self.narrows_to(element) {
            self.codec.narrow(element, &mut self.rule);
            for block in self.sealed.iter_mut().chain([&mut self.open]) {
                block.codes.narrow(element, reservation);
            }
        }
        Ok(())
    }
}
