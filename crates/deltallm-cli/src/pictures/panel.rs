//! A panel of curves over tokens.

use crate::drawing::{Axis, Canvas, LINE, Panel, Place, SeriesStyle, legend_between, step};

/// A point, and the range that it is the middle of.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) range: Option<[f64; 2]>,
}

/// A panel with its title and a legend above, and a series for each style.
pub(super) fn panel<'c, 'b>(
    canvas: &'c Canvas<'b>,
    [(left, top), (right, bottom)]: [Place; 2],
    [title, x, y]: [&str; 3],
    entries: &[(SeriesStyle, String)],
    series: &[(SeriesStyle, Vec<Point>)],
) -> anyhow::Result<Panel<'c, 'b>> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let mut tokens: Vec<f64> = points().map(|point| point.x).collect();
    tokens.sort_by(f64::total_cmp);
    tokens.dedup();
    let most = points().map(|point| point.range.map_or(point.y, |[_, high]| high)).fold(0.0, f64::max);
    // Labels of more lengths than this run into each other: every second one is left out, the last one never.
    let every = if tokens.len() > 5 { 2 } else { 1 };
    let ticks = tokens.iter().rev().step_by(every).copied();
    let x = Axis::log(x, tokens.iter().copied()).with_ticks(ticks);
    anyhow::ensure!(
        most > 0.0 && most.is_finite(),
        "{y}: expected a value above 0 to draw, got none; is the file that of another program?"
    );
    let y = Axis::fixed(y, 0.0, 1.06 * most, step(most / 6.0));
    let axes = match entries {
        [] => top + LINE,
        _ => legend_between(canvas, [left + 8.0, right + 16.0], top + LINE, entries)?,
    };
    let panel = Panel::new(canvas, [(left, axes), (right, bottom)], x, y)?;
    let [(x0, _), (x1, _)] = panel.inner();
    canvas.title(((x0 + x1) / 2.0, top + LINE / 2.0), title)?;
    for (style, points) in series {
        for point in points {
            if let Some(range) = point.range {
                panel.error_bar(point.x, range, style.colour)?;
            }
        }
        panel.series(&points.iter().map(|point| [point.x, point.y]).collect::<Vec<_>>(), *style)?;
    }
    Ok(panel)
}
