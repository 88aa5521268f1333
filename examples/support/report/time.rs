//! How attention's time and accuracy go with the context length.

use std::time::Instant;

use deltallm::{AttentionError, AttentionKernel};
use ndarray::{Array3, s};
use serde::Serialize;

use super::axes::{Axis, Panel, legend};
use super::canvas::{Dash, Marker, PICTURE_SIZE, SeriesStyle, palette, png};
use super::subject::{Captured, Cost, Subject};
use crate::MakeKernel;

/// Runs of each kernel at each length, taken in turns.
const REPETITIONS: usize = 5;
const DENSE: SeriesStyle = SeriesStyle { colour: palette::BLUE, marker: Marker::Square, dash: Dash::Dashed };
const HYBRID: SeriesStyle =
    SeriesStyle { colour: palette::VERMILION, marker: Marker::Circle, dash: Dash::Solid };

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
    /// What the hybrid kernel costs on windows of this length.
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
    fn new(mut times: [f64; REPETITIONS]) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        Self { lowest: times[0], median: times[REPETITIONS / 2], highest: times[REPETITIONS - 1] }
    }
}

impl Times {
    /// A quarter of the context up to twice the context, as far as the model and the text allow.
    pub(super) fn lengths(subject: &Subject) -> Vec<usize> {
        let most = subject.llama().config().context_length.min(subject.tokens.len());
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
        let dense_kernel = subject.kernel.dense();
        let mut lengths = Vec::new();
        for tokens in Self::lengths(subject) {
            let mut times = [[0.0; REPETITIONS]; 2];
            for repetition in 0..REPETITIONS {
                times[0][repetition] = replay(captured, tokens, &|layer| dense_kernel.make(layer))?;
                times[1][repetition] = replay(captured, tokens, &|layer| subject.kernel.make(layer))?;
            }
            step();
            let cost = match tokens == subject.context {
                true => kernel,
                false => {
                    let dense = subject.dense(tokens)?;
                    step();
                    let measured = subject.measure(&dense, &|layer| subject.kernel.make(layer))?;
                    step();
                    Cost::new(&measured)
                }
            };
            let [dense, hybrid] = times.map(Milliseconds::new);
            lengths.push(AtLength { tokens, dense, hybrid, cost });
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
        let tokens = || self.lengths.iter().map(|at| at.tokens as f64);
        let x = || Axis::log("context, tokens", tokens()).with_ticks(tokens());
        let [width, height] = PICTURE_SIZE.map(f64::from);
        png(|canvas| {
            canvas.headline("Attention time and accuracy against context length")?;
            canvas.caption(
                &subject.caption(&format!("time: median of {}, shortest to longest", self.repetitions)),
            )?;
            let entries = [(DENSE, "dense".to_owned()), (HYBRID, "hybrid".to_owned())];
            let top = legend(canvas, 76.0, &entries)? + 16.0;
            let bottom = height - 106.0;

            let series = [(DENSE, true), (HYBRID, false)].map(|(style, dense)| {
                let times = self.lengths.iter().map(move |at| if dense { at.dense } else { at.hybrid });
                (style, tokens().zip(times).collect::<Vec<_>>())
            });
            let all = series.iter().flat_map(|(_, points)| points.iter().map(|(_, time)| *time));
            let y = Axis::log(
                "attention, prefill, all layers, ms",
                all.flat_map(|time| [time.lowest, time.highest]),
            );
            let panel = Panel::new(canvas, [(16.0, top), (width / 2.0 - 16.0, bottom)], x(), y)?;
            for (style, points) in &series {
                for (tokens, time) in points {
                    panel.error_bar(*tokens, [time.lowest, time.highest], style.colour)?;
                }
                panel.series(
                    &points.iter().map(|(tokens, time)| [*tokens, time.median]).collect::<Vec<_>>(),
                    *style,
                )?;
            }

            let middle = (top + bottom) / 2.0;
            let (left, right) = (width / 2.0 + 8.0, width - 16.0);
            let costs = || tokens().zip(self.lengths.iter().map(|at| at.cost));
            let y = Axis::log("KL, nats", costs().map(|(_, cost)| cost.kl));
            let panel = Panel::new(canvas, [(left, top), (right, middle)], x(), y)?;
            panel.series(&costs().map(|(n, cost)| [n, cost.kl]).collect::<Vec<_>>(), HYBRID)?;

            let change = |cost: &Cost, errors: f64| {
                100.0 * (cost.perplexity_change + errors * cost.perplexity_change_error)
            };
            let y = costs().flat_map(|(_, cost)| [change(&cost, -1.0), change(&cost, 1.0), 0.0]);
            let y = Axis::linear("perplexity, %", y);
            let panel = Panel::new(canvas, [(left, middle), (right, bottom)], x(), y)?;
            panel.level(0.0)?;
            for (n, cost) in costs() {
                panel.error_bar(n, [change(&cost, -1.0), change(&cost, 1.0)], HYBRID.colour)?;
            }
            panel.series(&costs().map(|(n, cost)| [n, change(&cost, 0.0)]).collect::<Vec<_>>(), HYBRID)
        })
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
