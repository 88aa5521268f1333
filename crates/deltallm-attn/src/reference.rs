//! The whole method in plain f64 loops: what every kernel is tested against.
//!
//! Read this first. The equations are those of `docs/method.md`. Nothing here is fast, and nothing is clever.

use std::ops::Range;

use deltallm_core::KvStore;

use crate::{AttentionShape, HeadsView, SkipMargin, Window, window::WindowState};

/// Everything that changes the result.
#[derive(Debug, Clone)]
pub struct Method {
    /// Thresholds `[kv_heads][head_dim]`; `None` keeps every key exact (dense attention).
    pub thresholds: Option<Vec<Vec<f32>>>,
    /// Exact window; `None` is delta everywhere. Unused in dense attention.
    pub window: Option<Window>,
    /// Where the prompt ends, for a block window.
    pub prompt_end: usize,
    /// First keys that every query sees exactly.
    pub sinks: usize,
    /// Far values by this margin or more below the best exact score are skipped.
    pub skip_margin: Option<SkipMargin>,
    /// Queries that decide together what to skip: tile `i` holds positions `i * tile .. (i + 1) * tile`.
    pub tile: usize,
    /// Scores are `q . k * scale`.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// How keys and values are stored.
    pub store: KvStore,
}

impl Method {
    /// Exact causal attention with f32 storage and the usual scale.
    pub fn dense(shape: &AttentionShape) -> Self {
        Self {
            thresholds: None,
            window: None,
            prompt_end: 0,
            sinks: 0,
            skip_margin: None,
            tile: 1,
            scale: 1.0 / (shape.head_dim() as f64).sqrt(),
            softcap: None,
            store: KvStore::F32,
        }
    }
}

/// Causal attention of all tokens: `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[tokens, kv_heads, head_dim]`.
/// Returns the outputs, `[tokens, heads, head_dim]`, and the number of (query, key) pairs whose value was skipped.
pub fn attention(
    shape: &AttentionShape,
    method: &Method,
    q: &HeadsView,
    k: &HeadsView,
    v: &HeadsView,
) -> (Vec<f64>, u64) {
    let (n, d, heads) = (q.tokens(), shape.head_dim(), shape.heads());
    let mut out = vec![0.0; n * heads * d];
    let mut skipped = 0;
    for kv_head in 0..shape.kv_heads() {
        let stored = |view: &HeadsView, t: usize| -> Vec<f64> {
            view.row(t, kv_head).iter().map(|x| f64::from(method.store.exact().round(*x))).collect()
        };
        let keys: Vec<Vec<f64>> = (0..n).map(|t| stored(k, t)).collect();
        let values: Vec<Vec<f64>> = (0..n).map(|t| stored(v, t)).collect();
        let deltas = method.thresholds.as_ref().map(|thresholds| {
            let raw: Vec<&[f32]> = (0..n).map(|t| k.row(t, kv_head)).collect();
            delta_matrix(&raw, &keys, &thresholds[kv_head])
        });
        let group: Range<usize> = kv_head * shape.group()..(kv_head + 1) * shape.group();
        for tile in (0..n).step_by(method.tile) {
            let positions = method.tile.min(n - tile);
            let queries: Vec<(usize, usize)> =
                (tile..n.min(tile + method.tile)).flat_map(|m| group.clone().map(move |h| (m, h))).collect();
            let scores: Vec<Vec<f64>> = queries
                .iter()
                .map(|&(m, h)| scores(method, m, q.row(m, h), &keys, deltas.as_deref()))
                .collect();
            // Equation 5: a far value is skipped when it matters to no query of the tile that sees it as far.
            let matters = |t: usize| match method.skip_margin {
                None => true,
                Some(margin) => queries.iter().zip(&scores).any(|(&(m, _), s)| {
                    let best =
                        (0..=m).filter(|&u| exact(method, m, u)).map(|u| s[u]).fold(f64::MIN, f64::max);
                    t <= m && !exact(method, m, t) && s[t] > best - f64::from(margin.nats(m + 1, positions))
                }),
            };
            let kept: Vec<bool> = (0..n).map(matters).collect();
            for (&(m, h), s) in queries.iter().zip(&scores) {
                let used = |t: &usize| exact(method, m, *t) || kept[*t];
                skipped += (0..=m).filter(|t| !used(t)).count() as u64;
                // Equation 6: softmax over what is left.
                let best = (0..=m).filter(used).map(|t| s[t]).fold(f64::MIN, f64::max);
                let total: f64 = (0..=m).filter(used).map(|t| (s[t] - best).exp()).sum();
                let out = &mut out[(m * heads + h) * d..][..d];
                for t in (0..=m).filter(used) {
                    let weight = (s[t] - best).exp() / total;
                    out.iter_mut().zip(&values[t]).for_each(|(o, v)| *o += weight * v);
                }
            }
        }
    }
    (out, skipped)
}

/// Equation 1: what has moved by more than its threshold since it was last transmitted, and by how much.
fn delta_matrix(raw: &[&[f32]], stored: &[Vec<f64>], thresholds: &[f32]) -> Vec<Vec<f64>> {
    let mut reference = vec![0.0; thresholds.len()];
    let mut deltas = Vec::new();
    for (t, (raw, stored)) in raw.iter().zip(stored).enumerate() {
        let mut delta = vec![0.0; thresholds.len()];
        for j in 0..thresholds.len() {
            if t == 0 || (f64::from(raw[j]) - reference[j]).abs() > f64::from(thresholds[j]) {
                delta[j] = stored[j] - reference[j];
                reference[j] = stored[j];
            }
        }
        deltas.push(delta);
    }
    deltas
}

/// The scores of query `m` for the keys `0..=m`: exact where the window or the sinks say so, else equation 3,
/// `s(m,t) = s(m,t-1) + q_m . delta_t`.
fn scores(method: &Method, m: usize, q: &[f32], keys: &[Vec<f64>], deltas: Option<&[Vec<f64>]>) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>() * method.scale;
    let mut running = 0.0;
    (0..=m)
        .map(|t| {
            running += deltas.map_or(0.0, |deltas| dot(&deltas[t]));
            let score = if deltas.is_none() || exact(method, m, t) { dot(&keys[t]) } else { running };
            method.softcap.map_or(score, |cap| cap * (score / cap).tanh())
        })
        .collect()
}

/// Equation 4: whether query `m` sees key `t` exactly.
fn exact(method: &Method, m: usize, t: usize) -> bool {
    let Some(window) = method.window else { return method.thresholds.is_none() };
    method.thresholds.is_none()
        || t < method.sinks
        || t >= WindowState::new(window, method.prompt_end).start(m)
}
