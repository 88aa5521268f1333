//! Deltas in a float type: the new values of the channels that are transmitted.

use bytemuck::Pod;
use deltallm_simd::{Isa, dispatch};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{
    buffer::FloatBuffer,
    codec::{Codec, OpenCodes},
    loops::{compress, select},
    mask::count,
    rule::Rule,
};
use crate::{element::ElementType, kv_store::BLOCK_TOKENS};

/// The numbers of a block in a float type.
#[derive(Debug, Clone, Copy)]
pub struct FloatCodes<'a, T> {
    /// The key frame, `[channels]`.
    pub frame: &'a [T],
    /// The new values of all transmitted channels, token by token, channels ascending.
    pub values: &'a [T],
}

/// The numbers of a block, in whatever type.
#[derive(Debug, Clone, Copy)]
pub(super) enum FloatView<'a> {
    F32(FloatCodes<'a, f32>),
    F16(FloatCodes<'a, f16>),
    Bf16(FloatCodes<'a, bf16>),
}

/// Rounds to a float type.
#[derive(Debug, Clone)]
pub(super) struct FloatCodec {
    element: ElementType,
    /// Working memory: a key as it would be stored.
    stored: Vec<f32>,
}

/// The key frame, and then the transmitted values of all tokens, packed in order.
#[derive(Debug)]
pub(super) struct FloatBlock(FloatBuffer);

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
        let Rule { sent, reference, .. } = rule;
        dispatch!(Isa::best(), simd => select(simd, sent, stored, reference));
        rule.count();
    }

    /// Bytes of the codes of a sealed block that transmits `sent` values, and of the open one.
    pub(super) fn planned_bytes(element: ElementType, channels: usize, sent: usize) -> [usize; 2] {
        [channels.saturating_add(sent), most_numbers(channels)].map(|numbers| bytes(element, numbers))
    }
}

impl<'a> FloatView<'a> {
    fn of_bytes(element: ElementType, data: &'a [u8], count: usize, channels: usize) -> Self {
        fn split<T: Pod>(data: &[u8], count: usize, channels: usize) -> FloatCodes<'_, T> {
            let numbers: &[T] = bytemuck::cast_slice(&data[..count * size_of::<T>()]);
            let (frame, values) = numbers.split_at(channels.min(count));
            FloatCodes { frame, values }
        }
        match element {
            ElementType::F32 => Self::F32(split(data, count, channels)),
            ElementType::F16 => Self::F16(split(data, count, channels)),
            ElementType::Bf16 => Self::Bf16(split(data, count, channels)),
        }
    }

    /// The key frame as f32.
    fn frame(self) -> Vec<f32> {
        match self {
            Self::F32(codes) => codes.frame.to_vec(),
            Self::F16(codes) => codes.frame.to_f32_vec(),
            Self::Bf16(codes) => codes.frame.to_f32_vec(),
        }
    }

    /// The transmitted values as f32: borrowed where they already are, else converted into `scratch`.
    fn values(self, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::F32(codes) => return codes.values,
            Self::F16(codes) => *scratch = codes.values.to_f32_vec(),
            Self::Bf16(codes) => *scratch = codes.values.to_f32_vec(),
        }
        scratch
    }
}

impl Codec for FloatCodec {
    type Codes = FloatBlock;
    type View<'a> = FloatView<'a>;
    /// How many numbers.
    type Header = usize;

    const NAME: &str = "deltas";

    fn takes(&self) -> ElementType {
        self.element
    }

    fn empty(&self) -> FloatBlock {
        FloatBlock(FloatBuffer::with_capacity(self.element, 0))
    }

    fn with_room(&self, _escapes: usize) -> FloatBlock {
        FloatBlock(FloatBuffer::with_capacity(self.element, most_numbers(self.stored.len())))
    }

    fn start(&mut self, rule: &mut Rule, FloatBlock(numbers): &mut FloatBlock) {
        numbers.truncate(0);
        numbers.extend(&rule.reference);
        // In a copy in a narrower type, the reference comes from a wider one.
        self.element.round_row(&rule.reference, &mut self.stored);
        rule.reference.copy_from_slice(&self.stored);
    }

    fn append(&mut self, key: &[f32], rule: &mut Rule, _token: usize, FloatBlock(numbers): &mut FloatBlock) {
        self.transmit(key, rule);
        // Room for a vector more: compressed vectors are stored whole.
        let (mut packed, isa) = ([0.0; 64 + 16], Isa::best());
        for (word, values) in rule.sent.iter().zip(rule.reference.chunks(64)) {
            let count = dispatch!(isa, simd => compress(simd, *word, values, &mut packed));
            numbers.extend(&packed[..count]);
        }
    }

    fn view<'a>(&self, FloatBlock(numbers): &'a FloatBlock) -> FloatView<'a> {
        FloatView::of_bytes(numbers.element(), numbers.bytes(), numbers.len(), self.stored.len())
    }

    fn sealed_bytes(&self, FloatBlock(numbers): &FloatBlock) -> usize {
        numbers.bytes().len()
    }

    fn seal(&self, FloatBlock(numbers): &FloatBlock, data: &mut [u8]) -> usize {
        data[..numbers.bytes().len()].copy_from_slice(numbers.bytes());
        numbers.len()
    }

    fn sealed<'a>(&self, count: usize, data: &'a [u8]) -> FloatView<'a> {
        FloatView::of_bytes(self.element, data, count, self.stored.len())
    }

    fn header_to_words(numbers: usize) -> [u32; 4] {
        // 65 times the channels of a head, which are less than 2^20.
        [numbers as u32, 0, 0, 0]
    }

    fn checked(&self, words: [u32; 4], masks: &[u64], data: &[u8]) -> Option<usize> {
        let numbers = self.stored.len() + count(masks);
        let fits = data.len() >= bytes(self.element, numbers) && words == Self::header_to_words(numbers);
        fits.then_some(numbers)
    }

    fn reopen(&self, view: FloatView<'_>, _sent: usize, FloatBlock(numbers): &mut FloatBlock) {
        numbers.truncate(0);
        numbers.extend(&view.frame());
        numbers.extend(view.values(&mut Vec::new()));
    }

    fn frame(&self, _masks: &[u64], view: FloatView<'_>) -> Vec<f32> {
        let mut row = view.frame();
        row.resize(self.stored.len(), 0.0);
        row
    }

    fn values<'s, 'a: 's>(
        &self,
        _masks: &[u64],
        view: FloatView<'a>,
        scratch: &'s mut Vec<f32>,
    ) -> &'s [f32] {
        view.values(scratch)
    }

    fn missing(&self, FloatBlock(numbers): &FloatBlock, _written: usize, _tokens: usize) -> usize {
        // There is room for a whole block, or for nothing yet.
        let room = if numbers.capacity() == 0 { most_numbers(self.stored.len()) } else { 0 };
        bytes(self.element, room)
    }

    fn make_room(&self, FloatBlock(numbers): &mut FloatBlock, _written: usize) {
        if numbers.capacity() == 0 {
            *numbers = self.with_room(0).0;
        }
    }

    fn most_bytes(&self, FloatBlock(numbers): &FloatBlock, tokens: usize) -> usize {
        let channels = self.stored.len();
        bytes(self.element, numbers.len().max(channels) + tokens * channels)
    }
}

impl OpenCodes for FloatBlock {
    fn clear(&mut self) {
        self.0.truncate(0);
    }

    fn truncate(&mut self, _tokens: usize, sent: usize, channels: usize) {
        self.0.truncate(channels + sent);
    }

    fn copy(&self) -> Self {
        let mut copy = FloatBuffer::with_capacity(self.0.element(), self.0.capacity());
        copy.copy_from(&self.0);
        Self(copy)
    }

    fn room_bytes(&self) -> usize {
        self.0.capacity_bytes()
    }
}
