//! Forks: both sides answer, bit for bit, what a kernel answers that has been alone all the time, and memory is charged once.

use std::io::Cursor;

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    HybridAttention, HybridConfig, KvStore, Mask, MemoryBudget, ThresholdPolicy,
};
use deltallm_core::{CoreError, SnapshotWriter};
use proptest::prelude::*;

mod common;

use common::{Inputs, options};

/// Every kernel that takes the store of these options.
fn kernels(options: &AttentionOptions) -> Vec<Box<dyn AttentionKernel>> {
    let (shape, policy) = (shape(), ThresholdPolicy::Uniform(0.3));
    let config = HybridConfig::new(policy.clone()).options(options.clone());
    let dense = DenseAttention::new(shape, options.clone()).map(|kernel| Box::new(kernel) as _);
    let delta = DeltaAttention::new(shape, policy, 0, options.clone()).map(|kernel| Box::new(kernel) as _);
    let hybrid = HybridAttention::new(shape, config).map(|kernel| Box::new(kernel) as _);
    [dense, delta, hybrid].into_iter().filter_map(Result::ok).collect()
}

/// One of these, without tokens.
fn fresh(options: &AttentionOptions, number: usize) -> Box<dyn AttentionKernel> {
    kernels(options).swap_remove(number)
}

fn shape() -> AttentionShape {
    AttentionShape::new(4, 2, 16).unwrap()
}

/// Inputs that are the same up to token `common`.
fn branches(common: usize, tokens: usize, seed: u64) -> [Inputs; 2] {
    let (first, mut second) =
        (Inputs::new(shape(), tokens, seed), Inputs::new(shape(), tokens, seed.wrapping_add(1)));
    for (of, from) in [(&mut second.q, &first.q), (&mut second.k, &first.k), (&mut second.v, &first.v)] {
        let numbers = from.len() / tokens * common;
        of[..numbers].copy_from_slice(&from[..numbers]);
    }
    [first, second]
}

/// All lengths from `from` on, up to `to`.
fn one_by_one(from: usize, to: usize) -> Vec<usize> {
    (from + 1..=to).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(24)))]

    #[test]
    fn both_sides_go_on_as_if_they_were_alone(
        at in 1_usize..400, cut in 0_usize..100, more in 1_usize..150, whole: bool, seed: u64,
        window in prop_oneof![Just(None), Just(Some(100))],
    ) {
        let end = at + more;
        let [ours, theirs] = branches(at, end, seed);
        for store in KvStore::ALL {
            let mask = window.map_or(Mask::Causal, Mask::SlidingWindow);
            let budget = MemoryBudget::unlimited();
            let options = options().store(store).mask(mask);
            let pairs = kernels(&options.clone().budget(budget.clone())).into_iter().zip(kernels(&options));
            for (kernel, (mut kernel_, mut alone)) in pairs.enumerate() {
                let what = format!("kernel {kernel}, {store}, {at}, {cut}, {more}");
                let ends = if whole { vec![end] } else { one_by_one(at, end) };
                ours.run(&mut *kernel_, &[at]);
                let held = budget.used();
                let mut fork = kernel_.fork().unwrap();
                prop_assert_eq!((fork.len(), budget.used()), (at, held), "{}", what);
                // What it grows by is known beforehand, copies of pages included.
                let growth = fork.growth(1).unwrap();
                theirs.run(&mut *fork, &[at + 1]);
                prop_assert!(budget.used() - held <= growth, "{what}: {} > {growth}", budget.used() - held);
                prop_assert_eq!(kernel_.len(), at);

                // Turn by turn, so that each writes into what the other may have.
                let got = ours.run(&mut *kernel_, &ends);
                ours.run(&mut *alone, &[at]);
                prop_assert_eq!(&got, &ours.run(&mut *alone, &ends), "{}", what);
                prop_assert_eq!(budget.used() <= kernel_.footprint().total() + fork.footprint().total(), true);

                let mut lonely = fresh(&options, kernel);
                theirs.run(&mut *lonely, &[at]);
                theirs.run(&mut *lonely, &[at + 1]);
                let back = (at + 1).saturating_sub(cut).max(1);
                if fork.truncate(back).is_ok() {
                    lonely.truncate(back).unwrap();
                    prop_assert_eq!(theirs.run(&mut *fork, &one_by_one(back, end)), theirs.run(&mut *lonely, &one_by_one(back, end)), "{}", what);
                }
                drop(kernel_);
                prop_assert_eq!(budget.used(), fork.footprint().total(), "{}", what);
                drop(fork);
                prop_assert_eq!(budget.used(), 0);
            }
        }
    }
}

#[test]
fn samples_of_a_prompt_share_its_memory() {
    let inputs = Inputs::new(shape(), 1100, 1);
    for store in KvStore::ALL {
        let budget = MemoryBudget::unlimited();
        for mut kernel in kernels(&options().store(store).budget(budget.clone())) {
            inputs.run(&mut *kernel, &[1024]);
            let one = budget.used();
            let mut forks: Vec<_> = (0..8).map(|_| kernel.fork().unwrap()).collect();
            for fork in &mut forks {
                inputs.run(&mut **fork, &one_by_one(1024, 1025));
            }
            // Copies would make it nine times as much.
            assert!(budget.used() < 3 * one, "{store}: {} and {one}", budget.used());
            drop(forks);
            assert_eq!(budget.used(), one);
        }
    }
}

#[test]
fn a_fork_of_a_fork_outlives_both() {
    let inputs = Inputs::new(shape(), 400, 2);
    for store in KvStore::ALL {
        for (mut kernel, mut alone) in
            kernels(&options().store(store)).into_iter().zip(kernels(&options().store(store)))
        {
            inputs.run(&mut *kernel, &[200]);
            let mut fork = kernel.fork().unwrap();
            inputs.run(&mut *fork, &[300]);
            let mut last = fork.fork().unwrap();
            drop((kernel, fork));
            inputs.run(&mut *alone, &[200, 300]);
            assert_eq!(inputs.run(&mut *last, &[350, 400]), inputs.run(&mut *alone, &[350, 400]), "{store}");
        }
    }
}

#[test]
fn what_the_budget_does_not_cover_leaves_both_as_they_were() {
    let inputs = Inputs::new(shape(), 400, 3);
    for store in KvStore::ALL {
        let budget = MemoryBudget::new(1 << 30);
        for (number, mut kernel) in
            kernels(&options().store(store).budget(budget.clone())).into_iter().enumerate()
        {
            inputs.run(&mut *kernel, &[300]);
            let mut others = budget.reservation();
            others.grow(budget.available() - 100).unwrap();
            let (held, mut fork) = (budget.used(), kernel.fork().unwrap());
            let error = inputs.call(&mut *fork, 301).unwrap_err();
            assert!(matches!(error, AttentionError::Core(CoreError::BudgetExhausted { .. })), "{error}");
            let error = fork.truncate(299).unwrap_err();
            assert!(matches!(error, AttentionError::Core(CoreError::BudgetExhausted { .. })), "{error}");
            assert_eq!(
                (fork.len(), kernel.len(), budget.used()),
                (300, 300, held),
                "kernel {number}, {store}"
            );
            drop(kernel);
            fork.truncate(299).unwrap();
        }
    }
}

#[test]
fn a_step_is_taken_back_in_a_fork_alone() {
    let inputs = Inputs::new(shape(), 400, 4);
    for store in KvStore::ALL {
        for (mut kernel, mut alone) in
            kernels(&options().store(store)).into_iter().zip(kernels(&options().store(store)))
        {
            inputs.run(&mut *kernel, &[300]);
            inputs.run(&mut *alone, &[300]);
            let mut fork = kernel.fork().unwrap();
            fork.begin_step();
            inputs.run(&mut *fork, &[390]);
            fork.undo_step(300).unwrap();
            let expected = inputs.run(&mut *alone, &one_by_one(300, 400));
            assert_eq!(inputs.run(&mut *fork, &one_by_one(300, 400)), expected, "{store}");
            assert_eq!(inputs.run(&mut *kernel, &one_by_one(300, 400)), expected, "{store}");
        }
    }
}

#[test]
fn narrowing_a_fork_leaves_the_other_alone() {
    let inputs = Inputs::new(shape(), 400, 5);
    for (number, mut kernel) in kernels(&options()).into_iter().enumerate() {
        let mut alone = fresh(&options(), number);
        inputs.run(&mut *kernel, &[300]);
        inputs.run(&mut *alone, &[300]);
        let mut fork = kernel.fork().unwrap();
        fork.narrow().unwrap();
        fork.narrow().unwrap();
        alone.narrow().unwrap();
        alone.narrow().unwrap();
        assert_eq!(inputs.run(&mut *fork, &[350]), inputs.run(&mut *alone, &[350]));
        let mut wide = fresh(&options(), number);
        inputs.run(&mut *wide, &[300]);
        assert_eq!(inputs.run(&mut *kernel, &[350]), inputs.run(&mut *wide, &[350]));
    }
}

/// Whatever is left of the budget when a fork goes on: it says that it is too little, or answers as it should, and what it refuses leaves no
/// trace. The parent holds on to everything, so a fork has to pay for all that replaces something.
#[test]
fn a_fork_at_the_limit_answers_as_it_should_or_refuses() {
    let (at, end) = (250, 262);
    let inputs = Inputs::new(shape(), end, 6);
    let mut refused = 0;
    for store in KvStore::ALL {
        let budget = MemoryBudget::new(1 << 24);
        for (number, mut kernel) in
            kernels(&options().store(store).budget(budget.clone())).into_iter().enumerate()
        {
            inputs.run(&mut *kernel, &[at]);
            let mut alone = fresh(&options().store(store), number);
            inputs.run(&mut *alone, &[at]);
            let expected = inputs.run(&mut *alone, &one_by_one(at, end));
            let row = expected.len() / (end - at);
            for left in (0..60_000).step_by(997) {
                let mut fork = kernel.fork().unwrap();
                let mut others = budget.reservation();
                others.grow(budget.available() - left).unwrap();
                while fork.len() < end {
                    let (before, growth) = (fork.len(), fork.growth(1).unwrap());
                    let available = budget.available();
                    match inputs.call(&mut *fork, before + 1) {
                        Ok(out) => assert_eq!(out, expected[(before - at) * row..][..row], "{store}, {left}"),
                        Err(error) => {
                            assert!(growth > available, "{store}, {left}: {error}");
                            others.shrink(usize::MAX);
                            refused += 1;
                        }
                    }
                }
                others.shrink(usize::MAX);
                fork.truncate(end - 1).unwrap();
                let again = inputs.run(&mut *fork, &[end]);
                assert!(again.iter().all(|x| x.is_finite()));
            }
            assert_eq!(budget.used(), kernel.footprint().total(), "{store}");
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_fork_that_cannot_be_narrowed_is_not_narrowed_in_part() {
    let inputs = Inputs::new(shape(), 310, 7);
    let saved = |kernel: &dyn AttentionKernel| {
        let (mut writer, mut file) = (SnapshotWriter::new(), Cursor::new(Vec::new()));
        kernel.save(&mut writer).unwrap();
        writer.write(&mut file).unwrap();
        file.into_inner()
    };
    let mut refused = 0;
    for store in [KvStore::F32, KvStore::F16] {
        let budget = MemoryBudget::new(1 << 24);
        for mut kernel in kernels(&options().store(store).budget(budget.clone())) {
            inputs.run(&mut *kernel, &[300]);
            let file = saved(&*kernel);
            for left in (0..120_000).step_by(2003) {
                let mut fork = kernel.fork().unwrap();
                let mut others = budget.reservation();
                others.grow(budget.available() - left).unwrap();
                let used = budget.used();
                if fork.narrow().is_err() {
                    refused += 1;
                    assert_eq!((saved(&*fork), budget.used()), (file.clone(), used), "{store}, {left}");
                } else {
                    drop(others);
                    inputs.run(&mut *fork, &[310]);
                }
                assert_eq!(saved(&*kernel), file);
            }
            assert_eq!(budget.used(), kernel.footprint().total());
        }
    }
    assert!(refused > 20, "{refused}");
}

/// A step that cannot be taken back for want of memory can be taken back later.
#[test]
fn a_step_stays_open_where_taking_it_back_is_refused() {
    let inputs = Inputs::new(shape(), 400, 11);
    let mut refusals = 0;
    for store in KvStore::ALL {
        let budget = MemoryBudget::new(1 << 24);
        for (number, mut kernel) in
            kernels(&options().store(store).budget(budget.clone())).into_iter().enumerate()
        {
            let mut alone = fresh(&options().store(store), number);
            inputs.run(&mut *kernel, &[290]);
            inputs.run(&mut *alone, &[290]);
            kernel.begin_step();
            inputs.run(&mut *kernel, &[390]);
            let fork = kernel.fork().unwrap();
            let mut others = budget.reservation();
            others.grow(budget.available()).unwrap();
            let refused = kernel.undo_step(290).is_err();
            drop((others, fork));
            if refused {
                refusals += 1;
                kernel.undo_step(290).unwrap();
            }
            let ends = one_by_one(290, 400);
            assert_eq!(inputs.run(&mut *kernel, &ends), inputs.run(&mut *alone, &ends), "{number}, {store}");
        }
    }
    assert!(refusals > 5, "{refusals}");
}

/// Whatever memory is there for a fork's copies: keys and values go on side by side.
#[test]
fn a_dense_fork_copies_keys_and_values_or_neither() {
    let inputs = Inputs::new(shape(), 400, 10);
    let mask = Mask::SlidingWindow(100);
    for left in (0..3000).step_by(8) {
        let budget = MemoryBudget::new(1 << 24);
        let mut kernel = DenseAttention::new(shape(), options().mask(mask).budget(budget.clone())).unwrap();
        kernel.begin_step();
        inputs.run(&mut kernel, &[300]);
        let fork = kernel.fork().unwrap();
        let mut others = budget.reservation();
        others.grow(budget.available() - left).unwrap();
        let _ = kernel.detach();
        kernel.commit_step();
        drop((fork, others));
        if kernel.truncate(150).is_ok() {
            let mut alone = DenseAttention::new(shape(), options().mask(mask)).unwrap();
            inputs.run(&mut alone, &[150]);
            assert_eq!(inputs.run(&mut kernel, &[151, 160]), inputs.run(&mut alone, &[151, 160]), "{left}");
        }
    }
}

/// Where codes begin, those of a fork are charged in full: the parent holds on to what they replace.
#[test]
fn growth_covers_codes_that_begin_in_a_fork() {
    let inputs = Inputs::new(shape(), 900, 9);
    for store in [KvStore::Int8, KvStore::Compact] {
        for (rewind, mask) in [0, 16, 200]
            .into_iter()
            .flat_map(|rewind| [(rewind, Mask::Causal), (rewind, Mask::SlidingWindow(400))])
        {
            let budget = MemoryBudget::unlimited();
            let options = options().store(store).mask(mask).exact_rewind(rewind).budget(budget.clone());
            for (number, mut kernel) in kernels(&options).into_iter().enumerate() {
                while kernel.len() < 890 {
                    let len = kernel.len();
                    for tokens in [1, 2, 9] {
                        let mut fork = kernel.fork().unwrap();
                        let (growth, used) = (fork.growth(tokens).unwrap(), budget.used());
                        inputs.run(&mut *fork, &[len + tokens]);
                        let more = budget.used() - used;
                        assert!(
                            more <= growth,
                            "kernel {number}, {store}, {rewind}, {len} + {tokens}: {more} > {growth}"
                        );
                    }
                    inputs.run(&mut *kernel, &[len + 1]);
                }
            }
        }
    }
}

/// Keys that rest, and then jump about so that their deltas take more than whole keys.
#[test]
fn growth_covers_keys_that_become_whole_in_a_fork() {
    let mut inputs = Inputs::new(shape(), 1000, 8);
    let width = inputs.k.len() / inputs.tokens;
    inputs.k[..400 * width].fill(0.5);
    inputs.k[400 * width..].iter_mut().for_each(|x| *x *= 1e4);
    let budget = MemoryBudget::unlimited();
    let options = options().store(KvStore::Compact).budget(budget.clone());
    let mut kernel = fresh(&options, 1);
    inputs.run(&mut *kernel, &[400]);
    let mut whole = 0;
    while kernel.len() < 1000 {
        let next = kernel.len() + 1;
        let mut fork = kernel.fork().unwrap();
        fork.detach().unwrap();
        let (growth, used) = (fork.growth(1).unwrap(), budget.used());
        inputs.run(&mut *fork, &[next]);
        let more = budget.used().saturating_sub(used);
        assert!(more <= growth, "{next}: {more} > {growth}");
        whole += usize::from(more > 4000);
        drop(fork);
        inputs.run(&mut *kernel, &[next]);
    }
    assert!(whole > 0);
}
