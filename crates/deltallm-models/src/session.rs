//! A sequence of tokens together with its caches.

use deltallm_attn::{AttentionError, AttentionKernel, SparsityStats};
use deltallm_core::Footprint;
use ndarray::{Array1, Array2, Axis};

use crate::{Llama, LogitRows, ModelError};

/// One sequence being read and continued: the tokens so far and one attention kernel per layer.
///
/// A session prefills a prompt in chunks, decodes token by token, can be rewound to any earlier length, and be used
/// again. Kernels of several kinds can be mixed, one kind per layer.
///
/// ```
/// use deltallm_attn::{AttentionOptions, HybridAttention, HybridConfig, ThresholdPolicy};
/// use deltallm_models::{Llama, ModelFile, Sampler, SamplerConfig, Session};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
/// let model = Llama::load(&file, &mut |done, total| println!("{done} of {total}"))?;
/// let options = AttentionOptions::new(model.attention_shape())?;
/// let mut session = Session::new(&model, |layer| {
///     let config = HybridConfig { layer, ..HybridConfig::new(ThresholdPolicy::Uniform(0.6)) };
///     Ok(Box::new(HybridAttention::new(&options, &config)?))
/// })?;
///
/// let mut sampler = Sampler::new(SamplerConfig::default())?; // greedy
/// let mut logits = session.prefill(&[1, 2, 3], &mut |_| {})?.to_vec();
/// for _ in 0..4 {
///     let token = sampler.sample(&logits)?;
///     logits = session.decode(token)?.to_vec();
/// }
/// assert_eq!(session.tokens().len(), 7);
/// println!("{} bytes", session.footprint().total());
/// # Ok(())
/// # }
/// ```
pub struct Session<'m> {
    model: &'m Llama,
    kernels: Vec<Box<dyn AttentionKernel>>,
    tokens: Vec<u32>,
    chunk: usize,
}

impl<'m> Session<'m> {
    /// Tokens per call of the model during prefill, unless [`set_chunk`](Self::set_chunk) says otherwise.
    pub const DEFAULT_CHUNK: usize = 512;

    /// An empty sequence; `kernel` makes the attention of each layer.
    ///
    /// # Errors
    /// [`ModelError::Attention`] with the layer whose kernel could not be made.
    pub fn new(
        model: &'m Llama,
        mut kernel: impl FnMut(usize) -> Result<Box<dyn AttentionKernel>, AttentionError>,
    ) -> Result<Self, ModelError> {
        let kernels = (0..model.config().layers)
            .map(|layer| kernel(layer).map_err(|source| ModelError::Attention { layer, source }))
            .collect::<Result<_, _>>()?;
        Ok(Self { model, kernels, tokens: Vec::new(), chunk: Self::DEFAULT_CHUNK })
    }

    /// Sets the tokens per call during prefill (at least 1). Larger chunks are faster and need more memory.
    pub fn set_chunk(&mut self, tokens: usize) {
        self.chunk = tokens.max(1);
    }

    /// Appends a prompt and returns the logits after its last token, `[vocab_size]`. `progress` is told after every
    /// chunk how many of the tokens are done.
    ///
    /// # Errors
    /// [`ModelError`] for an empty prompt, one that does not fit in the context, a token outside the vocabulary, or a
    /// failing kernel; the session then holds the tokens it held before.
    pub fn prefill(
        &mut self,
        prompt: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Array1<f32>, ModelError> {
        let mut last = None;
        self.run(prompt, LogitRows::Last, &mut |done, logits| {
            last = Some(logits);
            progress(done);
        })?;
        // An empty prompt has been refused, so there was at least one chunk.
        last.map(|logits| logits.index_axis_move(Axis(0), 0)).ok_or(ModelError::NoTokens)
    }

    /// Appends tokens and hands over the logits of all of them, chunk by chunk: after the tokens `..done`, an array
    /// `[tokens of the chunk, vocab_size]`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn score(
        &mut self,
        tokens: &[u32],
        chunk: &mut dyn FnMut(usize, Array2<f32>),
    ) -> Result<(), ModelError> {
        self.run(tokens, LogitRows::All, chunk)
    }

    /// Appends one token and returns the logits after it, `[vocab_size]`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn decode(&mut self, token: u32) -> Result<Array1<f32>, ModelError> {
        let logits = self.model.forward(&[token], &mut self.kernels, LogitRows::Last)?;
        self.tokens.push(token);
        Ok(logits.index_axis_move(Axis(0), 0))
    }

    fn run(
        &mut self,
        tokens: &[u32],
        rows: LogitRows,
        chunk: &mut dyn FnMut(usize, Array2<f32>),
    ) -> Result<(), ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::NoTokens);
        }
        // Refused before anything is computed, not after most of it.
        let (context_length, got) = (self.model.config().context_length, self.tokens.len() + tokens.len());
        if got > context_length {
            return Err(ModelError::ContextFull { context_length, got });
        }
        let before = self.tokens.len();
        self.kernels.iter_mut().for_each(|kernel| kernel.begin_prompt(tokens.len()));
        let mut done = 0;
        for part in tokens.chunks(self.chunk) {
            done += part.len();
            let rows = if rows == LogitRows::Last && done < tokens.len() { LogitRows::None } else { rows };
            match self.model.forward(part, &mut self.kernels, rows) {
                Ok(logits) => {
                    self.tokens.extend_from_slice(part);
                    chunk(done, logits);
                }
                Err(error) => {
                    self.rewind(before)?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Forgets every token from `len` on.
    ///
    /// # Errors
    /// [`ModelError::Attention`] when `len` exceeds the tokens so far.
    pub fn rewind(&mut self, len: usize) -> Result<(), ModelError> {
        for (layer, kernel) in self.kernels.iter_mut().enumerate() {
            kernel.truncate(len).map_err(|source| ModelError::Attention { layer, source })?;
        }
        self.tokens.truncate(len);
        Ok(())
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The kernels, one per layer.
    pub fn kernels(&self) -> &[Box<dyn AttentionKernel>] {
        &self.kernels
    }

    /// Bytes of all layers' caches.
    pub fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        self.kernels.iter().for_each(|kernel| sum += kernel.footprint());
        sum
    }

    /// Sparsity of all layers together, per kv head.
    pub fn stats(&self) -> SparsityStats {
        let mut sum = SparsityStats::default();
        for kernel in &self.kernels {
            // All layers have the same number of kv heads.
            let _ = sum.merge(&kernel.stats());
        }
        sum
    }
}
