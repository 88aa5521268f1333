//! Several tokens, attended as decoding attends them.

use deltallm_core::ElementType;

use crate::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut};

/// [`AttentionKernel::forward_heads`] token by token: every query decides alone what to skip, and windows slide after each. So the results are
/// those of decoding, bit for bit, while the rest of a model goes through all tokens at once.
///
/// ```
/// use deltallm_attn::{AttentionKernel, AttentionShape, HeadsView, HeadsViewMut, HybridAttention, HybridConfig, forward_one_by_one};
///
/// let mut attention = HybridAttention::new(AttentionShape::new(2, 1, 8)?, HybridConfig::default())?;
/// let (q, k, mut out) = ([1.0; 3 * 16], [1.0; 3 * 8], [0.0; 3 * 16]);
/// let (q, k) = (HeadsView::new(&q, [3, 2, 8])?, HeadsView::new(&k, [3, 1, 8])?);
/// forward_one_by_one(&mut attention, q, k, k, HeadsViewMut::new(&mut out, [3, 2, 8])?)?;
/// assert_eq!(attention.len(), 3);
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
///
/// # Errors
/// As [`AttentionKernel::forward_heads`]; the cache then holds the tokens it held before. Only where memory ends, or a number does not fit the store, and a
/// [mask](crate::Mask) has let go of tokens that these need by then, do those stay that went well; in a [step](AttentionKernel::begin_step) none does.
pub fn forward_one_by_one(
    kernel: &mut (impl AttentionKernel + ?Sized),
    q: HeadsView,
    k: HeadsView,
    v: HeadsView,
    mut out: HeadsViewMut,
) -> Result<(), AttentionError> {
    let (tokens, before) = (q.tokens(), kernel.len());
    if [k.tokens(), v.tokens(), out.shape()[0]] != [tokens; 3] {
        return kernel.forward_heads(q, k, v, out); // which says what is wrong
    }
    // Before anything is let go of: a kernel whose window moves on cannot come back from far ahead.
    for (input, view) in [("q", &q), ("k", &k), ("v", &v)] {
        view.check(input, [tokens, view.heads(), view.head_dim()], ElementType::F32)?;
    }
    let result = (0..tokens).try_for_each(|token| {
        let token = token..token + 1;
        let [q, k, v] = [&q, &k, &v].map(|view| view.slice(token.clone()));
        kernel.forward_heads(q?, k?, v?, out.slice(token)?)
    });
    if result.is_err() && kernel.check_truncate(before).is_ok() {
        // What fails here is less than what has failed before.
        let _ = kernel.truncate(before);
    }
    result
}
