//! The folder of a tokenizer.json: how its files are read, and what those beside it say.

use std::path::Path;

use deltallm_core::internal::message;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Tokenizer, TokenizerError};
use crate::files::json::{self, ReadError};

/// The largest published tokenizer.json has about 33 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Takes `bos`, `eos` and the chat template from the files beside tokenizer.json.
pub(super) fn configure(tokenizer: &mut Tokenizer, folder: &Path) -> Result<(), TokenizerError> {
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

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let path = path.to_owned();
    json::read_bounded(&path, MAX_FILE_BYTES).map_err(|error| match error {
        ReadError::Io(source) => TokenizerError::Io { path, source },
        ReadError::TooLarge(got) => TokenizerError::FileTooLarge { path, limit: MAX_FILE_BYTES, got },
    })
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, TokenizerError> {
    json::from_slice(text).map_err(|error| TokenizerError::Json {
        path: path.to_owned(),
        source: message(error).to_string().into(),
    })
}
