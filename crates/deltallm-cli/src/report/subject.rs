//! What a report is about, and one measurement of it.

use std::sync::Arc;

use deltallm::models::{LogitRows, Model};
use deltallm::{DenseAttention, Footprint, KvStore};
use ndarray::Array3;
use serde::Serialize;

use crate::{HeldOutText, KernelChoice, LoadedModel, MakeKernel, Measured, WindowedText};

/// A model, its kernel and a text.
pub struct Subject<'a> {
    /// The model.
    pub model: &'a LoadedModel,
    /// Hybrid attention as it is to be reported on.
    pub kernel: &'a KernelChoice,
    /// The whole text.
    pub tokens: &'a WindowedText,
    /// Name of the text for the captions.
    pub text: &'a str,
    /// Tokens in a window.
    pub context: usize,
    /// Windows at the beginning of the text that accuracy is measured on.
    pub windows: usize,
}

/// What some settings cost, against dense attention with an f32 cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Share of zero entries.
    pub zero_fraction: f64,
    /// Share of far values that were skipped.
    pub values_skipped: f64,
    /// Mean KL divergence, nats.
    pub kl: f64,
    /// Relative change of perplexity.
    pub perplexity_change: f64,
    /// Its standard error.
    pub perplexity_change_error: f64,
    /// Share of tokens with the same most probable prediction.
    pub top1_agreement: f64,
}

impl Cost {
    pub(super) fn new(measured: &Measured) -> Self {
        let (total, (mean, error)) = (measured.score.held_out(), measured.log_likelihood_difference);
        Self {
            zero_fraction: total.zero_fraction,
            values_skipped: total.values_skipped,
            kl: total.kl,
            perplexity_change: total.perplexity_change,
            // The change is exp(-mean) - 1.
            perplexity_change_error: error * (-mean).exp(),
            top1_agreement: total.top1_agreement,
        }
    }

    /// Change of perplexity and its standard error, per cent.
    pub(super) fn perplexity_percent(&self) -> (f64, f64) {
        (100.0 * self.perplexity_change, 100.0 * self.perplexity_change_error)
    }
}

/// Queries, keys and values of all layers, as dense attention gets them.
pub(crate) struct Captured(pub(crate) Vec<[Array3<f32>; 3]>);

impl Subject<'_> {
    pub(super) fn graph(&self) -> &Arc<Model> {
        &self.model.graph
    }

    /// Tokens that accuracy is measured on.
    pub(super) fn measured_tokens(&self) -> usize {
        self.windows * self.context
    }

    /// `2 windows of 1024 tokens`
    pub(super) fn sample(&self) -> String {
        let plural = if self.windows == 1 { "" } else { "s" };
        format!("{} window{plural} of {} tokens", self.windows, self.context)
    }

    /// Dense attention over the beginning of the text in windows of `context` tokens.
    pub(super) fn dense(&self, context: usize) -> anyhow::Result<HeldOutText> {
        let windows = self.tokens.windows(context, (self.measured_tokens() / context).max(1));
        let dense = self.kernel.dense().with_store(KvStore::F32);
        HeldOutText::new(self.graph(), &windows, &|layer| dense.make(layer))
    }

    /// The kernels of `make` beside dense attention.
    pub(super) fn measure(&self, dense: &HeldOutText, make: &MakeKernel) -> anyhow::Result<Measured> {
        dense.measure(self.graph(), make)
    }

    /// The first `tokens` tokens of the text through dense attention.
    pub(crate) fn capture(&self, tokens: usize) -> anyhow::Result<Captured> {
        let dense = self.kernel.dense().with_store(KvStore::F32);
        let layers = 0..self.graph().config().layers;
        let shape = self.graph().attention_shape();
        let mut kernels = layers
            .map(|layer| DenseAttention::new(shape, dense.options(layer)))
            .collect::<Result<Vec<_>, _>>()?;
        let (window, mut captured) = (self.tokens.windows(tokens, 1).concat(), Vec::new());
        self.graph().forward_observed(&window, &mut kernels, LogitRows::None, |input| {
            captured.push([input.q, input.k, input.v].map(|x| x.to_owned()))
        })?;
        Ok(Captured(captured))
    }

    /// Bytes per token, layer and kv head of caches that hold all windows.
    pub(super) fn bytes_per_token(&self, footprint: Footprint) -> f64 {
        let config = self.graph().config();
        footprint.total() as f64 / (self.measured_tokens() * config.layers * config.kv_heads) as f64
    }

    /// What every picture was made from: two lines.
    pub(super) fn caption(&self, text: &str) -> Vec<String> {
        vec![format!("{}, {}: {text}", self.model.name, self.text), self.settings()]
    }

    /// `hybrid: profile, window 64, 4 sinks, skip margin 0.6ln+0.5, cache f16, avx2, 2 threads`
    fn settings(&self) -> String {
        let settings = self.kernel.settings();
        let mut parts = Vec::new();
        parts.extend(settings.profile.map(|_| "calibrated profile".to_owned()));
        parts.extend(settings.theta.map(|theta| format!("θ = {theta}")));
        parts.extend(settings.target_sparsity.map(|share| format!("target {share} zeros")));
        parts.extend(settings.window.map(|window| format!("window {window}")));
        parts.extend(settings.sinks.map(|sinks| format!("{sinks} sinks")));
        parts.extend(settings.skip_margin.map(|margin| format!("skip {margin}")));
        let threads = rayon::current_num_threads();
        parts.extend(settings.precision.map(|precision| format!("{precision} products")));
        parts.push(format!("cache {}", settings.kv));
        parts.push(settings.simd);
        parts.push(format!("{threads} thread{}", if threads == 1 { "" } else { "s" }));
        format!("hybrid: {}", parts.join(", "))
    }
}
