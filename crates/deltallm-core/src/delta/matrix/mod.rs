//! Coded keys in blocks, for any codec.
//!
//! In reading order: here, keys that come and go; [`block`], one of the blocks; [`bytes`]; [`saved`] (forks and snapshots).

mod block;
mod bytes;
mod saved;

use super::{
    codec::{Codec, OpenCodes},
    mask::{count, words},
    rule::Rule,
};
use crate::{
    budget::{MemoryBudget, Reservation, reserve_slot, table_capacity},
    error::CoreError,
    kv_store::BLOCK_TOKENS,
};

pub(super) use block::Block;
use block::{Open, Sealed, seal};

/// Coded keys of one kv head.
#[derive(Debug)]
pub(super) struct Matrix<C: Codec> {
    rule: Rule,
    codec: C,
    /// Whole blocks, which forks share.
    sealed: Vec<Sealed<C::Header>>,
    sealed_bytes: usize,
    /// The most escapes that any of them has before its last token.
    escapes: usize,
    /// Blocks dropped from the front, and the entries transmitted in them.
    dropped: usize,
    dropped_nonzeros: usize,
    /// The block that is being written, with room for a whole one once the first key has come.
    open: Open<C::Codes>,
    /// Of the table and of the open block: sealed ones pay for themselves.
    charge: Reservation,
}

impl<C: Codec> Matrix<C> {
    pub(super) fn new(rule: Rule, codec: C, budget: &MemoryBudget) -> Self {
        let open = Open { codes: codec.empty(), masks: Vec::new() };
        let charge = budget.reservation();
        let (sealed, sealed_bytes, escapes) = (Vec::new(), 0, 0);
        Self { rule, codec, sealed, sealed_bytes, escapes, dropped: 0, dropped_nonzeros: 0, open, charge }
    }

    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn codec(&self) -> &C {
        &self.codec
    }

    pub(super) fn budget(&self) -> &MemoryBudget {
        self.charge.budget()
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

    /// Whether others hold some of the blocks too.
    pub(super) fn is_shared(&self) -> bool {
        self.sealed.iter().any(|block| block.piece.is_shared())
    }

    /// The first token that is held.
    pub(super) fn first(&self) -> usize {
        self.dropped * BLOCK_TOKENS
    }

    pub(super) fn nonzeros(&self) -> usize {
        self.dropped_nonzeros + self.blocks().map(|block| count(block.masks)).sum::<usize>()
    }

    fn sealed(&self) -> impl Iterator<Item = Block<'_, C::View<'_>>> {
        self.sealed.iter().map(|block| Block::of_sealed(&self.codec, block, self.channels()))
    }

    /// The blocks that are held, with at least one token.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block<'_, C::View<'_>>> {
        let open = (self.open_tokens() > 0).then(|| Block::of_open(&self.codec, &self.open));
        self.sealed().chain(open)
    }

    /// Block `number`, or `None` for one that is not there.
    pub(super) fn block(&self, number: usize) -> Option<Block<'_, C::View<'_>>> {
        match self.sealed.get(number.checked_sub(self.dropped)?) {
            Some(block) => Some(Block::of_sealed(&self.codec, block, self.channels())),
            None if number == self.full_blocks() && self.open_tokens() > 0 => {
                Some(Block::of_open(&self.codec, &self.open))
            }
            None => None,
        }
    }

    /// What [`nonzeros`](Self::nonzeros) will be once these keys, `[tokens, channels]`, have been appended too.
    pub(super) fn nonzeros_with(&self, keys: &[f32]) -> usize
    where
        C: Clone,
    {
        let (rule, codec) = (self.rule.clone(), self.codec.clone());
        let mut ahead = Self::new(rule, codec, &MemoryBudget::unlimited());
        if self.open_tokens() > 0 {
            ahead.open = self.open.copy();
        }
        let counted = self.rule.nonzeros();
        for key in keys.chunks_exact(self.channels()) {
            // No budget says no, so every key comes in.
            let _ = ahead.push(key);
        }
        self.nonzeros() + ahead.rule.nonzeros() - counted
    }

    /// Appends a key that has been checked.
    pub(super) fn push(&mut self, key: &[f32]) -> Result<(), CoreError> {
        self.begin_key()?;
        self.rule.choose(key);
        self.append(key);
        Ok(())
    }

    /// Makes room for the next key, and begins its block.
    fn begin_key(&mut self) -> Result<(), CoreError> {
        if self.open_tokens() == BLOCK_TOKENS {
            self.seal()?;
        }
        let written = self.open_tokens();
        self.charge.grow(self.missing(1))?;
        self.codec.make_room(&mut self.open.codes, written);
        if self.open.masks.capacity() == 0 {
            self.open.masks.reserve_exact(BLOCK_TOKENS * words(self.channels()));
        }
        if written == 0 {
            self.codec.start(&mut self.rule, &mut self.open.codes);
        }
        Ok(())
    }

    /// Appends the channels of a key that the rule has chosen.
    fn append(&mut self, key: &[f32]) {
        let token = self.open_tokens();
        self.open.masks.extend_from_slice(&self.rule.sent);
        self.codec.append(key, &mut self.rule, token, &mut self.open.codes);
    }

    /// Moves the full open block into a piece of exactly its size.
    fn seal(&mut self) -> Result<(), CoreError> {
        reserve_slot(&mut self.sealed, &mut self.charge)?;
        let block = seal(&self.codec, &self.open.masks, &self.open.codes, self.charge.budget())?;
        self.escapes =
            self.escapes.max(Block::of_open(&self.codec, &self.open).escapes::<C>(self.channels()));
        self.sealed_bytes += block.piece.data().len();
        self.sealed.push(block);
        self.open.clear();
        Ok(())
    }

    /// Counts the sealed blocks anew, when some have gone.
    fn count_sealed(&mut self) {
        self.sealed_bytes = self.sealed.iter().map(|block| block.piece.data().len()).sum();
        self.escapes = self.sealed().map(|block| block.escapes::<C>(self.channels())).max().unwrap_or(0);
    }

    /// Drops the full blocks that hold nothing but tokens before `first`. Each block can be read on its own.
    pub(super) fn drop_before(&mut self, first: usize) {
        let blocks = (first / BLOCK_TOKENS).saturating_sub(self.dropped).min(self.sealed.len());
        if blocks > 0 {
            self.dropped_nonzeros +=
                self.sealed().take(blocks).map(|block| count(block.masks)).sum::<usize>();
            self.sealed.drain(..blocks);
            self.dropped += blocks;
            self.count_sealed();
        }
    }

    /// Back to the state in which token `len - 1` had just been pushed; `len` is less than there are, and 0 or beyond what has
    /// been dropped.
    pub(super) fn truncate(&mut self, len: usize) {
        let channels = self.channels();
        if len == 0 {
            (self.dropped, self.dropped_nonzeros) = (0, 0);
        }
        // The last block stays open, full or not.
        let full = (len.saturating_sub(1) / BLOCK_TOKENS).saturating_sub(self.dropped);
        // Those of blocks that stay are not counted again: a session may cut a little off a long history with every token.
        let of_last =
            |matrix: &Self| matrix.blocks().skip(full).map(|block| count(block.masks)).sum::<usize>();
        let others = self.rule.nonzeros() - of_last(self);
        if full < self.sealed.len() {
            // Block `full` goes back into the open block's room, which has held as much; the ones after it go.
            self.sealed.truncate(full + 1);
            if let Some(block) = self.sealed.pop() {
                let Block { masks, codes } = Block::of_sealed(&self.codec, &block, channels);
                self.codec.reopen(codes, count(masks), &mut self.open.codes);
                self.open.masks.clear();
                self.open.masks.extend_from_slice(masks);
            }
            self.count_sealed();
        }
        self.open.truncate(len - (self.dropped + full) * BLOCK_TOKENS, channels);
        // What keys that are gone had room for does not outlive them.
        self.sealed.shrink_to(table_capacity(0, self.sealed.len()));
        let last = match self.open_tokens() {
            0 => self.sealed.last().map(|block| Block::of_sealed(&self.codec, block, channels)),
            _ => Some(Block::of_open(&self.codec, &self.open)),
        };
        let escapes = last.map_or(0, |block| block.escapes::<C>(channels)).max(self.escapes);
        match last {
            Some(Block { masks, codes }) => self.codec.resume(&mut self.rule, masks, codes),
            None => self.rule.reference.fill(0.0),
        }
        self.open.codes.shrink_room(channels, escapes);
        self.charge.shrink(self.charge.bytes().saturating_sub(self.own_bytes()));
        let nonzeros = if len == 0 { 0 } else { others + of_last(self) };
        debug_assert_eq!(nonzeros, self.nonzeros());
        self.rule.rewind(len, nonzeros);
    }

    /// The keys of a block, `[tokens, channels]`, into `rows` (overwritten).
    pub(super) fn keys(&self, block: Block<'_, C::View<'_>>, rows: &mut Vec<f32>) {
        self.codec.keys(&self.rule, block.masks, block.codes, rows);
    }

    /// The same transmitted channels in another codec's codes.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that the codec does not take, or [`CoreError::BudgetExhausted`].
    pub(super) fn converted<D: Codec>(
        &self,
        codec: D,
        budget: &MemoryBudget,
    ) -> Result<Matrix<D>, CoreError> {
        let mut copy = Matrix::new(Rule::new(self.rule.thresholds.clone())?, codec, budget);
        (copy.dropped, copy.dropped_nonzeros) = (self.dropped, self.dropped_nonzeros);
        copy.rule.rewind(self.first(), self.dropped_nonzeros);
        let takes = copy.codec.takes();
        let largest = takes.max_magnitude();
        let mut rows = Vec::new();
        for block in self.blocks() {
            self.keys(block, &mut rows);
            // The frame of the copy is rounded from this frame and not from the copy's last key: no error adds up.
            copy.rule.reference = self.codec.frame(block.masks, block.codes);
            // A number of the frame that is of no key here is transmitted anew by the first one, and only has to be a number.
            copy.rule.reference.iter_mut().for_each(|x| *x = x.clamp(-largest, largest));
            let masks = block.masks.chunks_exact(words(self.channels()));
            for (key, sent) in rows.chunks_exact(self.channels()).zip(masks) {
                takes.check(key)?;
                copy.begin_key()?;
                copy.rule.sent.copy_from_slice(sent);
                copy.append(key);
            }
        }
        Ok(copy)
    }
}
