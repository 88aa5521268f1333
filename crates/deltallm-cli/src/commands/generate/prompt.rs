//! What the model is to continue.

use super::args::Args;
use crate::LoadedModel;

/// Continued where nothing else is asked for: the beginning of a tale by the brothers Grimm, long enough that attention matters.
const TALE: &str = include_str!("../../../assets/golden-bird.txt");
const DEFAULT_PROMPT: &str = "Once upon a time there was";
const DEFAULT_QUESTION: &str = "Tell me a short story about a fox and a river.";
/// What the model is to continue.
pub(super) struct Prompt {
    pub(super) tokens: Vec<u32>,
    /// Shown before the continuation; a question is not, of a tale the last paragraph.
    pub(super) shown: Option<String>,
}

impl Prompt {
    pub(super) fn new(args: &Args, model: &LoadedModel) -> anyhow::Result<Self> {
        if args.demonstrates() {
            let last = TALE.lines().last().unwrap_or_default();
            return Ok(Self { tokens: model.encode(TALE)?, shown: Some(format!("[…]\n{last}\n")) });
        }
        let default = if args.chat { DEFAULT_QUESTION } else { DEFAULT_PROMPT };
        let text = args.prompt.as_deref().unwrap_or(default);
        anyhow::ensure!(
            !text.is_empty(),
            "--prompt: expected a text of at least one token, got an empty one"
        );
        Ok(match args.chat {
            true => Self { tokens: model.encode_chat(text)?, shown: None },
            false => Self { tokens: model.encode(text)?, shown: Some(text.to_owned()) },
        })
    }
}
