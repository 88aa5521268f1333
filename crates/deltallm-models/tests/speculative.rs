//! Speculative decoding changes nothing but the time: sessions with drafts answer, bit for bit, what sessions answer that decode token by token.

use std::sync::Arc;

use deltallm_attn::{AtLimit, KernelContext, KernelKind, KernelSpec, MemoryBudget};
use deltallm_models::{
    LinearForm, Model, ModelError, PromptLookup, Sampler, SamplerConfig, Session, Tokenizer,
};
use deltallm_testing::Random;

mod common;

use common::sessions::{file, model, prompt, specs};

fn session(model: &Arc<Model>, spec: &KernelSpec) -> Session {
    let mut session = Session::with_spec(model.clone(), spec).unwrap();
    session.prefill(&prompt(200)).unwrap();
    session
}

/// A draft of which the first few tokens are right.
fn draft(text: &[u32], random: &mut Random) -> Vec<u32> {
    let (right, wrong) = (random.below(6).min(text.len()), random.below(4));
    text[..right].iter().copied().chain((0..wrong).map(|_| random.below(500) as u32)).collect()
}

#[test]
fn with_and_without_drafts_the_logits_are_the_same() {
    let model = model();
    let text: Vec<u32> = (0..120).map(|t| (11 + t * t * t % 400) as u32).collect();
    for (number, spec) in specs().into_iter().enumerate() {
        let mut random = Random::new(number as u64);
        let (mut drafting, mut alone) = (session(&model, &spec), session(&model, &spec));
        for (at, &token) in text.iter().enumerate() {
            let got = drafting.decode_speculative(token, |tokens| {
                assert_eq!(tokens.len(), 201 + at);
                draft(&text[at + 1..], &mut random)
            });
            let expected = alone.decode(token);
            assert_eq!(got.unwrap(), expected.unwrap(), "{spec:?}, {at}");
        }
        assert_eq!(drafting.tokens(), alone.tokens());
        let stats = drafting.speculation_stats();
        assert!(stats.accepted > 20 && stats.drafted > stats.accepted, "{stats:?}");
        // What comes next discards what is left.
        drafting.decode_speculative(3, |_| vec![4, 5, 6]).unwrap();
        alone.decode(3).unwrap();
        assert_eq!(drafting.prefill(&[9, 8]).unwrap(), alone.prefill(&[9, 8]).unwrap());
        assert_eq!(drafting.footprint(), alone.footprint(), "{spec:?}");
    }
}

#[test]
fn drafts_are_in_no_fork_and_no_file() {
    let model = model();
    let path = std::env::temp_dir().join(format!("deltallm-{}-drafts.kv", std::process::id()));
    for spec in specs() {
        let (mut drafting, mut alone) = (session(&model, &spec), session(&model, &spec));
        drafting.decode_speculative(1, |_| vec![2, 3, 4, 5]).unwrap();
        drafting.decode(2).unwrap();
        drafting.save(&path).unwrap();
        let mut fork = drafting.fork().unwrap();
        let mut opened = Session::open(model.clone(), &spec, &path).unwrap();
        [1, 2].iter().for_each(|token| drop(alone.decode(*token).unwrap()));
        let expected = [9, 10].map(|token| alone.decode(token).unwrap());
        for session in [&mut fork, &mut opened, &mut drafting] {
            assert_eq!(session.tokens().len(), 202);
            assert_eq!([9, 10].map(|token| session.decode(token).unwrap()), expected);
        }
        // And back before them.
        let (mut drafting, mut alone) = (session(&model, &spec), session(&model, &spec));
        drafting.decode_speculative(1, |_| vec![2, 3]).unwrap();
        alone.decode(1).unwrap();
        drafting.rewind(200).unwrap();
        alone.rewind(200).unwrap();
        assert_eq!(drafting.decode(7).unwrap(), alone.decode(7).unwrap());
        let batch = &mut [(&mut drafting, 8), (&mut alone, 8)];
        let logits = Session::decode_together(batch).unwrap();
        assert_eq!(logits[0], logits[1]);
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_text_is_the_same_with_and_without_lookup() {
    let (model, tokenizer) = (model(), Tokenizer::from_model(&file()).unwrap());
    let tale = "Once upon a time there was a king who had a golden bird. The king said to his son: go and find the golden bird. ";
    let prompt = tokenizer.encode_beginning(&tale.repeat(3)).unwrap();
    let mut accepted = 0;
    for (number, spec) in specs().into_iter().enumerate() {
        let temperature = if number % 2 == 0 { 0.0 } else { 0.8 };
        let penalty = if number % 3 == 2 { 1.1 } else { 1.0 };
        let config = SamplerConfig::default().with_temperature(temperature).with_repetition_penalty(penalty);
        let text = |lookup: Option<PromptLookup>| {
            let mut session = Session::with_spec(model.clone(), &spec).unwrap();
            let logits = session.prefill(&prompt).unwrap();
            let mut sampler = Sampler::new(config).unwrap();
            let mut generation = session.generate(logits, &tokenizer, &mut sampler);
            if let Some(lookup) = lookup {
                generation = generation.with_lookup(lookup);
            }
            let tokens: Vec<u32> = generation.by_ref().take(60).map(|new| new.unwrap().token).collect();
            let read = generation.session().tokens().len();
            // The sampler has drawn as often, and the session goes on alike.
            let last = *tokens.last().unwrap();
            let logits = session.decode(last).unwrap();
            let more = session.generate(logits, &tokenizer, &mut sampler).take(9);
            let more: Vec<u32> = more.map(|new| new.unwrap().token).collect();
            (session.speculation_stats(), (read, tokens, more))
        };
        let ((none, expected), (some, got)) = (text(None), text(Some(PromptLookup::default())));
        assert_eq!(got, expected, "{spec:?}");
        assert_eq!(none.drafted, 0);
        accepted += some.accepted;
    }
    assert!(accepted > 20, "{accepted}");
}

#[test]
fn drafts_that_do_not_fit_cost_nothing() {
    let model = model();
    let context = || KernelContext::clone(&model.kernel_context());
    // The last position of the context, and beyond.
    let mut session = Session::with_spec(model.clone(), &KernelSpec::default()).unwrap();
    session.prefill(&prompt(1022)).unwrap();
    session.decode_speculative(1, |_| vec![2, 3, 4]).unwrap();
    session.decode_speculative(2, |_| vec![3, 4]).unwrap();
    assert!(matches!(session.decode_speculative(3, |_| vec![4]), Err(ModelError::ContextFull { .. })));
    assert_eq!(session.tokens().len(), 1024);

    // A token that the model does not have.
    session.rewind(200).unwrap();
    let error = session.decode_speculative(1, |_| vec![60_000]).unwrap_err();
    assert!(matches!(error, ModelError::TokenOutOfRange { id: 60_000, .. }), "{error}");
    assert_eq!(session.tokens().len(), 200);

    // A budget that is full just before the draft.
    for (at_limit, told) in [(AtLimit::Error, false), (AtLimit::Error, true), (AtLimit::NarrowStore, true)] {
        let spec = KernelSpec::default().kernel(KernelKind::Dense);
        let limited = |bytes| {
            let budget = MemoryBudget::new(bytes);
            let mut session =
                Session::new(model.clone(), |layer| spec.build(layer, &context().budget(budget.clone())))
                    .unwrap();
            if told {
                session.limit_memory(budget.clone(), at_limit).unwrap();
            }
            session.prefill(&prompt(254)).unwrap();
            (session, budget)
        };
        let (mut session, budget) = limited(limited(usize::MAX).1.used());
        for token in [1, 2] {
            session.decode_speculative(token, |_| vec![100, 101, 102, 103]).unwrap();
        }
        assert_eq!((session.tokens().len(), session.narrowed().times), (256, 0));
        session.rewind(256).unwrap();
        assert_eq!(budget.used(), session.footprint().total());
    }
}

#[test]
fn nothing_is_drafted_where_several_tokens_give_other_bits() {
    let model = Arc::new(Model::load(&file().with_linear_form(LinearForm::F32)).unwrap());
    let mut session = session(&model, &KernelSpec::default());
    session.decode_speculative(1, |_| unreachable!("floats")).unwrap();
    assert_eq!(session.speculation_stats().drafted, 0);
}
