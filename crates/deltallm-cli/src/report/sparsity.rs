//! Which layers and heads have zeros, and which layers skip values.

use plotters::style::RGBColor;
use serde::Serialize;

use super::subject::Subject;
use crate::Measured;
use crate::drawing::{
    Align, Axis, Canvas, Dash, LINE, MARGIN, Panel, Place, TEXT, between, palette, png, step, text_width,
};

/// Rows of the heat map that are readable below each other.
const ROWS: usize = 16;

/// Sparsity of the kernel on the text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sparsity {
    /// Over everything.
    pub zero_fraction: f64,
    /// Share of far values that were skipped, over everything.
    pub values_skipped: f64,
    /// Layer by layer.
    pub layers: Vec<LayerSparsity>,
}

/// Sparsity of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSparsity {
    /// Whether the layer runs dense: then nothing is far.
    pub dense: bool,
    /// Whether its keys are coded as deltas.
    pub deltas: bool,
    /// Zero fraction of each kv head.
    pub zero_fraction: Vec<f64>,
    /// Share of far values that were skipped, all heads together.
    pub values_skipped: f64,
}

impl Sparsity {
    pub(super) fn new(measured: &Measured) -> Self {
        let total = measured.score.held_out();
        let layers = measured.score.layers.iter().map(|stats| {
            let total = stats.total();
            LayerSparsity {
                dense: total.elements == 0 && total.exact_pairs == total.pairs,
                deltas: total.elements > 0,
                zero_fraction: stats.heads().iter().map(|head| head.zero_fraction()).collect(),
                values_skipped: total.values_skipped(),
            }
        });
        Self {
            zero_fraction: total.zero_fraction,
            values_skipped: total.values_skipped,
            layers: layers.collect(),
        }
    }

    /// Zero fractions of layers that are coded.
    fn zero_fractions(&self) -> impl Iterator<Item = f64> {
        self.layers.iter().filter(|layer| layer.deltas).flat_map(|layer| layer.zero_fraction.iter().copied())
    }

    pub(super) fn summary(&self) -> String {
        if self.zero_fractions().next().is_none() {
            return format!("no deltas, values skipped {:.1} %", 100.0 * self.values_skipped);
        }
        let [low, high] = self.extremes();
        format!(
            "zero fraction {:.1} % ({:.0} to {:.0} % by layer and kv head), values skipped {:.1} %",
            100.0 * self.zero_fraction,
            100.0 * low,
            100.0 * high,
            100.0 * self.values_skipped
        )
    }

    fn extremes(&self) -> [f64; 2] {
        let low = self.zero_fractions().fold(f64::INFINITY, f64::min);
        let high = self.zero_fractions().fold(f64::NEG_INFINITY, f64::max);
        if low <= high { [low, high] } else { [0.0, 1.0] }
    }

    pub(super) fn draw(&self, subject: &Subject) -> anyhow::Result<Vec<u8>> {
        png(|canvas| {
            let skipped = match self.values_skipped {
                0.0 => "no values skipped".to_owned(),
                share => format!("{:.0} % of far values skipped", 100.0 * share),
            };
            let zeros = match self.zero_fractions().next() {
                Some(_) => format!("{:.0} % zeros", 100.0 * self.zero_fraction),
                None => "no deltas".to_owned(),
            };
            canvas.headline(&format!("Sparsity by layer: {zeros}, {skipped}"))?;
            let bottom = canvas.caption(&subject.caption(&subject.sample()))?;
            self.draw_heads(canvas, [(MARGIN, 80.0), (720.0, bottom)])?;
            self.draw_skipped(canvas, [(770.0, 100.0), (1380.0, bottom)])
        })
    }

    /// The heat map, in as many blocks beside each other as its rows need, and the colour bar.
    fn draw_heads(&self, canvas: &Canvas, [(left, top), (right, bottom)]: [Place; 2]) -> anyhow::Result<()> {
        const BAR: f64 = 36.0;
        const GAP: f64 = 24.0;
        let [low, high] = self.extremes();
        let scale = ColourScale::new(low, high);
        let heads = self.layers.first().map_or(1, |layer| layer.zero_fraction.len()).max(1);
        let blocks = self.layers.len().div_ceil(ROWS).max(1);
        let rows = self.layers.len().div_ceil(blocks).max(1);
        let labels = text_width("00", TEXT)? + 12.0;
        let bar_labels = text_width("100 %", TEXT)? + 12.0;
        canvas.text((left, top + LINE / 2.0), Align::Left, "zero fraction, %")?;
        let (head, foot) = (top + 1.6 * LINE, bottom - 2.0 * LINE);
        let width = (right - left - LINE - bar_labels - BAR - GAP) / blocks as f64;
        let (cell_width, cell_height) = ((width - labels - GAP) / heads as f64, (foot - head) / rows as f64);
        for (index, layer) in self.layers.iter().enumerate() {
            let x = left + LINE + (index / rows) as f64 * width + labels;
            let y = head + (index % rows) as f64 * cell_height;
            canvas.text((x - 10.0, y + cell_height / 2.0), Align::Right, &index.to_string())?;
            for (kv_head, share) in layer.zero_fraction.iter().enumerate() {
                let x = x + kv_head as f64 * cell_width;
                let colour = if layer.deltas { scale.colour(*share) } else { palette::GREY };
                canvas.fill([(x + 1.0, y + 1.0), (x + cell_width - 1.0, y + cell_height - 1.0)], colour)?;
                let text = if layer.deltas { format!("{:.0}", 100.0 * share) } else { "–".into() };
                let ink = if scale.is_dark(*share) && layer.deltas { palette::WHITE } else { palette::BLACK };
                if text_width("00", TEXT)? < cell_width && TEXT * 0.7 < cell_height {
                    let middle = (x + cell_width / 2.0, y + cell_height / 2.0);
                    canvas.text_in(middle, Align::Middle, &text, ink)?;
                }
                if index % rows == 0 {
                    // Where the columns are narrower than their numbers, every other one is named.
                    let every = if cell_width > labels { 1 } else { 2 };
                    if kv_head % every == 0 {
                        let place = (x + cell_width / 2.0, foot + LINE / 2.0);
                        canvas.text(place, Align::Middle, &kv_head.to_string())?;
                    }
                }
            }
            if index % rows == 0 {
                let middle = x + cell_width * heads as f64 / 2.0;
                canvas.text((middle, foot + 1.5 * LINE), Align::Middle, "kv head")?;
            }
        }
        canvas.upward_text((left + LINE / 2.0, (head + foot) / 2.0), "layer")?;
        let bar = right - bar_labels - BAR;
        scale.draw(canvas, [(bar, head), (bar + BAR, foot)])
    }

    fn draw_skipped(&self, canvas: &Canvas, area: [Place; 2]) -> anyhow::Result<()> {
        let last = self.layers.len() as f64 - 0.5;
        let most = self.layers.iter().map(|layer| layer.values_skipped).fold(0.0, f64::max);
        let high = if most > 0.0 { (10.0 * most + 0.3).ceil().min(10.0) * 10.0 } else { 100.0 };
        let ticks = step((self.layers.len() as f64 / 7.0).max(1.0));
        let x = Axis::fixed("layer", -0.5, last, 1.0)
            .with_ticks((0..self.layers.len()).step_by(ticks as usize).map(|layer| layer as f64));
        let y = Axis::fixed("far values skipped, %", 0.0, high, step(high / 6.0));
        let panel = Panel::new(canvas, area, x, y)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let corner = |side: f64, share: f64| panel.at(index as f64 + side, 100.0 * share);
            canvas.fill([corner(-0.38, layer.values_skipped), corner(0.38, 0.0)], palette::VERMILION)?;
        }
        if most == 0.0 {
            let [(x0, y0), (x1, _)] = panel.inner();
            canvas.text(((x0 + x1) / 2.0, y0 + 2.0 * LINE), Align::Middle, "skipping is off")?;
        }
        panel.frame()
    }
}

/// White to dark blue: the order is seen without telling colours apart.
struct ColourScale {
    low: f64,
    high: f64,
}

impl ColourScale {
    /// Reaches to full tenths.
    fn new(low: f64, high: f64) -> Self {
        let low = (10.0 * low).floor() / 10.0;
        Self { low, high: ((10.0 * high).ceil() / 10.0).max(low + 0.1) }
    }

    fn place(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn colour(&self, value: f64) -> RGBColor {
        between([RGBColor(250, 252, 255), palette::SKY, RGBColor(0, 50, 95)], self.place(value))
    }

    fn is_dark(&self, value: f64) -> bool {
        self.place(value) > 0.62
    }

    fn draw(&self, canvas: &Canvas, [(x0, y0), (x1, y1)]: [Place; 2]) -> anyhow::Result<()> {
        const BANDS: usize = 120;
        let band = |i: usize| y1 - (y1 - y0) * i as f64 / BANDS as f64;
        for i in 0..BANDS {
            let value = self.low + (self.high - self.low) * (i as f64 + 0.5) / BANDS as f64;
            canvas.fill([(x0, band(i + 1)), (x1, band(i))], self.colour(value))?;
        }
        canvas.line(&[(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], palette::BLACK, 2.0, Dash::Solid)?;
        let tenths = ((self.high - self.low) * 10.0).round() as usize;
        for tenth in (0..=tenths).step_by(tenths.div_ceil(6).max(1)) {
            let value = self.low + tenth as f64 / 10.0;
            let y = y1 - (y1 - y0) * self.place(value);
            canvas.line(&[(x1, y), (x1 + 8.0, y)], palette::BLACK, 2.0, Dash::Solid)?;
            canvas.text((x1 + 12.0, y), Align::Left, &format!("{:.0} %", 100.0 * value))?;
        }
        Ok(())
    }
}
