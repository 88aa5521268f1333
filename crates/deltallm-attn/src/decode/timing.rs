//! Nanoseconds per cached token and kv head, store by store, from beyond the L2 cache:
//! `cargo test --release -p deltallm-attn --lib decode::timing -- --ignored --nocapture`.

use std::time::Instant;

use deltallm_core::{DeltaMatrix, ElementType, MemoryBudget, RowFormat};

use super::*;
use crate::{
    AttentionShape, SimdLevel, SkipMargin, Window,
    window::{Part, WindowState},
};

fn rows(data: &[f32], d: usize, format: impl Into<RowFormat>) -> PagedRows {
    let mut charge = MemoryBudget::unlimited().charge();
    let mut rows = PagedRows::new(d, format, BLOCK);
    data.chunks(d).for_each(|row| rows.push(row, &mut charge).unwrap());
    std::mem::forget(charge);
    rows
}

enum K {
    Rows(PagedRows),
    Int4(GroupedKeys),
    Delta(DeltaMatrix),
}

#[test]
#[ignore = "a measurement"]
fn nanoseconds_per_token() {
    let d = std::env::var("D").map_or(64, |d| d.parse().unwrap());
    let group: usize = std::env::var("GROUP").map_or(3, |d| d.parse().unwrap());
    let only = std::env::var("ONLY").unwrap_or_default();
    let size: usize = std::env::var("HEADS").map_or(64, |d| d.parse().unwrap());
    for (tokens, heads) in [(4096_usize, size), (16384, size.div_ceil(4))] {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let shape = AttentionShape::new(heads * group, heads, d).unwrap();
        let q: Vec<f32> = (0..heads * group * d).map(|_| 2.5 * random()).collect();
        let q = HeadsView::new(&q, [1, heads * group, d]).unwrap();
        let mut key = vec![0.0_f32; d];
        let k: Vec<f32> = (0..tokens)
            .flat_map(|_| {
                key.iter_mut().for_each(|x| *x = 0.9 * *x + 0.6 * random());
                key.clone()
            })
            .collect();
        let v: Vec<f32> = (0..tokens * d).map(|_| random()).collect();
        let delta = |element, theta: f32| {
            let mut charge = MemoryBudget::unlimited().charge();
            let mut keys = DeltaMatrix::new(vec![theta; d], element).unwrap();
            k.chunks(d).for_each(|row| keys.push(row, &mut charge).unwrap());
            std::mem::forget(charge);
            keys
        };
        let compact = |theta: f32| {
            let mut charge = MemoryBudget::unlimited().charge();
            let mut keys = DeltaMatrix::int8(vec![theta; d]).unwrap();
            k.chunks(d).for_each(|row| keys.push(row, &mut charge).unwrap());
            std::mem::forget(charge);
            keys
        };
        let int4 = || {
            let mut charge = MemoryBudget::unlimited().charge();
            let mut keys = GroupedKeys::new(d);
            k.chunks(d).for_each(|row| keys.push(row, &mut charge).unwrap());
            std::mem::forget(charge);
            keys
        };
        let theta = std::env::var("THETA").map_or(0.4, |t| t.parse().unwrap());
        let stores: Vec<(&str, Box<dyn Fn() -> (K, PagedRows)>, bool)> = vec![
            (
                "f32",
                Box::new(|| (K::Rows(rows(&k, d, ElementType::F32)), rows(&v, d, ElementType::F32))),
                false,
            ),
            (
                "f16",
                Box::new(|| (K::Rows(rows(&k, d, ElementType::F16)), rows(&v, d, ElementType::F16))),
                false,
            ),
            (
                "bf16",
                Box::new(|| (K::Rows(rows(&k, d, ElementType::Bf16)), rows(&v, d, ElementType::Bf16))),
                false,
            ),
            (
                "int8",
                Box::new(|| (K::Rows(rows(&k, d, RowFormat::Int8)), rows(&v, d, RowFormat::Int8))),
                false,
            ),
            (
                "f16 skip",
                Box::new(|| (K::Rows(rows(&k, d, ElementType::F16)), rows(&v, d, ElementType::F16))),
                true,
            ),
            (
                "int8 skip",
                Box::new(|| (K::Rows(rows(&k, d, RowFormat::Int8)), rows(&v, d, RowFormat::Int8))),
                true,
            ),
            (
                "int8 x int4 skip",
                Box::new(|| (K::Rows(rows(&k, d, RowFormat::Int8)), rows(&v, d, RowFormat::Int4))),
                true,
            ),
            ("int4 skip", Box::new(|| (K::Int4(int4()), rows(&v, d, RowFormat::Int4))), true),
            ("compact", Box::new(|| (K::Delta(compact(theta)), rows(&v, d, RowFormat::Int4))), false),
            ("compact skip", Box::new(|| (K::Delta(compact(theta)), rows(&v, d, RowFormat::Int4))), true),
            (
                "delta bf16",
                Box::new(|| (K::Delta(delta(ElementType::Bf16, theta)), rows(&v, d, ElementType::Bf16))),
                false,
            ),
            (
                "delta f16 skip",
                Box::new(|| (K::Delta(delta(ElementType::F16, theta)), rows(&v, d, ElementType::F16))),
                true,
            ),
            (
                "delta bf16 x int4 skip",
                Box::new(|| (K::Delta(delta(ElementType::Bf16, theta)), rows(&v, d, RowFormat::Int4))),
                true,
            ),
        ];
        let stores: Vec<_> =
            stores.into_iter().filter(|s| only.is_empty() || only.split(',').any(|o| o == s.0)).collect();
        let caches: Vec<(&str, Vec<(K, PagedRows)>, Vec<(PagedRows, PagedRows)>, bool)> = stores
            .iter()
            .map(|(name, make, skip)| (*name, (0..heads).map(|_| make()).collect(), Vec::new(), *skip))
            .collect();
        for simd in SimdLevel::available() {
            if std::env::var("LEVEL").is_ok_and(|level| level != simd.name()) || simd.name() == "scalar" {
                continue;
            }
            let options = AttentionOptions { simd, parallel: false, ..AttentionOptions::new(shape).unwrap() };
            let split =
                Split { window: WindowState::new(Window::Sliding(64), 0), exact_from: 0, sinks: 4, group: 1 };
            let mut times = vec![Vec::new(); caches.len()];
            let mut counts = vec![HeadSparsity::default(); caches.len()];
            let mut out = vec![0.0; heads * group * d];
            for _ in 0..(9 * 64 / size) {
                for (i, (_, cache, _, skip)) in caches.iter().enumerate() {
                    let phases: Vec<Vec<Phase>> = cache
                        .iter()
                        .map(|(k, v)| {
                            let keys = match k {
                                K::Rows(rows) => Keys::Rows(rows),
                                K::Int4(keys) => Keys::Rows(keys),
                                K::Delta(matrix) => Keys::Delta(matrix, &[]),
                            };
                            let phase = |part| Phase { keys, values: v, part, skip_margin: None };
                            match skip {
                                false => vec![phase(Part::All)],
                                true => vec![
                                    phase(Part::Sinks),
                                    phase(Part::Window),
                                    Phase {
                                        skip_margin: Some(SkipMargin::Fixed(
                                            std::env::var("T").map_or(0.5, |t| t.parse().unwrap()),
                                        )),
                                        ..phase(Part::Far)
                                    },
                                ],
                            }
                        })
                        .collect();
                    let view = HeadsViewMut::new(&mut out, [1, heads * group, d]).unwrap();
                    let start = Instant::now();
                    let result = attend_token(&options, &q, tokens - 1, &split, &phases, view).unwrap();
                    times[i].push(start.elapsed().as_secs_f64());
                    counts[i] = HeadSparsity::default();
                    result.iter().for_each(|c| counts[i].add(c));
                }
            }
            let mut f16 = f64::NAN;
            for (i, (name, _, _, _)) in caches.iter().enumerate() {
                times[i].sort_by(f64::total_cmp);
                let ns = times[i][times[i].len() / 2] * 1e9 / (tokens * heads) as f64;
                let best = times[i][0] * 1e9 / (tokens * heads) as f64;
                if *name == "f16" {
                    f16 = ns;
                }
                let skipped = counts[i].skipped_values as f64 / counts[i].pairs as f64;
                println!(
                    "{tokens:6} {simd:8} {name:24} {ns:7.2} ns (best {best:.2})  {:.2}x  skipped {skipped:.2}",
                    f16 / ns
                );
            }
        }
        if let K::Delta(m) = (stores.last().unwrap().1)().0 {
            println!("zero fraction {:.3}", 1.0 - m.nonzeros() as f64 / (tokens * d) as f64);
        }
    }
}
