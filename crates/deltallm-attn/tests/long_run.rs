//! Many steps with cuts in between: a cache that has lived is the cache that its tokens make from scratch.

use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, ExactWindow, HeadsView, HeadsViewMut,
    HybridAttention, HybridConfig, Isa, KvStore, ThresholdPolicy,
};
use deltallm_core::TargetSparsity;
use deltallm_testing::Random;

const SHAPE: [usize; 3] = [2, 1, 8];
/// Where a cache is cut back to about half, so that attention stays cheap.
const MOST_TOKENS: usize = 300;
const WINDOW: usize = 80;

/// One token: queries, keys and values.
struct Token {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn token(random: &mut Random, before: Option<&Token>) -> Token {
    let [heads, kv_heads, head_dim] = SHAPE;
    let q = random.numbers(heads * head_dim);
    let v = random.numbers(kv_heads * head_dim);
    let mut k = before.map_or_else(|| vec![0.0; kv_heads * head_dim], |before| before.k.clone());
    k.iter_mut().for_each(|x| *x = 0.9 * *x + 0.5 * random.number());
    if random.below(50) == 0 {
        k[random.below(head_dim)] = 100.0 * random.number(); // no code reaches that far
    }
    Token { q, k, v }
}

fn step(kernel: &mut dyn AttentionKernel, tokens: &[Token]) -> Vec<f32> {
    step_with(kernel, &concat(tokens, |token| &token.q), tokens)
}

/// Appends `tokens`; `q` are the queries of the last of them.
fn step_with(kernel: &mut dyn AttentionKernel, q: &[f32], tokens: &[Token]) -> Vec<f32> {
    let [heads, kv_heads, head_dim] = SHAPE;
    let (k, v) = (concat(tokens, |token| &token.k), concat(tokens, |token| &token.v));
    let mut out = vec![0.0; q.len()];
    let view = |x, tokens, heads| HeadsView::new(x, [tokens, heads, head_dim]).unwrap();
    let queries = q.len() / (heads * head_dim);
    kernel
        .forward_heads(
            view(q, queries, heads),
            view(&k, tokens.len(), kv_heads),
            view(&v, tokens.len(), kv_heads),
            HeadsViewMut::new(&mut out, [queries, heads, head_dim]).unwrap(),
        )
        .unwrap();
    out
}

fn concat(tokens: &[Token], part: impl Fn(&Token) -> &[f32]) -> Vec<f32> {
    tokens.iter().flat_map(part).copied().collect()
}

type MakeKernel = Box<dyn Fn() -> Box<dyn AttentionKernel>>;

fn kernels() -> Vec<(String, MakeKernel)> {
    let mut kernels: Vec<(String, MakeKernel)> = Vec::new();
    let [heads, kv_heads, head_dim] = SHAPE;
    let shape = AttentionShape::new(heads, kv_heads, head_dim).unwrap();
    for store in KvStore::ALL {
        let options = AttentionOptions::default().store(store).isa(Isa::from_env().unwrap()).parallel(false);
        let target = ThresholdPolicy::TargetSparsity(TargetSparsity::new(0.6));
        for policy in [ThresholdPolicy::Uniform(0.3), target] {
            let config =
                HybridConfig::new(policy.clone()).exact_window(ExactWindow::Sliding(WINDOW)).codes_from(0);
            let options = options.clone();
            let make = move || {
                Box::new(HybridAttention::new(shape, config.clone().options(options.clone())).unwrap()) as _
            };
            kernels.push((format!("hybrid {store}, {policy:?}"), Box::new(make)));
        }
        if let KvStore::F16 | KvStore::Int8 = store {
            let options = options.clone();
            let make = move || Box::new(DenseAttention::new(shape, options.clone()).unwrap()) as _;
            kernels.push((format!("dense {store}"), Box::new(make)));
        }
    }
    kernels
}

/// The whole history in one call with one query, as a cache moves over from another engine, or step by step.
#[test]
fn a_cache_that_comes_with_one_query_is_the_cache_of_its_tokens() {
    for (name, make) in kernels() {
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
        let mut history: Vec<Token> = Vec::new();
        for _ in 0..202 {
            history.push(token(&mut random, history.last()));
        }
        let (mut stepped, mut ported) = (make(), make());
        let expected =
            history[..200].iter().map(|token| step(&mut *stepped, std::slice::from_ref(token))).last();
        let got = step_with(&mut *ported, &history[199].q, &history[..200]);
        assert_eq!(Some(got), expected, "{name}");
        let coded = |kernel: &dyn AttentionKernel| (kernel.len(), kernel.stats().total().nonzeros);
        assert_eq!(coded(&*ported), coded(&*stepped), "{name}");
        for token in &history[200..] {
            let token = std::slice::from_ref(token);
            assert_eq!(step(&mut *ported, token), step(&mut *stepped, token), "{name}");
        }
    }
}

/// `checks` times, the next outputs and everything that is counted are compared with those of a fresh cache.
fn live(steps: usize, checks: usize) {
    for (name, make) in kernels() {
        let (mut kernel, mut random) = (make(), Random::new(0x2545_f491_4f6c_dd1d));
        let mut history: Vec<Token> = Vec::new();
        let mut compared = 0;
        // Exact copies are held from this token on, in pages of 16.
        let mut held = 0;
        for number in 0..steps {
            if random.below(8) == 0 || history.len() >= MOST_TOKENS {
                // Speculative decoding takes back a few tokens; a long cache is dropped.
                let back = if history.len() >= MOST_TOKENS { history.len() } else { random.below(30) };
                let len = history.len().saturating_sub(back);
                kernel.truncate(len).unwrap();
                history.truncate(len);
                held = held.min(len);
            }
            let more = if random.below(20) == 0 { 1 + random.below(70) } else { 1 };
            let first = history.len();
            for _ in 0..more {
                let next = token(&mut random, history.last());
                history.push(next);
            }
            let got = step(&mut *kernel, &history[first..]);
            held = held.max((history.len() + 1).saturating_sub(WINDOW) / 16 * 16);
            if number % (steps / checks) == steps / checks - 1 {
                let mut fresh = make();
                let all = step(&mut *fresh, &history);
                let expected = &all[all.len() - got.len()..];
                // After cuts the window of the next tokens may lack exact copies.
                let complete = held == 0 || history.len() >= held + WINDOW;
                compared += usize::from(complete);
                let last = got.iter().zip(expected).rev().take(SHAPE[0] * SHAPE[2]);
                for (x, y) in last.filter(|_| complete) {
                    assert!((x - y).abs() <= 1e-4 * y.abs().max(1.0), "{name}, step {number}: {x} {y}");
                }
                let (got, expected) = (kernel.stats().total(), fresh.stats().total());
                assert_eq!((got.elements, got.nonzeros), (expected.elements, expected.nonzeros), "{name}");
                let (got, expected) = (kernel.footprint(), fresh.footprint());
                // What was coded before a cut stays so, where a fresh cache would still hold it exactly.
                let coded_late = name.contains("hybrid int8") || name.contains("compact");
                let fits = got.values == expected.values || coded_late && got.values > expected.values;
                assert!(fits, "{name}, step {number}: {got:?}, {expected:?}");
            }
        }
        assert!(compared > checks / 4, "{name}: {compared}");
    }
}

#[test]
fn a_cache_that_has_lived_is_the_cache_of_its_tokens() {
    live(3_000, 30);
}

#[test]
#[ignore = "minutes; run it after a change of a store"]
fn a_cache_that_has_lived_long_is_the_cache_of_its_tokens() {
    live(100_000, 50);
}
