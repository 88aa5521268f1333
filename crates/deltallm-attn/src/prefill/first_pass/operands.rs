//! What the instructions of the first pass multiply.

/// What the instructions multiply: keys `[rows, depth]`, queries `[depth, lanes]`, starts `[lanes]`.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) keys: &'a [u32],
    pub(crate) depth: usize,
    pub(crate) queries: &'a [u32],
    pub(crate) starts: &'a [i32],
}

impl<'a> Operands<'a> {
    /// Panics for sizes that do not fit: the kernels rely on them.
    pub(crate) fn new(keys: &'a [u32], depth: usize, queries: &'a [u32], starts: &'a [i32]) -> Self {
        assert!(queries.len() == depth * starts.len());
        assert!(depth > 0 && keys.len().is_multiple_of(depth) && keys.len() / depth <= 64);
        Self { keys, depth, queries, starts }
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn rows(&self) -> usize {
        self.keys.len() / self.depth
    }
}
