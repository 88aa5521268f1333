//! Kernels that share a budget, through any sequence of calls: the budget has been charged what they hold, no call fails for want of
//! what its growth said, and what has failed or been taken back leaves no trace.

mod common;

use common::{Inputs, isa};
use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    ExactWindow, HeadsView, HeadsViewMut, HybridAttention, HybridConfig, KvStore, MemoryBudget, SkipMargin,
    ThresholdPolicy,
};
use deltallm_core::CoreError;
use deltallm_testing::Random;

const MOST_TOKENS: usize = 500;

/// A kernel that draws on the shared budget, and one that only ever sees what succeeds.
struct Member {
    kernel: Box<dyn AttentionKernel>,
    shadow: Box<dyn AttentionKernel>,
    inputs: Inputs,
}

/// Any kernel, with a budget of its own and with the shared one.
fn kernels(random: &mut Random, budget: &MemoryBudget) -> Member {
    let kv_heads = 1 + random.below(2);
    let head_dim = [1, 2, 8, 33, 64][random.below(5)];
    let shape = AttentionShape::new(kv_heads * (1 + random.below(2)), kv_heads, head_dim).unwrap();
    let (kind, store) = (random.below(5), KvStore::ALL[random.below(KvStore::ALL.len())]);
    let policy = ThresholdPolicy::Uniform([0.0, 0.1, 0.4, 1.0][random.below(4)]);
    let window = match random.below(4) {
        0 => ExactWindow::Block { scale: 0.2 },
        keys => ExactWindow::Sliding([1, 5, 40][keys - 1]),
    };
    let sinks = [0, 3, 20][random.below(3)];
    let exact_prompt = [0, 30][random.below(2)];
    let codes_from = [None, Some(0), Some(100)][random.below(3)];
    let config = HybridConfig::new(policy.clone())
        .exact_window(window)
        .exact_sinks(sinks)
        .exact_prompt(exact_prompt)
        .codes_from(codes_from)
        .skip_margin((random.below(3) == 0).then_some(SkipMargin::Fixed(3.0)));
    let kernel = |budget: MemoryBudget| -> Box<dyn AttentionKernel> {
        let options =
            |store| AttentionOptions::default().store(store).isa(isa()).budget(budget).parallel(false);
        match (kind, store) {
            (0, store) => Box::new(DenseAttention::new(shape, options(store.dense())).unwrap()),
            (1, store) if store.is_delta() => {
                Box::new(DeltaAttention::new(shape, policy.clone(), 0, options(store)).unwrap())
            }
            (_, store) => {
                Box::new(HybridAttention::new(shape, config.clone().options(options(store))).unwrap())
            }
        }
    };
    Member {
        kernel: kernel(budget.clone()),
        shadow: kernel(MemoryBudget::unlimited()),
        inputs: Inputs::new(shape, MOST_TOKENS, random.bits()),
    }
}

impl Member {
    /// Tokens that the next call may have, at most `most`.
    fn room(&self, most: usize) -> usize {
        most.min(MOST_TOKENS - self.kernel.len())
    }

    /// Appends tokens; both kernels answer the same, or one alone is refused: only where its growth said so.
    fn append(&mut self, tokens: usize, budget: &MemoryBudget) -> Result<(), AttentionError> {
        let (used, available) = (budget.used(), budget.available());
        let (end, growth) = (self.kernel.len() + tokens, self.kernel.growth(tokens).unwrap());
        let result = self.inputs.call(&mut *self.kernel, end);
        if result.is_ok() {
            assert!(budget.used() <= used + growth, "{} after {used} + {growth}", budget.used());
        } else {
            assert!(result.as_ref().is_err_and(is_exhausted) && growth > available, "{growth}, {available}");
        }
        let (out, expected) = (result?, self.follow(tokens));
        assert!(out == expected, "{out:?} is not {expected:?}");
        Ok(())
    }

    fn follow(&mut self, tokens: usize) -> Vec<f32> {
        let end = self.shadow.len() + tokens;
        self.inputs.call(&mut *self.shadow, end).unwrap()
    }
}

fn is_exhausted(error: &AttentionError) -> bool {
    matches!(error, AttentionError::Core(CoreError::BudgetExhausted { .. }))
}

/// A sequence of steps; returns how many calls the budget refused.
fn run(seed: u64, steps: usize) -> usize {
    let mut random = Random::scattered(seed);
    let budget = MemoryBudget::new([200_000, 2_000_000][random.below(2)]);
    let mut members: Vec<_> = (0..3).map(|_| kernels(&mut random, &budget)).collect();
    let mut refused = 0;
    for step in 0..steps {
        let index = random.below(members.len());
        let held = |members: &[Member]| -> usize {
            members.iter().map(|member| member.kernel.footprint().total()).sum()
        };
        let before = held(&members);
        let member = &mut members[index];
        let kind = random.below(14);
        // What is read where something fails.
        println!("seed {seed}, step {step}: {kind} of {index}, {} tokens", member.kernel.len());
        match kind {
            0..5 => {
                let tokens = member.room(if kind < 3 { 1 } else { 1 + random.below(90) });
                if tokens > 0 {
                    refused += usize::from(member.append(tokens, &budget).is_err());
                }
            }
            // A prompt, in one call or in several.
            5 => {
                let tokens = member.room(1 + random.below(120));
                member.kernel.begin_prompt(tokens);
                member.shadow.begin_prompt(tokens);
                let mut left = tokens;
                while left > 0 {
                    let part = 1 + random.below(left);
                    if member.append(part, &budget).is_err() {
                        refused += 1;
                        break;
                    }
                    left -= part;
                }
            }
            6 => {
                let len = random.below(member.kernel.len() + 1);
                member.kernel.truncate(len).unwrap();
                member.shadow.truncate(len).unwrap();
            }
            7 if random.below(4) == 0 => {
                let used = budget.used();
                let freed = member.kernel.narrow().unwrap();
                assert_eq!(used - freed, budget.used());
                // Whether the compact store is the smaller one depends on what is held, tables that have grown included.
                if (freed > 0) != (member.shadow.narrow().unwrap() > 0) {
                    members[index] = kernels(&mut random, &budget);
                }
            }
            // Something else has taken nearly all there is.
            8..10 => {
                let tokens = member.room(1 + random.below(3) * random.below(60));
                let growth = if tokens == 0 { 0 } else { member.kernel.growth(tokens).unwrap() };
                if growth > 0 {
                    let mut other = budget.reservation();
                    let left = random.below(growth).min(budget.available());
                    other.grow(budget.available() - left).unwrap();
                    refused += usize::from(member.append(tokens, &budget).is_err());
                }
            }
            10 => {
                let mut bad = member.inputs.k.clone();
                let at = member.kernel.len()
                    * member.inputs.kv(&bad, 0..0).heads()
                    * member.inputs.shape.head_dim();
                if member.room(1) > 0 {
                    bad[at] = [f32::NAN, f32::INFINITY][random.below(2)];
                    let mut out = vec![0.0; member.inputs.q_row()];
                    let of = [1, member.inputs.shape.heads(), member.inputs.shape.head_dim()];
                    let token = member.kernel.len()..member.kernel.len() + 1;
                    let (q, k) = (member.inputs.q(token.clone()), member.inputs.kv(&bad, token.clone()));
                    let v = member.inputs.kv(&member.inputs.v, token);
                    let out = HeadsViewMut::new(&mut out, of).unwrap();
                    assert!(member.kernel.forward_heads(q, k, v, out).is_err());
                    assert_eq!(before, held(&members));
                }
            }
            11 => {
                let (q, mut out) = ([0.0; 3], [0.0; 3]);
                let q = HeadsView::new(&q, [1, 1, 3]).unwrap();
                let out = HeadsViewMut::new(&mut out, [1, 1, 3]).unwrap();
                assert!(member.kernel.forward_heads(q, q, q, out).is_err());
                assert_eq!(before, held(&members));
            }
            // All layers take a step, and all stand or none.
            12 => {
                let stands = random.below(2) == 0;
                let lens: Vec<_> = members.iter().map(|member| member.kernel.len()).collect();
                let tokens = 1 + random.below(2) * random.below(40);
                let announced = (random.below(2) == 0).then_some(2 * tokens);
                for member in &mut members {
                    member.kernel.begin_step();
                    announced.into_iter().for_each(|tokens| member.kernel.begin_prompt(tokens));
                }
                let mut failed = false;
                for member in &mut members {
                    let tokens = member.room(tokens);
                    let end = member.kernel.len() + tokens;
                    failed |= tokens == 0 || member.inputs.call(&mut *member.kernel, end).is_err();
                    if failed {
                        break;
                    }
                }
                for (member, len) in members.iter_mut().zip(&lens) {
                    if failed || !stands {
                        member.kernel.undo_step(*len).unwrap();
                    } else {
                        member.kernel.commit_step();
                        announced.into_iter().for_each(|tokens| member.shadow.begin_prompt(tokens));
                        member.follow(member.kernel.len() - len);
                    }
                }
            }
            13 if random.below(4) == 0 => members[index] = kernels(&mut random, &budget),
            _ => {}
        }
        assert_eq!(budget.used(), held(&members), "seed {seed}, step {step}, {kind}");
        assert!(members.iter().all(|member| member.kernel.len() == member.shadow.len()));
    }
    drop(members);
    assert_eq!(budget.used(), 0);
    refused
}

#[test]
fn kernels_that_share_a_budget_hold_what_it_was_charged_after_any_steps() {
    let refused: usize = (0..300).map(|seed| run(seed, 60)).sum();
    assert!(refused > 300, "{refused}");
}

#[test]
fn keys_that_become_whole_in_a_call_that_fails_are_deltas_again() {
    run(1283, 40);
}

/// `DELTALLM_SEED` begins elsewhere.
#[test]
#[ignore = "minutes"]
fn kernels_that_share_a_budget_hold_what_it_was_charged_after_many_steps() {
    let first = std::env::var("DELTALLM_SEED").map_or(1000, |seed| seed.parse().unwrap());
    (first..first + 3000).for_each(|seed| {
        run(seed, 150);
    });
}
