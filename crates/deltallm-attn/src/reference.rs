//! The whole method in plain f64 loops: what every kernel is tested against.
//!
//! Read this first. The equations are those of `docs/method.md`. Nothing here is fast, and nothing is clever.

use std::ops::Range;

use deltallm_core::{BLOCK_TOKENS, KvStore};
use half::f16;

use crate::{AttentionError, AttentionShape, ExactWindow, HeadsView, Mask, SkipMargin};

/// Everything that changes the result.
#[derive(Debug, Clone)]
pub struct Method {
    /// Which keys a query attends to.
    pub mask: Mask,
    /// Thresholds `[kv_heads][head_dim]`; `None` keeps every key exact (dense attention). [`KvStore::Int8`] does
    /// not use them, but for telling hybrid from dense attention.
    pub thresholds: Option<Vec<Vec<f32>>>,
    /// Exact window; `None` is delta everywhere. Unused in dense attention.
    pub exact_window: Option<ExactWindow>,
    /// Where the prompt ends, for a block window.
    pub prompt_end: usize,
    /// Queries before this position see every key exactly: the end of a prompt that is short enough, or the length from which on
    /// a cache holds codes.
    pub exact_until: usize,
    /// First keys that every query sees exactly.
    pub exact_sinks: usize,
    /// Far values by this margin or more below the best exact score are skipped.
    pub skip_margin: Option<SkipMargin>,
    /// Queries that decide together what to skip: tile `i` holds positions `i * tile .. (i + 1) * tile`.
    pub tile: usize,
    /// Whether all heads that share a kv head decide together, and not each for itself.
    pub heads_together: bool,
    /// Scores are `q . k * scale`.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// A number for each query head that stands in the softmax's denominator like one more score, and counts as an exact one.
    pub sink_logits: Option<Vec<f64>>,
    /// How keys and values are stored.
    pub store: KvStore,
    /// Whether far keys are in 8 bits as in [`KvStore::Int8`]: [`KvStore::Compact`] holds a head's keys so where its deltas would take more.
    pub whole_keys: bool,
}

impl Method {
    /// Exact causal attention with f32 storage and the usual scale.
    pub fn dense(shape: &AttentionShape) -> Self {
        Self {
            mask: Mask::Causal,
            thresholds: None,
            exact_window: None,
            prompt_end: 0,
            exact_until: 0,
            exact_sinks: 0,
            skip_margin: None,
            tile: 1,
            heads_together: true,
            scale: 1.0 / (shape.head_dim() as f64).sqrt(),
            softcap: None,
            sink_logits: None,
            store: KvStore::F32,
            whole_keys: false,
        }
    }

    /// The same for calls of so many tokens, which say who decides together what to skip: in short ones, as in decoding, all heads that share a kv
    /// head.
    pub fn in_calls_of(self, tokens: usize, shape: &AttentionShape) -> Self {
        let (tile, heads_together) = match tokens {
            ..=1 => (1, true),
            2..32 => ((64 / shape.group()).next_power_of_two().clamp(4, 32), true),
            _ => (32, false),
        };
        Self { tile, heads_together, ..self }
    }
}

/// What attention answers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Attended {
    /// `[tokens, heads, value_dim]`.
    pub out: Vec<f64>,
    /// The logarithm of the sum of the exponentials of each query's scores, those of skipped values left out: `[tokens, heads]`.
    pub log_sums: Vec<f64>,
    /// (Query, key) pairs whose value was skipped.
    pub skipped: u64,
}

/// Attention of all tokens in one call: `q` is `[tokens, heads, head_dim]`, `k` `[tokens, kv_heads, head_dim]` and `v`
/// `[tokens, kv_heads, value_dim]`.
///
/// # Errors
/// [`AttentionError::Shape`] for inputs or thresholds of other shapes, and a tile of no queries; [`AttentionError::Setting`] for a
/// window or margin out of range.
///
/// ```
/// use deltallm_attn::{AttentionShape, HeadsView, reference};
///
/// let shape = AttentionShape::new(1, 1, 2)?;
/// let (q, k, v) = ([1.0, 0.0, 1.0, 0.0], [2.0, 1.0, 2.0, -1.0], [1.0, 0.0, 3.0, 0.0]);
/// let view = |data| HeadsView::new(data, [2, 1, 2]);
/// let method = reference::Method::dense(&shape);
/// let result = reference::attention(&shape, &method, &view(&q)?, &view(&k)?, &view(&v)?)?;
/// assert_eq!(result.out, [1.0, 0.0, 2.0, 0.0]); // the second token sees two keys of the same score
/// assert_eq!(result.skipped, 0);
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
pub fn attention(
    shape: &AttentionShape,
    method: &Method,
    q: &HeadsView,
    k: &HeadsView,
    v: &HeadsView,
) -> Result<Attended, AttentionError> {
    check(shape, method, q, k, v)?;
    let (n, d, heads) = (q.tokens(), shape.value_dim(), shape.heads());
    let mut out = vec![0.0; n * heads * d];
    let mut log_sums = vec![0.0; n * heads];
    let mut skipped = 0;
    for kv_head in 0..shape.kv_heads() {
        let raw =
            |view: &HeadsView| -> Vec<Vec<f32>> { (0..n).map(|t| view.row(t, kv_head).to_vec()).collect() };
        let (raw_keys, raw_values) = (raw(k), raw(v));
        let stored = Stored::new(method, kv_head, &raw_keys, &raw_values);
        let group: Range<usize> = kv_head * shape.group()..(kv_head + 1) * shape.group();
        let together = if method.heads_together { shape.group() } else { 1 };
        let deciding = group.step_by(together).map(|head| head..head + together);
        let tiles = || (0..n).step_by(method.tile);
        for (deciding, tile) in deciding.flat_map(|heads| tiles().map(move |tile| (heads.clone(), tile))) {
            let positions = method.tile.min(n - tile);
            let queries: Vec<(usize, usize)> =
                (tile..tile + positions).flat_map(|m| deciding.clone().map(move |h| (m, h))).collect();
            let scores: Vec<Vec<f64>> =
                queries.iter().map(|&(m, h)| scores(method, m, q.row(m, h), &stored)).collect();
            let best_exact = |(&(m, h), s): (&(usize, usize), &Vec<f64>)| {
                let exact = keys(method, m, n).filter(|&t| exact(method, m, t));
                exact.map(|t| s[t]).fold(sink(method, h), f64::max)
            };
            let best: Vec<f64> = queries.iter().zip(&scores).map(best_exact).collect();
            // Equation 5: a far value is skipped when it matters to no query of the tile that sees it as far.
            let matters = |t: usize| match method.skip_margin {
                None => true,
                Some(margin) => queries.iter().zip(&scores).zip(&best).any(|((&(m, _), s), best)| {
                    keys(method, m, n).contains(&t)
                        && !exact(method, m, t)
                        && s[t] > best - f64::from(margin.nats(m + 1, positions))
                }),
            };
            let kept: Vec<bool> = (0..n).map(matters).collect();
            for (&(m, h), s) in queries.iter().zip(&scores) {
                let used = |t: &usize| exact(method, m, *t) || kept[*t];
                let seen = || keys(method, m, n);
                skipped += seen().filter(|t| !used(t)).count() as u64;
                // Equation 6: softmax over what is left.
                let sink = sink(method, h);
                let best = seen().filter(used).map(|t| s[t]).fold(sink, f64::max);
                let total: f64 =
                    seen().filter(used).map(|t| (s[t] - best).exp()).sum::<f64>() + (sink - best).exp();
                log_sums[m * heads + h] = best + total.ln();
                let out = &mut out[(m * heads + h) * d..][..d];
                for t in seen().filter(used) {
                    let weight = (s[t] - best).exp() / total;
                    let values = if exact(method, m, t) { &stored.values } else { &stored.far_values };
                    out.iter_mut().zip(&values[t]).for_each(|(o, v)| *o += weight * v);
                }
            }
        }
    }
    Ok(Attended { out, log_sums, skipped })
}

fn check(
    shape: &AttentionShape,
    method: &Method,
    q: &HeadsView,
    k: &HeadsView,
    v: &HeadsView,
) -> Result<(), AttentionError> {
    let (heads, kv_heads, d) = (shape.heads(), shape.kv_heads(), shape.head_dim());
    let mut sizes = vec![("tile", "queries (at least)", 1, method.tile.min(1))];
    let value_dim = shape.value_dim();
    for (input, view, heads, d) in [("q", q, heads, d), ("k", k, kv_heads, d), ("v", v, kv_heads, value_dim)]
    {
        let dimensions =
            [view.tokens(), view.heads(), view.head_dim()].into_iter().zip([q.tokens(), heads, d]);
        let names = ["tokens", "heads", "head_dim"].into_iter().zip(dimensions);
        sizes.extend(names.map(|(name, (got, expected))| (input, name, expected, got)));
    }
    for logits in method.sink_logits.iter() {
        sizes.push(("sink logits", "heads", heads, logits.len()));
    }
    for thresholds in method.thresholds.iter() {
        sizes.push(("thresholds", "kv_heads", kv_heads, thresholds.len()));
        sizes.extend(thresholds.iter().map(|head| ("thresholds", "head_dim", d, head.len())));
    }
    for (input, dimension, expected, got) in sizes {
        if expected != got {
            return Err(AttentionError::Shape { input, dimension, expected, got });
        }
    }
    method.mask.check()?;
    method.exact_window.map_or(Ok(()), ExactWindow::check)?;
    method.skip_margin.map_or(Ok(()), SkipMargin::check)
}

/// The keys and values of one kv head as the store gives them back, `[tokens][head_dim]`.
struct Stored {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    far_keys: FarKeys,
    far_values: Vec<Vec<f64>>,
}

enum FarKeys {
    Deltas(Vec<Vec<f64>>),
    Rows(Vec<Vec<f64>>),
}

impl Stored {
    fn new(method: &Method, kv_head: usize, keys: &[Vec<f32>], values: &[Vec<f32>]) -> Self {
        let rows = |rows: &[Vec<f32>], round: &dyn Fn(&[f32]) -> Vec<f32>| -> Vec<Vec<f64>> {
            rows.iter().map(|row| round(row).into_iter().map(f64::from).collect()).collect()
        };
        let float = |row: &[f32]| row.iter().map(|x| method.store.exact().round(*x)).collect();
        let far: &dyn Fn(&[f32]) -> Vec<f32> = match method.store {
            KvStore::Int8 => &|row| groups(row, &eight_bits),
            KvStore::Compact => &|row| groups(row, &four_bits),
            _ => &float,
        };
        let whole_keys = method.whole_keys || method.store == KvStore::Int8;
        let far_keys = |keys: &[Vec<f32>]| if whole_keys { centered(keys) } else { rows(keys, far) };
        let Some(thresholds) = &method.thresholds else {
            let (keys, values) = (far_keys(keys), rows(values, far));
            return Self { far_keys: FarKeys::Rows(keys.clone()), far_values: values.clone(), keys, values };
        };
        // A token that was in the window first is coded as it was held there.
        let window: &dyn Fn(&[f32]) -> Vec<f32> = match method.exact_window {
            Some(_) if method.store.is_quantised() => &float,
            _ => &<[f32]>::to_vec,
        };
        let [waited, waited_values] =
            [keys, values].map(|rows| rows.iter().map(|row| window(row)).collect::<Vec<_>>());
        let far_keys = match whole_keys {
            true => FarKeys::Rows(far_keys(&waited)),
            false => FarKeys::Deltas(delta_matrix(&waited, method.store, &thresholds[kv_head])),
        };
        Self {
            keys: rows(keys, &float),
            values: rows(values, &float),
            far_keys,
            far_values: rows(&waited_values, far),
        }
    }
}

/// The smallest f16 not below `x >= 0`.
fn up(x: f32) -> f32 {
    let near = f16::from_f32(x);
    if near.to_f32() >= x { near.to_f32() } else { f16::from_bits(near.to_bits() + 1).to_f32() }
}

/// `x / scale`, to the nearest whole number. Scales are too coarse for it to matter how a division is rounded, but at a tie
/// it does, so it is done as the stores do it.
fn code(x: f32, scale: f32) -> f32 {
    if scale.abs() < f32::MIN_POSITIVE { 0.0 } else { (x * (1.0 / scale)).round_ties_even() }
}

/// Rounds every 32 neighbouring channels with a scale of their own.
fn groups(row: &[f32], round: &dyn Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
    row.chunks(32).flat_map(round).collect()
}

/// Equation 11: 8 bits.
fn eight_bits(group: &[f32]) -> Vec<f32> {
    let scale = up(group.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0);
    group.iter().map(|x| code(*x, scale) * scale).collect()
}

/// Equation 11 for keys: the first page in f16, the others in 8 bits relative to its mean.
fn centered(keys: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let (first, others) = keys.split_at(BLOCK_TOKENS.min(keys.len()));
    let first: Vec<Vec<f32>> =
        first.iter().map(|key| key.iter().map(|x| KvStore::F16.exact().round(*x)).collect()).collect();
    let mut center = vec![0.0_f32; first.first().map_or(0, Vec::len)];
    for key in &first {
        center.iter_mut().zip(key).for_each(|(mean, x)| *mean += x / BLOCK_TOKENS as f32);
    }
    let coded = |key: &Vec<f32>| {
        let shifted: Vec<f32> = key.iter().zip(&center).map(|(x, c)| x - c).collect();
        groups(&shifted, &eight_bits)
            .iter()
            .zip(&center)
            .map(|(x, c)| f64::from(*x) + f64::from(*c))
            .collect()
    };
    let whole = |key: &Vec<f32>| key.iter().map(|x| f64::from(*x)).collect();
    first.iter().map(whole).chain(others.iter().map(coded)).collect()
}

/// Equation 12: 4 bits, codes -8..=7; the number of largest magnitude has the code -8.
fn four_bits(group: &[f32]) -> Vec<f32> {
    let largest = group.iter().fold(0.0, |most: f32, x| if x.abs() > most.abs() { *x } else { most });
    let tie = group.contains(&-largest);
    let magnitude = up(largest.abs() / 8.0);
    // Of two numbers of largest magnitude the negative one counts.
    let scale = if largest > 0.0 && !tie { -magnitude } else { magnitude };
    let rounded =
        |x: f32| if scale == 0.0 { 0.0 } else { (x * (1.0 / scale) + 8.0).min(15.0).round_ties_even() - 8.0 };
    group.iter().map(|x| rounded(*x) * scale).collect()
}

/// Equation 1: what has moved by more than its threshold since it was last transmitted, and by how much.
fn delta_matrix(keys: &[Vec<f32>], store: KvStore, thresholds: &[f32]) -> Vec<Vec<f64>> {
    let mut reference = vec![0.0_f32; thresholds.len()];
    let mut deltas = Vec::new();
    for (t, key) in keys.iter().enumerate() {
        let mut delta = vec![0.0; thresholds.len()];
        for j in 0..thresholds.len() {
            if t == 0 || (key[j] - reference[j]).abs() > thresholds[j] {
                let stored = transmitted(key[j], store, thresholds[j]);
                delta[j] = f64::from(stored) - f64::from(reference[j]);
                reference[j] = stored;
            }
        }
        deltas.push(delta);
    }
    deltas
}

/// Equation 13: a transmitted value in steps of its threshold, and as it is where that is not near enough.
fn transmitted(x: f32, store: KvStore, threshold: f32) -> f32 {
    if store != KvStore::Compact {
        return store.exact().round(x);
    }
    let value = code(x, threshold).clamp(-127.0, 127.0) * threshold;
    if (x - value).abs() > threshold { x } else { value }
}

/// The scores of query `m` for all keys, whether it attends to them or not: exact where the window or the sinks say so, else equation 3,
/// `s(m,t) = s(m,t-1) + q_m . delta_t`, or the product with the rounded key.
fn scores(method: &Method, m: usize, q: &[f32], stored: &Stored) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>() * method.scale;
    let mut running = 0.0;
    (0..stored.keys.len())
        .map(|t| {
            let far = match &stored.far_keys {
                FarKeys::Rows(rows) => dot(&rows[t]),
                FarKeys::Deltas(deltas) => {
                    running += dot(&deltas[t]);
                    running
                }
            };
            let score = if exact(method, m, t) { dot(&stored.keys[t]) } else { far };
            method.softcap.map_or(score, |cap| cap * (score / cap).tanh())
        })
        .collect()
}

/// The number in the denominator of a head's softmax.
fn sink(method: &Method, head: usize) -> f64 {
    method.sink_logits.as_ref().map_or(f64::NEG_INFINITY, |logits| logits[head])
}

/// The keys that query `m` of `n` attends to.
fn keys(method: &Method, m: usize, n: usize) -> Range<usize> {
    match method.mask {
        Mask::Causal => 0..m + 1,
        Mask::SlidingWindow(tokens) => (m + 1).saturating_sub(tokens)..m + 1,
        Mask::Chunked(tokens) => m / tokens * tokens..m + 1,
        Mask::Bidirectional => 0..n,
    }
}

/// Equation 4: whether query `m` sees key `t` exactly.
fn exact(method: &Method, m: usize, t: usize) -> bool {
    let Some(window) = method.exact_window else { return method.thresholds.is_none() };
    method.thresholds.is_none()
        || t < method.exact_sinks
        || m < method.exact_until
        || in_window(method, window, m, t)
}

/// Whether key `t` is in the window of query `m`. Tokens that come after the query are.
fn in_window(method: &Method, window: ExactWindow, m: usize, t: usize) -> bool {
    let latest = |keys: usize| t >= m || m - t < keys;
    match window {
        ExactWindow::Sliding(keys) => latest(keys),
        ExactWindow::Block { scale } => {
            let block = ((f64::from(scale) * method.prompt_end as f64).round() as usize).max(1);
            // Within the prompt query and key are in the same block; after it the latest keys, as many as a block has.
            if m < method.prompt_end { t >= m || m / block == t / block } else { latest(block) }
        }
    }
}
