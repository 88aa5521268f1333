//! The caller's memory: pointers become references here, after everything about them that can be checked has been.

use std::{
    ffi::{CStr, c_char},
    slice,
};

use deltallm_attn::{AttentionError, HeadsView, HeadsViewMut};

use crate::error::CallError;

/// Numbers of shape [tokens, heads, head_dim] that a call reads: `len` floats from `data` on. Head `h` of token `t`
/// starts at `data[t * token_stride + h * head_stride]`, and its channels are adjacent. A stride of 0 stands for
/// contiguous data: `head_dim` between heads, `heads` times that between tokens. So q, k and v can be parts of one
/// buffer. `data` can be NULL if `len` is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeltallmView {
    /// The first number.
    pub data: *const f32,
    /// Numbers that can be read from `data` on.
    pub len: usize,
    /// Numbers from one token to the next, or 0.
    pub token_stride: usize,
    /// Numbers from one head to the next, or 0.
    pub head_stride: usize,
}

/// The same for what a call writes. Numbers between the rows are left as they are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeltallmViewMut {
    /// The first number.
    pub data: *mut f32,
    /// Numbers that can be written from `data` on.
    pub len: usize,
    /// Numbers from one token to the next, or 0.
    pub token_stride: usize,
    /// Numbers from one head to the next, or 0.
    pub head_stride: usize,
}

impl DeltallmView {
    /// # Safety
    /// `len` floats can be read at `data`, and nobody writes them during `'a`.
    pub(crate) unsafe fn heads<'a>(
        &self,
        argument: &'static str,
        shape: [usize; 3],
    ) -> Result<HeadsView<'a>, CallError> {
        let [token_stride, head_stride] = strides(argument, shape, self.token_stride, self.head_stride)?;
        check_numbers(argument, self.data, self.len)?;
        let data = match self.len {
            0 => &[],
            // SAFETY: the pointer is not null and aligned, the length does not overflow, and the caller vouches for the rest.
            len => unsafe { slice::from_raw_parts(self.data, len) },
        };
        HeadsView::strided(data, shape, token_stride, head_stride).map_err(|error| named(argument, error))
    }
}

impl DeltallmViewMut {
    /// Not even unused numbers may be shared with `inputs`.
    ///
    /// # Safety
    /// `len` floats can be read and written at `data`, and nobody else does so during `'a`.
    pub(crate) unsafe fn heads<'a>(
        &self,
        argument: &'static str,
        shape: [usize; 3],
        inputs: &[(&'static str, &DeltallmView)],
    ) -> Result<HeadsViewMut<'a>, CallError> {
        let [token_stride, head_stride] = strides(argument, shape, self.token_stride, self.head_stride)?;
        check_numbers(argument, self.data, self.len)?;
        for (input, view) in inputs {
            if overlap((self.data.addr(), self.len), (view.data.addr(), view.len)) {
                let (expected, got) =
                    (format!("memory apart from {input}"), "memory that overlaps it".to_owned());
                return Err(CallError::Argument { argument, expected, got });
            }
        }
        let data = match self.len {
            0 => &mut [],
            // SAFETY: the pointer is not null and aligned, the length does not overflow, the inputs are elsewhere, and the
            // caller vouches for the rest.
            len => unsafe { slice::from_raw_parts_mut(self.data, len) },
        };
        HeadsViewMut::strided(data, shape, token_stride, head_stride).map_err(|error| named(argument, error))
    }
}

/// Whether two ranges of floats, each an address and a length, have a byte in common.
fn overlap((one, one_len): (usize, usize), (two, two_len): (usize, usize)) -> bool {
    let end = |start: usize, len: usize| start.saturating_add(len.saturating_mul(size_of::<f32>()));
    one_len > 0 && two_len > 0 && one < end(two, two_len) && two < end(one, one_len)
}

/// The strides with defaults filled in. Rows must not reach into each other, so that what is given is bounded by memory
/// that is there.
fn strides(
    argument: &'static str,
    [_, heads, head_dim]: [usize; 3],
    token: usize,
    head: usize,
) -> Result<[usize; 2], CallError> {
    let head = if head == 0 { head_dim } else { head };
    let token = if token == 0 { heads.saturating_mul(head) } else { token };
    for (what, stride) in [("token_stride", token), ("head_stride", head)] {
        if stride < head_dim {
            let expected = format!("a {what} of 0 or at least {head_dim}, the channels of a head");
            return Err(CallError::Argument { argument, expected, got: stride.to_string() });
        }
    }
    Ok([token, head])
}

fn check_numbers(argument: &'static str, data: *const f32, len: usize) -> Result<(), CallError> {
    const MOST: usize = isize::MAX as usize / size_of::<f32>();
    if len > MOST {
        let expected = format!("a length of at most {MOST}");
        return Err(CallError::Argument { argument, expected, got: len.to_string() });
    }
    check_pointer(argument, data, || format!("a pointer to {len} floats"), len)
}

/// Refuses NULL, unless it points to nothing, and what is not aligned.
fn check_pointer<T>(
    argument: &'static str,
    pointer: *const T,
    expected: impl Fn() -> String,
    len: usize,
) -> Result<(), CallError> {
    if len > 0 && pointer.is_null() {
        return Err(CallError::null(argument, &expected()));
    }
    if len > 0 && !pointer.is_aligned() {
        let expected = format!("an address that is a multiple of {}", align_of::<T>());
        return Err(CallError::Argument { argument, expected, got: format!("{pointer:p}") });
    }
    Ok(())
}

fn named(input: &'static str, error: AttentionError) -> CallError {
    CallError::Attention(match error {
        AttentionError::SliceTooShort { expected, got, .. } => {
            AttentionError::SliceTooShort { input, expected, got }
        }
        AttentionError::Shape { dimension, expected, got, .. } => {
            AttentionError::Shape { input, dimension, expected, got }
        }
        other => other,
    })
}

/// A text of the caller's.
///
/// # Safety
/// `text` is NULL, or points to bytes up to a zero, and nobody writes them during `'a`.
pub(crate) unsafe fn text<'a>(argument: &'static str, text: *const c_char) -> Result<&'a str, CallError> {
    if text.is_null() {
        return Err(CallError::null(argument, "a text that ends with a zero byte"));
    }
    // SAFETY: not null, and the caller vouches for the zero at the end.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|error| CallError::Argument {
        argument,
        expected: "a text in UTF-8".to_owned(),
        got: error.to_string(),
    })
}

/// A copy of the caller's view.
///
/// # Safety
/// `view` is NULL, or a `T` can be read there.
pub(crate) unsafe fn read<T: Copy>(argument: &'static str, view: *const T) -> Result<T, CallError> {
    check_pointer(argument, view, || "a view".to_owned(), 1)?;
    // SAFETY: not null and aligned, and the caller vouches for the memory.
    Ok(unsafe { view.read() })
}

/// Writes an answer; what was there before need not be anything.
///
/// # Safety
/// `place` is NULL, or a `T` can be written there.
pub(crate) unsafe fn write<T>(argument: &'static str, place: *mut T, answer: T) -> Result<(), CallError> {
    check_pointer(argument, place, || "a pointer to where the answer goes".to_owned(), 1)?;
    // SAFETY: not null and aligned, and the caller vouches for the memory.
    unsafe { place.write(answer) };
    Ok(())
}
