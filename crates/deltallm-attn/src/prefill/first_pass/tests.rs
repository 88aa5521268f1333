use super::*;
use crate::prefill::lanes::lanes;
use deltallm_testing::numbers;

fn filters() -> Vec<(Isa, FirstPass)> {
    Isa::available().into_iter().filter_map(|isa| FirstPass::of(isa).map(|filter| (isa, filter))).collect()
}

/// Keys whose channels have centers and ranges of their own, as real ones do.
fn keys(tokens: usize, head_dim: usize, size: f32) -> Vec<f32> {
    let channel = |i: usize| (i % head_dim) as f32;
    let noise = numbers(tokens * head_dim, 1);
    noise.iter().enumerate().map(|(i, x)| size * (x * (1.0 + channel(i) % 5.0) + channel(i) % 3.0)).collect()
}

/// For every key the scores in f64, `[tokens, lanes]`.
fn scores(keys: &[f32], queries: &[f32], head_dim: usize, lanes: usize) -> Vec<f64> {
    let score = |key: &[f32], lane: usize| {
        (0..head_dim).map(|j| f64::from(key[j]) * f64::from(queries[j * lanes + lane])).sum()
    };
    keys.chunks_exact(head_dim).flat_map(|key| (0..lanes).map(move |lane| score(key, lane))).collect()
}

fn selected(
    filter: FirstPass,
    keys: &KeyCodes,
    tokens: Range<usize>,
    queries: &[f32],
    thresholds: &[f32],
) -> Vec<usize> {
    let (mut codes, mut selected) = (QueryCodes::default(), Vec::new());
    filter.set_queries(keys, queries, thresholds.len(), &mut codes);
    filter.candidates(keys, tokens, &mut codes, thresholds, &mut selected);
    selected
}

#[test]
fn no_key_above_a_threshold_is_missed_and_few_others_pass() {
    for (isa, filter) in filters() {
        for (head_dim, width, tokens) in [
            (64, 48_usize, 200),
            (64, 64, 64),
            (64, 96, 130),
            (128, 64, 65),
            (80, 32, 63),
            (5, 16, 9),
            (1, 16, 1),
            (96, 112, 70),
            (64, 80, 7),
            (64, 40, 64),
            (72, 28, 40),
            (20, 12, 30),
            (64, 8, 30),
            (9, 4, 64),
        ] {
            if !width.is_multiple_of(lanes(isa)) {
                continue;
            }
            let lanes = width;
            for size in [1.0, 1e-20, 1e15] {
                let (keys, queries) = (keys(tokens, head_dim, size), numbers(head_dim * lanes, 3));
                let scores = scores(&keys, &queries, head_dim, lanes);
                // What one key in eight exceeds in a lane: with many lanes most keys exceed some threshold.
                let thresholds: Vec<f32> = (0..lanes)
                    .map(|lane| {
                        let mut column: Vec<f64> = scores.iter().skip(lane).step_by(lanes).copied().collect();
                        column.sort_by(f64::total_cmp);
                        column[column.len() - 1 - column.len() / (8 * lanes)] as f32
                    })
                    .collect();
                let first = 10;
                let codes = filter.keys(first..first + tokens, &keys, head_dim).unwrap();
                let range = first + tokens / 3..first + tokens;
                let got = selected(filter, &codes, range.clone(), &queries, &thresholds);
                let above = |token: &usize| {
                    let row = &scores[(token - first) * lanes..][..lanes];
                    row.iter().zip(&thresholds).any(|(x, limit)| *x > f64::from(*limit))
                };
                let wanted: Vec<usize> = range.clone().filter(above).collect();
                let what = format!("{isa} {head_dim} {lanes} {tokens} {size}: {got:?}, {wanted:?}");
                assert!(wanted.iter().all(|token| got.contains(token)), "{what}");
                assert!(got.len() <= wanted.len() + range.len() / 3 + 2, "{what}");
                let portable = FirstPass { dots: ByteKernel::Scalar, ..filter };
                let codes = portable.keys(first..first + tokens, &keys, head_dim).unwrap();
                assert_eq!(got, selected(portable, &codes, range, &queries, &thresholds), "{what}");
            }
        }
    }
}

#[test]
fn thresholds_beyond_all_scores_let_nothing_pass_and_those_that_are_no_numbers_everything() {
    for (isa, filter) in filters() {
        let (keys, queries) = (keys(70, 16, 1.0), numbers(16 * 16, 3));
        let codes = filter.keys(0..70, &keys, 16).unwrap();
        for (threshold, passed) in [(1e30, 0), (f32::NAN, 70), (f32::NEG_INFINITY, 70), (-1e30, 70)] {
            let got = selected(filter, &codes, 0..70, &queries, &[threshold; 16]);
            assert_eq!(got.len(), passed, "{isa} {threshold}");
        }
    }
}

#[test]
fn queries_that_leave_the_range_of_f32_let_everything_pass() {
    for (isa, filter) in filters() {
        let keys = keys(70, 16, 1e30);
        let queries: Vec<f32> = numbers(16 * 16, 3).iter().map(|x| x * 1e30).collect();
        let codes = filter.keys(0..70, &keys, 16).unwrap();
        assert_eq!(selected(filter, &codes, 0..70, &queries, &[1.0; 16]).len(), 70, "{isa}");
    }
}

#[test]
fn equal_keys_zeros_and_denormals_have_codes_and_infinite_ranges_none() {
    for (isa, filter) in filters() {
        for x in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e30] {
            let codes = filter.keys(0..3, &[x; 3 * 8], 8).unwrap();
            let queries = vec![0.5; 8 * 16];
            assert_eq!(
                selected(filter, &codes, 0..3, &queries, &[3.9 * x - 1e-30; 16]),
                [0, 1, 2],
                "{isa} {x}"
            );
        }
        assert!(filter.keys(0..2, &[f32::MAX, 0.0, f32::MIN, 0.0], 2).is_none());
    }
}

/// The bound of the error at its tightest: whatever is rounded off, of the key or of the query, adds to the score.
#[test]
fn a_key_is_not_missed_for_what_rounding_takes_from_its_score() {
    const CHANNELS: usize = 16;
    // Steps of 1: every channel reaches from -127 to 127.
    let mut keys = Vec::new();
    for (channel, x) in (0..CHANNELS).flat_map(|channel| [(channel, -127.0), (channel, 127.0)]) {
        let mut key = [0.0; CHANNELS];
        key[channel] = x;
        keys.extend(key);
    }
    // All channels of the key nearly half a step off, and then all of the query's but the one that its unit comes from.
    let (mut whole_key, mut query) = ([100.0; CHANNELS], [10.49; CHANNELS]);
    (whole_key[0], query[0]) = (0.0, 127.0);
    for (key, query) in [([10.49; CHANNELS], [1.0; CHANNELS]), (whole_key, query)] {
        let score: f32 = key.iter().zip(&query).map(|(k, q)| k * q).sum();
        let queries: Vec<f32> = query.iter().flat_map(|q| [*q; 16]).collect();
        // Between keys of which nothing is rounded off, in the block of the others and in the next one.
        for (before, after) in [(0, 0), (0, 10), (BLOCK_TOKENS, 0), (BLOCK_TOKENS, 10)] {
            let [before, after] = [before, after].map(|zeros| vec![0.0; zeros * CHANNELS]);
            let place = (keys.len() + before.len()) / CHANNELS;
            let keys = [&keys[..], &before, &key, &after].concat();
            for (isa, filter) in filters() {
                let codes = filter.keys(0..keys.len() / CHANNELS, &keys, CHANNELS).unwrap();
                let got = selected(filter, &codes, place..place + 1, &queries, &[0.9999 * score; 16]);
                assert_eq!(got, [place], "{isa}");
            }
        }
    }
}

/// Their products are large and cancel each other, and are rounded.
#[test]
fn large_centers_do_not_hide_a_key() {
    const CHANNELS: usize = 64;
    let noise = numbers(200 * CHANNELS, 5);
    let center = |i: usize| 1e6 * (1 + i % CHANNELS / 2 % 7) as f32;
    let keys: Vec<f32> = noise.iter().enumerate().map(|(i, x)| x + center(i)).collect();
    let queries: Vec<f32> = (0..CHANNELS).flat_map(|j| [if j % 2 == 0 { 0.3 } else { -0.3 }; 16]).collect();
    let scores = scores(&keys, &queries, CHANNELS, 16);
    for (isa, filter) in filters() {
        let codes = filter.keys(0..200, &keys, CHANNELS).unwrap();
        for (token, score) in scores.iter().step_by(16).enumerate() {
            let threshold = (*score as f32).next_down();
            let got = selected(filter, &codes, token..token + 1, &queries, &[threshold; 16]);
            assert_eq!(got, [token], "{isa}");
        }
    }
}
