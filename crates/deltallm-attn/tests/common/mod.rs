//! What several test programs share.
#![allow(dead_code, reason = "each program uses some of it")]

use std::ops::Range;

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    HeadsView, HeadsViewMut, HybridAttention, HybridConfig, Isa, KvStore, ThresholdPolicy,
    reference::{Attended, Method, attention},
};
use deltallm_testing::Random;

/// The instruction set of tests that do not go through all of them: the best, or the one that `DELTALLM_SIMD` names.
pub(crate) fn isa() -> Isa {
    Isa::from_env().unwrap()
}

/// A cache in f32, which rounds nothing, on that instruction set.
pub(crate) fn options() -> AttentionOptions {
    AttentionOptions::default().store(KvStore::F32).isa(isa())
}

/// Every kernel: dense, delta and hybrid.
pub(crate) fn kernels(
    shape: AttentionShape,
    options: &AttentionOptions,
    theta: f32,
) -> Vec<Box<dyn AttentionKernel>> {
    let policy = ThresholdPolicy::Uniform(theta);
    vec![
        Box::new(DenseAttention::new(shape, options.clone()).unwrap()),
        Box::new(DeltaAttention::new(shape, policy.clone(), 0, options.clone()).unwrap()),
        Box::new(HybridAttention::new(shape, HybridConfig::new(policy).options(options.clone())).unwrap()),
    ]
}

/// Inputs of one layer: q is `[tokens, heads, head_dim]`, k `[tokens, kv_heads, head_dim]`, v `[tokens, kv_heads, value_dim]`.
pub(crate) struct Inputs {
    pub(crate) shape: AttentionShape,
    pub(crate) tokens: usize,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Inputs {
    /// Keys walk along the tokens, so that deltas are partly zero; values are at most 1 in magnitude.
    pub(crate) fn new(shape: AttentionShape, tokens: usize, seed: u64) -> Self {
        let mut random = Random::scattered(seed);
        let (q_row, kv_row) = (shape.heads() * shape.head_dim(), shape.kv_heads() * shape.head_dim());
        let q = (0..tokens * q_row).map(|_| 2.0 * random.number()).collect();
        let v = random.numbers(tokens * shape.kv_heads() * shape.value_dim());
        let mut key = random.numbers(kv_row);
        let mut k = Vec::new();
        for _ in 0..tokens {
            key.iter_mut().for_each(|x| *x = 0.9 * *x + 0.5 * random.number());
            k.extend_from_slice(&key);
        }
        Self { shape, tokens, q, k, v }
    }

    /// Numbers in the queries of a token.
    pub(crate) fn q_row(&self) -> usize {
        self.shape.heads() * self.shape.head_dim()
    }

    pub(crate) fn q(&self, tokens: Range<usize>) -> HeadsView<'_> {
        let shape = [tokens.len(), self.shape.heads(), self.shape.head_dim()];
        HeadsView::new(&self.q[tokens.start * shape[1] * shape[2]..], shape).unwrap()
    }

    /// Those tokens of keys or values.
    pub(crate) fn kv<'a>(&self, data: &'a [f32], tokens: Range<usize>) -> HeadsView<'a> {
        let width = data.len() / self.tokens / self.shape.kv_heads();
        let shape = [tokens.len(), self.shape.kv_heads(), width];
        HeadsView::new(&data[tokens.start * shape[1] * shape[2]..], shape).unwrap()
    }

    /// Calls a kernel with the tokens from the ones it holds to `end`; returns `[tokens, heads, value_dim]`.
    pub(crate) fn call(
        &self,
        kernel: &mut dyn AttentionKernel,
        end: usize,
    ) -> Result<Vec<f32>, AttentionError> {
        let tokens = kernel.len()..end;
        let shape = [tokens.len(), self.shape.heads(), self.shape.value_dim()];
        let mut out = vec![0.0; shape.iter().product()];
        let (k, v) = (self.kv(&self.k, tokens.clone()), self.kv(&self.v, tokens.clone()));
        kernel.forward_heads(self.q(tokens), k, v, HeadsViewMut::new(&mut out, shape)?)?;
        Ok(out)
    }

    /// Runs a kernel over the next tokens, in calls that end at `ends`.
    pub(crate) fn run(&self, kernel: &mut dyn AttentionKernel, ends: &[usize]) -> Vec<f32> {
        ends.iter().flat_map(|end| self.call(kernel, *end).unwrap()).collect()
    }

    /// What a method answers, and how many values it skips.
    pub(crate) fn reference(&self, method: &Method) -> (Vec<f64>, u64) {
        self.reference_with(method, &self.k, &self.v)
    }

    /// The same for other keys and values.
    pub(crate) fn reference_with(&self, method: &Method, k: &[f32], v: &[f32]) -> (Vec<f64>, u64) {
        let all = 0..self.tokens;
        let (q, k, v) = (self.q(all.clone()), self.kv(k, all.clone()), self.kv(v, all));
        let attended = attention(&self.shape, method, &q, &k, &v).unwrap();
        (attended.out, attended.skipped)
    }

    /// All that a method answers.
    pub(crate) fn attended(&self, method: &Method) -> Attended {
        let all = 0..self.tokens;
        let (q, k, v) = (self.q(all.clone()), self.kv(&self.k, all.clone()), self.kv(&self.v, all));
        attention(&self.shape, method, &q, &k, &v).unwrap()
    }
}

/// How far the farthest number is off.
pub(crate) fn worst(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).abs()).fold(0.0, f64::max)
}
