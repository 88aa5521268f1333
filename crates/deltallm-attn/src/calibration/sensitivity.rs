//! What an error in a key channel does to the output of its layer.

use ndarray::{Array2, ArrayView2, ArrayView3, Axis, Slice, Zip};

use crate::{AttentionError, AttentionOptions, AttentionShape, options::Settings};

/// Queries whose probabilities are in memory at a time.
const QUERY_ROWS: usize = 128;

/// Sums the sensitivity of one layer's key channels over calibration texts (`docs/method.md`, equations 9 and 10).
///
/// An error `e` in channel `j` of a far key `t` moves the score of query `m` by `scale q_m[j] e`, the probability
/// `p(m,t)` in proportion, and the layer's output by `p(m,t) scale q_m[j] e · Wo (v_t - o_m)`. Errors of different keys
/// are taken as independent, so their squares add up.
///
/// ```
/// use deltallm_attn::{AttentionOptions, AttentionShape, calibration::Sensitivity};
/// use ndarray::Array2;
///
/// // 2 query heads of 4 channels, a residual stream of 16; window 8, 2 sinks, every query.
/// let (shape, options) = (AttentionShape::new(2, 1, 4)?, AttentionOptions::default());
/// Sensitivity::new(shape, &options, [8, 2], Array2::<f32>::eye(16).slice(ndarray::s![.., ..8]), 1)?;
/// assert!(Sensitivity::new(shape, &options, [8, 2], Array2::eye(16).view(), 1).is_err());
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sensitivity {
    shape: AttentionShape,
    scale: f32,
    softcap: Option<f32>,
    window: usize,
    sinks: usize,
    /// Every so many queries one is looked at.
    stride: usize,
    /// `Wo^T Wo` of each query head, `[head_dim, head_dim]`.
    grams: Vec<Array2<f32>>,
    /// `[kv_heads, head_dim]`.
    sums: Vec<f64>,
    /// Squared norms of the residual stream.
    residuals: Vec<f32>,
}

impl Sensitivity {
    /// For a layer whose output projection is `output`, `[hidden_size, heads * head_dim]`, seen with a sliding window of
    /// `window` keys and `sinks` sinks. Every `stride`-th query (at least 1) is looked at.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] if `output` does not have `heads * head_dim` columns, [`AttentionError::Setting`] for a scale or
    /// soft cap out of range.
    pub fn new(
        shape: AttentionShape,
        options: &AttentionOptions,
        [window, sinks]: [usize; 2],
        output: ArrayView2<f32>,
        stride: usize,
    ) -> Result<Self, AttentionError> {
        let Settings { scale, softcap, .. } = Settings::new(shape, options.clone())?;
        let d = shape.head_dim();
        check("output projection", "columns", shape.heads() * d, output.ncols())?;
        let grams = (0..shape.heads())
            .map(|head| {
                let part = output.slice_axis(Axis(1), Slice::from(head * d..(head + 1) * d));
                part.t().dot(&part)
            })
            .collect();
        Ok(Self {
            shape,
            scale,
            softcap,
            window,
            sinks,
            stride: stride.max(1),
            grams,
            sums: vec![0.0; shape.kv_heads() * d],
            residuals: Vec::new(),
        })
    }

    /// Adds one text: `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[tokens, kv_heads, head_dim]` (after RoPE), and
    /// `residual` is the stream that the layer's output is added to, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] for inputs of other shapes; nothing is added then.
    pub fn add(
        &mut self,
        q: ArrayView3<f32>,
        k: ArrayView3<f32>,
        v: ArrayView3<f32>,
        residual: ArrayView2<f32>,
    ) -> Result<(), AttentionError> {
        let tokens = residual.nrows();
        for (input, heads, got) in [
            ("q", self.shape.heads(), q.dim()),
            ("k", self.shape.kv_heads(), k.dim()),
            ("v", self.shape.kv_heads(), v.dim()),
        ] {
            check(input, "tokens", tokens, got.0)?;
            check(input, "heads", heads, got.1)?;
            check(input, "head_dim", self.shape.head_dim(), got.2)?;
        }
        self.residuals.extend(residual.outer_iter().map(|row| row.dot(&row)));
        let heads: Vec<usize> = (0..self.shape.heads()).collect();
        let sums = map(&heads, |&head| {
            let kv_head = head / self.shape.group();
            let part = |x: &ArrayView3<f32>, head| x.index_axis(Axis(1), head).to_owned();
            self.head_sums(&part(&q, head), &part(&k, kv_head), &part(&v, kv_head), &self.grams[head])
        });
        let d = self.shape.head_dim();
        for (head, more) in sums.iter().enumerate() {
            let channels = head / self.shape.group() * d..(head / self.shape.group() + 1) * d;
            self.sums[channels].iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        Ok(())
    }

    /// The sums of one query head: `q`, `k`, `v` are `[tokens, head_dim]`, `gram` is `Wo^T Wo`.
    fn head_sums(&self, q: &Array2<f32>, k: &Array2<f32>, v: &Array2<f32>, gram: &Array2<f32>) -> Vec<f64> {
        let (tokens, d) = k.dim();
        let values = v.dot(gram); // of token t: G v_t
        let norms: Vec<f32> = v.outer_iter().zip(values.outer_iter()).map(|(v, g)| v.dot(&g)).collect();
        let mut sums = vec![0.0; d];
        // Before this position no key is far.
        let first = self.window.saturating_add(self.sinks);
        let rows: Vec<usize> = (first..tokens).step_by(self.stride).collect();
        for rows in rows.chunks(QUERY_ROWS) {
            let seen = Slice::from(..rows[rows.len() - 1] + 1);
            let q = q.select(Axis(0), rows);
            let mut p = q.dot(&k.slice_axis(Axis(0), seen).t());
            for (mut p, &position) in p.outer_iter_mut().zip(rows) {
                self.softmax(p.as_slice_mut().unwrap_or_default(), position);
            }
            let out = p.dot(&v.slice_axis(Axis(0), seen));
            let cross = out.dot(&values.slice_axis(Axis(0), seen).t()); // of query m and token t: o_m G v_t
            let own = (&out.dot(gram) * &out).sum_axis(Axis(1)); // of query m: o_m G o_m
            Zip::from(p.rows()).and(cross.rows()).and(&own).and(q.rows()).and(rows).for_each(
                |p, cross, own, q, &position| {
                    let mut far = 0.0_f64;
                    for t in self.sinks..position + 1 - self.window {
                        far += f64::from(p[t] * p[t] * (norms[t] - 2.0 * cross[t] + own).max(0.0));
                    }
                    for (sum, q) in sums.iter_mut().zip(q) {
                        *sum += f64::from(*q * *q) * far;
                    }
                },
            );
        }
        sums
    }

    /// Turns the products `q . k` of the query at `position` into probabilities; later keys get none.
    fn softmax(&self, row: &mut [f32], position: usize) {
        let (seen, later) = row.split_at_mut(position + 1);
        later.fill(0.0);
        for x in seen.iter_mut() {
            *x *= self.scale;
            *x = self.softcap.map_or(*x, |cap| cap * (*x / cap).tanh());
        }
        let max = seen.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
        let mut total = 0.0;
        for x in seen.iter_mut() {
            *x = (*x - max).exp();
            total += *x;
        }
        seen.iter_mut().for_each(|x| *x /= total);
    }

    /// The sensitivities of the channels, `[kv_heads, head_dim]` in row-major order: of each the mean over the queries of
    /// `q[j]^2 sum_t p_t^2 |Wo (v_t - o)|^2` over the keys beyond window and sinks, relative to the median squared norm of the
    /// residual stream. All zero if no text was long enough to have far keys.
    pub fn finish(mut self) -> Vec<f64> {
        self.residuals.sort_by(f32::total_cmp);
        let median = self.residuals.get(self.residuals.len() / 2).map_or(1.0, |x| f64::from(*x));
        let mean = 1.0 / (self.residuals.len().max(1) as f64);
        self.sums.iter_mut().for_each(|x| *x *= mean / median.max(f64::MIN_POSITIVE));
        self.sums
    }
}

fn check(
    input: &'static str,
    dimension: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), AttentionError> {
    if expected == got { Ok(()) } else { Err(AttentionError::Shape { input, dimension, expected, got }) }
}

fn map<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    #[cfg(feature = "rayon")]
    {
        use rayon::prelude::*;
        items.par_iter().map(f).collect()
    }
    #[cfg(not(feature = "rayon"))]
    items.iter().map(f).collect()
}

#[cfg(test)]
mod tests {
    use deltallm_testing::Random;
    use ndarray::Array3;

    use super::*;

    /// Equations 9 and 10 in plain f64 loops: `[kv_heads * head_dim]`.
    fn plain(
        shape: AttentionShape,
        [window, sinks]: [usize; 2],
        stride: usize,
        (q, k, v): (&Array3<f32>, &Array3<f32>, &Array3<f32>),
        wo: &Array2<f32>,
        residual: &Array2<f32>,
    ) -> Vec<f64> {
        let (n, d) = (k.dim().0, shape.head_dim());
        let mut sums = vec![0.0; shape.kv_heads() * d];
        for head in 0..shape.heads() {
            let kv = head / shape.group();
            for m in (window + sinks..n).step_by(stride) {
                let dot = |t: usize| -> f64 {
                    (0..d).map(|j| f64::from(q[[m, head, j]]) * f64::from(k[[t, kv, j]])).sum::<f64>()
                        / (d as f64).sqrt()
                };
                let weights: Vec<f64> = (0..=m).map(|t| dot(t).exp()).collect();
                let total: f64 = weights.iter().sum();
                let p: Vec<f64> = weights.iter().map(|w| w / total).collect();
                let mean: Vec<f64> =
                    (0..d).map(|j| (0..=m).map(|t| p[t] * f64::from(v[[t, kv, j]])).sum()).collect();
                for t in sinks..m + 1 - window {
                    let moved: f64 = wo
                        .outer_iter()
                        .map(|row| {
                            let x: f64 = (0..d)
                                .map(|j| f64::from(row[head * d + j]) * (f64::from(v[[t, kv, j]]) - mean[j]))
                                .sum();
                            x * x
                        })
                        .sum();
                    for j in 0..d {
                        let q2 = f64::from(q[[m, head, j]]).powi(2);
                        sums[kv * d + j] += q2 * p[t] * p[t] * moved;
                    }
                }
            }
        }
        let mut norms: Vec<f64> =
            residual.outer_iter().map(|row| row.iter().map(|x| f64::from(x * x)).sum()).collect();
        norms.sort_by(f64::total_cmp);
        sums.iter_mut().for_each(|x| *x /= n as f64 * norms[n / 2]);
        sums
    }

    #[test]
    fn the_sums_equal_plain_loops() {
        let shape = AttentionShape::new(4, 2, 8).unwrap();
        let mut random = Random::new(11);
        let n = 300; // more than one group of queries
        let mut heads = |heads| Array3::from_shape_simple_fn((n, heads, 8), || random.number());
        let (q, k, v) = (heads(4) * 3.0, heads(2), heads(2));
        let mut rows = |rows, columns| Array2::from_shape_simple_fn((rows, columns), || random.number());
        let (wo, residual) = (rows(20, 32), rows(n, 20));
        let options = AttentionOptions::of_tests();
        for (exact, stride) in [([10, 2], 1), ([1, 0], 3), ([290, 4], 2)] {
            let mut sensitivity = Sensitivity::new(shape, &options, exact, wo.view(), stride).unwrap();
            sensitivity.add(q.view(), k.view(), v.view(), residual.view()).unwrap();
            let got = sensitivity.finish();
            let expected = plain(shape, exact, stride, (&q, &k, &v), &wo, &residual);
            assert_eq!(got.len(), expected.len());
            let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b.abs() && *b > 0.0;
            assert!(got.iter().zip(&expected).all(close), "{exact:?}");
        }
    }

    #[test]
    fn a_text_without_far_keys_says_nothing() {
        let shape = AttentionShape::new(2, 1, 4).unwrap();
        let options = AttentionOptions::of_tests();
        let wo = Array2::ones((3, 8));
        let mut sensitivity = Sensitivity::new(shape, &options, [64, 4], wo.view(), 1).unwrap();
        let x = Array3::ones((20, 2, 4));
        let kv = Array3::ones((20, 1, 4));
        sensitivity.add(x.view(), kv.view(), kv.view(), Array2::ones((20, 3)).view()).unwrap();
        assert_eq!(sensitivity.finish(), [0.0; 4]);
    }

    #[test]
    fn other_shapes_are_refused_and_add_nothing() {
        let shape = AttentionShape::new(2, 1, 4).unwrap();
        let options = AttentionOptions::of_tests();
        let wrong = Sensitivity::new(shape, &options, [2, 0], Array2::ones((3, 7)).view(), 1).unwrap_err();
        assert!(matches!(wrong, AttentionError::Shape { dimension: "columns", expected: 8, got: 7, .. }));

        let mut sensitivity =
            Sensitivity::new(shape, &options, [2, 0], Array2::ones((3, 8)).view(), 1).unwrap();
        let (q, kv, residual) = (Array3::ones((9, 2, 4)), Array3::ones((9, 1, 4)), Array2::ones((9, 3)));
        for (q, k, v, input, dimension) in [
            (Array3::ones((9, 1, 4)), kv.clone(), kv.clone(), "q", "heads"),
            (q.clone(), Array3::ones((8, 1, 4)), kv.clone(), "k", "tokens"),
            (q.clone(), kv.clone(), Array3::ones((9, 1, 5)), "v", "head_dim"),
        ] {
            match sensitivity.add(q.view(), k.view(), v.view(), residual.view()) {
                Err(AttentionError::Shape { input: i, dimension: d, .. }) => {
                    assert_eq!((i, d), (input, dimension))
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sensitivity.finish(), [0.0; 4]);
    }
}
