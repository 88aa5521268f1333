//! Sessions: a [`sequence`] of tokens with its caches, how it is read [`ahead`] of what is known, what it does when [`memory`] ends, how it is
//! [`saved`], and prompts that have been read, in memory ([`prefix_store`]) and in a folder ([`prompt_cache`]).

mod ahead;
mod guesses;
mod lookup;
mod memory;
mod prefix_store;
mod prompt_cache;
mod prompted;
mod saved;
mod sequence;

pub use guesses::Guesses;
pub use lookup::PromptLookup;
pub use prefix_store::PrefixStore;
pub use prompt_cache::PromptCache;
pub use prompted::Prompted;
pub use sequence::{Narrowed, Session};
