//! Chat templates: a conversation to the text a model was trained on.
//!
//! Templates are Jinja, come with the model, and are not trusted: their size, depth, work and output are limited. Names and
//! white-space rules are those of `transformers`' `apply_chat_template`.

mod builtins;
mod cost;
mod environment;
mod error;
mod json;
mod operands;
mod source;
mod words;
mod written;

use std::{io, thread};

use minijinja::{Environment, State, Value, context};

pub use error::ChatError;

const NAME: &str = "chat_template";

/// A text that templates do not change, in the message that shows which form of messages one takes.
const PROBE: &str = "2718281828459045";

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

    fn value(&self, content: Content) -> Value {
        let text = Value::from(self.content.as_str());
        let content = match content {
            Content::Text => text,
            Content::Parts => Value::from(vec![Value::from_pairs([("type", "text".into()), ("text", text)])]),
        };
        Value::from_pairs([("role", Value::from(self.role.as_str())), ("content", content)])
    }
}

/// How a template takes the content of messages.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// As a string.
    Text,
    /// As a list of parts, as models that take images have it: `[{"type": "text", "text": …}]`.
    Parts,
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
    /// Most Jinja instructions for one rendering, where 64 bytes of text that is made or two items of a list
    /// count as one. A conversation has 50 000, 1000 more for each message and one for each 4 bytes of it, up to
    /// this.
    pub const MAX_INSTRUCTIONS: u64 = 2_000_000;
    /// Longest rendered conversation, in bytes. A conversation has 256 KiB, and 4 for each byte of it, up to
    /// this.
    pub const MAX_OUTPUT_BYTES: usize = 16 << 20;

    /// Compiles `source`; `bos` and `eos` are the texts of those tokens, empty where there is none.
    ///
    /// # Errors
    /// [`ChatError::SourceTooLong`], [`ChatError::TagTooLong`], [`ChatError::TooManyBranches`] or
    /// [`ChatError::Syntax`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        if source.len() > ChatTemplate::MAX_SOURCE_BYTES {
            return Err(ChatError::SourceTooLong {
                limit: ChatTemplate::MAX_SOURCE_BYTES,
                got: source.len(),
            });
        }
        let source = source::prepare(source)?;
        let environment = on_own_stack(0, || {
            let mut environment = environment::environment()?;
            environment.add_template_owned(NAME, source).map_err(|error| ChatError::syntax(&error))?;
            Ok(environment)
        })?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Gives templates the time of day: `strftime_now(format)`, with the format of C's `strftime`. Without
    /// it, templates that ask whether the function is there use a date of their own.
    #[must_use]
    pub fn with_strftime_now(mut self, now: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let counted = move |state: &State, format: &str| {
            let text = now(format);
            // As other functions that write text.
            state.consume_fuel(1 + (format.len() + text.len()) as u64 / 64).map(|()| text)
        };
        self.environment.add_function("strftime_now", counted);
        self
    }

    /// Renders `messages`; `add_generation_prompt` ends with what comes before an answer.
    ///
    /// A template that leaves out the text of a message, but not that of a list of parts
    /// (`[{"type": "text", "text": …}]`), gets such lists.
    ///
    /// # Errors
    /// [`ChatError::Raised`] if the template does not accept the conversation, [`ChatError::OutOfFuel`] or
    /// [`ChatError::OutputTooLong`] if it does too much, [`ChatError::Thread`] without memory for a thread, and
    /// [`ChatError::Render`] for other failures.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ChatError> {
        let content = self.content()?;
        self.render_as(content, messages, add_generation_prompt)
    }

    fn content(&self) -> Result<Content, ChatError> {
        let probe = [ChatMessage::new("user", PROBE)];
        let shown = |content| match self.render_as(content, &probe, false) {
            Ok(prompt) => Ok(prompt.contains(PROBE)),
            // It may ask for other messages.
            Err(ChatError::Raised { .. } | ChatError::Render { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        Ok(if !shown(Content::Text)? && shown(Content::Parts)? { Content::Parts } else { Content::Text })
    }

    fn render_as(
        &self,
        content: Content,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let limits = Limits::of(messages);
        let mut output = Output { bytes: Vec::new(), limit: limits.output, overflowed: false };
        let rendered = on_own_stack(limits.instructions, || {
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(limits.instructions));
            let context = context! {
                messages => messages.iter().map(|message| message.value(content)).collect::<Value>(),
                add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                tools => (),
                documents => (),
            };
            let template = environment.get_template(NAME);
            let rendered =
                template.and_then(|template| template.render_captured_to(context, &mut output).map(drop));
            rendered.map_err(|error| ChatError::render(&error, limits.instructions))
        });
        if output.overflowed {
            return Err(ChatError::OutputTooLong { limit: limits.output });
        }
        rendered?;
        String::from_utf8(output.bytes)
            .map_err(|error| ChatError::Render { line: 0, detail: error.to_string() })
    }
}

/// What a rendering may take: plenty for published templates, and so little that a hostile one ends soon.
struct Limits {
    instructions: u64,
    output: usize,
}

impl Limits {
    fn of(messages: &[ChatMessage]) -> Self {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let instructions = 50_000 + 1000 * messages.len() as u64 + bytes as u64 / 4;
        let output = (256 << 10) + 4 * bytes;
        Self {
            instructions: instructions.min(ChatTemplate::MAX_INSTRUCTIONS),
            output: output.min(ChatTemplate::MAX_OUTPUT_BYTES),
        }
    }
}

/// Collects what is written, up to a limit.
struct Output {
    bytes: Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
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

/// Runs `work` on a thread of its own: a template decides how deep the compiler, the interpreter and the lists in it go, and
/// the stack of the caller's thread may be small. An instruction takes a value one level deeper at most. What is not used of
/// a stack takes no memory.
fn on_own_stack<T: Send>(
    instructions: u64,
    work: impl FnOnce() -> Result<T, ChatError> + Send,
) -> Result<T, ChatError> {
    const BASE: usize = 32 << 20;
    const LEVEL: usize = 1 << 10;
    let stack = BASE + LEVEL * instructions as usize;
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("chat template".into()).stack_size(stack);
        let thread =
            builder.spawn_scoped(scope, work).map_err(|source| ChatError::Thread { stack, source })?;
        // minijinja panics over some templates, such as those that cycle through nothing.
        thread.join().unwrap_or_else(|_| {
            Err(ChatError::Render { line: 0, detail: "the interpreter of templates failed".to_owned() })
        })
    })
}
