//! The exported functions that attend in 16 bits.

use deltallm_attn::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut, forward_half};
use half::{bf16, f16};

use crate::{
    error::{CallError, DeltallmStatus, guard},
    forward::{Element, attend, contiguous, forward},
    kernel::{DeltallmKernel, existing},
    memory::{DeltallmHalfView, DeltallmHalfViewMut, Input, Output, read},
};

/// Which floats of 16 bits a call takes and gives: DELTALLM_HALF_F16 or DELTALLM_HALF_BF16.
// No enum: a C program can pass any number, and that is an error, not undefined behaviour.
pub type DeltallmHalf = i32;

/// IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
pub const DELTALLM_HALF_F16: DeltallmHalf = 1;

/// The upper half of a float: 8 bits of exponent, 7 of fraction.
pub const DELTALLM_HALF_BF16: DeltallmHalf = 2;

impl Element for f16 {
    fn attend(
        kernel: &mut dyn AttentionKernel,
        q: HeadsView<Self>,
        k: HeadsView<Self>,
        v: HeadsView<Self>,
        out: HeadsViewMut<Self>,
    ) -> Result<(), AttentionError> {
        forward_half(kernel, q, k, v, out)
    }
}

impl Element for bf16 {
    fn attend(
        kernel: &mut dyn AttentionKernel,
        q: HeadsView<Self>,
        k: HeadsView<Self>,
        v: HeadsView<Self>,
        out: HeadsViewMut<Self>,
    ) -> Result<(), AttentionError> {
        forward_half(kernel, q, k, v, out)
    }
}

/// The same as deltallm_kernel_forward for numbers of 16 bits, of which the buffers have the bits: q, k, v and out are f16 or bf16, as
/// `half` says. Arithmetic and cache are those of the kernel, whatever the numbers are; results are rounded to the nearest.
///
/// # Safety
/// As deltallm_kernel_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_forward_half(
    kernel: *mut DeltallmKernel,
    half: DeltallmHalf,
    tokens: usize,
    q: *const u16,
    k: *const u16,
    v: *const u16,
    out: *mut u16,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        let kernel = existing(unsafe { kernel.as_ref() })?;
        let (inputs, out) = contiguous(kernel, tokens, [q, k, v], out)?;
        // SAFETY: the caller's promise, which is that these lengths are right.
        unsafe { forward_as(half, kernel, tokens, inputs, out) }
    })
}

/// The same as deltallm_kernel_attend for numbers of 16 bits.
///
/// # Safety
/// As deltallm_kernel_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_attend_half(
    kernel: *mut DeltallmKernel,
    half: DeltallmHalf,
    tokens: usize,
    q: *const u16,
    out: *mut u16,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        let kernel = existing(unsafe { kernel.as_ref() })?;
        // SAFETY: the caller's promise; both types are made of any 16 bits.
        unsafe {
            match half {
                DELTALLM_HALF_F16 => attend::<f16>(kernel, tokens, q.cast(), out.cast()),
                DELTALLM_HALF_BF16 => attend::<bf16>(kernel, tokens, q.cast(), out.cast()),
                _ => Err(neither(half)),
            }
        }
    })
}

/// The same as deltallm_kernel_forward_views for numbers of 16 bits.
///
/// # Safety
/// As deltallm_kernel_forward_views.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_forward_half_views(
    kernel: *mut DeltallmKernel,
    half: DeltallmHalf,
    tokens: usize,
    q: *const DeltallmHalfView,
    k: *const DeltallmHalfView,
    v: *const DeltallmHalfView,
    out: *const DeltallmHalfViewMut,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let kernel = existing(kernel.as_ref())?;
            let inputs = [read("q", q)?, read("k", k)?, read("v", v)?].map(Input::from);
            forward_as(half, kernel, tokens, inputs, read("out", out)?.into())
        }
    })
}

/// # Safety
/// As [`deltallm_kernel_forward_half_views`].
unsafe fn forward_as(
    half: DeltallmHalf,
    kernel: &DeltallmKernel,
    tokens: usize,
    inputs: [Input<u16>; 3],
    out: Output<u16>,
) -> Result<(), CallError> {
    // SAFETY: the caller's promise; both types are made of any 16 bits.
    unsafe {
        match half {
            DELTALLM_HALF_F16 => forward::<f16>(kernel, tokens, inputs.map(Input::cast), out.cast()),
            DELTALLM_HALF_BF16 => forward::<bf16>(kernel, tokens, inputs.map(Input::cast), out.cast()),
            _ => Err(neither(half)),
        }
    }
}

fn neither(half: DeltallmHalf) -> CallError {
    CallError::Argument {
        argument: "half",
        expected: format!(
            "DELTALLM_HALF_F16, {DELTALLM_HALF_F16}, or DELTALLM_HALF_BF16, {DELTALLM_HALF_BF16}"
        ),
        got: half.to_string(),
    }
}
