//! A sequence of tokens together with its caches.

use std::fmt;
use std::sync::Arc;

use deltallm_attn::{AtLimit, AttentionError, AttentionKernel, KernelSpec, MemoryBudget, SparsityStats};
use deltallm_core::Footprint;
use ndarray::{Array1, Array2, Axis};

use super::draft::{Draft, SpeculationStats};
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
    /// What has been read of a draft, and may have to be discarded before anything else.
    pub(super) draft: Option<Draft>,
    pub(super) speculation: SpeculationStats,
}

/// What a session has done to stay within its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowed {
    /// How often the caches went to a narrower store, all layers together counting once.
    pub times: usize,
    /// Bytes that gave back.
    pub bytes: usize,
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
            draft: None,
            speculation: SpeculationStats::default(),
        })
    }

    /// Sets the tokens per call during prefill (at least 1). Larger chunks are faster and need more memory.
    pub fn set_chunk(&mut self, tokens: usize) {
        self.chunk = tokens.max(1);
    }

    /// Appends a prompt and returns the logits after its last token, `[vocab_size]`.
    ///
    /// # Errors
    /// [`ModelError`] for an empty prompt, one that does not fit in the context, a token outside the vocabulary, or a
    /// failing kernel; the session then holds the tokens it held before. Chunks that had been read by then have been
    /// [rewound](Self::rewind). They stay only where a layer with a sliding window could not be kept beside the one that reads on: in a session
    /// that narrows its caches, without memory for both, or with a kernel that cannot be forked.
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
        self.or_as_before(prompt.len(), |session| session.prefill_watched(prompt, |_, done| progress(done)))
    }

    /// The same with a look at the session after every chunk. Where it fails, chunks may stay.
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
        self.or_as_before(tokens.len(), |session| {
            session.run(tokens, LogitRows::All, &mut |_, done, logits| chunk(done, logits))
        })
    }

    /// Appends one token and returns the logits after it, `[vocab_size]`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn decode(&mut self, token: u32) -> Result<Array1<f32>, ModelError> {
        if let Some(logits) = self.take_accepted(token) {
            return Ok(logits);
        }
        self.discard_draft()?;
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
            session.discard_draft()?;
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
        self.discard_draft()?;
        // Refused before anything is computed, not after most of it.
        self.model.check(tokens, &self.kernels)?;
        self.kernels.iter_mut().for_each(|kernel| kernel.begin_prompt(tokens.len()));
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

    /// Reads that many tokens. Where that fails, the session is as before, as far as all of its layers can be.
    fn or_as_before<T>(
        &mut self,
        tokens: usize,
        read: impl FnOnce(&mut Self) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        self.discard_draft()?;
        let (before, windows) = (self.tokens.len(), self.windows_before(tokens));
        let result = read(self);
        if result.is_err() {
            self.go_back(before, windows);
        }
        result
    }

    /// Forks of the layers that let go of tokens while a prompt of so many is read in chunks, so that they cannot be cut back to where they are:
    /// of all of them, or of none.
    fn windows_before(&self, tokens: usize) -> Vec<(usize, Box<dyn AttentionKernel>)> {
        // A fork would hold on to what narrowing is to give back.
        if self.tokens.is_empty() || tokens <= self.chunk || self.narrows() {
            return Vec::new();
        }
        let config = self.model.config();
        let windows = (0..config.layers).filter(|layer| config.mask(*layer).most_keys().is_some());
        // What the others let go of stays with the forks.
        let room = |kernel: &dyn AttentionKernel, needed: usize| {
            kernel.budget().is_none_or(|budget| budget.available() >= needed)
        };
        let needed = windows.clone().map(|layer| self.kernels[layer].footprint().total());
        let needed = needed.fold(0, usize::saturating_add);
        let forks = windows.map(|layer| {
            let kernel = &self.kernels[layer];
            Some((layer, kernel.fork().filter(|_| room(&**kernel, needed))?))
        });
        forks.collect::<Option<_>>().unwrap_or_default()
    }

    /// Back to `len` tokens, all layers or none; those of which there are forks become these.
    fn go_back(&mut self, len: usize, windows: Vec<(usize, Box<dyn AttentionKernel>)>) {
        let is_kept = |layer: usize| windows.iter().any(|(window, _)| *window == layer);
        let mut others = self.kernels.iter_mut().enumerate().filter(|(layer, _)| !is_kept(*layer));
        let can_go = |kernel: &mut dyn AttentionKernel| {
            kernel.check_truncate(len).is_ok() && (kernel.len() == len || kernel.detach().is_ok())
        };
        if others.all(|(_, kernel)| can_go(&mut **kernel)) {
            for (layer, kernel) in windows {
                self.kernels[layer] = kernel;
            }
        }
        // Where one cannot, all of them keep the chunks that have been read.
        let _ = self.rewind(len);
    }

    /// Forgets every token from `len` on. Where the tokens that go came one by one, and no more of them than the kernels'
    /// [`exact_rewind`](deltallm_attn::AttentionOptions::exact_rewind), what follows is what a session answers that was never longer. From further back,
    /// keys just before `len` are seen through their deltas; within a prompt, its other tokens have been attended as part of it. To come back exactly
    /// from anywhere, [`fork`](Self::fork) first.
    ///
    /// # Errors
    /// [`ModelError::Attention`] when `len` exceeds the tokens so far, when a layer with a sliding window no longer holds what the next token attends
    /// to there ([`AttentionError::Dropped`]), or the budget does not cover what a [fork](Self::fork) shares and must copy first. Nothing changes then.
    pub fn rewind(&mut self, len: usize) -> Result<(), ModelError> {
        self.discard_draft()?;
        self.cut_caches(len)?;
        self.tokens.truncate(len);
        Ok(())
    }

    /// Cuts the caches of all layers or of none: each is asked first, and what a fork shares is copied first, for which there may be no memory.
    pub(super) fn cut_caches(&mut self, len: usize) -> Result<(), ModelError> {
        let of = |layer: usize| move |source| ModelError::Attention { layer, source };
        for (layer, kernel) in self.kernels.iter().enumerate() {
            kernel.check_truncate(len).map_err(of(layer))?;
        }
        for (layer, kernel) in self.kernels.iter_mut().enumerate().filter(|(_, kernel)| kernel.len() > len) {
            kernel.detach().map_err(of(layer))?;
        }
        for (layer, kernel) in self.kernels.iter_mut().enumerate() {
            kernel.truncate(len).map_err(of(layer))?;
        }
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

    /// The kernels, one per layer. They may hold a [draft](Self::decode_speculative) beyond the tokens so far.
    pub fn kernels(&self) -> &[Box<dyn AttentionKernel>] {
        &self.kernels
    }

    /// Bytes of all layers' caches, with a [draft](Self::decode_speculative) if they hold one.
    pub fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        self.kernels.iter().for_each(|kernel| sum += kernel.footprint());
        sum
    }

    /// Sparsity of all layers together, per kv head. Pairs of [drafted tokens](Self::decode_speculative) that were not accepted have been attended too.
    pub fn stats(&self) -> SparsityStats {
        let mut sum = SparsityStats::default();
        for kernel in &self.kernels {
            // All layers have the same number of kv heads.
            let _ = sum.merge(&kernel.stats());
        }
        sum
    }
}
