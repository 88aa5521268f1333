//! Sessions under a memory budget: planned before a call, kept at every step, and nothing lost at the limit.

mod common;

use std::sync::Arc;

use common::{
    files::fixture,
    models::{argmax, load_model, options},
};
use deltallm_attn::{
    AtLimit, AttentionError, AttentionKernel, AttentionOptions, DeltaAttention, DenseAttention, ExactWindow,
    HeadsView, HeadsViewMut, HybridAttention, HybridConfig, KernelKind, KernelSpec, KvStore, MemoryBudget,
    SparsityStats, ThresholdPolicy,
};
use deltallm_core::Footprint;
use deltallm_models::{Model, ModelError, ModelFile, Session};

const KINDS: [&str; 3] = ["dense", "delta", "hybrid"];
const PROMPT: [u32; 5] = [3, 14, 15, 9, 26];

fn model() -> Arc<Model> {
    let file = ModelFile::open(fixture("llama").join("gqa3-d64-llama3")).unwrap();
    Arc::new(load_model(file).unwrap())
}

fn session(model: &Arc<Model>, kind: &str, store: KvStore, budget: &MemoryBudget) -> Session {
    let options = options().store(store).budget(budget.clone());
    let policy = ThresholdPolicy::Uniform(0.1);
    Session::new(model.clone(), |layer| {
        Ok(match kind {
            "dense" => Box::new(DenseAttention::new(model.attention_shape(), options.clone())?)
                as Box<dyn AttentionKernel>,
            "delta" => Box::new(DeltaAttention::new(
                model.attention_shape(),
                policy.clone(),
                layer,
                options.clone(),
            )?),
            _ => {
                let window = ExactWindow::Sliding(20);
                let config = HybridConfig::new(policy.clone()).layer(layer).exact_window(window);
                Box::new(HybridAttention::new(
                    model.attention_shape(),
                    config.clone().options(options.clone()),
                )?)
            }
        })
    })
    .unwrap()
}

fn growth(session: &Session) -> usize {
    session.kernels().iter().map(|kernel| kernel.growth(1).unwrap()).sum()
}

/// Continues greedily until `len` tokens are cached or the session refuses, and returns the tokens and the refusal.
fn continue_to(session: &mut Session, budget: &MemoryBudget, len: usize) -> (Vec<u32>, Option<ModelError>) {
    let mut logits = session.prefill(&PROMPT).unwrap();
    let mut tokens = Vec::new();
    while session.tokens().len() < len {
        let token = argmax(logits.view());
        logits = match session.decode(token) {
            Ok(logits) => logits,
            Err(error) => return (tokens, Some(error)),
        };
        tokens.push(token);
        assert!(budget.limit().is_none_or(|limit| budget.used() <= limit));
        assert_eq!(session.footprint().total(), budget.used());
    }
    (tokens, None)
}

#[test]
fn narrowing_reaches_more_tokens_than_the_error_and_the_tokens_before_it_are_the_same() {
    let model = model();
    for kind in KINDS {
        // One byte less than token 129 takes.
        let free = MemoryBudget::unlimited();
        let mut unlimited = session(&model, kind, KvStore::F32, &free);
        let (expected, _) = continue_to(&mut unlimited, &free, 128);
        let limit = free.used() + growth(&unlimited) - 1;

        for at_limit in [AtLimit::Error, AtLimit::NarrowStore] {
            let budget = MemoryBudget::new(limit);
            let mut limited = session(&model, kind, KvStore::F32, &budget);
            limited.limit_memory(budget.clone(), at_limit).unwrap();
            let (tokens, error) = continue_to(&mut limited, &budget, 256);
            assert_eq!(tokens[..expected.len()], expected, "{kind}, {at_limit:?}");
            let (reached, narrowed) = (limited.tokens().len(), limited.narrowed());
            if at_limit == AtLimit::NarrowStore {
                assert!(reached > 128, "{kind}, {at_limit:?}: {reached} tokens");
                assert!(narrowed.times > 0 && narrowed.bytes > 0);
            } else {
                assert_eq!((reached, narrowed.times), (128, 0), "{kind}, {at_limit:?}");
            }
            let full = error.is_none_or(|error| error.is_budget_exhausted());
            assert!(full, "{kind}, {at_limit:?}");
        }
    }
}

#[test]
fn a_refused_token_costs_nothing_not_even_exact_keys() {
    let model = model();
    for kind in KINDS {
        // The narrowest stores have nothing to give.
        let store = if kind == "dense" { KvStore::Int8 } else { KvStore::Compact };
        let free = MemoryBudget::unlimited();
        let mut unlimited = session(&model, kind, store, &free);
        continue_to(&mut unlimited, &free, 64);

        let budget = MemoryBudget::new(free.used() + growth(&unlimited));
        let mut limited = session(&model, kind, store, &budget);
        limited.limit_memory(budget.clone(), AtLimit::NarrowStore).unwrap();
        continue_to(&mut limited, &budget, 64);
        let mut other = budget.reservation();
        other.grow(budget.available()).unwrap();
        let footprint = limited.footprint();
        for _ in 0..3 {
            let error = limited.decode(7).unwrap_err();
            assert!(error.is_budget_exhausted(), "{error}");
            assert!(limited.prefill_with(&[7, 8], |_| panic!("nothing must be computed")).is_err());
            assert_eq!((limited.footprint(), limited.tokens().len()), (footprint, 64));
        }
        drop(other);
        // Not to the bit: a budget that is nearly used up makes smaller chunks of the prompt, down to single tokens.
        let (got, expected) = (limited.decode(7).unwrap(), unlimited.decode(7).unwrap());
        assert!((&got - &expected).iter().all(|difference| difference.abs() < 1e-4), "{kind}");
        assert_eq!(limited.narrowed().times, 0);
    }
}

#[test]
fn a_prompt_is_read_in_smaller_chunks_before_anything_is_given_up() {
    let model = model();
    let prompt: Vec<u32> = (0..200).map(|t| (t * 37 + t * t / 5) % 80).collect();
    // What the prompt takes at most when it comes token by token.
    let free = MemoryBudget::unlimited();
    let mut unlimited = session(&model, "hybrid", KvStore::F16, &free);
    let (mut peak, mut expected) = (0, None);
    for token in &prompt {
        peak = peak.max(free.used() + growth(&unlimited));
        expected = Some(unlimited.decode(*token).unwrap());
    }
    // Larger chunks leave larger tables of pages behind.
    let limit = peak + 1000;
    let prefill = |at_limit| {
        let budget = MemoryBudget::new(limit);
        let mut limited = session(&model, "hybrid", KvStore::F16, &budget);
        limited.limit_memory(budget.clone(), at_limit).unwrap();
        let mut chunks = Vec::new();
        let result = limited.prefill_with(&prompt, |done| chunks.push(done));
        assert!(budget.used() <= limit);
        (result, chunks, limited.narrowed())
    };
    let (result, ..) = prefill(AtLimit::Error);
    assert!(result.unwrap_err().is_budget_exhausted(), "the copies of a whole chunk are too much");
    let (result, chunks, narrowed) = prefill(AtLimit::NarrowStore);
    assert_eq!(narrowed.times, 0);
    assert!(chunks.len() > 1 && chunks.last() == Some(&200), "{chunks:?}");
    for (got, expected) in result.unwrap().iter().zip(&expected.unwrap()) {
        // Sums in another order round single keys and values to another f16: 2e-4 with scalar code, 4e-6 in an f32 cache.
        assert!((got - expected).abs() <= 1e-3, "{got} {expected}");
    }
}

#[test]
fn an_empty_session_is_narrowed_when_the_first_token_would_not_fit() {
    let model = model();
    let wide = growth(&session(&model, "dense", KvStore::F32, &MemoryBudget::unlimited()));
    let budget = MemoryBudget::new(wide - 1);
    let mut limited = session(&model, "dense", KvStore::F32, &budget);
    limited.limit_memory(budget.clone(), AtLimit::NarrowStore).unwrap();
    limited.prefill(&PROMPT).unwrap();
    let error = continue_to(&mut limited, &budget, 256).1.unwrap();
    assert!(error.is_budget_exhausted(), "{error}");
    // Three pages of 8 bits instead of one of 32.
    assert_eq!(limited.tokens().len(), 192);
}

#[test]
fn tokens_that_are_refused_anyway_give_nothing_up() {
    let model = model();
    let budget = MemoryBudget::new(1);
    let mut limited = session(&model, "dense", KvStore::F32, &budget);
    limited.limit_memory(budget, AtLimit::NarrowStore).unwrap();
    assert!(matches!(limited.decode(80), Err(ModelError::TokenOutOfRange { .. })));
    assert!(matches!(limited.prefill(&[1; 257]), Err(ModelError::ContextFull { .. })));
    let wide = growth(&session(&model, "dense", KvStore::F32, &MemoryBudget::unlimited()));
    assert_eq!(growth(&limited), wide);
    assert!(limited.decode(1).unwrap_err().is_budget_exhausted());
}

/// Counts tokens, and does not know what that takes.
struct Unplanned(usize);

impl AttentionKernel for Unplanned {
    fn forward_heads(
        &mut self,
        _: HeadsView,
        k: HeadsView,
        _: HeadsView,
        _: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        self.0 += k.tokens();
        Ok(())
    }

    fn begin_prompt(&mut self, _: usize) {}

    fn len(&self) -> usize {
        self.0
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.0 = len;
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn stats(&self) -> SparsityStats {
        SparsityStats::default()
    }

    fn growth(&self, _: usize) -> Option<usize> {
        None
    }

    fn narrow(&mut self) -> Result<usize, AttentionError> {
        Ok(0)
    }
}

#[test]
fn a_kernel_that_does_not_know_its_growth_is_not_narrowed_in_silence() {
    let model = model();
    let budget = MemoryBudget::new(1 << 30);
    let options = AttentionOptions::default().isa(model.isa()).budget(budget.clone());
    let mixed = |layer| -> Result<Box<dyn AttentionKernel>, AttentionError> {
        Ok(if layer == 0 {
            Box::new(DenseAttention::new(model.attention_shape(), options.clone())?)
        } else {
            Box::new(Unplanned(0))
        })
    };
    let mut session = Session::new(model.clone(), mixed).unwrap();
    session.prefill(&PROMPT).unwrap();
    session.limit_memory(budget.clone(), AtLimit::NarrowStore).unwrap();
    for error in [session.decode(7).unwrap_err(), session.prefill(&PROMPT).unwrap_err()] {
        assert!(matches!(error, ModelError::UnknownGrowth { layer: 1 }), "{error}");
        assert!(!error.is_budget_exhausted());
    }
    assert_eq!((session.tokens().len(), session.kernels()[0].len()), (PROMPT.len(), PROMPT.len()));
    session.limit_memory(budget, AtLimit::Error).unwrap();
    session.decode(7).unwrap();
}

/// As [`session`], of f16 caches under a policy.
fn told(model: &Arc<Model>, kind: &str, budget: &MemoryBudget, at_limit: AtLimit) -> Session {
    let mut session = session(model, kind, KvStore::F16, budget);
    session.limit_memory(budget.clone(), at_limit).unwrap();
    session
}

/// Logits of tokens that come one by one.
fn decoded(session: &mut Session, tokens: impl IntoIterator<Item = u32>) -> Vec<f32> {
    tokens.into_iter().flat_map(|token| session.decode(token).unwrap()).collect()
}

#[test]
fn sessions_that_share_a_budget_decode_together_where_they_do_one_by_one() {
    let model = model();
    for kind in KINDS {
        // A little more than both take before token 129: the pages of one come in, those of the other do not.
        let free = MemoryBudget::unlimited();
        let mut unlimited = session(&model, kind, KvStore::F16, &free);
        decoded(&mut unlimited, (0..128).map(|t| t % 80));
        let limit = 2 * free.used() + growth(&unlimited);
        let pair = || {
            let budget = MemoryBudget::new(limit);
            let mut pair = [(); 2].map(|()| told(&model, kind, &budget, AtLimit::NarrowStore));
            for session in &mut pair {
                decoded(session, (0..128).map(|t| t % 80));
                assert_eq!(session.narrowed().times, 0, "{kind}");
            }
            (budget, pair)
        };
        let (_budget, [mut a, mut b]) = pair();
        let alone = [a.decode(1).unwrap(), b.decode(2).unwrap()];
        let narrowed = [&a, &b].map(|session| session.narrowed().times);
        let (budget, [mut a, mut b]) = pair();
        let together = Session::decode_together(&mut [(&mut a, 1), (&mut b, 2)]).unwrap();
        assert_eq!([&a, &b].map(|session| session.narrowed().times), narrowed, "{kind}");
        assert!(narrowed == [0, 1] && budget.used() <= limit, "{kind}: {narrowed:?}");
        for (together, alone) in together.iter().zip(&alone) {
            assert!((together - alone).iter().all(|difference| difference.abs() < 1e-4), "{kind}");
        }
    }
}

#[test]
fn a_session_with_nothing_to_give_is_helped_by_others_of_its_budget_and_by_no_stranger() {
    let model = model();
    // A page is full, so that every one of them needs another.
    let full = |store, budget: &MemoryBudget| {
        let mut session = session(&model, "dense", store, budget);
        session.limit_memory(budget.clone(), AtLimit::NarrowStore).unwrap();
        decoded(&mut session, (0..64).map(|t| t % 80));
        session
    };
    for wide_first in [false, true] {
        let budget = MemoryBudget::new(1 << 30);
        let (mut small, mut wide) = (full(KvStore::Int8, &budget), full(KvStore::F32, &budget));
        let mut other = budget.reservation();
        // The first one in the batch that is refused is the small one.
        let left = if wide_first { growth(&wide) } else { 0 };
        other.grow(budget.available() - left).unwrap();
        let mut batch = [(&mut small, 1), (&mut wide, 2)];
        if wide_first {
            batch.reverse();
        }
        Session::decode_together(&mut batch).unwrap();
        assert_eq!((small.narrowed().times, small.tokens().len()), (0, 65));
        assert!(wide.narrowed().times > 0 && wide.tokens().len() == 65);
    }
    let [budget, elsewhere] = [(); 2].map(|()| MemoryBudget::new(1 << 30));
    let (mut small, mut stranger) = (full(KvStore::Int8, &budget), full(KvStore::F32, &elsewhere));
    let mut other = budget.reservation();
    other.grow(budget.available()).unwrap();
    let refused = Session::decode_together(&mut [(&mut small, 1), (&mut stranger, 2)]);
    assert!(refused.unwrap_err().is_budget_exhausted());
    assert_eq!((stranger.narrowed().times, stranger.tokens().len()), (0, 64));
}

#[test]
fn a_step_that_fails_in_a_later_layer_is_taken_back_from_all_sessions_without_a_trace() {
    let model = model();
    for kind in KINDS {
        for store in [KvStore::F32, KvStore::F16, KvStore::Compact] {
            // At 64 tokens a block begins, and a page of the window of 20 keys is let go: exact keys that a later query needs if the
            // token is taken back.
            for len in [64, 80, 96, 128, 320, 336] {
                if (kind, store) == ("dense", KvStore::Compact) || len > model.config().context_length - 40 {
                    continue;
                }
                let (budget, free) = (MemoryBudget::new(1 << 30), MemoryBudget::unlimited());
                let prompt = || (0..len as u32).map(|t| (t * 37 + t * t / 5) % 80);
                let mut first = session(&model, kind, store, &budget);
                let mut second = session(&model, kind, store, &budget);
                let mut untouched = session(&model, kind, store, &free);
                for session in [&mut first, &mut second, &mut untouched] {
                    decoded(session, prompt());
                }
                // Of what both need there is one byte too little: all fails but in the last layer of one of them.
                let needed = growth(&first) + growth(&second);
                let mut other = budget.reservation();
                other.grow(budget.available() - needed.saturating_sub(1)).unwrap();
                let result = Session::decode_together(&mut [(&mut first, 1), (&mut second, 2)]);
                assert_eq!(result.is_err(), needed > 0, "{kind}, {store}, {len}");
                if needed == 0 {
                    continue;
                }
                assert_eq!([&first, &second].map(|session| session.tokens().len()), [len; 2]);
                let held = first.footprint().total() + second.footprint().total();
                assert_eq!(budget.used(), held + other.bytes(), "{kind}, {store}, {len}");
                drop(other);
                let next = || (0..30).map(|t| (t * 7 + 3) % 80);
                let expected = decoded(&mut untouched, next());
                for session in [&mut first, &mut second] {
                    assert_eq!(decoded(session, next()), expected, "{kind}, {store}, {len}");
                }
            }
        }
    }
}

#[test]
fn a_budget_that_the_kernels_do_not_charge_is_refused() {
    let model = model();
    for kind in KINDS {
        let budget = MemoryBudget::new(1 << 20);
        let mut session = session(&model, kind, KvStore::F16, &budget);
        let error = session.limit_memory(MemoryBudget::new(1 << 20), AtLimit::NarrowStore).unwrap_err();
        assert!(matches!(error, ModelError::OtherBudget { layer: 0 }), "{error}");
        session.limit_memory(budget, AtLimit::NarrowStore).unwrap();
    }
}

/// A model two of whose three layers see 24 tokens.
fn windowed() -> Arc<Model> {
    let file = ModelFile::open(fixture("qwen2").join("window")).unwrap();
    Arc::new(load_model(file).unwrap())
}

fn tokens(model: &Model, count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * i % 89 % model.config().vocab_size) as u32).collect()
}

#[test]
fn a_rewind_that_a_window_refuses_leaves_every_layer_as_it_was() {
    let model = windowed();
    let tokens = tokens(&model, 140);
    for store in [KvStore::F32, KvStore::Compact] {
        let spec = KernelSpec::default().store(store);
        let [mut session, mut alone] = [(); 2].map(|()| Session::with_spec(model.clone(), &spec).unwrap());
        session.prefill(&tokens[..128]).unwrap();
        alone.prefill(&tokens[..128]).unwrap();
        let error = session.rewind(30).unwrap_err();
        assert!(
            matches!(error, ModelError::Attention { layer: 1, source: AttentionError::Dropped { .. } }),
            "{error}"
        );
        assert_eq!(session.tokens(), &tokens[..128]);
        for token in &tokens[128..] {
            assert_eq!(session.decode(*token).unwrap(), alone.decode(*token).unwrap(), "{store}");
        }
        session.rewind(0).unwrap();
    }
}

#[test]
fn a_prompt_that_memory_ends_in_leaves_what_was_there_before_in_windows_too() {
    let model = windowed();
    let tokens = tokens(&model, 230);
    let mut refused = 0;
    let spec = |kernel, store| KernelSpec::default().kernel(kernel).store(store);
    let specs = [
        spec(KernelKind::Dense, KvStore::F32),
        spec(KernelKind::Dense, KvStore::Int8),
        spec(KernelKind::Hybrid, KvStore::Compact),
    ];
    for spec in specs {
        for limit in (20_000..400_000).step_by(7_000) {
            let budget = MemoryBudget::new(limit);
            let context = model.kernel_context().budget(budget.clone());
            let mut session = Session::new(model.clone(), |layer| spec.build(layer, &context)).unwrap();
            session.set_chunk(64);
            if session.prefill(&tokens[..10]).is_err() {
                continue;
            }
            let Err(error) = session.prefill(&tokens[10..210]) else { break };
            assert!(error.is_budget_exhausted(), "{limit}: {error}");
            assert_eq!(session.tokens(), &tokens[..10], "{limit}");
            refused += 1;
            let mut alone = Session::with_spec(model.clone(), &spec).unwrap();
            alone.prefill(&tokens[..10]).unwrap();
            for token in &tokens[10..16] {
                match session.decode(*token) {
                    // Of hybrid attention windows come back, but not what has been coded meanwhile.
                    Ok(logits) if spec.kernel == KernelKind::Dense => {
                        assert_eq!(logits, alone.decode(*token).unwrap(), "{limit}");
                    }
                    Ok(_) => {}
                    Err(error) => assert!(error.is_budget_exhausted(), "{limit}: {error}"),
                }
            }
        }
    }
    assert!(refused > 10, "{refused}");
}
