//! Nanoseconds per cached token and kv head, store by store, interleaved, from beyond the L2 cache:
//! `cargo test --release -p deltallm-attn --lib decode::timing -- --ignored --nocapture`.
//!
//! The keys walk randomly, so that about two thirds of the deltas are zero. Settings, by environment variable: `HEADS` (kv
//! heads at 4096 tokens, 64; few of them stay in the L2 cache), `GROUP` (3), `HEAD_DIM` (64), `MARGIN` (0.2 nats, which skips
//! 70 to 80 % of these values), `STORE` (all; names with
//! semicolons between them), `LEVEL`
//! (all but the scalar one), `ROUNDS` (9).

use std::time::Instant;

use deltallm_core::{DeltaMatrix, ElementType, MemoryBudget};

use super::*;
use crate::{AttentionShape, Isa, SkipMargin, Window, window::WindowState};

/// Keys of one kv head.
enum Cached {
    Rows(PagedRows),
    Delta(Box<DeltaMatrix>),
}

/// A way to store keys and values, and whether values are skipped.
struct Store {
    name: &'static str,
    keys: KeyStore,
    values: RowFormat,
    skip: bool,
}

#[derive(Clone, Copy)]
enum KeyStore {
    Rows(RowFormat),
    Delta(ElementType),
    Delta8,
}

const F32: RowFormat = RowFormat::Float(ElementType::F32);
const F16: RowFormat = RowFormat::Float(ElementType::F16);
const BF16: RowFormat = RowFormat::Float(ElementType::Bf16);

const STORES: [Store; 11] = [
    Store { name: "f32", keys: KeyStore::Rows(F32), values: F32, skip: false },
    Store { name: "f16", keys: KeyStore::Rows(F16), values: F16, skip: false },
    Store { name: "bf16", keys: KeyStore::Rows(BF16), values: BF16, skip: false },
    Store { name: "int8", keys: KeyStore::Rows(RowFormat::Int8), values: RowFormat::Int8, skip: false },
    Store { name: "compact", keys: KeyStore::Delta8, values: RowFormat::Int4, skip: false },
    Store { name: "f16, skip", keys: KeyStore::Rows(F16), values: F16, skip: true },
    Store { name: "int8, skip", keys: KeyStore::Rows(RowFormat::Int8), values: RowFormat::Int8, skip: true },
    Store {
        name: "int8 x int4, skip",
        keys: KeyStore::Rows(RowFormat::Int8),
        values: RowFormat::Int4,
        skip: true,
    },
    Store { name: "delta f16, skip", keys: KeyStore::Delta(ElementType::F16), values: F16, skip: true },
    Store { name: "delta bf16, skip", keys: KeyStore::Delta(ElementType::Bf16), values: BF16, skip: true },
    Store { name: "compact, skip", keys: KeyStore::Delta8, values: RowFormat::Int4, skip: true },
];

fn setting(name: &str, default: f32) -> f32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn rows(data: &[f32], channels: usize, format: RowFormat) -> PagedRows {
    let mut charge = MemoryBudget::unlimited().reservation();
    let mut rows = PagedRows::new(channels, format, BLOCK);
    data.chunks(channels).for_each(|row| rows.push(row, &mut charge).unwrap());
    rows
}

impl KeyStore {
    fn fill(self, data: &[f32], channels: usize) -> Cached {
        let mut charge = MemoryBudget::unlimited().reservation();
        let thresholds = vec![0.4; channels];
        let mut matrix = match self {
            Self::Rows(format) => return Cached::Rows(rows(data, channels, format)),
            Self::Delta(element) => DeltaMatrix::new(thresholds, element).unwrap(),
            Self::Delta8 => DeltaMatrix::in_steps(thresholds).unwrap(),
        };
        data.chunks(channels).for_each(|row| matrix.push(row, &mut charge).unwrap());
        Cached::Delta(Box::new(matrix))
    }
}

impl Cached {
    fn phases<'a>(&'a self, values: &'a PagedRows, skip: bool, margin: f32) -> Phases<'a> {
        let keys = match self {
            Self::Rows(rows) => Keys::Rows(rows),
            Self::Delta(matrix) => Keys::Delta(matrix),
        };
        let phase = |part| Phase { keys, values, part, skip_margin: None };
        if !skip {
            return Phases::One([phase(Part::All)]);
        }
        let skip_margin = Some(SkipMargin::Fixed(margin));
        Phases::Three([phase(Part::Sinks), phase(Part::Window), Phase { skip_margin, ..phase(Part::Far) }])
    }
}

#[test]
#[ignore = "a measurement"]
fn nanoseconds_per_token() {
    let (group, channels) = (setting("GROUP", 3.0) as usize, setting("HEAD_DIM", 64.0) as usize);
    let (heads, margin) = (setting("HEADS", 64.0) as usize, setting("MARGIN", 0.2));
    let only = std::env::var("STORE").ok();
    for (tokens, heads) in [(4096, heads), (16384, heads.div_ceil(4))] {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let shape = AttentionShape::new(heads * group, heads, channels).unwrap();
        let q: Vec<f32> = (0..shape.heads() * channels).map(|_| 2.5 * random()).collect();
        let q = HeadsView::new(&q, [1, shape.heads(), channels]).unwrap();
        let mut key = vec![0.0_f32; channels];
        let mut k = Vec::new();
        for _ in 0..tokens {
            key.iter_mut().for_each(|x| *x = 0.9 * *x + 0.6 * random());
            k.extend_from_slice(&key);
        }
        let v: Vec<f32> = (0..tokens * channels).map(|_| random()).collect();
        let stores: Vec<&Store> = STORES
            .iter()
            .filter(|store| only.as_deref().is_none_or(|only| only.split(';').any(|only| only == store.name)))
            .collect();
        let caches: Vec<Vec<(Cached, PagedRows)>> = stores
            .iter()
            .map(|store| {
                (0..heads)
                    .map(|_| (store.keys.fill(&k, channels), rows(&v, channels, store.values)))
                    .collect()
            })
            .collect();
        let level = std::env::var("LEVEL").ok();
        for isa in Isa::available().into_iter().skip(1) {
            if level.as_deref().is_some_and(|level| level != isa.name()) {
                continue;
            }
            let options = AttentionOptions { isa, parallel: false, ..AttentionOptions::new(shape) };
            let split = Split { window: WindowState::new(Window::Sliding(64), 0), exact_from: 0, sinks: 4 };
            let mut times = vec![Vec::new(); stores.len()];
            let mut counts = vec![HeadSparsity::default(); stores.len()];
            let mut out = vec![0.0; shape.heads() * channels];
            for _ in 0..setting("ROUNDS", 9.0) as usize {
                for (i, (store, cache)) in stores.iter().zip(&caches).enumerate() {
                    let phases = |head: usize| {
                        let (keys, values) = &cache[head];
                        keys.phases(values, store.skip, margin)
                    };
                    let mut of_heads = vec![HeadSparsity::default(); heads];
                    let out = HeadsViewMut::new(&mut out, [1, shape.heads(), channels]).unwrap();
                    let start = Instant::now();
                    attend_token(&options, &q, tokens - 1, &split, &phases, out, &mut of_heads).unwrap();
                    times[i].push(start.elapsed().as_secs_f64() * 1e9 / (tokens * heads) as f64);
                    counts[i] = HeadSparsity::default();
                    of_heads.iter().for_each(|head| counts[i] += *head);
                }
            }
            times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
            let median = |i: usize| times[i][times[i].len() / 2];
            let baseline = stores.iter().position(|store| store.name == "f16").map_or(f64::NAN, median);
            for (i, store) in stores.iter().enumerate() {
                println!(
                    "{tokens:6} {:8} {:20} {:6.1} ns (best {:5.1}) {:5.2}x  {:.2} skipped",
                    isa.name(),
                    store.name,
                    median(i),
                    times[i][0],
                    baseline / median(i),
                    counts[i].skipped_values as f64 / counts[i].pairs as f64,
                );
            }
        }
    }
}
