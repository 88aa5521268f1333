//! Head counts and sizes of one attention layer.

use crate::AttentionError;

/// Heads of one layer. Query head `h` reads kv head `h / (heads / kv_heads)` (grouped-query attention).
///
/// ```
/// use deltallm_attn::AttentionShape;
///
/// let shape = AttentionShape::new(9, 3, 64)?;
/// assert_eq!(shape.group(), 3); // query heads 0 to 2 read kv head 0
/// assert!(AttentionShape::new(9, 2, 64).is_err());
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl AttentionShape {
    /// `heads` query heads sharing `kv_heads` key-value heads, all of `head_dim` channels.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] when a size is zero or `kv_heads` does not divide `heads`.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Result<Self, AttentionError> {
        let shape =
            |dimension, expected, got| AttentionError::Shape { input: "shape", dimension, expected, got };
        for (dimension, size) in [("heads", heads), ("kv_heads", kv_heads), ("head_dim", head_dim)] {
            if size == 0 {
                return Err(shape(dimension, 1, 0));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(shape("heads (a multiple of kv_heads)", heads.next_multiple_of(kv_heads), heads));
        }
        Ok(Self { heads, kv_heads, head_dim })
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Query heads per kv head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}
