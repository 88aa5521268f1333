//! Parameters from the metadata of a GGUF file, whose keys begin with the architecture's name there.

use super::sizes::{checked_size, default_head_dim};
use super::{Architecture, ConfigError, ModelConfig, RopeConfig, RopeScaling};
use crate::gguf::{GgufFile, Metadata};
use crate::quant::{TensorType, dequantize};

impl ModelConfig {
    /// Reads the parameters from the header of a GGUF file. `bytes` is the whole file: the RoPE factors are a tensor.
    ///
    /// # Errors
    /// [`ConfigError`], naming the parameter.
    pub fn from_gguf(file: &GgufFile, bytes: &[u8]) -> Result<Self, ConfigError> {
        let metadata = file.metadata();
        let name = metadata.string("general.architecture")?.unwrap_or_default();
        let Some(architecture) = Architecture::from_gguf_name(name) else {
            let expected = "`llama`, `bitnet`, `bitnet-b1.58` and `bitnet-25`";
            return Err(ConfigError::Architecture { expected, got: name.to_owned() });
        };
        let key = |parameter: &str| format!("{name}.{parameter}");
        let embedding = file
            .tensor("token_embd.weight")
            .ok_or_else(|| ConfigError::Missing { key: "token_embd.weight".into() })?;
        let rows = embedding.shape.first().copied().unwrap_or_default();

        refuse_experts(metadata, &key("expert_count"))?;
        let hidden_size = required(metadata, &key("embedding_length"))?;
        let heads = required(metadata, &key("attention.head_count"))?;
        let head_dim = match metadata.integer(&key("attention.key_length"))? {
            Some(length) => length,
            None => default_head_dim(hidden_size, heads)?,
        };
        for key in ["attention.value_length", "rope.dimension_count"].map(key) {
            if let Some(got) = metadata.integer(&key)?.filter(|&got| got != head_dim) {
                let expected = "the size of a key head";
                return Err(ConfigError::Unsupported { key, expected, got: got.to_string() });
            }
        }
        let config = Self {
            architecture,
            hidden_size: checked_size("hidden size", hidden_size)?,
            layers: checked_size("layers", required(metadata, &key("block_count"))?)?,
            heads: checked_size("heads", heads)?,
            kv_heads: checked_size(
                "key-value heads",
                metadata.integer(&key("attention.head_count_kv"))?.unwrap_or(heads),
            )?,
            head_dim: checked_size("head size", head_dim)?,
            intermediate_size: checked_size(
                "intermediate size",
                required(metadata, &key("feed_forward_length"))?,
            )?,
            vocab_size: checked_size(
                "vocabulary",
                metadata.integer(&key("vocab_size"))?.unwrap_or(rows as u64),
            )?,
            norm_eps: metadata
                .float(&key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| ConfigError::Missing { key: key("attention.layer_norm_rms_epsilon") })?,
            rope: RopeConfig {
                theta: metadata.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
                scaling: read_scaling(file, bytes, key)?,
            },
            context_length: checked_size("context length", required(metadata, &key("context_length"))?)?,
            tie_embeddings: file.tensor("output.weight").is_none(),
            attention_bias: file.tensor("blk.0.attn_q.bias").is_some(),
            attention_output_bias: file.tensor("blk.0.attn_output.bias").is_some(),
            mlp_bias: file.tensor("blk.0.ffn_up.bias").is_some(),
        };
        config.validate()?;
        if config.vocab_size != rows {
            return Err(ConfigError::Vocabulary { rows, got: config.vocab_size });
        }
        Ok(config)
    }
}

fn required(metadata: &Metadata, key: &str) -> Result<u64, ConfigError> {
    metadata.integer(key)?.ok_or_else(|| ConfigError::Missing { key: key.into() })
}

fn refuse_experts(metadata: &Metadata, key: &str) -> Result<(), ConfigError> {
    match metadata.integer(key)? {
        None | Some(0) => Ok(()),
        Some(got) => Err(ConfigError::Unsupported {
            key: key.into(),
            expected: "no mixture of experts",
            got: got.to_string(),
        }),
    }
}

fn read_scaling(
    file: &GgufFile,
    bytes: &[u8],
    key: impl Fn(&str) -> String,
) -> Result<RopeScaling, ConfigError> {
    let metadata = file.metadata();
    let scaling = match metadata.string(&key("rope.scaling.type"))? {
        None => match metadata.float(&key("rope.scale_linear"))? {
            None => RopeScaling::None,
            Some(factor) => RopeScaling::Linear { factor },
        },
        Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: metadata
                .float(&key("rope.scaling.factor"))?
                .ok_or_else(|| ConfigError::Missing { key: key("rope.scaling.factor") })?,
        },
        Some(got) => return Err(ConfigError::RopeScaling { got: got.into() }),
    };
    let Some(tensor) = file.tensor("rope_freqs.weight") else { return Ok(scaling) };
    if scaling != RopeScaling::None {
        return Err(ConfigError::Unsupported {
            key: "rope_freqs.weight".into(),
            expected: "no other RoPE scaling beside it",
            got: format!("{scaling:?}"),
        });
    }
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
    Ok(RopeScaling::Factors(factors))
}
