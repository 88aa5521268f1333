//! Text around a model: token ids, conversations, and the choice of the next token.

pub(crate) mod chat;
pub(crate) mod sampling;
pub(crate) mod tokenizer;
