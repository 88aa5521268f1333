//! The settings of hybrid attention.

use deltallm_core::{TargetSparsity, ThresholdPolicy};

use crate::{AttentionOptions, ExactWindow, SkipMargin, window::WindowState};

/// The method of [`HybridAttention`](crate::HybridAttention).
///
/// ```
/// use deltallm_attn::{HybridConfig, SkipMargin, ExactWindow};
///
/// // Layer 3 of a model: the latest 128 keys and the first 4 exact, values skipped that weigh next to nothing.
/// let config = HybridConfig::default()
///     .layer(3)
///     .exact_window(ExactWindow::Sliding(128))
///     .skip_margin(SkipMargin::Fixed(8.0));
/// assert_eq!(config.exact_sinks, 4);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HybridConfig {
    /// Thresholds of the delta coding.
    pub thresholds: ThresholdPolicy,
    /// Which layer of the policy this kernel is.
    pub layer: usize,
    /// Keys scored exactly.
    pub exact_window: ExactWindow,
    /// A prompt that ends within this many tokens is attended exactly: where there are few far keys, coding and testing them
    /// takes as long as it saves. The cache is the same, and what is generated after the prompt sees it as usual.
    pub exact_prompt: usize,
    /// First keys of the sequence, always scored exactly.
    pub exact_sinks: usize,
    /// The length from which on a cache in [`KvStore::Int8`](deltallm_core::KvStore::Int8) or
    /// [`KvStore::Compact`](deltallm_core::KvStore::Compact) holds codes. A shorter one holds everything in f16, and its queries see all keys
    /// exactly. `None` is [`CachePlan::codes_from`](deltallm_core::CachePlan::codes_from), from where on it is smaller than in f16, and holds
    /// keys in 8 bits whose deltas would take more.
    pub codes_from: Option<usize>,
    /// Skip a far value when its key scores by this margin or more below the best exact score, for every query of the
    /// tile (`docs/method.md`, equation 5); `None` keeps all.
    pub skip_margin: Option<SkipMargin>,
    /// What every kernel needs to know: store, memory budget, instruction set, scale.
    pub options: AttentionOptions,
}

impl HybridConfig {
    /// Other thresholds with the window, the sinks and the store of the [default](Self::default), and no skipping.
    pub fn new(thresholds: ThresholdPolicy) -> Self {
        Self {
            thresholds,
            layer: 0,
            exact_window: ExactWindow::Sliding(64),
            exact_prompt: 0,
            exact_sinks: 4,
            codes_from: None,
            skip_margin: None,
            options: AttentionOptions::default(),
        }
    }

    /// Sets the thresholds of the delta coding.
    #[must_use]
    pub fn thresholds(self, thresholds: ThresholdPolicy) -> Self {
        Self { thresholds, ..self }
    }

    /// Sets which layer of the thresholds this kernel is.
    #[must_use]
    pub fn layer(self, layer: usize) -> Self {
        Self { layer, ..self }
    }

    /// Sets the keys that are scored exactly.
    #[must_use]
    pub fn exact_window(self, window: ExactWindow) -> Self {
        Self { exact_window: window, ..self }
    }

    /// Sets the length up to which prompts are attended [exactly](Self#structfield.exact_prompt).
    #[must_use]
    pub fn exact_prompt(self, tokens: usize) -> Self {
        Self { exact_prompt: tokens, ..self }
    }

    /// Sets how many of the first keys are always scored exactly.
    #[must_use]
    pub fn exact_sinks(self, sinks: usize) -> Self {
        Self { exact_sinks: sinks, ..self }
    }

    /// Sets the length from which on a cache that quantises [holds codes](Self#structfield.codes_from).
    #[must_use]
    pub fn codes_from(self, tokens: impl Into<Option<usize>>) -> Self {
        Self { codes_from: tokens.into(), ..self }
    }

    /// Sets the margin of [value skipping](Self#structfield.skip_margin); `None` skips nothing.
    #[must_use]
    pub fn skip_margin(self, margin: impl Into<Option<SkipMargin>>) -> Self {
        Self { skip_margin: margin.into(), ..self }
    }

    /// Whether a prompt that ends at token `a` and one that ends at token `b` are attended alike as far as both are the same: then what is
    /// cached of one's beginning will do for the other. Only the window in blocks and
    /// [`exact_prompt`](Self#structfield.exact_prompt) look at a prompt's length.
    ///
    /// ```
    /// use deltallm_attn::{ExactWindow, HybridConfig};
    ///
    /// let sliding = HybridConfig::default().exact_prompt(512);
    /// assert!(sliding.reads_alike(700, 900) && !sliding.reads_alike(500, 700));
    /// let blocks = HybridConfig::default().exact_window(ExactWindow::Block { scale: 0.05 });
    /// assert!(blocks.reads_alike(691, 709) && !blocks.reads_alike(691, 711)); // blocks of 35 tokens, and of 36
    /// ```
    #[must_use]
    pub fn reads_alike(&self, a: usize, b: usize) -> bool {
        let of = |prompt_end| {
            (WindowState::new(self.exact_window, prompt_end).keys(), prompt_end <= self.exact_prompt)
        };
        of(a) == of(b)
    }

    /// Sets what every kernel needs to know.
    #[must_use]
    pub fn options(self, options: AttentionOptions) -> Self {
        Self { options, ..self }
    }
}

impl Default for HybridConfig {
    /// What to do with a model of which nothing is known: a zero fraction of 0.3 ([`TargetSparsity::default`]), a sliding
    /// window of 64 keys, 4 sinks, a cache in f16, and values skipped by [`SkipMargin::CAUTIOUS`]. A calibrated profile makes
    /// smaller caches at the same cost.
    fn default() -> Self {
        Self::new(ThresholdPolicy::TargetSparsity(TargetSparsity::default()))
            .skip_margin(SkipMargin::CAUTIOUS)
    }
}

/// The rule of the paper, for comparison: one threshold for all channels and a block-diagonal window, without sinks or
/// skipping.
///
/// ```
/// use deltallm_attn::{HybridConfig, PaperRule, ExactWindow};
///
/// let config = HybridConfig::from(PaperRule { theta: 1.0, ..PaperRule::default() });
/// assert_eq!((config.exact_window, config.exact_sinks), (ExactWindow::Block { scale: 0.05 }, 0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaperRule {
    /// The threshold, in the units of the keys; the paper's example is 0.6.
    pub theta: f32,
    /// Length of a block as a share of the prompt; 0.05 in the authors' code.
    pub scale: f32,
}

impl Default for PaperRule {
    fn default() -> Self {
        Self { theta: 0.6, scale: 0.05 }
    }
}

impl From<PaperRule> for HybridConfig {
    fn from(PaperRule { theta, scale }: PaperRule) -> Self {
        Self::new(ThresholdPolicy::Uniform(theta)).exact_window(ExactWindow::Block { scale }).exact_sinks(0)
    }
}
