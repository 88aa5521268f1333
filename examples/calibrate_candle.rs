//! Calibrates candle's quantised Llama: from a text to a profile, with which `embed_candle` runs it.
//!
//! `cargo run --release --features candle -p deltallm-examples --example calibrate_candle -- --model M.gguf --text T --out PROFILE.json`
//!
//! candle gives what `calibrate_your_engine` gives, from a graph that attention was put into ([`engines/llama.rs`](engines/llama.rs)):
//! q, k and v of every layer with the residual stream, and logits of all tokens. The output projections are in the file.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use clap::Parser;
use deltallm::attn::CalibrationGoal;
use deltallm::calibration::{CalibrationRequest, Calibrator, HeldOutText};
use deltallm::models::ModelFile;
use deltallm::{AttentionShape, Isa, KernelContext, KernelKind, KernelSpec, SparsityStats};
use ndarray::{Array, Array2, ArrayD, Dimension, Ix2, Ix3};

#[allow(dead_code, unused_imports, reason = "embed_candle uses the rest")]
mod engines;
mod output;

use engines::{Candle, Kernels, Llama, Look, Original, restart_with};

/// Find attention settings for a model that candle runs
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// GGUF file of a Llama
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Text like what the model will read; its first tokens are calibrated on, the next ones held out
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens to calibrate on
    #[arg(long, value_name = "N", default_value_t = 4096)]
    tokens: usize,
    /// Tokens to measure on; their logits are held in memory
    #[arg(long, value_name = "N", default_value_t = 2048)]
    held_out_tokens: usize,
    /// Tokens in a window
    #[arg(long, value_name = "N", default_value_t = 1024)]
    context: usize,
    /// Divergence from dense attention to stay within, nats
    #[arg(long, value_name = "K", default_value_t = 0.01)]
    max_kl: f64,
    /// Worker threads [default: one per CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where the profile goes
    #[arg(long, value_name = "PROFILE.json")]
    out: PathBuf,
}

fn main() -> Result<()> {
    output::run(calibrate)
}

fn calibrate(out: &mut dyn Write) -> Result<()> {
    let args = Args::parse();
    restart_with(args.threads, Some(true))?;
    let mut candle = Candle::open(&args.model)?;
    let text = fs::read_to_string(&args.text).with_context(|| format!("--text {}", args.text.display()))?;
    let tokens = candle.encode(&text)?;
    let [calibration, held_out] = cut(&args, &tokens)?;
    // Our loader reads the sizes alone; the weights stay in the file.
    let config = ModelFile::open(&args.model)?.config()?;
    let shape = AttentionShape::new(config.heads, config.kv_heads, config.head_dim)?;
    let context = KernelContext::new(shape).isa(Isa::from_env()?);
    let spec = KernelSpec::default().kernel(KernelKind::Dense);
    let dense = Kernels { spec, context: context.clone() };
    let mut llama = Llama::open(&args.model, &dense)?;

    // 1. What attention is given, with dense attention in all layers.
    let request = CalibrationRequest::new(CalibrationGoal::Kl(args.max_kl));
    let mut calibrator = Calibrator::new(shape, config.layers, request)?;
    for layer in 0..config.layers {
        let name = format!("blk.{layer}.attn_output.weight");
        let weights = candle.content.tensor(&mut candle.file, &name, &Device::Cpu)?;
        let weights = array::<Ix2>(&weights.dequantize(&Device::Cpu)?)?;
        calibrator.output_projection(layer, weights.view())?;
    }
    for window in calibration {
        run(&mut llama, window, &dense, &mut |layer, [q, k, v], residual| {
            let heads = |tensor: &Tensor| array::<Ix3>(&tensor.squeeze(0)?);
            calibrator.observe(layer, heads(q)?.view(), heads(k)?.view(), heads(v)?.view())?;
            let residual = array::<Ix2>(&residual.squeeze(0)?)?;
            Ok(calibrator.observe_residual(layer, residual.view())?)
        })?;
    }

    // 2. What dense attention predicts on other text, and what every setting tried does there.
    let mut text = HeldOutText::new();
    for window in held_out {
        text.add(window, run(&mut llama, window, &dense, &mut |_, _, _| Ok(()))?.0)?;
    }
    let _ = writeln!(
        std::io::stderr(),
        "dense attention: perplexity {:.2} on the text held out",
        text.perplexity()
    );
    let (most, mut runs) = (calibrator.runs(), 0);
    let found = calibrator.find(|spec| {
        let kernels = Kernels { spec: spec.clone(), context: context.clone() };
        let score = text.score(|window| run(&mut llama, window, &kernels, &mut |_, _, _| Ok(())));
        runs += 1;
        score.inspect(|score| {
            let _ = writeln!(std::io::stderr(), "{runs:>2} of at most {most}: KL {:.5} nats", score.kl);
        })
    })?;

    // 3. The profile, and what it costs.
    let name = args.model.file_stem().unwrap_or_default().to_string_lossy();
    let profile = found.profile(config.fingerprint(), &name, "")?;
    fs::write(&args.out, serde_json::to_string(&profile)? + "\n")
        .with_context(|| format!("--out {}", args.out.display()))?;
    let cost = found.held_out;
    writeln!(
        out,
        "{}: zeros {:.3}, values skipped {:.3}, perplexity {:+.2} %, KL {:.5} nats, {} of {} layers dense",
        args.out.display(),
        cost.zero_fraction,
        cost.values_skipped,
        100.0 * cost.perplexity_change,
        cost.kl,
        found.spec.layers.iter().filter(|layer| layer.dense).count(),
        config.layers
    )?;
    Ok(())
}

/// Reads a window with new kernels: logits after every token, and what the kernels counted.
fn run(
    llama: &mut Llama,
    window: &[u32],
    kernels: &Kernels,
    look: &mut Look,
) -> Result<(Array2<f32>, Vec<SparsityStats>)> {
    llama.set_kernels(kernels)?;
    let logits = llama.forward(window, 0, window.len(), look)?;
    Ok((array(&logits)?, llama.stats()?))
}

fn array<D: Dimension>(tensor: &Tensor) -> Result<Array<f32, D>> {
    let numbers = tensor.flatten_all()?.to_vec1()?;
    Ok(ArrayD::from_shape_vec(tensor.dims(), numbers)?.into_dimensionality()?)
}

/// The windows to calibrate on and those to hold out.
fn cut<'t>(args: &Args, tokens: &'t [u32]) -> Result<[Vec<&'t [u32]>; 2]> {
    let &Args { context, tokens: calibration, held_out_tokens: held_out, .. } = args;
    ensure!(context > 0, "--context: expected at least one token, got 0");
    for (option, got) in [("--tokens", calibration), ("--held-out-tokens", held_out)] {
        ensure!(got >= context, "{option}: expected at least one window of {context} tokens, got {got}");
    }
    let (calibration, held_out) = (calibration / context, held_out / context);
    let count = calibration.saturating_add(held_out);
    let all: Vec<_> = tokens.chunks_exact(context).take(count).collect();
    ensure!(
        all.len() == count,
        "--text {}: expected {count} windows of {context} tokens, got a text of {} tokens; use a longer text, or smaller \
         --tokens, --held-out-tokens or --context",
        args.text.display(),
        tokens.len()
    );
    let (calibration, held_out) = all.split_at(calibration);
    Ok([calibration.to_vec(), held_out.to_vec()])
}
