//! Sessions: a [`sequence`] of tokens with its caches, how it is [`saved`], and a folder of prompts that have been read ([`prompt_cache`]).

mod prompt_cache;
mod saved;
mod sequence;

pub use prompt_cache::{PromptCache, Prompted};
pub use sequence::{Narrowed, Session};
