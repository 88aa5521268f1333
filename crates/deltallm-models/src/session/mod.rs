//! Sessions: a [`sequence`] of tokens with its caches, speculative decoding ([`speculative`]) with drafts from the text itself ([`lookup`]), what
//! happens when [`memory`] ends, how a session is [`saved`], and prompts that have been read, in memory ([`prefix_store`]) and in a folder
//! ([`prompt_cache`]).

mod draft;
mod lookup;
mod memory;
mod prefix_store;
mod prompt_cache;
mod prompted;
mod saved;
mod sequence;
mod speculative;

pub use draft::SpeculationStats;
pub use lookup::PromptLookup;
pub use prefix_store::PrefixStore;
pub use prompt_cache::PromptCache;
pub use prompted::Prompted;
pub use sequence::{Narrowed, Session};
