//! Settings that every kernel shares.

use deltallm_core::{KvStore, MemoryBudget};

use crate::{AttentionError, AttentionShape, Isa, Precision};

/// What an attention kernel needs to know besides its method.
///
/// ```
/// use deltallm_attn::{AttentionOptions, AttentionShape, KvStore};
///
/// let shape = AttentionShape::new(9, 3, 64)?;
/// let options = AttentionOptions { store: KvStore::F16, ..AttentionOptions::new(shape) };
/// assert_eq!(options.scale, 0.125);
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct AttentionOptions {
    /// Heads of the layer.
    pub shape: AttentionShape,
    /// Scores are `q . k * scale`; 1/sqrt(head_dim) unless the model says otherwise.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2); `None` for most models.
    pub softcap: Option<f32>,
    /// How keys and values are cached. Arithmetic is f32.
    pub store: KvStore,
    /// The account that the cache's memory is charged to. Clones share it.
    pub budget: MemoryBudget,
    /// Instruction set.
    pub isa: Isa,
    /// Arithmetic of prompts.
    pub precision: Precision,
    /// Whether to spread work over the current rayon pool. Needs the feature `rayon`; results do not depend on it.
    pub parallel: bool,
}

impl AttentionOptions {
    /// The usual settings: scale 1/sqrt(head_dim), f32 cache, no limit on memory, the best instruction set of this machine,
    /// parallel where the feature `rayon` is on.
    ///
    /// The environment is not read. A program that lets `DELTALLM_SIMD` choose sets [`isa`](Self::isa) to [`Isa::from_env`].
    ///
    /// ```
    /// use deltallm_attn::{AttentionOptions, AttentionShape, Isa};
    ///
    /// let shape = AttentionShape::new(9, 3, 64)?;
    /// let options = AttentionOptions { isa: Isa::from_env()?, ..AttentionOptions::new(shape) };
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(shape: AttentionShape) -> Self {
        Self {
            shape,
            scale: 1.0 / (shape.head_dim() as f32).sqrt(),
            softcap: None,
            store: KvStore::F32,
            budget: MemoryBudget::unlimited(),
            isa: Isa::best(),
            precision: Precision::F32,
            parallel: cfg!(feature = "rayon"),
        }
    }

    pub(crate) fn check(&self) -> Result<(), AttentionError> {
        let positive = |setting, value: f32| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(AttentionError::Setting { setting, expected: "a finite number > 0", got: f64::from(value) })
        };
        positive("scale", self.scale)?;
        positive("softcap", self.softcap.unwrap_or(1.0))
    }
}
