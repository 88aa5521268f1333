//! A model with its tokenizer.

mod path;
mod profile;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use deltallm::Isa;
use deltallm::models::{ChatMessage, ChatTemplate, LinearForm, Model, ModelError, ModelFile, Tokenizer};
use jiff::Zoned;
use jiff::fmt::strtime::{self, BrokenDownTime};

use crate::{Progress, WindowedText};
use path::in_folder;
pub use profile::ModelProfile;

/// The models that come with the programs, the default first; the cards in `assets` say what they are.
const EMBEDDED: [(&str, &[u8]); 2] = [
    ("fairy-tales", include_bytes!("../../assets/fairy-tales.gguf")),
    ("bitnet-tiny", include_bytes!("../../assets/bitnet-tiny.gguf")),
];

/// What a program runs.
#[derive(Debug)]
pub struct LoadedModel {
    /// The name of the file or directory.
    pub name: String,
    /// The graph with its weights.
    pub graph: Arc<Model>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How long it took to read the file and to bring its weights into the form that they are multiplied in.
    pub loading: Duration,
}

impl LoadedModel {
    /// Opens a GGUF file, a folder with one, a safetensors file, a model directory or, by its name, an embedded model; without a
    /// path, the first of these.
    ///
    /// # Errors
    /// With what is wrong with the file, and what to do where a wrong path is the likely reason.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        Self::open_as(path, LinearForm::default())
    }

    /// The same with quantised weights in that form.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(path: Option<&Path>, form: LinearForm) -> anyhow::Result<Self> {
        let start = Instant::now();
        let file = model_file(path)?;
        let file = file.with_linear_form(form).with_isa(Isa::from_env()?);
        let tokenizer = Tokenizer::from_model(&file)?;
        let mut progress = Progress::new("loading");
        let graph = Arc::new(Model::load_with(&file, |done, total| progress.update(done, total))?);
        Ok(Self { name: model_name(&file), graph, tokenizer, loading: start.elapsed() })
    }

    /// The tokens of `text` as a text to be continued, without the end of a text behind them.
    ///
    /// # Errors
    /// When the tokenizer fails, or the text has no tokens.
    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.checked(self.tokenizer.encode_beginning(text)?)
    }

    /// The same to be cut into windows, each of which begins as a text does.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_windows(&self, text: &str) -> anyhow::Result<WindowedText> {
        let (beginning, tokens) = (self.tokenizer.encode_beginning("")?, self.encode(text)?);
        let text = tokens.get(beginning.len()..).unwrap_or_default().to_vec();
        Ok(WindowedText::new(beginning, text))
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
        let template = ChatTemplate::new(source, &bos, &eos)?.with_strftime_now(strftime_now);
        let prompt = template.render(&[message], true)?;
        // The template has written the special tokens.
        self.checked(self.tokenizer.encode_prompt(&prompt, false)?)
    }

    /// Tokens of the windows that a text is cut into: those of `--context`, or 1024, or as many as the model takes. `least` is
    /// so many that some are beyond window and sinks.
    ///
    /// # Errors
    /// For a `--context` below `least` or above what the model takes, and for window and sinks that leave nothing of that.
    pub fn window_tokens(&self, context: Option<usize>, least: usize) -> anyhow::Result<usize> {
        let most = self.graph.config().context_length;
        let context = context.unwrap_or(most.min(1024));
        anyhow::ensure!(
            least <= most,
            "--window, --sinks: expected fewer keys than the model's context of {most} tokens, with something beyond them, got {}",
            least.saturating_sub(2)
        );
        anyhow::ensure!(
            (least..=most).contains(&context),
            "--context: expected {least} (window and sinks and something beyond) to {most} (the model's context), got {context}"
        );
        Ok(context)
    }

    fn checked(&self, tokens: Vec<u32>) -> anyhow::Result<Vec<u32>> {
        anyhow::ensure!(!tokens.is_empty(), "expected a text of at least one token, got an empty one");
        Ok(tokens)
    }
}

/// The time here and now in a format of C's `strftime`, as templates may ask for it. Of what is no such format, itself.
fn strftime_now(format: &str) -> String {
    let config = strtime::Config::new().lenient(true);
    let now = BrokenDownTime::from(&Zoned::now());
    now.to_string_with_config(&config, format).unwrap_or_else(|_| format.to_owned())
}

/// Opens the file of a model: see [`LoadedModel::open`].
///
/// # Errors
/// As there.
pub(crate) fn model_file(path: Option<&Path>) -> anyhow::Result<ModelFile> {
    let embedded = match path {
        Some(path) => EMBEDDED.iter().find(|(name, _)| path == Path::new(name) && !path.exists()),
        None => EMBEDDED.first(),
    };
    Ok(match (embedded, path) {
        (Some((name, bytes)), _) => ModelFile::from_gguf_bytes(name, *bytes)?,
        (None, path) => {
            let path = in_folder(path.unwrap_or(Path::new("")))?;
            ModelFile::open(&path).map_err(|error| with_advice(error, &path))?
        }
    })
}

/// The file's name without `.gguf`: what is inside often says less (not the quantisation, for one).
pub(crate) fn model_name(file: &ModelFile) -> String {
    let path = file.path();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

/// Only where the path itself is not there: other files are named by what asks for them.
fn with_advice(error: ModelError, path: &Path) -> anyhow::Error {
    match &error {
        ModelError::Io { file, .. } if file == path => anyhow::anyhow!(
            "--model {error}: expected a GGUF file, a model directory or an embedded model ({}); leave --model out for \
             the first of these, or run tools/fetch-smollm2",
            EMBEDDED.map(|(name, _)| name).join(", ")
        ),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_models_are_small_and_have_what_delta_attention_needs() {
        for (name, bytes) in EMBEDDED {
            assert!(bytes.len() <= 4 << 20, "{name}");
            let model = LoadedModel::open(Some(Path::new(name))).unwrap();
            let config = model.graph.config();
            assert!(config.layers >= 4 && config.kv_heads < config.heads && config.context_length >= 1024);
            assert_eq!(model.name, name);
        }
        assert_eq!(LoadedModel::open(None).unwrap().name, "fairy-tales");
    }

    #[test]
    fn templates_can_ask_for_the_time() {
        let day = strftime_now("%d %b %Y");
        assert!(day.len() == 11 && day.contains(" 20"), "{day}");
        // As C does it: what is unknown stays.
        assert_eq!(strftime_now("%! é"), "%! é");
        assert_eq!(strftime_now("%9999999d"), "%9999999d");
    }

    #[test]
    fn the_embedded_models_read_back_what_they_encode() {
        for (name, _) in EMBEDDED {
            let model = LoadedModel::open(Some(Path::new(name))).unwrap();
            let text = "“Wait,” said the fox; the naïve crow didn't. 🦊\n";
            assert_eq!(model.tokenizer.decode(&model.encode(text).unwrap()).unwrap(), text, "{name}");
            assert!(model.encode("").is_err());
        }
    }
}
