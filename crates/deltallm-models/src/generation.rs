//! Continuing a session, token by token, with the text that the tokens spell.

use std::iter::FusedIterator;

use ndarray::Array1;

use crate::{
    ModelError, PromptLookup, Sampler, SamplingError, Session, StreamDecoder, Tokenizer, TokenizerError,
};

/// Why a session could not be continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// The model did not take the last token, for want of memory for one.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No token could be chosen from the logits.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer does not know the token that was chosen: it is another model's.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl GenerationError {
    /// Whether the memory budget is what stopped the model: more of it, or fewer tokens, would help.
    pub fn is_budget_exhausted(&self) -> bool {
        matches!(self, Self::Model(error) if error.is_budget_exhausted())
    }
}

/// A new token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generated {
    /// Its id.
    pub token: u32,
    /// The text that it completes: nothing for a control token, or while the bytes of a character are still to come; otherwise
    /// whole characters.
    pub text: String,
}

/// Why there are no more tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model has ended the text: the last token is one of [`Tokenizer::eos_ids`].
    EndOfText,
    /// The model has no further positions.
    ContextFull,
}

/// A session being continued: an iterator of its new tokens, made by [`Session::generate`].
///
/// It ends after a token that ends the text, when the context is full, or after an error; `take(n)` ends it earlier. The model
/// reads a token when the one after it is asked for, so the last one is not in the session's caches: to go on later, begin the
/// next prompt with it.
///
/// Text comes in whole characters. What [`finish`](Self::finish) answers is all of it.
///
/// ```
/// use deltallm_attn::KernelSpec;
/// use deltallm_models::{Model, ModelFile, Sampler, SamplerConfig, Session, Tokenizer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = "../deltallm-cli/assets/fairy-tales.gguf";
/// let file = ModelFile::open(path)?;
/// let tokenizer = Tokenizer::from_model(&file)?;
/// let mut session = Session::with_spec(Model::load(&file)?, &KernelSpec::default())?;
///
/// let logits = session.prefill(&tokenizer.encode_beginning("Once upon a time there was")?)?;
/// let mut sampler = Sampler::new(SamplerConfig::default().with_temperature(0.7))?;
/// let mut generation = session.generate(logits, &tokenizer, &mut sampler);
/// for generated in generation.by_ref().take(20) {
///     print!("{}", generated?.text);
/// }
/// assert_eq!(generation.tokens().len(), 20);
/// let text = generation.finish();
/// assert!(text.starts_with(' '), "it goes on in the middle of a sentence");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Generation<'s> {
    session: &'s mut Session,
    tokenizer: &'s Tokenizer,
    sampler: &'s mut Sampler,
    decoder: StreamDecoder<'s>,
    lookup: Option<PromptLookup>,
    next: Next,
    tokens: Vec<u32>,
    text: String,
}

/// What comes before the next token.
#[derive(Debug)]
enum Next {
    /// These logits are there.
    Choose(Array1<f32>),
    /// The model has to read this token.
    Read(u32),
    /// Nothing: it has ended, or failed.
    Stop(Option<StopReason>),
}

impl Session {
    /// Continues the tokens so far. `logits` are those after the last one, as [`prefill`](Self::prefill) and
    /// [`decode`](Self::decode) answer them; all tokens of the session count for the sampler's repetition penalty.
    ///
    /// The text goes on in the middle of the prompt's, unless [`Generation::as_answer`] says otherwise.
    pub fn generate<'s>(
        &'s mut self,
        logits: Array1<f32>,
        tokenizer: &'s Tokenizer,
        sampler: &'s mut Sampler,
    ) -> Generation<'s> {
        Generation {
            session: self,
            tokenizer,
            sampler,
            decoder: StreamDecoder::continuing(tokenizer),
            lookup: None,
            next: Next::Choose(logits),
            tokens: Vec::new(),
            text: String::new(),
        }
    }
}

impl Generation<'_> {
    /// The same as a text of its own, such as an answer in a chat: without the space that some tokenizers put in front of a
    /// text. Said before the first token.
    #[must_use]
    pub fn as_answer(self) -> Self {
        Self { decoder: StreamDecoder::new(self.tokenizer), ..self }
    }

    /// The same tokens, faster where the text repeats what has been there before, as summaries and edits do:
    /// [speculative decoding](Session::decode_speculative) with drafts that are looked up there.
    #[must_use]
    pub fn with_lookup(self, lookup: PromptLookup) -> Self {
        Self { lookup: Some(lookup), ..self }
    }

    /// The new tokens so far, the one that ended the text included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Their text so far, in whole characters.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text of all new tokens: [`text`](Self::text), and one replacement character if it breaks off within a character.
    pub fn finish(self) -> String {
        let Self { mut text, decoder, .. } = self;
        text.extend(decoder.finish());
        text
    }

    /// Why it has ended; `None` before that, and after an error.
    pub fn stop_reason(&self) -> Option<StopReason> {
        match self.next {
            Next::Stop(reason) => reason,
            _ => None,
        }
    }

    /// The session as it is now.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// Reads the next token.
    fn read(&mut self, token: u32) -> Result<Array1<f32>, ModelError> {
        match &self.lookup {
            Some(lookup) => self.session.decode_speculative(token, |tokens| lookup.draft(tokens).to_vec()),
            None => self.session.decode(token),
        }
    }

    /// Chooses a token from logits.
    fn choose(&mut self, logits: &Array1<f32>) -> Result<Generated, GenerationError> {
        // Logits of a view with strides are copied; those of a session are contiguous.
        let logits = logits.as_standard_layout();
        let token =
            self.sampler.sample_after(logits.as_slice().unwrap_or_default(), self.session.tokens())?;
        if self.tokenizer.eos_ids().contains(&token) {
            self.next = Next::Stop(Some(StopReason::EndOfText));
            self.tokens.push(token);
            return Ok(Generated { token, text: String::new() });
        }
        let text = self.decoder.push(token)?.unwrap_or_default();
        self.text.push_str(&text);
        self.tokens.push(token);
        self.next = Next::Read(token);
        Ok(Generated { token, text })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Generated, GenerationError>;

    fn next(&mut self) -> Option<Self::Item> {
        let logits = match std::mem::replace(&mut self.next, Next::Stop(None)) {
            Next::Choose(logits) => logits,
            Next::Read(_) if self.session.tokens().len() >= self.session.model().config().context_length => {
                self.next = Next::Stop(Some(StopReason::ContextFull));
                return None;
            }
            Next::Read(token) => match self.read(token) {
                Ok(logits) => logits,
                Err(error) => return Some(Err(error.into())),
            },
            stop @ Next::Stop(_) => {
                self.next = stop;
                return None;
            }
        };
        Some(self.choose(&logits))
    }
}

impl FusedIterator for Generation<'_> {}
