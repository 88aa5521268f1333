//! The parameters of a model, read from GGUF metadata or from a `config.json`.

mod architecture;
#[cfg(feature = "gguf")]
mod from_gguf;
#[cfg(feature = "safetensors")]
mod from_json;
#[cfg(feature = "safetensors")]
mod quantization;
mod rope;

pub use architecture::{Activation, Architecture};
#[cfg(feature = "safetensors")]
pub(crate) use quantization::Quantization;
pub use rope::{RopeConfig, RopeScaling};

/// The most that any size may be: larger than every published model, and small enough that products of two cannot
/// overflow.
const MAX_SIZE: u64 = 1 << 24;

/// The parameters of a model. Values made by this crate have passed [`ModelConfig::validate`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The family it belongs to.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels per head; even.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Epsilon of every RMSNorm; positive.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Positions that the model was trained for.
    pub context_length: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Whether query, key and value projections have biases.
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub attention_output_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
}

/// Why a model's parameters cannot be used. Keys are those of the file at hand.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An architecture that is not supported.
    #[error("architecture: expected one of {expected}, got `{got}`")]
    Architecture {
        /// The names that this format has for those that are.
        expected: &'static str,
        /// Its name.
        got: String,
    },
    /// A variant of the architecture that has further weights.
    #[error("`{key}`: expected {expected}, got {got}")]
    Unsupported {
        /// The parameter.
        key: String,
        /// The value that is supported.
        expected: &'static str,
        /// The value.
        got: String,
    },
    /// A kind of RoPE scaling that is not supported.
    #[error("RoPE scaling: expected none, `default`, `linear` or `llama3`, got `{got}`")]
    RopeScaling {
        /// Its name.
        got: String,
    },
    /// Another activation than the architecture's.
    #[error("activation: expected `{expected}`, got `{got}`")]
    Activation {
        /// The architecture's.
        expected: &'static str,
        /// Its name.
        got: String,
    },
    /// A parameter that has no default is missing.
    #[error("`{key}` is missing")]
    Missing {
        /// The parameter.
        key: String,
    },
    /// A parameter is of the wrong type.
    #[error("`{key}`: expected {expected}, got {got}")]
    WrongType {
        /// The parameter.
        key: String,
        /// The type it should have.
        expected: &'static str,
        /// The value or its type.
        got: String,
    },
    /// A size is zero or absurd.
    #[error("{what}: expected 1 to {most}, got {got}")]
    Size {
        /// Which size.
        what: &'static str,
        /// The largest that is accepted.
        most: u64,
        /// The value.
        got: u64,
    },
    /// A number is not positive, or not finite.
    #[error("{what}: expected a positive finite number, got {got}")]
    NotPositive {
        /// Which number.
        what: &'static str,
        /// The value.
        got: f32,
    },
    /// The size of a head is not given and the heads do not divide the hidden size.
    #[error("heads: expected a divisor of the hidden size {hidden_size}, got {heads}")]
    HiddenNotDivisible {
        /// The hidden size.
        hidden_size: u64,
        /// The query heads.
        heads: u64,
    },
    /// Groups of query heads would be uneven.
    #[error("key-value heads: expected a divisor of the {heads} query heads, got {kv_heads}")]
    HeadsNotDivisible {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
    },
    /// RoPE rotates pairs of channels.
    #[error("head size: expected an even number, got {got}")]
    OddHeadDim {
        /// The head size.
        got: usize,
    },
    /// Frequencies of the llama3 scaling out of order.
    #[error("RoPE scaling: expected low_freq_factor < high_freq_factor, got {low} and {high}")]
    RopeBand {
        /// `low_freq_factor`.
        low: f32,
        /// `high_freq_factor`.
        high: f32,
    },
    /// Not one RoPE factor for each pair of channels.
    #[error("RoPE factors: expected {expected}, one for each pair of channels, got {got}")]
    RopeFactors {
        /// Half the head size.
        expected: usize,
        /// Their number.
        got: usize,
    },
    /// The vocabulary and the embedding disagree.
    #[error("vocabulary: expected {rows} as the embedding has rows, got {got}")]
    Vocabulary {
        /// Rows of the embedding.
        rows: usize,
        /// The vocabulary's size.
        got: usize,
    },
    /// A metadata entry of a GGUF file has the wrong type.
    #[cfg(feature = "gguf")]
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
}

impl ModelConfig {
    /// Checks that the parameters are consistent.
    ///
    /// # Errors
    /// [`ConfigError`], naming the parameter.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (what, value) in [
            ("hidden size", self.hidden_size),
            ("layers", self.layers),
            ("heads", self.heads),
            ("key-value heads", self.kv_heads),
            ("head size", self.head_dim),
            ("intermediate size", self.intermediate_size),
            ("vocabulary", self.vocab_size),
            ("context length", self.context_length),
        ] {
            checked_size(what, value as u64)?;
        }
        checked_size("heads times head size", self.heads as u64 * self.head_dim as u64)?;
        positive("norm epsilon", self.norm_eps)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::HeadsNotDivisible { heads: self.heads, kv_heads: self.kv_heads });
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::OddHeadDim { got: self.head_dim });
        }
        self.rope.validate(self.head_dim)
    }

    /// A stable 64-bit name for the model's geometry, by which a threshold profile recognises the model it was made
    /// for: FNV-1a over the architecture's name, the sizes that shape the attention and MLP, epsilon and the RoPE frequencies.
    ///
    /// Frequencies enter with three significant digits, so that a GGUF file, which stores scaling as factors, and the
    /// safetensors directory it was made from agree. The context length and the tying of the head are left out,
    /// because converters change them without changing the keys. Weights do not enter: a fine-tune has its base's
    /// fingerprint.
    pub fn fingerprint(&self) -> u64 {
        let mut text = format!(
            "{} hidden={} layers={} heads={} kv_heads={} head_dim={} intermediate={} vocab={} eps={:.3e} rope=",
            self.architecture.name(),
            self.hidden_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.intermediate_size,
            self.vocab_size,
            self.norm_eps,
        );
        for frequency in self.rope.frequencies(self.head_dim) {
            text.push_str(&format!("{frequency:.2e},"));
        }
        fnv1a(text.as_bytes())
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo; RFC 9923).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The number as a size, if it is one that a model can have.
fn checked_size(what: &'static str, got: u64) -> Result<usize, ConfigError> {
    if (1..=MAX_SIZE).contains(&got) {
        Ok(got as usize)
    } else {
        Err(ConfigError::Size { what, most: MAX_SIZE, got })
    }
}

fn positive(what: &'static str, got: f32) -> Result<(), ConfigError> {
    if got.is_finite() && got > 0.0 { Ok(()) } else { Err(ConfigError::NotPositive { what, got }) }
}

/// Channels per head where the file does not say.
fn default_head_dim(hidden_size: u64, heads: u64) -> Result<u64, ConfigError> {
    if heads == 0 {
        return Err(ConfigError::Size { what: "heads", most: MAX_SIZE, got: 0 });
    }
    if !hidden_size.is_multiple_of(heads) {
        return Err(ConfigError::HiddenNotDivisible { hidden_size, heads });
    }
    Ok(hidden_size / heads)
}
