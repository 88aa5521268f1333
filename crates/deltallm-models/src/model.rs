//! The decoder graph: tokens in, logits out.

use std::ops::Range;

use deltallm_attn::{AttentionError, AttentionKernel, AttentionShape};
use deltallm_core::{CoreError, QueryLimits};
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut3, Axis, s};
use rayon::prelude::*;

use crate::{
    LayerWeights, Linear, ModelConfig, ModelError, ModelFile, ModelWeights,
    layers::{Rope, Turns, gated_mlp, rms_norm},
};

/// A decoder-only transformer of one of the families in [`Architecture`](crate::Architecture).
///
/// The model is immutable; all state of a conversation lives in the attention kernels, one per layer, that the caller
/// passes in. [`Session`](crate::Session) keeps them.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    weights: ModelWeights,
    rope: Rope,
    shape: AttentionShape,
}

/// Which tokens of a call the caller wants logits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// Every token's.
    All,
    /// The last token's.
    Last,
    /// Those of the last so many tokens (of all, if the call has fewer).
    Tail(usize),
    /// None: the call only fills the caches.
    None,
}

impl LogitRows {
    /// How many of a call of `tokens` tokens.
    fn of(self, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::Last => 1,
            Self::Tail(rows) => rows.min(tokens),
            Self::None => 0,
        }
    }
}

/// One sequence of a batch.
#[derive(Debug)]
pub struct Sequence<'a, K> {
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// Its attention kernels, one per layer, each with the same number of cached tokens.
    pub kernels: &'a mut [K],
    /// The logits wanted.
    pub rows: LogitRows,
}

/// What a layer's attention is given, for whoever looks on ([`Model::forward_observed`]).
#[derive(Debug)]
pub struct AttentionInput<'a> {
    /// Which layer.
    pub layer: usize,
    /// The residual stream that the layer's output is added to, before its norm: `[tokens, hidden_size]`.
    pub residual: ArrayView2<'a, f32>,
    /// Queries after RoPE, `[tokens, heads, head_dim]`.
    pub q: ArrayView3<'a, f32>,
    /// Keys after RoPE, `[tokens, kv_heads, head_dim]`.
    pub k: ArrayView3<'a, f32>,
    /// Values, `[tokens, kv_heads, head_dim]`.
    pub v: ArrayView3<'a, f32>,
}

impl Model {
    /// Reads a model's weights. `progress` is told the steps done and their total.
    ///
    /// # Errors
    /// [`ModelError`] for parameters or weights that are missing, inconsistent or not finite.
    pub fn load(file: &ModelFile, progress: &mut dyn FnMut(usize, usize)) -> Result<Self, ModelError> {
        let config = file.config()?;
        let weights = ModelWeights::load(file, &config, progress)?;
        let shape = AttentionShape::new(config.heads, config.kv_heads, config.head_dim)?;
        let rope = Rope::new(config.rope.frequencies(config.head_dim));
        Ok(Self { config, weights, rope, shape })
    }

    /// The model's parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The model's weights.
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// The largest `|scale q[j]|` that any text can lead to, from the weights alone: the norm before the projection leaves a
    /// vector of length at most `sqrt(hidden_size)`, and RoPE turns a pair of channels without making it longer. Before a
    /// ternary projection that vector is rounded, each channel by at most half a step, which is 1/254 of the largest.
    ///
    /// # Errors
    /// [`deltallm_core::CoreError`] for weights that are not finite.
    pub fn query_limits(&self) -> Result<QueryLimits, CoreError> {
        let (config, half) = (&self.config, self.config.head_dim / 2);
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        let group = config.heads / config.kv_heads;
        let mut limits = Vec::new();
        let longest = (config.hidden_size as f32).sqrt();
        for layer in &self.weights.layers {
            let (weight, bias) = (&layer.query.weight, layer.query.bias.as_ref());
            let norm = &layer.attention_norm;
            // No input of the projection is larger: all of the vector's length in one channel.
            let largest = norm.iter().fold(0.0_f32, |most, x| most.max(x.abs())) * longest;
            let row = |index: usize| {
                let weights = weight.row(index) * norm;
                let exact = weights.dot(&weights).sqrt() * longest;
                exact
                    + weight.rounding(index) * largest.max(1e-5)
                    + bias.map_or(0.0, |bias| bias[index].abs())
            };
            let channel = |head: usize, j: usize| {
                let pair = |head: usize| {
                    row(head * config.head_dim + j % half)
                        .hypot(row(head * config.head_dim + j % half + half))
                };
                (head * group..(head + 1) * group).map(pair).fold(0.0, f32::max) * scale
            };
            let places = (0..config.kv_heads).flat_map(|head| (0..config.head_dim).map(move |j| (head, j)));
            limits.extend(places.map(|(head, j)| channel(head, j)));
        }
        QueryLimits::new([config.layers, config.kv_heads, config.head_dim], limits)
    }

    /// Head counts of every layer, for making attention kernels.
    pub fn attention_shape(&self) -> AttentionShape {
        self.shape
    }

    /// Runs the next `tokens` through the model. `kernels` holds one attention kernel per layer, each with the same
    /// number of cached tokens; they are extended by `tokens`. Returns logits, `[rows, vocab_size]`.
    ///
    /// # Errors
    /// [`ModelError`] for no tokens, a token outside the vocabulary, more tokens than the context holds, a wrong number
    /// of kernels, or a failing kernel. The kernels then hold the tokens they held before (those of layers that had already
    /// finished by [`truncate`](AttentionKernel::truncate), with what that means for a hybrid window).
    pub fn forward<K: AttentionKernel>(
        &self,
        tokens: &[u32],
        kernels: &mut [K],
        rows: LogitRows,
    ) -> Result<Array2<f32>, ModelError> {
        self.run(&mut [Sequence { tokens, kernels, rows }], &mut |_| {})
    }

    /// [`forward`](Self::forward), and shows `observer` what every layer's attention is given, layer by layer.
    ///
    /// # Errors
    /// The same.
    pub fn forward_observed<K: AttentionKernel>(
        &self,
        tokens: &[u32],
        kernels: &mut [K],
        rows: LogitRows,
        observer: &mut dyn FnMut(AttentionInput),
    ) -> Result<Array2<f32>, ModelError> {
        self.run(&mut [Sequence { tokens, kernels, rows }], observer)
    }

    /// [`forward`](Self::forward) for several sequences at once, which share one pass over the weights. Returns the
    /// logits of each.
    ///
    /// # Errors
    /// The same; no sequence has moved then.
    pub fn forward_batch<K: AttentionKernel>(
        &self,
        batch: &mut [Sequence<K>],
    ) -> Result<Vec<Array2<f32>>, ModelError> {
        let logits = self.run(batch, &mut |_| {})?;
        let mut start = 0;
        let parts = batch.iter().map(|sequence| {
            let rows = start..start + sequence.rows.of(sequence.tokens.len());
            start = rows.end;
            logits.slice(s![rows, ..]).to_owned()
        });
        Ok(parts.collect())
    }

    /// Returns the wanted logits of all sequences, one after the other.
    fn run<K: AttentionKernel>(
        &self,
        batch: &mut [Sequence<K>],
        observer: &mut dyn FnMut(AttentionInput),
    ) -> Result<Array2<f32>, ModelError> {
        let positions =
            batch.iter().map(|s| self.check(s.tokens, s.kernels)).collect::<Result<Vec<_>, _>>()?;
        let result = self.decoder(batch, &positions, observer);
        if result.is_err() {
            // Layers before the failing one have the tokens already. No cache is shorter, so this cannot fail.
            for (sequence, position) in batch.iter_mut().zip(&positions) {
                for kernel in sequence.kernels.iter_mut() {
                    let _ = kernel.truncate(*position);
                }
            }
        }
        let x = result?;
        let mut wanted = Vec::new();
        let mut end = 0;
        for sequence in batch.iter() {
            end += sequence.tokens.len();
            wanted.extend(end - sequence.rows.of(sequence.tokens.len())..end);
        }
        Ok(self.head(&x.select(Axis(0), &wanted)))
    }

    /// Checks the arguments of `forward` and returns the position of the first token.
    pub(crate) fn check<K: AttentionKernel>(
        &self,
        tokens: &[u32],
        kernels: &[K],
    ) -> Result<usize, ModelError> {
        let (layers, vocab_size) = (self.config.layers, self.config.vocab_size);
        if kernels.len() != layers {
            return Err(ModelError::KernelCount { expected: layers, got: kernels.len() });
        }
        let position = kernels.first().map_or(0, AttentionKernel::len);
        if let Some((layer, kernel)) = kernels.iter().enumerate().find(|(_, kernel)| kernel.len() != position)
        {
            return Err(ModelError::KernelLength { layer, expected: position, got: kernel.len() });
        }
        if tokens.is_empty() {
            return Err(ModelError::NoTokens);
        }
        if let Some(&id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfRange { vocab_size, id });
        }
        let (context_length, needed) = (self.config.context_length, position + tokens.len());
        if needed > context_length {
            return Err(ModelError::ContextFull { context_length, got: needed });
        }
        Ok(position)
    }

    /// Embedding and all layers: the residual stream of all sequences, one after the other, `[tokens, hidden]`.
    fn decoder<K: AttentionKernel>(
        &self,
        batch: &mut [Sequence<K>],
        positions: &[usize],
        observer: &mut dyn FnMut(AttentionInput),
    ) -> Result<Array2<f32>, ModelError> {
        let turns = self.rope.turns(
            token_ranges(batch).zip(positions).flat_map(|(tokens, first)| *first..*first + tokens.len()),
        );
        let ids: Vec<usize> = batch.iter().flat_map(|s| s.tokens).map(|id| *id as usize).collect();
        let mut x = self.weights.token_embedding.rows(&ids);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let normed = rms_norm(&x, &layer.attention_norm, self.config.norm_eps);
            let failed = |source| ModelError::Attention { layer: index, source };
            let [q, k, v] = self.projections(layer, &normed, &turns).map_err(failed)?;
            let (residual, q, k, v) = (x.view(), q.view(), k.view(), v.view());
            observer(AttentionInput { layer: index, residual, q, k, v });
            let mut attended = attend(batch, index, q, k, v).map_err(failed)?;
            if let Some(norm) = &layer.attention_sub_norm {
                attended = rms_norm(&attended, norm, self.config.norm_eps);
            }
            x += &layer.attention_output.apply(&attended.view());
            x += &gated_mlp(&self.config, layer, &rms_norm(&x, &layer.mlp_norm, self.config.norm_eps));
        }
        Ok(x)
    }

    /// Queries, keys and values of a layer, rotated: `x` is `[tokens, hidden]`, the results `[tokens, heads, head_dim]`.
    fn projections(
        &self,
        layer: &LayerWeights,
        x: &Array2<f32>,
        turns: &Turns,
    ) -> Result<[Array3<f32>; 3], AttentionError> {
        let heads = |linear: &Linear| split_heads(linear.apply(&x.view()), self.config.head_dim);
        let (mut q, mut k, v) = (heads(&layer.query)?, heads(&layer.key)?, heads(&layer.value)?);
        turns.apply(&mut q);
        turns.apply(&mut k);
        Ok([q, k, v])
    }

    /// Final norm and output projection: logits `[rows, vocab_size]`.
    fn head(&self, x: &Array2<f32>) -> Array2<f32> {
        let x = rms_norm(x, &self.weights.final_norm, self.config.norm_eps);
        self.weights.head.as_ref().unwrap_or(&self.weights.token_embedding).logits(&x)
    }
}

/// `[tokens, heads * head_dim]` as `[tokens, heads, head_dim]`.
fn split_heads(x: Array2<f32>, head_dim: usize) -> Result<Array3<f32>, AttentionError> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / head_dim, head_dim))
        .map_err(|_| columns("projection", width / head_dim * head_dim, width))
}

/// A matrix whose columns are not whole heads. Loading checks the weights' shapes, so nobody has seen this error.
fn columns(input: &'static str, expected: usize, got: usize) -> AttentionError {
    AttentionError::Shape { input, dimension: "columns", expected, got }
}

/// Every sequence's tokens, `[tokens, heads, head_dim]`, through its own kernel of layer `layer`: `[tokens, heads * head_dim]`.
fn attend<K: AttentionKernel>(
    batch: &mut [Sequence<K>],
    layer: usize,
    q: ArrayView3<f32>,
    k: ArrayView3<f32>,
    v: ArrayView3<f32>,
) -> Result<Array2<f32>, AttentionError> {
    let (tokens, heads, head_dim) = q.dim();
    let mut out = Array3::zeros(q.dim());
    let mut rest = out.view_mut();
    let ranges: Vec<_> = token_ranges(batch).collect();
    let mut tasks = Vec::new();
    for (sequence, range) in batch.iter_mut().zip(ranges) {
        let (own, others) = rest.split_at(Axis(0), range.len());
        rest = others;
        tasks.push((&mut sequence.kernels[layer], range, own));
    }
    let run = |(kernel, range, out): (&mut K, Range<usize>, ArrayViewMut3<f32>)| {
        let part = s![range, .., ..];
        kernel.forward(q.slice(part), k.slice(part), v.slice(part), out)
    };
    match tasks.len() {
        // Spares the single sequence, which is every decoding step, the way through the thread pool.
        1 => tasks.into_iter().try_for_each(run)?,
        _ => tasks.into_par_iter().try_for_each(run)?,
    }
    let width = heads * head_dim;
    out.into_shape_with_order((tokens, width)).map_err(|_| columns("out", width, heads * head_dim))
}

/// Where each sequence's tokens stand when all are put one after the other.
fn token_ranges<K>(batch: &[Sequence<K>]) -> impl Iterator<Item = Range<usize>> {
    batch.iter().scan(0, |start, sequence| {
        let range = *start..*start + sequence.tokens.len();
        *start = range.end;
        Some(range)
    })
}
