//! The skip margin that skips a share of the far values.

use deltallm::{
    AttentionOptions, AttentionShape, ExactWindow, HeadsView, HeadsViewMut, HybridConfig, KvStore,
    SkipMargin, attend_hybrid,
};

use super::layer::Layer;
use crate::subject::Phase;

/// Skip margins among which one is sought, in nats, and the steps of that search.
const MARGINS: [f32; 2] = [0.05, 20.0];
const MARGIN_STEPS: usize = 10;
/// Tokens near the end of the input that stand for those that are decoded, and how far they are apart.
const TRIAL_TOKENS: usize = 16;
const TRIAL_STRIDE: usize = 4;

/// The skip margin at which this share of the far values is skipped, in the first kv head.
///
/// # Errors
/// For settings that a kernel refuses.
pub fn margin(
    layer: &Layer,
    config: &HybridConfig,
    values_skipped: f64,
    phase: Phase,
    n: usize,
) -> anyhow::Result<SkipMargin> {
    Ok(SkipMargin::Fixed(match phase {
        Phase::Prefill => prefill_margin(layer, config, values_skipped, n)?,
        Phase::Decode => decode_margin(layer, config, values_skipped, n)?,
    }))
}

/// In prefill the queries of a tile decide together, so it is tried out.
fn prefill_margin(
    layer: &Layer,
    config: &HybridConfig,
    values_skipped: f64,
    n: usize,
) -> anyhow::Result<f32> {
    let [mut low, mut high] = MARGINS;
    for _ in 0..MARGIN_STEPS {
        let middle = 0.5 * (low + high);
        if skipped(layer, config, middle, n)? > values_skipped {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(high)
}

fn skipped(layer: &Layer, config: &HybridConfig, margin: f32, n: usize) -> anyhow::Result<f64> {
    let (shape, d) = (layer.shape, layer.shape.head_dim());
    let options = AttentionOptions::default().store(KvStore::F32);
    let config = config.clone().skip_margin(SkipMargin::Fixed(margin)).options(options);
    let row = shape.kv_heads() * d;
    let dims = [n, shape.group(), d];
    let mut out = vec![0.0; dims.iter().product()];
    let stats = attend_hybrid(
        AttentionShape::new(shape.group(), 1, d)?,
        &config,
        HeadsView::strided(&layer.q, dims, shape.heads() * d, d)?,
        HeadsView::strided(&layer.k, [n, 1, d], row, d)?,
        HeadsView::strided(&layer.v, [n, 1, d], row, d)?,
        HeadsViewMut::new(&mut out, dims)?,
    )?;
    Ok(stats.total().values_skipped())
}

/// In decoding the heads of a group decide: a value is kept if its key scores within the margin, and what is added to it
/// there, of the best exact key for any of them. Far keys are put in order of that.
fn decode_margin(layer: &Layer, config: &HybridConfig, values_skipped: f64, n: usize) -> anyhow::Result<f32> {
    let (shape, d) = (layer.shape, layer.shape.head_dim());
    let window = match config.exact_window {
        ExactWindow::Sliding(keys) => keys,
        ExactWindow::Block { scale } => (f64::from(scale) * n as f64) as usize,
        _ => anyhow::bail!("--window: expected N or block:SCALE, got {}", config.exact_window),
    };
    let mut gaps = Vec::new();
    let heads = (0..shape.kv_heads()).flat_map(|head| (1..=TRIAL_TOKENS).map(move |trial| (head, trial)));
    for (kv_head, trial) in heads {
        let token = n.saturating_sub(trial * TRIAL_STRIDE);
        let far = config.exact_sinks..(token + 1).saturating_sub(window).max(config.exact_sinks);
        let mut gap = vec![f32::NEG_INFINITY; far.len()];
        let queries = layer.q[token * shape.heads() * d..].chunks(d);
        for q in queries.skip(kv_head * shape.group()).take(shape.group()) {
            let score = |key: usize| {
                let key = &layer.k[(key * shape.kv_heads() + kv_head) * d..][..d];
                q.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() / (d as f32).sqrt()
            };
            let exact = (0..=token).filter(|key| !far.contains(key));
            let best = exact.map(score).fold(f32::NEG_INFINITY, f32::max);
            gap.iter_mut().zip(far.clone()).for_each(|(gap, key)| *gap = gap.max(score(key) - best));
        }
        gaps.extend(gap);
    }
    gaps.sort_by(f32::total_cmp);
    let at = (values_skipped * gaps.len() as f64) as usize;
    let [least, most] = MARGINS;
    Ok(gaps.get(at).map_or(most, |gap| -gap - SkipMargin::ALONE).clamp(least, most))
}
