//! What can go wrong with a chat template.

use std::io;

use deltallm_core::internal::message as escaped;
use minijinja::ErrorKind;

/// Longest text of a template in an error, in characters.
const MAX_QUOTED: usize = 1000;

/// Why a chat template could not be read or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The source is longer than [`ChatTemplate::MAX_SOURCE_BYTES`](crate::ChatTemplate::MAX_SOURCE_BYTES).
    #[error("chat template: expected at most {limit} bytes of source, got {got}")]
    SourceTooLong {
        /// Bytes accepted.
        limit: usize,
        /// Bytes given.
        got: usize,
    },
    /// A tag or an expression has too many words and signs.
    #[error("chat template, line {line}: expected at most {limit} words and signs in a tag, got {got}")]
    TagTooLong {
        /// Line, from 1.
        line: usize,
        /// Words and signs accepted.
        limit: usize,
        /// Words and signs there.
        got: usize,
    },
    /// The template has too many `elif`.
    #[error("chat template, line {line}: expected at most {limit} `elif`, got more")]
    TooManyBranches {
        /// Line of the first one too many, from 1.
        line: usize,
        /// Branches accepted.
        limit: usize,
    },
    /// The source is not a template.
    #[error("chat template, line {line}: expected valid Jinja, got {}", escaped(detail))]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        detail: String,
    },
    /// The template does not accept the conversation: it called `raise_exception`.
    #[error("chat template refuses the conversation: {}", escaped(message))]
    Raised {
        /// The template's words, cut after 1000 characters.
        message: String,
    },
    /// The template does more than the conversation is worth: see
    /// [`ChatTemplate::MAX_INSTRUCTIONS`](crate::ChatTemplate::MAX_INSTRUCTIONS).
    #[error("chat template: expected at most {limit} instructions for this conversation, got more")]
    OutOfFuel {
        /// Instructions allowed.
        limit: u64,
    },
    /// The template writes more than the conversation is worth: see
    /// [`ChatTemplate::MAX_OUTPUT_BYTES`](crate::ChatTemplate::MAX_OUTPUT_BYTES).
    #[error("chat template: expected at most {limit} bytes of output for this conversation, got more")]
    OutputTooLong {
        /// Bytes allowed.
        limit: usize,
    },
    /// Any other failure while rendering.
    #[error("chat template, line {line}: {}", escaped(detail))]
    Render {
        /// Line, from 1; 0 where it is not known.
        line: usize,
        /// What failed.
        detail: String,
    },
    /// The thread on which templates run could not be started.
    #[error("chat template: expected a thread with {stack} bytes of stack; allow this process more memory")]
    Thread {
        /// The stack that the thread was to have, in bytes.
        stack: usize,
        /// What the system says.
        source: io::Error,
    },
}

impl ChatError {
    /// The source is not a template.
    pub(super) fn syntax(error: &minijinja::Error) -> Self {
        Self::Syntax { line: error.line().unwrap_or(0), detail: detail(error) }
    }

    /// A failure while rendering with `limit` instructions. What matters may be below the errors of the macros
    /// and blocks it happened in.
    pub(super) fn render(error: &minijinja::Error, limit: u64) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Raised(message)) = error.downcast_ref() {
                return Self::Raised { message: message.clone() };
            }
            let inner = error.downcast_ref::<minijinja::Error>();
            if inner.is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
                return Self::OutOfFuel { limit };
            }
            cause = error.source();
        }
        Self::Render { line: error.line().unwrap_or(0), detail: detail(error) }
    }
}

/// What a template said through `raise_exception`, carried through minijinja as the source of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(String);

impl Raised {
    pub(super) fn new(message: &str) -> Self {
        Self(cut(message))
    }
}

fn detail(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => cut(&format!("{}: {detail}", error.kind())),
        None => error.kind().to_string(),
    }
}

/// Templates choose how long their texts are.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
