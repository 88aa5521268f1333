//! Which layers of a model differ from the others.

/// A set of layers, counted from 0. Files give most of them by a rule; none is as long as the layers are many, which no tensor has
/// confirmed when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerSet {
    /// No layer.
    Empty,
    /// All layers.
    All,
    /// This one and all after it.
    From(usize),
    /// The last of every so many, as 3, 7, 11 of every 4; at least 1.
    Every(usize),
    /// All but the last of every so many; at least 1.
    AllButEvery(usize),
    /// Those with true.
    Listed(Vec<bool>),
}

impl LayerSet {
    /// Whether the layer is one of them.
    pub fn contains(&self, layer: usize) -> bool {
        let ends_a_period = |period: usize| layer % period.max(1) == period.max(1) - 1;
        match self {
            Self::Empty => false,
            Self::All => true,
            Self::From(first) => layer >= *first,
            Self::Every(period) => ends_a_period(*period),
            Self::AllButEvery(period) => !ends_a_period(*period),
            Self::Listed(layers) => layers.get(layer).copied().unwrap_or(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_contain_the_layers_that_they_name() {
        for (set, expected) in [
            (LayerSet::Empty, [false; 8]),
            (LayerSet::All, [true; 8]),
            (LayerSet::From(6), [false, false, false, false, false, false, true, true]),
            (LayerSet::Every(4), [false, false, false, true, false, false, false, true]),
            (LayerSet::AllButEvery(6), [true, true, true, true, true, false, true, true]),
            (LayerSet::AllButEvery(1), [false; 8]),
            (
                LayerSet::Listed(vec![true, false, true]),
                [true, false, true, false, false, false, false, false],
            ),
        ] {
            assert_eq!(std::array::from_fn(|layer| set.contains(layer)), expected, "{set:?}");
        }
    }
}
