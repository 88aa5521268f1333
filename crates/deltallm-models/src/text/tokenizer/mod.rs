//! Text to token ids and back.
//!
//! [`Tokenizer::from_gguf_vocabulary`] builds one from GGUF metadata and [`Tokenizer::from_json_file`] from a
//! `tokenizer.json`. Splitting and merging are those of the `tokenizers` crate; special tokens and decoding
//! are done here, so that plain text cannot make control tokens and a stream of tokens can be decoded without
//! going back.

mod beside;
mod bpe;
mod byte_level;
mod components;
mod cuts;
mod decoder;
mod encoding;
mod error;
mod expression;
mod from_gguf;
mod from_json;
mod from_model;
mod normalizer;
mod pieces;
mod post_processor;
mod pre_tokenizer;
mod sentencepiece;
mod special;
mod split;
mod stream;
mod turn_ends;
mod vocabulary;

pub use encoding::Tokenizer;
pub use error::TokenizerError;
pub use stream::StreamDecoder;
pub use vocabulary::GgufVocabulary;
