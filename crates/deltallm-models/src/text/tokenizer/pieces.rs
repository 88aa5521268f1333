//! The bytes that each token id stands for.

use super::TokenizerError;
use super::vocabulary::TokenKind;

/// A table from id to kind and bytes, in one allocation for all the bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where the bytes of each id end.
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
    /// Ids below this are the model's; those that no token has are padding, and stand for no bytes.
    model_ids: usize,
}

impl Pieces {
    /// Builds the table; `push` appends the bytes of one id.
    pub(super) fn new(kinds: Vec<TokenKind>, mut push: impl FnMut(usize, TokenKind, &mut Vec<u8>)) -> Self {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(kinds.len());
        for (id, &kind) in kinds.iter().enumerate() {
            push(id, kind, &mut bytes);
            ends.push(bytes.len());
        }
        Self { bytes, ends, kinds, model_ids: 0 }
    }

    /// Says how many ids the model knows.
    pub(super) fn pad_to(&mut self, model_ids: usize) {
        self.model_ids = model_ids;
    }

    /// One more than the highest id of a token.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The kind and bytes of `id`.
    pub(super) fn get(&self, id: u32) -> Result<(TokenKind, &[u8]), TokenizerError> {
        let index = id as usize;
        match self.kinds.get(index) {
            Some(&kind) if kind != TokenKind::Absent => {
                let start = if index == 0 { 0 } else { self.ends[index - 1] };
                Ok((kind, &self.bytes[start..self.ends[index]]))
            }
            _ if index < self.model_ids => Ok((TokenKind::Absent, &[])),
            _ => Err(TokenizerError::IdOutOfRange { what: "decode", id, vocab_size: self.len() }),
        }
    }
}
