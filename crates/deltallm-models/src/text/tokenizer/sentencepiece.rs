//! SentencePiece style vocabularies: BPE over characters by score, spaces written as `▁`, bytes as fallback.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Prepend, Replace};

use super::bpe::{self, BpeOptions};
use super::cuts::Cuts;
use super::normalizer::Normalizer;
use super::vocabulary::TokenKind;
use super::{GgufVocabulary, TokenizerError};

/// Stands for a space in pieces.
pub(super) const SPACE: &str = "▁";

/// The byte of a `<0xNN>` piece.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // `from_str_radix` would take a sign.
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// Appends the bytes that `token` stands for.
pub(super) fn push_bytes(token: &str, kind: TokenKind, bytes: &mut Vec<u8>) {
    match byte_of(token).filter(|_| kind == TokenKind::Byte) {
        Some(byte) => bytes.push(byte),
        None => bytes.extend_from_slice(token.replace(SPACE, " ").as_bytes()),
    }
}

/// Writes spaces as `▁`, with one more in front where the vocabulary wants it.
pub(super) fn normalizer(add_space_prefix: bool) -> Result<Normalizer, TokenizerError> {
    let spaces =
        Replace::new(" ", SPACE).map_err(|source| TokenizerError::Pipeline { step: "normalizer", source })?;
    let prefix = add_space_prefix.then(|| Prepend::new(SPACE.to_owned()).into());
    Ok(Normalizer::new(prefix.into_iter().chain([spaces.into()]).collect()))
}

/// What the merges of a vocabulary may take, beside the vocabulary: published ones have two or three for each token.
const MERGES_PER_TOKEN: usize = 16;
const FEW_MERGES_BYTES: usize = 1 << 20;
/// Of a merge, beside the text of its sides.
const MERGE_BYTES: usize = size_of::<(String, String)>();

/// The model, with merges derived from the scores.
///
/// SentencePiece joins the adjacent pair whose union has the highest score, so a pair ranks as its union
/// does. It takes the leftmost of equals, which ranks cannot say: among pieces of the same score, and among
/// ways of making the same piece, the order here is that of ids and of cuts. Trained vocabularies have no
/// equal scores.
pub(super) fn model(vocabulary: &GgufVocabulary<'_>, kinds: &[TokenKind]) -> Result<BPE, TokenizerError> {
    let (tokens, scores) = (&vocabulary.tokens, vocabulary.scores);
    if scores.len() != tokens.len() {
        return Err(TokenizerError::LengthMismatch {
            field: "scores",
            expected: tokens.len(),
            got: scores.len(),
        });
    }
    if let Some((id, &got)) = (0u32..).zip(scores).find(|(_, score)| !score.is_finite()) {
        return Err(TokenizerError::InvalidScore { id, got });
    }
    let ids = bpe::index((0u32..).zip(tokens.iter().copied()))?;
    let is_piece = |token: &str| ids.get(token).is_some_and(|&id| kinds[id as usize] == TokenKind::Normal);

    let mut by_score: Vec<usize> = (0..tokens.len()).filter(|&id| kinds[id] == TokenKind::Normal).collect();
    by_score.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let cuts = Cuts::new(by_score.iter().map(|&id| tokens[id]));
    let vocabulary_bytes: usize = by_score.iter().map(|&id| tokens[id].len() + MERGE_BYTES).sum();
    let limit = vocabulary_bytes * MERGES_PER_TOKEN + FEW_MERGES_BYTES;
    let mut got = 0;
    let merges = by_score.iter().flat_map(|&id| {
        let token = tokens[id];
        let sides = cuts.of(token).into_iter().map(|cut| token.split_at(cut));
        sides.filter(|(left, right)| is_piece(left) && is_piece(right))
    });
    let merges = merges.map(|(left, right)| {
        got += left.len() + right.len() + MERGE_BYTES;
        if got > limit { Err(TokenizerError::TooManyMerges { limit }) } else { Ok((left, right)) }
    });

    let has_all_bytes = (0..=255u8).all(|byte| ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    let unk = vocabulary
        .unk
        .or_else(|| (0u32..).zip(kinds).find_map(|(id, &kind)| (kind == TokenKind::Unknown).then_some(id)));
    let options = BpeOptions {
        byte_fallback: has_all_bytes,
        unk_token: unk.filter(|&id| kinds[id as usize].is_text()).map(|id| tokens[id as usize].to_owned()),
        fuse_unk: true,
        ignore_merges: false,
    };
    bpe::build(&ids, kinds, merges, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_pieces() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xff>"), Some(255));
        for not_one in ["<0x0A", "0x0A>", "<0x>", "<0x100>", "<0x+1>", "a"] {
            assert_eq!(byte_of(not_one), None, "{not_one}");
        }
    }
}
