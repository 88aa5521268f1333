//! Head counts and sizes of one attention layer.

use deltallm_core::{ElementType, internal::LAYER_CHANNELS};

use crate::{AttentionError, HeadsView, HeadsViewMut};

/// Most heads, and most channels of a head.
const MOST: usize = 1 << 16;

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
    value_dim: usize,
}

impl AttentionShape {
    /// `heads` query heads sharing `kv_heads` key-value heads, all of `head_dim` channels.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] when a size is zero, `kv_heads` does not divide `heads`, or a size is beyond what kernels keep a
    /// row of state for: 65536 heads, 65536 channels of a head, and 1048576 channels of all query heads.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Result<Self, AttentionError> {
        check_size("heads", "heads (at most)", heads)?;
        check_size("kv_heads", "kv_heads (at most)", kv_heads)?;
        check_size("head_dim", "head_dim (at most)", head_dim)?;
        check_width("heads * head_dim (at most)", heads, head_dim)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(wrong("heads (a multiple of kv_heads)", heads.next_multiple_of(kv_heads), heads));
        }
        Ok(Self { heads, kv_heads, head_dim, value_dim: head_dim })
    }

    /// The same with values of another width than keys, as in multi-head latent attention (DeepSeek-V2: keys of 192 channels and values
    /// of 128, or 576 and 512 of what they are made of). Outputs have it too.
    ///
    /// ```
    /// use deltallm_attn::AttentionShape;
    ///
    /// let shape = AttentionShape::new(16, 1, 576)?.with_value_dim(512)?;
    /// assert_eq!((shape.head_dim(), shape.value_dim()), (576, 512));
    /// # Ok::<(), deltallm_attn::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// [`AttentionError::Shape`] for a size of zero or beyond the same limits.
    pub fn with_value_dim(self, value_dim: usize) -> Result<Self, AttentionError> {
        check_size("value_dim", "value_dim (at most)", value_dim)?;
        check_width("heads * value_dim (at most)", self.heads, value_dim)?;
        Ok(Self { value_dim, ..self })
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Channels of a head's queries and keys.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Channels of a head's values and outputs.
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// Query heads per kv head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// What every kernel checks before it touches its cache: that the arguments of
    /// [`forward_heads`](crate::AttentionKernel::forward_heads) are of this shape and finite, and that there is at least one query
    /// and at least as many keys. Returns how many keys come before the first query's: the queries are those of the last tokens.
    ///
    /// ```
    /// use deltallm_attn::{AttentionShape, HeadsView, HeadsViewMut};
    ///
    /// let shape = AttentionShape::new(4, 2, 8)?;
    /// let (q, k, mut out) = ([0.1; 3 * 4 * 8], [0.2; 5 * 2 * 8], [0.0; 3 * 4 * 8]);
    /// let (q, out) = (HeadsView::new(&q, [3, 4, 8])?, HeadsViewMut::new(&mut out, [3, 4, 8])?);
    /// let k = HeadsView::new(&k, [5, 2, 8])?;
    /// assert_eq!(shape.check_call(&q, &k, &k, &out)?, 2);
    /// let k = k.slice(0..2)?;
    /// let error = shape.check_call(&q, &k, &k, &out).unwrap_err();
    /// assert_eq!(error.to_string(), "k: expected tokens (at least those of q) = 3, got 2");
    /// # Ok::<(), deltallm_attn::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// [`AttentionError::Shape`], [`AttentionError::NotFinite`].
    pub fn check_call(
        &self,
        q: &HeadsView,
        k: &HeadsView,
        v: &HeadsView,
        out: &HeadsViewMut,
    ) -> Result<usize, AttentionError> {
        let first = self.check_call_for([ElementType::F32; 2], q, k, v, out)?;
        first.ok_or_else(|| too_few_keys(q, k))
    }

    /// The same for a cache whose keys and values must fit these types. Later steps do not check it again. `None` where there are no
    /// keys: the queries are those of tokens that came before.
    ///
    /// # Errors
    /// As above, and [`CoreError::NotStorable`](deltallm_core::CoreError::NotStorable).
    pub(crate) fn check_call_for(
        &self,
        [keys, values]: [ElementType; 2],
        q: &HeadsView,
        k: &HeadsView,
        v: &HeadsView,
        out: &HeadsViewMut,
    ) -> Result<Option<usize>, AttentionError> {
        if q.tokens() == 0 {
            return Err(AttentionError::Shape { input: "q", dimension: "tokens", expected: 1, got: 0 });
        }
        q.check("q", [q.tokens(), self.heads, self.head_dim], ElementType::F32)?;
        k.check("k", [k.tokens(), self.kv_heads, self.head_dim], keys)?;
        v.check("v", [k.tokens(), self.kv_heads, self.value_dim], values)?;
        out.check(q.tokens(), self.heads, self.value_dim)?;
        match k.tokens().checked_sub(q.tokens()) {
            None if k.tokens() > 0 => Err(too_few_keys(q, k)),
            before => Ok(before),
        }
    }
}

fn wrong(dimension: &'static str, expected: usize, got: usize) -> AttentionError {
    AttentionError::Shape { input: "shape", dimension, expected, got }
}

fn check_size(dimension: &'static str, most: &'static str, size: usize) -> Result<(), AttentionError> {
    match size {
        0 => Err(wrong(dimension, 1, 0)),
        _ if size > MOST => Err(wrong(most, MOST, size)),
        _ => Ok(()),
    }
}

fn check_width(dimension: &'static str, heads: usize, channels: usize) -> Result<(), AttentionError> {
    match heads.saturating_mul(channels) {
        width if width > LAYER_CHANNELS => Err(wrong(dimension, LAYER_CHANNELS, width)),
        _ => Ok(()),
    }
}

fn too_few_keys(q: &HeadsView, k: &HeadsView) -> AttentionError {
    let (expected, got) = (q.tokens(), k.tokens());
    AttentionError::Shape { input: "k", dimension: "tokens (at least those of q)", expected, got }
}
