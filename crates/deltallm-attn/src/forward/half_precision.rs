//! Queries, keys, values and results in 16 bits.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut};

/// A float of 16 bits: `f16` or `bf16` of the crate `half`.
pub trait Half: sealed::Sealed + Copy {
    /// As f32, exactly.
    #[doc(hidden)]
    fn widen(numbers: &[Self], out: &mut [f32]);

    /// Rounded to the nearest.
    #[doc(hidden)]
    fn round(numbers: &[f32], out: &mut [Self]);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Half for f16 {
    fn widen(numbers: &[Self], out: &mut [f32]) {
        numbers.convert_to_f32_slice(out);
    }

    fn round(numbers: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(numbers);
    }
}

impl Half for bf16 {
    fn widen(numbers: &[Self], out: &mut [f32]) {
        numbers.convert_to_f32_slice(out);
    }

    fn round(numbers: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(numbers);
    }
}

/// [`AttentionKernel::forward_heads`] for an engine whose numbers are f16 or bf16. Arithmetic is that of the kernel; results are rounded
/// to the nearest.
///
/// ```
/// use deltallm_attn::{AttentionOptions, AttentionShape, DenseAttention, HeadsView, HeadsViewMut, forward_half};
/// use half::bf16;
///
/// let mut attention = DenseAttention::new(AttentionShape::new(2, 1, 8)?, AttentionOptions::default())?;
/// let (q, k, v) = ([bf16::ONE; 3 * 16], [bf16::ONE; 3 * 8], [bf16::from_f32(3.0); 3 * 8]);
/// let mut out = [bf16::ZERO; 3 * 16];
/// let (q, k, v) = (HeadsView::new(&q, [3, 2, 8])?, HeadsView::new(&k, [3, 1, 8])?, HeadsView::new(&v, [3, 1, 8])?);
/// forward_half(&mut attention, q, k, v, HeadsViewMut::new(&mut out, [3, 2, 8])?)?;
/// assert_eq!(out[0], bf16::from_f32(3.0));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
///
/// # Errors
/// As [`AttentionKernel::forward_heads`], and [`AttentionError::Shape`] for inputs whose rows share numbers.
pub fn forward_half<T: Half>(
    kernel: &mut (impl AttentionKernel + ?Sized),
    q: HeadsView<T>,
    k: HeadsView<T>,
    v: HeadsView<T>,
    mut out: HeadsViewMut<T>,
) -> Result<(), AttentionError> {
    // Rows that lie over each other may stand for more numbers than there is memory for.
    for (input, view) in [("q", &q), ("k", &k), ("v", &v)] {
        view.check_apart(input)?;
    }
    let ([q, k, v], shape) = ([widened(q), widened(k), widened(v)], out.shape());
    let [q, k, v] = [&q, &k, &v].map(|(numbers, shape)| HeadsView::new(numbers, *shape));
    let mut result = vec![0.0; shape.into_iter().fold(1, usize::saturating_mul)];
    kernel.forward_heads(q?, k?, v?, HeadsViewMut::new(&mut result, shape)?)?;
    let [tokens, heads, channels] = shape;
    let rows = (0..tokens).flat_map(|token| (0..heads).map(move |head| (token, head)));
    for ((token, head), row) in rows.zip(result.chunks_exact(channels.max(1))) {
        T::round(row, out.row_mut(token, head));
    }
    Ok(())
}

/// The numbers as f32, one after the other, and their shape.
fn widened<T: Half>(view: HeadsView<T>) -> (Vec<f32>, [usize; 3]) {
    let shape @ [tokens, heads, channels] = [view.tokens(), view.heads(), view.head_dim()];
    let mut numbers = vec![0.0; shape.into_iter().fold(1, usize::saturating_mul)];
    let rows = (0..tokens).flat_map(|token| (0..heads).map(move |head| (token, head)));
    for ((token, head), out) in rows.zip(numbers.chunks_exact_mut(channels.max(1))) {
        T::widen(view.row(token, head), out);
    }
    (numbers, shape)
}
