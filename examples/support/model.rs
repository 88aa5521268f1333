//! A model with its tokenizer.

use std::path::Path;

use anyhow::Context;
use deltallm::models::{ChatMessage, ChatTemplate, Model, ModelError, ModelFile, Tokenizer};

use crate::Progress;

/// The model that comes with the programs; `assets/MODEL_CARD.md` says what it is.
const EMBEDDED: &[u8] = include_bytes!("../assets/fairy-tales.gguf");
const EMBEDDED_NAME: &str = "fairy-tales.gguf";

/// What a program runs.
#[derive(Debug)]
pub struct LoadedModel {
    /// The name of the file or directory.
    pub name: String,
    /// The graph with its weights.
    pub graph: Model,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
}

impl LoadedModel {
    /// Opens a GGUF file, a safetensors file or a model directory; without a path, the embedded model.
    ///
    /// # Errors
    /// With what is wrong with the file, and what to do where a wrong path is the likely reason.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = match path {
            Some(path) => ModelFile::open(path).map_err(with_advice)?,
            None => ModelFile::from_gguf_bytes(EMBEDDED_NAME, EMBEDDED)?,
        };
        let tokenizer = Tokenizer::from_model(&file)?;
        let mut progress = Progress::new("loading");
        let graph = Model::load(&file, &mut |done, total| progress.update(done, total))?;
        Ok(Self { name: name(&file), graph, tokenizer })
    }

    /// The tokens of `text` as a text to be continued.
    ///
    /// # Errors
    /// When the tokenizer fails, or the text has no tokens.
    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.checked(self.tokenizer.encode(text, true)?)
    }

    /// The tokens of a conversation in which the user says `text` and the model is to answer.
    ///
    /// # Errors
    /// When the model has no chat template, or one that fails.
    pub fn encode_chat(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let source = self.tokenizer.chat_template().with_context(|| {
            format!("--chat: expected a model with a chat template, got {}; leave --chat out", self.name)
        })?;
        let special = |id: Option<u32>| {
            id.map_or(Ok(String::new()), |id| self.tokenizer.token_text(id).map(|text| text.into_owned()))
        };
        let bos = special(self.tokenizer.bos())?;
        let eos = special(self.tokenizer.eos_ids().first().copied())?;
        let message = ChatMessage::new("user", self.tokenizer.escape(text));
        let prompt = ChatTemplate::new(source, &bos, &eos)?.render(&[message], true)?;
        // The template has written the special tokens.
        self.checked(self.tokenizer.encode_prompt(&prompt, false)?)
    }

    fn checked(&self, tokens: Vec<u32>) -> anyhow::Result<Vec<u32>> {
        anyhow::ensure!(!tokens.is_empty(), "expected a text of at least one token, got an empty one");
        Ok(tokens)
    }
}

/// Reads a text; `option` is the option that named it.
///
/// # Errors
/// For a file that cannot be read, is not UTF-8, or is empty.
pub fn read_text(option: &str, path: &Path) -> anyhow::Result<String> {
    let name = || format!("{option} {}", path.display());
    let bytes = std::fs::read(path).with_context(|| format!("{}: expected a text file", name()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{}: expected UTF-8 text", name()))?;
    anyhow::ensure!(!text.trim().is_empty(), "{}: expected a text, got an empty file", name());
    Ok(text)
}

/// The file's name without `.gguf`: what is inside often says less (not the quantisation, for one).
fn name(file: &ModelFile) -> String {
    let path = file.path();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

fn with_advice(error: ModelError) -> anyhow::Error {
    match error {
        ModelError::Io { .. } => anyhow::anyhow!(
            "--model {error}: expected a GGUF file or a model directory; leave --model out for the embedded model, \
             or run tools/fetch-smollm2"
        ),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_model_is_small_and_has_what_delta_attention_needs() {
        assert!(EMBEDDED.len() <= 4 << 20);
        let model = LoadedModel::open(None).unwrap();
        let config = model.graph.config();
        assert!(config.layers >= 4 && config.kv_heads < config.heads && config.context_length >= 1024);
        assert_eq!(model.name, "fairy-tales");
    }

    #[test]
    fn the_embedded_model_reads_back_what_it_encodes() {
        let model = LoadedModel::open(None).unwrap();
        let text = "“Wait,” said the fox; the naïve crow didn't. 🦊\n";
        assert_eq!(model.tokenizer.decode(&model.encode(text).unwrap()).unwrap(), text);
        assert!(model.encode("").is_err());
    }
}
