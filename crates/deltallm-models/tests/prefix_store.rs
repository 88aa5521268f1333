//! Prompts that begin alike are read once, with the answers of sessions that have read everything themselves, within a budget.

use std::sync::Arc;

use deltallm_attn::{ExactWindow, KernelContext, KernelKind, KernelSpec, KvStore, MemoryBudget};
use deltallm_models::{Model, ModelFile, PrefixStore, Session};
use deltallm_testing::Random;

const CHUNK: usize = 64;

fn model() -> Arc<Model> {
    let file = ModelFile::open("../deltallm-cli/assets/fairy-tales.gguf").unwrap();
    Arc::new(Model::load(&file).unwrap())
}

fn context(model: &Model, budget: &MemoryBudget) -> KernelContext {
    model.kernel_context().budget(budget.clone())
}

fn store(model: &Arc<Model>, spec: &KernelSpec, budget: &MemoryBudget) -> PrefixStore {
    PrefixStore::new(model.clone(), spec.clone(), context(model, budget)).unwrap().chunk(CHUNK)
}

fn alone(model: &Arc<Model>, spec: &KernelSpec) -> Session {
    let mut session = Session::with_spec(model.clone(), spec).unwrap();
    session.set_chunk(CHUNK);
    session
}

/// Tokens of one of some texts that begin alike in pairs.
fn prompt(text: usize, tokens: usize) -> Vec<u32> {
    let word = |t: usize| (7 + t * t % 500 + if t > 150 { 13 * text } else { 5 * (text / 2) }) as u32;
    (0..tokens).map(word).collect()
}

fn specs() -> Vec<KernelSpec> {
    let blocks = KernelSpec::default().exact_window(ExactWindow::Block { scale: 0.1 });
    let exact = KernelSpec::default().exact_prompt(150);
    let stores = KvStore::ALL.map(|store| KernelSpec::default().store(store));
    let dense = KernelSpec::default().kernel(KernelKind::Dense).store(KvStore::Int8);
    stores.into_iter().chain([dense, blocks, exact]).collect()
}

#[test]
fn every_prompt_gets_the_answer_of_a_session_of_its_own() {
    let model = model();
    for spec in specs() {
        let (budget, mut random) = (MemoryBudget::unlimited(), Random::new(3));
        let mut store = store(&model, &spec, &budget);
        let mut hits = 0;
        for _ in 0..12 {
            let prompt = prompt(random.below(4), 1 + random.below(400));
            let (mut session, prompted) = store.session(&prompt, |_| {}).unwrap();
            assert_eq!(session.tokens(), prompt);
            hits += usize::from(prompted.found > 0);
            let mut alone = alone(&model, &spec);
            assert_eq!(prompted.logits, alone.prefill(&prompt).unwrap(), "{spec:?}, {}", prompt.len());
            for token in [5, 6, 7] {
                assert_eq!(session.decode(token).unwrap(), alone.decode(token).unwrap());
            }
            assert_eq!(session.prefill(&[8; 70]).unwrap(), alone.prefill(&[8; 70]).unwrap());
        }
        // A window in blocks is another one for every prompt.
        assert!(hits > 0 || matches!(spec.exact_window, ExactWindow::Block { .. }), "{spec:?}");
        drop(store);
        assert_eq!(budget.used(), 0);
    }
}

#[test]
fn what_is_found_is_what_is_shared() {
    let (model, budget) = (model(), MemoryBudget::unlimited());
    let mut store = store(&model, &KernelSpec::default(), &budget);
    let mut found = |prompt: &[u32]| {
        let mut seen = Vec::new();
        let found = store.session(prompt, |done| seen.push(done)).unwrap().1.found;
        assert_eq!(seen.last().copied().unwrap_or(found), prompt.len());
        found
    };
    let text = prompt(0, 300);
    assert_eq!(found(&text[..200]), 0);
    assert_eq!(found(&text[..200]), 200);
    assert_eq!(found(&text), 192);
    assert_eq!(found(&text[..100]), 64);
    // A prompt that ends where a chunk does is one of its own: its last token has been asked for logits.
    assert_eq!(found(&text[..128]), 64);
    assert_eq!(found(&text[..128]), 128);
    assert_eq!(found(&prompt(1, 300)), 128);
}

#[test]
fn pages_are_held_once() {
    let (model, budget) = (model(), MemoryBudget::unlimited());
    let mut store = store(&model, &KernelSpec::default().store(KvStore::Compact), &budget).chunk(256);
    let text = prompt(0, 900);
    let (first, _) = store.session(&text, |_| {}).unwrap();
    let one = first.footprint().total();
    let sessions: Vec<_> = (0..8).map(|_| store.session(&text, |_| {}).unwrap().0).collect();
    assert_eq!(sessions.iter().map(|session| session.footprint().total()).sum::<usize>(), 8 * one);
    // Nodes have windows of their own.
    assert!(budget.used() < 2 * one, "{} of {one}", budget.used());
    store.clear();
    drop((first, sessions));
    assert_eq!(budget.used(), 0);
}

#[test]
fn what_has_not_been_used_for_the_longest_time_is_forgotten() {
    let (model, spec) = (model(), KernelSpec::default());
    let budget = MemoryBudget::unlimited();
    let mut all = store(&model, &spec, &budget);
    let texts: Vec<_> = (0..8).step_by(2).map(|text| prompt(text, 300)).collect();
    all.session(&texts[0], |_| {}).unwrap();
    let one = budget.used();

    // By a limit of its own, and because the budget ends.
    let limited = MemoryBudget::unlimited();
    let stores = [
        store(&model, &spec, &limited).most_bytes(2 * one + one / 2),
        store(&model, &spec, &MemoryBudget::new(3 * one + one / 2)),
    ];
    for mut store in stores {
        let limit = store.budget().limit();
        let mut found = |text: usize| store.session(&texts[text], |_| {}).unwrap().1.found;
        assert_eq!([0, 1, 0, 2].map(&mut found), [0, 0, 300, 0]);
        // Text 1 has gone, or goes for the next one.
        assert_eq!(found(3), 0);
        assert_eq!(found(0) == 300, limit.is_some());
        assert_eq!(found(3), 300);
        let used = store.budget().used();
        assert!(used <= 3 * one + one / 2, "{used}");
    }

    // A session that goes on by itself.
    let mut tree = store(&model, &spec, &MemoryBudget::new(3 * one));
    let [_, (mut session, _)] = [1, 0].map(|text| tree.session(&texts[text], |_| {}).unwrap());
    let error = loop {
        if let Err(error) = session.decode(1) {
            break error;
        }
    };
    assert!(error.is_budget_exhausted(), "{error}");
    assert!(tree.make_room(one / 2) && !tree.make_room(4 * one));
    session.decode(1).unwrap();

    // A session that is too large by itself.
    let small = MemoryBudget::new(one / 2);
    let mut store = store(&model, &spec, &small);
    assert!(store.session(&texts[0], |_| {}).unwrap_err().is_budget_exhausted());
    assert_eq!(small.used(), 0);
    assert!(store.session(&texts[0][..60], |_| {}).is_ok());
    assert!(store.session(&[], |_| {}).is_err());
}

#[test]
fn a_deep_tree_needs_no_deep_stack() {
    let (model, budget) = (model(), MemoryBudget::unlimited());
    for forgets_one_by_one in [true, false] {
        let dense = KernelSpec::default().kernel(KernelKind::Dense);
        let mut store = store(&model, &dense, &budget).chunk(1);
        store.session(&prompt(0, 600), |_| {}).unwrap();
        let small = std::thread::Builder::new().stack_size(48 << 10);
        let forget = move || match forgets_one_by_one {
            true => assert!(store.make_room(usize::MAX)),
            false => store.clear(),
        };
        small.spawn(forget).unwrap().join().unwrap();
        assert_eq!(budget.used(), 0);
    }
}
