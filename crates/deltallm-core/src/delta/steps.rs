//! Deltas in steps of the threshold: 8-bit codes, of which differences are stored.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

use super::{
    codec::{Codec, OpenCodes, resume_reference},
    differences::{Differences, read, wide_among},
    loops::{compress_codes, from_codes, moved, select, select_codes, to_codes},
    mask::{self, bits, contains, count, unpack, words},
    rule::Rule,
};
use crate::{
    element::ElementType, error::CoreError, kv_store::BLOCK_TOKENS, quantise::inverse,
    threshold::HeadThresholds,
};

/// A value that its code does not express. For the tokens `from..to` of the block the key is `code * step + residual` in this
/// channel; the code is 0, so that no rounding comes in.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Escape {
    /// Channel of the key.
    pub channel: u16,
    /// First token of the block that it is for; 0 also for a value of the key frame.
    pub from: u8,
    /// The token that transmits the channel next, or the length of a whole block.
    pub to: u8,
    /// What is added to the code's value.
    pub residual: f32,
}

/// The end of an escape whose channel has not been transmitted again.
const OPEN_END: u8 = BLOCK_TOKENS as u8;

/// The numbers of a block in steps: a number is `code * (steps[channel] * factor)`, and escapes on top. A channel whose step is
/// unusable (0, or not a normal f32 after multiplication by the factor) has codes of 0 only.
#[derive(Debug, Clone, Copy)]
pub struct StepCodes<'a> {
    /// Codes of the key frame, `[channels]`.
    pub frame: &'a [i8],
    /// What is added to the code of each transmitted channel, token by token, channels ascending, two to a byte, the first one in
    /// the low half: -8..=7, and 0 for the next one of `wide`.
    pub differences: &'a [u8],
    /// Differences that do not fit 4 bits, and those of 0. They are added modulo 256.
    pub wide: &'a [i8],
    /// `[channels]`, the same for all blocks.
    pub steps: &'a [f32],
    /// The factor of this block.
    pub factor: f32,
    /// In the order of `from`.
    pub escapes: &'a [Escape],
}

/// The numbers of a block without their steps, which are the same for all.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepView<'a> {
    frame: &'a [i8],
    differences: &'a [u8],
    wide: &'a [i8],
    factor: f32,
    escapes: &'a [Escape],
}

/// Rounds to `code * step`, with a step per channel that is fixed for a block. A value whose code would be off by more than the
/// threshold *escapes*: its code is 0, and the value is stored beside.
#[derive(Debug, Clone)]
pub(super) struct StepCodec {
    /// Steps when the factor is 1, `[channels]`.
    base: Vec<f32>,
    /// `[channels]`, for the factor of the block being written.
    steps: Vec<f32>,
    inverse: Vec<f32>,
    /// The latest key, and which channels of it escaped.
    codes: Vec<i8>,
    escaped: Vec<u64>,
    /// The codes that the receiver has, and what those of the latest key differ by from those it had before, modulo 256.
    held: Vec<i8>,
    differences: Vec<i8>,
    /// Working memory: a key as it would be stored.
    stored: Vec<f32>,
}

/// The numbers of a block: codes of the frame, differences, and what no code holds.
#[derive(Debug)]
pub(super) struct StepBlock {
    differences: Differences,
    escapes: Vec<Escape>,
    /// Of the steps.
    factor: f32,
}

/// Numbers of a block, of each kind.
#[derive(Debug, Clone, Copy)]
struct Counts {
    /// Codes of the frame, and differences of 8 bits.
    bytes: usize,
    /// All differences.
    differences: usize,
    escapes: usize,
}

impl Counts {
    /// Of a block without escapes in which every token transmits every channel, all by more than 4 bits hold.
    fn most(channels: usize) -> Self {
        let differences = channels.saturating_mul(BLOCK_TOKENS);
        Self { bytes: channels.saturating_add(differences), differences, escapes: 0 }
    }

    fn bytes(self) -> usize {
        let escapes = self.escapes.saturating_mul(size_of::<Escape>());
        self.bytes.saturating_add(self.differences.div_ceil(2)).saturating_add(escapes)
    }
}

/// What a sealed block has, in this order: escapes, bytes, differences.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    escapes: u32,
    /// Codes of the frame, and differences of 8 bits.
    bytes: u32,
    /// Bytes of the differences.
    nibbles: u32,
    /// Of the steps.
    factor: f32,
}

/// What a step is in units of its threshold. Of 1/2, 1 and 2 this keeps most zeros and bytes
/// (`docs/results/tried.md`): twice the step leaves channels closer to their thresholds, so that they are sent again sooner.
const STEP: f32 = 1.0;

/// The step of a channel; 0 where it would be too small or too large to count in.
#[inline]
fn step(base: f32, factor: f32) -> f32 {
    let step = base * factor;
    if (f32::MIN_POSITIVE..=f32::MAX).contains(&step) { step } else { 0.0 }
}

/// The room for escapes of a block that has `escapes` of them and takes one more key: doubled as often as it must be.
fn escapes_with_room(channels: usize, escapes: usize) -> usize {
    let mut room = channels.saturating_mul(2);
    while room < escapes.saturating_add(channels) {
        room = room.saturating_mul(2).max(1);
    }
    room
}

impl StepCodec {
    /// # Errors
    /// [`CoreError::Channels`] for more channels than an [`Escape`] can name.
    pub(super) fn new(thresholds: &HeadThresholds) -> Result<Self, CoreError> {
        let (channels, most) = (thresholds.start().len(), usize::from(u16::MAX) + 1);
        if channels > most {
            return Err(CoreError::Channels { expected: most, got: channels });
        }
        let mut codec = Self {
            base: thresholds.start().iter().map(|theta| step(*theta, STEP)).collect(),
            steps: vec![0.0; channels],
            inverse: vec![0.0; channels],
            codes: vec![0; channels],
            escaped: vec![0; words(channels)],
            held: vec![0; channels],
            differences: vec![0; channels],
            stored: vec![0.0; channels],
        };
        codec.set_factor(1.0);
        Ok(codec)
    }

    fn channels(&self) -> usize {
        self.base.len()
    }

    fn set_factor(&mut self, factor: f32) {
        for ((s, i), base) in self.steps.iter_mut().zip(&mut self.inverse).zip(&self.base) {
            *s = step(*base, factor);
            *i = inverse(*s);
        }
    }

    /// Codes a row into `codes` and `stored`, and finds the channels whose codes are further off than the threshold.
    #[inline(always)]
    fn round<S: Simd>(&mut self, simd: S, row: &[f32], thresholds: &[f32], factor: f32) {
        to_codes(row, &self.inverse, &mut self.codes);
        from_codes(&self.codes, &self.steps, &mut self.stored);
        moved(simd, row, &self.stored, thresholds, factor, &mut self.escaped);
    }

    /// Takes the channels `rule.sent` of a key into the reference, rounded, and counts it.
    fn transmit(&mut self, key: &[f32], rule: &mut Rule) {
        let factor = rule.factor();
        let (isa, Rule { thresholds, sent, reference, .. }) = (Isa::best(), &mut *rule);
        dispatch!(isa, simd => self.round(simd, key, thresholds.start(), factor));
        dispatch!(isa, simd => select(simd, sent, &self.stored, reference));
        // Wherever the stored value is not within the threshold, a transmitted channel escapes.
        for (escaped, sent) in self.escaped.iter_mut().zip(&*sent) {
            *escaped &= sent;
        }
        for channel in bits(&self.escaped) {
            self.codes[channel] = 0;
            reference[channel] = key[channel];
        }
        for ((difference, code), held) in self.differences.iter_mut().zip(&self.codes).zip(&self.held) {
            *difference = code.wrapping_sub(*held);
        }
        dispatch!(isa, simd => select_codes(simd, sent, &self.codes, &mut self.held));
        rule.count();
    }

    /// The channels of the latest key or key frame that escaped, as escapes from token `from` on.
    fn escapes<'a>(&'a self, rule: &'a Rule, from: usize) -> impl Iterator<Item = Escape> + 'a {
        bits(&self.escaped).map(move |channel| Escape {
            channel: channel as u16, // see `new`
            from: from as u8,
            to: OPEN_END,
            residual: rule.reference[channel],
        })
    }

    /// The codes of a block's last key, `[channels]`.
    fn last_codes(&self, masks: &[u64], view: StepView<'_>) -> Vec<i8> {
        let mut key = view.frame.to_vec();
        let mut differences = read(view.differences, view.wide);
        for mask in masks.chunks_exact(words(self.channels())) {
            for (channel, difference) in bits(mask).zip(&mut differences) {
                key[channel] = key[channel].wrapping_add(difference);
            }
        }
        key
    }

    /// A block as kernels read it.
    pub(super) fn codes<'a>(&'a self, view: StepView<'a>) -> StepCodes<'a> {
        let StepView { frame, differences, wide, factor, escapes } = view;
        StepCodes { frame, differences, wide, steps: &self.base, factor, escapes }
    }

    /// Escapes to make room for before a block takes its token number `token`.
    fn escape_room(&self, StepBlock { escapes, .. }: &StepBlock, token: usize) -> usize {
        // A block begins without escapes, and gets those of its frame and of its first token.
        let held = if token.is_multiple_of(BLOCK_TOKENS) { 0 } else { escapes.len() };
        escapes_with_room(self.channels(), held).saturating_sub(escapes.capacity())
    }

    /// Bytes of the open block once it has taken a key beside so many escapes.
    pub(super) fn open_bytes(&self, escapes: usize) -> usize {
        let escapes = escapes_with_room(self.channels(), escapes);
        Counts { escapes, ..Counts::most(self.channels()) }.bytes()
    }

    /// Bytes of the codes of a sealed block with `sent` differences, `wide` of them of 8 bits, and `escapes` of these or of the
    /// frame; and of the open one when every block is like that.
    pub(super) fn planned_bytes(channels: usize, sent: usize, wide: usize, escapes: usize) -> [usize; 2] {
        let room = escapes_with_room(channels, escapes);
        let sealed = Counts { bytes: channels.saturating_add(wide), differences: sent, escapes };
        [sealed, Counts { escapes: room, ..Counts::most(channels) }].map(Counts::bytes)
    }
}

impl Codec for StepCodec {
    type Codes = StepBlock;
    type View<'a> = StepView<'a>;
    type Header = Header;

    const NAME: &str = "deltas in steps";

    /// Whatever does not fit a code escapes as f32.
    fn takes(&self) -> ElementType {
        ElementType::F32
    }

    fn empty(&self) -> StepBlock {
        StepBlock { differences: Differences::with_capacity(0, 0), escapes: Vec::new(), factor: 1.0 }
    }

    fn with_room(&self, escapes: usize) -> StepBlock {
        StepBlock {
            differences: Differences::with_capacity(self.channels(), BLOCK_TOKENS * self.channels()),
            escapes: Vec::with_capacity(escapes_with_room(self.channels(), escapes)),
            factor: 1.0,
        }
    }

    /// The reference is no longer the reconstruction of the key before, and the next key is compared with it.
    fn start(&mut self, rule: &mut Rule, codes: &mut StepBlock) {
        let factor = rule.factor();
        self.set_factor(factor);
        dispatch!(Isa::best(), simd => self.round(simd, &rule.reference, rule.thresholds.start(), factor));
        for channel in bits(&self.escaped) {
            self.codes[channel] = 0;
            self.stored[channel] = rule.reference[channel];
        }
        self.held.copy_from_slice(&self.codes);
        rule.reference.copy_from_slice(&self.stored);
        codes.factor = factor;
        codes.differences.start(&self.held);
        codes.escapes.clear();
        codes.escapes.extend(self.escapes(rule, 0));
    }

    fn append(&mut self, key: &[f32], rule: &mut Rule, token: usize, codes: &mut StepBlock) {
        self.transmit(key, rule);
        let mut packed = [0; 64];
        for (word, differences) in rule.sent.iter().zip(self.differences.chunks(64)) {
            let count = compress_codes(*word, differences, &mut packed);
            codes.differences.push(&packed[..count]);
        }
        for escape in codes.escapes.iter_mut().filter(|escape| escape.to == OPEN_END) {
            if contains(&rule.sent, usize::from(escape.channel)) {
                escape.to = token as u8;
            }
        }
        if token == 0 {
            // What the first key transmits was never read from the frame.
            codes.escapes.retain(|escape| escape.to > 0);
        }
        codes.escapes.extend(self.escapes(rule, token));
    }

    fn view<'a>(&self, block: &'a StepBlock) -> StepView<'a> {
        let StepBlock { differences, escapes, factor } = block;
        let (frame, wide) = differences.bytes.split_at(self.channels().min(differences.bytes.len()));
        StepView { frame, differences: differences.nibbles(), wide, factor: *factor, escapes }
    }

    fn sealed_bytes(&self, codes: &StepBlock) -> usize {
        codes.counts().bytes()
    }

    fn seal(&self, StepBlock { differences, escapes, factor }: &StepBlock, data: &mut [u8]) -> Header {
        let (bytes, nibbles) = (&differences.bytes, differences.nibbles());
        // None can be more than 65536 channels by 64 tokens.
        let [e, w, n] = [escapes.len(), bytes.len(), nibbles.len()].map(|count| count as u32);
        let parts = [bytemuck::cast_slice(escapes), bytemuck::cast_slice(bytes), nibbles];
        let mut rest = data;
        for part in parts {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        Header { escapes: e, bytes: w, nibbles: n, factor: *factor }
    }

    fn sealed<'a>(&self, header: Header, data: &'a [u8]) -> StepView<'a> {
        let Header { escapes, bytes, nibbles, factor } = header;
        let (escapes, data) = data.split_at(escapes as usize * size_of::<Escape>());
        let (bytes, data) = data.split_at(bytes as usize);
        let (frame, wide) = bytemuck::cast_slice(bytes).split_at(self.channels().min(bytes.len()));
        let (differences, escapes) = (&data[..nibbles as usize], bytemuck::cast_slice(escapes));
        StepView { frame, differences, wide, factor, escapes }
    }

    fn header_to_words(Header { escapes, bytes, nibbles, factor }: Header) -> [u32; 4] {
        [escapes, bytes, nibbles, factor.to_bits()]
    }

    fn checked(&self, words: [u32; 4], masks: &[u64], data: &[u8]) -> Option<Header> {
        let [escapes, bytes, nibbles, factor] = words;
        let header = Header { escapes, bytes, nibbles, factor: f32::from_bits(factor) };
        let [escape_bytes, bytes, nibbles] =
            [escapes as usize * size_of::<Escape>(), bytes as usize, nibbles as usize];
        let sent = count(masks);
        let fits = escape_bytes + bytes + nibbles <= data.len()
            && bytes >= self.channels()
            && nibbles == sent.div_ceil(2)
            && header.factor.is_finite();
        if !fits {
            return None;
        }
        let StepView { differences, wide, escapes, .. } = self.sealed(header, data);
        let tokens = masks.len() / mask::words(self.channels());
        let in_order = escapes.is_sorted_by_key(|escape| escape.from);
        let escapes_fit = escapes.iter().all(|escape| {
            usize::from(escape.channel) < self.channels()
                && usize::from(escape.from) < tokens
                && escape.from < escape.to
                && escape.to <= OPEN_END
                && escape.residual.is_finite()
        });
        // A token has at most one escape per channel; the room reserved for the last token relies on this. The key frame may have that
        // many again.
        let before = escapes.partition_point(|escape| usize::from(escape.from) + 1 < tokens);
        let most = if tokens == 1 { 2 * self.channels() } else { self.channels() };
        // After an odd number of differences the unused nibble is 0.
        let nothing = sent.is_multiple_of(2) || differences.last().is_some_and(|last| last >> 4 == 0);
        let fits = wide_among(differences, sent) == wide.len() && escapes.len() - before <= most && nothing;
        (fits && in_order && escapes_fit).then_some(header)
    }

    fn reopen(&self, view: StepView<'_>, sent: usize, codes: &mut StepBlock) {
        codes.differences.copy_from(view.frame, view.differences, view.wide, sent);
        codes.escapes.clear();
        codes.escapes.extend_from_slice(view.escapes);
        codes.factor = view.factor;
    }

    fn resume(&mut self, rule: &mut Rule, masks: &[u64], view: StepView<'_>) {
        self.set_factor(view.factor);
        self.held = self.last_codes(masks, view);
        resume_reference(self, rule, masks, view);
    }

    fn frame(&self, masks: &[u64], view: StepView<'_>) -> Vec<f32> {
        let frame = view.frame.iter().zip(&self.base);
        let mut row: Vec<f32> =
            frame.map(|(code, base)| f32::from(*code) * step(*base, view.factor)).collect();
        row.resize(self.channels(), 0.0);
        let first = &masks[..words(self.channels()).min(masks.len())];
        for escape in view.escapes.iter().take_while(|escape| escape.from == 0) {
            let channel = usize::from(escape.channel);
            if !contains(first, channel) {
                row[channel] = escape.residual;
            }
        }
        row
    }

    fn values<'s, 'a: 's>(&self, masks: &[u64], view: StepView<'a>, scratch: &'s mut Vec<f32>) -> &'s [f32] {
        let (of, ends) = unpack(masks, words(self.channels()));
        let steps: Vec<f32> = self.base.iter().map(|base| step(*base, view.factor)).collect();
        let mut key = view.frame.to_vec();
        scratch.clear();
        scratch.extend(read(view.differences, view.wide).zip(&of).map(|(difference, channel)| {
            let code = &mut key[*channel as usize];
            *code = code.wrapping_add(difference);
            f32::from(*code) * steps[*channel as usize]
        }));
        for escape in view.escapes {
            let token = usize::from(escape.from);
            let start = token.checked_sub(1).map_or(0, |before| ends[before] as usize);
            let sent = &of[start..ends[token] as usize];
            if let Ok(index) = sent.binary_search(&u32::from(escape.channel)) {
                scratch[start + index] += escape.residual;
            }
        }
        scratch
    }

    fn escapes_before(view: StepView<'_>, token: usize) -> usize {
        view.escapes.partition_point(|escape| usize::from(escape.from) < token)
    }

    fn missing(&self, codes: &StepBlock, written: usize, tokens: usize) -> usize {
        // There is room for a whole block without escapes, or for nothing yet.
        let room = if codes.differences.has_room() { 0 } else { Counts::most(self.channels()).bytes() };
        // Of several keys every value might escape, and the room doubles.
        let escapes = match tokens {
            1 => self.escape_room(codes, written),
            _ => (2 * (BLOCK_TOKENS + 2) * self.channels()).saturating_sub(codes.escapes.capacity()),
        };
        room + escapes * size_of::<Escape>()
    }

    fn make_room(&self, codes: &mut StepBlock, written: usize) {
        if !codes.differences.has_room() {
            codes.differences = Differences::with_capacity(self.channels(), BLOCK_TOKENS * self.channels());
        }
        let more = self.escape_room(codes, written);
        codes.escapes.reserve_exact(codes.escapes.capacity() - codes.escapes.len() + more);
    }

    fn most_bytes(&self, codes: &StepBlock, tokens: usize) -> usize {
        let (more, bytes) = (tokens * self.channels(), codes.differences.bytes.len());
        // A channel escapes from the frame or from the first token on, not both.
        let counts = Counts {
            bytes: bytes.max(self.channels()) + more,
            differences: codes.differences.len() + more,
            escapes: codes.escapes.len() + more,
        };
        counts.bytes()
    }
}

impl StepBlock {
    fn counts(&self) -> Counts {
        let Self { differences, escapes, .. } = self;
        Counts { bytes: differences.bytes.len(), differences: differences.len(), escapes: escapes.len() }
    }
}

impl OpenCodes for StepBlock {
    fn clear(&mut self) {
        self.differences.clear();
        self.escapes.clear();
    }

    fn truncate(&mut self, tokens: usize, sent: usize, _channels: usize) {
        self.differences.truncate(sent);
        self.escapes.retain(|escape| usize::from(escape.from) < tokens);
        for escape in &mut self.escapes {
            if usize::from(escape.to) >= tokens {
                escape.to = OPEN_END;
            }
        }
    }

    fn copy(&self) -> Self {
        let mut escapes = Vec::with_capacity(self.escapes.capacity());
        escapes.extend_from_slice(&self.escapes);
        Self { differences: self.differences.copy(), escapes, factor: self.factor }
    }

    fn shrink_room(&mut self, channels: usize, escapes: usize) {
        self.escapes.shrink_to(escapes_with_room(channels, escapes));
    }

    fn room_bytes(&self) -> usize {
        self.differences.room_bytes() + self.escapes.capacity() * size_of::<Escape>()
    }
}
