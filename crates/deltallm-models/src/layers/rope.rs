//! Rotary position embedding.

use ndarray::ArrayViewMut3;

/// Turns pairs of channels by an angle that grows with the position (Su et al., arXiv 2104.09864).
///
/// Channel `i` of a head is paired with channel `i + head_dim / 2` ("half-split" order, as in `transformers`).
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// Radians per position of each pair, `[head_dim / 2]`.
    frequencies: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(frequencies: Vec<f32>) -> Self {
        Self { frequencies }
    }

    /// Turns `x`, `[tokens, heads, head_dim]`, whose first token stands at `position`.
    pub(crate) fn apply(&self, mut x: ArrayViewMut3<f32>, position: usize) {
        let half = self.frequencies.len();
        for (token, mut heads) in x.outer_iter_mut().enumerate() {
            let turns: Vec<(f32, f32)> =
                self.frequencies.iter().map(|f| ((position + token) as f32 * f).sin_cos()).collect();
            for mut head in heads.outer_iter_mut() {
                for (i, (sin, cos)) in turns.iter().enumerate() {
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = a * cos - b * sin;
                    head[i + half] = b * cos + a * sin;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn products_depend_on_the_distance_only() {
        let rope = Rope::new(vec![1.0, 0.1]);
        let turned = |position| {
            let mut x = Array3::from_shape_vec((1, 1, 4), vec![1.0, 2.0, -0.5, 0.25]).unwrap();
            rope.apply(x.view_mut(), position);
            x
        };
        let product = |a: usize, b: usize| (&turned(a) * &turned(b)).sum();
        assert!((product(3, 5) - product(103, 105)).abs() < 1e-4);
        assert!((product(3, 5) - product(3, 6)).abs() > 1e-2);
        assert_eq!(turned(0)[[0, 0, 1]], 2.0);
    }
}
