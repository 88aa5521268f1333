//! Chat templates: a conversation to the text a model was trained on.
//!
//! Templates are Jinja, come with the model, and are not trusted: their size, work, nesting and output are
//! limited. Names and white-space rules are those of `transformers`' `apply_chat_template`.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Deepest nesting of macros and loops.
const MAX_RECURSION: usize = 64;

const NAME: &str = "chat_template";

/// Why a chat template could not be read or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The source is longer than [`ChatTemplate::MAX_SOURCE_BYTES`].
    #[error("chat template: expected at most {limit} bytes of source, got {got}")]
    SourceTooLong {
        /// Bytes accepted.
        limit: usize,
        /// Bytes given.
        got: usize,
    },
    /// The source is not a template.
    #[error("chat template, line {line}: expected valid Jinja, got {detail}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        detail: String,
    },
    /// The template does not accept the conversation: it called `raise_exception`.
    #[error("chat template refuses the conversation: {message}")]
    Raised {
        /// The template's words.
        message: String,
    },
    /// The template does more than [`ChatTemplate::MAX_INSTRUCTIONS`] instructions.
    #[error("chat template: expected at most {limit} instructions, got more")]
    OutOfFuel {
        /// Instructions allowed.
        limit: u64,
    },
    /// The template writes more than [`ChatTemplate::MAX_OUTPUT_BYTES`].
    #[error("chat template: expected at most {limit} bytes of output, got more")]
    OutputTooLong {
        /// Bytes allowed.
        limit: usize,
    },
    /// Any other failure while rendering.
    #[error("chat template, line {line}: {detail}")]
    Render {
        /// Line, from 1; 0 where it is not known.
        line: usize,
        /// What failed.
        detail: String,
    },
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text. See [`Tokenizer::escape`](crate::Tokenizer::escape) for text of others.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// A compiled chat template.
///
/// ```
/// use deltallm_models::{ChatMessage, ChatTemplate};
///
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}";
/// let template = ChatTemplate::new(source, "", "<end>")?;
/// let prompt = template.render(&[ChatMessage::new("user", "Hello")], false)?;
/// assert_eq!(prompt, "<user>Hello<end>");
/// # Ok::<(), deltallm_models::ChatError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Longest template source, in bytes. Published ones have less than 20 kB.
    pub const MAX_SOURCE_BYTES: usize = 256 << 10;
    /// Most Jinja instructions for one rendering.
    pub const MAX_INSTRUCTIONS: u64 = 2_000_000;
    /// Longest rendered conversation, in bytes.
    pub const MAX_OUTPUT_BYTES: usize = 16 << 20;

    /// Compiles `source`; `bos` and `eos` are the texts of those tokens, empty where there is none.
    ///
    /// # Errors
    /// [`ChatError::SourceTooLong`] or [`ChatError::Syntax`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        if source.len() > ChatTemplate::MAX_SOURCE_BYTES {
            return Err(ChatError::SourceTooLong {
                limit: ChatTemplate::MAX_SOURCE_BYTES,
                got: source.len(),
            });
        }
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_fuel(Some(ChatTemplate::MAX_INSTRUCTIONS));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| ChatError::Syntax { line: error.line().unwrap_or(0), detail: detail(&error) })?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Gives templates the time of day: `strftime_now(format)`, with the format of C's `strftime`. Without
    /// it, templates that ask whether the function is there use a date of their own.
    #[must_use]
    pub fn with_strftime_now(mut self, now: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| now(format));
        self
    }

    /// Renders `messages`; `add_generation_prompt` ends with what comes before an answer.
    ///
    /// # Errors
    /// [`ChatError::Raised`] if the template does not accept the conversation, [`ChatError::OutOfFuel`] or
    /// [`ChatError::OutputTooLong`] if it does too much, and [`ChatError::Render`] for other failures.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ChatError> {
        let context = context! {
            messages => messages.iter().map(ChatMessage::value).collect::<Value>(),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        let mut output = Output::default();
        let template = self.environment.get_template(NAME).map_err(|error| render_error(&error))?;
        let rendered = template.render_captured_to(context, &mut output).map(drop);
        if output.overflowed {
            return Err(ChatError::OutputTooLong { limit: ChatTemplate::MAX_OUTPUT_BYTES });
        }
        rendered.map_err(|error| render_error(&error))?;
        String::from_utf8(output.bytes)
            .map_err(|error| ChatError::Render { line: 0, detail: error.to_string() })
    }
}

/// Collects what is written, up to [`ChatTemplate::MAX_OUTPUT_BYTES`].
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > ChatTemplate::MAX_OUTPUT_BYTES {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// White space as in `transformers`: the line end after a block and the indentation before it are not output.
fn syntax() -> Result<SyntaxConfig, ChatError> {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|error| ChatError::Syntax { line: 0, detail: detail(&error) })
}

/// What a template said through `raise_exception`, carried through minijinja as the source of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

/// The error that matters may be below those of the macros and blocks it happened in.
fn render_error(error: &minijinja::Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return ChatError::Raised { message: message.clone() };
        }
        let inner = error.downcast_ref::<minijinja::Error>();
        if inner.is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return ChatError::OutOfFuel { limit: ChatTemplate::MAX_INSTRUCTIONS };
        }
        cause = error.source();
    }
    ChatError::Render { line: error.line().unwrap_or(0), detail: detail(error) }
}

fn detail(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it: no HTML escapes, a
/// space after separators.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonFormatter)),
    };
    written.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    String::from_utf8(bytes)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python's default separators, `", "` and `": "`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
