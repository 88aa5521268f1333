//! What settings cost and save while a text grows, from what the benchmark `lengths` has printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::panel::{Point, panel};
use crate::drawing::{Dash, Marker, SeriesStyle, legend, palette, png_of};
use crate::read_text;

const WIDTH: u32 = 560;
const HEIGHT: u32 = 1500;

/// Most columns of a picture.
const MOST_MODELS: usize = 16;

/// The settings' looks, in the order in which they come.
const STYLES: [(plotters::style::RGBColor, Marker); 4] = [
    (palette::ORANGE, Marker::Square),
    (palette::BLUE, Marker::Triangle),
    (palette::GREEN, Marker::Diamond),
    (palette::VERMILION, Marker::Circle),
];

/// A line of what `lengths` prints.
#[derive(Debug, Deserialize)]
struct Row {
    model: String,
    cpu: String,
    date: String,
    threads: usize,
    setting: String,
    tokens: usize,
    kl: f64,
    bytes_of_dense: f64,
    attention_ratio: f64,
}

/// Title, and what is drawn of a row.
type Quantity = (&'static str, fn(&Row) -> f64);

const QUANTITIES: [Quantity; 3] = [
    ("divergence, 0.001 nats", |row| 1e3 * row.kl),
    ("cache, % of dense f16", |row| 100.0 * row.bytes_of_dense),
    ("attention, times as fast", |row| row.attention_ratio),
];

/// Draws the files of several models and texts: a column for each model, means over its texts, and their range.
///
/// # Errors
/// For a file that cannot be read or is none of `lengths`, and when the picture cannot be drawn.
pub fn lengths(files: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    let mut rows = Vec::new();
    for path in files {
        rows.extend(read(path)?);
    }
    let models = distinct(&rows, |row| &row.model);
    let settings: Vec<_> =
        distinct(&rows, |row| &row.setting).into_iter().filter(|name| *name != "dense").collect();
    ensure!(!settings.is_empty(), "--run: expected files of `lengths` with settings, got none");
    for (what, most, got) in
        [("models", MOST_MODELS, models.len()), ("settings", STYLES.len(), settings.len())]
    {
        ensure!(got <= most, "--run: expected at most {most} {what} in a picture, got {got}");
    }
    let styles = || STYLES.map(|(colour, marker)| SeriesStyle { colour, marker, dash: Some(Dash::Solid) });
    let columns = u32::try_from(models.len())?;
    png_of([WIDTH * columns.max(2), HEIGHT], |canvas| {
        let first = &rows[0];
        canvas.headline(&format!("{}, {} threads, {}", first.cpu, first.threads, first.date))?;
        let entries: Vec<_> =
            styles().into_iter().zip(settings.iter().map(|name| (*name).to_owned())).collect();
        let top = legend(canvas, 76.0, &entries)? + 8.0;
        let [width, height] = canvas.size();
        let (width, height) = (width / models.len() as f64, (height - top) / QUANTITIES.len() as f64);
        for (column, model) in models.iter().enumerate() {
            for (line, (title, value)) in QUANTITIES.iter().enumerate() {
                let series = settings.iter().zip(styles()).map(|(setting, style)| {
                    let of = |row: &&Row| row.model == **model && row.setting == **setting;
                    (style, points(rows.iter().filter(of), *value))
                });
                let series: Vec<_> = series.collect();
                let (left, top) = (column as f64 * width, top + line as f64 * height);
                let area = [(left + 8.0, top), (left + width - 16.0, top + height - 8.0)];
                let heading = if line == 0 { short(model) } else { title };
                let panel = panel(canvas, area, [heading, "tokens", title], &[], &series)?;
                if line == 2 {
                    panel.level(1.0)?;
                }
            }
        }
        Ok(())
    })
}

/// The name without its type of weights (`-q4_k_m`, `.Q8_0`, `-f16`), as far as it fits.
fn short(model: &str) -> &str {
    let is_type = |end: &str| {
        end.starts_with(['q', 'Q', 'f', 'F']) && end[1..].starts_with(|c: char| c.is_ascii_digit())
    };
    let name = model.rsplit_once(['-', '.']).filter(|(_, end)| is_type(end)).map_or(model, |(name, _)| name);
    let end = name.char_indices().nth(34).map_or(name.len(), |(end, _)| end);
    &name[..end]
}

/// Means over the texts at each length, and their range.
fn points<'r>(rows: impl Iterator<Item = &'r Row>, value: fn(&Row) -> f64) -> Vec<Point> {
    let mut at: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    rows.for_each(|row| at.entry(row.tokens).or_default().push(value(row)));
    let points = at.into_iter().map(|(tokens, values)| {
        let range = [
            values.iter().copied().fold(f64::INFINITY, f64::min),
            values.iter().copied().fold(0.0, f64::max),
        ];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Point { x: tokens as f64, y: mean, range: (values.len() > 1).then_some(range) }
    });
    points.collect()
}

fn distinct<'r>(rows: &'r [Row], of: impl Fn(&'r Row) -> &'r String) -> Vec<&'r str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        let name = of(row).as_str();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let expected = || format!("--run {}: expected what the benchmark `lengths` has printed", path.display());
    let text = read_text("--run", path).with_context(expected)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(expected)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_their_type_of_weights() {
        for (model, expected) in [
            ("qwen2.5-coder-1.5b-instruct-q4_k_m", "qwen2.5-coder-1.5b-instruct"),
            ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
            ("model-f16", "model"),
            ("fairy-tales", "fairy-tales"),
            ("a-name-that-is-much-too-long-for-a-heading", "a-name-that-is-much-too-long-for-a"),
        ] {
            assert_eq!(short(model), expected);
        }
    }
}
