//! The delta matrix: the coded keys of one kv head.

use crate::{
    BLOCK_TOKENS, Charge, CoreError, DeltaEncoder, ElementType, Elements, HeadThresholds,
    budget::{reserve_slot, table_capacity},
    encoder::{bits, words},
};

/// Coded keys of one kv head in blocks of [`BLOCK_TOKENS`] tokens.
///
/// Per token a block stores a bit mask over the channels and the *new values* of the channels that were transmitted,
/// packed. New values rather than differences, so that the reconstruction is exact in any storage type. Each block
/// starts with a *key frame*, the reconstruction just before its first token, so a block can be read on its own.
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

/// Up to [`BLOCK_TOKENS`] coded keys.
#[derive(Debug)]
struct Block {
    /// Reconstruction before the block's first token, `[channels]`.
    frame: Elements,
    /// `[tokens, words]`: the channels each token transmits.
    masks: Vec<u64>,
    /// The transmitted values of all tokens, packed in order.
    values: Elements,
}

/// Up to [`BLOCK_TOKENS`] coded keys as they are stored: [`DeltaMatrix::stored`].
#[derive(Debug, Clone, Copy)]
pub struct StoredBlock<'a> {
    /// Reconstruction before the block's first token, `[channels]`.
    pub frame: &'a Elements,
    /// `[tokens, words]`: the channels each token transmits, 64 to a word, the lowest bit first.
    pub masks: &'a [u64],
    /// The transmitted values of all tokens, packed in order.
    pub values: &'a Elements,
}

impl DeltaMatrix {
    /// An empty matrix; `thresholds` is `[channels]`, in the units of the keys.
    ///
    /// # Errors
    /// As [`DeltaEncoder::new`].
    pub fn new(thresholds: impl Into<HeadThresholds>, element: ElementType) -> Result<Self, CoreError> {
        let encoder = DeltaEncoder::new(thresholds, element)?;
        Ok(Self { encoder, sealed: Vec::new(), open: Block::with_capacity(element, 0, 0, 0) })
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
        self.sealed.iter().map(|b| b.values.len()).sum::<usize>() + self.open.values.len()
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
        if self.open.capacity_bytes() == 0 {
            let bytes = Self::open_bytes(self.channels(), self.encoder.element());
            charge.grow(bytes)?;
            let channels = self.channels();
            let room = BLOCK_TOKENS * channels;
            self.open =
                Block::with_capacity(self.encoder.element(), channels, words(channels) * BLOCK_TOKENS, room);
        } else if self.open_tokens() == BLOCK_TOKENS {
            self.seal(charge)?;
        }
        if self.open.masks.is_empty() {
            self.open.frame.truncate(0);
            self.open.frame.extend(self.encoder.reconstruction());
        }
        self.encoder.encode(key)?;
        self.open.push(&self.encoder);
        Ok(())
    }

    /// Moves the full open block into an allocation of exactly its size and starts the next one.
    fn seal(&mut self, charge: &mut Charge) -> Result<(), CoreError> {
        reserve_slot(&mut self.sealed, charge)?;
        charge.grow(self.open.used_bytes())?;
        self.sealed.push(Block {
            frame: self.open.frame.to_exact(),
            masks: self.open.masks.clone(),
            values: self.open.values.to_exact(),
        });
        self.open.masks.clear();
        self.open.values.truncate(0);
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
                charge.shrink(block.used_bytes());
                self.open.copy_from(&block);
            }
        }
        self.open.truncate(len % BLOCK_TOKENS, words(channels));
        let mut rows = self.open.frame_row(channels);
        if self.open_tokens() > 0 {
            self.open.reconstruct(channels, &mut rows);
        }
        let nonzeros = self.nonzeros();
        self.encoder.rewind(len, nonzeros, (len > 0).then(|| &rows[rows.len() - channels..]));
        Ok(())
    }

    /// Checks that every key frame and value can be stored in `element`, should that be narrower than the store's type.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let mut rows = Vec::new();
        if element.bytes() < self.encoder.element().bytes() {
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
        if element.bytes() < self.encoder.element().bytes() {
            self.encoder.set_element(element);
            for block in self.sealed.iter_mut().chain([&mut self.open]) {
                block.frame.convert(element, charge);
                block.values.convert(element, charge);
            }
        }
        Ok(())
    }

    /// Raises the thresholds to `factor` times what they are, for the keys that come and for those that are coded
    /// already, and gives the freed bytes back.
    ///
    /// The coded keys are coded again from their reconstruction, with thresholds of `factor - 1` times the old ones.
    /// The two errors add up to `factor` times the old threshold, the bound of the keys that come (`docs/method.md`,
    /// equation 8). A channel can only be transmitted where it was before, so no block grows. One block at a time is
    /// held twice.
    ///
    /// Values transmitted one after the other differ by more than the old threshold, so a factor of 2 or less leaves
    /// the coded keys as they are (but for the rounding of 16-bit types) and only changes what comes.
    ///
    /// ```
    /// use deltallm_core::{DeltaMatrix, ElementType, MemoryBudget};
    ///
    /// let mut charge = MemoryBudget::unlimited().charge();
    /// let mut keys = DeltaMatrix::new(vec![1.0], ElementType::F32)?;
    /// for key in [0.5, 2.0, 2.5, 5.0] {
    ///     keys.push(&[key], &mut charge)?;
    /// }
    /// assert_eq!(keys.nonzeros(), 3); // 2.5 is seen as 2.0
    /// keys.coarsen(3.0, &mut charge)?;
    /// let mut rows = Vec::new();
    /// keys.reconstruct(0, &mut rows);
    /// assert_eq!(rows, [0.5, 0.5, 0.5, 5.0]); // nothing is off by more than 3
    /// # Ok::<(), deltallm_core::CoreError>(())
    /// ```
    ///
    /// # Errors
    /// [`CoreError::Factor`] for a factor below 1, NaN or infinite, [`CoreError::Threshold`] for a threshold that would
    /// become infinite; nothing changes then.
    pub fn coarsen(&mut self, factor: f32, charge: &mut Charge) -> Result<(), CoreError> {
        if !(factor.is_finite() && factor >= 1.0) {
            return Err(CoreError::Factor { got: factor });
        }
        self.encoder.scaled(factor)?; // refused before anything changes
        let mut encoder = self.encoder.scaled(factor - 1.0)?;
        let mut rows = Vec::new();
        for block in &mut self.sealed {
            let held = block.used_bytes();
            block.recode(&mut encoder, &mut rows)?;
            block.values = block.values.to_exact();
            charge.shrink(held - block.used_bytes());
        }
        if self.open_tokens() > 0 {
            self.open.recode(&mut encoder, &mut rows)?;
        }
        let nonzeros = self.nonzeros();
        self.encoder.raise(factor, nonzeros, encoder.reconstruction());
        Ok(())
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
                let nonzeros = self.open.values.len() + (BLOCK_TOKENS - written) * channels;
                let later = (seals - 1).saturating_mul(Self::open_bytes(channels, element));
                Self::block_bytes(channels, element, nonzeros).saturating_add(later)
            }
        };
        open.saturating_add(sealed).saturating_add(new_slots.saturating_mul(Self::SLOT_BYTES))
    }

    /// The reconstructed keys of block `block`, `[tokens, channels]`, into `rows` (resized).
    pub fn reconstruct(&self, block: usize, rows: &mut Vec<f32>) {
        self.block(block).reconstruct(self.channels(), rows);
    }

    /// The stored form of block `block`.
    pub fn stored(&self, block: usize) -> StoredBlock<'_> {
        let Block { frame, masks, values } = self.block(block);
        StoredBlock { frame, masks, values }
    }

    /// The deltas of block `block` into `stream` (overwritten).
    pub fn stream(&self, block: usize, stream: &mut DeltaStream) {
        self.block(block).stream(self.channels(), stream);
    }

    /// Bytes of the coded keys, the open block's spare room included.
    pub fn key_bytes(&self) -> usize {
        self.sealed.iter().map(Block::used_bytes).sum::<usize>() + self.open.capacity_bytes()
    }

    /// Bytes of the table of blocks.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.sealed.capacity() * size_of::<Block>()
    }

    /// Bytes of a block with room for any [`BLOCK_TOKENS`] keys.
    pub(crate) fn open_bytes(channels: usize, element: ElementType) -> usize {
        Self::block_bytes(channels, element, BLOCK_TOKENS * channels)
    }

    /// Bytes of a sealed block with `nonzeros` transmitted values.
    pub(crate) fn block_bytes(channels: usize, element: ElementType, nonzeros: usize) -> usize {
        (channels + nonzeros) * element.bytes() + words(channels) * BLOCK_TOKENS * size_of::<u64>()
    }

    /// Bytes of a slot in the table of blocks.
    pub(crate) const SLOT_BYTES: usize = size_of::<Block>();

    fn open_tokens(&self) -> usize {
        self.open.masks.len() / words(self.channels()).max(1)
    }

    fn block(&self, block: usize) -> &Block {
        self.sealed.get(block).unwrap_or(&self.open)
    }
}

impl Block {
    fn with_capacity(element: ElementType, frame: usize, masks: usize, values: usize) -> Self {
        Self {
            frame: Elements::with_capacity(element, frame),
            masks: Vec::with_capacity(masks),
            values: Elements::with_capacity(element, values),
        }
    }

    /// Appends the key the encoder has just coded.
    fn push(&mut self, encoder: &DeltaEncoder) {
        let sent = encoder.sent();
        self.masks.extend_from_slice(sent.words());
        for channel in sent.iter() {
            self.values.push(encoder.reconstruction()[channel]);
        }
    }

    /// Codes the block's keys again, from their reconstruction. A key that is what the key before was is never
    /// transmitted again, so the new masks are subsets of the old ones, and the room suffices.
    fn recode(&mut self, encoder: &mut DeltaEncoder, rows: &mut Vec<f32>) -> Result<(), CoreError> {
        let channels = encoder.channels();
        self.reconstruct(channels, rows);
        self.frame.truncate(0);
        self.frame.extend(encoder.reconstruction());
        self.masks.clear();
        self.values.truncate(0);
        for key in rows.chunks_exact(channels) {
            // Cannot fail: the store has held these numbers before.
            encoder.encode(key)?;
            self.push(encoder);
        }
        Ok(())
    }

    /// Keeps the first `tokens` tokens.
    fn truncate(&mut self, tokens: usize, words: usize) {
        self.masks.truncate(tokens * words);
        self.values.truncate(self.masks.iter().map(|w| w.count_ones() as usize).sum());
    }

    /// Becomes a copy of `other`, within the room it has.
    fn copy_from(&mut self, other: &Self) {
        self.frame.copy_from(&other.frame);
        self.masks.clear();
        self.masks.extend_from_slice(&other.masks);
        self.values.copy_from(&other.values);
    }

    fn frame_row(&self, channels: usize) -> Vec<f32> {
        let mut row = Vec::new();
        // Before the first key there is no frame yet.
        row.extend_from_slice(self.frame.read(0..self.frame.len(), &mut Vec::new()));
        row.resize(channels, 0.0);
        row
    }

    fn reconstruct(&self, channels: usize, rows: &mut Vec<f32>) {
        let mut scratch = Vec::new();
        let mut values = self.values.read(0..self.values.len(), &mut scratch).iter();
        let mut key = self.frame_row(channels);
        rows.clear();
        for mask in self.masks.chunks_exact(words(channels)) {
            for (channel, value) in bits(mask).zip(&mut values) {
                key[channel] = *value;
            }
            rows.extend_from_slice(&key);
        }
    }

    fn stream(&self, channels: usize, stream: &mut DeltaStream) {
        stream.clear();
        stream.frame.extend_from_slice(&self.frame_row(channels));
        for mask in self.masks.chunks_exact(words(channels)) {
            for (&word, first) in mask.iter().zip((0..).step_by(64)) {
                let mut rest = word;
                while rest != 0 {
                    stream.channels.push(first + rest.trailing_zeros());
                    rest &= rest - 1;
                }
            }
            stream.ends.push(stream.channels.len() as u32);
        }
        let values = self.values.read(0..self.values.len(), &mut stream.values);
        let key = &mut stream.key;
        key.extend_from_slice(&stream.frame);
        stream.deltas.extend(stream.channels.iter().zip(values).map(|(&channel, &value)| {
            let last = &mut key[channel as usize];
            let delta = value - *last;
            *last = value;
            delta
        }));
    }

    fn used_bytes(&self) -> usize {
        (self.frame.len() + self.values.len()) * self.values.element().bytes() + size_of_val(&self.masks[..])
    }

    fn capacity_bytes(&self) -> usize {
        self.frame.capacity_bytes() + self.values.capacity_bytes() + self.masks.capacity() * size_of::<u64>()
    }
}

/// One block of a [`DeltaMatrix`] unpacked for arithmetic: `s(m,t) = s(m,t-1) + q_m . delta_t`
/// (`docs/method.md`, equation 3), started from the key frame.
///
/// ```
/// use deltallm_core::{DeltaMatrix, DeltaStream, ElementType, MemoryBudget};
///
/// let mut keys = DeltaMatrix::new(vec![0.5, 0.5], ElementType::F32)?;
/// for key in [[1.0, 2.0], [1.0, 4.0]] {
///     keys.push(&key, &mut MemoryBudget::unlimited().charge())?;
/// }
/// let mut stream = DeltaStream::default();
/// keys.stream(0, &mut stream);
/// let deltas: Vec<Vec<(usize, f32)>> = stream.tokens().map(|t| t.collect()).collect();
/// assert_eq!(deltas, [vec![(0, 1.0), (1, 2.0)], vec![(1, 2.0)]]);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct DeltaStream {
    frame: Vec<f32>,
    ends: Vec<u32>,
    channels: Vec<u32>,
    deltas: Vec<f32>,
    /// Scratch: the transmitted values as f32, and the key they add up to.
    values: Vec<f32>,
    key: Vec<f32>,
}

impl DeltaStream {
    /// Reconstruction before the block's first token: `[channels]`.
    pub fn frame(&self) -> &[f32] {
        &self.frame
    }

    /// Tokens in the block.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the block has no tokens.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// End of each token's deltas in [`channels`](Self::channels) and [`deltas`](Self::deltas): `[tokens]`.
    #[inline]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Channels of the nonzero deltas of all tokens.
    #[inline]
    pub fn channels(&self) -> &[u32] {
        &self.channels
    }

    /// The nonzero deltas of all tokens.
    #[inline]
    pub fn deltas(&self) -> &[f32] {
        &self.deltas
    }

    /// For each token its nonzero deltas as `(channel, delta)`, channels ascending.
    pub fn tokens(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, f32)> + '_> + '_ {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let range = start..end as usize;
            start = end as usize;
            self.channels[range.clone()].iter().map(|c| *c as usize).zip(self.deltas[range].iter().copied())
        })
    }

    fn clear(&mut self) {
        self.frame.clear();
        self.ends.clear();
        self.channels.clear();
        self.deltas.clear();
        self.key.clear();
    }
}
