//! The exported function that attends several sequences in one call.

use std::{ptr, sync::MutexGuard};

use deltallm_attn::{AttentionError, AttentionKernel, forward_batch};

use crate::{
    error::{CallError, DeltallmStatus, guard},
    forward::contiguous,
    kernel::DeltallmKernel,
    memory::list,
};

/// The same as deltallm_kernel_forward for a batch: `sequences` kernels, of which sequence `i` gets the next `tokens[i]` tokens.
/// That may be none: nothing happens to such a sequence. `q`, `k`, `v` and `out` have the tokens of all sequences one after the other, contiguous. The
/// kernels are of one shape, and no kernel is there twice. Sequences are spread over threads, whatever `parallel` says. The call waits for all of its kernels.
///
/// After an error every cache holds the tokens it held before, and `out` may have been written in part. After a panic all kernels of the call answer
/// that.
///
/// # Safety
/// `kernels` points to `sequences` kernels, each of which is NULL or comes from deltallm_kernel_new and has not been freed, and `tokens` to as many
/// numbers; both can be NULL if `sequences` is 0. The four buffers are as in deltallm_kernel_forward, with the tokens of all sequences. Nobody writes the
/// lists during the call, and `out` does not overlap them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_forward_batch(
    kernels: *const *mut DeltallmKernel,
    tokens: *const usize,
    sequences: usize,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    out: *mut f32,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise is that both lists are that long, and that nobody writes them.
        let (kernels, tokens) =
            unsafe { (list("kernels", kernels, sequences)?, list("tokens", tokens, sequences)?) };
        // SAFETY: the caller's promise is that each is a kernel, or NULL.
        let kernel =
            |(sequence, kernel): (usize, &*mut DeltallmKernel)| unsafe { kernel.as_ref() }.ok_or(sequence);
        let kernels = kernels.iter().enumerate().map(kernel).collect::<Result<Vec<_>, _>>();
        let kernels = kernels.map_err(|sequence| CallError::Argument {
            argument: "kernels",
            expected: "kernels from deltallm_kernel_new".to_owned(),
            got: format!("NULL for sequence {sequence}"),
        })?;
        let Some(first) = kernels.first() else { return Ok(()) };
        if let Some(other) = kernels.iter().find(|kernel| kernel.shape != first.shape) {
            return Err(CallError::Argument {
                argument: "kernels",
                expected: format!("kernels of one shape, {:?}", first.shape),
                got: format!("{:?} too", other.shape),
            });
        }
        let mut locked = lock(&kernels)?;
        // A sum that is too large fits no buffer.
        let sum = tokens.iter().fold(0, |sum: usize, tokens| sum.saturating_add(*tokens));
        if sum == 0 {
            return Ok(());
        }
        let ([q, k, v], out) = contiguous(first, sum, [q, k, v], out)?;
        let [q_shape, k_shape, v_shape, out_shape] = first.shapes(sum);
        // SAFETY: the caller's promise, which is that these lengths are right.
        let inputs = unsafe { (q.heads("q", q_shape)?, k.heads("k", k_shape)?, v.heads("v", v_shape)?) };
        // SAFETY: the caller's promise, and that the inputs are elsewhere is checked before there is a slice.
        let out = unsafe { out.heads("out", out_shape, &[("q", &q), ("k", &k), ("v", &v)]) }?;
        let mut locked: Vec<&mut dyn AttentionKernel> =
            locked.iter_mut().map(|kernel| &mut ***kernel as &mut dyn AttentionKernel).collect();
        all_or_none(&mut locked, |kernels| forward_batch(kernels, tokens, inputs.0, inputs.1, inputs.2, out))
    })
}

/// The kernels, locked in the order of their addresses, so that two calls on the same ones cannot wait for each other.
fn lock<'a>(
    kernels: &[&'a DeltallmKernel],
) -> Result<Vec<MutexGuard<'a, Box<dyn AttentionKernel>>>, CallError> {
    let address = |sequence: usize| ptr::from_ref(kernels[sequence]).addr();
    let mut order: Vec<usize> = (0..kernels.len()).collect();
    order.sort_by_key(|sequence| address(*sequence));
    if let Some(same) = order.windows(2).find(|pair| address(pair[0]) == address(pair[1])) {
        return Err(CallError::Argument {
            argument: "kernels",
            expected: "every kernel once".to_owned(),
            got: format!("the same for sequences {} and {}", same[0], same[1]),
        });
    }
    let mut locked: Vec<_> = kernels.iter().map(|_| None).collect();
    for sequence in order {
        locked[sequence] = Some(kernels[sequence].lock()?);
    }
    Ok(locked.into_iter().flatten().collect())
}

/// Does `step`, or takes it back from all kernels.
fn all_or_none(
    kernels: &mut [&mut dyn AttentionKernel],
    step: impl FnOnce(&mut [&mut dyn AttentionKernel]) -> Result<(), AttentionError>,
) -> Result<(), CallError> {
    let before: Vec<usize> = kernels.iter().map(|kernel| kernel.len()).collect();
    kernels.iter_mut().for_each(|kernel| kernel.begin_step());
    let result = step(kernels);
    let mut undone = Ok(());
    for (kernel, len) in kernels.iter_mut().zip(before) {
        match result {
            Ok(()) => kernel.commit_step(),
            Err(_) => undone = undone.and(kernel.undo_step(len)),
        }
    }
    Ok(undone.and(result)?)
}
