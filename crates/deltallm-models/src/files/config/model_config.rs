//! The parameters themselves: their checks, and their fingerprint.

use deltallm_attn::Mask;
use deltallm_core::ModelFingerprint;

use super::sizes::{checked_head_size, checked_size, positive};
use super::{Architecture, ConfigError, LayerSet, RopeConfig};

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
    /// That of [`local_layers`](Self::local_layers), where it is another.
    pub local_rope: Option<RopeConfig>,
    /// Layers that rotate nothing.
    pub unrotated_layers: LayerSet,
    /// Tokens that a query of [`local_layers`](Self::local_layers) sees: its own and those before it. `None` if they see all.
    pub sliding_window: Option<usize>,
    /// Layers that attend within the window.
    pub local_layers: LayerSet,
    /// Scores are products of queries and keys times this; `None` for one over the square root of the head size.
    pub score_scale: Option<f32>,
    /// Logits become `cap * tanh(logits / cap)`.
    pub logit_softcap: Option<f32>,
    /// Positions that the model is made for: with YaRN, those after scaling.
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
            ("intermediate size", self.intermediate_size),
            ("vocabulary", self.vocab_size),
            ("context length", self.context_length),
        ] {
            checked_size(what, value as u64)?;
        }
        checked_head_size(self.head_dim as u64)?;
        checked_size("heads times head size", self.heads as u64 * self.head_dim as u64)?;
        positive("norm epsilon", self.norm_eps)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::HeadsNotDivisible { heads: self.heads, kv_heads: self.kv_heads });
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::OddHeadDim { got: self.head_dim });
        }
        if let Some(scale) = self.score_scale {
            positive("scale of scores", scale)?;
        }
        if let Some(cap) = self.logit_softcap {
            positive("cap of logits", cap)?;
        }
        if let Some(window) = self.sliding_window {
            checked_size("window", window as u64)?;
        }
        self.local_rope.iter().try_for_each(|rope| rope.validate(self.head_dim))?;
        self.rope.validate(self.head_dim)
    }

    /// Which keys the queries of a layer attend to.
    pub fn mask(&self, layer: usize) -> Mask {
        match self.sliding_window {
            Some(window) if self.local_layers.contains(layer) => Mask::SlidingWindow(window),
            _ => Mask::Causal,
        }
    }

    /// The same parameters with a window for the local layers, if it leaves something out.
    pub(super) fn with_window(mut self, window: Option<u64>) -> Self {
        let window = window.filter(|&window| window < self.context_length as u64);
        self.sliding_window = window.map(|window| window as usize);
        if self.sliding_window.is_none() && self.local_rope.is_none() {
            self.local_layers = LayerSet::Empty;
        }
        self
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
            self.architecture.fingerprint_name(),
            self.hidden_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.intermediate_size,
            self.vocab_size,
            self.norm_eps,
        );
        push_rope(&mut text, &self.rope, self.head_dim);
        if let Some(local) = &self.local_rope {
            text.push_str(" local=");
            push_rope(&mut text, local, self.head_dim);
        }
        // Not the rules, by which files say it in different ways; nor a list, of as many layers as a file may claim.
        let which = |set: &LayerSet| fnv1a((0..self.layers).map(|layer| u8::from(set.contains(layer))));
        if self.local_rope.is_some() {
            text.push_str(&format!(" of={:x}", which(&self.local_layers)));
        }
        if self.unrotated_layers != LayerSet::Empty {
            text.push_str(&format!(" unrotated={:x}", which(&self.unrotated_layers)));
        }
        ModelFingerprint(fnv1a(text.bytes()))
    }
}

/// Appends what of a rotation changes the keys.
fn push_rope(text: &mut String, rope: &RopeConfig, head_dim: usize) {
    for frequency in rope.frequencies(head_dim).unwrap_or_default() {
        text.push_str(&format!("{frequency:.2e},"));
    }
    if rope.attention_factor() != 1.0 {
        text.push_str(&format!("times={:.2e}", rope.attention_factor()));
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo; RFC 9923).
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
