//! deltallm-attn
