//! A checksum of what a model computes.

use ndarray::{Array1, Array2};

use crate::{Linear, Matrix, ModelConfig, ModelWeights, RopeConfig};

/// The checksum of some rows of every matrix and of all norms, of what the first, a middle and the last layer make of a made-up input, and of the
/// numbers that are not in the [fingerprint](ModelConfig::fingerprint), or rounded there.
pub(super) fn weights_checksum(config: &ModelConfig, weights: &ModelWeights) -> u32 {
    let ModelConfig { layers, head_dim, .. } = *config;
    let mut sum = Checksum::default();
    let or_none = |number: Option<f32>| number.unwrap_or(0.0);
    sum.numbers([config.norm_eps, or_none(config.score_scale), or_none(config.logit_softcap)]);
    for rope in std::iter::once(&config.rope).chain(&config.local_rope) {
        sum.rotation(rope, head_dim);
    }
    sum.some_rows(&weights.token_embedding);
    weights.head.iter().for_each(|head| sum.some_rows(head));
    for (index, layer) in weights.layers.iter().enumerate() {
        sum.norms([&layer.attention_norm, &layer.mlp_norm]);
        let of_some = [&layer.query_norm, &layer.key_norm, &layer.attention_sub_norm, &layer.mlp_sub_norm];
        sum.norms(of_some.into_iter().flatten());
        sum.norms([&layer.attention_post_norm, &layer.mlp_post_norm].into_iter().flatten());
        let of_attention = [&layer.query, &layer.key, &layer.value, &layer.attention_output];
        let linears = of_attention.into_iter().chain([&layer.gate, &layer.up, &layer.down]);
        let multiplied = [0, layers / 2, layers - 1].contains(&index);
        for linear in linears {
            sum.some_rows(&linear.weight);
            sum.numbers(linear.bias.iter().flatten().copied());
            if multiplied {
                sum.products(linear);
            }
        }
    }
    sum.norms([&weights.final_norm]);
    sum.0.finalize()
}

#[derive(Default)]
struct Checksum(crc32fast::Hasher);

impl Checksum {
    fn numbers(&mut self, numbers: impl IntoIterator<Item = f32>) {
        numbers.into_iter().for_each(|x| self.0.update(&x.to_le_bytes()));
    }

    fn norms<'a>(&mut self, norms: impl IntoIterator<Item = &'a Array1<f32>>) {
        norms.into_iter().for_each(|norm| self.numbers(norm.iter().copied()));
    }

    fn rotation(&mut self, rope: &RopeConfig, head_dim: usize) {
        self.numbers(rope.frequencies(head_dim).unwrap_or_default());
        self.numbers([rope.attention_factor()]);
    }

    /// What it makes of a made-up input.
    fn products(&mut self, linear: &Linear) {
        let input =
            Array2::from_shape_fn((1, linear.weight.dim().1), |(_, i)| ((i * 37 % 101) as f32 - 50.0) / 50.0);
        linear.apply(&input.view()).into_iter().for_each(|rows| self.numbers(rows));
    }

    /// The first row, one in the middle and the last.
    fn some_rows(&mut self, matrix: &Matrix) {
        let last = matrix.dim().0.saturating_sub(1);
        matrix.rows(&[0, last / 2, last]).into_iter().for_each(|rows| self.numbers(rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelFile;

    type Change<'a> = &'a dyn Fn(&mut ModelConfig, &mut ModelWeights);

    #[test]
    fn whatever_answers_otherwise_is_told_apart() {
        let file = ModelFile::open("../deltallm-cli/assets/fairy-tales.gguf").unwrap();
        let config = file.config().unwrap();
        let weights = ModelWeights::load(&file, &config).unwrap();
        let of = |change: Change| {
            let (mut config, mut weights) = (config.clone(), weights.clone());
            change(&mut config, &mut weights);
            weights_checksum(&config, &weights)
        };
        let same = of(&|_, _| {});
        assert_eq!(same, weights_checksum(&config, &weights));
        let negative = |matrix: &Matrix| {
            let rows: Vec<usize> = (0..matrix.dim().0).collect();
            Matrix::F32(-matrix.rows(&rows).unwrap())
        };
        let others: [Change; 9] = [
            &|config, _| config.norm_eps *= 1.0001,
            &|config, _| config.score_scale = Some(30.0),
            &|config, _| config.logit_softcap = Some(30.0),
            &|config, _| config.rope.theta *= 1.0001,
            &|_, weights| weights.token_embedding = negative(&weights.token_embedding),
            &|_, weights| {
                let output = &mut weights.layers[0].attention_output;
                output.weight = negative(&output.weight);
            },
            &|_, weights| weights.head = Some(negative(&weights.token_embedding)),
            &|_, weights| weights.layers[0].query_norm = Some(Array1::ones(64)),
            &|_, weights| weights.layers[0].mlp_post_norm = Some(Array1::from_elem(64, 2.0)),
        ];
        let mut sums: Vec<u32> = others.into_iter().map(of).chain([same]).collect();
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len(), 10);
    }
}
