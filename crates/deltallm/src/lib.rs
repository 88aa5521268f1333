//! deltallm
