//! Parameters from the metadata of a GGUF file, whose keys begin with the architecture's name there.

use super::gguf_parameters::Parameters;
use super::rope::yarn_attention_factor;
use super::sizes::{checked_head_size, checked_layers, checked_size, default_head_dim};
use super::{Architecture, ConfigError, LayerSet, ModelConfig, RopeConfig, RopeScaling};
use crate::files::names::{Format, Part, ROPE_FACTORS};
use crate::gguf::{GgufFile, Metadata, TensorInfo};
use crate::quant::{TensorType, dequantize};
use crate::{LayerTensor, TensorId};

impl ModelConfig {
    /// Reads the parameters from the header of a GGUF file. `bytes` is the whole file: the RoPE factors are a tensor.
    ///
    /// # Errors
    /// [`ConfigError`], naming the parameter.
    pub fn from_gguf(file: &GgufFile, bytes: &[u8]) -> Result<Self, ConfigError> {
        Self::from_gguf_parts(file.metadata(), &[(file, bytes)])
    }

    /// The same from all files of a model, each with its bytes, and the metadata of the first.
    pub(crate) fn from_gguf_parts(
        metadata: &Metadata,
        parts: &[(&GgufFile, &[u8])],
    ) -> Result<Self, ConfigError> {
        let tensor = |name: &str| parts.iter().find_map(|(file, bytes)| Some((file.tensor(name)?, *bytes)));
        let missing = |key: &str| ConfigError::Missing { key: key.to_owned() };
        if let Some(got) = metadata.string("general.type")?.filter(|kind| *kind != "model") {
            let (key, expected) = ("general.type".to_owned(), "`model`, the weights of a whole one");
            return Err(ConfigError::Unsupported { key, expected, got: format!("`{got}`") });
        }
        let name = metadata.string("general.architecture")?.unwrap_or_default();
        let Some(architecture) = Architecture::from_gguf_name(name) else {
            let expected = Architecture::GGUF_NAMES;
            return Err(ConfigError::Architecture { expected, got: name.to_owned() });
        };
        let embedding = TensorId::TokenEmbedding.name(Format::Gguf, Part::Weight);
        let (embedding, _) = tensor(&embedding).ok_or_else(|| missing(&embedding))?;
        let rows = embedding.shape.first().copied().unwrap_or_default();
        let head = TensorId::Head.name(Format::Gguf, Part::Weight);

        let mut parameters = Parameters::new(metadata, name);
        let hidden_size = parameters.required("embedding_length")?;
        let layers = parameters.required("block_count")?;
        let heads = parameters.required_layer_size("attention.head_count", layers)?;
        let kv_heads = parameters.layer_size("attention.head_count_kv", layers)?.unwrap_or(heads);
        let intermediate_size = parameters.required_layer_size("feed_forward_length", layers)?;
        let head_dim = match parameters.integer("attention.key_length")? {
            Some(length) => length,
            None => default_head_dim(hidden_size, heads)?,
        };
        if let Some(got) = parameters.integer("attention.value_length")?.filter(|&got| got != head_dim) {
            let (key, expected) = (parameters.key("attention.value_length"), "the size of a key head");
            return Err(ConfigError::Unsupported { key, expected, got: got.to_string() });
        }
        let rotated_channels = rotated_channels(&mut parameters, architecture, head_dim)?;
        let score_scale = score_scale(&mut parameters, architecture, layers, hidden_size, heads, head_dim)?;
        let context_length = parameters.required("context_length")?;
        let window = parameters.integer("attention.sliding_window")?.filter(|&tokens| tokens > 0);
        let local_layers = local_layers(&mut parameters, architecture, window, layers)?;
        let logit_softcap = match architecture {
            Architecture::Gemma3 => parameters.float("final_logit_softcapping")?.filter(|&cap| cap != 0.0),
            _ => None,
        };
        // As llama.cpp, which takes it from the tokens; but a file cannot promise more than it has.
        let vocab_size = parameters.integer("vocab_size")?.filter(|&size| size == 0 || size > rows as u64);
        let norm_eps = parameters.float("attention.layer_norm_rms_epsilon")?;
        let norm_eps =
            norm_eps.ok_or_else(|| missing(&parameters.key("attention.layer_norm_rms_epsilon")))?;
        let theta = parameters.float("rope.freq_base")?.unwrap_or(10_000.0);
        let scaling = read_scaling(&mut parameters, context_length)?;
        let context_length = scaling.reach(context_length);
        let local_rope = match architecture {
            Architecture::Gemma3 => Some(RopeConfig {
                theta: parameters.float("rope.freq_base_swa")?.unwrap_or(10_000.0),
                rotated_channels,
                scaling: RopeScaling::None,
            }),
            _ => None,
        };
        parameters.refuse_others()?;

        let biases = || parts.iter().flat_map(|(file, _)| file.tensors()).filter_map(projection_with_bias);
        let some_bias = |of: fn(LayerTensor) -> bool| biases().any(of);
        let config = Self {
            architecture,
            hidden_size: checked_size("hidden size", hidden_size)?,
            layers: checked_layers(layers)?,
            heads: checked_size("heads", heads)?,
            kv_heads: checked_size("key-value heads", kv_heads)?,
            head_dim: checked_head_size(head_dim)?,
            intermediate_size: checked_size("intermediate size", intermediate_size)?,
            vocab_size: checked_size("vocabulary", vocab_size.unwrap_or(rows as u64))?,
            norm_eps,
            rope: RopeConfig {
                theta,
                rotated_channels,
                scaling: match tensor(ROPE_FACTORS) {
                    Some((factors, bytes)) => scaled_factors(factors, bytes, &scaling)?,
                    None => scaling,
                },
            },
            local_rope,
            unrotated_layers: match architecture {
                // As llama.cpp, which knows no other number.
                Architecture::SmolLM3 => LayerSet::Every(4),
                _ => LayerSet::Empty,
            },
            sliding_window: None,
            local_layers,
            score_scale,
            logit_softcap,
            context_length: checked_size("context length", context_length)?,
            tie_embeddings: tensor(&head).is_none(),
            attention_bias: some_bias(|tensor| {
                matches!(tensor, LayerTensor::Query | LayerTensor::Key | LayerTensor::Value)
            }),
            attention_output_bias: some_bias(|tensor| tensor == LayerTensor::AttentionOutput),
            mlp_bias: some_bias(|tensor| {
                matches!(tensor, LayerTensor::Gate | LayerTensor::Up | LayerTensor::Down)
            }),
        };
        let config = config.with_window(window);
        config.validate()?;
        if config.vocab_size != rows {
            return Err(ConfigError::Vocabulary { rows, got: config.vocab_size });
        }
        Ok(config)
    }
}

/// The projection that a tensor is a bias of.
fn projection_with_bias(tensor: &TensorInfo) -> Option<LayerTensor> {
    match TensorId::parse(Format::Gguf, &tensor.name)? {
        (TensorId::Layer(_, tensor), Part::Bias) => Some(tensor),
        _ => None,
    }
}

/// Channels of a head that are rotated, if not all. Where GGUF has another order of rows, llama.cpp refuses fewer too.
fn rotated_channels(
    parameters: &mut Parameters<'_>,
    architecture: Architecture,
    head_dim: u64,
) -> Result<Option<usize>, ConfigError> {
    let name = "rope.dimension_count";
    let Some(got) = parameters.integer(name)?.filter(|&got| got != head_dim) else { return Ok(None) };
    if architecture.is_interleaved_in_gguf() || got > head_dim {
        let (key, expected) = (parameters.key(name), "the size of a key head");
        return Err(ConfigError::Unsupported { key, expected, got: got.to_string() });
    }
    Ok(Some(got as usize))
}

/// Scores are divided by the square root of the head size; 0 says so too. Of the largest Gemma 3, which differs, llama.cpp
/// knows it by the number of layers: its files do not say it.
fn score_scale(
    parameters: &mut Parameters<'_>,
    architecture: Architecture,
    layers: u64,
    hidden_size: u64,
    heads: u64,
    head_dim: u64,
) -> Result<Option<f32>, ConfigError> {
    const LARGEST_GEMMA3: u64 = 62;
    if architecture == Architecture::Gemma3 && layers == LARGEST_GEMMA3 {
        return Ok(Some(1.0 / (default_head_dim(hidden_size, heads)? as f32).sqrt()));
    }
    let Some(got) = parameters.float("attention.scale")? else { return Ok(None) };
    if got == 0.0 || (got * (head_dim as f32).sqrt() - 1.0).abs() < 1e-4 {
        return Ok(None);
    }
    let (key, expected) = (parameters.key("attention.scale"), "one over the square root of the head size");
    Err(ConfigError::Unsupported { key, expected, got: got.to_string() })
}

/// The layers that attend within the window. Where Gemma's files say nothing of it, every sixth layer sees all.
fn local_layers(
    parameters: &mut Parameters<'_>,
    architecture: Architecture,
    window: Option<u64>,
    layers: u64,
) -> Result<LayerSet, ConfigError> {
    if architecture != Architecture::Gemma3 {
        return Ok(if window.is_some() { LayerSet::All } else { LayerSet::Empty });
    }
    let pattern = parameters.layers("attention.sliding_window_pattern", layers)?;
    Ok(match (window, pattern) {
        // All layers see all, and rotate as those do.
        (None, _) => LayerSet::Empty,
        (_, None) => LayerSet::AllButEvery(6),
        (_, Some(pattern)) => pattern,
    })
}

/// As in llama.cpp, a scaling without a type is linear, and one without a factor changes nothing; the old key counts where the
/// new one is absent.
fn read_scaling(parameters: &mut Parameters<'_>, context_length: u64) -> Result<RopeScaling, ConfigError> {
    let kind = parameters.string("rope.scaling.type")?;
    let (factor, old) = (parameters.float("rope.scaling.factor")?, parameters.float("rope.scale_linear")?);
    let factor = factor.or(old).filter(|&factor| factor != 0.0).unwrap_or(1.0);
    match kind {
        None | Some("linear") if factor != 1.0 => Ok(RopeScaling::Linear { factor }),
        None | Some("linear" | "none") => Ok(RopeScaling::None),
        Some("yarn") => {
            let name = "rope.scaling.yarn_ext_factor";
            if let Some(got) = parameters.float(name)?.filter(|&got| got != 1.0 && got >= 0.0) {
                let (key, expected) = (parameters.key(name), "1, or nothing");
                return Err(ConfigError::Unsupported { key, expected, got: got.to_string() });
            }
            let original_context = parameters.integer("rope.scaling.original_context_length")?;
            let original_context = original_context.filter(|&tokens| tokens > 0).unwrap_or(context_length);
            let times = parameters.float("rope.scaling.attn_factor")?.filter(|&times| times != 0.0);
            Ok(RopeScaling::Yarn {
                factor,
                original_context: checked_size("RoPE original context", original_context)?,
                beta_fast: parameters.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: parameters.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: times.unwrap_or(1.0) * yarn_attention_factor(factor, 1.0),
                truncate: true,
            })
        }
        Some(got) => Err(ConfigError::RopeScaling { got: got.into() }),
    }
}

/// The factors that a tensor holds, each times that of a linear scaling.
fn scaled_factors(
    tensor: &TensorInfo,
    bytes: &[u8],
    scaling: &RopeScaling,
) -> Result<RopeScaling, ConfigError> {
    let factor = match scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } => *factor,
        _ => {
            let (expected, got) = ("no factors beside another scaling", "both".to_owned());
            return Err(ConfigError::Unsupported { key: tensor.name.clone(), expected, got });
        }
    };
    // Shape and type are checked before the values are read: they decide how much is allocated.
    let [count] = tensor.shape[..] else {
        let got = format!("{:?}", tensor.shape);
        return Err(ConfigError::WrongType { key: tensor.name.clone(), expected: "one dimension", got });
    };
    if tensor.ty != TensorType::F32 {
        let got = tensor.ty.to_string();
        return Err(ConfigError::WrongType { key: tensor.name.clone(), expected: "type F32", got });
    }
    let data = bytes.get(tensor.range.clone()).unwrap_or_default();
    let mut factors = vec![0.0; count];
    dequantize(tensor.ty, data, &mut factors).map_err(|error| ConfigError::WrongType {
        key: tensor.name.clone(),
        expected: "the bytes of the file that the header was read from",
        got: error.to_string(),
    })?;
    factors.iter_mut().for_each(|divisor| *divisor *= factor);
    Ok(RopeScaling::Factors(factors))
}
