//! The method in three panels, from the keys and queries of one head: a channel, the deltas, the pairs.

use anyhow::Context;
use deltallm::ElementType;
use deltallm::core::DeltaEncoder;
use ndarray::{ArrayView2, Axis as Along};
use plotters::style::RGBColor;

use crate::args::whole;
use crate::drawing::{
    Align, Axis, Canvas, Dash, LINE, Marker, Panel, Place, TEXT, between, palette, png_of, step,
};
use crate::report::{PairChoice, Pairs, Subject};

const SIZE: [u32; 2] = [2800, 1000];
const LIGHT_BLUE: RGBColor = RGBColor(205, 232, 248);
const DARK_GREY: RGBColor = RGBColor(102, 102, 102);
/// Deltas above and below zero, from the smallest to the largest.
const RISES: [RGBColor; 3] = [RGBColor(253, 205, 140), RGBColor(224, 130, 20), RGBColor(127, 59, 8)];
const FALLS: [RGBColor; 3] = [RGBColor(198, 196, 225), RGBColor(128, 115, 172), RGBColor(45, 0, 75)];
/// This share of the deltas has a colour of its own; larger ones have that of the largest.
const COLOURED: f64 = 0.95;

/// What is looked at.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct MethodChoice {
    /// The layer
    #[arg(long, value_name = "N", default_value_t = 12)]
    layer: usize,
    /// Its kv head
    #[arg(long, value_name = "N", default_value_t = 1)]
    head: usize,
    /// The key channel of the first panel
    #[arg(long, value_name = "N", default_value_t = 28)]
    channel: usize,
    /// Tokens of the first two panels
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole(1..=384_usize))]
    shown: usize,
}

/// The keys of the head, and what is stored of them.
struct Coded<'a> {
    /// `[tokens, channels]`.
    keys: ArrayView2<'a, f32>,
    theta: f32,
    /// What the receiver holds after a key, `[tokens][channels]`.
    held: Vec<Vec<f32>>,
}

impl<'a> Coded<'a> {
    fn new(keys: ArrayView2<'a, f32>, theta: f32) -> anyhow::Result<Self> {
        let mut encoder = DeltaEncoder::new(vec![theta; keys.ncols()], ElementType::F32)?;
        let mut held = Vec::new();
        for key in keys.outer_iter() {
            encoder.encode(&key.to_vec())?;
            held.push(encoder.reconstruction().to_vec());
        }
        Ok(Self { keys, theta, held })
    }

    /// What was sent for a channel of a key, if it was. The first key is sent whole.
    fn delta(&self, token: usize, channel: usize) -> Option<f32> {
        let held = self.held[token][channel];
        match token {
            0 => Some(held),
            _ => Some(held - self.held[token - 1][channel]).filter(|delta| *delta != 0.0),
        }
    }

    /// All deltas of the first keys.
    fn deltas(&self, tokens: usize) -> impl Iterator<Item = (usize, usize, f32)> {
        let places =
            (0..tokens).flat_map(|token| (0..self.keys.ncols()).map(move |channel| (token, channel)));
        places.filter_map(|(token, channel)| Some((token, channel, self.delta(token, channel)?)))
    }

    fn zero_fraction(&self) -> f64 {
        1.0 - self.deltas(self.keys.nrows()).count() as f64 / self.keys.len() as f64
    }

    /// What the receiver held before a key; nothing was held before the first.
    fn before(&self, token: usize) -> &[f32] {
        &self.held[token.saturating_sub(1)]
    }
}

/// Draws the picture of `subject.context` tokens; also returns its numbers in a line.
///
/// # Errors
/// For a choice that the model does not have, settings without one threshold, a failing model, and when the picture cannot be
/// drawn.
pub fn method(subject: &Subject, choice: MethodChoice) -> anyhow::Result<(Vec<u8>, String)> {
    let config = subject.model.graph.config();
    for (option, count, got) in [
        ("--layer", config.layers, choice.layer),
        ("--head", config.kv_heads, choice.head),
        ("--channel", config.head_dim, choice.channel),
        ("--shown", subject.context + 1, choice.shown),
    ] {
        anyhow::ensure!(got < count, "{option}: expected less than {count}, got {got}");
    }
    let theta =
        subject.kernel.settings().theta.context("--theta: expected one threshold for all channels")?;
    let captured = subject.capture(subject.context)?;
    let pairs = PairChoice { layer: Some(choice.layer), kv_head: Some(choice.head) };
    let pairs = Pairs::measure(subject, &captured, &[], pairs)?;
    let [_, keys, _] = &captured.0[choice.layer];
    let coded = Coded::new(keys.index_axis(Along(1), choice.head), theta)?;
    let png = png_of(SIZE, |canvas| {
        let [_, height] = canvas.size();
        let area = |left: f64, right: f64| [(left, 2.0 * LINE), (right, height - 8.0)];
        coded.draw_channel(canvas, area(8.0, 1030.0), choice)?;
        coded.draw_deltas(canvas, area(1050.0, 1840.0), choice)?;
        draw_pairs(canvas, area(1900.0, 2790.0), &pairs, subject)
    })?;
    let counts = pairs.counts;
    let far = counts.deltas + counts.skipped;
    let summary = format!(
        "{}, {:.1} % of key entries zero, {:.1} % of far values skipped",
        pairs.summary(),
        100.0 * coded.zero_fraction(),
        100.0 * counts.skipped as f64 / far.max(1) as f64
    );
    Ok((png, summary))
}

fn title(canvas: &Canvas, panel: &Panel, text: &str) -> anyhow::Result<()> {
    let [(x0, _), (x1, _)] = panel.inner();
    canvas.title(((x0 + x1) / 2.0, LINE), text)
}

impl Coded<'_> {
    fn draw_channel(&self, canvas: &Canvas, area: [Place; 2], choice: MethodChoice) -> anyhow::Result<()> {
        let (channel, tokens) = (choice.channel, 0..choice.shown);
        let theta = f64::from(self.theta);
        let key = |t: usize| f64::from(self.keys[[t, channel]]);
        let before = |t: usize| f64::from(self.before(t)[channel]);
        let all = tokens.clone().flat_map(|t| [key(t), before(t) - theta, before(t) + theta]);
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (x.min(a), x.max(b)));
        // The legend stands above the values.
        let y = Axis::linear("value of one key channel", [low, high + 0.25 * (high - low)]);
        let ticks = tokens.clone().step_by(step(choice.shown as f64 / 6.0).max(1.0) as usize);
        let x =
            Axis::fixed("token", -0.5, choice.shown as f64 - 0.5, 1.0).with_ticks(ticks.map(|t| t as f64));
        let panel = Panel::new(canvas, area, x, y)?;
        title(canvas, &panel, "1. Send a channel only when it has moved")?;
        let side = |t: usize, right: bool| t as f64 + if right { 0.5 } else { -0.5 };
        let mut steps = Vec::new();
        for t in tokens.clone() {
            let corners = [(false, theta), (true, -theta)];
            canvas.fill(corners.map(|(right, y)| panel.at(side(t, right), before(t) + y)), LIGHT_BLUE)?;
            let held = f64::from(self.held[t][channel]);
            steps.extend([false, true].map(|right| panel.at(side(t, right), held)));
        }
        canvas.line(&steps, palette::BLUE, 4.0, Dash::Solid)?;
        for t in tokens {
            let (marker, colour, radius) = mark(self.delta(t, channel).is_some());
            canvas.plain_marker(panel.at(t as f64, key(t)), marker, colour, radius)?;
        }
        panel.frame()?;

        let [(x0, y0), _] = panel.inner();
        let place = |column: f64, row: f64| (x0 + 20.0 + 440.0 * column, y0 + LINE * (0.6 + row));
        let entry = |(x, y): Place, name: &str| canvas.text((x + 62.0, y), Align::Left, name);
        let (x, y) = place(0.0, 0.0);
        canvas.fill([(x, y - 14.0), (x + 50.0, y + 14.0)], LIGHT_BLUE)?;
        entry((x, y), "last sent value ± θ")?;
        let (x, y) = place(0.0, 1.0);
        canvas.line(&[(x, y), (x + 50.0, y)], palette::BLUE, 4.0, Dash::Solid)?;
        entry((x, y), "reconstruction")?;
        for (row, (sent, name)) in [(false, "key, not sent"), (true, "key, sent")].into_iter().enumerate() {
            let (x, y) = place(1.0, row as f64);
            let (marker, colour, radius) = mark(sent);
            canvas.plain_marker((x + 35.0, y), marker, colour, radius)?;
            entry((x, y), name)?;
        }
        Ok(())
    }

    fn draw_deltas(&self, canvas: &Canvas, area: [Place; 2], choice: MethodChoice) -> anyhow::Result<()> {
        let (tokens, channels) = (choice.shown, self.keys.ncols());
        let count = self.keys.nrows();
        let mut sizes: Vec<f32> = self.deltas(count).map(|(.., delta)| delta.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let largest = sizes.get((COLOURED * sizes.len() as f64) as usize).copied().unwrap_or(1.0);
        let axis =
            |title: &str, count: usize| Axis::fixed(title, 0.0, count as f64, step(count as f64 / 6.0));
        let x = axis(&format!("token (first {tokens} of {count})"), tokens);
        let panel = Panel::new(canvas, area, x, axis("channel", channels))?;
        title(canvas, &panel, &format!("2. The delta matrix: {:.0} % zeros", 100.0 * self.zero_fraction()))?;
        let corner = |t: usize, channel: usize| panel.at(t as f64, channel as f64);
        canvas.fill([corner(0, channels), corner(tokens, 0)], palette::WHITE)?;
        for (t, channel, delta) in self.deltas(tokens) {
            let colours = if delta > 0.0 { RISES } else { FALLS };
            let colour = between(colours, f64::from(delta.abs() / largest));
            canvas.fill([corner(t, channel + 1), corner(t + 1, channel)], colour)?;
        }
        let [(x0, y0), (x1, y1)] = panel.inner();
        canvas.line(&[(x0, y0), (x1, y0), (x1, y1)], palette::BLACK, 2.5, Dash::Solid)?;
        panel.frame()?;
        let [(_, top), (_, bottom)] = [corner(0, choice.channel + 1), corner(0, choice.channel)];
        let around = [(x0, top), (x1, top), (x1, bottom), (x0, bottom), (x0, top)];
        canvas.line(&around, palette::BLUE, 4.0, Dash::Solid)?;
        canvas.upward_text((x1 + 0.75 * TEXT, (top + bottom) / 2.0), "panel 1")
    }
}

/// How a key is marked.
fn mark(sent: bool) -> (Marker, RGBColor, f64) {
    match sent {
        true => (Marker::Diamond, palette::VERMILION, 8.0),
        false => (Marker::Circle, DARK_GREY, 7.0),
    }
}

fn draw_pairs(canvas: &Canvas, area: [Place; 2], pairs: &Pairs, subject: &Subject) -> anyhow::Result<()> {
    let panel = pairs.draw_map(canvas, area)?;
    title(canvas, &panel, "3. What becomes of each pair")?;
    let [(x0, y0), (x1, _)] = panel.inner();
    let x = x0 + 0.28 * (x1 - x0);
    for (row, (colour, name, count)) in pairs.kinds(subject).into_iter().enumerate() {
        let y = y0 + LINE * (0.6 + row as f64);
        canvas.fill([(x, y - 14.0), (x + 44.0, y + 14.0)], colour)?;
        canvas.text((x + 56.0, y), Align::Left, &format!("{name}, {:.0} %", pairs.share(count)))?;
    }
    Ok(())
}
