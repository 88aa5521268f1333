//! What becomes of every (query, key) pair of one query head.

use deltallm::attn::QUERY_TILE;
use deltallm::core::HeadSparsity;
use deltallm::{ExactWindow, SparsityStats};
use ndarray::{Array3, s};
use plotters::style::RGBColor;
use serde::{Serialize, Serializer};

use super::subject::{Captured, Subject};
use crate::drawing::{Align, Axis, Canvas, LINE, Panel, Place, palette, png, step};

/// Tokens of the text that are looked at, at most.
const TOKENS: usize = 384;

/// The map of the pairs of a kv head's first query head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pairs {
    /// The layer.
    pub layer: usize,
    /// The kv head.
    pub kv_head: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Queries that decide together what to skip.
    pub query_tile: usize,
    /// How many pairs of each kind.
    pub counts: PairCounts,
    /// What the kernel has counted where all heads of the group have the queries of the first: each pair once for each of them.
    pub kernel: HeadSparsity,
    /// Query heads that share the kv head.
    pub group: usize,
    /// Query by query, what becomes of its keys; written as run lengths, `4s20d30x64w`.
    #[serde(serialize_with = "run_lengths")]
    pub map: Vec<Vec<Pair>>,
}

/// What becomes of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// Exact, because the key is recent (or the layer is dense).
    Window,
    /// Exact, because the key is one of the first.
    Sink,
    /// Scored through the deltas.
    Delta,
    /// Scored through the deltas, and its value skipped.
    Skipped,
}

/// Pairs of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PairCounts {
    /// Exact in the window.
    pub window: usize,
    /// Exact sinks before the window.
    pub sinks: usize,
    /// Through the deltas, value used.
    pub deltas: usize,
    /// Through the deltas, value skipped.
    pub skipped: usize,
}

impl PairCounts {
    fn new(map: &[Vec<Pair>]) -> Self {
        let count = |kind| map.iter().flatten().filter(|pair| **pair == kind).count();
        Self {
            window: count(Pair::Window),
            sinks: count(Pair::Sink),
            deltas: count(Pair::Delta),
            skipped: count(Pair::Skipped),
        }
    }

    fn total(&self) -> usize {
        self.window + self.sinks + self.deltas + self.skipped
    }
}

/// Which head to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PairChoice {
    /// Layer, if it is to be this one.
    pub layer: Option<usize>,
    /// Kv head, if it is to be this one.
    pub kv_head: Option<usize>,
}

impl PairChoice {
    /// The head in the middle of all that may be chosen, by the values it skips and then by its zeros.
    fn typical(self, layers: &[SparsityStats]) -> (usize, usize) {
        let heads = layers.iter().enumerate().flat_map(|(layer, stats)| {
            stats.heads().iter().enumerate().map(move |(kv_head, sparsity)| (layer, kv_head, sparsity))
        });
        let mut heads: Vec<_> = heads
            .filter(|(layer, _, sparsity)| match self.layer {
                Some(wanted) => *layer == wanted,
                None => sparsity.exact_pairs < sparsity.pairs,
            })
            .filter(|(_, kv_head, _)| self.kv_head.is_none_or(|wanted| *kv_head == wanted))
            .collect();
        heads.sort_by(|(.., a), (.., b)| {
            let skipped = a.values_skipped().total_cmp(&b.values_skipped());
            skipped.then(a.zero_fraction().total_cmp(&b.zero_fraction()))
        });
        let first = (self.layer.unwrap_or(0), self.kv_head.unwrap_or(0));
        heads.get(heads.len() / 2).map_or(first, |(layer, kv_head, _)| (*layer, *kv_head))
    }
}

impl Pairs {
    /// `layers` is the sparsity of the kernel on the measured text.
    pub(crate) fn measure(
        subject: &Subject,
        captured: &Captured,
        layers: &[SparsityStats],
        choice: PairChoice,
    ) -> anyhow::Result<Self> {
        let (layer, kv_head) = choice.typical(layers);
        let [q, k, _] = &captured.0[layer];
        let tokens = subject.context.min(TOKENS);
        let (mut q, k) = (q.slice(s![..tokens, .., ..]).to_owned(), k.slice(s![..tokens, .., ..]));
        let (group, head_dim) = (subject.graph().attention_shape().group(), k.dim().2);
        let first = kv_head * group;
        let queries = q.slice(s![.., first..first + 1, ..]).to_owned();
        q.slice_mut(s![.., first..first + group, ..]).assign(&queries);
        let q = q.view();

        // The kernel itself says which values it uses: with one channel of the values for each of `head_dim` keys, the
        // output is the keys' weights.
        let mut used = vec![vec![false; tokens]; tokens.div_ceil(QUERY_TILE)];
        let mut counted = HeadSparsity::default();
        let far = |m: usize| far_keys(subject, layer, m, tokens);
        for start in (0..tokens).step_by(head_dim) {
            let keys = start..tokens.min(start + head_dim);
            let mut v = Array3::zeros(k.dim());
            keys.clone().for_each(|t| v.slice_mut(s![t, .., t - start]).fill(1.0));
            let mut weights = Array3::zeros(q.dim());
            let mut kernel = subject.kernel.make(layer)?;
            kernel.forward(q, k, v.view(), weights.view_mut())?;
            counted = kernel.stats().heads().get(kv_head).copied().unwrap_or_default();
            for m in 0..tokens {
                for t in keys.clone().filter(|t| far(m).contains(t)) {
                    used[m / QUERY_TILE][t] |= weights[[m, first, t - start]] > 0.0;
                }
            }
        }
        let pair = |m: usize, t: usize| match far(m) {
            far if t < far.start => Pair::Sink,
            far if t >= far.end => Pair::Window,
            _ if used[m / QUERY_TILE][t] => Pair::Delta,
            _ => Pair::Skipped,
        };
        let map: Vec<Vec<Pair>> = (0..tokens).map(|m| (0..=m).map(|t| pair(m, t)).collect()).collect();
        let counts = PairCounts::new(&map);
        Ok(Self { layer, kv_head, tokens, query_tile: QUERY_TILE, counts, kernel: counted, group, map })
    }

    /// Per cent of all pairs.
    pub(crate) fn share(&self, count: usize) -> f64 {
        100.0 * count as f64 / self.counts.total() as f64
    }

    pub(crate) fn summary(&self) -> String {
        let counts = &self.counts;
        format!(
            "layer {}, kv head {}, {} tokens: {:.1} % of pairs exact, {:.1} % through the deltas, {:.1} % skipped",
            self.layer,
            self.kv_head,
            self.tokens,
            self.share(counts.window + counts.sinks),
            self.share(counts.deltas),
            self.share(counts.skipped)
        )
    }

    /// Colour, name and number of the pairs of each kind.
    pub(crate) fn kinds(&self, subject: &Subject) -> [(RGBColor, String, usize); 4] {
        let (window, sinks) = match subject.kernel.hybrid_config(self.layer) {
            Some(config) => (
                format!("exact: window {}", config.exact_window),
                format!("exact: {} sinks", config.exact_sinks),
            ),
            None => ("exact: dense layer".into(), "exact: no sinks".into()),
        };
        let entries = [
            (Pair::Window, window, self.counts.window),
            (Pair::Sink, sinks, self.counts.sinks),
            (Pair::Delta, "far: through the deltas".into(), self.counts.deltas),
            (Pair::Skipped, "far: value skipped".into(), self.counts.skipped),
        ];
        entries.map(|(pair, name, count)| (colour(pair), name, count))
    }

    /// The map with its axes.
    pub(crate) fn draw_map<'c, 'b>(
        &self,
        canvas: &'c Canvas<'b>,
        area: [Place; 2],
    ) -> anyhow::Result<Panel<'c, 'b>> {
        let n = self.tokens as f64;
        let axis = |title: &str, low, high| Axis::fixed(title, low, high, step(n / 4.0));
        let panel = Panel::new(canvas, area, axis("key", 0.0, n), axis("query", n, 0.0))?;
        for (m, row) in self.map.iter().enumerate() {
            let mut start = 0;
            for run in row.chunk_by(|a, b| a == b) {
                let end = start + run.len();
                let corner = |t: usize, m: usize| panel.at(t as f64, m as f64);
                canvas.fill([corner(start, m), corner(end, m + 1)], colour(run[0]))?;
                start = end;
            }
        }
        panel.frame()?;
        Ok(panel)
    }

    pub(super) fn draw(&self, subject: &Subject) -> anyhow::Result<Vec<u8>> {
        png(|canvas| {
            canvas.headline(&format!(
                "What becomes of each query-key pair: layer {}, kv head {}",
                self.layer, self.kv_head
            ))?;
            let bottom = canvas.caption(&subject.caption(&format!("first {} tokens", self.tokens)))?;
            self.draw_map(canvas, [(16.0, 80.0), (860.0, bottom)])?;
            let mut y = 150.0;
            for (colour, name, count) in self.kinds(subject) {
                canvas.fill([(890.0, y - 20.0), (930.0, y + 20.0)], colour)?;
                canvas.text((944.0, y), Align::Left, &name)?;
                let count = format!("{} pairs, {:.1} %", grouped(count), self.share(count));
                canvas.text((944.0, y + LINE), Align::Left, &count)?;
                y += 2.7 * LINE;
            }
            let mut notes = vec![
                format!("{} causal pairs", grouped(self.counts.total())),
                format!("{:.1} % of key entries zero", 100.0 * self.kernel.zero_fraction()),
            ];
            if self.counts.skipped > 0 {
                notes.push(format!("{} queries together", self.query_tile));
                notes.push("decide what is skipped".into());
            }
            for note in notes {
                canvas.text((890.0, y), Align::Left, &note)?;
                y += LINE;
            }
            Ok(())
        })
    }
}

/// Keys that the query at `m` of a prompt of `tokens` sees as far (`docs/method.md`, equation 4).
fn far_keys(subject: &Subject, layer: usize, m: usize, tokens: usize) -> std::ops::Range<usize> {
    let Some(config) = subject.kernel.hybrid_config(layer) else { return 0..0 };
    let start = match config.exact_window {
        ExactWindow::Sliding(keys) => (m + 1).saturating_sub(keys),
        ExactWindow::Block { scale } => {
            let block = ((f64::from(scale) * tokens as f64).round() as usize).max(1);
            m / block * block
        }
        _ => 0,
    };
    config.exact_sinks.min(start)..start
}

/// `73 920`
fn grouped(count: usize) -> String {
    match count {
        0..1000 => count.to_string(),
        _ => format!("{} {:03}", grouped(count / 1000), count % 1000),
    }
}

fn colour(pair: Pair) -> RGBColor {
    match pair {
        Pair::Window => palette::BLUE,
        Pair::Sink => palette::SKY,
        Pair::Delta => palette::ORANGE,
        Pair::Skipped => palette::GREY,
    }
}

fn run_lengths<S: Serializer>(map: &[Vec<Pair>], serializer: S) -> Result<S::Ok, S::Error> {
    let letter = |pair: Pair| match pair {
        Pair::Window => 'w',
        Pair::Sink => 's',
        Pair::Delta => 'd',
        Pair::Skipped => 'x',
    };
    serializer.collect_seq(map.iter().map(|row| {
        let runs = row.chunk_by(|a, b| a == b);
        runs.map(|run| format!("{}{}", run.len(), letter(run[0]))).collect::<String>()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KernelArgs, LoadedModel};

    #[test]
    fn the_map_has_the_pairs_that_the_kernel_has_counted() {
        let model = LoadedModel::open(None).unwrap();
        let text = include_str!("../../../../docs/method.md");
        let tokens = model.encode_windows(&text[..2000]).unwrap();
        for settings in [
            "--theta 0.6 --window 16 --skip-margin 2",
            "--theta 0.6 --window 16 --sinks 0 --skip-margin 1ln-2",
            "--theta 1 --window block:0.1 --sinks 3 --skip-margin 1.5 --kv f32",
            "--theta 0.6 --window 16",
        ] {
            let kernel = KernelArgs::parse(settings.split(' ')).unwrap().resolve(&model.graph).unwrap();
            let (model, kernel, tokens) = (&model, &kernel, &tokens);
            let subject = Subject { model, kernel, tokens, text: "", context: 150, windows: 1 };
            let captured = subject.capture(150).unwrap();
            for (layer, kv_head) in [(0, 1), (4, 0)] {
                let choice = PairChoice { layer: Some(layer), kv_head: Some(kv_head) };
                let pairs = Pairs::measure(&subject, &captured, &[], choice).unwrap();
                let (counts, group) = (pairs.counts, pairs.group);
                assert_eq!([pairs.layer, pairs.kv_head, counts.total()], [layer, kv_head, 150 * 151 / 2]);
                let counted = [counts.total(), counts.window + counts.sinks, counts.skipped];
                let kernel = [pairs.kernel.pairs, pairs.kernel.exact_pairs, pairs.kernel.skipped_values];
                assert_eq!(counted.map(|count| (count * group) as u64), kernel, "{settings}");
                // In the first layer attention is flat.
                let skips = layer > 0 && settings.contains("skip");
                assert!(if skips { counts.skipped > 0 } else { counts.deltas > 0 }, "{settings}: {counts:?}");
            }
        }
    }

    #[test]
    fn the_typical_head_is_the_one_in_the_middle() {
        let head =
            |skipped_values| HeadSparsity { elements: 10, pairs: 10, skipped_values, ..Default::default() };
        let layers: Vec<_> =
            [[1, 9], [8, 2], [5, 4]].map(|heads| SparsityStats::new(heads.map(head).into())).into();
        let choice = |layer, kv_head| PairChoice { layer, kv_head }.typical(&layers);
        assert_eq!(choice(None, None), (2, 0));
        assert_eq!(choice(Some(1), None), (1, 0));
        assert_eq!(choice(None, Some(1)), (2, 1));
        assert_eq!(choice(Some(0), Some(1)), (0, 1));
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([7, 73_920, 1_002_003].map(grouped), ["7", "73 920", "1 002 003"]);
    }
}
