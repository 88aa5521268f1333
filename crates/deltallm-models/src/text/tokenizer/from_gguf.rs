//! The tokenizer that GGUF metadata describes.

use std::collections::HashMap;

use super::pieces::Pieces;
use super::pre_tokenizer::{self, PreTokenizers};
use super::special::{SpecialToken, SpecialTokens};
use super::turn_ends::{END_OF_CODE, END_OF_TURN, end_is_of_message};
use super::vocabulary::TokenKind;
use super::{GgufVocabulary, Tokenizer, TokenizerError, byte_level, sentencepiece};

impl Tokenizer {
    /// Builds the tokenizer that GGUF metadata describes.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the first inconsistency: no tokens, lengths that differ, an unknown
    /// model or pre-tokenizer, duplicate tokens, merges of unknown tokens, scores that are not finite, tokens longer than 4 KiB.
    pub fn from_gguf_vocabulary(vocabulary: &GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        let mut kinds = vocabulary.kinds()?;
        let tokens = &vocabulary.tokens;
        let turn_ends = turn_ends(tokens);
        for &id in &turn_ends {
            // Many files type them as text.
            kinds[id as usize] = TokenKind::Control;
        }
        let spm = match vocabulary.model {
            "gpt2" => false,
            "llama" => true,
            got => {
                return Err(TokenizerError::UnsupportedModel {
                    got: got.to_owned(),
                    supported: &["gpt2", "llama"],
                });
            }
        };
        let strips_space = spm && vocabulary.add_space_prefix.unwrap_or(true);
        let (normalizer, pre_tokenizers, model, adds_bos) = if spm {
            let model = sentencepiece::model(vocabulary, &kinds)?;
            (sentencepiece::normalizer(strips_space)?, PreTokenizers::default(), model, true)
        } else {
            let pre = pre_tokenizer::named(vocabulary.pre.unwrap_or("default"))?;
            let model = byte_level::model(vocabulary, &kinds, pre.ignore_merges)?;
            (pre.normalizer, pre.steps.into(), model, pre.add_bos)
        };
        let or_usual =
            |id: Option<u32>, usual: u32| id.or((spm && (usual as usize) < tokens.len()).then_some(usual));
        let (bos, eos) = (or_usual(vocabulary.bos, 1), or_usual(vocabulary.eos, 2));
        let special = (0u32..)
            .zip(tokens.iter().zip(&kinds))
            .filter(|(_, (_, kind))| {
                matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
            })
            .map(|(id, (token, &kind))| SpecialToken {
                id,
                // SentencePiece spells the spaces of user-defined tokens as it does those of pieces.
                content: match kind {
                    TokenKind::UserDefined if spm => token.replace(sentencepiece::SPACE, " "),
                    _ => (*token).to_owned(),
                },
                control: kind != TokenKind::UserDefined,
                lstrip: false,
                rstrip: false,
            })
            .collect();
        let pieces = Pieces::new(kinds, |id, kind, bytes| {
            if matches!(kind, TokenKind::Control | TokenKind::UserDefined) && !spm {
                bytes.extend_from_slice(tokens[id].as_bytes());
            } else if spm {
                sentencepiece::push_bytes(tokens[id], kind, bytes);
            } else {
                byte_level::push_bytes(tokens[id], bytes);
            }
        });
        let add = |wanted: Option<bool>, usual: bool, id: Option<u32>, key| match id {
            None if wanted == Some(true) => Err(TokenizerError::MissingSpecialToken { key }),
            id => Ok(id.filter(|_| wanted.unwrap_or(usual)).into_iter().collect()),
        };
        let mut tokenizer = Self {
            normalizer,
            pre_tokenizers,
            model,
            special: SpecialTokens::new(special)?,
            normalized_special: SpecialTokens::new(Vec::new())?,
            pieces,
            bos,
            eos_ids: Vec::new(),
            prefix: add(vocabulary.add_bos, adds_bos, bos, "bos_token_id")?,
            suffix: add(vocabulary.add_eos, false, eos, "eos_token_id")?,
            strips_space,
            chat_template: vocabulary.chat_template.map(str::to_owned),
        };
        let named = [eos, vocabulary.eot, vocabulary.eom].into_iter().flatten();
        tokenizer.set_eos_ids(named.chain(turn_ends));
        Ok(tokenizer)
    }
}

/// The tokens that llama.cpp stops at because of their text, the most usual first.
fn turn_ends(tokens: &[&str]) -> Vec<u32> {
    let names = || END_OF_TURN.iter().chain(END_OF_CODE);
    let found: HashMap<&str, u32> = (0u32..)
        .zip(tokens)
        .map(|(id, token)| (*token, id))
        .filter(|(token, _)| names().any(|it| it == token))
        .collect();
    let of_message = end_is_of_message(|name| found.contains_key(name));
    let ends = names().filter(|name| !(of_message && **name == "<|end|>"));
    ends.filter_map(|name| found.get(name).copied()).collect()
}
