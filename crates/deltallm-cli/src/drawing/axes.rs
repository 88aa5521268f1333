//! Axes, the panels between them, and legends.

use plotters::style::RGBColor;

use super::canvas::{Align, Canvas, Dash, LINE, MARGIN, Place, SeriesStyle, TEXT, palette, text_width};

/// Share of a logarithmic axis that is set apart for zero.
const ZERO_SHARE: f64 = 0.12;
/// Values below this are zero on a logarithmic axis: less than rounding leaves.
const NOTHING: f64 = 1e-12;
const LINE_WIDTH: f64 = 4.0;

/// One axis: what it shows, and where a value stands on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    title: String,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
    /// Room for the labels of the ticks of an upright axis, at least.
    room: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    /// `zero`: whether the lowest part of the axis stands for zero.
    Log {
        zero: bool,
    },
}

impl Axis {
    /// A linear axis on which all values find room.
    pub(crate) fn linear(title: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let (mut low, mut high) = range(values);
        let margin = 0.06 * if high > low { high - low } else { high.abs().max(1.0) };
        (low, high) = (low - margin, high + margin);
        let step = step((high - low) / 6.0);
        let ticks = (low / step).ceil() as i64..=(high / step).floor() as i64;
        let ticks = ticks.map(|i| i as f64 * step);
        let ticks = ticks.map(|tick| (tick, format!("{tick:.*}", digits(step)))).collect();
        Self { title: title.into(), scale: Scale::Linear, low, high, ticks, room: 0.0 }
    }

    /// A linear axis from `low` to `high` exactly, which may run backwards.
    pub(crate) fn fixed(title: &str, low: f64, high: f64, step: f64) -> Self {
        let ticks = 0..=((high - low).abs() / step).floor() as i64;
        let ticks = ticks.map(|i| low.min(high) + i as f64 * step);
        let ticks = ticks.map(|tick| (tick, format!("{tick:.*}", digits(step)))).collect();
        Self { title: title.into(), scale: Scale::Linear, low, high, ticks, room: 0.0 }
    }

    /// A logarithmic axis; values that are zero, but for rounding, get a place of their own below all others.
    pub(crate) fn log(title: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let zero = values.iter().any(|value| *value < NOTHING);
        let (low, high) = range(values.into_iter().filter(|value| *value >= NOTHING));
        let margin = (high / low).powf(0.08).max(1.3);
        let (low, high) = if low > 0.0 { (low / margin, high * margin) } else { (1e-6, 1.0) };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let inside = |tick: &f64| (low..=high).contains(tick);
        let multiples = |multiples: &'static [f64]| -> Vec<f64> {
            let all =
                decades.clone().flat_map(|decade| multiples.iter().map(move |m| m * 10_f64.powi(decade)));
            all.filter(inside).collect()
        };
        let densities: [&[f64]; 3] = [&[1.0], &[1.0, 2.0, 5.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0]];
        let sets = densities.map(multiples);
        let [.., densest] = &sets;
        let ticks = sets.iter().find(|ticks| ticks.len() >= 3).unwrap_or(densest);
        let plain = low >= 1e-4;
        let label = |tick: f64| if plain { decimal(tick) } else { scientific(tick) };
        let mut ticks: Vec<_> = ticks.iter().map(|tick| (*tick, label(*tick))).collect();
        if zero {
            ticks.push((0.0, "0".into()));
        }
        Self { title: title.into(), scale: Scale::Log { zero }, low, high, ticks, room: 0.0 }
    }

    /// The same axis with ticks at these places only.
    pub(crate) fn with_ticks(self, ticks: impl IntoIterator<Item = f64>) -> Self {
        Self { ticks: ticks.into_iter().map(|tick| (tick, decimal(tick))).collect(), ..self }
    }

    /// Two upright axes with the same room for labels, so that panels below each other begin at the same place.
    pub(crate) fn aligned(axes: [Self; 2]) -> anyhow::Result<[Self; 2]> {
        let [a, b] = &axes;
        let room = a.label_width()?.max(b.label_width()?);
        Ok(axes.map(|axis| Self { room, ..axis }))
    }

    fn label_width(&self) -> anyhow::Result<f64> {
        self.ticks.iter().try_fold(self.room, |width, (_, label)| Ok(width.max(text_width(label, TEXT)?)))
    }

    /// Where a value stands, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log { zero } => {
                let below = if zero { ZERO_SHARE } else { 0.0 };
                if value < NOTHING {
                    return below / 2.0;
                }
                below + (1.0 - below) * (value / self.low).ln() / (self.high / self.low).ln()
            }
        }
    }

    fn has_zero_apart(&self) -> bool {
        self.scale == Scale::Log { zero: true }
    }
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let values = values.into_iter().filter(|value| value.is_finite());
    values
        .fold(None, |range, value| match range {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        })
        .unwrap_or((0.0, 0.0))
}

/// The next larger of 1, 2 and 5 times a power of ten.
pub(crate) fn step(at_least: f64) -> f64 {
    let power = 10_f64.powf(at_least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= at_least * 0.999);
    factor.unwrap_or(10.0) * power
}

/// Digits after the point that multiples of `step` need, at most 20.
fn digits(step: f64) -> usize {
    (-step.log10().floor()).clamp(0.0, 20.0) as usize
}

fn decimal(x: f64) -> String {
    format!("{:.*}", if x == 0.0 { 0 } else { digits(x.abs()) }, x)
}

/// `2·10⁻⁴`, or `10⁻⁴`.
fn scientific(x: f64) -> String {
    let exponent = (x.log10() + 1e-9).floor();
    let factor = (x / 10_f64.powf(exponent)).round();
    let power: String = format!("{exponent}")
        .chars()
        .map(|c| match c.to_digit(10) {
            Some(digit) => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][digit as usize],
            None => '⁻',
        })
        .collect();
    if factor == 1.0 { format!("10{power}") } else { format!("{factor}·10{power}") }
}

/// A diagram: two axes and what is between them.
pub(crate) struct Panel<'c, 'b> {
    canvas: &'c Canvas<'b>,
    /// Upper left and lower right corner of what is between the axes.
    inner: [Place; 2],
    x: Axis,
    y: Axis,
}

impl<'c, 'b> Panel<'c, 'b> {
    /// Draws the axes with their ticks and titles into the rectangle with these corners.
    pub(crate) fn new(
        canvas: &'c Canvas<'b>,
        [(left, top), (right, bottom)]: [Place; 2],
        x: Axis,
        y: Axis,
    ) -> anyhow::Result<Self> {
        let last = x.ticks.last().map_or(Ok(0.0), |(_, label)| text_width(label, TEXT))?;
        let inner = [
            (left + LINE + 10.0 + y.label_width()? + 16.0, top + TEXT / 2.0),
            (right - (last / 2.0).max(10.0), bottom - 2.0 * LINE - 8.0),
        ];
        let panel = Self { canvas, inner, x, y };
        let [(x0, y0), (x1, y1)] = inner;
        for (value, label) in &panel.x.ticks {
            let (x, _) = panel.at(*value, panel.y.low);
            canvas.line(&[(x, y0), (x, y1 + 8.0)], palette::GRID, 2.0, Dash::Solid)?;
            canvas.text((x, y1 + 8.0 + LINE / 2.0), Align::Middle, label)?;
        }
        for (value, label) in &panel.y.ticks {
            let (_, y) = panel.at(panel.x.low, *value);
            canvas.line(&[(x0 - 8.0, y), (x1, y)], palette::GRID, 2.0, Dash::Solid)?;
            canvas.text((x0 - 14.0, y), Align::Right, label)?;
        }
        if panel.y.has_zero_apart() {
            let y = y1 - ZERO_SHARE * (y1 - y0);
            canvas.line(&[(x0, y), (x1, y)], palette::BLACK, 2.0, Dash::Dotted)?;
        }
        panel.frame()?;
        canvas.text(((x0 + x1) / 2.0, y1 + 8.0 + 1.5 * LINE), Align::Middle, &panel.x.title)?;
        canvas.upward_text((left + LINE / 2.0, (y0 + y1) / 2.0), &panel.y.title)?;
        Ok(panel)
    }

    /// Where a point is in the picture.
    pub(crate) fn at(&self, x: f64, y: f64) -> Place {
        let [(x0, y0), (x1, y1)] = self.inner;
        (x0 + self.x.share(x) * (x1 - x0), y1 - self.y.share(y) * (y1 - y0))
    }

    /// Upper left and lower right corner of what is between the axes.
    pub(crate) fn inner(&self) -> [Place; 2] {
        self.inner
    }

    /// The lines of the axes, for drawing them over what has covered them.
    pub(crate) fn frame(&self) -> anyhow::Result<()> {
        let [(x0, y0), (x1, y1)] = self.inner;
        self.canvas.line(&[(x0, y0), (x0, y1), (x1, y1)], palette::BLACK, 2.5, Dash::Solid)
    }

    /// Points `[x, y]`, joined by a line if the style has one.
    pub(crate) fn series(&self, points: &[[f64; 2]], style: SeriesStyle) -> anyhow::Result<()> {
        let places: Vec<Place> = points.iter().map(|[x, y]| self.at(*x, *y)).collect();
        if let Some(dash) = style.dash {
            self.canvas.line(&places, style.colour, LINE_WIDTH, dash)?;
        }
        places.iter().try_for_each(|place| self.canvas.marker(*place, style.marker, style.colour))
    }

    /// A bar from `low` to `high` at `x`.
    pub(crate) fn error_bar(&self, x: f64, [low, high]: [f64; 2], colour: RGBColor) -> anyhow::Result<()> {
        let ((x, low), (_, high)) = (self.at(x, low), self.at(x, high));
        let line = |from, to| self.canvas.line(&[from, to], colour, 2.5, Dash::Solid);
        line((x, low), (x, high))?;
        line((x - 8.0, low), (x + 8.0, low))?;
        line((x - 8.0, high), (x + 8.0, high))
    }

    /// A line across the panel at `y`.
    pub(crate) fn level(&self, y: f64) -> anyhow::Result<()> {
        let [(x0, _), (x1, _)] = self.inner;
        let (_, y) = self.at(self.x.low, y);
        self.canvas.line(&[(x0, y), (x1, y)], palette::BLACK, 2.0, Dash::Solid)
    }
}

/// Series and their names from `top` on, line after line where they do not fit into one; returns where they end.
pub(crate) fn legend(canvas: &Canvas, top: f64, entries: &[(SeriesStyle, String)]) -> anyhow::Result<f64> {
    legend_between(canvas, [MARGIN, canvas.size()[0] - 10.0], top, entries)
}

/// The same in a part of the width.
pub(crate) fn legend_between(
    canvas: &Canvas,
    [left, right]: [f64; 2],
    top: f64,
    entries: &[(SeriesStyle, String)],
) -> anyhow::Result<f64> {
    let (mut x, mut y) = (left, top + LINE / 2.0);
    for (style, name) in entries {
        let sample = if style.dash.is_some() { 70.0 } else { 36.0 };
        let width = sample + 12.0 + text_width(name, TEXT)?;
        if x > left && x + width > right {
            (x, y) = (left, y + LINE);
        }
        if let Some(dash) = style.dash {
            canvas.line(&[(x, y), (x + sample, y)], style.colour, LINE_WIDTH, dash)?;
        }
        canvas.marker((x + sample / 2.0, y), style.marker, style.colour)?;
        canvas.text((x + sample + 12.0, y), Align::Left, name)?;
        x += width + 36.0;
    }
    Ok(y + LINE / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| &label[..]).collect()
    }

    #[test]
    fn linear_ticks_are_round_numbers() {
        assert_eq!(labels(&Axis::linear("", [30.0, 75.0])), ["30", "40", "50", "60", "70"]);
        assert_eq!(labels(&Axis::linear("", [-0.2, 0.31])), ["-0.2", "-0.1", "0.0", "0.1", "0.2", "0.3"]);
    }

    #[test]
    fn an_axis_of_one_value_or_none_still_has_a_range() {
        for values in [&[][..], &[0.0], &[5.0], &[f64::NAN]] {
            for axis in [Axis::linear("", values.to_vec()), Axis::log("", values.to_vec())] {
                assert!(axis.high > axis.low && axis.share(axis.high).is_finite(), "{axis:?}");
            }
        }
    }

    #[test]
    fn a_step_of_zero_needs_no_endless_digits() {
        assert_eq!([1.0, 0.05, 0.0, f64::INFINITY, f64::NAN].map(digits), [0, 2, 20, 0, 0]);
    }

    #[test]
    fn logarithmic_ticks_are_powers_of_ten_and_their_simple_multiples() {
        assert_eq!(labels(&Axis::log("", [1e-7, 1e-2])).first(), Some(&"10⁻⁷"));
        assert_eq!(labels(&Axis::log("", [3.0, 40.0])), ["5", "10", "20", "50"]);
        assert_eq!(labels(&Axis::log("", [2e-5, 8e-5])), ["2·10⁻⁵", "5·10⁻⁵", "10⁻⁴"]);
    }

    #[test]
    fn zero_has_a_place_of_its_own_on_a_logarithmic_axis() {
        let axis = Axis::log("", [0.0, 0.01, 1.0]);
        assert!(axis.share(0.0) < ZERO_SHARE && axis.share(-1e-18) < ZERO_SHARE);
        assert!(axis.share(0.01) > ZERO_SHARE && axis.share(1.0) < 1.0);
        assert_eq!(labels(&axis).last(), Some(&"0"));
    }
}
