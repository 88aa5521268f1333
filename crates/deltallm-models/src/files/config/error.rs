//! Why a model's parameters cannot be used.

use deltallm_core::internal::quoted;

/// Why a model's parameters cannot be used. Keys are those of the file at hand.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not JSON, or has a key twice.
    #[error("config.json: expected JSON with every key once, got {detail}", detail = quoted(detail))]
    Json {
        /// What is wrong, with line and column.
        detail: String,
    },
    /// An architecture that is not supported.
    #[error("architecture: expected one of {expected}, got `{got}`", got = quoted(got))]
    Architecture {
        /// The names that this format has for those that are.
        expected: &'static str,
        /// Its name.
        got: String,
    },
    /// A parameter that nothing is known about, so that the model may compute something else than the graph.
    #[error(
        "`{key}`: unknown parameter with value {got}, which may change what the model computes; if it does not, remove it from \
         the file",
        key = quoted(key),
        got = quoted(got)
    )]
    Unknown {
        /// The parameter.
        key: String,
        /// Its value.
        got: String,
    },
    /// A variant of the architecture that computes something else.
    #[error("`{key}`: expected {expected}, got {got}", key = quoted(key), got = quoted(got))]
    Unsupported {
        /// The parameter.
        key: String,
        /// The value that is supported.
        expected: &'static str,
        /// The value.
        got: String,
    },
    /// A kind of RoPE scaling that is not supported.
    #[error("RoPE scaling: expected none, `default`, `linear`, `dynamic`, `llama3` or `yarn`, got `{got}`", got = quoted(got))]
    RopeScaling {
        /// Its name.
        got: String,
    },
    /// Another activation than the architecture's.
    #[error("activation: expected `{expected}`, got `{got}`", got = quoted(got))]
    Activation {
        /// The architecture's.
        expected: &'static str,
        /// Its name.
        got: String,
    },
    /// A parameter that has no default is missing.
    #[error("`{key}` is missing", key = quoted(key))]
    Missing {
        /// The parameter.
        key: String,
    },
    /// A parameter is of the wrong type.
    #[error("`{key}`: expected {expected}, got {got}", key = quoted(key), got = quoted(got))]
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
    /// RoPE rotates pairs of channels of a head.
    #[error("rotated channels: expected an even number up to the head size {head_dim}, got {got}")]
    RotatedChannels {
        /// The head size.
        head_dim: usize,
        /// Channels to be rotated.
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
        /// Half the rotated channels.
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
