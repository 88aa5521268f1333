//! Pictures about a model, a text and its attention settings, and the numbers behind them.
//!
//! [`Report::measure`] runs the model, [`Report::pictures`] draws; each picture has a file here with both of its halves.

mod accuracy;
mod bytes;
mod contents;
mod four_bits;
mod page;
mod pairs;
mod sparsity;
mod subject;
mod time;

pub use crate::drawing::PICTURE_SIZE;
pub use accuracy::{Accuracy, RuleCost, RuleCosts};
use anyhow::Context;
pub use bytes::{Bytes, Store};
pub use contents::{Picture, Report};
pub use page::{Verdict, page};
pub use pairs::{Pair, PairChoice, PairCounts, Pairs};
pub use sparsity::{LayerSparsity, Sparsity};
pub use subject::{Cost, Subject};
pub use time::{AtLength, Milliseconds, Times};

impl Report {
    /// How often [`measure`](Self::measure) calls `step`.
    pub fn steps(subject: &Subject) -> usize {
        3 + Bytes::RUNS + Accuracy::runs(subject) + Times::runs(subject)
    }

    /// Runs the model and its attention as often as the pictures need it. `step` is told after every run.
    ///
    /// # Errors
    /// A failing model.
    pub fn measure(subject: &Subject, choice: PairChoice, step: &mut dyn FnMut()) -> anyhow::Result<Self> {
        let longest = Times::lengths(subject).into_iter().max().context("no context length to report on")?;
        let captured = subject.capture(longest)?;
        step();
        let dense = subject.dense(subject.context)?;
        step();
        let kernel = subject.measure(&dense, &|layer| subject.kernel.make(layer))?;
        step();
        let bytes = Bytes::measure(subject, &dense, &kernel, step)?;
        let accuracy = Accuracy::measure(subject, &captured, &dense, Cost::new(&kernel), step)?;
        // Its logits take much memory.
        drop(dense);
        Ok(Self {
            model: subject.model.name.clone(),
            text: subject.text.to_owned(),
            context: subject.context,
            windows: subject.windows,
            threads: rayon::current_num_threads(),
            settings: subject.kernel.settings(),
            sparsity: Sparsity::new(&kernel),
            accuracy,
            bytes,
            time: Times::measure(subject, &captured, Cost::new(&kernel), step)?,
            pairs: Pairs::measure(subject, &captured, &kernel.score.layers, choice)?,
        })
    }

    /// Draws all pictures.
    ///
    /// # Errors
    /// When a picture cannot be drawn or encoded.
    pub fn pictures(&self, subject: &Subject) -> anyhow::Result<Vec<Picture>> {
        let picture = |file, summary, png: anyhow::Result<Vec<u8>>| {
            anyhow::Ok(Picture { file, summary, png: png.with_context(|| format!("{file}: cannot draw"))? })
        };
        Ok(vec![
            picture("sparsity.png", self.sparsity.summary(), self.sparsity.draw(subject))?,
            picture("accuracy.png", self.accuracy.summary(), self.accuracy.draw(subject))?,
            picture("bytes.png", self.bytes.summary(), self.bytes.draw(subject))?,
            picture("time.png", self.time.summary(), self.time.draw(subject))?,
            picture("pairs.png", self.pairs.summary(), self.pairs.draw(subject))?,
        ])
    }
}
