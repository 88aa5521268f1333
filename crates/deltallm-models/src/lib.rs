//! deltallm-models
