//! Rows of results, for the table and for JSON.

use serde::Serialize;

use super::phase::Phase;
use super::rounds::{Entry, Measured, Plan};
use super::timing::Summary;

/// Everything, as it is printed with `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// One for every phase, length and engine.
    pub rows: Vec<Row>,
    /// Name of the model.
    pub model: String,
    /// Of the machine.
    pub cpu: String,
    /// In UTC.
    pub date: String,
    /// SIMD level of our kernels.
    pub level: String,
    /// Threads of everyone.
    pub threads: usize,
    /// Tokens decoded in a row by an engine in a round.
    pub decode_tokens: usize,
    /// Rounds that count.
    pub repetitions: usize,
}

/// One engine in one phase at one length.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// Its name, as on the command line.
    pub engine: String,
    /// Its settings in words.
    pub settings: String,
    /// Which part.
    pub phase: Phase,
    /// Tokens of the prompt; in decoding, that are in the cache before.
    pub tokens: usize,
    /// Of the median round.
    pub tokens_per_second: f64,
    /// Time of the first engine over this one's: above one is faster.
    pub ratio: f64,
    /// Milliseconds for the prompt, or for all decoded tokens: median of the rounds.
    pub median_ms: f64,
    /// Median absolute deviation of the rounds.
    pub mad_ms: f64,
    /// The shortest round.
    pub min_ms: f64,
    /// The longest round.
    pub max_ms: f64,
    /// Every round.
    pub round_ms: Vec<f64>,
    /// Bytes of the cache at the end; none for other engines.
    pub cache_bytes: Option<usize>,
    /// The most probable token after the prompt.
    pub next: Option<usize>,
}

/// The rows of one measurement.
pub(super) fn rows(entries: &[Entry], plan: &Plan, measured: &[Measured]) -> Vec<Row> {
    let tokens = match plan.phase {
        Phase::Prefill => plan.prompt,
        Phase::Decode => plan.decoded,
    };
    let first = measured.first().map_or(f64::NAN, |first| Summary::of(&first.seconds).median);
    let row = |(entry, measured): (&Entry, &Measured)| {
        let time = Summary::of(&measured.seconds);
        Row {
            engine: entry.name.clone(),
            settings: entry.settings.clone(),
            phase: plan.phase,
            tokens: plan.prompt,
            tokens_per_second: tokens as f64 / time.median,
            ratio: first / time.median,
            median_ms: time.median * 1e3,
            mad_ms: time.mad * 1e3,
            min_ms: time.min * 1e3,
            max_ms: time.max * 1e3,
            round_ms: measured.seconds.iter().map(|seconds| seconds * 1e3).collect(),
            cache_bytes: measured.cache_bytes,
            next: measured.next,
        }
    };
    entries.iter().zip(measured).map(row).collect()
}

/// The line above the rows.
pub(super) fn header() -> String {
    format!(
        "{:8} {:>6} {:18} {:>10} {:>7} {:>10} {:>19} {:>9} {:>7}",
        "phase", "tokens", "engine", "tokens/s", "ratio", "median ms", "min..max", "cache MB", "next"
    )
}

/// One row.
pub(super) fn line(row: &Row) -> String {
    format!(
        "{:8} {:6} {:18} {:10.1} {:6.2}x {:10.1} {:>19} {:>9} {:>7}",
        row.phase,
        row.tokens,
        row.engine,
        row.tokens_per_second,
        row.ratio,
        row.median_ms,
        format!("{:.1}..{:.1}", row.min_ms, row.max_ms),
        row.cache_bytes.map_or("-".to_owned(), |bytes| format!("{:.2}", bytes as f64 / 1e6)),
        row.next.map_or("-".to_owned(), |token| token.to_string()),
    )
}

/// A prompt in a new process, as it is printed with `--first-token`.
#[derive(Debug, Serialize)]
pub(super) struct FirstToken {
    /// Name of the engine.
    pub engine: String,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// From the start of the program until the model is there.
    pub load_ms: f64,
    /// From the start of the program to the first new token.
    pub first_token_ms: f64,
    /// That token.
    pub next: Option<usize>,
    /// The most memory that was resident; none where the system does not say.
    pub peak_rss_bytes: Option<u64>,
}
