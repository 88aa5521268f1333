//! What a first-time reader writes after the crate's page: an engine with buffers of its own, in fifteen lines.

use deltallm::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, HeadsView, HeadsViewMut,
    HybridAttention, HybridConfig, KvStore, ThresholdPolicy,
};

const SHAPE: [usize; 3] = [8, 2, 64];

#[rustfmt::skip]
fn attend(theta: f32, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) -> Result<HybridAttention, AttentionError> {
    let [heads, kv_heads, head_dim] = SHAPE;
    let tokens = q.len() / (heads * head_dim);
    let shape = AttentionShape::new(heads, kv_heads, head_dim)?;
    let exact = AttentionOptions::default().store(KvStore::F32);
    let config = HybridConfig::new(ThresholdPolicy::Uniform(theta)).options(exact);
    let mut attention = HybridAttention::new(shape, config)?;
    attention.forward_heads(
        HeadsView::new(q, [tokens, heads, head_dim])?,
        HeadsView::new(k, [tokens, kv_heads, head_dim])?,
        HeadsView::new(v, [tokens, kv_heads, head_dim])?,
        HeadsViewMut::new(out, [tokens, heads, head_dim])?,
    )?;
    Ok(attention)
}

/// Causal attention as it is defined.
fn plain(q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let [heads, kv_heads, head_dim] = SHAPE;
    let mut out = Vec::with_capacity(q.len());
    for (row, q) in q.chunks_exact(head_dim).enumerate() {
        let (token, kv_head) = (row / heads, row % heads / (heads / kv_heads));
        let of =
            |data, t: usize| &<[f32]>::get(data, (t * kv_heads + kv_head) * head_dim..).unwrap()[..head_dim];
        let dot = |t| q.iter().zip(of(k, t)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let weights: Vec<f64> = (0..=token).map(|t| (dot(t) / (head_dim as f64).sqrt()).exp()).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..head_dim).map(|j| {
            weights.iter().enumerate().map(|(t, w)| w * f64::from(of(v, t)[j])).sum::<f64>() / total
        }));
    }
    out
}

#[test]
fn an_engine_with_its_own_buffers_gets_the_right_answer() {
    let [heads, kv_heads, head_dim] = SHAPE;
    let tokens = 200;
    let wave = |count: usize, pace: f32| -> Vec<f32> {
        let width = count * head_dim;
        (0..tokens * width).map(|i| (pace * (i / width) as f32 + (i % width * 7) as f32).sin()).collect()
    };
    let (q, k, v) = (wave(heads, 0.5), wave(kv_heads, 0.03), wave(kv_heads, 0.4));
    let expected = plain(&q, &k, &v);
    let farthest =
        |out: &[f32]| out.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);

    let mut out = vec![0.0; q.len()];
    let exact = attend(0.0, &q, &k, &v, &mut out).unwrap();
    assert!(farthest(&out) < 1e-5, "{}", farthest(&out));
    assert_eq!(exact.len(), tokens);

    let hybrid = attend(0.1, &q, &k, &v, &mut out).unwrap();
    assert!((1e-5..0.1).contains(&farthest(&out)), "{}", farthest(&out));
    assert!(hybrid.stats().total().zero_fraction() > 0.5);
    assert!(hybrid.footprint().keys < exact.footprint().keys);
}
