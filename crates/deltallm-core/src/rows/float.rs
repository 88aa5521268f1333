//! Rows in a float type.

use std::ops::Range;

use crate::{budget::Reservation, buffer::FloatBuffer, element::ElementType, error::CoreError};

/// Rows of plain numbers that start `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct FloatRows<'a, T> {
    /// From the first number of the first row on.
    pub data: &'a [T],
    /// Elements from a row to the next.
    pub stride: usize,
}

/// A page of rows, one after the other.
#[derive(Debug)]
pub(crate) struct FloatPage(pub(super) FloatBuffer);

impl FloatPage {
    /// Bytes of a row.
    pub(crate) fn row_bytes(element: ElementType, channels: usize) -> usize {
        channels.saturating_mul(element.bytes())
    }

    /// Room for so many rows.
    pub(crate) fn with_capacity(element: ElementType, rows: usize, channels: usize) -> Self {
        Self(FloatBuffer::with_capacity(element, rows * channels))
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, row: &[f32]) {
        self.0.extend(row);
    }

    /// Keeps the first `rows` rows.
    pub(crate) fn truncate(&mut self, rows: usize, channels: usize) {
        self.0.truncate(rows * channels);
    }

    /// Rows as f32: borrowed where they already are, else converted into `scratch`.
    pub(crate) fn read<'a>(
        &'a self,
        rows: Range<usize>,
        channels: usize,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.0.read(rows.start * channels..rows.end * channels, scratch)
    }

    /// Checks that every number can be stored in `element`, should that be narrower than the page's type.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`].
    pub(crate) fn check_narrow(&self, element: ElementType, channels: usize) -> Result<(), CoreError> {
        if !self.0.narrows_to(element) {
            return Ok(());
        }
        let (scratch, channels) = (&mut Vec::new(), channels.max(1));
        self.0.read(0..self.0.len(), scratch).chunks_exact(channels).try_for_each(|row| element.check(row))
    }

    /// Converts numbers that have been checked to a narrower type and gives the freed bytes back.
    pub(crate) fn narrow(&mut self, element: ElementType, reservation: &mut Reservation) {
        self.0.convert(element, reservation);
    }
}
