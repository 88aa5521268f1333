//! Decoding one token at a time.

use super::{Tokenizer, TokenizerError};

/// Turns tokens into text as they come. Work per token does not grow with the length of the text.
///
/// A character whose bytes are spread over tokens is held back until it is whole, so every piece is valid
/// UTF-8. The pieces and [`finish`](Self::finish), put together, are what [`Tokenizer::decode`] gives for all
/// the ids.
///
/// ```
/// use deltallm_models::{GgufVocabulary, StreamDecoder, Tokenizer};
///
/// // The two bytes of an é, a token each.
/// let tokens = vec!["\u{c3}", "\u{a9}", "a"];
/// let vocabulary = GgufVocabulary { model: "gpt2", pre: Some("gpt-2"), tokens, ..GgufVocabulary::default() };
/// let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary)?;
/// let mut decoder = StreamDecoder::new(&tokenizer);
/// assert_eq!(decoder.push(0)?, None);
/// assert_eq!(decoder.push(1)?.as_deref(), Some("é"));
/// assert_eq!(decoder.push(2)?.as_deref(), Some("a"));
/// # Ok::<(), deltallm_models::TokenizerError>(())
/// ```
#[derive(Debug)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// The bytes of an unfinished character: at most three.
    pending: Vec<u8>,
    /// Whether the next text is the first, and loses the space that encoding puts in front.
    at_start: bool,
}

impl<'t> StreamDecoder<'t> {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, pending: Vec::new(), at_start: true }
    }

    /// A decoder in the middle of a text, as when a prompt is continued: a leading space stays.
    pub fn continuing(tokenizer: &'t Tokenizer) -> Self {
        Self { at_start: false, ..Self::new(tokenizer) }
    }

    /// Takes the next token and returns the text that it completes, if any. Control tokens have no text.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`]; the decoder stays usable.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        let mut bytes = self.tokenizer.text_bytes(id)?;
        if !bytes.is_empty() && std::mem::take(&mut self.at_start) && self.tokenizer.strips_space() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.len() - unfinished_tail(&self.pending);
        if whole == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        Ok(Some(text))
    }

    /// The rest: one replacement character if the text ends in the middle of a character.
    pub fn finish(self) -> Option<String> {
        (!self.pending.is_empty()).then(|| String::from_utf8_lossy(&self.pending).into_owned())
    }
}

/// How many bytes at the end may yet become a character.
fn unfinished_tail(bytes: &[u8]) -> usize {
    let longest = bytes.len().min(3);
    (1..=longest)
        .find(|&tail| {
            let tail = &bytes[bytes.len() - tail..];
            matches!(std::str::from_utf8(tail), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::unfinished_tail;

    #[test]
    fn unfinished_tails() {
        for (bytes, tail) in [
            (&b"abc"[..], 0),
            (b"a\xC3", 1),
            (b"a\xE2\x82", 2),
            (b"\xF0\x9F\x98", 3),
            ("é".as_bytes(), 0),
            (b"\xFF", 0),
            (b"\x80\x80", 0),
            (b"\xC3\xC3", 1),
        ] {
            assert_eq!(unfinished_tail(bytes), tail, "{bytes:?}");
        }
    }
}
