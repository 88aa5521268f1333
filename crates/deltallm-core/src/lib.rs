//! deltallm-core
