//! `tokenizer.json` of the `tokenizers` library, and the configuration files that lie beside it.

use std::collections::HashMap;
use std::path::Path;

use deltallm_core::internal::message;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::bpe::{self, BpeOptions};
use super::components::{DECODER, POST_PROCESSOR};
use super::expression::Effort;
use super::normalizer::Normalizer;
use super::pieces::Pieces;
use super::pre_tokenizer::PreTokenizers;
use super::special::{SpecialToken, SpecialTokens};
use super::turn_ends::{END_OF_TURN, end_is_of_message};
use super::vocabulary::{MAX_TOKEN_IDS, TokenKind, check_length};
use super::{Tokenizer, TokenizerError, byte_level, sentencepiece};
use crate::files::json::{self, ReadError};

/// The largest published tokenizer.json has about 33 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Ids without a token, at most: published files have a few hundred, and each takes memory as if it had one.
const MAX_HOLES: usize = 1 << 14;

/// What a post-processor may put beside a text, in tokens. Published ones put one or two.
const MAX_SURROUNDINGS: usize = 64;

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

fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, TokenizerError> {
    json::from_slice(text).map_err(|error| TokenizerError::Json {
        path: path.to_owned(),
        source: message(error).to_string().into(),
    })
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
    let effort = Effort::of("");
    let (mut special, mut normalized_special) = (Vec::new(), Vec::new());
    for token in &added_tokens {
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
    let spelled: HashMap<u32, &str> =
        normalized_special.iter().map(|token: &SpecialToken| (token.id, token.content.as_str())).collect();
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

/// How token strings spell bytes, as the decoder tells.
#[derive(Clone, Copy)]
struct Style {
    byte_level: bool,
    strips_space: bool,
}

impl Style {
    fn of(decoder: &Value) -> Result<Self, TokenizerError> {
        let (mut byte_level, mut pieces, mut strips_space) = (false, false, false);
        for step in DECODER.steps(decoder)? {
            let kind = step["type"].as_str().unwrap_or_default();
            let (is_usual, expected) = match kind {
                "Replace" => {
                    (step["pattern"]["String"] == "▁" && step["content"] == " ", "`▁` replaced with a space")
                }
                "Strip" => {
                    let one_or_none = step["start"] == 0 || step["start"] == 1;
                    let is_usual = step["content"] == " " && one_or_none && step["stop"] == 0;
                    (is_usual, "at most one space stripped, from the start")
                }
                "Metaspace" => (step["replacement"] == "▁", "`▁` for spaces"),
                _ => (true, ""),
            };
            if !is_usual {
                return Err(DECODER.refuse(expected, step));
            }
            match kind {
                "ByteLevel" => byte_level = true,
                "Strip" => strips_space |= step["start"] == 1,
                "Metaspace" => {
                    pieces = true;
                    strips_space |= step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
                }
                "Fuse" => {}
                _ => pieces = true,
            }
        }
        match byte_level != pieces {
            true => Ok(Self { byte_level, strips_space }),
            false => Err(DECODER.refuse(
                "either ByteLevel or the steps of pieces",
                if byte_level { "both" } else { "neither" },
            )),
        }
    }
}

/// What the post-processor puts before and after a text.
fn surroundings(post_processor: &Value) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let mut steps = POST_PROCESSOR.steps(post_processor)?;
    // It only changes where tokens are said to stand in the text.
    steps.retain(|step| step["type"] != "ByteLevel");
    let step = match steps[..] {
        [] => return Ok(Default::default()),
        [step] => step,
        _ => return Err(POST_PROCESSOR.refuse("one step that puts tokens around a text", "several")),
    };
    match step["type"].as_str() {
        Some("TemplateProcessing") => around_template(step),
        _ => Ok((vec![id_in(&step["cls"][1])?], vec![id_in(&step["sep"][1])?])),
    }
}

/// What stands around the text in the template `single`; `pair` is never used.
fn around_template(step: &Value) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let (mut before, mut after, mut texts) = (Vec::new(), Vec::new(), 0);
    for piece in step["single"].as_array().into_iter().flatten() {
        if let Some(name) = piece["SpecialToken"]["id"].as_str() {
            let Some(ids) = step["special_tokens"][name]["ids"].as_array() else {
                let expected = "a template whose special tokens all stand in `special_tokens`";
                return Err(POST_PROCESSOR.refuse(expected, format_args!("`{name}`, which does not")));
            };
            let side = if texts == 0 { &mut before } else { &mut after };
            if side.len() + ids.len() > MAX_SURROUNDINGS {
                return Err(POST_PROCESSOR.refuse("at most 64 tokens beside a text", "more"));
            }
            for id in ids {
                side.push(id_in(id)?);
            }
        } else if piece["Sequence"]["id"] == "A" {
            texts += 1;
        } else {
            return Err(POST_PROCESSOR.refuse("special tokens and the sequence A in `single`", piece));
        }
    }
    match texts {
        1 => Ok((before, after)),
        got => Err(POST_PROCESSOR.refuse("the sequence A once in `single`", got)),
    }
}

fn id_in(value: &Value) -> Result<u32, TokenizerError> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| POST_PROCESSOR.refuse("the ids of tokens", value))
}

/// Takes `bos`, `eos` and the chat template from the files beside tokenizer.json.
fn configure(tokenizer: &mut Tokenizer, folder: &Path) -> Result<(), TokenizerError> {
    let config = read_beside(folder, "tokenizer_config.json")?;
    let map = read_beside(folder, "special_tokens_map.json")?;
    let generation = read_beside(folder, "generation_config.json")?;
    let model = read_beside(folder, "config.json")?;

    let named = |name: &str| {
        [&config, &map].into_iter().find_map(|file| {
            // A token is a string, or an object with the string in `content`.
            let token = &file[name];
            token
                .as_str()
                .or_else(|| token["content"].as_str())
                .and_then(|token| tokenizer.token_to_id(token))
        })
    };
    let bos = named("bos_token").or_else(|| ids(&generation["bos_token_id"], tokenizer).first().copied());
    // As transformers, which looks into config.json where the other file says nothing.
    let ends = [&generation, &model].map(|file| ids(&file["eos_token_id"], tokenizer));
    let ends = ends.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default();
    let eos: Vec<u32> = named("eos_token").into_iter().chain(ends).collect();
    let jinja = folder.join("chat_template.jinja");
    let chat_template = match read_optional(&jinja)? {
        Some(text) => Some(String::from_utf8_lossy(&text).into_owned()),
        None => template_in(&config["chat_template"]).map(str::to_owned),
    };
    tokenizer.bos = bos;
    tokenizer.chat_template = chat_template;
    tokenizer.set_eos_ids(eos);
    Ok(())
}

/// One id, or a list of them. Those beyond the vocabulary are left over from another model, and can never come.
fn ids(value: &Value, tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice).iter();
    let ids = ids.filter_map(|id| u32::try_from(id.as_u64()?).ok());
    ids.filter(|&id| (id as usize) < tokenizer.vocab_size()).collect()
}

/// A template is a string, or a list of named ones of which `default` is meant.
fn template_in(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| {
        let named = value.as_array()?;
        named.iter().find(|entry| entry["name"] == "default").or(named.first())?["template"].as_str()
    })
}

fn read_beside(folder: &Path, name: &str) -> Result<Value, TokenizerError> {
    let path = folder.join(name);
    read_optional(&path)?.map_or(Ok(Value::Null), |text| parse(&path, &text))
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match read_file(path) {
        Ok(text) => Ok(Some(text)),
        Err(TokenizerError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let path = path.to_owned();
    json::read_bounded(&path, MAX_FILE_BYTES).map_err(|error| match error {
        ReadError::Io(source) => TokenizerError::Io { path, source },
        ReadError::TooLarge(got) => TokenizerError::FileTooLarge { path, limit: MAX_FILE_BYTES, got },
    })
}
