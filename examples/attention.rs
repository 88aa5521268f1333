//! Attention alone, as an engine calls it: one kernel for each layer, with its cache inside.
//!
//! `cargo run --release --example attention`

mod output;

use std::io::Write;

use deltallm::{
    AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, HeadsView, HeadsViewMut,
    HybridAttention, HybridConfig, Isa, ThresholdPolicy,
};
use ndarray::Array3;

/// Query heads, the kv heads that they share, and channels of a head.
const HEADS: [usize; 3] = [8, 2, 64];
const PROMPT: usize = 1000;

fn main() -> anyhow::Result<()> {
    output::run(attend)
}

fn attend(out: &mut dyn Write) -> anyhow::Result<()> {
    let [heads, kv_heads, head_dim] = HEADS;
    let shape = AttentionShape::new(heads, kv_heads, head_dim)?;

    // Hybrid attention: the latest 64 keys and the first 4 exact, the others as deltas that are left out below a threshold.
    let options = AttentionOptions::default().isa(Isa::from_env()?); // the fastest, or the one that DELTALLM_SIMD names
    let config = HybridConfig::new(ThresholdPolicy::Uniform(0.5)).options(options.clone());
    let mut hybrid = HybridAttention::new(shape, config)?;
    let mut dense = DenseAttention::new(shape, options)?;

    // A prompt as ndarray arrays, [tokens, heads, head_dim], keys after the rotary embedding. The kernel appends keys and
    // values to its cache and attends the queries to all of it, causally.
    let q = Array3::from_shape_fn((PROMPT, heads, head_dim), |(t, h, c)| query(t, h, c));
    let k = Array3::from_shape_fn((PROMPT, kv_heads, head_dim), |(t, h, c)| key(t, h, c));
    let v = Array3::from_shape_fn((PROMPT, kv_heads, head_dim), |(t, h, c)| value(t, h, c));
    let mut result = Array3::zeros(q.dim());
    // With this, a prompt may come in several calls and is one prompt all the same.
    hybrid.begin_prompt(PROMPT);
    hybrid.forward(q.view(), k.view(), v.view(), result.view_mut())?;
    let mut exact = Array3::zeros(q.dim());
    dense.forward(q.view(), k.view(), v.view(), exact.view_mut())?;
    let difference = (&result - &exact).mapv(f32::abs).fold(0.0, |a: f32, b| a.max(*b));
    writeln!(out, "prompt: {PROMPT} tokens, outputs differ from dense attention by at most {difference:.4}")?;

    // A token as slices: whatever an engine's buffers look like, a view says where rows begin. Here q, k and v of the token lie
    // behind one another, as a fused projection leaves them.
    let made_up = |heads: usize, x: fn(usize, usize, usize) -> f32| {
        (0..heads).flat_map(move |h| (0..head_dim).map(move |c| x(PROMPT, h, c)))
    };
    let fused: Vec<f32> =
        made_up(heads, query).chain(made_up(kv_heads, key)).chain(made_up(kv_heads, value)).collect();
    let (q, rest) = fused.split_at(heads * head_dim);
    let (k, v) = rest.split_at(kv_heads * head_dim);
    let mut row = vec![0.0; heads * head_dim];
    hybrid.forward_heads(
        HeadsView::new(q, [1, heads, head_dim])?,
        HeadsView::new(k, [1, kv_heads, head_dim])?,
        HeadsView::new(v, [1, kv_heads, head_dim])?,
        HeadsViewMut::new(&mut row, [1, heads, head_dim])?,
    )?;
    writeln!(out, "token {}: {:.3?} …", hybrid.len(), &row[..4])?;

    // What it did, and what it holds.
    let sparsity = hybrid.stats().total();
    let [ours, theirs] = [hybrid.footprint().total(), dense.footprint().total()];
    writeln!(
        out,
        "{:.0} % of the delta entries are zero; sparsity as the paper counts it {:.0} %",
        100.0 * sparsity.zero_fraction(),
        100.0 * sparsity.sparsity()
    )?;
    writeln!(out, "cache: {ours} bytes, dense attention's {theirs}")?;

    // Tokens can be taken back, for speculative decoding or to use a prompt again. Bad input is an error, and changes nothing.
    hybrid.truncate(PROMPT)?;
    let short = HeadsView::new(k, [1, kv_heads, head_dim])?;
    let to = HeadsViewMut::new(&mut row[..kv_heads * head_dim], [1, kv_heads, head_dim])?;
    let error = hybrid.forward_heads(short, short, short, to);
    writeln!(out, "back at {} tokens; queries of {kv_heads} heads: {}", hybrid.len(), error.unwrap_err())?;
    Ok(())
}

/// Made-up numbers: keys drift slowly from token to token, as those of language models do.
fn key(token: usize, head: usize, channel: usize) -> f32 {
    2.0 * (token as f32 * 0.001 * (1 + channel) as f32 + (head * 7 + channel) as f32).sin()
}

fn query(token: usize, head: usize, channel: usize) -> f32 {
    0.5 * key(token, head / 4, channel) + (token * 31 + head * 17 + channel * 5) as f32 % 7.0 * 0.1
}

fn value(token: usize, head: usize, channel: usize) -> f32 {
    ((token * 13 + head * 5 + channel * 3) as f32 * 0.37).cos()
}
