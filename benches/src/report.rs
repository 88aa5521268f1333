//! Rows of results, for the table and for JSON.

use deltallm::AttentionShape;
use serde::Serialize;

use crate::Inputs;
use crate::measure::{Plan, Results};
use crate::subject::Phase;
use crate::timing::Summary;

/// Everything, as it is printed with `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One for every phase, length and variant.
    pub rows: Vec<Row>,
    /// Of the machine.
    pub cpu: String,
    /// In UTC.
    pub date: String,
    /// SIMD level of our kernels.
    pub level: String,
    /// Threads of everyone.
    pub threads: usize,
    /// Settings of the approximate variants.
    pub settings: String,
    /// Layers that times and bytes are sums over.
    pub layers: usize,
    /// Windows of text that times and bytes are means over.
    pub windows: usize,
    /// Rounds that count.
    pub repetitions: usize,
    /// Tokens decoded in a row by a variant in a round.
    pub decode_steps: usize,
    /// PyTorch's version, if it took part.
    pub torch: Option<String>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// One variant in one phase at one length. A row of decoding is about one token.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Where the inputs come from.
    pub input: String,
    /// Prefill or decode.
    pub phase: Phase,
    /// Tokens.
    pub n: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Name.
    pub variant: &'static str,
    /// SIMD level of our kernels; other engines choose theirs.
    pub level: String,
    /// Threads.
    pub threads: usize,
    /// Milliseconds for all layers: median of the rounds.
    pub median_ms: f64,
    /// Median absolute deviation of the rounds.
    pub mad_ms: f64,
    /// The shortest round.
    pub min_ms: f64,
    /// The longest round.
    pub max_ms: f64,
    /// Rounds that counted.
    pub rounds: usize,
    /// Median time of dense-f32 (decode: dense-f16-cache) over that of this variant: above one is faster.
    pub ratio_to_dense: f64,
    /// Multiply-adds that dense attention needs, over this variant's time, over the measured peak.
    pub peak_share: f64,
    /// The measured peak, thousand million multiply-adds a second.
    pub peak_gmacs: f64,
    /// Share of zero delta entries; none for other engines.
    pub zero_fraction: Option<f64>,
    /// Share of far values skipped, in this phase.
    pub values_skipped: Option<f64>,
    /// Bytes of the caches of all layers for one token.
    pub bytes_per_token: Option<f64>,
    /// The largest difference to dense f32, relative to the largest output of the layer; none where inputs differ.
    pub difference: Option<f64>,
    /// Milliseconds for every layer: medians of the rounds.
    pub layer_ms: Vec<f64>,
}

/// The variant that a phase is compared with.
pub fn baseline(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "dense-f32",
        Phase::Decode => "dense-f16-cache",
    }
}

/// The rows of one measurement.
pub fn rows(inputs: &Inputs, plan: &Plan, results: &Results, level: &str, threads: usize) -> Vec<Row> {
    let summaries: Vec<Summary> =
        results.subjects.iter().map(|subject| Summary::of(&subject.seconds())).collect();
    let dense = results.subjects.iter().position(|subject| subject.name == baseline(plan.phase));
    let dense = dense.map_or(f64::NAN, |dense| summaries[dense].median);
    let shape: AttentionShape = inputs.shape();
    let row = |(subject, time): (&crate::measure::Measured, &Summary)| Row {
        input: inputs.name.clone(),
        phase: plan.phase,
        n: plan.n,
        heads: shape.heads(),
        kv_heads: shape.kv_heads(),
        head_dim: shape.head_dim(),
        variant: subject.name,
        level: level.to_owned(),
        threads,
        median_ms: time.median * 1e3,
        mad_ms: time.mad * 1e3,
        min_ms: time.min * 1e3,
        max_ms: time.max * 1e3,
        rounds: subject.seconds().len(),
        ratio_to_dense: dense / time.median,
        peak_share: results.multiply_adds / time.median / results.peak,
        peak_gmacs: results.peak / 1e9,
        zero_fraction: subject.counts.map(|counts| counts.sparsity.zero_fraction()),
        values_skipped: subject.counts.map(|counts| counts.sparsity.values_skipped()),
        bytes_per_token: subject.counts.map(|counts| counts.bytes_per_token),
        difference: subject.difference,
        layer_ms: subject.layers().into_iter().map(|seconds| seconds * 1e3).collect(),
    };
    results.subjects.iter().zip(&summaries).map(row).collect()
}
