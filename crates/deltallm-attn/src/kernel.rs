//! The interface between a model and its attention.

use std::fmt;

use deltallm_core::{Footprint, MemoryBudget, SnapshotError, SnapshotReader, SnapshotWriter, SparsityStats};
#[cfg(feature = "ndarray")]
use ndarray::{ArrayView3, ArrayViewMut3};

#[cfg(feature = "ndarray")]
use crate::forward::arrays::{with_view, with_view_mut};
use crate::{AttentionError, HeadsView, HeadsViewMut};

/// One layer's attention together with its key-value cache.
///
/// Keys come after rotary embedding. Positions are implied: the first token ever appended is position 0. After any
/// error the cache holds the tokens it held before the call.
pub trait AttentionKernel: Send {
    /// Appends `k` (`[tokens, kv_heads, head_dim]`) and `v` (`[tokens, kv_heads, value_dim]`) to the cache and attends `q`
    /// (`[tokens, heads, head_dim]`) to it, as the [mask](crate::Mask) says. The result goes to `out`, `[tokens, heads, value_dim]`.
    ///
    /// `q` may have fewer tokens than `k`: then its queries are those of the last ones, and the others are cached without
    /// being asked for anything. So a cache that another kernel has filled moves over in one call.
    ///
    /// `k` and `v` may have no tokens at all: then nothing is appended, and the queries are those of the last tokens in the cache. So
    /// a layer attends to the cache of another one. What has been coded since is not seen as it was, and
    /// of what only earlier queries than the last attend to some may have been dropped; within a [step](Self::begin_step) all is as it was.
    ///
    /// # Errors
    /// [`AttentionError`] for wrong shapes, numbers that are not finite or cannot be stored, or an exhausted budget.
    /// The cache is then as it was before the call, and `out` may have been written in part.
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError>;

    /// [`forward_heads`](Self::forward_heads) for ndarray views of any strides.
    ///
    /// ```
    /// use deltallm_attn::{AttentionKernel, AttentionShape, HybridAttention, HybridConfig, ndarray::Array3};
    ///
    /// let mut attention = HybridAttention::new(AttentionShape::new(4, 2, 8)?, HybridConfig::default())?;
    /// let (q, k) = (Array3::ones((5, 4, 8)), Array3::ones((5, 2, 8)));
    /// let (v, mut out) = (Array3::from_elem((5, 2, 8), 3.0), Array3::zeros((5, 4, 8)));
    /// attention.forward(q.view(), k.view(), v.view(), out.view_mut())?;
    /// assert!(out.iter().all(|x| (x - 3.0_f32).abs() < 1e-5));
    /// # Ok::<(), deltallm_attn::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// The same.
    #[cfg(feature = "ndarray")]
    fn forward(
        &mut self,
        q: ArrayView3<f32>,
        k: ArrayView3<f32>,
        v: ArrayView3<f32>,
        out: ArrayViewMut3<f32>,
    ) -> Result<(), AttentionError> {
        with_view(q, |q| {
            with_view(k, |k| with_view(v, |v| with_view_mut(out, |out| self.forward_heads(q, k, v, out))))
        })
    }

    /// Announces that the next `tokens` tokens are one prompt, however many calls bring them. A window that depends on
    /// the prompt's length is fixed by this; without it every call of more than one token counts as a whole prompt.
    fn begin_prompt(&mut self, tokens: usize);

    /// Tokens in the cache: the position of the next one. Tokens that a kernel has dropped of its own accord count.
    fn len(&self) -> usize;

    /// Whether the cache is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets every token from `len` on (speculative decoding, prompt reuse).
    ///
    /// # Errors
    /// [`deltallm_core::CoreError::TruncateBeyondEnd`] when `len` exceeds the tokens in the cache; from kernels that drop
    /// old tokens, as those with a [mask](crate::Mask) do, [`AttentionError::Dropped`] when the next query would miss some. A
    /// [step](Self::begin_step) can always be taken back.
    fn truncate(&mut self, len: usize) -> Result<(), AttentionError>;

    /// What [`truncate`](Self::truncate) would refuse, without a change: so that several layers can be cut all or none. (That memory may not
    /// suffice, [`detach`](Self::detach) finds out.)
    ///
    /// # Errors
    /// Those of `truncate`. The default, for kernels that drop nothing, refuses more tokens than there are.
    fn check_truncate(&self, len: usize) -> Result<(), AttentionError> {
        match self.len() {
            held if len > held => {
                Err(deltallm_core::CoreError::TruncateBeyondEnd { len: held, got: len }.into())
            }
            _ => Ok(()),
        }
    }

    /// Begins a step of several kernels, the layers of a model, that stands for all of them or for none: until
    /// [`commit_step`](Self::commit_step), calls let go of nothing that [`undo_step`](Self::undo_step) needs.
    ///
    /// The default is for kernels from which [`truncate`](Self::truncate) takes calls back without a trace.
    fn begin_step(&mut self) {}

    /// Ends a step that stands.
    fn commit_step(&mut self) {}

    /// Ends a step that does not stand: the cache is again what it was when the step began, with `len` tokens.
    ///
    /// # Errors
    /// As [`truncate`](Self::truncate).
    fn undo_step(&mut self, len: usize) -> Result<(), AttentionError> {
        self.truncate(len)
    }

    /// The logarithm of the sum of the exponentials of each query's scores in the latest call, in nats, `[tokens, heads]`: what merges
    /// results over parts of the keys. Values that were skipped do not count. `None` unless
    /// [`AttentionOptions::log_sum_exp`](crate::AttentionOptions::log_sum_exp) asks for it, and before the first call.
    fn log_sum_exp(&self) -> Option<&[f32]> {
        None
    }

    /// Bytes the cache holds.
    fn footprint(&self) -> Footprint;

    /// Sparsity per kv head: of the keys in the cache, and of all pairs attended since the kernel was made.
    fn stats(&self) -> SparsityStats;

    /// Bytes that appending `tokens` tokens in one call would charge to the kernel's
    /// [`MemoryBudget`] at most; `None` when the kernel cannot say. For one token it is close
    /// enough that a call never fails for want of memory when the budget has this much left.
    fn growth(&self, tokens: usize) -> Option<usize>;

    /// The account that [`growth`](Self::growth) is charged to; `None` when the kernel cannot say.
    fn budget(&self) -> Option<&MemoryBudget> {
        None
    }

    /// A kernel with the same tokens, that goes its own way from here: for several samples from one prompt, or an agent that branches. It costs
    /// next to nothing, because both share what is in the cache. Whoever changes a page copies it first, so [`growth`](Self::growth)
    /// after a fork includes these copies, and [`truncate`](Self::truncate) can find the budget exhausted. Shared pages are charged once, to the
    /// budget of both; a [footprint](Self::footprint) counts them in each. `None` when the kernel cannot be forked.
    ///
    /// ```
    /// use deltallm_attn::{AttentionKernel, AttentionShape, HeadsView, HeadsViewMut, HybridAttention, HybridConfig};
    ///
    /// let mut kernel = HybridAttention::new(AttentionShape::new(4, 2, 8)?, HybridConfig::default())?;
    /// let (q, k, mut out) = (vec![1.0; 300 * 4 * 8], vec![1.0; 300 * 2 * 8], vec![0.0; 300 * 4 * 8]);
    /// let (q, k) = (HeadsView::new(&q, [300, 4, 8])?, HeadsView::new(&k, [300, 2, 8])?);
    /// kernel.forward_heads(q, k, k, HeadsViewMut::new(&mut out, [300, 4, 8])?)?;
    /// let mut fork = kernel.fork().expect("this kernel can");
    /// fork.truncate(200)?;
    /// assert_eq!((kernel.len(), fork.len()), (300, 200));
    /// # Ok::<(), deltallm_attn::AttentionError>(())
    /// ```
    fn fork(&self) -> Option<Box<dyn AttentionKernel>> {
        None
    }

    /// Makes its own what [`truncate`](Self::truncate) would have to copy first, because forks share it: so that this cannot find the budget
    /// exhausted. (Pages that are not full are copied when a token comes.)
    ///
    /// # Errors
    /// [`deltallm_core::CoreError::BudgetExhausted`]; nothing changes then.
    fn detach(&mut self) -> Result<(), AttentionError> {
        Ok(())
    }

    /// Adds the cache to a snapshot: all that is needed to go on, bit for bit.
    ///
    /// ```
    /// use deltallm_attn::{AttentionKernel, AttentionShape, HeadsView, HeadsViewMut, HybridAttention, HybridConfig};
    /// use deltallm_core::{SnapshotReader, SnapshotWriter};
    /// use std::io::Cursor;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let new = || HybridAttention::new(AttentionShape::new(4, 2, 8)?, HybridConfig::default());
    /// let mut kernel = new()?;
    /// let (q, k, mut out) = (vec![1.0; 300 * 4 * 8], vec![1.0; 300 * 2 * 8], vec![0.0; 300 * 4 * 8]);
    /// let (q, k) = (HeadsView::new(&q, [300, 4, 8])?, HeadsView::new(&k, [300, 2, 8])?);
    /// kernel.forward_heads(q, k, k, HeadsViewMut::new(&mut out, [300, 4, 8])?)?;
    ///
    /// let (mut writer, mut file) = (SnapshotWriter::new(), Cursor::new(Vec::new()));
    /// kernel.save(&mut writer)?;
    /// writer.write(&mut file)?;
    ///
    /// let mut loaded = new()?;
    /// loaded.load(&mut SnapshotReader::copying(file.into_inner().into())?)?;
    /// assert_eq!(loaded.len(), 300);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SnapshotError::Unsupported`] for kernels that do not save caches, and within a [step](Self::begin_step).
    fn save(&self, _writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported { reason: "this kernel does not save its cache" })
    }

    /// Takes over the tokens that are next in a snapshot. The cache must be empty, and of a kernel with the settings of the one that was saved; a
    /// cache that had been [narrowed](Self::narrow) by then is loaded as it was.
    ///
    /// # Errors
    /// [`SnapshotError`]; the cache is then still empty.
    fn load(&mut self, _reader: &mut SnapshotReader) -> Result<(), SnapshotError> {
        Err(SnapshotError::Unsupported { reason: "this kernel does not load caches" })
    }

    /// Holds the cache in the next narrower store and returns the bytes given back: 0 when it is as narrow as it gets. No
    /// token is lost; keys and values are off by their rounding from then on, also after
    /// [`truncate`](Self::truncate). What forks share is given back when the last of them lets go of it.
    ///
    /// # Errors
    /// [`deltallm_core::CoreError::NotStorable`] for numbers that the narrower type cannot hold, and
    /// [`deltallm_core::CoreError::BudgetExhausted`] in a [fork](Self::fork), which has to convert copies; the cache is unchanged then.
    fn narrow(&mut self) -> Result<usize, AttentionError>;
}

/// What a kernel says of itself: whatever it is, its tokens and its bytes.
impl fmt::Debug for dyn AttentionKernel + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, footprint) = (self.len(), self.footprint());
        f.debug_struct("AttentionKernel")
            .field("len", &len)
            .field("footprint", &footprint)
            .finish_non_exhaustive()
    }
}

/// A kernel around another one: it changes what comes in or goes out, and the other one holds the cache.
///
/// Implement this and [`AttentionKernel`] comes with it: everything about the cache is asked of [`inner`](Self::inner), so
/// that a wrapper cannot forget to pass a question on, but for [`fork_wrapped`](Self::fork_wrapped). `Box<K>` and `&mut K` are such wrappers.
///
/// ```
/// use deltallm_attn::{
///     AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, HeadsView, HeadsViewMut,
///     KernelWrapper,
/// };
///
/// /// Counts the calls.
/// struct Counting(DenseAttention, usize);
///
/// impl KernelWrapper for Counting {
///     type Inner = DenseAttention;
///
///     fn inner(&self) -> &DenseAttention {
///         &self.0
///     }
///
///     fn inner_mut(&mut self) -> &mut DenseAttention {
///         &mut self.0
///     }
///
///     fn attend(&mut self, q: HeadsView, k: HeadsView, v: HeadsView, out: HeadsViewMut) -> Result<(), AttentionError> {
///         self.1 += 1;
///         self.0.forward_heads(q, k, v, out)
///     }
/// }
///
/// let (shape, options) = (AttentionShape::new(4, 2, 8)?, AttentionOptions::default());
/// let mut kernel = Counting(DenseAttention::new(shape, options)?, 0);
/// let (q, k) = (vec![1.0; 4 * 8], vec![1.0; 2 * 8]);
/// let (q, k) = (HeadsView::new(&q, [1, 4, 8])?, HeadsView::new(&k, [1, 2, 8])?);
/// let grows = kernel.growth(1);
/// kernel.forward_heads(q, k, k, HeadsViewMut::new(&mut [0.0; 4 * 8], [1, 4, 8])?)?;
/// assert_eq!((kernel.1, kernel.len(), grows), (1, 1, Some(kernel.footprint().total())));
/// # Ok::<(), AttentionError>(())
/// ```
pub trait KernelWrapper: Send {
    /// The kernel inside.
    type Inner: AttentionKernel + ?Sized;

    /// The kernel inside.
    fn inner(&self) -> &Self::Inner;

    /// The kernel inside, to be changed.
    fn inner_mut(&mut self) -> &mut Self::Inner;

    /// What [`AttentionKernel::forward_heads`] is to do, if not what the kernel inside does.
    ///
    /// # Errors
    /// Those of [`AttentionKernel::forward_heads`].
    fn attend(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        self.inner_mut().forward_heads(q, k, v, out)
    }

    /// What [`AttentionKernel::begin_prompt`] is to do, if not what the kernel inside does.
    fn announce(&mut self, tokens: usize) {
        self.inner_mut().begin_prompt(tokens);
    }

    /// What [`AttentionKernel::fork`] is to do. A wrapper cannot be forked unless it says how.
    fn fork_wrapped(&self) -> Option<Box<dyn AttentionKernel>> {
        None
    }

    /// What [`AttentionKernel::commit_step`] is to do, if not what the kernel inside does. A wrapper that does nothing leaves the step
    /// open, so that whoever holds it can still [take it back](AttentionKernel::undo_step).
    fn commit(&mut self) {
        self.inner_mut().commit_step();
    }
}

impl<W: KernelWrapper> AttentionKernel for W {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        self.attend(q, k, v, out)
    }

    fn begin_prompt(&mut self, tokens: usize) {
        self.announce(tokens);
    }

    fn len(&self) -> usize {
        self.inner().len()
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.inner_mut().truncate(len)
    }

    fn check_truncate(&self, len: usize) -> Result<(), AttentionError> {
        self.inner().check_truncate(len)
    }

    fn begin_step(&mut self) {
        self.inner_mut().begin_step();
    }

    fn commit_step(&mut self) {
        self.commit();
    }

    fn undo_step(&mut self, len: usize) -> Result<(), AttentionError> {
        self.inner_mut().undo_step(len)
    }

    fn log_sum_exp(&self) -> Option<&[f32]> {
        self.inner().log_sum_exp()
    }

    fn footprint(&self) -> Footprint {
        self.inner().footprint()
    }

    fn stats(&self) -> SparsityStats {
        self.inner().stats()
    }

    fn growth(&self, tokens: usize) -> Option<usize> {
        self.inner().growth(tokens)
    }

    fn budget(&self) -> Option<&MemoryBudget> {
        self.inner().budget()
    }

    fn fork(&self) -> Option<Box<dyn AttentionKernel>> {
        self.fork_wrapped()
    }

    fn detach(&mut self) -> Result<(), AttentionError> {
        self.inner_mut().detach()
    }

    fn save(&self, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        self.inner().save(writer)
    }

    fn load(&mut self, reader: &mut SnapshotReader) -> Result<(), SnapshotError> {
        self.inner_mut().load(reader)
    }

    fn narrow(&mut self) -> Result<usize, AttentionError> {
        self.inner_mut().narrow()
    }
}

impl<K: AttentionKernel + ?Sized> KernelWrapper for Box<K> {
    type Inner = K;

    fn inner(&self) -> &K {
        self
    }

    fn inner_mut(&mut self) -> &mut K {
        self
    }

    fn fork_wrapped(&self) -> Option<Box<dyn AttentionKernel>> {
        self.as_ref().fork()
    }
}

impl<K: AttentionKernel + ?Sized> KernelWrapper for &mut K {
    type Inner = K;

    fn inner(&self) -> &K {
        self
    }

    fn inner_mut(&mut self) -> &mut K {
        self
    }

    fn fork_wrapped(&self) -> Option<Box<dyn AttentionKernel>> {
        (**self).fork()
    }
}
