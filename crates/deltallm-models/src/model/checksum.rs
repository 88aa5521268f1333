//! A checksum of what a model's weights compute.

use ndarray::Array2;

use crate::{ModelConfig, ModelWeights};

/// The checksum of what the first, a middle and the last layer make of a made-up input, and of their norms.
pub(super) fn weights_checksum(config: &ModelConfig, weights: &ModelWeights) -> u32 {
    let ModelConfig { layers, hidden_size, intermediate_size, .. } = *config;
    let mut hasher = crc32fast::Hasher::new();
    let mut numbers = |numbers: &mut dyn Iterator<Item = f32>| {
        numbers.for_each(|x| hasher.update(&x.to_le_bytes()));
    };
    let input =
        |width: usize| Array2::from_shape_fn((1, width), |(_, i)| ((i * 37 % 101) as f32 - 50.0) / 50.0);
    let (hidden, inner) = (input(hidden_size), input(intermediate_size));
    for layer in [0, layers / 2, layers.saturating_sub(1)] {
        let Some(layer) = weights.layers.get(layer) else { continue };
        numbers(&mut layer.attention_norm.iter().chain(&layer.mlp_norm).copied());
        for linear in
            [&layer.query, &layer.key, &layer.value, &layer.attention_output, &layer.gate, &layer.up]
        {
            // Attention's output has another width in some models, which is not looked at.
            linear.apply(&hidden.view()).into_iter().for_each(|rows| numbers(&mut rows.into_iter()));
        }
        layer.down.apply(&inner.view()).into_iter().for_each(|rows| numbers(&mut rows.into_iter()));
    }
    numbers(&mut weights.final_norm.iter().copied());
    hasher.finalize()
}
