//! Times attention kernels against each other in one process, interleaved, and prints ratios of medians.

use std::{rc::Rc, time::Instant};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use clap::Parser;
use deltallm::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, HeadsViewMut,
    HybridAttention, HybridConfig, KvStore, SkipMargin, ThresholdPolicy,
};
use deltallm_benches::Inputs;
use serde::Serialize;

/// Interleaved timings of our dense, delta and hybrid attention and of candle's CPU flash attention.
///
/// Inputs are synthetic: random queries and values, keys that walk randomly along the tokens. What a threshold costs in
/// accuracy cannot be seen on them; use `evaluate` on a model for that.
#[derive(Parser)]
struct Args {
    /// Lengths in tokens.
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048")]
    n: Vec<usize>,
    /// Query heads, kv heads, head_dim.
    #[arg(long, value_delimiter = ',', default_value = "9,3,64")]
    shape: Vec<usize>,
    /// Threshold of the delta and hybrid variants.
    #[arg(long, default_value_t = 0.6)]
    theta: f32,
    /// Skip margin of the hybrid variant in nats.
    #[arg(long)]
    skip_margin: Option<f32>,
    /// Timed repetitions; the median counts.
    #[arg(long, default_value_t = 7)]
    repetitions: usize,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    input: String,
    phase: &'static str,
    n: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    variant: &'static str,
    level: String,
    threads: usize,
    median_ms: f64,
    ratio_to_dense: f64,
    zero_fraction: f64,
    values_skipped: f64,
    bytes_per_token: Option<f64>,
}

/// Makes an empty kernel.
type MakeKernel = Rc<dyn Fn() -> Result<Box<dyn AttentionKernel>>>;

/// Runs a phase once and answers the seconds it took.
type Run<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// What is timed.
struct Variant<'a> {
    name: &'static str,
    run: Run<'a>,
    /// For sparsity and bytes, where the kernel is ours.
    kernel: Option<MakeKernel>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let [heads, kv_heads, head_dim] = args.shape[..] else {
        anyhow::bail!("--shape: expected three numbers")
    };
    let shape = AttentionShape::new(heads, kv_heads, head_dim)?;
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    let mut rows = Vec::new();
    for &n in &args.n {
        anyhow::ensure!(n > 0, "--n: expected lengths of at least 1, got 0");
        let inputs = Inputs::synthetic(shape, n);
        rows.extend(measure(&args, &inputs, "prefill")?);
        rows.extend(measure(&args, &inputs, "decode")?);
    }
    println!(
        "{:8} {:>6} {:16} {:>10} {:>7} {:>6} {:>8}",
        "phase", "n", "variant", "median ms", "ratio", "zeros", "B/token"
    );
    for row in &rows {
        println!(
            "{:8} {:6} {:16} {:10.3} {:6.2}x {:6.3} {:>8}",
            row.phase,
            row.n,
            row.variant,
            row.median_ms,
            row.ratio_to_dense,
            row.zero_fraction,
            row.bytes_per_token.map_or("-".to_owned(), |b| format!("{b:.1}")),
        );
    }
    if args.json {
        println!("{}", serde_json::to_string(&Report { rows })?);
    }
    Ok(())
}

/// Times all variants, one after the other in every round, after a round that does not count.
fn measure(args: &Args, inputs: &Inputs, phase: &'static str) -> Result<Vec<Row>> {
    let mut variants = variants(args, inputs, phase)?;
    let mut seconds = vec![Vec::new(); variants.len()];
    for round in 0..=args.repetitions.max(1) {
        for (variant, seconds) in variants.iter_mut().zip(&mut seconds) {
            let time =
                (variant.run)().with_context(|| format!("{} at n = {}", variant.name, inputs.tokens))?;
            if round > 0 {
                seconds.push(time);
            }
        }
    }
    let medians: Vec<f64> = seconds.into_iter().map(median).collect();
    let baseline = if phase == "prefill" { "dense-f32" } else { "dense-f16-cache" };
    let dense = variants.iter().position(|v| v.name == baseline).context("the baseline is always timed")?;
    let shape = inputs.shape;
    let mut rows = Vec::new();
    for (variant, &time) in variants.iter().zip(&medians) {
        let filled = match &variant.kernel {
            Some(make) => Some(filled(&mut *make()?, inputs, inputs.tokens)?),
            None => None,
        };
        let (stats, bytes) = filled.unzip();
        let stats = stats.unwrap_or_default();
        rows.push(Row {
            input: "synthetic".to_owned(),
            phase,
            n: inputs.tokens,
            heads: shape.heads(),
            kv_heads: shape.kv_heads(),
            head_dim: shape.head_dim(),
            variant: variant.name,
            level: deltallm::SimdLevel::from_env()?.to_string(),
            threads: args.threads,
            median_ms: time * 1e3,
            ratio_to_dense: medians[dense] / time,
            zero_fraction: stats.zero_fraction(),
            values_skipped: stats.values_skipped(),
            bytes_per_token: bytes.map(|bytes| bytes as f64 / inputs.tokens as f64),
        });
    }
    Ok(rows)
}

fn variants<'a>(args: &Args, inputs: &'a Inputs, phase: &'static str) -> Result<Vec<Variant<'a>>> {
    let options = AttentionOptions { parallel: args.threads > 1, ..AttentionOptions::new(inputs.shape)? };
    let policy = ThresholdPolicy::Uniform(args.theta);
    let config = HybridConfig {
        skip_margin: args.skip_margin.map(SkipMargin::Fixed),
        ..HybridConfig::new(policy.clone())
    };
    let f16 = AttentionOptions { store: KvStore::F16, ..options.clone() };
    let (delta, hybrid) = (options.clone(), options.clone());
    let kernels: [(&'static str, MakeKernel); 4] = [
        ("dense-f32", Rc::new(move || Ok(Box::new(DenseAttention::new(&options)?)))),
        ("dense-f16-cache", Rc::new(move || Ok(Box::new(DenseAttention::new(&f16)?)))),
        ("delta-f32", Rc::new(move || Ok(Box::new(DeltaAttention::new(&delta, policy.clone(), 0)?)))),
        ("hybrid-f32", Rc::new(move || Ok(Box::new(HybridAttention::new(&hybrid, &config)?)))),
    ];
    let mut variants = Vec::new();
    for (name, make) in kernels {
        let run = if phase == "prefill" { prefill(make.clone(), inputs) } else { decode(&make, inputs)? };
        variants.push(Variant { name, run, kernel: Some(make) });
    }
    variants.push(candle_flash(inputs, phase)?);
    Ok(variants)
}

/// All tokens at once, into an empty cache.
fn prefill<'a>(make: MakeKernel, inputs: &'a Inputs) -> Run<'a> {
    let mut out = vec![0.0; inputs.q.len()];
    Box::new(move || {
        let mut kernel = make()?;
        let start = Instant::now();
        forward(&mut *kernel, inputs, 0, &mut out)?;
        Ok(start.elapsed().as_secs_f64())
    })
}

/// The last token again and again, into a cache of all the others.
fn decode<'a>(make: &MakeKernel, inputs: &'a Inputs) -> Result<Run<'a>> {
    let (mut kernel, last) = (make()?, inputs.tokens - 1);
    filled(&mut *kernel, inputs, last)?;
    let mut out = vec![0.0; inputs.shape.heads() * inputs.shape.head_dim()];
    Ok(Box::new(move || {
        kernel.truncate(last)?;
        let start = Instant::now();
        forward(&mut *kernel, inputs, last, &mut out)?;
        Ok(start.elapsed().as_secs_f64())
    }))
}

/// candle's own kernel for one sequence with a causal mask, on the same memory layout.
fn candle_flash<'a>(inputs: &'a Inputs, phase: &'static str) -> Result<Variant<'a>> {
    let (shape, n) = (inputs.shape, inputs.tokens);
    let tensor =
        |data: &[f32], heads| Tensor::from_slice(data, (1, n, heads, shape.head_dim()), &Device::Cpu);
    let first = if phase == "prefill" { 0 } else { n - 1 };
    let q = tensor(&inputs.q, shape.heads())?.narrow(1, first, n - first)?.contiguous()?;
    let (k, v) = (tensor(&inputs.k, shape.kv_heads())?, tensor(&inputs.v, shape.kv_heads())?);
    let scale = 1.0 / (shape.head_dim() as f32).sqrt();
    Ok(Variant {
        name: "candle-flash",
        run: Box::new(move || {
            let start = Instant::now();
            let out = flash_attn::<f32>(&q, &k, &v, scale, AttnMask::causal_with_offset(first), None, None)?;
            let time = start.elapsed().as_secs_f64();
            drop(out);
            Ok(time)
        }),
        kernel: None,
    })
}

/// Fills a kernel with the first `tokens` tokens; answers its sparsity and bytes.
fn filled(
    kernel: &mut dyn AttentionKernel,
    inputs: &Inputs,
    tokens: usize,
) -> Result<(deltallm::core::HeadSparsity, usize)> {
    if tokens > 0 {
        let part = Inputs {
            shape: inputs.shape,
            tokens,
            q: inputs.q[..inputs.q.len() / inputs.tokens * tokens].to_vec(),
            k: inputs.k[..inputs.k.len() / inputs.tokens * tokens].to_vec(),
            v: inputs.v[..inputs.v.len() / inputs.tokens * tokens].to_vec(),
        };
        let mut out = vec![0.0; part.q.len()];
        forward(kernel, &part, 0, &mut out)?;
    }
    Ok((kernel.stats().total(), kernel.footprint().total()))
}

/// Attends the tokens from `first` on.
fn forward(kernel: &mut dyn AttentionKernel, inputs: &Inputs, first: usize, out: &mut [f32]) -> Result<()> {
    let dims = [inputs.tokens - first, inputs.shape.heads(), inputs.shape.head_dim()];
    let out = HeadsViewMut::new(out, dims)?;
    Ok(kernel.forward_heads(inputs.q(first), inputs.k(first), inputs.v(first), out)?)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
