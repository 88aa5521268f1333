//! Scale and minimum of a group of codes.

/// What makes numbers of the codes of a group: `x = scale * (code - offset)`, or `x = scale * code + minimum`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Factors {
    pub(crate) scale: f32,
    /// 0 for types that have none.
    pub(crate) minimum: f32,
}
