//! Byte-pair encoding over a checked vocabulary: shared by every vocabulary style.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::TokenizerError;
use super::vocabulary::TokenKind;

/// The settings of `tokenizers`' BPE that differ between vocabulary styles.
#[derive(Debug, Default, Clone)]
pub(super) struct BpeOptions {
    /// Emit a pre-token that is itself a token without merging (Llama 3).
    pub(super) ignore_merges: bool,
    /// Spell characters that have no token as `<0xNN>` tokens (SentencePiece).
    pub(super) byte_fallback: bool,
    /// What stands for a character that has no token; `None` leaves it out.
    pub(super) unk_token: Option<String>,
    /// One `unk_token` for a run of such characters.
    pub(super) fuse_unk: bool,
}

/// Maps each token to its id. Tokens without a text, which some files pad with, have none: no text makes them.
pub(super) fn index<'a>(
    tokens: impl IntoIterator<Item = (u32, &'a str)>,
) -> Result<HashMap<&'a str, u32>, TokenizerError> {
    let tokens = tokens.into_iter().filter(|(_, token)| !token.is_empty());
    let mut ids = HashMap::with_capacity(tokens.size_hint().1.unwrap_or(0));
    for (second, token) in tokens {
        if let Some(first) = ids.insert(token, second) {
            return Err(TokenizerError::DuplicateToken { token: token.to_owned(), first, second });
        }
    }
    Ok(ids)
}

/// Splits `left right` as GGUF and old tokenizer.json files write merges.
pub(super) fn split_merge(index: usize, merge: &str) -> Result<(&str, &str), TokenizerError> {
    merge
        .split_once(' ')
        .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
        .ok_or_else(|| TokenizerError::MalformedMerge { index, got: merge.to_owned() })
}

/// Builds the model. Tokens that plain text must not produce are not in it, and neither are merges that need
/// them.
///
/// `tokenizers` indexes a buffer by the merged length before it looks the token up, so merges are checked
/// here first.
pub(super) fn build<'a>(
    ids: &HashMap<&str, u32>,
    kinds: &[TokenKind],
    merges: impl IntoIterator<Item = Result<(&'a str, &'a str), TokenizerError>>,
    options: BpeOptions,
) -> Result<BPE, TokenizerError> {
    let mut checked = Merges::new();
    let mut merged = String::new();
    for (index, merge) in merges.into_iter().enumerate() {
        let (left, right) = merge?;
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        let mut all_text = true;
        for token in [left, right, &merged] {
            match ids.get(token) {
                Some(&id) => all_text &= kinds[id as usize].is_text(),
                None => return Err(TokenizerError::UnknownMergeToken { index, token: token.to_owned() }),
            }
        }
        if all_text {
            checked.push((left.to_owned(), right.to_owned()));
        }
    }
    let vocab: Vocab = ids
        .iter()
        .filter(|&(_, &id)| kinds[id as usize].is_text())
        .map(|(&token, &id)| (token.to_owned(), id))
        .collect();
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, checked)
        .ignore_merges(options.ignore_merges)
        .byte_fallback(options.byte_fallback)
        .fuse_unk(options.fuse_unk);
    if let Some(unk) = options.unk_token {
        builder = builder.unk_token(unk);
    }
    builder.build().map_err(|source| TokenizerError::Pipeline { step: "model", source })
}
