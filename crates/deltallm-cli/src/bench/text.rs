//! The tokens that models read.

use std::path::Path;

use crate::{LoadedModel, read_text};

/// Read where no text is named.
const DEFAULT: &str = include_str!("../../assets/grimm.txt");

/// Of a text, so much more than a token has is tokenised first: a long text takes longer than a short prompt.
const BYTES_PER_TOKEN: usize = 16;

/// The first `count` tokens of a text, or of tales by the brothers Grimm.
///
/// # Errors
/// For a text that cannot be read, or is too short.
pub(super) fn tokens(model: &LoadedModel, path: Option<&Path>, count: usize) -> anyhow::Result<Vec<u32>> {
    let text = path.map(|path| read_text("--text", path)).transpose()?;
    let text = text.as_deref().unwrap_or(DEFAULT);
    let mut tokens = model.encode(beginning(text, count.saturating_mul(BYTES_PER_TOKEN)))?;
    if tokens.len() < count {
        tokens = model.encode(text)?;
    }
    anyhow::ensure!(
        tokens.len() >= count,
        "--text: expected at least {count} tokens, got {}; use a longer text or smaller lengths",
        tokens.len()
    );
    tokens.truncate(count);
    Ok(tokens)
}

/// At most `bytes` bytes of a text, whole characters.
fn beginning(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// `count` tokens for an engine without a tokenizer, all below 256: every vocabulary has so many.
pub(super) fn made_up(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 1 + i.wrapping_mul(97) % 255).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_ends_between_characters() {
        assert_eq!(beginning("aä", 2), "a");
        assert_eq!((beginning("aä", 3), beginning("aä", 99), beginning("ä", 1)), ("aä", "aä", ""));
    }

    #[test]
    fn the_default_text_is_long_enough_for_what_the_embedded_model_takes() {
        let model = LoadedModel::open(None).unwrap();
        assert_eq!(tokens(&model, None, 1024).unwrap().len(), 1024);
        let error = tokens(&model, None, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("use a longer text"), "{error}");
        assert!(made_up(1000).iter().all(|token| (1..256).contains(token)));
    }
}
