//! Rotary position embedding.

use ndarray::ArrayViewMut3;
use rayon::prelude::*;

use super::threads::worth_sharing;
use crate::{ConfigError, RopeConfig};

/// Rotates pairs of channels by an angle that grows with the position (Su et al., arXiv 2104.09864).
///
/// Of `n` rotated channels, the first of a head, channel `i` is paired with channel `i + n / 2` ("half-split" order, as in
/// `transformers`).
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// Radians per position of each rotated pair.
    frequencies: Vec<f32>,
    /// What is rotated is multiplied with this.
    factor: f32,
}

/// The rotations of some tokens, the same in all layers that rotate alike.
#[derive(Debug, Default)]
pub(crate) struct Rotations {
    half: usize,
    /// `[tokens, half]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// The rotation of heads of `head_dim` channels.
    pub(crate) fn new(config: &RopeConfig, head_dim: usize) -> Result<Self, ConfigError> {
        Ok(Self { frequencies: config.frequencies(head_dim)?, factor: config.attention_factor() })
    }

    /// Makes `rotations` those of tokens at these positions.
    pub(crate) fn rotations_into(
        &self,
        positions: impl IntoIterator<Item = usize>,
        rotations: &mut Rotations,
    ) {
        let angles = positions.into_iter().flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f));
        rotations.half = self.frequencies.len();
        rotations.sin.clear();
        rotations.cos.clear();
        for (sin, cos) in angles.map(f32::sin_cos) {
            rotations.sin.push(sin * self.factor);
            rotations.cos.push(cos * self.factor);
        }
    }
}

impl Rotations {
    /// Rotates `x`, `[tokens, heads, head_dim]`.
    pub(crate) fn apply(&self, mut x: ArrayViewMut3<f32>) {
        let (_, heads, head_dim) = x.dim();
        let half = self.half;
        assert!(head_dim >= 2 * half, "channels of a head");
        let Some(x) = x.as_slice_mut() else {
            unreachable!("arrays of the workspace are in standard layout")
        };
        let token = |((x, cos), sin): ((&mut [f32], &[f32]), &[f32])| {
            for head in x.chunks_exact_mut(head_dim) {
                let (a, b) = head[..2 * half].split_at_mut(half);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        };
        if worth_sharing(x.len()) {
            let tokens = x.par_chunks_exact_mut(heads * head_dim);
            tokens.zip(self.cos.par_chunks_exact(half)).zip(self.sin.par_chunks_exact(half)).for_each(token);
        } else {
            let tokens = x.chunks_exact_mut(heads * head_dim);
            tokens.zip(self.cos.chunks_exact(half)).zip(self.sin.chunks_exact(half)).for_each(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    fn rotate(rope: &Rope, positions: &[usize], x: &mut Array3<f32>) {
        let mut rotations = Rotations::default();
        rope.rotations_into([7], &mut rotations); // leaves nothing behind
        rope.rotations_into(positions.iter().copied(), &mut rotations);
        rotations.apply(x.view_mut());
    }

    #[test]
    fn products_depend_on_the_distance_only() {
        let rope = Rope { frequencies: vec![1.0, 0.1], factor: 1.0 };
        let rotated = |position| {
            let mut x = Array3::from_shape_vec((1, 1, 4), vec![1.0, 2.0, -0.5, 0.25]).unwrap();
            rotate(&rope, &[position], &mut x);
            x
        };
        let product = |a: usize, b: usize| (&rotated(a) * &rotated(b)).sum();
        assert!((product(3, 5) - product(103, 105)).abs() < 1e-4);
        assert!((product(3, 5) - product(3, 6)).abs() > 1e-2);
        assert_eq!(rotated(0)[[0, 0, 1]], 2.0);
    }

    #[test]
    fn every_token_and_head_is_rotated_by_its_own_angle() {
        let rope = Rope { frequencies: vec![1.0, 0.1], factor: 1.0 };
        let x = Array3::from_shape_fn((3, 2, 4), |(t, h, c)| (t * 8 + h * 4 + c) as f32);
        let mut rotated = x.clone();
        rotate(&rope, &[4, 9, 0], &mut rotated);
        for (t, position) in [4.0_f32, 9.0, 0.0].into_iter().enumerate() {
            for h in 0..2 {
                for (i, frequency) in [1.0, 0.1].into_iter().enumerate() {
                    let (sin, cos) = (position * frequency).sin_cos();
                    let (a, b) = (x[[t, h, i]], x[[t, h, i + 2]]);
                    assert!((rotated[[t, h, i]] - (a * cos - b * sin)).abs() < 1e-4);
                    assert!((rotated[[t, h, i + 2]] - (b * cos + a * sin)).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn only_the_first_channels_are_rotated_and_multiplied() {
        let rope = Rope { frequencies: vec![0.5], factor: 2.0 };
        let mut x = Array3::from_shape_vec((1, 1, 4), vec![1.0, 0.0, 3.0, 4.0]).unwrap();
        rotate(&rope, &[3], &mut x);
        let (sin, cos) = 1.5_f32.sin_cos();
        assert_eq!(x.into_raw_vec_and_offset().0, [2.0 * cos, 2.0 * sin, 3.0, 4.0]);
    }
}
