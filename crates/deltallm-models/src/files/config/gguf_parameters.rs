//! The metadata under an architecture's name in a GGUF file. Every key is asked for, known to change nothing, or refused.

use super::{ConfigError, LayerSet};
use crate::gguf::{Array, Metadata, Value};

/// Keys that change nothing in the graph, whatever they say.
const IRRELEVANT: &[&str] = &[
    // The order of the rows of q and k that every Llama file has.
    "tensor_data_layout",
    // For YaRN, which asks for it.
    "rope.scaling.original_context_length",
    // How the model came about.
    "rope.scaling.finetuned",
    // Of norms with a mean, which the graph does not have.
    "attention.layer_norm_epsilon",
];

/// Keys of what the graph does not have, with the values that say so. Of Booleans, false is 0 and true is 1.
const NEUTRAL: &[(&str, &[f64], &str)] = &[
    ("attention.causal", &[1.0], "true, attention to earlier tokens only"),
    ("use_parallel_residual", &[0.0], "false, attention before the MLP"),
    ("expert_count", &[0.0], "no mixture of experts"),
    ("expert_used_count", &[0.0], "no mixture of experts"),
    ("pooling_type", &[0.0], "0, a model that answers with logits"),
    ("attention.max_alibi_bias", &[0.0], "0, no bias by distance"),
    ("attention.clamp_kqv", &[0.0], "0, no limit for q, k and v"),
    ("attn_logit_softcapping", &[0.0], "0, no cap on scores"),
    ("final_logit_softcapping", &[0.0], "0, no cap on logits"),
    ("rope.scaling.attn_factor", &[0.0, 1.0], "1, rotation without a factor"),
    ("rope.scaling.yarn_attn_factor", &[1.0], "1: readers differ in what another one multiplies"),
    ("rope.scaling.yarn_log_multiplier", &[0.0], "0, the usual factor of rotated channels"),
    ("logit_scale", &[0.0, 1.0], "1, logits as they are"),
    ("residual_scale", &[0.0, 1.0], "1, residuals as they are"),
    ("embedding_scale", &[0.0, 1.0], "1, embeddings as they are"),
];

/// The parameters of an architecture, by the part of their keys after its name.
pub(super) struct Parameters<'a> {
    metadata: &'a Metadata,
    /// The architecture's name with a dot.
    prefix: String,
    asked: Vec<&'static str>,
}

impl<'a> Parameters<'a> {
    pub(super) fn new(metadata: &'a Metadata, architecture: &str) -> Self {
        Self { metadata, prefix: format!("{architecture}."), asked: Vec::new() }
    }

    /// The whole key.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn ask(&mut self, name: &'static str) -> String {
        self.asked.push(name);
        self.key(name)
    }

    pub(super) fn integer(&mut self, name: &'static str) -> Result<Option<u64>, ConfigError> {
        Ok(self.metadata.integer(&self.ask(name))?)
    }

    pub(super) fn float(&mut self, name: &'static str) -> Result<Option<f32>, ConfigError> {
        Ok(self.metadata.float(&self.ask(name))?)
    }

    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<&'a str>, ConfigError> {
        Ok(self.metadata.string(&self.ask(name))?)
    }

    pub(super) fn required(&mut self, name: &'static str) -> Result<u64, ConfigError> {
        self.integer(name)?.ok_or_else(|| ConfigError::Missing { key: self.key(name) })
    }

    /// A size of every layer: one number, or an array of one for each of `layers`, all equal.
    pub(super) fn layer_size(&mut self, name: &'static str, layers: u64) -> Result<Option<u64>, ConfigError> {
        let key = self.ask(name);
        let Some(Value::Array(array)) = self.metadata.get(&key) else {
            return Ok(self.metadata.integer(&key)?);
        };
        let unsupported = |expected, got| Err(ConfigError::Unsupported { key: key.clone(), expected, got });
        if array.len() as u64 != layers {
            let got = format!("{} for {layers} layers", array.len());
            return unsupported("one number, or one for each layer", got);
        }
        let first = array.integer(0);
        match (0..array.len()).find(|&layer| array.integer(layer).is_none() || array.integer(layer) != first)
        {
            None => Ok(first),
            Some(layer) => unsupported("one size for all layers", format!("another in layer {layer}")),
        }
    }

    /// A set of layers: a number of which the last of every so many layers is none, or an array of one Boolean for each.
    pub(super) fn layers(
        &mut self,
        name: &'static str,
        layers: u64,
    ) -> Result<Option<LayerSet>, ConfigError> {
        let key = self.ask(name);
        let Some(Value::Array(array)) = self.metadata.get(&key) else {
            let period = self.metadata.integer(&key)?;
            return Ok(period.map(|period| match period {
                0 => LayerSet::All,
                period => LayerSet::AllButEvery(usize::try_from(period).unwrap_or(usize::MAX)),
            }));
        };
        let flag = |layer| match array {
            Array::Bool(listed) => listed.get(layer).copied(),
            numbers => numbers.integer(layer).map(|number| number != 0),
        };
        let listed: Option<Vec<bool>> = (0..array.len()).map(flag).collect();
        match listed.filter(|listed| listed.len() as u64 == layers) {
            Some(listed) => Ok(Some(LayerSet::Listed(listed))),
            None => {
                let expected = "one number, or true or false for each layer";
                let got = format!("{} of {} for {layers} layers", array.len(), array.element_name());
                Err(ConfigError::Unsupported { key, expected, got })
            }
        }
    }

    pub(super) fn required_layer_size(
        &mut self,
        name: &'static str,
        layers: u64,
    ) -> Result<u64, ConfigError> {
        self.layer_size(name, layers)?.ok_or_else(|| ConfigError::Missing { key: self.key(name) })
    }

    /// Refuses what has not been asked for, unless it changes nothing.
    pub(super) fn refuse_others(self) -> Result<(), ConfigError> {
        for (key, value) in self.metadata.iter() {
            let Some(name) = key.strip_prefix(&self.prefix) else { continue };
            if self.asked.contains(&name) || IRRELEVANT.contains(&name) {
                continue;
            }
            let (key, got) = (key.to_owned(), describe(value));
            let Some((_, neutral, expected)) = NEUTRAL.iter().find(|(known, ..)| *known == name) else {
                return Err(ConfigError::Unknown { key, got });
            };
            if !number(value).is_some_and(|number| neutral.contains(&number)) {
                return Err(ConfigError::Unsupported { key, expected, got });
            }
        }
        Ok(())
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(value) => Some(f64::from(u8::from(*value))),
        Value::F32(value) => Some(f64::from(*value)),
        Value::F64(value) => Some(*value),
        integer => integer.as_u64().map(|value| value as f64),
    }
}

/// A value in a message; of an array only the type.
fn describe(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::String(value) => format!("`{value}`"),
        other => number(other).map_or_else(|| other.type_name(), |number| number.to_string()),
    }
}
