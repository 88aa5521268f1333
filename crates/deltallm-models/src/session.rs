//! A sequence of tokens together with its caches.

use deltallm_attn::{AtLimit, AttentionError, AttentionKernel, MemoryBudget, SparsityStats};
use deltallm_core::{CoreError, Footprint};
use ndarray::{Array1, Array2, Axis};

use crate::{LogitRows, Model, ModelError, Sequence};

/// One sequence being read and continued: the tokens so far and one attention kernel per layer.
///
/// A session prefills a prompt in chunks, decodes token by token, can be rewound to any earlier length, and be used
/// again. Kernels of several kinds can be mixed, one kind per layer.
///
/// ```
/// use deltallm_attn::{HybridAttention, HybridConfig, ThresholdPolicy};
/// use deltallm_models::{Model, ModelFile, Sampler, SamplerConfig, Session};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
/// let model = Model::load(&file, &mut |done, total| println!("{done} of {total}"))?;
/// let mut session = Session::new(&model, |layer| {
///     let config = HybridConfig::new(ThresholdPolicy::Uniform(0.6)).layer(layer);
///     Ok(Box::new(HybridAttention::new(model.attention_shape(), config)?))
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
    model: &'m Model,
    kernels: Vec<Box<dyn AttentionKernel>>,
    tokens: Vec<u32>,
    chunk: usize,
    limit: Option<(MemoryBudget, AtLimit)>,
    narrowed: Narrowed,
}

/// What a session has done to stay within its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowed {
    /// How often the caches went to a narrower store, all layers together counting once.
    pub times: usize,
    /// Bytes that gave back.
    pub bytes: usize,
}

impl<'m> Session<'m> {
    /// Tokens per call of the model during prefill, unless [`set_chunk`](Self::set_chunk) says otherwise.
    pub const DEFAULT_CHUNK: usize = 512;

    /// An empty sequence; `kernel` makes the attention of each layer.
    ///
    /// # Errors
    /// [`ModelError::Attention`] with the layer whose kernel could not be made.
    pub fn new(
        model: &'m Model,
        mut kernel: impl FnMut(usize) -> Result<Box<dyn AttentionKernel>, AttentionError>,
    ) -> Result<Self, ModelError> {
        let kernels = (0..model.config().layers)
            .map(|layer| kernel(layer).map_err(|source| ModelError::Attention { layer, source }))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            model,
            kernels,
            tokens: Vec::new(),
            chunk: Self::DEFAULT_CHUNK,
            limit: None,
            narrowed: Narrowed::default(),
        })
    }

    /// Sets the tokens per call during prefill (at least 1). Larger chunks are faster and need more memory.
    pub fn set_chunk(&mut self, tokens: usize) {
        self.chunk = tokens.max(1);
    }

    /// Says what to do when `budget`, the one that the kernels charge, does not cover the next call of the model. With
    /// [`AtLimit::NarrowStore`] that is first smaller chunks in prefill, and then a narrower store for all layers, as often
    /// as it helps. Only then the error comes out that [`AtLimit::Error`] (and a session that has not been told) gives at
    /// once.
    ///
    /// This is settled before the model is called, so a token that does not fit costs nothing, not even the exact
    /// copies of a hybrid window. It takes kernels that know what a call charges: one whose
    /// [`growth`](AttentionKernel::growth) is `None` makes the call answer [`ModelError::UnknownGrowth`], because it
    /// might use up the budget at any token. What has been narrowed stays so, also after [`rewind`](Self::rewind).
    ///
    /// ```
    /// use deltallm_attn::{AtLimit, AttentionOptions, DenseAttention, KvStore, MemoryBudget};
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// # let model = Model::load(&file, &mut |_, _| {})?;
    /// let budget = MemoryBudget::new(80_000);
    /// let options = AttentionOptions::default().store(KvStore::F32).budget(budget.clone());
    /// let shape = model.attention_shape();
    /// let mut session = Session::new(&model, |_| Ok(Box::new(DenseAttention::new(shape, options.clone())?)))?;
    /// session.limit_memory(budget.clone(), AtLimit::NarrowStore);
    /// session.prefill(&[1; 70], &mut |_| {})?; // two pages a layer: in f32 that would be twice the budget
    /// assert!(budget.used() <= 80_000);
    /// assert_eq!(session.narrowed().times, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn limit_memory(&mut self, budget: MemoryBudget, at_limit: AtLimit) {
        self.limit = Some((budget, at_limit));
    }

    /// What has been done so far to stay within the budget.
    pub fn narrowed(&self) -> Narrowed {
        self.narrowed
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
        self.model.check(&[token], &self.kernels)?;
        self.make_room(1)?;
        let logits = self.model.forward(&[token], &mut self.kernels, LogitRows::Last)?;
        self.tokens.push(token);
        Ok(logits.index_axis_move(Axis(0), 0))
    }

    /// [`decode`](Self::decode) for several sessions of one model, each with its own token and caches: the weights are read once
    /// for all of them. Returns the logits of each.
    ///
    /// Where weights are packed every session gets what it would get alone, bit for bit. Floats may be added up in another
    /// order for a batch than for one token, and may so differ in their last digits.
    ///
    /// ```
    /// use deltallm_attn::{AttentionOptions, DenseAttention};
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// # let model = Model::load(&file, &mut |_, _| {})?;
    /// let (shape, options) = (model.attention_shape(), AttentionOptions::default());
    /// let session = || Session::new(&model, |_| Ok(Box::new(DenseAttention::new(shape, options.clone())?)));
    /// let (mut a, mut b) = (session()?, session()?);
    /// a.prefill(&[1, 2, 3], &mut |_| {})?;
    /// b.prefill(&[4, 5], &mut |_| {})?;
    /// let logits = Session::decode_together(&mut [(&mut a, 6), (&mut b, 7)])?;
    /// assert_eq!((logits.len(), a.tokens().len(), b.tokens().len()), (2, 4, 3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), and [`ModelError::OtherModel`]; no session has moved then.
    pub fn decode_together(batch: &mut [(&mut Self, u32)]) -> Result<Vec<Array1<f32>>, ModelError> {
        let Some(model) = batch.first().map(|(session, _)| session.model) else { return Ok(Vec::new()) };
        for (index, (session, token)) in batch.iter().enumerate() {
            if !std::ptr::eq(session.model, model) {
                return Err(ModelError::OtherModel { index });
            }
            model.check(&[*token], &session.kernels)?;
        }
        for (session, _) in batch.iter_mut() {
            session.make_room(1)?;
        }
        let mut sequences: Vec<_> = batch
            .iter_mut()
            .map(|(session, token)| {
                let tokens = std::slice::from_ref(token);
                Sequence { tokens, kernels: &mut session.kernels[..], rows: LogitRows::Last }
            })
            .collect();
        let logits = model.forward_batch(&mut sequences)?;
        batch.iter_mut().for_each(|(session, token)| session.tokens.push(*token));
        Ok(logits.into_iter().map(|logits| logits.index_axis_move(Axis(0), 0)).collect())
    }

    fn run(
        &mut self,
        tokens: &[u32],
        rows: LogitRows,
        chunk: &mut dyn FnMut(usize, Array2<f32>),
    ) -> Result<(), ModelError> {
        // Refused before anything is computed, not after most of it.
        self.model.check(tokens, &self.kernels)?;
        let before = self.tokens.len();
        self.kernels.iter_mut().for_each(|kernel| kernel.begin_prompt(tokens.len()));
        let result = self.run_chunks(tokens, rows, chunk);
        if result.is_err() {
            self.rewind(before)?;
        }
        result
    }

    fn run_chunks(
        &mut self,
        tokens: &[u32],
        rows: LogitRows,
        chunk: &mut dyn FnMut(usize, Array2<f32>),
    ) -> Result<(), ModelError> {
        let mut done = 0;
        while done < tokens.len() {
            let size = self.make_room(self.chunk.min(tokens.len() - done))?;
            let part = &tokens[done..done + size];
            done += size;
            let rows = if rows == LogitRows::Last && done < tokens.len() { LogitRows::None } else { rows };
            let logits = self.model.forward(part, &mut self.kernels, rows)?;
            self.tokens.extend_from_slice(part);
            chunk(done, logits);
        }
        Ok(())
    }

    /// Of at most `most` tokens, how many the next call of the model may have; narrows the caches where not even one
    /// fits.
    fn make_room(&mut self, most: usize) -> Result<usize, ModelError> {
        let budget = match &self.limit {
            None | Some((_, AtLimit::Error)) => return Ok(most),
            Some((budget, AtLimit::NarrowStore)) => budget.clone(),
        };
        let mut helped = true;
        loop {
            let mut tokens = most;
            let refused = loop {
                match self.refusal(&budget, tokens)? {
                    None => return Ok(tokens),
                    Some(refused) if tokens == 1 => break refused,
                    Some(_) => tokens /= 2,
                }
            };
            if !helped {
                return Err(refused);
            }
            helped = self.narrow();
        }
    }

    /// The error that the first layer without room for `tokens` tokens more would give, if the budget does not cover them.
    ///
    /// # Errors
    /// [`ModelError::UnknownGrowth`] for a layer that cannot say.
    fn refusal(&self, budget: &MemoryBudget, tokens: usize) -> Result<Option<ModelError>, ModelError> {
        let mut available = budget.available();
        for (layer, kernel) in self.kernels.iter().enumerate() {
            let requested = kernel.growth(tokens).ok_or(ModelError::UnknownGrowth { layer })?;
            match available.checked_sub(requested) {
                Some(left) => available = left,
                None => {
                    let limit = budget.limit().unwrap_or(usize::MAX);
                    let source = CoreError::BudgetExhausted { requested, available, limit }.into();
                    return Ok(Some(ModelError::Attention { layer, source }));
                }
            }
        }
        Ok(None)
    }

    /// Narrows the cache of every layer and says whether that gave anything back. A layer that cannot be narrowed (its
    /// numbers may not fit in a narrower type) stays as it is.
    fn narrow(&mut self) -> bool {
        let freed: usize = self.kernels.iter_mut().map(|kernel| kernel.narrow().unwrap_or_default()).sum();
        if freed > 0 {
            self.narrowed.times += 1;
            self.narrowed.bytes += freed;
        }
        freed > 0
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
