//! The Llama graph: tokens in, logits out.

use deltallm_attn::{AttentionKernel, AttentionShape};
use ndarray::{Array2, Array3, ArrayView2, s};

use crate::{
    LayerWeights, LlamaConfig, LlamaWeights, ModelError, ModelFile,
    kernels::matmul_transposed,
    layers::{Rope, rms_norm, swiglu},
};

/// A Llama model with `f32` weights (Touvron et al., arXiv 2302.13971; grouped-query attention as in Llama 2 and 3).
///
/// The model is immutable; all state of a conversation lives in the attention kernels, one per layer, that the caller
/// passes in. [`Session`](crate::Session) keeps them.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    weights: LlamaWeights,
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
    /// None: the call only fills the caches.
    None,
}

impl Llama {
    /// Reads a model's weights. `progress` is told the steps done and their total.
    ///
    /// # Errors
    /// [`ModelError`] for parameters or weights that are missing, inconsistent or not finite.
    pub fn load(file: &ModelFile, progress: &mut dyn FnMut(usize, usize)) -> Result<Self, ModelError> {
        let config = file.llama_config()?;
        let weights = LlamaWeights::load(file, &config, progress)?;
        let shape = AttentionShape::new(config.heads, config.kv_heads, config.head_dim)?;
        let rope = Rope::new(config.rope.frequencies(config.head_dim));
        Ok(Self { config, weights, rope, shape })
    }

    /// The model's parameters.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
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
        let position = self.check(tokens, kernels)?;
        let result = self.decoder(tokens, position, kernels);
        if result.is_err() {
            // Layers before the failing one have the tokens already. No cache is shorter, so this cannot fail.
            for kernel in kernels.iter_mut() {
                let _ = kernel.truncate(position);
            }
        }
        let x = result?;
        let x = match rows {
            LogitRows::All => x.view(),
            LogitRows::Last => x.slice(s![-1.., ..]),
            LogitRows::None => x.slice(s![..0, ..]),
        };
        Ok(self.head(&x))
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

    /// Embedding and all layers: the residual stream, `[tokens, hidden]`.
    fn decoder<K: AttentionKernel>(
        &self,
        tokens: &[u32],
        position: usize,
        kernels: &mut [K],
    ) -> Result<Array2<f32>, ModelError> {
        let mut x = Array2::zeros((tokens.len(), self.config.hidden_size));
        for (mut row, &id) in x.outer_iter_mut().zip(tokens) {
            row.assign(&self.weights.token_embedding.row(id as usize));
        }
        for (index, (layer, kernel)) in self.weights.layers.iter().zip(kernels).enumerate() {
            let normed = rms_norm(&x, &layer.attention_norm, self.config.norm_eps);
            x += &self
                .attention(layer, &normed, position, kernel)
                .map_err(|source| ModelError::Attention { layer: index, source })?;
            x += &swiglu(layer, &rms_norm(&x, &layer.mlp_norm, self.config.norm_eps));
        }
        Ok(x)
    }

    /// Projections, rotation, the kernel, and the way back: `x` and the result are `[tokens, hidden]`.
    fn attention<K: AttentionKernel>(
        &self,
        layer: &LayerWeights,
        x: &Array2<f32>,
        position: usize,
        kernel: &mut K,
    ) -> Result<Array2<f32>, deltallm_attn::AttentionError> {
        let (tokens, head_dim) = (x.nrows(), self.config.head_dim);
        let mut q = split_heads(layer.query.apply(&x.view()), head_dim);
        let mut k = split_heads(layer.key.apply(&x.view()), head_dim);
        let v = split_heads(layer.value.apply(&x.view()), head_dim);
        self.rope.apply(q.view_mut(), position);
        self.rope.apply(k.view_mut(), position);
        let mut out = Array3::zeros(q.dim());
        kernel.forward(q.view(), k.view(), v.view(), out.view_mut())?;
        let width = self.config.heads * head_dim;
        let out = out.into_shape_with_order((tokens, width)).expect("the same number of elements");
        Ok(layer.attention_output.apply(&out.view()))
    }

    /// Final norm and output projection: logits `[rows, vocab_size]`.
    fn head(&self, x: &ArrayView2<f32>) -> Array2<f32> {
        let x = rms_norm(&x.to_owned(), &self.weights.final_norm, self.config.norm_eps);
        let weight = self.weights.head.as_ref().unwrap_or(&self.weights.token_embedding);
        matmul_transposed(&x.view(), &weight.view())
    }
}

/// `[tokens, heads * head_dim]` as `[tokens, heads, head_dim]`.
fn split_heads(x: Array2<f32>, head_dim: usize) -> Array3<f32> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / head_dim, head_dim)).expect("the same number of elements")
}
