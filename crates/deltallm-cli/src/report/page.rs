//! The report as one page: the answer first, then two tables, then the pictures. It needs no other file.

use base64::{Engine, prelude::BASE64_STANDARD};
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use super::{
    bytes::Store,
    contents::{Picture, Report},
    subject::Cost,
    time::AtLength,
};

/// Up to here a change of perplexity (a share) and a divergence (nats) count as small.
const SMALL: (f64, f64) = (0.01, 0.01);

/// What the page says first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// `good` or `bad`: the colour.
    pub tone: &'static str,
    /// One sentence.
    pub headline: &'static str,
    /// What it rests on, a sentence each.
    pub reasons: Vec<String>,
}

/// One row of the table of lengths, ready to be printed.
#[derive(Serialize)]
struct LengthRow {
    tokens: usize,
    dense: String,
    hybrid: String,
    faster: String,
    #[serde(flatten)]
    cost: CostCells,
}

/// One row of the table of stores.
#[derive(Serialize)]
struct StoreRow {
    name: String,
    bytes: String,
    share: String,
    #[serde(flatten)]
    cost: CostCells,
}

/// What the template sees.
#[derive(Serialize)]
struct Page<'a> {
    report: &'a Report,
    kernel: &'a str,
    verdict: Verdict,
    lengths: Vec<LengthRow>,
    stores: Vec<StoreRow>,
    pictures: Vec<Figure<'a>>,
    version: &'static str,
}

#[derive(Serialize)]
struct Figure<'a> {
    base64: String,
    summary: &'a str,
}

#[derive(Serialize)]
struct CostCells {
    perplexity: String,
    kl: String,
    top: String,
}

impl CostCells {
    fn new(cost: Option<&Cost>) -> Self {
        let Some(cost) = cost else {
            return Self { perplexity: "exact".into(), kl: "0".into(), top: "100 %".into() };
        };
        let (change, error) = cost.perplexity_percent();
        Self {
            perplexity: format!("{change:+.2} ± {error:.2} %"),
            kl: format!("{:.4}", cost.kl),
            top: format!("{:.1} %", 100.0 * cost.top1_agreement),
        }
    }
}

impl Verdict {
    /// The answer that the measurements give.
    pub fn new(report: &Report) -> Self {
        let cost = report.accuracy.kernel;
        let small = cost.perplexity_change <= SMALL.0 && cost.kl <= SMALL.1;
        let from = faster_from(&report.time.lengths);
        let share = kernel_share(report);
        let headline = match (small, from.is_some() || share.is_some_and(|share| share < 1.0)) {
            (true, true) => "Yes: it costs little here, and saves something.",
            (true, false) => "No: it costs little here, but saves nothing at these lengths.",
            (false, true) => "Only if you can afford what it costs, or after calibrating it.",
            (false, false) => "No: it costs accuracy here and saves nothing at these lengths.",
        };
        let mut reasons = vec![format!(
            "Accuracy: perplexity {:+.2} %, KL {:.4} nats, the same top token for {:.1} % of the tokens{}.",
            100.0 * cost.perplexity_change,
            cost.kl,
            100.0 * cost.top1_agreement,
            if small { "" } else { "; up to 1 % and .01 nats count as small here" }
        )];
        reasons.extend(
            share.map(|share| {
                format!("Memory: the cache takes {:.0} % of a dense cache in f16.", 100.0 * share)
            }),
        );
        reasons.push(match from {
            Some(at) => format!(
                "Time: prompts are faster from {} tokens on; {:.2} times as fast at {}.",
                at.tokens,
                longest(report).map_or(1.0, faster),
                longest(report).map_or(0, |at| at.tokens)
            ),
            None => format!(
                "Time: prompts of up to {} tokens are not faster.",
                longest(report).map_or(0, |at| at.tokens)
            ),
        });
        if !small {
            reasons.push(
                "Next: run deltallm calibrate on text like yours; it finds thresholds that cost less.".into(),
            );
        }
        Self { tone: if small && headline.starts_with("Yes") { "good" } else { "bad" }, headline, reasons }
    }
}

fn faster(at: &AtLength) -> f64 {
    at.dense.median / at.hybrid.median
}

fn longest(report: &Report) -> Option<&AtLength> {
    report.time.lengths.last()
}

/// Times as fast from which on a prompt counts as faster: less may be noise.
const FASTER: f64 = 1.05;

/// The first length from which on hybrid attention is faster at every length measured.
fn faster_from(lengths: &[AtLength]) -> Option<&AtLength> {
    let slower = lengths.iter().rposition(|at| faster(at) < FASTER).map_or(0, |index| index + 1);
    lengths.get(slower)
}

fn dense_f16(stores: &[Store]) -> Option<f64> {
    stores.iter().find(|store| !store.hybrid && store.kv == "f16").map(|store| store.bytes_per_token)
}

/// Bytes of the reported kernel's cache over those of dense attention in f16.
fn kernel_share(report: &Report) -> Option<f64> {
    let kernel = report
        .bytes
        .stores
        .iter()
        .find(|store| store.hybrid && store.kv == report.settings.kv.to_string())?;
    Some(kernel.bytes_per_token / dense_f16(&report.bytes.stores)?)
}

/// The whole page as HTML. `kernel` says in words what was measured.
///
/// # Errors
/// None but those of a broken template.
pub fn page(report: &Report, kernel: &str, pictures: &[Picture]) -> anyhow::Result<String> {
    let lengths = report.time.lengths.iter().map(|at| LengthRow {
        tokens: at.tokens,
        dense: format!("{:.1}", at.dense.median),
        hybrid: format!("{:.1}", at.hybrid.median),
        faster: format!("{:.2}", faster(at)),
        cost: CostCells::new(Some(&at.cost)),
    });
    let f16 = dense_f16(&report.bytes.stores);
    let mut by_kind: Vec<&Store> = report.bytes.stores.iter().collect();
    by_kind.sort_by_key(|store| store.hybrid);
    let stores = by_kind.into_iter().map(|store| StoreRow {
        name: format!("{} {}", if store.hybrid { "hybrid" } else { "dense" }, store.kv),
        bytes: format!("{:.0}", store.bytes_per_token),
        share: f16.map_or_else(String::new, |f16| format!("{:.0} %", 100.0 * store.bytes_per_token / f16)),
        cost: CostCells::new(store.cost.as_ref()),
    });
    let pictures = pictures
        .iter()
        .map(|picture| Figure { base64: BASE64_STANDARD.encode(&picture.png), summary: &picture.summary });
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("page", include_str!("page.html"))?;
    let page = environment.get_template("page")?.render(Value::from(Serde(Page {
        report,
        kernel,
        verdict: Verdict::new(report),
        lengths: lengths.collect(),
        stores: stores.collect(),
        pictures: pictures.collect(),
        version: env!("CARGO_PKG_VERSION"),
    })))?;
    Ok(page)
}
