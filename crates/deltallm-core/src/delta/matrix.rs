//! Coded keys in blocks, for any codec.

use super::{
    codec::{Codec, Codes},
    float::{FloatBlock, FloatCodec},
    rule::Rule,
    steps::StepCodec,
};
use crate::{
    budget::{MemoryBudget, Reservation, StoreBytes, reserve_slot, table_capacity},
    element::ElementType,
    error::CoreError,
    mask::{count, words},
    piece::Piece,
    rows::MOST_TOKENS,
    snapshot::{SnapshotError, SnapshotReader, SnapshotWriter},
    store::BLOCK_TOKENS,
    token_store::Store,
};

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

/// Up to [`BLOCK_TOKENS`] coded keys, and room for more.
#[derive(Debug)]
struct Open<T> {
    codes: T,
    /// `[tokens, words]`: the channels each token transmits.
    masks: Vec<u64>,
}

/// [`BLOCK_TOKENS`] coded keys: their masks, and then their numbers.
#[derive(Debug, Clone)]
struct Sealed<H> {
    piece: Piece,
    header: H,
}

/// A block to be read.
#[derive(Clone, Copy)]
pub(super) struct Block<'a, V> {
    /// `[tokens, words]`.
    pub(super) masks: &'a [u64],
    pub(super) codes: V,
}

/// Bytes of the masks of a block that is full, or has room for it.
fn mask_bytes(channels: usize) -> usize {
    words(channels).saturating_mul(BLOCK_TOKENS * size_of::<u64>())
}

impl<T: Codes> Open<T> {
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

    fn room_bytes(&self) -> usize {
        self.codes.room_bytes() + self.masks.capacity() * size_of::<u64>()
    }

    /// The same, with as much room.
    fn copy(&self) -> Self {
        let mut masks = Vec::with_capacity(self.masks.capacity());
        masks.extend_from_slice(&self.masks);
        Self { codes: self.codes.copy(), masks }
    }
}

impl<'a, V: Copy> Block<'a, V> {
    fn of_open<C: Codec<View<'a> = V>>(codec: &C, open: &'a Open<C::Codes>) -> Self {
        Self { masks: &open.masks, codes: codec.view(&open.codes) }
    }

    fn of_sealed<C: Codec<View<'a> = V>>(
        codec: &C,
        Sealed { piece, header }: &'a Sealed<C::Header>,
        channels: usize,
    ) -> Self {
        let (masks, codes) = piece.data().split_at(mask_bytes(channels));
        Self { masks: bytemuck::cast_slice(masks), codes: codec.sealed(*header, codes) }
    }

    /// Escapes before the last of its tokens.
    fn escapes<C: Codec<View<'a> = V>>(self, channels: usize) -> usize {
        C::escapes_before(self.codes, self.masks.len() / words(channels) - 1)
    }
}

/// A sealed block.
fn seal<C: Codec>(
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
        self.prepare()?;
        self.rule.choose(key);
        self.append(key);
        Ok(())
    }

    /// Makes room for the next key, and begins its block.
    fn prepare(&mut self) -> Result<(), CoreError> {
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
        let nonzeros = self.nonzeros();
        self.rule.rewind(len, nonzeros);
    }

    /// The keys of a block, `[tokens, channels]`, into `rows` (overwritten).
    pub(super) fn keys(&self, block: Block<'_, C::View<'_>>, rows: &mut Vec<f32>) {
        self.codec.keys(&self.rule, block.masks, block.codes, rows);
    }

    /// The same transmitted channels in another codec's codes.
    pub(super) fn converted<D: Codec>(
        &self,
        codec: D,
        budget: &MemoryBudget,
    ) -> Result<Matrix<D>, CoreError> {
        let mut copy = Matrix::new(Rule::new(self.rule.thresholds.clone())?, codec, budget);
        (copy.dropped, copy.dropped_nonzeros) = (self.dropped, self.dropped_nonzeros);
        copy.rule.rewind(self.first(), self.dropped_nonzeros);
        let mut rows = Vec::new();
        for block in self.blocks() {
            self.keys(block, &mut rows);
            // The frame of the copy is rounded from this frame and not from the copy's last key: no error adds up.
            copy.rule.reference = self.codec.frame(block.masks, block.codes);
            let masks = block.masks.chunks_exact(words(self.channels()));
            for (key, sent) in rows.chunks_exact(self.channels()).zip(masks) {
                copy.prepare()?;
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
        let data = self.sealed_bytes + self.open.room_bytes();
        Self::in_table(data, self.sealed.len(), self.sealed.capacity())
    }

    fn in_table(data: usize, blocks: usize, slots: usize) -> StoreBytes {
        let table = slots.saturating_mul(size_of::<Sealed<C::Header>>());
        StoreBytes { data, table: table.saturating_add(blocks.saturating_mul(Piece::OVERHEAD)) }
    }

    /// Bytes of the table and of the open block.
    fn own_bytes(&self) -> usize {
        self.sealed.capacity() * size_of::<Sealed<C::Header>>() + self.open.room_bytes()
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
    pub(super) fn bytes_at(tokens: usize, channels: usize, [sealed, open]: [usize; 2]) -> StoreBytes {
        // The last block stays open until a key comes that does not fit.
        let full = tokens.div_ceil(BLOCK_TOKENS) - 1;
        let [sealed, open] = [sealed, open].map(|codes| codes.saturating_add(mask_bytes(channels)));
        let data = full.saturating_mul(Piece::data_bytes(sealed)).saturating_add(open);
        Self::in_table(data, full, table_capacity(0, full))
    }
}

impl<C: Codec + Clone> Store for Matrix<C> {
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
    pub(super) fn copied(&self) -> Result<Self, CoreError> {
        let unlimited = MemoryBudget::unlimited();
        let mut copy = Store::fork(self, &unlimited)?;
        for block in &mut copy.sealed {
            block.piece.data_mut(&unlimited)?;
        }
        drop(copy.uncharge());
        // What it gets later is charged to the same account.
        copy.charge = self.charge.budget().reservation();
        Ok(copy)
    }
}

/// Keys in steps.
impl Matrix<StepCodec> {
    /// Bytes once one more key has come, had all of them come one after the other: the same whatever has been taken back meanwhile.
    pub(super) fn bytes_with_next(&self) -> StoreBytes {
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

    /// Bytes that narrowing charges before it gives any back: for blocks that others share.
    pub(super) fn narrow_growth(&self, element: ElementType) -> usize {
        if !self.narrows_to(element) {
            return 0;
        }
        let shared = self.sealed.iter().filter(|block| block.piece.is_shared());
        let bytes = |header: usize| mask_bytes(self.channels()) + header * element.bytes();
        shared.map(|block| Piece::data_bytes(bytes(block.header)) + Piece::OVERHEAD).sum()
    }

    /// `charge` pays for as much as [`narrow_growth`](Self::narrow_growth) says.
    ///
    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub(super) fn narrow(&mut self, element: ElementType, charge: &mut Reservation) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if !self.narrows_to(element) {
            return Ok(());
        }
        let (unlimited, channels) = (MemoryBudget::unlimited(), self.channels());
        for block in &mut self.sealed {
            let Block { masks, codes } = Block::of_sealed(&self.codec, block, channels);
            let mut narrow = seal(&self.codec, masks, &FloatBlock::rounded(codes, element), &unlimited)?;
            drop(narrow.piece.uncharge());
            block.piece.uncharge().into_iter().for_each(|paid| charge.merge(paid));
            narrow.piece.charge_with(charge);
            *block = narrow;
        }
        self.codec.narrow(element, &mut self.rule);
        self.open.codes.narrow(element);
        self.charge.shrink(self.charge.bytes().saturating_sub(self.own_bytes()));
        self.count_sealed();
        Ok(())
    }
}
