//! One method for every setting, so that settings can be added without breaking anyone.

use deltallm_core::{KvStore, ThresholdPolicy};

use super::{kernel_spec::KernelSpec, kind::KernelKind, layer::LayerSpec, overrides::SpecOverrides};
use crate::{ExactWindow, Precision, SkipMargin};

impl KernelSpec {
    /// Sets [which attention runs](Self#structfield.kernel).
    #[must_use]
    pub fn kernel(self, kernel: KernelKind) -> Self {
        Self { kernel, ..self }
    }

    /// Sets how keys and values are cached; a layer with a store of its own keeps it.
    #[must_use]
    pub fn store(self, store: KvStore) -> Self {
        Self { store, ..self }
    }

    /// Sets the arithmetic of prompts.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Sets the [`scale`](Self#structfield.scale) of scores: a number, or `None` for 1/sqrt(head_dim).
    #[must_use]
    pub fn scale(self, scale: impl Into<Option<f32>>) -> Self {
        Self { scale: scale.into(), ..self }
    }

    /// Sets the [`softcap`](Self#structfield.softcap) of scores: a number, or `None`.
    #[must_use]
    pub fn softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Self { softcap: softcap.into(), ..self }
    }

    /// Sets the [thresholds](Self#structfield.thresholds) of the delta coding.
    #[must_use]
    pub fn thresholds(self, thresholds: ThresholdPolicy) -> Self {
        Self { thresholds, ..self }
    }

    /// Sets the keys that are scored exactly.
    #[must_use]
    pub fn exact_window(self, window: ExactWindow) -> Self {
        Self { exact_window: window, ..self }
    }

    /// Sets how many of the first keys are always scored exactly.
    #[must_use]
    pub fn exact_sinks(self, sinks: usize) -> Self {
        Self { exact_sinks: sinks, ..self }
    }

    /// Sets the margin of [value skipping](Self#structfield.skip_margin); `None` skips nothing.
    #[must_use]
    pub fn skip_margin(self, margin: impl Into<Option<SkipMargin>>) -> Self {
        Self { skip_margin: margin.into(), ..self }
    }

    /// Sets the length up to which prompts are attended [exactly](Self#structfield.exact_prompt).
    #[must_use]
    pub fn exact_prompt(self, tokens: usize) -> Self {
        Self { exact_prompt: tokens, ..self }
    }

    /// Sets up to how many keys a layer's queries may attend to for it to be [dense](Self#structfield.dense_up_to).
    #[must_use]
    pub fn dense_up_to(self, keys: usize) -> Self {
        Self { dense_up_to: keys, ..self }
    }

    /// Sets what single [layers](Self#structfield.layers) do otherwise.
    #[must_use]
    pub fn layers(self, layers: Vec<LayerSpec>) -> Self {
        Self { layers, ..self }
    }
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

/// Every method takes a value, or an `Option` as a command line has it.
impl SpecOverrides {
    /// Sets [`kernel`](Self#structfield.kernel).
    #[must_use]
    pub fn kernel(self, kernel: impl Into<Option<KernelKind>>) -> Self {
        Self { kernel: kernel.into(), ..self }
    }

    /// Sets [`store`](Self#structfield.store).
    #[must_use]
    pub fn store(self, store: impl Into<Option<KvStore>>) -> Self {
        Self { store: store.into(), ..self }
    }

    /// Sets [`precision`](Self#structfield.precision).
    #[must_use]
    pub fn precision(self, precision: impl Into<Option<Precision>>) -> Self {
        Self { precision: precision.into(), ..self }
    }

    /// Sets [`scale`](Self#structfield.scale).
    #[must_use]
    pub fn scale(self, scale: impl Into<Option<f32>>) -> Self {
        Self { scale: scale.into(), ..self }
    }

    /// Sets [`softcap`](Self#structfield.softcap).
    #[must_use]
    pub fn softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Self { softcap: softcap.into(), ..self }
    }

    /// Sets [`thresholds`](Self#structfield.thresholds).
    #[must_use]
    pub fn thresholds(self, thresholds: impl Into<Option<ThresholdPolicy>>) -> Self {
        Self { thresholds: thresholds.into(), ..self }
    }

    /// Sets [`exact_window`](Self#structfield.exact_window).
    #[must_use]
    pub fn exact_window(self, window: impl Into<Option<ExactWindow>>) -> Self {
        Self { exact_window: window.into(), ..self }
    }

    /// Sets [`exact_sinks`](Self#structfield.exact_sinks).
    #[must_use]
    pub fn exact_sinks(self, sinks: impl Into<Option<usize>>) -> Self {
        Self { exact_sinks: sinks.into(), ..self }
    }

    /// Sets [`skip_margin`](Self#structfield.skip_margin): `Some(None)` skips nothing.
    #[must_use]
    pub fn skip_margin(self, margin: Option<Option<SkipMargin>>) -> Self {
        Self { skip_margin: margin, ..self }
    }

    /// Sets [`exact_prompt`](Self#structfield.exact_prompt).
    #[must_use]
    pub fn exact_prompt(self, tokens: impl Into<Option<usize>>) -> Self {
        Self { exact_prompt: tokens.into(), ..self }
    }
}
