//! Bytes of a cache, by purpose.

use std::ops::AddAssign;

/// Bytes a cache holds, by purpose. Room that is allocated but not filled yet counts.
///
/// Parts may be added: a kernel that makes one names its parts and ends with `..Footprint::default()`. Sums that are too large
/// stay at the largest number.
///
/// ```
/// use deltallm_core::Footprint;
///
/// let mut model = Footprint::default();
/// let layer = Footprint { keys: 128, values: 128, window: 64, bookkeeping: 16 };
/// for _ in 0..30 {
///     model += layer;
/// }
/// assert_eq!(model.total(), 30 * 336);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Footprint {
    /// Keys of the whole history, coded or not.
    pub keys: usize,
    /// Values of the whole history.
    pub values: usize,
    /// Exact keys of the window and the sinks, and their values where far ones are quantised; and what else is kept for a rewind.
    pub window: usize,
    /// Tables of pages and blocks.
    pub bookkeeping: usize,
}

impl Footprint {
    /// Sum of all parts.
    pub fn total(&self) -> usize {
        [self.values, self.window, self.bookkeeping].into_iter().fold(self.keys, usize::saturating_add)
    }
}

impl AddAssign for Footprint {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.keys, other.keys),
            (&mut self.values, other.values),
            (&mut self.window, other.window),
            (&mut self.bookkeeping, other.bookkeeping),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}
