//! What single layers do otherwise.

use deltallm_core::KvStore;

use crate::SkipMargin;

/// What one layer of a [`KernelSpec`](crate::KernelSpec) does otherwise than the others.
///
/// ```
/// use deltallm_attn::{KvStore, LayerSpec};
///
/// let layer = LayerSpec::default().store(KvStore::Int8).exact_prompt(800);
/// assert!(!layer.dense && layer.skip_margin.is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct LayerSpec {
    /// In a spec of hybrid attention: exact attention here, because deltas and skipping would gain no time. In
    /// [`KvStore::Compact`] the layer is coded all the same, unless it attends to [few keys](crate::KernelSpec::dense_up_to): exact
    /// keys would take 8 bits, which is more, and where some channels are far larger than others it is worse.
    pub dense: bool,
    /// [`KernelSpec::exact_prompt`](crate::KernelSpec::exact_prompt) of this layer; `None` is that of the spec.
    pub exact_prompt: Option<usize>,
    /// Margin of value skipping of this layer; `None` is that of the spec.
    pub skip_margin: Option<SkipMargin>,
    /// Store of this layer's cache; `None` is that of the spec. Where [dense attention](crate::KernelKind::Dense) or [few
    /// keys](crate::KernelSpec::dense_up_to) make the layer dense, it holds [`KvStore::Int8`] for [`KvStore::Compact`].
    pub store: Option<KvStore>,
}

impl LayerSpec {
    /// Sets whether attention is [exact](Self#structfield.dense) here.
    #[must_use]
    pub fn dense(self, dense: bool) -> Self {
        Self { dense, ..self }
    }

    /// Sets the length up to which prompts are attended exactly; `None` is that of the spec.
    #[must_use]
    pub fn exact_prompt(self, tokens: impl Into<Option<usize>>) -> Self {
        Self { exact_prompt: tokens.into(), ..self }
    }

    /// Sets the margin of value skipping; `None` is that of the spec.
    #[must_use]
    pub fn skip_margin(self, margin: impl Into<Option<SkipMargin>>) -> Self {
        Self { skip_margin: margin.into(), ..self }
    }

    /// Sets the [store](Self#structfield.store) of this layer's cache; `None` is that of the spec.
    #[must_use]
    pub fn store(self, store: impl Into<Option<KvStore>>) -> Self {
        Self { store: store.into(), ..self }
    }
}
