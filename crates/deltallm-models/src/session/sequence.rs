//! A sequence of tokens together with its caches.

use std::fmt;
use std::sync::Arc;

use deltallm_attn::{AtLimit, AttentionError, AttentionKernel, KernelSpec, MemoryBudget, SparsityStats};
use deltallm_core::{CoreError, Footprint};
use ndarray::{Array1, Array2, Axis};

use super::guesses::{Ahead, Guesses};
use crate::{LogitRows, Model, ModelError, Sequence};

/// One sequence being read and continued: the tokens so far and one attention kernel per layer.
///
/// A session prefills a prompt in chunks, decodes token by token or [generates](Self::generate) text, can be rewound to any
/// earlier length, and be used again. It shares its model with whoever else holds the [`Arc`]: any number of sessions of one
/// model can be read and continued at once, on any threads.
///
/// ```
/// use deltallm_attn::KernelSpec;
/// use deltallm_models::{Model, ModelFile, Session};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
/// let mut session = Session::with_spec(Model::load(&file)?, &KernelSpec::default())?;
///
/// let mut logits = session.prefill(&[1, 2, 3])?;
/// for _ in 0..4 {
///     let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
///     logits = session.decode(best as u32)?;
/// }
/// assert_eq!(session.tokens().len(), 7);
/// println!("{} bytes of cache", session.footprint().total());
/// # Ok(())
/// # }
/// ```
pub struct Session {
    pub(super) model: Arc<Model>,
    pub(super) kernels: Vec<Box<dyn AttentionKernel>>,
    pub(super) tokens: Vec<u32>,
    pub(super) chunk: usize,
    pub(super) limit: Option<(MemoryBudget, AtLimit)>,
    pub(super) narrowed: Narrowed,
    /// Guesses that have been read, and may have to be taken back before anything else.
    pub(super) ahead: Option<Ahead>,
    pub(super) guesses: Guesses,
}

/// What a session has done to stay within its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowed {
    /// How often the caches went to a narrower store, all layers together counting once.
    pub times: usize,
    /// Bytes that gave back.
    pub bytes: usize,
}

/// The first session without room for its next tokens beside those of the sessions before it.
struct Refusal {
    session: usize,
    budget: MemoryBudget,
    /// What the layer would answer at which the budget ends.
    error: ModelError,
}

impl Refusal {
    /// Whether there is one among these sessions, if any of them is to be told beforehand.
    ///
    /// # Errors
    /// [`ModelError::UnknownGrowth`] for a layer of those that cannot say.
    fn of<'a>(
        sessions: impl IntoIterator<Item = &'a Session> + Clone,
        tokens: usize,
    ) -> Result<Option<Self>, ModelError> {
        if !sessions.clone().into_iter().any(Session::narrows) {
            return Ok(None);
        }
        // What is left of each budget.
        let mut left: Vec<(&MemoryBudget, usize)> = Vec::new();
        for (session, member) in sessions.into_iter().enumerate() {
            for (layer, kernel) in member.kernels.iter().enumerate() {
                let requested = match kernel.growth(tokens) {
                    None if member.narrows() => return Err(ModelError::UnknownGrowth { layer }),
                    growth => growth.unwrap_or(0),
                };
                let told = member.limit.as_ref().map(|(budget, _)| budget);
                let Some(budget) = kernel.budget().or(told) else { continue };
                let known = left.iter().position(|(other, _)| other.is_shared_with(budget));
                let known = known.unwrap_or_else(|| {
                    left.push((budget, budget.available()));
                    left.len() - 1
                });
                let available = left[known].1;
                let Some(rest) = available.checked_sub(requested) else {
                    let limit = budget.limit().unwrap_or(usize::MAX);
                    let source = CoreError::BudgetExhausted { requested, available, limit }.into();
                    let error = ModelError::Attention { layer, source };
                    return Ok(Some(Self { session, budget: budget.clone(), error }));
                };
                left[known].1 = rest;
            }
        }
        Ok(None)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("config", self.model.config())
            .field("layers", &self.kernels.len())
            .field("tokens", &self.tokens.len())
            .field("chunk", &self.chunk)
            .field("limit", &self.limit)
            .field("narrowed", &self.narrowed)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Tokens per call of the model during prefill, unless [`set_chunk`](Self::set_chunk) says otherwise.
    pub const DEFAULT_CHUNK: usize = 512;

    /// An empty sequence with the attention that `spec` describes, on [all of the machine](Model::kernel_context) and without
    /// a limit on memory.
    ///
    /// # Errors
    /// [`ModelError::Spec`] for settings that do not fit the model, [`ModelError::Attention`] with the layer whose kernel
    /// could not be made.
    pub fn with_spec(model: impl Into<Arc<Model>>, spec: &KernelSpec) -> Result<Self, ModelError> {
        let model = model.into();
        let context = model.kernel_context();
        spec.validate(context.shape, model.config().layers).map_err(ModelError::Spec)?;
        Self::new(model, |layer| spec.build(layer, &context))
    }

    /// An empty sequence; `kernel` makes the attention of each layer. Kernels of several kinds can be mixed, one kind per layer.
    ///
    /// ```
    /// use deltallm_attn::{KernelContext, KernelSpec, MemoryBudget};
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// # let model = Model::load(&file)?;
    /// // The kernels of a spec, charged to a budget.
    /// let (spec, budget) = (KernelSpec::default(), MemoryBudget::new(1 << 20));
    /// let context = model.kernel_context().budget(budget);
    /// let session = Session::new(model, |layer| spec.build(layer, &context))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ModelError::Attention`] with the layer whose kernel could not be made.
    pub fn new(
        model: impl Into<Arc<Model>>,
        mut kernel: impl FnMut(usize) -> Result<Box<dyn AttentionKernel>, AttentionError>,
    ) -> Result<Self, ModelError> {
        let model = model.into();
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
            ahead: None,
            guesses: Guesses::default(),
        })
    }

    /// Sets the tokens per call during prefill (at least 1). Larger chunks are faster and need more memory.
    pub fn set_chunk(&mut self, tokens: usize) {
        self.chunk = tokens.max(1);
    }

    /// Says what to do when `budget`, the one that all kernels charge, does not cover the next call of the model. With
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
    /// use deltallm_attn::{AtLimit, KernelContext, KernelKind, KernelSpec, KvStore, MemoryBudget};
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// # let model = Model::load(&file)?;
    /// let budget = MemoryBudget::new(80_000);
    /// let context = model.kernel_context().budget(budget.clone());
    /// let spec = KernelSpec::default().kernel(KernelKind::Dense).store(KvStore::F32);
    /// let mut session = Session::new(model, |layer| spec.build(layer, &context))?;
    /// session.limit_memory(budget.clone(), AtLimit::NarrowStore)?;
    /// session.prefill(&[1; 70])?; // two pages a layer: in f32 that would be twice the budget
    /// assert!(budget.used() <= 80_000);
    /// assert_eq!(session.narrowed().times, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ModelError::OtherBudget`] for a budget that is not the one of every kernel (or a clone of it), as far as kernels
    /// [know](AttentionKernel::budget) theirs; nothing has changed then.
    pub fn limit_memory(&mut self, budget: MemoryBudget, at_limit: AtLimit) -> Result<(), ModelError> {
        let mut budgets = self.kernels.iter().map(|kernel| kernel.budget());
        if let Some(layer) = budgets.position(|own| own.is_some_and(|own| !own.is_shared_with(&budget))) {
            return Err(ModelError::OtherBudget { layer });
        }
        self.limit = Some((budget, at_limit));
        Ok(())
    }

    /// What has been done so far to stay within the budget.
    pub fn narrowed(&self) -> Narrowed {
        self.narrowed
    }

    /// Appends a prompt and returns the logits after its last token, `[vocab_size]`.
    ///
    /// # Errors
    /// [`ModelError`] for an empty prompt, one that does not fit in the context, a token outside the vocabulary, or a
    /// failing kernel; the session then holds the tokens it held before. Chunks that had been read by then have been
    /// [rewound](Self::rewind).
    pub fn prefill(&mut self, prompt: &[u32]) -> Result<Array1<f32>, ModelError> {
        self.prefill_with(prompt, |_| {})
    }

    /// [`prefill`](Self::prefill) that tells `progress`, after every chunk, how many of the tokens are done.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn prefill_with(
        &mut self,
        prompt: &[u32],
        mut progress: impl FnMut(usize),
    ) -> Result<Array1<f32>, ModelError> {
        self.prefill_watched(prompt, |_, done| progress(done))
    }

    /// The same with a look at the session after every chunk.
    pub(super) fn prefill_watched(
        &mut self,
        prompt: &[u32],
        mut watch: impl FnMut(&Self, usize),
    ) -> Result<Array1<f32>, ModelError> {
        let mut last = None;
        self.run(prompt, LogitRows::Last, &mut |session, done, logits| {
            last = Some(logits);
            watch(session, done);
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
        mut chunk: impl FnMut(usize, Array2<f32>),
    ) -> Result<(), ModelError> {
        self.run(tokens, LogitRows::All, &mut |_, done, logits| chunk(done, logits))
    }

    /// Appends one token and returns the logits after it, `[vocab_size]`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn decode(&mut self, token: u32) -> Result<Array1<f32>, ModelError> {
        if let Some(logits) = self.accept(token) {
            return Ok(logits);
        }
        self.take_back_guesses()?;
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
    /// Sessions may share a [budget](Self::limit_memory). It must cover the tokens of all of them at once: while it does not, the first
    /// session that finds too little is narrowed, or another one that shares its budget, if they have been told to.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use deltallm_attn::KernelSpec;
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// let (model, spec) = (Arc::new(Model::load(&file)?), KernelSpec::default());
    /// let mut a = Session::with_spec(model.clone(), &spec)?;
    /// let mut b = Session::with_spec(model, &spec)?;
    /// a.prefill(&[1, 2, 3])?;
    /// b.prefill(&[4, 5])?;
    /// let logits = Session::decode_together(&mut [(&mut a, 6), (&mut b, 7)])?;
    /// assert_eq!((logits.len(), a.tokens().len(), b.tokens().len()), (2, 4, 3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), and [`ModelError::OtherModel`]; no session has moved then.
    pub fn decode_together(batch: &mut [(&mut Self, u32)]) -> Result<Vec<Array1<f32>>, ModelError> {
        let Some(model) = batch.first().map(|(session, _)| Arc::clone(&session.model)) else {
            return Ok(Vec::new());
        };
        for (index, (session, token)) in batch.iter_mut().enumerate() {
            if !Arc::ptr_eq(&session.model, &model) {
                return Err(ModelError::OtherModel { index });
            }
            session.take_back_guesses()?;
            model.check(&[*token], &session.kernels)?;
        }
        Self::make_room_for_all(batch)?;
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
        chunk: &mut dyn FnMut(&Self, usize, Array2<f32>),
    ) -> Result<(), ModelError> {
        self.take_back_guesses()?;
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
        chunk: &mut dyn FnMut(&Self, usize, Array2<f32>),
    ) -> Result<(), ModelError> {
        let mut done = 0;
        while done < tokens.len() {
            let size = self.make_room(self.chunk.min(tokens.len() - done))?;
            let part = &tokens[done..done + size];
            done += size;
            let rows = if rows == LogitRows::Last && done < tokens.len() { LogitRows::None } else { rows };
            let logits = self.model.forward(part, &mut self.kernels, rows)?;
            self.tokens.extend_from_slice(part);
            chunk(self, done, logits);
        }
        Ok(())
    }

    /// Of at most `most` tokens, how many the next call of the model may have; narrows the caches where not even one
    /// fits.
    pub(super) fn make_room(&mut self, most: usize) -> Result<usize, ModelError> {
        loop {
            let mut tokens = most;
            let refused = loop {
                match Refusal::of([&*self], tokens)? {
                    None => return Ok(tokens),
                    Some(refused) if tokens == 1 => break refused,
                    Some(_) => tokens /= 2,
                }
            };
            if !self.narrow() {
                return Err(refused.error);
            }
        }
    }

    /// The same for one token of each session.
    fn make_room_for_all(batch: &mut [(&mut Self, u32)]) -> Result<(), ModelError> {
        while let Some(Refusal { session, budget, error }) =
            Refusal::of(batch.iter().map(|(session, _)| &**session), 1)?
        {
            let (others, refused) = batch.split_at_mut(session);
            let sharing = |limit: &Option<(MemoryBudget, AtLimit)>| {
                limit.as_ref().is_some_and(|(own, _)| own.is_shared_with(&budget))
            };
            let mut helpers = refused.iter_mut().chain(others).filter(|(session, _)| sharing(&session.limit));
            if !helpers.any(|(session, _)| session.narrow()) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether caches are to be narrowed at the limit.
    pub(super) fn narrows(&self) -> bool {
        matches!(self.limit, Some((_, AtLimit::NarrowStore)))
    }

    /// Narrows the cache of every layer, if that is allowed, and says whether that gave anything back or makes the next token smaller.
    /// A layer that cannot be narrowed (its numbers may not fit in a narrower type) stays as it is.
    fn narrow(&mut self) -> bool {
        if !self.narrows() {
            return false;
        }
        let before = self.growth(1);
        let freed: usize = self.kernels.iter_mut().map(|kernel| kernel.narrow().unwrap_or_default()).sum();
        let helped = freed > 0 || self.growth(1) < before;
        self.narrowed.times += usize::from(helped);
        self.narrowed.bytes += freed;
        helped
    }

    /// Bytes that the next tokens take, as far as kernels know.
    fn growth(&self, tokens: usize) -> usize {
        self.kernels.iter().filter_map(|kernel| kernel.growth(tokens)).fold(0, usize::saturating_add)
    }

    /// Forgets every token from `len` on. Where the tokens that go came one by one, and no more of them than the kernels'
    /// [`exact_rewind`](deltallm_attn::AttentionOptions::exact_rewind), what follows is what a session answers that was never longer. From further back,
    /// keys just before `len` are seen through their deltas; within a prompt, its other tokens have been attended as part of it. To come back exactly
    /// from anywhere, [`fork`](Self::fork) first.
    ///
    /// # Errors
    /// [`ModelError::Attention`] when `len` exceeds the tokens so far, or the budget does not cover what a [fork](Self::fork) shares and must
    /// copy first.
    pub fn rewind(&mut self, len: usize) -> Result<(), ModelError> {
        self.take_back_guesses()?;
        // All or none: what a fork shares is copied first, for which there may be no memory.
        for (layer, kernel) in self.kernels.iter_mut().enumerate().filter(|_| len < self.tokens.len()) {
            kernel.detach().map_err(|source| ModelError::Attention { layer, source })?;
        }
        for (layer, kernel) in self.kernels.iter_mut().enumerate() {
            kernel.truncate(len).map_err(|source| ModelError::Attention { layer, source })?;
        }
        self.tokens.truncate(len);
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The kernels, one per layer. They may hold [guesses](Self::decode_guessing) beyond the tokens so far.
    pub fn kernels(&self) -> &[Box<dyn AttentionKernel>] {
        &self.kernels
    }

    /// Bytes of all layers' caches, with [guesses](Self::decode_guessing) if they hold some.
    pub fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        self.kernels.iter().for_each(|kernel| sum += kernel.footprint());
        sum
    }

    /// Sparsity of all layers together, per kv head. Pairs of [guesses](Self::decode_guessing) that were wrong have been attended too.
    pub fn stats(&self) -> SparsityStats {
        let mut sum = SparsityStats::default();
        for kernel in &self.kernels {
            // All layers have the same number of kv heads.
            let _ = sum.merge(&kernel.stats());
        }
        sum
    }
}
