//! Caches that go ahead and come back: they answer, bit for bit, what a cache answers that never went ahead.

use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, ExactWindow,
    HybridAttention, HybridConfig, KvStore, Mask, ThresholdPolicy,
};
use proptest::prelude::*;

mod common;

use common::{Inputs, options};

fn shape() -> AttentionShape {
    AttentionShape::new(4, 2, 16).unwrap()
}

type Kernel = Box<dyn AttentionKernel>;

/// Every kernel that takes the store of these options, hybrid attention with two windows and with values skipped.
fn kernels(options: &AttentionOptions) -> Vec<(&'static str, Kernel)> {
    let (shape, policy) = (shape(), ThresholdPolicy::Uniform(0.3));
    let config = HybridConfig::new(policy.clone()).options(options.clone());
    let usual = HybridConfig::default().exact_prompt(50).options(options.clone());
    let skipping = usual.clone().codes_from(200);
    let blocks = config.clone().exact_window(ExactWindow::Block { scale: 0.2 }).exact_sinks(0);
    let hybrid = |config| HybridAttention::new(shape, config).ok().map(|kernel| Box::new(kernel) as _);
    let dense = DenseAttention::new(shape, options.clone()).ok().map(|kernel| Box::new(kernel) as _);
    let delta =
        DeltaAttention::new(shape, policy, 0, options.clone()).ok().map(|kernel| Box::new(kernel) as _);
    let all = [
        ("dense", dense),
        ("delta", delta),
        ("hybrid", hybrid(config)),
        ("usual", hybrid(usual)),
        ("skipping", hybrid(skipping)),
        ("blocks", hybrid(blocks)),
    ];
    all.into_iter().filter_map(|(name, kernel)| kernel.map(|kernel| (name, kernel))).collect()
}

/// Every store and kernel, twice.
fn pairs(options: &AttentionOptions) -> Vec<(String, [Kernel; 2])> {
    let mut pairs = Vec::new();
    for store in KvStore::ALL {
        let options = options.clone().store(store);
        let same = kernels(&options).into_iter().zip(kernels(&options));
        pairs.extend(same.map(|((name, a), (_, b))| (format!("{name}, {store}"), [a, b])));
    }
    pairs
}

/// `tokens` tokens that are those of `right` up to `common`, and others after that.
fn branch(right: &Inputs, common: usize, seed: u64) -> Inputs {
    let mut wrong = Inputs::new(shape(), right.tokens, seed.wrapping_add(1));
    for (of, from) in [(&mut wrong.q, &right.q), (&mut wrong.k, &right.k), (&mut wrong.v, &right.v)] {
        let numbers = from.len() / right.tokens * common;
        of[..numbers].copy_from_slice(&from[..numbers]);
    }
    wrong
}

fn one_by_one(from: usize, to: usize) -> Vec<usize> {
    (from + 1..=to).collect()
}

fn masks() -> impl Strategy<Value = Mask> {
    prop_oneof![Just(Mask::Causal), Just(Mask::SlidingWindow(100)), Just(Mask::Chunked(70))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(24)))]

    /// As in speculation: some of the tokens of a step stand, the others are taken back.
    #[test]
    fn within_a_step_any_token_can_be_taken_back(
        at in 1_usize..400, steps in prop::collection::vec((0_usize..9, 0_usize..9), 1..12), seed: u64, mask in masks(),
    ) {
        let end = at + steps.iter().map(|(right, wrong)| right + wrong + 1).sum::<usize>();
        let inputs = Inputs::new(shape(), end, seed);
        for (what, [mut kernel, mut alone]) in pairs(&options().mask(mask)) {
            inputs.run(&mut *kernel, &[at]);
            inputs.run(&mut *alone, &[at]);
            for &(right, wrong) in &steps {
                let stands = kernel.len() + 1 + right;
                kernel.begin_step();
                let ends = one_by_one(kernel.len(), stands);
                let got = inputs.run(&mut *kernel, &ends);
                branch(&inputs, stands, seed).run(&mut *kernel, &one_by_one(stands, stands + wrong));
                kernel.truncate(stands).unwrap();
                kernel.commit_step();
                prop_assert!(got == inputs.run(&mut *alone, &ends), "{what}, {at} to {stands}");
            }
        }
    }

    #[test]
    fn as_many_tokens_as_the_options_say_can_be_taken_back(
        at in 1_usize..400, rewind in 1_usize..150, turns in 1_usize..4, whole: bool, seed: u64, mask in masks(),
    ) {
        let end = at + turns * 20 + rewind;
        let inputs = Inputs::new(shape(), end, seed);
        let pairs = pairs(&options().mask(mask).exact_rewind(rewind));
        // Keys that have become whole do not become deltas again; with a length of its own from which on there are codes, none do.
        for (what, [mut kernel, mut alone]) in pairs.into_iter().filter(|(what, _)| what != "usual, compact") {
            inputs.run(&mut *kernel, &[at]);
            inputs.run(&mut *alone, &[at]);
            for turn in 0..turns {
                let ends = one_by_one(at + turn * 20, at + (turn + 1) * 20);
                let got = inputs.run(&mut *kernel, &ends);
                prop_assert!(got == inputs.run(&mut *alone, &ends), "{what}, {at}, {turn}");
                let len = kernel.len();
                // A window in blocks is another one after another prompt.
                let ends = if whole && !what.starts_with("blocks") { vec![len + rewind] } else { one_by_one(len, len + rewind) };
                branch(&inputs, len, seed).run(&mut *kernel, &ends);
                kernel.truncate(len).unwrap();
            }
        }
    }
}

#[test]
fn what_is_kept_for_a_rewind_is_all_that_it_costs() {
    let inputs = Inputs::new(shape(), 900, 1);
    let bytes = |store, rewind| {
        let config = HybridConfig::default().options(options().store(store).exact_rewind(rewind));
        let mut kernel = HybridAttention::new(shape(), config).unwrap();
        inputs.run(&mut kernel, &[900]);
        kernel.footprint()
    };
    // Keys and values in f16, or keys in f32; 2 heads of 16 channels.
    for (store, token) in [(KvStore::Compact, 2 * 16 * 2 * 2), (KvStore::F32, 2 * 16 * 4)] {
        let (none, some) = (bytes(store, 0), bytes(store, 128));
        assert_eq!(some.window - none.window, 128 * token, "{store}");
        assert_eq!((some.keys, some.values), (none.keys, none.values), "{store}");
    }
}
