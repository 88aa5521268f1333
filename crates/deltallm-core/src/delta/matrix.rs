//! The delta matrix: the coded keys of one kv head.

use crate::{
    BLOCK_TOKENS, Charge, CoreError, DeltaBlock, DeltaEncoder, ElementType, HeadThresholds,
    block::{Block, Codes, Escape},
    budget::{reserve_slot, table_capacity},
    encoder::words,
};

/// Coded keys of one kv head in blocks of [`BLOCK_TOKENS`] tokens.
///
/// Per token a block stores a bit mask over the channels and the *new values* of the channels that were transmitted,
/// packed. New values rather than differences, so that the reconstruction is exact in any storage type. Each block
/// starts with a *key frame*, the reconstruction just before its first token, so a block can be read on its own.
///
/// Values are of a float type, or 8-bit codes ([`int8`](Self::int8)), of which differences are stored: codes add up exactly.
///
/// ```
/// use deltallm_core::{DeltaMatrix, ElementType, MemoryBudget};
///
/// let mut charge = MemoryBudget::unlimited().charge();
/// let mut keys = DeltaMatrix::new(vec![0.5, 0.5], ElementType::F32)?;
/// for key in [[1.0, 2.0], [1.1, 3.0], [1.2, 3.1]] {
///     keys.push(&key, &mut charge)?;
/// }
/// let mut rows = Vec::new();
/// keys.reconstruct(0, &mut rows);
/// assert_eq!(rows, [1.0, 2.0, 1.0, 3.0, 1.0, 3.0]);
/// assert_eq!(keys.nonzeros(), 3); // of 6: the first key and one channel of the second
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct DeltaMatrix {
    encoder: DeltaEncoder,
    sealed: Vec<Block>,
    /// The block that is being written, with room for a whole one once the first key has come.
    open: Block,
}

impl DeltaMatrix {
    /// An empty matrix; `thresholds` is `[channels]`, in the units of the keys.
    ///
    /// # Errors
    /// As [`DeltaEncoder::new`].
    pub fn new(thresholds: impl Into<HeadThresholds>, element: ElementType) -> Result<Self, CoreError> {
        Ok(Self::with_encoder(DeltaEncoder::new(thresholds, element)?))
    }

    /// An empty matrix of 8-bit codes. A transmitted value is `code * step`; a channel's step is its threshold at the
    /// beginning of the block, so the code is off by less than the threshold, and the encoder compares with what the codes
    /// give back: `|k[j] - khat[j]| <= threshold[j]`, always. A value that no code comes near enough to *escapes*
    /// ([`Escape`]) and is stored as f32: one beyond 127 steps, and every one of a channel whose threshold is zero or next
    /// to it. That is correct and large: thresholds of zero take more room here than in f32.
    ///
    /// # Errors
    /// As [`DeltaEncoder::new`]; [`CoreError::Channels`] for more than 65536 channels.
    pub fn int8(thresholds: impl Into<HeadThresholds>) -> Result<Self, CoreError> {
        Ok(Self::with_encoder(DeltaEncoder::int8(thresholds)?))
    }

    fn with_encoder(encoder: DeltaEncoder) -> Self {
        let open = Block::with_capacity(encoder.element(), 0, 0);
        Self { encoder, sealed: Vec::new(), open }
    }

    /// Channels of a key.
    pub fn channels(&self) -> usize {
        self.encoder.channels()
    }

    /// The thresholds that the next key will be held to, `[channels]`.
    pub fn thresholds(&self) -> Vec<f32> {
        self.encoder.thresholds()
    }

    /// Tokens coded.
    pub fn len(&self) -> usize {
        self.sealed.len() * BLOCK_TOKENS + self.open_tokens()
    }

    /// Whether no token has been coded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Transmitted channels over all tokens: the nonzeros of the delta matrix.
    pub fn nonzeros(&self) -> usize {
        let channels = self.channels();
        self.all_blocks().map(|block| block.nonzeros(channels)).sum()
    }

    /// Blocks with at least one token.
    pub fn blocks(&self) -> usize {
        self.len().div_ceil(BLOCK_TOKENS)
    }

    /// Codes and appends one key (`[channels]`). Memory is charged before it is allocated.
    ///
    /// # Errors
    /// [`CoreError::Channels`], [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`]; the matrix is unchanged
    /// then.
    pub fn push(&mut self, key: &[f32], charge: &mut Charge) -> Result<(), CoreError> {
        self.encoder.check(key)?;
        self.append(key, None, charge)
    }

    /// Appends a key that has been checked; `sent` are the channels to be transmitted, where that is known.
    fn append(&mut self, key: &[f32], sent: Option<&[u64]>, charge: &mut Charge) -> Result<(), CoreError> {
        let channels = self.channels();
        if self.open.capacity_bytes() == 0 {
            charge.grow(Self::open_bytes(channels, self.encoder.element()))?;
            self.open = Block::with_capacity(self.encoder.element(), channels, BLOCK_TOKENS);
        } else if self.open_tokens() == BLOCK_TOKENS {
            self.seal(charge)?;
        }
        let more = self.escape_room(self.open_tokens());
        charge.grow(more * size_of::<Escape>())?;
        self.open.escapes.reserve_exact(self.open.escapes.capacity() - self.open.escapes.len() + more);

        if self.open.masks.is_empty() {
            let factor = self.encoder.block_factor();
            self.open.start(&mut self.encoder, factor);
        }
        match sent {
            Some(sent) => self.encoder.transmit(key, sent),
            None => {
                self.encoder.encode(key)?;
            }
        }
        self.open.push(&self.encoder);
        Ok(())
    }

    /// Escapes to make room for before the open block takes its token number `token`.
    fn escape_room(&self, token: usize) -> usize {
        let escapes = &self.open.escapes;
        let (room, most) = match token % BLOCK_TOKENS {
            // A block begins without escapes: those of its frame and of its first token.
            0 => (escapes.capacity(), 2 * self.channels()),
            _ => (escapes.capacity() - escapes.len(), self.channels()),
        };
        if self.encoder.element().is_some() || room >= most { 0 } else { escapes.capacity().max(most - room) }
    }

    /// Moves the full open block into an allocation of exactly its size and starts the next one.
    fn seal(&mut self, charge: &mut Charge) -> Result<(), CoreError> {
        reserve_slot(&mut self.sealed, charge)?;
        charge.grow(self.open.used_bytes())?;
        self.sealed.push(self.open.to_exact());
        self.open.clear();
        Ok(())
    }

    /// Forgets every token from `len` on. The matrix and its encoder are then as they were when token `len - 1` had
    /// just been pushed.
    ///
    /// # Errors
    /// [`CoreError::TruncateBeyondEnd`].
    pub fn truncate(&mut self, len: usize, charge: &mut Charge) -> Result<(), CoreError> {
        if len > self.len() {
            return Err(CoreError::TruncateBeyondEnd { len: self.len(), got: len });
        }
        if len == self.len() {
            return Ok(());
        }
        let channels = self.channels();
        let full = len / BLOCK_TOKENS;
        if full < self.sealed.len() {
            // Block `full` goes back into the open block's room, the ones after it go.
            for block in self.sealed.drain(full + 1..) {
                charge.shrink(block.used_bytes());
            }
            if let Some(block) = self.sealed.pop() {
                charge.shrink(block.used_bytes() - block.escape_bytes());
                charge.shrink(self.open.escape_bytes());
                self.open.reopen(block);
            }
        }
        self.open.truncate(len % BLOCK_TOKENS, channels);
        let last = if self.open_tokens() > 0 { Some(&self.open) } else { self.sealed.last() };
        let mut rows = Vec::new();
        if let Some(block) = last {
            block.reconstruct(self.encoder.base_steps(), channels, &mut rows);
        }
        if self.open_tokens() > 0 {
            self.encoder.resume_block(self.open.factor, &self.open.last_codes(channels));
        }
        let nonzeros = self.nonzeros();
        self.encoder.rewind(len, nonzeros, rows.len().checked_sub(channels).map(|last| &rows[last..]));
        Ok(())
    }

    /// Checks that every key frame and value can be stored in `element`, should that be narrower than the store's type.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let mut rows = Vec::new();
        if self.narrows_to(element) {
            for block in 0..self.blocks() {
                // A key frame is the last row of the block before.
                self.reconstruct(block, &mut rows);
                rows.chunks_exact(self.channels()).try_for_each(|row| element.check(row))?;
            }
        }
        Ok(())
    }

    /// Converts block by block to a narrower type and gives the freed bytes back; later keys are stored in it too, and
    /// compared with the reference as rounded. A matrix that is as narrow already stays as it is.
    ///
    /// What has been coded before is off by at most its threshold *plus* the rounding error of the new type, because
    /// it was compared with the reference before rounding (`docs/method.md`, equation 7).
    ///
    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub fn narrow(&mut self, element: ElementType, charge: &mut Charge) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if self.narrows_to(element) {
            self.encoder.set_element(element);
            for block in self.sealed.iter_mut().chain([&mut self.open]) {
                if let Codes::Float(elements) = &mut block.codes {
                    elements.convert(element, charge);
                }
            }
        }
        Ok(())
    }

    fn narrows_to(&self, element: ElementType) -> bool {
        self.encoder.element().is_some_and(|wide| element.bytes() < wide.bytes())
    }

    /// A copy with 8-bit codes and the same transmitted channels. What has been coded before is off by at most its threshold
    /// *plus* half a step, or another threshold (`docs/method.md`, equation 7); keys that come keep to the threshold.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; [`CoreError::Channels`] for more than 65536 channels.
    pub fn to_int8(&self, charge: &mut Charge) -> Result<Self, CoreError> {
        let mut copy = Self::with_encoder(self.encoder.to_int8()?);
        let (channels, mut rows) = (self.channels(), Vec::new());
        for (number, block) in self.all_blocks().enumerate() {
            self.reconstruct(number, &mut rows);
            // The frame of the copy is rounded from this frame and not from the copy's last key: no error adds up.
            copy.encoder.set_reference(&block.frame(self.encoder.base_steps(), channels));
            for (key, sent) in rows.chunks_exact(channels).zip(block.masks.chunks_exact(words(channels))) {
                copy.append(key, Some(sent), charge)?;
            }
        }
        Ok(copy)
    }

    /// Bytes that appending `tokens` keys would charge at most; for one key exactly.
    pub fn growth(&self, tokens: usize) -> usize {
        let (channels, element, written) = (self.channels(), self.encoder.element(), self.open_tokens());
        if tokens == 0 {
            return 0;
        }
        let open = if self.open.capacity_bytes() == 0 { Self::open_bytes(channels, element) } else { 0 };
        // A full block is sealed when the next key comes. What will be in it is not known before it is full.
        let seals = (written.saturating_add(tokens) - 1) / BLOCK_TOKENS;
        let slots = self.sealed.capacity();
        let new_slots = table_capacity(slots, self.sealed.len().saturating_add(seals)) - slots;
        let sealed = match seals {
            0 => 0,
            _ => {
                let more = (BLOCK_TOKENS - written) * channels;
                let wide = self.open.wide(channels) + more;
                let escapes = match element {
                    Some(_) => 0,
                    None => self.open.escapes.len() + more,
                };
                let nonzeros = self.open.nonzeros(channels) + more;
                let first = Self::block_bytes(channels, element, nonzeros, wide, escapes);
                first.saturating_add((seals - 1).saturating_mul(Self::most_bytes(channels, element)))
            }
        };
        // For one key what is made room for is known; for more, every value might escape, and the room doubles.
        let escapes = match (tokens, element) {
            (_, Some(_)) => 0,
            (1, None) => self.escape_room(written),
            _ => (2 * (BLOCK_TOKENS + 2) * channels).saturating_sub(self.open.escapes.capacity()),
        };
        open.saturating_add(sealed)
            .saturating_add(new_slots.saturating_mul(Self::SLOT_BYTES))
            .saturating_add(escapes * size_of::<Escape>())
    }

    /// The reconstructed keys of block `block`, `[tokens, channels]`, into `rows` (resized).
    pub fn reconstruct(&self, block: usize, rows: &mut Vec<f32>) {
        self.block(block).reconstruct(self.encoder.base_steps(), self.channels(), rows);
    }

    /// Block `block` as it is held, or `None` for a block that is not there.
    pub fn coded(&self, block: usize) -> Option<DeltaBlock<'_>> {
        let held = block < self.blocks();
        held.then(|| self.block(block).view(self.encoder.base_steps(), self.channels()))
    }

    /// Values of 8-bit blocks that are stored beside their codes.
    pub fn escapes(&self) -> usize {
        self.all_blocks().map(|block| block.escapes.len()).sum()
    }

    /// Bytes of the coded keys, the open block's spare room included.
    pub fn key_bytes(&self) -> usize {
        self.sealed.iter().map(Block::used_bytes).sum::<usize>() + self.open.capacity_bytes()
    }

    /// Bytes of the table of blocks.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.sealed.capacity() * size_of::<Block>()
    }

    /// Bytes of a block with room for any [`BLOCK_TOKENS`] keys, and for no escape.
    pub(crate) fn open_bytes(channels: usize, element: Option<ElementType>) -> usize {
        let nonzeros = BLOCK_TOKENS * channels;
        Self::block_bytes(channels, element, nonzeros, nonzeros, 0)
    }

    /// Bytes of the largest block there can be.
    fn most_bytes(channels: usize, element: Option<ElementType>) -> usize {
        let escapes = if element.is_some() { 0 } else { (BLOCK_TOKENS + 1) * channels };
        let nonzeros = BLOCK_TOKENS * channels;
        Self::block_bytes(channels, element, nonzeros, nonzeros, escapes)
    }

    /// Bytes of a sealed block with `nonzeros` transmitted values; of 8-bit codes `wide` change by more than 4 bits hold, and
    /// `escapes` of them (or of the key frame) are stored beside.
    pub(crate) fn block_bytes(
        channels: usize,
        element: Option<ElementType>,
        nonzeros: usize,
        wide: usize,
        escapes: usize,
    ) -> usize {
        let codes = match element {
            Some(element) => (channels + nonzeros) * element.bytes(),
            None => channels + nonzeros.div_ceil(2) + wide,
        };
        codes + words(channels) * BLOCK_TOKENS * size_of::<u64>() + escapes * size_of::<Escape>()
    }

    /// Bytes of the open block's room for escapes when every block has as many as `escapes`.
    pub(crate) fn planned_escape_room(channels: usize, escapes: usize) -> usize {
        let mut room = 2 * channels;
        while room < escapes + channels {
            room *= 2;
        }
        room * size_of::<Escape>()
    }

    /// Bytes of a slot in the table of blocks.
    pub(crate) const SLOT_BYTES: usize = size_of::<Block>();

    fn open_tokens(&self) -> usize {
        self.open.masks.len() / words(self.channels()).max(1)
    }

    fn all_blocks(&self) -> impl Iterator<Item = &Block> {
        let open = (self.open_tokens() > 0).then_some(&self.open);
        self.sealed.iter().chain(open)
    }

    fn block(&self, block: usize) -> &Block {
        self.sealed.get(block).unwrap_or(&self.open)
    }
}
