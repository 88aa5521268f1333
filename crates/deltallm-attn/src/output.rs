//! What a call of a kernel writes.

use std::f32::consts::LN_2;

use deltallm_core::HeadSparsity;

use crate::HeadsViewMut;

/// What a call writes.
pub(crate) struct Output<'o> {
    /// `[tokens, heads, value_dim]`.
    pub(crate) rows: HeadsViewMut<'o>,
    /// The pairs of each kv head are added to these, if all goes well.
    pub(crate) counts: &'o mut [HeadSparsity],
    /// `[tokens, heads]`, or nothing where nobody asks.
    pub(crate) log_sums: &'o mut [f32],
}

/// The logarithm of the sum of a query's weights, in nats, from the largest score in units of ln 2 and their sum beside it.
pub(crate) fn log_sum(max: f32, total: f32) -> f32 {
    (max + total.log2()) * LN_2
}
