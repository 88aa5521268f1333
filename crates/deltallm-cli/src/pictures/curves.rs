//! Speed and memory of a whole model as curves over context, from what the benchmarks print with `--json`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::panel::{Point, panel};
use crate::drawing::{Canvas, Dash, Marker, Place, SeriesStyle, legend, palette, png_of};
use crate::read_text;

const SIZE: [u32; 2] = [1400, 1260];

/// Engines of `bench-model`, what they are called here, and how they look.
const ENGINES: [(&str, &str, SeriesStyle); 4] = [
    ("dense-f16", "dense, f16 cache", solid(palette::BLACK, Marker::Circle)),
    ("hybrid-f16", "hybrid, f16", solid(palette::ORANGE, Marker::Square)),
    ("hybrid-int8", "hybrid, int8", solid(palette::BLUE, Marker::Triangle)),
    ("hybrid-compact", "hybrid, compact", solid(palette::GREEN, Marker::Diamond)),
];
/// Variants of `ratios`, and the phases in which they are drawn; products of int16 are for prompts.
const VARIANTS: [(&str, &[Phase], &str, SeriesStyle); 4] = [
    ("hybrid-f32", &[Phase::Prefill, Phase::Decode], "f32", solid(palette::VERMILION, Marker::Circle)),
    ("hybrid-int16", &[Phase::Prefill], "int16", solid(palette::SKY, Marker::Star)),
    ("hybrid-8bit", &[Phase::Decode], "int8", solid(palette::BLUE, Marker::Triangle)),
    ("compact", &[Phase::Prefill, Phase::Decode], "compact", solid(palette::GREEN, Marker::Diamond)),
];

const fn solid(colour: plotters::style::RGBColor, marker: Marker) -> SeriesStyle {
    SeriesStyle { colour, marker, dash: Some(Dash::Solid) }
}

/// Files that hold a report, as JSON in their last line.
#[derive(Debug, Clone, clap::Args)]
pub struct CurveFiles {
    /// What `bench-model --phases prefill --json` has printed
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// What `bench-model --phases decode --json` has printed
    #[arg(long, value_name = "FILE")]
    decode: PathBuf,
    /// What `ratios --json` has printed
    #[arg(long, value_name = "FILE")]
    attention: PathBuf,
}

#[derive(Deserialize)]
struct Run<R> {
    cpu: String,
    threads: usize,
    date: String,
    rows: Vec<R>,
}

/// A row of `bench-model`.
#[derive(Deserialize)]
struct ModelRow {
    engine: String,
    tokens: usize,
    tokens_per_second: f64,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    cache_bytes: Option<f64>,
}

/// A row of `ratios`.
#[derive(Deserialize)]
struct AttentionRow {
    variant: String,
    phase: Phase,
    n: usize,
    ratio_to_dense: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    Prefill,
    Decode,
}

/// Draws the picture.
///
/// # Errors
/// For a file that cannot be read or is no report, and when the picture cannot be drawn.
pub fn curves(files: &CurveFiles) -> anyhow::Result<Vec<u8>> {
    let prompts: Run<ModelRow> = read("--prompts", &files.prompts)?;
    let decode: Run<ModelRow> = read("--decode", &files.decode)?;
    let attention: Run<AttentionRow> = read("--attention", &files.attention)?;
    png_of(SIZE, |canvas| {
        canvas.headline(&format!("{}, {} threads, {}", prompts.cpu, prompts.threads, prompts.date))?;
        let entries = ENGINES.map(|(_, name, style)| (style, name.to_owned()));
        let top = legend(canvas, 76.0, &entries)? + 8.0;
        let [width, height] = canvas.size();
        let (middle, half) = (width / 2.0, (top + height) / 2.0);
        let area = |left: f64, top: f64, bottom: f64| [(left, top), (left + middle - 24.0, bottom - 8.0)];
        let models =
            |run: &Run<ModelRow>, area, [title, x, y]: [&str; 3], point: &dyn Fn(&ModelRow) -> Point| {
                let series = ENGINES.map(|(engine, _, style)| {
                    (style, run.rows.iter().filter(|row| row.engine == engine).map(point).collect())
                });
                panel(canvas, area, [title, x, y], &[], &series).map(drop)
            };
        models(
            &prompts,
            area(16.0, top, half),
            ["Prompt, whole model", "tokens of the prompt", "tokens/s"],
            &rate,
        )?;
        models(
            &decode,
            area(middle + 8.0, top, half),
            ["Decoding, whole model", "tokens in the cache", "tokens/s"],
            &rate,
        )?;
        models(
            &decode,
            area(16.0, half, height),
            ["Caches of all layers", "tokens in the cache", "MB"],
            &|row| Point { x: row.tokens as f64, y: row.cache_bytes.unwrap_or(f64::NAN) / 1e6, range: None },
        )?;
        draw_attention(canvas, area(middle + 8.0, half, height), &attention.rows)
    })
}

fn read<R: DeserializeOwned>(option: &str, path: &Path) -> anyhow::Result<Run<R>> {
    let expected =
        || format!("{option} {}: expected what a benchmark has printed with --json", path.display());
    let text = read_text(option, path).with_context(expected)?;
    serde_json::from_str(text.trim_end().lines().last().unwrap_or_default()).with_context(expected)
}

fn rate(row: &ModelRow) -> Point {
    let at = |ms: f64| row.tokens_per_second * row.median_ms / ms;
    Point { x: row.tokens as f64, y: row.tokens_per_second, range: Some([at(row.max_ms), at(row.min_ms)]) }
}

fn draw_attention(canvas: &Canvas, area: [Place; 2], rows: &[AttentionRow]) -> anyhow::Result<()> {
    let entries = VARIANTS.map(|(.., name, style)| (SeriesStyle { dash: None, ..style }, name.to_owned()));
    let mut series = Vec::new();
    for (phase, dash) in [(Phase::Prefill, Dash::Solid), (Phase::Decode, Dash::Dashed)] {
        for (variant, _, _, style) in VARIANTS.into_iter().filter(|(_, phases, ..)| phases.contains(&phase)) {
            let of = rows.iter().filter(|row| row.variant == variant && row.phase == phase);
            let points = of.map(|row| Point {
                x: row.n as f64,
                y: row.ratio_to_dense.unwrap_or(f64::NAN),
                range: None,
            });
            series.push((SeriesStyle { dash: Some(dash), ..style }, points.collect()));
        }
    }
    let title = ["Attention alone, against dense", "tokens; dashed: decoding", "time of dense / time"];
    panel(canvas, area, title, &entries, &series)?.level(1.0)
}
