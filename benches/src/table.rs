//! Rows for people.

use crate::report::Row;

/// The line above the rows.
pub fn header() -> String {
    format!(
        "{:8} {:>6} {:16} {:>10} {:>17} {:>7} {:>6} {:>6} {:>8} {:>9} {:>9}",
        "phase",
        "n",
        "variant",
        "median ms",
        "min..max",
        "ratio",
        "peak",
        "zeros",
        "skipped",
        "B/token",
        "differs"
    )
}

/// One row.
pub fn line(row: &Row) -> String {
    let number = |x: Option<f64>, digits: usize| x.map_or("-".to_owned(), |x| format!("{x:.digits$}"));
    format!(
        "{:8} {:6} {:16} {:10.3} {:>17} {:6.2}x {:6.3} {:>6} {:>8} {:>9} {:>9}",
        row.phase,
        row.n,
        row.variant,
        row.median_ms,
        format!("{:.3}..{:.3}", row.min_ms, row.max_ms),
        row.ratio_to_dense,
        row.peak_share,
        number(row.zero_fraction, 3),
        number(row.values_skipped, 3),
        number(row.bytes_per_token, 1),
        row.difference.map_or("-".to_owned(), |x| format!("{x:.1e}")),
    )
}

/// The ratios to the baseline, layer by layer: one line for each layer, one column for each of the rows of a measurement.
pub fn by_layer(rows: &[Row], baseline: &str) -> String {
    let Some(dense) = rows.iter().find(|row| row.variant == baseline) else { return String::new() };
    let mut text = format!("{:>5}", "layer");
    rows.iter().for_each(|row| text += &format!(" {:>16}", row.variant));
    for (layer, dense) in dense.layer_ms.iter().enumerate() {
        text += &format!("\n{layer:5}");
        rows.iter().for_each(|row| text += &format!(" {:15.2}x", dense / row.layer_ms[layer]));
    }
    text
}
