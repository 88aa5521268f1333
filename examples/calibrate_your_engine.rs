//! Calibrates an engine that is not ours: here one of forty lines, whose weights are made up.
//!
//! `cargo run --release --example calibrate_your_engine`
//!
//! An engine hands over three things: what attention is given in every layer, the output projections if it has them, and a way
//! to run itself with other kernels. It gets a `KernelSpec`, from which it makes its kernels, and a profile to save.

mod output;

use std::io::Write;

use anyhow::Result;
use deltallm::attn::{CalibrationGoal, KernelKind};
use deltallm::calibration::{CalibrationRequest, Calibrator, HeldOutText};
use deltallm::{AttentionShape, Isa, KernelContext, KernelSpec, ModelFingerprint, SparsityStats};
use ndarray::{Array1, Array2, Array3};

const LAYERS: usize = 2;
const HEADS: [usize; 2] = [4, 2]; // of queries; of keys and values
const HEAD_DIM: usize = 16;
const HIDDEN: usize = HEADS[0] * HEAD_DIM;
const WINDOW: usize = 512;

/// The engine: a model of bytes. Its layers have attention and nothing else.
struct Engine {
    embedding: Array2<f32>,
    layers: Vec<Layer>,
}

struct Layer {
    /// `[hidden, heads * head_dim]`.
    q: Array2<f32>,
    /// `[hidden, kv_heads * head_dim]`.
    k: Array2<f32>,
    v: Array2<f32>,
    /// `[heads * head_dim, hidden]`.
    output: Array2<f32>,
}

/// What a layer is given: its number, q, k and v as `[tokens, heads, head_dim]`, and the residual stream.
type Look<'a> = dyn FnMut(usize, [&Array3<f32>; 3], &Array2<f32>) -> Result<()> + 'a;

impl Engine {
    fn new() -> Self {
        let mut state = 1_u64;
        let mut weights = |rows, columns, size: f32| {
            Array2::from_shape_simple_fn((rows, columns), || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                size * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
            })
        };
        let narrow = HEADS[1] * HEAD_DIM;
        let layers = (0..LAYERS).map(|_| Layer {
            q: weights(HIDDEN, HIDDEN, 2.0),
            k: weights(HIDDEN, narrow, 0.3),
            v: weights(HIDDEN, narrow, 0.3),
            output: weights(HIDDEN, HIDDEN, 0.2),
        });
        let layers = layers.collect();
        Self { layers, embedding: weights(256, HIDDEN, 1.0) }
    }

    /// Logits after every token, `[tokens, 256]`, with the kernels of `spec`; `look` sees what attention is given.
    fn run(
        &self,
        tokens: &[u32],
        spec: &KernelSpec,
        look: &mut Look,
    ) -> Result<(Array2<f32>, Vec<SparsityStats>)> {
        let context = KernelContext::new(shape()).isa(Isa::from_env()?);
        // A token goes on from those before it, as in real models: neighbouring keys and queries are alike.
        let mut x = Array2::zeros((tokens.len(), HIDDEN));
        let mut state = Array1::zeros(HIDDEN);
        for (mut row, token) in x.outer_iter_mut().zip(tokens) {
            state = state * 0.97 + &self.embedding.row(*token as usize) * 0.25;
            row.assign(&state);
        }
        let mut stats = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let heads = |weights: &Array2<f32>, heads| {
                x.dot(weights).into_shape_with_order((tokens.len(), heads, HEAD_DIM))
            };
            let (q, k, v) =
                (heads(&layer.q, HEADS[0])?, heads(&layer.k, HEADS[1])?, heads(&layer.v, HEADS[1])?);
            look(number, [&q, &k, &v], &x)?;
            let (mut kernel, mut out) = (spec.build(number, &context)?, Array3::zeros(q.dim()));
            kernel.forward(q.view(), k.view(), v.view(), out.view_mut())?;
            x += &out.into_shape_with_order((tokens.len(), HIDDEN))?.dot(&layer.output);
            stats.push(kernel.stats());
        }
        Ok((x.dot(&self.embedding.t()) * 0.2, stats))
    }
}

fn shape() -> AttentionShape {
    AttentionShape::new(HEADS[0], HEADS[1], HEAD_DIM).expect("heads that fit together")
}

fn main() -> Result<()> {
    output::run(calibrate)
}

fn calibrate(out: &mut dyn Write) -> Result<()> {
    let engine = Engine::new();
    let dense = KernelSpec::default().kernel(KernelKind::Dense);
    // Text like what the model will read. This one reads itself, once to be measured and once to be scored.
    let text: Vec<u32> =
        include_bytes!("calibrate_your_engine.rs").iter().map(|byte| u32::from(*byte)).collect();
    let windows: Vec<&[u32]> = text.chunks_exact(WINDOW).collect();
    let (measured, held_out) = windows.split_at(windows.len() / 2);

    // 1. What attention is given, with dense attention in all layers.
    let request = CalibrationRequest::new(CalibrationGoal::Kl(0.01)).exact_window(32);
    let mut calibrator = Calibrator::new(shape(), LAYERS, request)?;
    for (number, layer) in engine.layers.iter().enumerate() {
        calibrator.output_projection(number, layer.output.t())?;
    }
    for tokens in measured {
        engine.run(tokens, &dense, &mut |layer, [q, k, v], residual| {
            calibrator.observe_residual(layer, residual.view())?;
            Ok(calibrator.observe(layer, q.view(), k.view(), v.view())?)
        })?;
    }

    // 2. What dense attention predicts on other text, and what every setting tried does there.
    let mut text = HeldOutText::new();
    for tokens in held_out {
        text.add(tokens, engine.run(tokens, &dense, &mut |_, _, _| Ok(()))?.0)?;
    }
    let (most, mut runs) = (calibrator.runs(), 0);
    let found = calibrator.find(|spec| {
        runs += 1;
        let score = text.score(|tokens| engine.run(tokens, spec, &mut |_, _, _| Ok(())));
        // A reader who leaves is noticed when the results are printed: it is no fault of the engine's.
        score.inspect(|score| {
            let _ = writeln!(out, "{runs:>2} of at most {most}: KL {:.5} nats", score.kl);
        })
    })?;

    // 3. The settings, to make kernels from and to save.
    let cost = found.held_out;
    writeln!(
        out,
        "found: zeros {:.3}, values skipped {:.3}, KL {:.5} nats",
        cost.zero_fraction, cost.values_skipped, cost.kl
    )?;
    for (number, layer) in found.spec.layers.iter().enumerate() {
        writeln!(out, "layer {number}: {layer:?}")?;
    }
    let profile = found.profile(ModelFingerprint(1), "forty lines", "")?;
    writeln!(out, "{} bytes of JSON", serde_json::to_string(&profile)?.len())?;
    Ok(())
}
