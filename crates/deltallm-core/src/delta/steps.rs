//! One block of coded keys.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};
use half::{bf16, f16};

use crate::{
    BLOCK_TOKENS, DeltaEncoder, ElementType,
    coding::{compress, expand},
    differences::Differences,
    elements::Elements,
    encoder::{bits, step, words},
};

/// A value of an 8-bit [`DeltaBlock`] that its code does not express. For the tokens `from..to` of the block the key is
/// `code * step + residual` in this channel; the code is 0, so that no rounding comes in.
#[derive(Debug, Clone, Copy, PartialEq)]
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

/// A block of a [`DeltaMatrix`](crate::DeltaMatrix) as it is held: up to [`BLOCK_TOKENS`] tokens.
#[derive(Debug, Clone, Copy)]
pub struct DeltaBlock<'a> {
    /// The channels that each token transmits, `[tokens, words]`: channel `j` is bit `j % 64` of word `j / 64`.
    pub masks: &'a [u64],
    /// The key frame and the transmitted values.
    pub codes: BlockCodes<'a>,
}

/// The numbers of a [`DeltaBlock`]: the key frame, `[channels]`, and those of all transmitted channels, token by token, channels
/// ascending: *new values* in float types, what the code has changed by in 8 bits.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum BlockCodes<'a> {
    /// As f32.
    F32 {
        /// `[channels]`.
        frame: &'a [f32],
        /// Packed.
        values: &'a [f32],
    },
    /// As f16.
    F16 {
        /// `[channels]`.
        frame: &'a [f16],
        /// Packed.
        values: &'a [f16],
    },
    /// As bf16.
    Bf16 {
        /// `[channels]`.
        frame: &'a [bf16],
        /// Packed.
        values: &'a [bf16],
    },
    /// A number is `code * (steps[channel] * factor)`, and escapes on top. A channel whose step is of no use (0, or not a
    /// normal f32 after the product) has codes of 0 only.
    Int8 {
        /// Codes, `[channels]`.
        frame: &'a [i8],
        /// What is added to the code of each transmitted channel, packed, two to a byte, the first one in the low half: -8..=7, and
        /// 0 for the next one of `wide`.
        differences: &'a [u8],
        /// Differences that do not fit 4 bits, and those of 0. They are added modulo 256.
        wide: &'a [i8],
        /// `[channels]`, the same for all blocks.
        steps: &'a [f32],
        /// The factor of this block.
        factor: f32,
        /// In the order of `from`.
        escapes: &'a [Escape],
    },
}

/// Up to [`BLOCK_TOKENS`] coded keys.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) codes: Codes,
    /// `[tokens, words]`: the channels each token transmits.
    pub(crate) masks: Vec<u64>,
    pub(crate) escapes: Vec<Escape>,
    /// Of the steps of 8-bit codes.
    pub(crate) factor: f32,
}

#[derive(Debug, Clone)]
pub(crate) enum Codes {
    /// The reconstruction before the block's first token, `[channels]`, and then the transmitted values of all tokens,
    /// packed in order.
    Float(Elements),
    Int8(Differences),
}

impl Codes {
    /// Room for a frame and so many transmitted values. `None` is 8-bit codes.
    fn with_capacity(element: Option<ElementType>, channels: usize, nonzeros: usize) -> Self {
        match element {
            Some(element) => Self::Float(Elements::with_capacity(element, channels + nonzeros)),
            None => Self::Int8(Differences::with_capacity(channels, nonzeros)),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Float(elements) => elements.truncate(0),
            Self::Int8(codes) => codes.clear(),
        }
    }

    /// Keeps `nonzeros` transmitted values.
    fn truncate(&mut self, channels: usize, nonzeros: usize) {
        match self {
            Self::Float(elements) => elements.truncate(channels + nonzeros),
            Self::Int8(codes) => codes.truncate(nonzeros),
        }
    }

    /// Becomes a copy of `other`, within the room it has.
    fn copy_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::Float(elements), Self::Float(other)) => elements.copy_from(other),
            (Self::Int8(codes), Self::Int8(other)) => codes.copy_from(other),
            // All blocks of a matrix are of one kind.
            (codes, other) => *codes = other.clone(),
        }
    }

    fn used_bytes(&self) -> usize {
        match self {
            Self::Float(elements) => elements.len() * elements.element().bytes(),
            Self::Int8(codes) => codes.used_bytes(),
        }
    }

    fn capacity_bytes(&self) -> usize {
        match self {
            Self::Float(elements) => elements.capacity() * elements.element().bytes(),
            Self::Int8(codes) => codes.capacity_bytes(),
        }
    }
}

impl Block {
    /// Room for `tokens` keys, whatever they transmit, and for no escape. `None` is 8-bit codes.
    pub(crate) fn with_capacity(element: Option<ElementType>, channels: usize, tokens: usize) -> Self {
        Self {
            codes: Codes::with_capacity(element, channels, tokens * channels),
            masks: Vec::with_capacity(words(channels) * tokens),
            escapes: Vec::new(),
            factor: 1.0,
        }
    }

    /// A copy without spare capacity.
    pub(crate) fn to_exact(&self) -> Self {
        // `Vec::clone` allocates exactly `len` elements.
        Self {
            codes: self.codes.clone(),
            masks: self.masks.clone(),
            escapes: self.escapes.clone(),
            factor: self.factor,
        }
    }

    /// Forgets everything but keeps the room.
    pub(crate) fn clear(&mut self) {
        self.codes.clear();
        self.masks.clear();
        self.escapes.clear();
    }

    /// Begins with the key frame of the encoder's reference.
    pub(crate) fn start(&mut self, encoder: &mut DeltaEncoder, factor: f32) {
        self.clear();
        self.factor = factor;
        encoder.start_block(factor);
        match &mut self.codes {
            Codes::Float(elements) => elements.extend(encoder.reconstruction()),
            Codes::Int8(codes) => codes.start(encoder.codes()),
        }
        self.push_escapes(encoder, 0);
    }

    /// Appends the key the encoder has just coded.
    pub(crate) fn push(&mut self, encoder: &DeltaEncoder) {
        let sent = encoder.sent();
        let token = (self.masks.len() / sent.len().max(1)) as u8;
        self.masks.extend_from_slice(sent);
        match &mut self.codes {
            Codes::Float(elements) => {
                let reference = encoder.reconstruction();
                // Room for a vector more: compressed vectors are stored whole.
                let mut packed = [0.0; 64 + 16];
                for (word, values) in sent.iter().zip(reference.chunks(64)) {
                    let count = dispatch!(encoder.isa(), simd => compress(simd, *word, values, &mut packed));
                    elements.extend(&packed[..count]);
                }
            }
            Codes::Int8(codes) => {
                let mut packed = [0; 64];
                for (word, differences) in sent.iter().zip(encoder.differences().chunks(64)) {
                    let count = compress_codes(*word, differences, &mut packed);
                    codes.push(&packed[..count]);
                }
                for escape in self.escapes.iter_mut().filter(|escape| escape.to == OPEN_END) {
                    if contains(sent, usize::from(escape.channel)) {
                        escape.to = token;
                    }
                }
                if token == 0 {
                    // What the first key transmits was never read from the frame.
                    self.escapes.retain(|escape| escape.to > 0);
                }
                self.push_escapes(encoder, token);
            }
        }
    }

    fn push_escapes(&mut self, encoder: &DeltaEncoder, from: u8) {
        let escapes = encoder.escaped().map(|channel| Escape {
            channel: channel as u16, // 8-bit codes have at most 2^16 channels
            from,
            to: OPEN_END,
            residual: encoder.reconstruction()[channel],
        });
        self.escapes.extend(escapes);
    }

    /// Keeps the first `tokens` tokens.
    pub(crate) fn truncate(&mut self, tokens: usize, channels: usize) {
        self.masks.truncate(tokens * words(channels));
        let nonzeros: usize = self.masks.iter().map(|word| word.count_ones() as usize).sum();
        self.codes.truncate(channels, nonzeros);
        self.escapes.retain(|escape| usize::from(escape.from) < tokens);
        for escape in &mut self.escapes {
            if usize::from(escape.to) >= tokens {
                escape.to = OPEN_END;
            }
        }
    }

    /// Becomes what `other` is, within the room it has; for escapes it takes over the room of `other`.
    pub(crate) fn reopen(&mut self, other: Self) {
        self.codes.copy_from(&other.codes);
        self.masks.clear();
        self.masks.extend_from_slice(&other.masks);
        self.escapes = other.escapes;
        self.factor = other.factor;
    }

    /// The key frame, `[channels]`; zeros before the first key.
    pub(crate) fn frame(&self, base: &[f32], channels: usize) -> Vec<f32> {
        let mut row = match &self.codes {
            Codes::Float(elements) => {
                elements.read(0..channels.min(elements.len()), &mut Vec::new()).to_vec()
            }
            Codes::Int8(codes) => codes
                .whole
                .iter()
                .zip(base)
                .map(|(code, base)| f32::from(*code) * step(*base, self.factor))
                .collect(),
        };
        row.resize(channels, 0.0);
        let first = &self.masks[..words(channels).min(self.masks.len())];
        for escape in self.escapes.iter().take_while(|escape| escape.from == 0) {
            let channel = usize::from(escape.channel);
            if !contains(first, channel) {
                row[channel] = escape.residual;
            }
        }
        row
    }

    /// Transmitted values.
    pub(crate) fn nonzeros(&self, channels: usize) -> usize {
        match &self.codes {
            Codes::Float(elements) => elements.len().saturating_sub(channels),
            Codes::Int8(codes) => codes.len(),
        }
    }

    /// Of these, the 8-bit codes that change by more than 4 bits hold.
    pub(crate) fn wide(&self, channels: usize) -> usize {
        match &self.codes {
            Codes::Float(_) => 0,
            Codes::Int8(codes) => codes.whole.len().saturating_sub(channels),
        }
    }

    /// The 8-bit codes of the last key of a block that has begun, `[channels]`; none in a float store.
    pub(crate) fn last_codes(&self, channels: usize) -> Vec<i8> {
        let Codes::Int8(codes) = &self.codes else { return Vec::new() };
        let mut key = codes.whole[..channels].to_vec();
        let mut differences = codes.iter(channels);
        for mask in self.masks.chunks_exact(words(channels)) {
            for (channel, difference) in bits(mask).zip(&mut differences) {
                key[channel] = key[channel].wrapping_add(difference);
            }
        }
        key
    }

    /// The transmitted values of all tokens as f32, in `values`.
    fn values<'a>(&'a self, base: &[f32], channels: usize, values: &'a mut Vec<f32>) -> &'a [f32] {
        let codes = match &self.codes {
            Codes::Float(elements) => {
                return elements.read(channels.min(elements.len())..elements.len(), values);
            }
            Codes::Int8(codes) => codes,
        };
        let (of, ends) = unpack_masks(&self.masks, words(channels));
        values.clear();
        let steps: Vec<f32> = base.iter().map(|base| step(*base, self.factor)).collect();
        let mut key = codes.whole.get(..channels).unwrap_or_default().to_vec();
        values.extend(codes.iter(channels).zip(&of).map(|(difference, channel)| {
            let code = &mut key[*channel as usize];
            *code = code.wrapping_add(difference);
            f32::from(*code) * steps[*channel as usize]
        }));
        for escape in &self.escapes {
            let token = usize::from(escape.from);
            let start = token.checked_sub(1).map_or(0, |before| ends[before] as usize);
            let sent = &of[start..ends[token] as usize];
            if let Ok(index) = sent.binary_search(&u32::from(escape.channel)) {
                values[start + index] += escape.residual;
            }
        }
        values
    }

    /// The keys, `[tokens, channels]`, into `rows` (overwritten).
    pub(crate) fn reconstruct(&self, base: &[f32], channels: usize, rows: &mut Vec<f32>) {
        let mut scratch = Vec::new();
        let values = self.values(base, channels, &mut scratch);
        let key = self.frame(base, channels);
        rows.clear();
        rows.resize(self.masks.len() / words(channels).max(1) * channels, 0.0);
        dispatch!(Isa::best(), simd => expand_keys(simd, &self.masks, values, key, rows));
    }

    pub(crate) fn view<'a>(&'a self, steps: &'a [f32], channels: usize) -> DeltaBlock<'a> {
        let codes = match &self.codes {
            Codes::Float(Elements::F32(codes)) => {
                let (frame, values) = codes.split_at(channels.min(codes.len()));
                BlockCodes::F32 { frame, values }
            }
            Codes::Float(Elements::F16(codes)) => {
                let (frame, values) = codes.split_at(channels.min(codes.len()));
                BlockCodes::F16 { frame, values }
            }
            Codes::Float(Elements::Bf16(codes)) => {
                let (frame, values) = codes.split_at(channels.min(codes.len()));
                BlockCodes::Bf16 { frame, values }
            }
            Codes::Int8(codes) => {
                let (frame, wide) = codes.whole.split_at(channels.min(codes.whole.len()));
                let (differences, factor) = (codes.nibbles(), self.factor);
                BlockCodes::Int8 { frame, differences, wide, steps, factor, escapes: &self.escapes }
            }
        };
        DeltaBlock { masks: &self.masks, codes }
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.codes.used_bytes() + size_of_val(&self.masks[..]) + size_of_val(&self.escapes[..])
    }

    pub(crate) fn escape_bytes(&self) -> usize {
        self.escapes.capacity() * size_of::<Escape>()
    }

    pub(crate) fn capacity_bytes(&self) -> usize {
        self.codes.capacity_bytes() + self.masks.capacity() * size_of::<u64>() + self.escape_bytes()
    }
}

/// The codes of up to 64 channels whose bits are set, packed into the front of `packed`; returns how many.
#[inline]
fn compress_codes(word: u64, codes: &[i8], packed: &mut [i8; 64]) -> usize {
    let mut count = 0;
    // Written always and counted if wanted: a branch would be guessed wrongly too often.
    for (i, code) in codes.iter().enumerate() {
        packed[count & 63] = *code;
        count += (word >> i & 1) as usize;
    }
    count
}

/// Keys from the frame `key` and the transmitted values.
#[inline(always)]
fn expand_keys<S: Simd>(simd: S, masks: &[u64], values: &[f32], mut key: Vec<f32>, rows: &mut [f32]) {
    let (channels, mut start) = (key.len(), 0);
    for (mask, row) in masks.chunks_exact(words(channels)).zip(rows.chunks_exact_mut(channels)) {
        for (word, part) in mask.iter().zip(key.chunks_mut(64)) {
            start += expand(simd, *word, &values[start..], part);
        }
        row.copy_from_slice(&key);
    }
}

/// Whether the bit of `channel` is set.
fn contains(words: &[u64], channel: usize) -> bool {
    words.get(channel / 64).is_some_and(|word| word >> (channel % 64) & 1 == 1)
}

/// The channels of all set bits, ascending token by token, and where each token ends in them. `masks` has `words` words
/// for every token.
fn unpack_masks(masks: &[u64], words: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut channels, mut ends) = (Vec::new(), Vec::new());
    for mask in masks.chunks_exact(words) {
        for (&word, first) in mask.iter().zip((0..).step_by(64)) {
            let mut rest = word;
            while rest != 0 {
                channels.push(first + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        ends.push(channels.len() as u32);
    }
    (channels, ends)
}
