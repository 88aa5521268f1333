//! Caches that go ahead and come back: they answer, bit for bit, what a cache answers that never went ahead.

use std::io::Cursor;

use bytes::Bytes;
use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, ExactWindow,
    HybridAttention, HybridConfig, KvStore, Mask, MemoryBudget, ThresholdPolicy,
};
use deltallm_core::{SnapshotReader, SnapshotWriter};
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

/// Loads what the one saves into the other.
fn reload(from: &dyn AttentionKernel, to: &mut dyn AttentionKernel) {
    let (mut writer, mut file) = (SnapshotWriter::new(), Cursor::new(Vec::new()));
    from.save(&mut writer).unwrap();
    writer.write(&mut file).unwrap();
    let mut reader = SnapshotReader::copying(Bytes::from(file.into_inner())).unwrap();
    to.load(&mut reader).unwrap();
    reader.end().unwrap();
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
        for (what, [mut kernel, mut alone]) in pairs {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(24)))]

    /// Whatever a cache has been through, it is the one that read its tokens once.
    #[test]
    fn a_cache_that_is_cut_forked_and_saved_is_the_one_that_never_was(
        at in 1_usize..300, does in prop::collection::vec((0_usize..6, 0_usize..20), 1..40), seed: u64, mask in masks(),
    ) {
        let rewind = 16;
        let inputs = Inputs::new(shape(), at + 20 * does.len() + 1, seed);
        let budget = MemoryBudget::unlimited();
        let options = options().mask(mask).exact_rewind(rewind);
        let fresh = pairs(&options.clone().budget(budget.clone()));
        let held = fresh.iter().flat_map(|(_, pair)| pair).map(|kernel| kernel.footprint().total()).sum::<usize>();
        let lone = pairs(&options).into_iter().map(|(_, [_, alone])| alone);
        for (number, mut alone) in lone.enumerate() {
            let (what, [fresh, _]) = &fresh[number];
            let mut kernel = fresh.fork().unwrap();
            inputs.run(&mut *kernel, &[at]);
            inputs.run(&mut *alone, &[at]);
            let mut furthest = at;
            for &(what, tokens) in &does {
                let len = kernel.len();
                match what {
                    0 => drop(inputs.run(&mut *kernel, &one_by_one(len, len + tokens))),
                    1 => kernel.truncate(len.saturating_sub(tokens).max(furthest.saturating_sub(rewind)).max(at)).unwrap(),
                    2 => kernel = kernel.fork().unwrap(),
                    3 => {
                        let mut loaded = fresh.fork().unwrap();
                        reload(&*kernel, &mut *loaded);
                        kernel = loaded;
                    }
                    // Guesses, of which none are right, in a fork or not.
                    forks => {
                        kernel.begin_step();
                        branch(&inputs, len, seed).run(&mut *kernel, &one_by_one(len, len + tokens));
                        let mut other = kernel.fork().unwrap();
                        kernel.undo_step(len).unwrap();
                        other.undo_step(len).unwrap();
                        if forks == 4 {
                            kernel = other;
                        }
                    }
                }
                furthest = furthest.max(kernel.len());
                prop_assert!(budget.used() == held + kernel.footprint().total(), "{what}, {at}, {does:?}");
            }
            let len = kernel.len();
            inputs.run(&mut *alone, &one_by_one(at, len));
            let last = [len + 1];
            prop_assert!(inputs.run(&mut *kernel, &last) == inputs.run(&mut *alone, &last), "{what}, {at} to {len}, {does:?}");
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

/// Keys that rest, and then keys of which every channel escapes: the compact store holds them whole from some token on. Whoever goes back
/// to before it, be it the cache, a fork or what was loaded, goes on from deltas.
#[test]
fn keys_that_became_whole_are_deltas_again_where_a_rewind_reaches() {
    let (shape, rewind) = (AttentionShape::new(2, 1, 64).unwrap(), 24);
    let inputs = |calm: usize| {
        let mut inputs = Inputs::new(shape, 600, 11);
        let (calm, wild) = inputs.k.split_at_mut(calm * 64);
        calm.fill(1.0);
        wild.iter_mut().for_each(|x| *x *= 1e3);
        inputs
    };
    let kernel = |budget: &MemoryBudget, rewind| {
        let options = options().store(KvStore::Compact).exact_rewind(rewind).budget(budget.clone());
        let config = HybridConfig::new(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(16));
        HybridAttention::new(shape, config.options(options)).unwrap()
    };
    let (mut restored, mut whole) = (0, 0);
    // Long after codes have begun, and when they begin.
    for (inputs, start, end) in [(inputs(450), 440, 540), (inputs(200), 100, 330)] {
        let budget = MemoryBudget::unlimited();
        let (mut lived, mut alone) = (kernel(&budget, rewind), kernel(&MemoryBudget::unlimited(), rewind));
        inputs.run(&mut lived, &[start]);
        inputs.run(&mut alone, &[start]);
        for end in start + 1..=end {
            let growth = lived.growth(1).unwrap();
            let before = budget.used();
            let out = inputs.run(&mut lived, &[end]);
            assert!(budget.used() <= before + growth, "{end}: {} of {growth}", budget.used() - before);
            assert_eq!(out, inputs.run(&mut alone, &[end]), "{end}");
            assert_eq!(budget.used(), lived.footprint().total(), "{end}");

            let ahead = end + rewind;
            let expected = alone.stats().total().nonzeros;
            if end % 2 == 0 {
                inputs.run(&mut lived, &one_by_one(end, ahead));
            } else {
                // In a step, of which some may be taken back, in a fork of it too.
                lived.begin_step();
                inputs.run(&mut lived, &one_by_one(end, ahead + end % 3));
                let mut fork = lived.fork().unwrap();
                for kernel in [&mut *fork, &mut lived] {
                    kernel.truncate(ahead).unwrap();
                    kernel.commit_step();
                }
                let mut loaded = kernel(&budget, rewind);
                reload(&*fork, &mut loaded);
                loaded.truncate(end).unwrap();
                assert_eq!(loaded.stats().total().nonzeros, expected, "{end}");
            }
            whole += usize::from(lived.stats().total().zero_fraction() == 0.0);
            let mut loaded = kernel(&budget, rewind);
            reload(&lived, &mut loaded);
            assert_eq!(budget.used(), lived.footprint().total() + loaded.footprint().total(), "{end}");
            let mut fork = lived.fork().unwrap();
            for kernel in [&mut *fork, &mut loaded, &mut lived] {
                let held_whole = kernel.stats().total().zero_fraction() == 0.0;
                kernel.truncate(end).unwrap();
                assert_eq!(kernel.stats().total().nonzeros, expected, "{end}");
                restored += usize::from(held_whole && kernel.stats().total().zero_fraction() > 0.0);
                let mut other = alone.fork().unwrap();
                let ends = one_by_one(end, ahead);
                assert_eq!(inputs.run(kernel, &ends), inputs.run(&mut *other, &ends), "{end}");
                kernel.truncate(end).unwrap();
            }
            drop((fork, loaded));
            assert_eq!(budget.used(), lived.footprint().total(), "{end}");
        }
    }
    assert!(whole > 30 && restored > 60, "{whole} {restored}");
    // Without a rewind there is nothing to go back to, and nothing is kept.
    let plain = MemoryBudget::unlimited();
    let mut plainly = kernel(&plain, 0);
    inputs(450).run(&mut plainly, &one_by_one(0, 600));
    assert_eq!(plainly.stats().total().zero_fraction(), 0.0, "whole");
    assert_eq!(plain.used(), plainly.footprint().total());
    let window = 5 * 16 * 64 * 2 * 2;
    assert!(plainly.footprint().window <= window, "{:?}", plainly.footprint());
}
