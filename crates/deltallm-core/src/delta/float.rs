//! Deltas in a float type: the new values of the channels that are transmitted.

use deltallm_simd::dispatch;

use super::{
    codec::{Codec, Codes},
    loops::{compress, select},
    rule::Rule,
};
use crate::{budget::Reservation, buffer::FloatBuffer, element::ElementType, store::BLOCK_TOKENS};

/// The numbers of a block in a float type.
#[derive(Debug, Clone, Copy)]
pub struct FloatCodes<'a, T> {
    /// The key frame, `[channels]`.
    pub frame: &'a [T],
    /// The new values of all transmitted channels, token by token, channels ascending.
    pub values: &'a [T],
}

/// Rounds to a float type.
#[derive(Debug, Clone)]
pub(super) struct FloatCodec {
    element: ElementType,
    /// Working memory: a key as it would be stored.
    stored: Vec<f32>,
}

/// The key frame, and then the transmitted values of all tokens, packed in order.
#[derive(Debug, Clone)]
pub(super) struct FloatBlock(pub(super) FloatBuffer);

/// Bytes of so many numbers: frames and transmitted values.
fn bytes(element: ElementType, numbers: usize) -> usize {
    numbers.saturating_mul(element.bytes())
}

/// Numbers of a block in which every token transmits every channel.
fn most_numbers(channels: usize) -> usize {
    channels.saturating_mul(BLOCK_TOKENS + 1)
}

impl FloatCodec {
    pub(super) fn new(element: ElementType, channels: usize) -> Self {
        Self { element, stored: vec![0.0; channels] }
    }

    pub(super) fn element(&self) -> ElementType {
        self.element
    }

    /// Takes the channels `rule.sent` of a key into the reference, rounded, and counts it.
    pub(super) fn transmit(&mut self, key: &[f32], rule: &mut Rule) {
        let stored = match self.element {
            ElementType::F32 => key,
            element => {
                element.round_row(key, &mut self.stored);
                &self.stored
            }
        };
        let Rule { sent, reference, isa, .. } = rule;
        dispatch!(*isa, simd => select(simd, sent, stored, reference));
        rule.count();
    }

    /// Goes on in another float type, which holds the reference rounded.
    pub(super) fn narrow(&mut self, element: ElementType, rule: &mut Rule) {
        self.element = element;
        element.round_row(&rule.reference, &mut self.stored);
        rule.reference.copy_from_slice(&self.stored);
    }

    /// Bytes of the codes of a sealed block that transmits `sent` values, and of the open one.
    pub(super) fn planned_bytes(element: ElementType, channels: usize, sent: usize) -> [usize; 2] {
        [channels.saturating_add(sent), most_numbers(channels)].map(|numbers| bytes(element, numbers))
    }
}

impl FloatBlock {
    /// Converts numbers that have been checked to a narrower type and gives the freed bytes back.
    pub(super) fn narrow(&mut self, element: ElementType, reservation: &mut Reservation) {
        self.0.convert(element, reservation);
    }
}

impl Codec for FloatCodec {
    type Codes = FloatBlock;

    fn takes(&self) -> ElementType {
        self.element
    }

    fn empty(&self) -> FloatBlock {
        FloatBlock(FloatBuffer::with_capacity(self.element, 0))
    }

    fn start(&mut self, rule: &mut Rule, FloatBlock(numbers): &mut FloatBlock) {
        numbers.truncate(0);
        numbers.extend(&rule.reference);
    }

    fn append(&mut self, key: &[f32], rule: &mut Rule, _token: usize, FloatBlock(numbers): &mut FloatBlock) {
        self.transmit(key, rule);
        // Room for a vector more: compressed vectors are stored whole.
        let mut packed = [0.0; 64 + 16];
        for (word, values) in rule.sent.iter().zip(rule.reference.chunks(64)) {
            let count = dispatch!(rule.isa, simd => compress(simd, *word, values, &mut packed));
            numbers.extend(&packed[..count]);
        }
    }

    fn resume(&mut self, rule: &mut Rule, masks: &[u64], codes: &FloatBlock) {
        let mut rows = Vec::new();
        self.keys(rule, masks, codes, &mut rows);
        let last = rows.len() - rule.channels();
        rule.reference.copy_from_slice(&rows[last..]);
    }

    fn frame(&self, _masks: &[u64], FloatBlock(numbers): &FloatBlock) -> Vec<f32> {
        let channels = self.stored.len();
        let mut row = numbers.read(0..channels.min(numbers.len()), &mut Vec::new()).to_vec();
        row.resize(channels, 0.0);
        row
    }

    fn values<'a>(
        &self,
        _masks: &[u64],
        FloatBlock(numbers): &'a FloatBlock,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        numbers.read(self.stored.len().min(numbers.len())..numbers.len(), scratch)
    }

    fn missing(&self, FloatBlock(numbers): &FloatBlock, _written: usize, _tokens: usize) -> usize {
        // There is room for a whole block, or for nothing yet.
        let room = if numbers.capacity() == 0 { most_numbers(self.stored.len()) } else { 0 };
        bytes(self.element, room)
    }

    fn make_room(&self, FloatBlock(numbers): &mut FloatBlock, _written: usize) {
        if numbers.capacity() == 0 {
            *numbers = FloatBuffer::with_capacity(self.element, most_numbers(self.stored.len()));
        }
    }

    fn most_bytes(&self, FloatBlock(numbers): &FloatBlock, tokens: usize) -> usize {
        let channels = self.stored.len();
        bytes(self.element, numbers.len().max(channels) + tokens * channels)
    }
}

impl Codes for FloatBlock {
    fn sent(&self, channels: usize) -> usize {
        self.0.len().saturating_sub(channels)
    }

    fn clear(&mut self) {
        self.0.truncate(0);
    }

    fn truncate(&mut self, _tokens: usize, sent: usize, channels: usize) {
        self.0.truncate(channels + sent);
    }

    fn reopen(&mut self, other: Self) {
        self.0.copy_from(&other.0);
    }

    fn used_bytes(&self) -> usize {
        bytes(self.0.element(), self.0.len())
    }

    fn room_bytes(&self) -> usize {
        self.0.capacity_bytes()
    }
}
