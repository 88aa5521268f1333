//! Settings that every kernel shares.

use std::{fmt, str::FromStr};

use deltallm_core::{KvStore, MemoryBudget};

use crate::{AttentionError, AttentionShape, Isa, simd::Pairs};

/// The numbers that a prompt's products are made of; sums are 32 bits wide always.
///
/// 16 bits are used where the instruction set has dot products for them ([`is_multiplied_by`](Self::is_multiplied_by)), and where
/// several tiles of queries share the cost of converting keys and values; everything else, decoding included, is f32.
///
/// ```
/// use deltallm_attn::{Isa, Precision};
///
/// assert_eq!("int16".parse::<Precision>()?, Precision::Int16);
/// assert!(Precision::F32.is_multiplied_by(Isa::best())); // the others only where the CPU has instructions
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Precision {
    /// binary32.
    #[default]
    F32,
    /// bfloat16, with Arm's bf16 extension.
    Bf16,
    /// Integers of 13 bits or more with a scale per key, query, and channel of a block of values, with AVX512-VNNI: up to twice
    /// as fast as f32.
    Int16,
}

impl Precision {
    /// Every precision, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int16];

    /// Whether this instruction set multiplies numbers of this precision; otherwise f32 takes their place.
    pub fn is_multiplied_by(self, isa: Isa) -> bool {
        self == Self::F32 || Pairs::of(isa, self).is_some()
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int16 => "int16",
        })
    }
}

impl FromStr for Precision {
    type Err = AttentionError;

    fn from_str(name: &str) -> Result<Self, AttentionError> {
        Self::ALL.into_iter().find(|precision| precision.to_string() == name).ok_or_else(|| {
            AttentionError::Name { what: "precision", expected: "f32, bf16 or int16", got: name.to_owned() }
        })
    }
}

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

    /// The usual settings with the instruction set that `DELTALLM_SIMD` names.
    #[cfg(test)]
    pub(crate) fn of_tests(shape: AttentionShape) -> Self {
        Self { isa: Isa::from_env().expect("the variable names an instruction set"), ..Self::new(shape) }
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
