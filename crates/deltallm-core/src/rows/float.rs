//! Rows in a float type.

use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::element::ElementType;

/// Rows of plain numbers that start `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct FloatRows<'a, T> {
    /// From the first number of the first row on.
    pub data: &'a [T],
    /// Elements from a row to the next.
    pub stride: usize,
}

impl<'a, T: Pod> FloatRows<'a, T> {
    /// Rows of a page, which lie one after the other.
    pub(super) fn of_page(page: &'a [u8], channels: usize, rows: Range<usize>) -> Self {
        let numbers: &[T] = bytemuck::cast_slice(page);
        Self { data: &numbers[rows.start * channels..rows.end * channels], stride: channels }
    }
}

/// Writes row `at` of a page.
pub(super) fn write(element: ElementType, page: &mut [u8], at: usize, row: &[f32]) {
    let place = at * row.len()..(at + 1) * row.len();
    match element {
        ElementType::F32 => bytemuck::cast_slice_mut::<_, f32>(page)[place].copy_from_slice(row),
        ElementType::F16 => bytemuck::cast_slice_mut::<_, f16>(page)[place].convert_from_f32_slice(row),
        ElementType::Bf16 => bytemuck::cast_slice_mut::<_, bf16>(page)[place].convert_from_f32_slice(row),
    }
}

/// Appends numbers to `out` as f32.
pub(super) fn gather<T>(numbers: &[T], out: &mut Vec<f32>)
where
    [T]: HalfFloatSliceExt,
{
    let start = out.len();
    out.resize(start + numbers.len(), 0.0);
    numbers.convert_to_f32_slice(&mut out[start..]);
}
