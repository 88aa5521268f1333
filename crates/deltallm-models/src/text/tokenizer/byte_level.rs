//! GPT-2 style vocabularies: BPE over bytes, each byte written as one printable character.

use tokenizers::models::bpe::BPE;

use super::bpe::{self, BpeOptions};
use super::vocabulary::TokenKind;
use super::{GgufVocabulary, TokenizerError};

/// The byte that a character of the GPT-2 alphabet stands for.
///
/// Printable Latin-1 characters stand for themselves; the other 68 bytes, in order, are U+0100 onwards
/// (`bytes_to_unicode` in the GPT-2 sources).
fn byte_of(character: char) -> Option<u8> {
    match character as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Appends the bytes that `token` stands for. A token outside the alphabet is spelled as it is.
pub(super) fn push_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The model for a pre-tokenizer that takes (`ignore_merges`) or does not take words that are tokens as they are.
///
/// Bytes that the vocabulary has no symbol for (some lack rare control characters) are left out of the
/// encoding, as `transformers` and llama.cpp do, unless there is a token of type "unknown".
pub(super) fn model(
    vocabulary: &GgufVocabulary<'_>,
    kinds: &[TokenKind],
    ignore_merges: bool,
) -> Result<BPE, TokenizerError> {
    let ids = bpe::index((0u32..).zip(vocabulary.tokens.iter().copied()))?;
    let unk_token = vocabulary
        .unk
        .filter(|&id| kinds[id as usize] == TokenKind::Unknown)
        .map(|id| vocabulary.tokens[id as usize].to_owned());
    let merges = vocabulary.merges.iter().enumerate().map(|(index, merge)| bpe::split_merge(index, merge));
    let options = BpeOptions { ignore_merges, unk_token, ..BpeOptions::default() };
    bpe::build(&ids, kinds, merges, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_maps_every_byte_once() {
        let mut seen = [false; 256];
        for character in '\0'..='\u{200}' {
            if let Some(byte) = byte_of(character) {
                assert!(!std::mem::replace(&mut seen[byte as usize], true), "byte {byte} twice");
            }
        }
        assert!(seen.iter().all(|&s| s));
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(alphabet.iter().all(|&c| byte_of(c).is_some()));
    }

    #[test]
    fn known_symbols() {
        let mut bytes = Vec::new();
        push_bytes("Ġthe", &mut bytes);
        push_bytes("Ċ", &mut bytes);
        push_bytes("Ã©", &mut bytes);
        push_bytes("<|日本|>", &mut bytes);
        assert_eq!(bytes, " the\né<|日本|>".as_bytes());
    }
}
