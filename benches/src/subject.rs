//! What is timed, ours or not: the interface between the rounds of [`measure`](crate::measure()) and an engine.

use std::ops::Range;

use deltallm::core::HeadSparsity;

pub use deltallm_cli::bench::Phase;

/// Which part of the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Window of tokens.
    pub window: usize,
    /// Layer.
    pub layer: usize,
}

/// One variant of attention in one phase, with a cache for every place.
pub trait Attention {
    /// Attends `tokens` of a place, which follow what its cache holds, and returns the seconds that took. The result goes
    /// to `out`, `[tokens, heads, head_dim]`; bringing it there counts only where it is part of the engine's own work.
    ///
    /// # Errors
    /// What the engine says.
    fn attend(&mut self, place: Place, tokens: Range<usize>, out: &mut [f32]) -> anyhow::Result<f64>;

    /// Takes all caches back to `tokens` tokens, where they hold more.
    ///
    /// # Errors
    /// What the engine says.
    fn rewind(&mut self, tokens: usize) -> anyhow::Result<()>;

    /// Sparsity and bytes; none for engines that have no such numbers.
    fn counts(&self) -> Option<Counts> {
        None
    }
}

/// What our kernels count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// All layers and windows together.
    pub sparsity: HeadSparsity,
    /// Bytes of the caches of all layers for one token, averaged over the windows.
    pub bytes_per_token: f64,
}

/// An engine, as it takes part in the rounds.
pub struct Subject<'a> {
    /// Name of the variant.
    pub name: &'static str,
    /// The engine.
    pub attention: Box<dyn Attention + 'a>,
    /// Rounds it takes part in.
    pub rounds: usize,
    /// The largest difference to dense attention, relative to its largest output, that is not a defect; none for
    /// approximate variants.
    pub tolerance: Option<f64>,
    /// Whether it attends to these inputs, so that its results can be compared.
    pub compared: bool,
}
