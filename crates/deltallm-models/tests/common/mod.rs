//! What several test programs share.
#![allow(dead_code, reason = "each program uses some of it")]

pub(crate) mod files;
pub(crate) mod gguf_writer;
pub(crate) mod models;
