//! How attention's time and accuracy go with the context length.

use std::time::Instant;

use deltallm::{AttentionError, AttentionKernel};
use ndarray::{Array3, s};
use serde::Serialize;

use super::subject::{Captured, Cost, Subject};
use crate::MakeKernel;
use crate::bench::timing::Summary;
use crate::drawing::{
    Axis, Canvas, Dash, Marker, PICTURE_SIZE, Panel, Place, SeriesStyle, legend, palette, png,
};

/// Runs of each kernel at each length, taken in turns.
const REPETITIONS: usize = 5;
const DENSE: SeriesStyle =
    SeriesStyle { colour: palette::BLUE, marker: Marker::Square, dash: Some(Dash::Dashed) };
const HYBRID: SeriesStyle =
    SeriesStyle { colour: palette::VERMILION, marker: Marker::Circle, dash: Some(Dash::Solid) };

/// Time and accuracy at several lengths.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Times {
    /// Worker threads.
    pub threads: usize,
    /// Runs of each kernel at each length.
    pub repetitions: usize,
    /// In the order of rising length.
    pub lengths: Vec<AtLength>,
}

/// One context length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AtLength {
    /// Tokens.
    pub tokens: usize,
    /// Attention of all layers with the dense kernel and the same cache type.
    pub dense: Milliseconds,
    /// The same with the hybrid kernel.
    pub hybrid: Milliseconds,
    /// Windows of this length that the costs are measured on.
    pub windows: usize,
    /// What the hybrid kernel costs on them.
    #[serde(flatten)]
    pub cost: Cost,
}

/// Repeated timings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Milliseconds {
    /// The shortest.
    pub lowest: f64,
    /// The one in the middle.
    pub median: f64,
    /// The longest.
    pub highest: f64,
}

impl Milliseconds {
    fn new(times: [f64; REPETITIONS]) -> Self {
        let Summary { median, min, max, .. } = Summary::of(&times);
        Self { lowest: min, median, highest: max }
    }
}

impl Times {
    /// A quarter of the context up to twice the context, as far as the model and the text allow.
    pub(super) fn lengths(subject: &Subject) -> Vec<usize> {
        let most = subject.graph().config().context_length.min(subject.tokens.tokens());
        [1, 2, 4, 8].map(|i| i * subject.context / 4).into_iter().filter(|n| *n <= most).collect()
    }

    /// Runs over the measured text that [`measure`](Self::measure) makes.
    pub(super) fn runs(subject: &Subject) -> usize {
        3 * Self::lengths(subject).len() - 2
    }

    /// `kernel` is what the kernel costs on windows of `subject.context` tokens.
    pub(super) fn measure(
        subject: &Subject,
        captured: &Captured,
        kernel: Cost,
        step: &mut dyn FnMut(),
    ) -> anyhow::Result<Self> {
        let dense_kernel = subject.kernel.dense_alike();
        let mut lengths = Vec::new();
        for tokens in Self::lengths(subject) {
            let (mut dense, mut hybrid) = ([0.0; REPETITIONS], [0.0; REPETITIONS]);
            for (dense, hybrid) in dense.iter_mut().zip(&mut hybrid) {
                *dense = replay(captured, tokens, &|layer| dense_kernel.make(layer))?;
                *hybrid = replay(captured, tokens, &|layer| subject.kernel.make(layer))?;
            }
            let [dense, hybrid] = [dense, hybrid].map(Milliseconds::new);
            step();
            let cost = match tokens == subject.context {
                true => kernel,
                false => {
                    let text = subject.dense(tokens)?;
                    step();
                    let measured = subject.measure(&text, &|layer| subject.kernel.make(layer))?;
                    step();
                    Cost::new(&measured)
                }
            };
            let windows = (subject.measured_tokens() / tokens).max(1);
            lengths.push(AtLength { tokens, dense, hybrid, windows, cost });
        }
        Ok(Self { threads: rayon::current_num_threads(), repetitions: REPETITIONS, lengths })
    }

    pub(super) fn summary(&self) -> String {
        let length = |at: &AtLength| {
            format!(
                "{} tokens: dense {:.1} ms, hybrid {:.1} ms, perplexity {:+.2} %",
                at.tokens,
                at.dense.median,
                at.hybrid.median,
                100.0 * at.cost.perplexity_change
            )
        };
        self.lengths.iter().map(length).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn draw(&self, subject: &Subject) -> anyhow::Result<Vec<u8>> {
        png(|canvas| {
            canvas.headline("Attention time and accuracy against context length")?;
            let measured = self.lengths.iter().map(|at| at.windows * at.tokens);
            let least = measured.clone().min().unwrap_or(0);
            let tokens = match measured.max() {
                Some(most) if most > least => format!("{least} to {most}"),
                _ => least.to_string(),
            };
            let timings = self.repetitions;
            let text = format!("median and range of {timings} timings; accuracy on {tokens} tokens");
            let bottom = canvas.caption(&subject.caption(&text))?;
            let entries = [(DENSE, "dense".to_owned()), (HYBRID, "hybrid".to_owned())];
            let top = legend(canvas, 76.0, &entries)? + 16.0;
            let middle = f64::from(PICTURE_SIZE[0]) / 2.0;
            self.draw_times(canvas, [(16.0, top), (middle - 16.0, bottom)])?;
            self.draw_costs(canvas, [(middle + 8.0, top), (2.0 * middle - 16.0, bottom)])
        })
    }

    fn tokens(&self) -> impl Iterator<Item = f64> {
        self.lengths.iter().map(|at| at.tokens as f64)
    }

    fn axis(&self) -> Axis {
        Axis::log("context, tokens", self.tokens()).with_ticks(self.tokens())
    }

    fn draw_times(&self, canvas: &Canvas, area: [Place; 2]) -> anyhow::Result<()> {
        let all = self.lengths.iter().flat_map(|at| [at.dense, at.hybrid]);
        let y =
            Axis::log("attention, prefill, all layers, ms", all.flat_map(|time| [time.lowest, time.highest]));
        let panel = Panel::new(canvas, area, self.axis(), y)?;
        let dense: Vec<Milliseconds> = self.lengths.iter().map(|at| at.dense).collect();
        let hybrid: Vec<Milliseconds> = self.lengths.iter().map(|at| at.hybrid).collect();
        for (style, times) in [(DENSE, dense), (HYBRID, hybrid)] {
            for (tokens, time) in self.tokens().zip(&times) {
                panel.error_bar(tokens, [time.lowest, time.highest], style.colour)?;
            }
            let medians = times.iter().map(|time| time.median);
            panel.series(&self.tokens().zip(medians).map(<[f64; 2]>::from).collect::<Vec<_>>(), style)?;
        }
        Ok(())
    }

    /// KL divergence above the change of perplexity.
    fn draw_costs(&self, canvas: &Canvas, [(left, top), (right, bottom)]: [Place; 2]) -> anyhow::Result<()> {
        let costs = || self.lengths.iter().map(|at| at.cost);
        let kl = Axis::log("KL, nats", costs().map(|cost| cost.kl));
        let changes = costs().map(|cost| cost.perplexity_percent());
        let changes = changes.flat_map(|(change, error)| [change - error, change + error, 0.0]);
        let [kl, changes] = Axis::aligned([kl, Axis::linear("Δ perplexity, %", changes)])?;
        let middle = (top + bottom) / 2.0;

        let panel = Panel::new(canvas, [(left, top), (right, middle)], self.axis(), kl)?;
        let points: Vec<_> = self.tokens().zip(costs()).map(|(tokens, cost)| [tokens, cost.kl]).collect();
        panel.series(&points, HYBRID)?;

        let panel = Panel::new(canvas, [(left, middle), (right, bottom)], self.axis(), changes)?;
        panel.level(0.0)?;
        let mut points = Vec::new();
        for (tokens, cost) in self.tokens().zip(costs()) {
            let (change, error) = cost.perplexity_percent();
            panel.error_bar(tokens, [change - error, change + error], HYBRID.colour)?;
            points.push([tokens, change]);
        }
        panel.series(&points, HYBRID)
    }
}

/// Milliseconds that the attention of all layers takes for a prompt of `tokens` tokens, with empty caches.
fn replay(captured: &Captured, tokens: usize, make: &MakeKernel) -> Result<f64, AttentionError> {
    let mut total = 0.0;
    for (layer, [q, k, v]) in captured.0.iter().enumerate() {
        let [q, k, v] = [q, k, v].map(|x| x.slice(s![..tokens, .., ..]));
        let mut kernel = make(layer)?;
        let mut out = Array3::zeros(q.dim());
        let start = Instant::now();
        kernel.forward(q, k, v, out.view_mut())?;
        total += start.elapsed().as_secs_f64() * 1e3;
    }
    Ok(total)
}
