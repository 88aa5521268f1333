//! The tokenizer that GGUF metadata describes.

use super::pieces::Pieces;
use super::special::{SpecialToken, SpecialTokens};
use super::vocabulary::TokenKind;
use super::{GgufVocabulary, Tokenizer, TokenizerError, byte_level, sentencepiece};

impl Tokenizer {
    /// Builds the tokenizer that GGUF metadata describes.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the first inconsistency: no tokens, lengths that differ, an unknown
    /// model or pre-tokenizer, duplicate tokens, merges of unknown tokens, scores that are not finite.
    pub fn from_gguf_vocabulary(vocabulary: &GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        let kinds = vocabulary.kinds()?;
        let tokens = &vocabulary.tokens;
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
        let (normalizer, pre_tokenizer, model) = if spm {
            let model = sentencepiece::model(vocabulary, &kinds)?;
            (Some(sentencepiece::normalizer(strips_space)?), None, model)
        } else {
            let (model, pre) = byte_level::model(vocabulary, &kinds)?;
            (None, Some(pre), model)
        };
        let special = (0u32..)
            .zip(tokens.iter().zip(&kinds))
            .filter(|(_, (_, kind))| {
                matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
            })
            .map(|(id, (token, &kind))| SpecialToken {
                id,
                // SentencePiece spells the spaces of user-defined tokens as it does those of pieces.
                content: if spm { token.replace(sentencepiece::SPACE, " ") } else { (*token).to_owned() },
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
        let add = |wanted: bool, id: Option<u32>| id.filter(|_| wanted).into_iter().collect();
        let mut tokenizer = Self {
            normalizer,
            pre_tokenizer,
            model,
            special: SpecialTokens::new(special)?,
            pieces,
            bos: vocabulary.bos,
            eos_ids: Vec::new(),
            prefix: add(vocabulary.add_bos.unwrap_or(spm), vocabulary.bos),
            suffix: add(vocabulary.add_eos.unwrap_or(false), vocabulary.eos),
            strips_space,
            chat_template: vocabulary.chat_template.map(str::to_owned),
        };
        tokenizer.set_eos_ids(vocabulary.eos.into_iter().chain(vocabulary.eot));
        Ok(tokenizer)
    }
}
