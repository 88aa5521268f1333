//! The parameters themselves: their checks, and their fingerprint.

use deltallm_core::ModelFingerprint;

use super::sizes::{checked_size, positive};
use super::{Architecture, ConfigError, RopeConfig};

/// The parameters of a model. Values made by this crate have passed [`ModelConfig::validate`].
///
/// ```
/// use deltallm_models::ModelFile;
///
/// let config = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?.config()?;
/// println!("{} layers, {} heads over {}: model {}", config.layers, config.heads, config.kv_heads, config.fingerprint());
/// # Ok::<(), deltallm_models::ModelError>(())
/// ```
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
    /// Positions that the model was trained for; not more than the window of a model whose attention has one.
    pub context_length: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Whether query, key and value projections may have biases. Which of them do, and in which layers, the file says.
    pub attention_bias: bool,
    /// Whether the attention's output projection may have a bias.
    pub attention_output_bias: bool,
    /// Whether the MLP's projections may have biases.
    pub mlp_bias: bool,
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

    /// A stable name of 64 bits for the model's geometry, by which a threshold profile recognises the model it was made
    /// for: FNV-1a over the architecture's name, the sizes that shape the attention and MLP, epsilon and the RoPE frequencies.
    ///
    /// Frequencies enter with three significant digits, so that a GGUF file, which stores scaling as factors, and the
    /// safetensors directory it was made from agree. The context length and the tying of the head are left out,
    /// because converters change them without changing the keys. Weights do not enter: a fine-tune has its base's
    /// fingerprint. Of parameters that do not [validate](Self::validate) it means nothing.
    pub fn fingerprint(&self) -> ModelFingerprint {
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
        for frequency in self.rope.frequencies(self.head_dim).unwrap_or_default() {
            text.push_str(&format!("{frequency:.2e},"));
        }
        ModelFingerprint(fnv1a(text.as_bytes()))
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo; RFC 9923).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
