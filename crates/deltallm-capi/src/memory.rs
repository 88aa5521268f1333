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

/// The same as DeltallmView for numbers of 16 bits: f16 or bf16, as the call says.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeltallmHalfView {
    /// The bits of the first number.
    pub data: *const u16,
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
pub struct DeltallmHalfViewMut {
    /// The bits of the first number.
    pub data: *mut u16,
    /// Numbers that can be written from `data` on.
    pub len: usize,
    /// Numbers from one token to the next, or 0.
    pub token_stride: usize,
    /// Numbers from one head to the next, or 0.
    pub head_stride: usize,
}

/// A view of any numbers that a call reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<T> {
    data: *const T,
    len: usize,
    /// From one token to the next and from one head to the next, or 0.
    strides: [usize; 2],
}

/// A view of any numbers that a call writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output<T> {
    data: *mut T,
    len: usize,
    strides: [usize; 2],
}

impl From<DeltallmView> for Input<f32> {
    fn from(view: DeltallmView) -> Self {
        Self { data: view.data, len: view.len, strides: [view.token_stride, view.head_stride] }
    }
}

impl From<DeltallmViewMut> for Output<f32> {
    fn from(view: DeltallmViewMut) -> Self {
        Self { data: view.data, len: view.len, strides: [view.token_stride, view.head_stride] }
    }
}

impl From<DeltallmHalfView> for Input<u16> {
    fn from(view: DeltallmHalfView) -> Self {
        Self { data: view.data, len: view.len, strides: [view.token_stride, view.head_stride] }
    }
}

impl From<DeltallmHalfViewMut> for Output<u16> {
    fn from(view: DeltallmHalfViewMut) -> Self {
        Self { data: view.data, len: view.len, strides: [view.token_stride, view.head_stride] }
    }
}

impl<T> Input<T> {
    pub(crate) fn contiguous(data: *const T, len: usize) -> Self {
        Self { data, len, strides: [0, 0] }
    }

    /// The same bits as other numbers of the same size.
    pub(crate) fn cast<U>(self) -> Input<U> {
        const { assert!(size_of::<T>() == size_of::<U>()) };
        Input { data: self.data.cast(), len: self.len, strides: self.strides }
    }

    /// # Safety
    /// `len` numbers can be read at `data`, and nobody writes them during `'a`.
    pub(crate) unsafe fn heads<'a>(
        &self,
        argument: &'static str,
        shape: [usize; 3],
    ) -> Result<HeadsView<'a, T>, CallError> {
        let [token_stride, head_stride] = strides(argument, shape, self.strides)?;
        check_numbers(argument, self.data, self.len)?;
        let data = match self.len {
            0 => &[],
            // SAFETY: the pointer is not null and aligned, the length does not overflow, and the caller vouches for the rest.
            len => unsafe { slice::from_raw_parts(self.data, len) },
        };
        HeadsView::strided(data, shape, token_stride, head_stride).map_err(|error| named(argument, error))
    }
}

impl<T> Output<T> {
    pub(crate) fn contiguous(data: *mut T, len: usize) -> Self {
        Self { data, len, strides: [0, 0] }
    }

    /// The same bits as other numbers of the same size.
    pub(crate) fn cast<U>(self) -> Output<U> {
        const { assert!(size_of::<T>() == size_of::<U>()) };
        Output { data: self.data.cast(), len: self.len, strides: self.strides }
    }

    /// Not even unused numbers may be shared with `inputs`.
    ///
    /// # Safety
    /// `len` numbers can be read and written at `data`, and nobody else does so during `'a`.
    pub(crate) unsafe fn heads<'a>(
        &self,
        argument: &'static str,
        shape: [usize; 3],
        inputs: &[(&'static str, &Input<T>)],
    ) -> Result<HeadsViewMut<'a, T>, CallError> {
        let [token_stride, head_stride] = strides(argument, shape, self.strides)?;
        check_numbers(argument, self.data, self.len)?;
        for (input, view) in inputs {
            if overlap::<T>((self.data.addr(), self.len), (view.data.addr(), view.len)) {
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

/// Whether two ranges of numbers, each an address and a length, have a byte in common.
fn overlap<T>((one, one_len): (usize, usize), (two, two_len): (usize, usize)) -> bool {
    let end = |start: usize, len: usize| start.saturating_add(len.saturating_mul(size_of::<T>()));
    one_len > 0 && two_len > 0 && one < end(two, two_len) && two < end(one, one_len)
}

/// The strides with defaults filled in. Rows must not reach into each other, so that what is given is bounded by memory
/// that is there.
fn strides(
    argument: &'static str,
    [_, heads, head_dim]: [usize; 3],
    [token, head]: [usize; 2],
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

fn check_numbers<T>(argument: &'static str, data: *const T, len: usize) -> Result<(), CallError> {
    check_length::<T>(argument, len)?;
    check_pointer(argument, data, || format!("a pointer to {len} floats of {} bits", 8 * size_of::<T>()), len)
}

fn check_length<T>(argument: &'static str, len: usize) -> Result<(), CallError> {
    let most = isize::MAX as usize / size_of::<T>();
    if len > most {
        let expected = format!("a length of at most {most}");
        return Err(CallError::Argument { argument, expected, got: len.to_string() });
    }
    Ok(())
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

/// A list of the caller's.
///
/// # Safety
/// `len` values can be read at `data`, unless it is NULL, and nobody writes them during `'a`.
pub(crate) unsafe fn list<'a, T>(
    argument: &'static str,
    data: *const T,
    len: usize,
) -> Result<&'a [T], CallError> {
    check_length::<T>(argument, len)?;
    check_pointer(argument, data, || format!("a list of {len}"), len)?;
    match len {
        0 => Ok(&[]),
        // SAFETY: the pointer is not null and aligned, the length does not overflow, and the caller vouches for the rest.
        len => Ok(unsafe { slice::from_raw_parts(data, len) }),
    }
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
