//! `tokenizer.json` of the `tokenizers` library.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::beside::{configure, parse, read_file};
use super::bpe::{self, BpeOptions};
use super::decoder::Style;
use super::expression::Effort;
use super::normalizer::Normalizer;
use super::pieces::Pieces;
use super::post_processor::surroundings;
use super::pre_tokenizer::PreTokenizers;
use super::special::{SpecialToken, SpecialTokens};
use super::turn_ends::{END_OF_TURN, end_is_of_message};
use super::vocabulary::{MAX_TOKEN_IDS, TokenKind, check_length};
use super::{Tokenizer, TokenizerError, byte_level, sentencepiece};

/// Ids without a token, at most: published files have a few hundred, and each takes memory as if it had one.
const MAX_HOLES: usize = 1 << 14;

/// Just enough to tell the kind of model before reading the rest.
#[derive(Deserialize)]
struct Probe {
    model: ProbeModel,
}

#[derive(Deserialize)]
struct ProbeModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: BpeModel,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Matched in normalized text. Not of control tokens: those are matched as they are spelled.
    #[serde(default)]
    normalized: bool,
}

#[derive(Deserialize)]
struct BpeModel {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    dropout: Option<f32>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// A merge in the new or in the old spelling.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair((String, String)),
    Line(String),
}

impl Merge {
    fn parts(&self, index: usize) -> Result<(&str, &str), TokenizerError> {
        match self {
            Self::Pair((left, right)) => Ok((left, right)),
            Self::Line(line) => bpe::split_merge(index, line),
        }
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json` and what lies beside it: `tokenizer_config.json`, `generation_config.json`, `config.json`,
    /// `special_tokens_map.json` and `chat_template.jinja`, each where there is one.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the file, or the part of it, that cannot be read.
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let text = read_file(path)?;
        let probe: Probe = parse(path, &text)?;
        if let Some(got) = probe.model.kind.filter(|kind| kind != "BPE") {
            return Err(TokenizerError::UnsupportedModel { got, supported: &["BPE"] });
        }
        let file: File = parse(path, &text)?;
        drop(text);
        let mut tokenizer = build(file)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        configure(&mut tokenizer, folder)?;
        Ok(tokenizer)
    }
}

fn build(file: File) -> Result<Tokenizer, TokenizerError> {
    let File { mut added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } = file;
    refuse_unsupported(&model, &added_tokens)?;
    let normalizer = Normalizer::from_json(&normalizer)?;
    let pre_tokenizers = PreTokenizers::from_json(&pre_tokenizer)?;
    let style = Style::of(&decoder)?;
    let turn_ends = turn_ends(&added_tokens);
    for token in &mut added_tokens {
        token.special |= turn_ends.contains(&token.id);
    }

    let (tokens, kinds) = table(&model, &added_tokens)?;
    let ids = bpe::index((0u32..).zip(tokens.iter()).filter_map(|(id, token)| Some((id, (*token)?))))?;
    let merges = model.merges.iter().enumerate().map(|(index, merge)| merge.parts(index));
    let options = BpeOptions {
        ignore_merges: model.ignore_merges,
        byte_fallback: model.byte_fallback,
        unk_token: model.unk_token.clone().filter(|unk| ids.contains_key(unk.as_str())),
        fuse_unk: model.fuse_unk,
    };
    let bpe = bpe::build(&ids, &kinds, merges, options)?;

    let (prefix, suffix) = surroundings(&post_processor)?;
    let is_missing = |id: u32| kinds.get(id as usize).is_none_or(|kind| *kind == TokenKind::Absent);
    if let Some(&id) = prefix.iter().chain(&suffix).find(|id| is_missing(**id)) {
        return Err(TokenizerError::IdOutOfRange { what: "post_processor", id, vocab_size: kinds.len() });
    }
    let (special, normalized_special) = special_tokens(&added_tokens, &normalizer)?;
    let spelled: HashMap<u32, &str> =
        normalized_special.iter().map(|token| (token.id, token.content.as_str())).collect();
    let pieces = Pieces::new(kinds, |id, kind, bytes| {
        let Some(token) = tokens[id] else { return };
        let token = spelled.get(&(id as u32)).copied().unwrap_or(token);
        match (kind, style.byte_level) {
            (TokenKind::Control, _) | (TokenKind::UserDefined, true) => {
                bytes.extend_from_slice(token.as_bytes())
            }
            (_, true) => byte_level::push_bytes(token, bytes),
            (_, false) => sentencepiece::push_bytes(token, kind, bytes),
        }
    });
    let mut tokenizer = Tokenizer {
        normalizer,
        pre_tokenizers,
        model: bpe,
        special: SpecialTokens::new(special)?,
        normalized_special: SpecialTokens::new(normalized_special)?,
        pieces,
        bos: None,
        eos_ids: Vec::new(),
        prefix,
        suffix,
        strips_space: style.strips_space,
        chat_template: None,
    };
    tokenizer.set_eos_ids(turn_ends);
    Ok(tokenizer)
}

/// The added tokens that end a turn by their text, the most usual first.
fn turn_ends(added: &[AddedToken]) -> Vec<u32> {
    let id_of = |name: &str| added.iter().find(|token| token.content == name).map(|token| token.id);
    let of_message = end_is_of_message(|name| id_of(name).is_some());
    let ends = END_OF_TURN.iter().filter(|name| !(of_message && **name == "<|end|>"));
    ends.filter_map(|name| id_of(name)).collect()
}

/// What the added tokens are found by: those that are matched in a text as it is, and those that are matched once it is normalized.
fn special_tokens(
    added: &[AddedToken],
    normalizer: &Normalizer,
) -> Result<(Vec<SpecialToken>, Vec<SpecialToken>), TokenizerError> {
    let effort = Effort::of("");
    let (mut special, mut normalized_special) = (Vec::new(), Vec::new());
    for token in added {
        let normalized = token.normalized && !token.special;
        let content = if normalized {
            normalizer.apply(&token.content, &effort)?.into_owned()
        } else {
            token.content.clone()
        };
        let list = if normalized { &mut normalized_special } else { &mut special };
        let (id, control) = (token.id, token.special);
        list.push(SpecialToken { id, content, control, lstrip: token.lstrip, rstrip: token.rstrip });
    }
    Ok((special, normalized_special))
}

/// The token and kind of each id.
fn table<'a>(
    model: &'a BpeModel,
    added: &'a [AddedToken],
) -> Result<(Vec<Option<&'a str>>, Vec<TokenKind>), TokenizerError> {
    let all = || {
        let vocab = model.vocab.iter().map(|(token, &id)| (token.as_str(), id));
        vocab.chain(added.iter().map(|token| (token.content.as_str(), token.id)))
    };
    let Some(highest) = all().map(|(_, id)| id as usize).max() else {
        return Err(TokenizerError::EmptyVocabulary);
    };
    let limit = MAX_TOKEN_IDS.min(all().count() + MAX_HOLES);
    if highest >= limit {
        return Err(TokenizerError::VocabularyTooLarge { limit, got: highest + 1 });
    }
    let mut tokens: Vec<Option<&str>> = vec![None; highest + 1];
    for (token, id) in all() {
        check_length(id, token)?;
        match tokens[id as usize].replace(token) {
            Some(first) if first != token => {
                let (first, second) = (first.to_owned(), token.to_owned());
                return Err(TokenizerError::DuplicateId { id, first, second });
            }
            _ => {}
        }
    }
    let mut kinds: Vec<TokenKind> = tokens
        .iter()
        .map(|token| match token {
            None => TokenKind::Absent,
            Some(token) if model.byte_fallback && sentencepiece::byte_of(token).is_some() => TokenKind::Byte,
            Some(_) => TokenKind::Normal,
        })
        .collect();
    for token in added {
        kinds[token.id as usize] = match token.special {
            // The model emits it, so it stays in the model's vocabulary.
            true if model.unk_token.as_ref() == Some(&token.content) => TokenKind::Unknown,
            true => TokenKind::Control,
            false => TokenKind::UserDefined,
        };
    }
    Ok((tokens, kinds))
}

/// Refuses what would change the result if it were left out.
fn refuse_unsupported(model: &BpeModel, added: &[AddedToken]) -> Result<(), TokenizerError> {
    let refuse = |field, expected, got| Err(TokenizerError::UnsupportedField { field, expected, got });
    for (field, value) in [
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            return refuse(field, "null", format!("`{value}`"));
        }
    }
    if let Some(dropout) = model.dropout.filter(|&dropout| dropout != 0.0) {
        return refuse("model.dropout", "null", dropout.to_string());
    }
    if let Some(token) = added.iter().find(|token| token.single_word) {
        return refuse("added_tokens.single_word", "false", format!("true for `{}`", token.content));
    }
    Ok(())
}
