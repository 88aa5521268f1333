//! From what a model's attention sees to settings for it.

use std::{collections::BTreeMap, error::Error, sync::Arc};

use deltallm_core::ElementType;
use ndarray::{Array3, ArrayView2, ArrayView3};

use super::{
    allocation::Allocation,
    error::CalibrationError,
    found::Calibrated,
    rates::RateCurves,
    request::CalibrationRequest,
    score::Score,
    search::{Search, runs},
    sensitivity::Sensitivity,
};
use crate::{AttentionError, AttentionShape, HeadsView, KernelSpec, Mask, forward::arrays::with_view};

/// One query in this many is evaluated: neighbours give nearly the same result.
const QUERY_STRIDE: usize = 2;

/// Finds the attention settings of a model, in whatever engine it runs.
///
/// 1. The engine runs dense attention over some windows of text and shows the inputs of every layer
///    ([`observe`](Self::observe), or [`observe_heads`](Self::observe_heads) without ndarray). The output projections and the residual stream make the thresholds better, where the engine
///    can give them.
/// 2. [`find`](Self::find) tries settings. The engine runs each over text that was not observed, and says what it costs: a
///    [`Score`], which [`HeldOutText`](super::HeldOutText) makes from logits.
///
/// ```
/// use deltallm_attn::{
///     AttentionKernel, AttentionShape, CalibrationGoal, HeadsView, HeadsViewMut, KernelContext, KernelKind, KernelSpec,
///     calibration::{CalibrationError, CalibrationRequest, Calibrator, Score},
/// };
///
/// // An "engine" of one layer, 2 query heads and 1 kv head of 8 channels, whose queries, keys and values are made up.
/// let shape = AttentionShape::new(2, 1, 8)?;
/// let wave = |heads: usize, speed: f32| -> Vec<f32> {
///     (0..200 * heads * 8).map(|i| (i as f32 * 0.7 + speed * (i / 8) as f32).sin()).collect()
/// };
/// let (q, k, v) = (wave(2, 0.3), wave(1, 0.02), wave(1, 0.5));
/// let (q, k, v) = (HeadsView::new(&q, [200, 2, 8])?, HeadsView::new(&k, [200, 1, 8])?, HeadsView::new(&v, [200, 1, 8])?);
/// let run = |spec: &KernelSpec| -> Result<_, CalibrationError> {
///     let (mut kernel, mut out) = (spec.build(0, &KernelContext::new(shape))?, vec![0.0; 200 * 2 * 8]);
///     kernel.forward_heads(q, k, v, HeadsViewMut::new(&mut out, [200, 2, 8])?)?;
///     Ok((out, kernel.stats()))
/// };
///
/// let request = CalibrationRequest::new(CalibrationGoal::ZeroFraction(0.6)).exact_window(16);
/// let mut calibrator = Calibrator::new(shape, 1, request)?;
/// calibrator.observe_heads(0, q, k, v)?;
///
/// // With nothing behind the layer, the mean square of the change of its output stands for a divergence.
/// let (dense, _) = run(&KernelSpec::default().kernel(KernelKind::Dense))?;
/// let found = calibrator.find(|spec| -> Result<Score, CalibrationError> {
///     let (out, stats) = run(spec)?;
///     let squares: f32 = out.iter().zip(&dense).map(|(a, b)| (a - b).powi(2)).sum();
///     Ok(Score { tokens: 200, kl: f64::from(squares / 200.0), layers: vec![stats], ..Score::default() })
/// })?;
/// assert!((found.zero_fraction - 0.6).abs() < 0.02, "{}", found.zero_fraction);
/// let kernel = found.spec.build(0, &KernelContext::new(shape))?;
/// # Ok::<(), CalibrationError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Calibrator {
    shape: AttentionShape,
    layers: usize,
    request: CalibrationRequest,
    /// What the layers' queries attend to; those beyond the list are causal.
    masks: Arc<[Mask]>,
    /// Layers that have been shown.
    seen: BTreeMap<usize, Seen>,
    /// Tokens of the longest window.
    context: usize,
}

/// What has been seen of a layer.
#[derive(Debug, Clone)]
struct Seen {
    sensitivity: Sensitivity,
    curves: RateCurves,
}

impl Calibrator {
    /// For a model of `layers` layers of this shape.
    ///
    /// # Errors
    /// [`CalibrationError::Attention`] for a model without layers, and for numbers of the request that are out of range.
    pub fn new(
        shape: AttentionShape,
        layers: usize,
        request: CalibrationRequest,
    ) -> Result<Self, CalibrationError> {
        request.check()?;
        if layers == 0 {
            let (input, dimension) = ("model", "layers (at least)");
            return Err(AttentionError::Shape { input, dimension, expected: 1, got: 0 }.into());
        }
        Ok(Self { shape, layers, request, masks: Arc::default(), seen: BTreeMap::new(), context: 0 })
    }

    /// Sets what the queries of each layer attend to, as [`KernelContext::masks`](crate::KernelContext::masks) has it. Say so before
    /// the first window is shown.
    #[must_use]
    pub fn masks(self, masks: impl Into<Arc<[Mask]>>) -> Self {
        Self { masks: masks.into(), ..self }
    }

    /// Gives the output projection of a layer, `[hidden_size, heads * head_dim]`: what it does to the heads' outputs says how
    /// much an error in each of them matters. Give it before the layer's first window, and for all layers or none.
    ///
    /// # Errors
    /// [`CalibrationError::Layer`]; [`CalibrationError::Attention`] for a matrix of another width, and for numbers that are not finite.
    pub fn output_projection(
        &mut self,
        layer: usize,
        weights: ArrayView2<f32>,
    ) -> Result<(), CalibrationError> {
        Ok(self.layer(layer)?.sensitivity.set_output(weights)?)
    }

    /// Shows what a layer's attention is given for one window of text: `q` is `[tokens, heads, head_dim]`, `k` and `v` are
    /// `[tokens, kv_heads, head_dim]`, after RoPE and with dense attention in all layers. Every call is a window of its own, from
    /// the beginning of a sequence on.
    ///
    /// # Errors
    /// [`CalibrationError::Layer`]; [`CalibrationError::Attention`] for wrong shapes and for numbers that are not finite. Nothing
    /// is added then.
    pub fn observe_heads(
        &mut self,
        layer: usize,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
    ) -> Result<(), CalibrationError> {
        let tokens = q.tokens();
        let (heads, kv_heads, head_dim) = (self.shape.heads(), self.shape.kv_heads(), self.shape.head_dim());
        q.check("q", [tokens, heads, head_dim], ElementType::F32)?;
        k.check("k", [tokens, kv_heads, head_dim], ElementType::F32)?;
        v.check("v", [tokens, kv_heads, head_dim], ElementType::F32)?;
        let seen = self.layer(layer)?;
        let [q, k, v] = [q, k, v].map(array);
        seen.sensitivity.add(q.view(), k.view(), v.view())?;
        seen.curves.add(k.view())?;
        self.context = self.context.max(tokens);
        Ok(())
    }

    /// [`observe_heads`](Self::observe_heads) for ndarray views of any strides.
    ///
    /// # Errors
    /// The same.
    pub fn observe(
        &mut self,
        layer: usize,
        q: ArrayView3<f32>,
        k: ArrayView3<f32>,
        v: ArrayView3<f32>,
    ) -> Result<(), CalibrationError> {
        with_view(q, |q| with_view(k, |k| with_view(v, |v| Ok(self.observe_heads(layer, q, k, v)))))?
    }

    /// Shows the residual stream of the same window, to which the layer's output is added: `[tokens, hidden_size]`, before its
    /// norm. An error matters less where the stream is larger. Give it for all windows and layers, or for none.
    ///
    /// # Errors
    /// [`CalibrationError::Layer`]; [`CalibrationError::Attention`] for numbers that are not finite.
    pub fn observe_residual(
        &mut self,
        layer: usize,
        residual: ArrayView2<f32>,
    ) -> Result<(), CalibrationError> {
        Ok(self.layer(layer)?.sensitivity.add_residual(residual)?)
    }

    /// How often [`find`](Self::find) calls its closure at most, for a display of progress.
    pub fn runs(&self) -> usize {
        runs(&self.request)
    }

    /// Looks for the settings that the request asks for. `score` runs the model over held-out text with kernels made by
    /// [`KernelSpec::build`], and compares it with dense attention whose cache is exact: the store is [`KvStore::exact`] of the
    /// request's. Windows of held-out text are best as long as those observed, and both as long as the texts that the model will
    /// read.
    ///
    /// The same numbers give the same settings.
    ///
    /// # Errors
    /// - [`CalibrationError::Engine`] with what `score` fails with.
    /// - [`CalibrationError::TooShort`], [`CalibrationError::Uneven`], [`CalibrationError::Residual`] for what was shown.
    /// - [`CalibrationError::Unreachable`] for a divergence that cannot be had.
    /// - [`CalibrationError::Attention`] for a score of other layers than the model's, or whose divergence is not a number.
    ///
    /// [`KvStore::exact`]: deltallm_core::KvStore::exact
    pub fn find<E: Into<Box<dyn Error + Send + Sync>>>(
        self,
        mut score: impl FnMut(&KernelSpec) -> Result<Score, E>,
    ) -> Result<Calibrated, CalibrationError> {
        self.check_seen()?;
        let Self { shape, layers, request, masks, seen, context } = self;
        let tokens = seen.values().next().map_or(0, |seen| seen.sensitivity.tokens());
        let measured = seen.into_values().map(|seen| (seen.sensitivity.finish(), seen.curves));
        let mask = |layer: usize| masks.get(layer).copied().unwrap_or_default();
        let coded: Vec<bool> =
            (0..layers).map(|layer| !KernelSpec::default().is_dense_under(mask(layer))).collect();
        let allocation = Allocation::new(measured.collect(), coded.clone())?;
        let score =
            &mut |spec: &KernelSpec| score(spec).map_err(|error| CalibrationError::Engine(error.into()));
        let search = Search {
            shape,
            layers,
            request: &request,
            coded: &coded,
            allocation: &allocation,
            context,
            score,
        };
        Ok(Calibrated { tokens, ..search.find()? })
    }

    fn layer(&mut self, layer: usize) -> Result<&mut Seen, CalibrationError> {
        if layer >= self.layers {
            return Err(CalibrationError::Layer { expected: self.layers, got: layer });
        }
        let (shape, request) = (self.shape, &self.request);
        let mask = self.masks.get(layer).copied().unwrap_or_default();
        Ok(self.seen.entry(layer).or_insert_with(|| {
            let scale = request.scale.unwrap_or_else(|| 1.0 / (shape.head_dim() as f32).sqrt());
            let exact = [request.exact_window, request.exact_sinks];
            Seen {
                sensitivity: Sensitivity::new(shape, scale, request.softcap, mask, exact, QUERY_STRIDE),
                curves: RateCurves::new(),
            }
        }))
    }

    /// Checks that every layer has seen the same, and enough of it.
    fn check_seen(&self) -> Result<(), CalibrationError> {
        let expected = self.request.exact_keys().saturating_add(1);
        if self.context < expected {
            return Err(CalibrationError::TooShort { expected, got: self.context });
        }
        let facts = |layer: usize| {
            let Some(Seen { sensitivity, .. }) = self.seen.get(&layer) else { return [0; 3] };
            [sensitivity.tokens(), usize::from(sensitivity.has_output()), sensitivity.residual_tokens()]
        };
        let first = facts(0);
        for layer in 0..self.layers {
            let own = facts(layer);
            let what = ["tokens", "output projections", "tokens of the residual stream"];
            if let Some(i) = (0..3).find(|&i| own[i] != first[i]) {
                return Err(CalibrationError::Uneven {
                    layer,
                    what: what[i],
                    expected: first[i],
                    got: own[i],
                });
            }
            if own[2] != 0 && own[2] != own[0] {
                return Err(CalibrationError::Residual { layer, expected: own[0], got: own[2] });
            }
        }
        Ok(())
    }
}

/// A copy, `[tokens, heads, head_dim]`.
fn array(view: HeadsView) -> Array3<f32> {
    Array3::from_shape_fn((view.tokens(), view.heads(), view.head_dim()), |(token, head, channel)| {
        view.row(token, head)[channel]
    })
}
