//! Whether all that a file holds is used: every tensor is one of the graph's, known to change nothing, or refused.

use super::file::{ModelFile, Source};
#[cfg(feature = "safetensors")]
use crate::files::config::Quantization;
use crate::files::names::{Format, Part, ROPE_FACTORS};
#[cfg(feature = "safetensors")]
use crate::files::sees_images::{Belongs, belongs, text_part};
use crate::{LayerTensor, ModelConfig, ModelError, TensorId};

impl ModelFile {
    /// Refuses the first tensor, by name, that is not understood.
    pub(super) fn refuse_unknown_tensors(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let unknown = |name| Some((name, self.unknown(name, config)?));
        let first = match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf(model) => {
                let tensors = model.files().flat_map(|(header, _)| header.tensors());
                tensors.filter_map(|tensor| unknown(&tensor.name)).min()
            }
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) => model.tensors().filter_map(|(name, ..)| unknown(name)).min(),
        };
        match first {
            None => Ok(()),
            Some((name, got)) => {
                Err(ModelError::UnknownTensor { file: self.path.clone(), tensor: name.to_owned(), got })
            }
        }
    }

    /// What is wrong with a tensor of that name; `None` for one that is used or changes nothing.
    fn unknown(&self, name: &str, config: &ModelConfig) -> Option<&'static str> {
        let format = self.format();
        #[cfg(feature = "safetensors")]
        let alone;
        #[cfg(feature = "safetensors")]
        let name = match &self.source {
            Source::Safetensors(model) if text_part(model.config()).is_some() => match belongs(name) {
                Belongs::Text(name) => {
                    alone = name;
                    &*alone
                }
                Belongs::Images => return None,
                Belongs::Nothing => return Some("one that this architecture does not have"),
            },
            _ => name,
        };
        let Some((id, part)) = TensorId::parse(format, name) else {
            return (!is_parameter(format, name)).then_some("one that this architecture does not have");
        };
        match (id, part) {
            (TensorId::Layer(layer, _), _) if layer >= config.layers => {
                Some("one of a layer beyond those that the parameters count")
            }
            (TensorId::Layer(_, tensor), _) if !tensor.is_in(config.architecture) => {
                Some("a norm that this architecture does not have")
            }
            (_, Part::Weight) => None,
            (TensorId::Layer(_, tensor), Part::Bias) if tensor.is_projection() => {
                (!may_have_bias(tensor, config))
                    .then_some("a bias, and parameters that say that there is none")
            }
            (_, Part::Bias) => Some("a bias of what has none in this architecture"),
            (_, Part::Scale) => {
                (!self.has_scales(id, config)).then_some("a scale of weights that have none in this format")
            }
        }
    }

    /// Whether weights may have a scale of their own.
    fn has_scales(&self, id: TensorId, config: &ModelConfig) -> bool {
        id.is_ternary(config)
            && match &self.source {
                #[cfg(feature = "gguf")]
                Source::Gguf(_) => true,
                #[cfg(feature = "safetensors")]
                Source::Safetensors(model) => Quantization::from_value(model.config())
                    .is_ok_and(|quantization| quantization != Quantization::Online),
            }
    }

    /// Refuses a head that differs from the embedding where it is said to be the same. Older versions of `transformers` take
    /// the embedding then, newer ones the head.
    pub(super) fn refuse_other_head(&self) -> Result<(), ModelError> {
        if !self.contains(TensorId::Head, Part::Weight) {
            return Ok(());
        }
        let embedding = self.raw(TensorId::TokenEmbedding, Part::Weight)?;
        let head = self.raw(TensorId::Head, Part::Weight)?;
        if (head.ty, head.shape, head.bytes) == (embedding.ty, embedding.shape, embedding.bytes) {
            return Ok(());
        }
        Err(ModelError::UntiedHead { file: self.path.clone(), tensor: head.name })
    }
}

/// Whether a tensor holds a parameter, which has been read as one or follows from others.
fn is_parameter(format: Format, name: &str) -> bool {
    match format {
        Format::Gguf => name == ROPE_FACTORS,
        // The frequencies, in files of the first Llama models. They follow from `rope_theta`.
        _ => name.ends_with(".rotary_emb.inv_freq"),
    }
}

fn may_have_bias(tensor: LayerTensor, config: &ModelConfig) -> bool {
    match tensor {
        LayerTensor::Query | LayerTensor::Key | LayerTensor::Value => config.attention_bias,
        LayerTensor::AttentionOutput => config.attention_output_bias,
        _ => config.mlp_bias,
    }
}
