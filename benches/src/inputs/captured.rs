//! q, k, v of the layers of a model that reads a text.

use std::rc::Rc;

use anyhow::Context;
use deltallm::models::{LogitRows, Model};
use deltallm::{AttentionOptions, DenseAttention, KvStore};
use deltallm_cli::{LoadedModel, Progress};
use ndarray::ArrayView3;

use crate::{Inputs, Layer, settings::SettingsArgs};

/// Captures the first `count` windows of `tokens` tokens of `text`, in as many of the model's layers, spread evenly; attention is
/// dense while it reads. Shorter inputs are the beginnings of these: nothing in a causal model depends on later tokens.
///
/// # Errors
/// For a text that is too short, windows longer than the model's context, more layers than the model has, and settings that do not
/// fit it.
pub fn capture(
    model: &LoadedModel,
    text: &str,
    count: usize,
    tokens: usize,
    layers: Option<usize>,
    settings: &SettingsArgs,
) -> anyhow::Result<Inputs> {
    let all = model.graph.config().layers;
    let layers = layers.unwrap_or(all);
    anyhow::ensure!(layers <= all, "--layers: expected at most {all}, the model's layers, got {layers}");
    // The middle one of each of as many stretches.
    let layers: Vec<usize> = (0..layers).map(|stretch| (2 * stretch + 1) * all / (2 * layers)).collect();
    let context = model.graph.config().context_length;
    anyhow::ensure!(
        tokens <= context,
        "--n: expected lengths of at most {context}, the model's context, got {tokens}"
    );
    let ids = model.encode_windows(text)?;
    let cut = ids.windows(tokens, count);
    anyhow::ensure!(
        cut.len() == count,
        "--text: expected at least {count} windows of {tokens} tokens, got a text of {} tokens; use a longer text, or smaller --n \
         or --windows",
        ids.tokens()
    );
    let (description, spec) = settings.for_model(&model.graph)?;
    let mut progress = Progress::new("capturing");
    let mut captured = Vec::new();
    for (done, ids) in cut.iter().enumerate() {
        progress.update(done, count);
        captured.push(window(&model.graph, ids, &layers)?);
    }
    Ok(Inputs {
        name: format!("captured {}", model.name),
        context: model.graph.kernel_context(),
        windows: captured,
        layers,
        spec,
        values_skipped: None,
        description,
    })
}

fn window(model: &Model, ids: &[u32], layers: &[usize]) -> anyhow::Result<Vec<Rc<Layer>>> {
    let shape = model.attention_shape();
    let options = AttentionOptions::default().store(KvStore::F32).isa(model.isa());
    let kernels = (0..model.config().layers)
        .map(|layer| DenseAttention::new(shape, options.clone().mask(model.config().mask(layer))));
    let mut kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    let mut captured = Vec::new();
    let owned = |x: ArrayView3<f32>| x.iter().copied().collect();
    model
        .forward_observed(ids, &mut kernels, LogitRows::None, |input| {
            if layers.contains(&input.layer) {
                let (q, k, v) = (owned(input.q), owned(input.k), owned(input.v));
                captured.push(Layer { shape, q, k, v });
            }
        })
        .context("cannot capture q, k and v")?;
    Ok(captured.into_iter().map(Rc::new).collect())
}
