//! The exported functions that attend, in f32, and what they share with those for [16 bits](crate::half).

use deltallm_attn::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut};

use crate::{
    error::{CallError, DeltallmStatus, guard},
    kernel::{DeltallmKernel, existing, with},
    memory::{DeltallmView, DeltallmViewMut, Input, Output, read},
};

/// What queries, keys, values and results are made of.
pub(crate) trait Element: Sized {
    fn attend(
        kernel: &mut dyn AttentionKernel,
        q: HeadsView<Self>,
        k: HeadsView<Self>,
        v: HeadsView<Self>,
        out: HeadsViewMut<Self>,
    ) -> Result<(), AttentionError>;
}

impl Element for f32 {
    fn attend(
        kernel: &mut dyn AttentionKernel,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        kernel.forward_heads(q, k, v, out)
    }
}

/// Appends `tokens` tokens to the cache and attends their queries to it, as the mask says. `q` is [tokens, heads, head_dim], `k`
/// [tokens, kv_heads, head_dim], `v` [tokens, kv_heads, value_dim] and `out` [tokens, heads, value_dim], contiguous. Queries and keys come after rotary embedding;
/// positions are implied, the first token ever appended being 0. With 0 tokens nothing happens.
///
/// After an error the cache holds the tokens it held before, and `out` may have been written in part.
///
/// # Safety
/// `kernel` is NULL or comes from deltallm_kernel_new and has not been freed. The four buffers have that many floats,
/// nobody else uses `out` during the call or writes the others, and `out` does not overlap them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_forward(
    kernel: *mut DeltallmKernel,
    tokens: usize,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    out: *mut f32,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        let kernel = existing(unsafe { kernel.as_ref() })?;
        let (inputs, out) = contiguous(kernel, tokens, [q, k, v], out)?;
        // SAFETY: the caller's promise, which is that these lengths are right.
        unsafe { forward(kernel, tokens, inputs, out) }
    })
}

/// Attends the queries of the last `tokens` tokens in the cache, and appends nothing: for layers that share the cache of another one.
/// `q` is [tokens, heads, head_dim] and `out` [tokens, heads, value_dim], contiguous. With 0 tokens nothing happens. More queries than
/// there are tokens are an error, and under a mask those that would miss what has been dropped.
///
/// # Safety
/// As deltallm_kernel_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_attend(
    kernel: *mut DeltallmKernel,
    tokens: usize,
    q: *const f32,
    out: *mut f32,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { attend(existing(kernel.as_ref())?, tokens, q, out) }
    })
}

/// Copies the logarithm of the sum of the exponentials of each query's scores in the latest call, in nats, [tokens, heads], to `out`,
/// which has room for `len` numbers. A sink logit counts, values that were skipped do not. The configuration must ask for it with `log_sum_exp`.
///
/// # Safety
/// `kernel` is NULL or has not been freed, and `len` numbers can be written from `out` on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_log_sum_exp(
    kernel: Option<&DeltallmKernel>,
    out: *mut f32,
    len: usize,
) -> DeltallmStatus {
    guard(|| {
        let numbers = with(kernel, |kernel| Ok(kernel.log_sum_exp().map(<[f32]>::to_vec)))?;
        let numbers = numbers.ok_or_else(|| CallError::Argument {
            argument: "kernel",
            expected: "one with `log_sum_exp` in its configuration, and a call before".to_owned(),
            got: "one without".to_owned(),
        })?;
        // SAFETY: the caller's promise.
        let mut out = unsafe { Output::contiguous(out, len).heads("out", [1, 1, numbers.len()], &[]) }?;
        out.row_mut(0, 0).copy_from_slice(&numbers);
        Ok(())
    })
}

/// The same as deltallm_kernel_forward with lengths, which are checked, and with strides.
///
/// # Safety
/// `kernel` is NULL or comes from deltallm_kernel_new and has not been freed. Each view's `data` has `len` floats, nobody
/// else uses those of `out` during the call or writes the others, and those of `out` do not overlap the others, not even
/// between the rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_forward_views(
    kernel: *mut DeltallmKernel,
    tokens: usize,
    q: *const DeltallmView,
    k: *const DeltallmView,
    v: *const DeltallmView,
    out: *const DeltallmViewMut,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let kernel = existing(kernel.as_ref())?;
            let inputs = [read("q", q)?, read("k", k)?, read("v", v)?].map(Input::from);
            forward(kernel, tokens, inputs, read("out", out)?.into())
        }
    })
}

/// q, k and v, and out, in contiguous buffers.
pub(crate) fn contiguous<T>(
    kernel: &DeltallmKernel,
    tokens: usize,
    inputs: [*const T; 3],
    out: *mut T,
) -> Result<([Input<T>; 3], Output<T>), CallError> {
    let ([q, k, v], shapes) = (inputs, kernel.shapes(tokens));
    let inputs = [
        Input::contiguous(q, len("q", shapes[0])?),
        Input::contiguous(k, len("k", shapes[1])?),
        Input::contiguous(v, len("v", shapes[2])?),
    ];
    Ok((inputs, Output::contiguous(out, len("out", shapes[3])?)))
}

/// # Safety
/// As [`deltallm_kernel_forward_views`].
pub(crate) unsafe fn forward<T: Element>(
    kernel: &DeltallmKernel,
    tokens: usize,
    [q, k, v]: [Input<T>; 3],
    out: Output<T>,
) -> Result<(), CallError> {
    let [q_shape, k_shape, v_shape, out_shape] = kernel.shapes(tokens);
    with(Some(kernel), |kernel| {
        if tokens == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let inputs = unsafe { (q.heads("q", q_shape)?, k.heads("k", k_shape)?, v.heads("v", v_shape)?) };
        // SAFETY: the caller's promise, and that the inputs are elsewhere is checked before there is a slice.
        let out = unsafe { out.heads("out", out_shape, &[("q", &q), ("k", &k), ("v", &v)]) }?;
        Ok(T::attend(kernel, inputs.0, inputs.1, inputs.2, out)?)
    })
}

/// # Safety
/// As [`deltallm_kernel_attend`].
pub(crate) unsafe fn attend<T: Element>(
    kernel: &DeltallmKernel,
    tokens: usize,
    q: *const T,
    out: *mut T,
) -> Result<(), CallError> {
    let [q_shape, k_shape, v_shape, out_shape] = kernel.shapes(tokens);
    let (q, out) =
        (Input::contiguous(q, len("q", q_shape)?), Output::contiguous(out, len("out", out_shape)?));
    with(Some(kernel), |kernel| {
        if tokens == 0 {
            return Ok(());
        }
        let [k, v] = [k_shape, v_shape].map(|[_, heads, channels]| HeadsView::new(&[], [0, heads, channels]));
        // SAFETY: the caller's promise.
        let queries = unsafe { q.heads("q", q_shape) }?;
        // SAFETY: the caller's promise, and that `q` is elsewhere is checked before there is a slice.
        let out = unsafe { out.heads("out", out_shape, &[("q", &q)]) }?;
        Ok(T::attend(kernel, queries, k?, v?, out)?)
    })
}

/// Numbers in a contiguous buffer.
fn len(argument: &'static str, shape: [usize; 3]) -> Result<usize, CallError> {
    let [tokens, heads, head_dim] = shape;
    // Neither can overflow: both sizes are small.
    let per_token = heads * head_dim;
    tokens.checked_mul(per_token).ok_or_else(|| CallError::Argument {
        argument,
        expected: format!("at most {} tokens", usize::MAX / per_token),
        got: tokens.to_string(),
    })
}
