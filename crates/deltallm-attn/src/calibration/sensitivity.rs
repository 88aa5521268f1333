//! What an error in a key channel does to the output of its layer.

use ndarray::{Array2, ArrayView2, ArrayView3, Axis, Slice, Zip};

use super::parallel::map;
use crate::{AttentionError, AttentionShape, Mask};

/// Queries whose probabilities are in memory at a time.
const QUERY_ROWS: usize = 128;

/// Sums the sensitivity of one layer's key channels over calibration texts (`docs/method.md`, equations 9 and 10).
///
/// An error `e` in channel `j` of a far key `t` moves the score of query `m` by `scale q_m[j] e`, the probability
/// `p(m,t)` in proportion, and the layer's output by `p(m,t) scale q_m[j] e · Wo (v_t - o_m)`. Errors of different keys
/// are taken as independent, so their squares add up.
#[derive(Debug, Clone)]
pub(super) struct Sensitivity {
    shape: AttentionShape,
    scale: f32,
    softcap: Option<f32>,
    mask: Mask,
    window: usize,
    sinks: usize,
    /// One query in this many is evaluated: neighbours give nearly the same result.
    stride: usize,
    /// `Wo^T Wo` of each query head, `[head_dim, head_dim]`; none without an output projection, which is then taken as the identity.
    grams: Vec<Array2<f32>>,
    /// `[kv_heads, head_dim]`; empty before the first text.
    sums: Vec<f64>,
    /// Tokens added.
    tokens: usize,
    /// Squared norms of the residual stream.
    residuals: Vec<f32>,
    /// Squared norms of the heads' own outputs `Wo o`, summed over the queries and heads that were looked at.
    outputs: f64,
    /// How many queries these are.
    queries: usize,
}

/// What one text adds for a query head.
struct HeadSums {
    channels: Vec<f64>,
    outputs: f64,
    queries: usize,
}

impl Sensitivity {
    /// For a layer that is seen with an exact window of `window` keys and `sinks` exact sinks. Every `stride`-th query (at least 1) is
    /// looked at.
    pub(super) fn new(
        shape: AttentionShape,
        scale: f32,
        softcap: Option<f32>,
        mask: Mask,
        [window, sinks]: [usize; 2],
        stride: usize,
    ) -> Self {
        Self {
            shape,
            scale,
            softcap,
            mask,
            window,
            sinks,
            stride: stride.max(1),
            grams: Vec::new(),
            sums: Vec::new(),
            tokens: 0,
            residuals: Vec::new(),
            outputs: 0.0,
            queries: 0,
        }
    }

    /// Sets the output projection, `[hidden_size, heads * head_dim]`, for the texts that follow.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] if it does not have `heads * head_dim` columns.
    pub(super) fn set_output(&mut self, output: ArrayView2<f32>) -> Result<(), AttentionError> {
        let d = self.shape.head_dim();
        check("output projection", "columns", self.shape.heads().saturating_mul(d), output.ncols())?;
        check_finite("output projection", output)?;
        let gram = |head: usize| {
            let part = output.slice_axis(Axis(1), Slice::from(head * d..(head + 1) * d));
            part.t().dot(&part)
        };
        self.grams = (0..self.shape.heads()).map(gram).collect();
        Ok(())
    }

    /// Whether the layer has an output projection.
    pub(super) fn has_output(&self) -> bool {
        !self.grams.is_empty()
    }

    /// Tokens added.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens whose residual stream was added.
    pub(super) fn residual_tokens(&self) -> usize {
        self.residuals.len()
    }

    /// Adds one text: `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[tokens, kv_heads, head_dim]` (after RoPE).
    ///
    /// # Errors
    /// [`AttentionError::Shape`] for inputs of other shapes; nothing is added then.
    pub(super) fn add(
        &mut self,
        q: ArrayView3<f32>,
        k: ArrayView3<f32>,
        v: ArrayView3<f32>,
    ) -> Result<(), AttentionError> {
        let tokens = q.dim().0;
        for (input, heads, got) in [
            ("q", self.shape.heads(), q.dim()),
            ("k", self.shape.kv_heads(), k.dim()),
            ("v", self.shape.kv_heads(), v.dim()),
        ] {
            check(input, "tokens", tokens, got.0)?;
            check(input, "heads", heads, got.1)?;
            check(input, "head_dim", self.shape.head_dim(), got.2)?;
        }
        self.tokens += tokens;
        let d = self.shape.head_dim();
        self.sums.resize(self.shape.kv_heads() * d, 0.0);
        let identity = if self.has_output() { Array2::zeros((0, 0)) } else { Array2::eye(d) };
        let heads: Vec<usize> = (0..self.shape.heads()).collect();
        let sums = map(&heads, |&head| {
            let kv_head = head / self.shape.group();
            let part = |x: &ArrayView3<f32>, head| x.index_axis(Axis(1), head).to_owned();
            let gram = self.grams.get(head).unwrap_or(&identity);
            self.head_sums(&part(&q, head), &part(&k, kv_head), &part(&v, kv_head), gram)
        });
        for (head, more) in sums.iter().enumerate() {
            let channels = head / self.shape.group() * d..(head / self.shape.group() + 1) * d;
            self.sums[channels].iter_mut().zip(&more.channels).for_each(|(sum, more)| *sum += more);
            self.outputs += more.outputs;
        }
        self.queries += sums.first().map_or(0, |head| head.queries);
        Ok(())
    }

    /// Adds the residual stream of a text, to which the layer's output is added: `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// [`AttentionError::NotFinite`]; nothing is added then.
    pub(super) fn add_residual(&mut self, residual: ArrayView2<f32>) -> Result<(), AttentionError> {
        check_finite("residual", residual)?;
        self.residuals.extend(residual.outer_iter().map(|row| row.dot(&row)));
        Ok(())
    }

    /// The sums of one query head: `q`, `k`, `v` are `[tokens, head_dim]`, `gram` is `Wo^T Wo`.
    fn head_sums(&self, q: &Array2<f32>, k: &Array2<f32>, v: &Array2<f32>, gram: &Array2<f32>) -> HeadSums {
        let (tokens, d) = k.dim();
        let values = v.dot(gram); // of token t: G v_t
        let norms: Vec<f32> = v.outer_iter().zip(values.outer_iter()).map(|(v, g)| v.dot(&g)).collect();
        let mut sums = vec![0.0; d];
        // Before this position no key is far.
        let first = self.window.saturating_add(self.sinks);
        let rows: Vec<usize> = (first..tokens).step_by(self.stride).collect();
        let (queries, mut outputs) = (rows.len(), 0.0);
        for rows in rows.chunks(QUERY_ROWS) {
            let seen = Slice::from(..self.mask.end(rows[rows.len() - 1], tokens));
            let q = q.select(Axis(0), rows);
            // Rows one after the other, which a product of single channels may not have.
            let mut p = q.dot(&k.slice_axis(Axis(0), seen).t());
            if !p.is_standard_layout() {
                p = p.as_standard_layout().into_owned();
            }
            for (mut p, &position) in p.outer_iter_mut().zip(rows) {
                self.softmax(p.as_slice_mut().unwrap_or_default(), position);
            }
            let out = p.dot(&v.slice_axis(Axis(0), seen));
            let cross = out.dot(&values.slice_axis(Axis(0), seen).t()); // of query m and token t: o_m G v_t
            let own = (&out.dot(gram) * &out).sum_axis(Axis(1)); // of query m: o_m G o_m
            outputs += own.iter().map(|x| f64::from(*x)).sum::<f64>();
            Zip::from(p.rows()).and(cross.rows()).and(&own).and(q.rows()).and(rows).for_each(
                |p, cross, own, q, &position| {
                    let mut far = 0.0_f64;
                    for t in self.sinks.max(self.mask.first_key(position))..position + 1 - self.window {
                        far += f64::from(p[t] * p[t] * (norms[t] - 2.0 * cross[t] + own).max(0.0));
                    }
                    for (sum, q) in sums.iter_mut().zip(q) {
                        *sum += f64::from(*q * *q) * far;
                    }
                },
            );
        }
        HeadSums { channels: sums, outputs, queries }
    }

    /// Turns the products `q . k` of the query at `position` into probabilities; keys that it does not attend to get none.
    fn softmax(&self, row: &mut [f32], position: usize) {
        let end = self.mask.end(position, row.len());
        let (row, later) = row.split_at_mut(end);
        let (earlier, seen) = row.split_at_mut(self.mask.first_key(position));
        earlier.fill(0.0);
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
    /// residual stream. Without a residual stream they are relative to the mean squared norm of the layer's own output, its heads
    /// taken as independent. All zero if no text was long enough to have far keys.
    pub(super) fn finish(mut self) -> Vec<f64> {
        self.residuals.sort_by(f32::total_cmp);
        let own = if self.queries == 0 { 1.0 } else { self.outputs / self.queries as f64 };
        let norm = self.residuals.get(self.residuals.len() / 2).map_or(own, |x| f64::from(*x));
        let mean = 1.0 / (self.tokens.max(1) as f64);
        self.sums.iter_mut().for_each(|x| *x *= mean / norm.max(f64::MIN_POSITIVE));
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

/// A row counts as a token, a column as a channel.
fn check_finite(input: &'static str, numbers: ArrayView2<f32>) -> Result<(), AttentionError> {
    match numbers.indexed_iter().find(|(_, x)| !x.is_finite()) {
        None => Ok(()),
        Some(((token, channel), got)) => {
            Err(AttentionError::NotFinite { input, token, head: 0, channel, got: *got })
        }
    }
}

#[cfg(test)]
mod tests {
    use deltallm_testing::Random;
    use ndarray::Array3;

    use super::*;

    fn sensitivity(shape: AttentionShape, exact: [usize; 2], stride: usize) -> Sensitivity {
        masked(shape, Mask::Causal, exact, stride)
    }

    fn masked(shape: AttentionShape, mask: Mask, exact: [usize; 2], stride: usize) -> Sensitivity {
        Sensitivity::new(shape, 1.0 / (shape.head_dim() as f32).sqrt(), None, mask, exact, stride)
    }

    /// Equations 9 and 10 in plain f64 loops: `[kv_heads * head_dim]`.
    fn plain(
        shape: AttentionShape,
        mask: Mask,
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
                let attended = mask.first_key(m)..mask.end(m, n);
                let weight = |t: usize| if attended.contains(&t) { dot(t).exp() } else { 0.0 };
                let weights: Vec<f64> = (0..n).map(weight).collect();
                let total: f64 = weights.iter().sum();
                let p: Vec<f64> = weights.iter().map(|w| w / total).collect();
                let mean: Vec<f64> =
                    (0..d).map(|j| (0..n).map(|t| p[t] * f64::from(v[[t, kv, j]])).sum()).collect();
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
        for (mask, exact, stride) in [
            (Mask::Causal, [10, 2], 1),
            (Mask::Causal, [1, 0], 3),
            (Mask::Causal, [290, 4], 2),
            (Mask::SlidingWindow(40), [10, 2], 1),
            (Mask::Chunked(50), [10, 2], 2),
            (Mask::Bidirectional, [10, 2], 1),
        ] {
            let mut sensitivity = masked(shape, mask, exact, stride);
            sensitivity.set_output(wo.view()).unwrap();
            sensitivity.add(q.view(), k.view(), v.view()).unwrap();
            sensitivity.add_residual(residual.view()).unwrap();
            let got = sensitivity.finish();
            let expected = plain(shape, mask, exact, stride, (&q, &k, &v), &wo, &residual);
            assert_eq!(got.len(), expected.len());
            let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b.abs() && *b > 0.0;
            assert!(got.iter().zip(&expected).all(close), "{mask}, {exact:?}");
        }
    }

    #[test]
    fn without_projection_and_residual_the_layer_s_own_output_is_the_measure() {
        let shape = AttentionShape::new(2, 1, 4).unwrap();
        let mut random = Random::new(5);
        let mut heads = |heads| Array3::from_shape_simple_fn((60, heads, 4), || random.number());
        let (q, k, v) = (heads(2), heads(1), heads(1));
        let finish = |v: &Array3<f32>, output: Option<Array2<f32>>| {
            let mut sensitivity = sensitivity(shape, [4, 1], 1);
            if let Some(output) = output {
                sensitivity.set_output(output.view()).unwrap();
            }
            sensitivity.add(q.view(), k.view(), v.view()).unwrap();
            sensitivity.finish()
        };
        let own = finish(&v, None);
        assert!(own.iter().all(|x| *x > 0.0));
        assert_eq!(own, finish(&v, Some(Array2::eye(8))));
        // Values twice as large move the output twice as far, and the output is twice as large.
        let scaled = finish(&(&v * 2.0), None);
        assert!(own.iter().zip(&scaled).all(|(a, b)| (a - b).abs() <= 1e-6 * a), "{own:?} {scaled:?}");
    }

    #[test]
    fn a_text_without_far_keys_says_nothing() {
        let shape = AttentionShape::new(2, 1, 4).unwrap();
        let mut sensitivity = sensitivity(shape, [64, 4], 1);
        let kv = Array3::ones((20, 1, 4));
        sensitivity.add(Array3::ones((20, 2, 4)).view(), kv.view(), kv.view()).unwrap();
        assert_eq!(sensitivity.clone().finish(), [0.0; 4]);
        sensitivity.add_residual(Array2::ones((20, 3)).view()).unwrap();
        assert_eq!(sensitivity.finish(), [0.0; 4]);
    }

    #[test]
    fn other_shapes_are_refused_and_add_nothing() {
        let shape = AttentionShape::new(2, 1, 4).unwrap();
        let mut sensitivity = sensitivity(shape, [2, 0], 1);
        let wrong = sensitivity.set_output(Array2::ones((3, 7)).view()).unwrap_err();
        assert!(matches!(wrong, AttentionError::Shape { dimension: "columns", expected: 8, got: 7, .. }));
        let (q, kv) = (Array3::ones((9, 2, 4)), Array3::ones((9, 1, 4)));
        for (q, k, v, input, dimension) in [
            (Array3::ones((9, 1, 4)), kv.clone(), kv.clone(), "q", "heads"),
            (q.clone(), Array3::ones((8, 1, 4)), kv.clone(), "k", "tokens"),
            (q.clone(), kv.clone(), Array3::ones((9, 1, 5)), "v", "head_dim"),
        ] {
            match sensitivity.add(q.view(), k.view(), v.view()) {
                Err(AttentionError::Shape { input: i, dimension: d, .. }) => {
                    assert_eq!((i, d), (input, dimension))
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sensitivity.tokens(), 0);
        assert!(sensitivity.finish().is_empty());
    }
}
