//! Experiments.
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use deltallm::attn::calibration::*;
use deltallm::models::{LogitRows, Session};
use deltallm::*;
use deltallm_examples::*;

/// x
#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    model: Option<PathBuf>,
    #[arg(long)]
    text: PathBuf,
    #[arg(long)]
    held: PathBuf,
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    #[arg(long, default_value_t = 1024)]
    context: usize,
    #[arg(long, default_value_t = 2)]
    windows: usize,
    #[arg(long, default_value_t = 2)]
    stride: usize,
    #[arg(long, default_value = "0.63")]
    sparsity: String,
    #[arg(long, default_value = "all")]
    rules: String,
    #[arg(long)]
    layers: bool,
    #[arg(long, default_value_t = 1.0)]
    mult: f64,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    main_with(run)
}

fn run(args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    let model = LoadedModel::open(args.model.as_deref())?;
    let llama = &model.llama;
    let options = AttentionOptions::new(llama.attention_shape())?;
    let c = llama.config();
    let text = model.encode(&std::fs::read_to_string(&args.text)?)?;
    let start = Instant::now();
    let mut sens: Vec<Sensitivity> = llama
        .weights()
        .layers
        .iter()
        .map(|l| Sensitivity::new(&options, [64, 4], l.attention_output.weight.view(), args.stride))
        .collect();
    let mut rates: Vec<RateCurves> =
        (0..c.layers).map(|_| RateCurves::new(c.kv_heads * c.head_dim)).collect();
    for w in windows(&text, args.context, Some(args.tokens / args.context)) {
        let mut kernels: Vec<DenseAttention> =
            (0..c.layers).map(|_| DenseAttention::new(&options).unwrap()).collect();
        let (mut ts, mut tr) = (0.0, 0.0);
        llama.forward_observed(w, &mut kernels, LogitRows::None, &mut |i| {
            let t = Instant::now();
            sens[i.layer].add(i.q, i.k, i.v, i.residual);
            ts += t.elapsed().as_secs_f64();
            let t = Instant::now();
            rates[i.layer].add(i.k);
            tr += t.elapsed().as_secs_f64();
        })?;
        eprintln!("{:.1}s sens {ts:.1} rates {tr:.1}", start.elapsed().as_secs_f64());
    }
    let mut weights: Vec<ChannelWeights> = sens.into_iter().map(Sensitivity::finish).collect();
    if args.layers {
        let pre = Allocation::new(weights.iter().cloned().zip(rates.iter().cloned()).collect());
        let th = pre.thresholds(AllocationRule::Output { power: 0.75 }, 0.75);
        let w = &text[..512];
        let mut s = Session::new(llama, |_| Ok(Box::new(DenseAttention::new(&options)?)))?;
        let mut dense = None;
        s.score(w, &mut |_, l| dense = Some(l))?;
        let dense = dense.unwrap();
        let da = score_rows(dense.view(), &w[1..]);
        for l in 0..c.layers {
            let predicted = pre.predicted(l, &th[l]);
            let mut s = Session::new(llama, |layer| {
                if layer != l {
                    return Ok(Box::new(DenseAttention::new(&options)?));
                }
                let mut t = vec![vec![0.0f32; c.kv_heads * c.head_dim]; c.layers];
                t[l] = th[l].clone();
                let profile = Arc::new(
                    ThresholdProfile::new(
                        ModelFingerprint(0),
                        [c.layers, c.kv_heads, c.head_dim],
                        t.concat(),
                    )
                    .unwrap(),
                );
                let config =
                    HybridConfig { layer, ..HybridConfig::new(ThresholdPolicy::Profile(profile.clone())) };
                Ok(Box::new(HybridAttention::new(&options, &config)?))
            })?;
            let mut cmp = Comparison::default();
            s.score(w, &mut |_, x| {
                let a = score_rows(x.view(), &w[1..]);
                cmp.add((dense.view(), &da), (x.view(), &a));
            })?;
            eprintln!(
                "layer {l} predicted {predicted:.3e} KL {:.3e} ratio {:.3e} zf {:.3}",
                cmp.kl(),
                cmp.kl() / predicted,
                s.kernels()[l].stats().total().zero_fraction()
            );
            if args.mult != 0.0 {
                let m = (cmp.kl() / predicted).powf(args.mult);
                weights[l].output.iter_mut().for_each(|x| *x *= m);
            }
        }
    }
    let allocation = Allocation::new(weights.into_iter().zip(rates).collect());
    let held = model.encode(&std::fs::read_to_string(&args.held)?)?;
    let rules = [
        ("m1", AllocationRule::Mass { power: 1.0 }),
        ("m3", AllocationRule::Output { power: 1.0 }),
        ("m3p.75", AllocationRule::Output { power: 0.75 }),
        ("m3p.6", AllocationRule::Output { power: 0.6 }),
        ("rd", AllocationRule::RateDistortion { power: 1.0 }),
        ("rdp.8", AllocationRule::RateDistortion { power: 0.8 }),
        ("rdp.65", AllocationRule::RateDistortion { power: 0.65 }),
    ];
    let mut dense_logits = Vec::new();
    for w in windows(&held, args.context, Some(args.windows)) {
        let mut s = Session::new(llama, |_| Ok(Box::new(DenseAttention::new(&options)?)))?;
        let mut rows = Vec::new();
        s.set_chunk(1024);
        s.score(w, &mut |_, l| rows.push(l))?;
        dense_logits.push(rows);
    }
    for sp in args.sparsity.split(',') {
        let sp: f64 = sp.parse()?;
        for (name, rule) in rules {
            if args.rules != "all" && !args.rules.split(',').any(|r| r == name) {
                continue;
            }
            let th = allocation.thresholds(rule, sp);
            let zf = allocation.zero_fraction(&th);
            let profile = Arc::new(ThresholdProfile::new(
                ModelFingerprint(0),
                [c.layers, c.kv_heads, c.head_dim],
                th.concat(),
            )?);
            let (mut px, mut pd, mut cmp) =
                (Perplexity::default(), Perplexity::default(), Comparison::default());
            for (w, dense) in windows(&held, args.context, Some(args.windows)).iter().zip(&dense_logits) {
                let mut s = Session::new(llama, |layer| {
                    let config = HybridConfig {
                        layer,
                        ..HybridConfig::new(ThresholdPolicy::Profile(profile.clone()))
                    };
                    Ok(Box::new(HybridAttention::new(&options, &config)?))
                })?;
                s.set_chunk(1024);
                let mut i = 0;
                let mut begin = 0;
                s.score(w, &mut |done, l| {
                    let next = &w[begin + 1..w.len().min(done + 1)];
                    let (a, b) = (score_rows(dense[i].view(), next), score_rows(l.view(), next));
                    pd.add(&a);
                    px.add(&b);
                    cmp.add((dense[i].view(), &a), (l.view(), &b));
                    i += 1;
                    begin = done;
                })?;
                px.sparsity.add(&s.stats().total());
            }
            println!(
                "{name:8} zf calib {zf:.4} zf {:.4} ppl {:+.3}% KL {:.5} top1 {:.2}%  [{:.0}s]",
                px.sparsity.zero_fraction(),
                100.0 * (px.value() / pd.value() - 1.0),
                cmp.kl(),
                100.0 * cmp.top1_agreement(),
                start.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}
