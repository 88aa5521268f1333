//! Continuing a session: tokens, their text, and how it ends.
#![cfg(feature = "gguf")]

mod common;

use std::sync::Arc;

use common::files::fixture;
use common::models::load_model;
use deltallm_attn::{KernelKind, KernelSpec, MemoryBudget};
use deltallm_models::{
    GenerationError, GgufVocabulary, Model, ModelError, ModelFile, Sampler, SamplerConfig, SamplingError,
    Session, StopReason, StreamDecoder, Tokenizer, TokenizerError,
};
use ndarray::{Array1, s};

/// Tokens of the model's vocabulary, and positions of its context.
const VOCABULARY: u32 = 97;
const CONTEXT: usize = 256;

fn model() -> Arc<Model> {
    Arc::new(load_model(ModelFile::open(fixture("llama/gqa1-d32")).unwrap()).unwrap())
}

fn session() -> Session {
    Session::with_spec(model(), &KernelSpec::default()).unwrap()
}

fn sampler(seed: u64) -> Sampler {
    let config = SamplerConfig::default().with_temperature(1.0).with_repetition_penalty(1.2).with_seed(seed);
    Sampler::new(config).unwrap()
}

fn greedy() -> Sampler {
    Sampler::new(SamplerConfig::default()).unwrap()
}

/// How a byte-level vocabulary spells a byte.
fn spelled(byte: u8) -> String {
    let code = match byte {
        0..=32 => 256 + u32::from(byte),
        127..=160 => 289 + u32::from(byte) - 127,
        173 => 323,
        _ => u32::from(byte),
    };
    char::from_u32(code).unwrap().into()
}

/// Every token is a byte that is not ASCII, so that characters take several tokens, and most are broken.
fn bytes() -> Tokenizer {
    let tokens: Vec<String> = (0x80..0x80 + VOCABULARY as u8).map(spelled).collect();
    let tokens = tokens.iter().map(String::as_str).collect();
    let vocabulary =
        GgufVocabulary { model: "gpt2", pre: Some("gpt-2"), tokens, ..GgufVocabulary::default() };
    Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap()
}

/// Words with a space in front; token 2 ends a text.
fn words() -> Tokenizer {
    let tokens: Vec<String> = (0..VOCABULARY).map(|id| format!("\u{2581}w{id}")).collect();
    let (scores, mut types) = (vec![0.0; tokens.len()], vec![1; tokens.len()]);
    types[2] = 3;
    let vocabulary = GgufVocabulary {
        model: "llama",
        tokens: tokens.iter().map(String::as_str).collect(),
        scores: &scores,
        token_types: &types,
        eos: Some(2),
        ..GgufVocabulary::default()
    };
    Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap()
}

/// Logits after which `token` comes.
fn certain(token: usize) -> Array1<f32> {
    Array1::from_shape_fn(VOCABULARY as usize, |id| if id == token { 9.0 } else { 0.0 })
}

#[test]
fn tokens_are_those_of_a_loop_by_hand() {
    let (prompt, tokenizer) = ([3, 1, 4, 1, 5], bytes());
    let mut by_hand = session();
    let mut sampler_by_hand = sampler(5);
    let mut logits = by_hand.prefill(&prompt).unwrap();
    let mut expected = Vec::new();
    for _ in 0..40 {
        let token = sampler_by_hand.sample_after(logits.as_slice().unwrap(), by_hand.tokens()).unwrap();
        expected.push(token);
        logits = by_hand.decode(token).unwrap();
    }

    let (mut session, mut sampler) = (session(), sampler(5));
    let logits = session.prefill(&prompt).unwrap();
    let mut generation = session.generate(logits, &tokenizer, &mut sampler);
    let taken: Vec<u32> = generation.by_ref().take(30).map(|new| new.unwrap().token).collect();
    assert_eq!((&taken[..], generation.tokens()), (&expected[..30], &expected[..30]));
    // The last one has not been read yet.
    assert_eq!(generation.session().tokens().len(), prompt.len() + 29);
    // It goes on where it was.
    let more: Vec<u32> = generation.by_ref().take(5).map(|new| new.unwrap().token).collect();
    assert_eq!(more, expected[30..35]);
    // And so does a session, with the last token first.
    let logits = session.prefill(&more[4..]).unwrap();
    let last: Vec<u32> =
        session.generate(logits, &tokenizer, &mut sampler).take(5).map(|new| new.unwrap().token).collect();
    assert_eq!(last, expected[35..]);
}

#[test]
fn text_comes_in_whole_characters() {
    let tokenizer = bytes();
    let (mut pieces, mut broken) = (0, 0);
    for seed in 0..10 {
        let (mut session, mut sampler) = (session(), sampler(seed));
        let logits = session.prefill(&[1, 2]).unwrap();
        let mut generation = session.generate(logits, &tokenizer, &mut sampler);
        let (mut text, mut decoder) = (String::new(), StreamDecoder::continuing(&tokenizer));
        for _ in 0..20 {
            let new = generation.next().unwrap().unwrap();
            assert_eq!(new.text, decoder.push(new.token).unwrap().unwrap_or_default());
            pieces += usize::from(!new.text.is_empty());
            text.push_str(&new.text);
            assert_eq!(generation.text(), text);
        }
        let tokens = generation.tokens().to_vec();
        let whole = generation.finish();
        assert_eq!(whole, tokenizer.decode(&tokens).unwrap());
        broken += usize::from(whole != text);
    }
    assert!(pieces > 0 && broken > 0, "{pieces} {broken}");
}

#[test]
fn a_token_that_ends_the_text_is_the_last_and_has_no_text() {
    let (mut session, mut sampler, tokenizer) = (session(), greedy(), words());
    session.prefill(&[7]).unwrap();
    let mut generation = session.generate(certain(2), &tokenizer, &mut sampler);
    assert_eq!(generation.stop_reason(), None);
    let last = generation.next().unwrap().unwrap();
    assert_eq!((last.token, last.text.as_str()), (2, ""));
    assert!(generation.next().is_none() && generation.next().is_none());
    assert_eq!(generation.stop_reason(), Some(StopReason::EndOfText));
    assert_eq!((generation.tokens(), generation.text()), (&[2][..], ""));
}

#[test]
fn a_full_context_is_the_end() {
    let (mut session, mut sampler, tokenizer) = (session(), greedy(), bytes());
    let logits = session.prefill(&[1; CONTEXT - 2]).unwrap();
    let mut generation = session.generate(logits, &tokenizer, &mut sampler);
    assert_eq!(generation.by_ref().map(Result::unwrap).count(), 3);
    assert_eq!(generation.stop_reason(), Some(StopReason::ContextFull));
    assert_eq!(generation.session().tokens().len(), CONTEXT);
}

#[test]
fn an_exhausted_budget_is_an_error_and_then_the_end() {
    let (model, tokenizer, mut sampler) = (model(), bytes(), greedy());
    let spec = KernelSpec::default().kernel(KernelKind::Dense);
    // A page of 64 tokens for each layer.
    let free = MemoryBudget::unlimited();
    let context = |budget: &MemoryBudget| model.kernel_context().budget(budget.clone());
    let session = |context| Session::new(model.clone(), |layer| spec.build(layer, &context)).unwrap();
    session(context(&free)).prefill(&[1; 64]).unwrap();
    let mut one_page = session(context(&free));
    one_page.prefill(&[1; 64]).unwrap();
    let mut limited = session(context(&MemoryBudget::new(free.used())));
    let logits = limited.prefill(&[1; 60]).unwrap();
    let mut generation = limited.generate(logits, &tokenizer, &mut sampler);
    let mut read = 0;
    let error = loop {
        match generation.next().expect("an error before the end") {
            Ok(_) => read += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_budget_exhausted(), "{error}");
    assert_eq!(read, 5);
    assert!(generation.next().is_none() && generation.stop_reason().is_none());
    assert_eq!((generation.tokens().len(), limited.tokens().len()), (5, 64));
}

#[test]
fn an_answer_begins_without_the_space_that_a_continuation_keeps() {
    let (mut session, tokenizer) = (session(), words());
    session.prefill(&[7]).unwrap();
    let mut sampler = greedy();
    let mut continued = session.generate(certain(5), &tokenizer, &mut sampler);
    assert_eq!(continued.next().unwrap().unwrap().text, " w5");
    let mut answer = session.generate(certain(5), &tokenizer, &mut sampler).as_answer();
    assert_eq!(answer.next().unwrap().unwrap().text, "w5");
}

#[test]
fn logits_of_any_kind_are_read_or_refused() {
    let (mut session, tokenizer) = (session(), bytes());
    session.prefill(&[7]).unwrap();
    let mut sampler = greedy();
    let mut first = |logits: Array1<f32>| {
        let mut generation = session.generate(logits, &tokenizer, &mut sampler);
        let first = generation.next().unwrap();
        assert!(first.is_ok() || generation.next().is_none());
        first.map(|new| new.token)
    };
    let nan = first(Array1::from_elem(97, f32::NAN));
    assert!(matches!(nan, Err(GenerationError::Sampling(SamplingError::NanLogit { .. }))));
    let none = first(Array1::zeros(0));
    assert!(matches!(none, Err(GenerationError::Sampling(SamplingError::EmptyLogits))));
    // The best is none of the vocabulary's.
    let others = first(Array1::from_shape_fn(200, |id| id as f32));
    assert!(matches!(others, Err(GenerationError::Tokenizer(TokenizerError::IdOutOfRange { id: 199, .. }))));
    // Fewer than the session has tokens of.
    let few = first(Array1::zeros(7));
    assert!(matches!(few, Err(GenerationError::Sampling(SamplingError::HistoryOutOfRange { token: 7, .. }))));
    let backwards = certain(96).slice_move(s![..;-1]);
    assert_eq!(first(backwards).unwrap(), 0);
}

#[test]
fn a_session_that_has_read_nothing_can_be_continued_from_logits() {
    let (mut session, mut sampler, tokenizer) = (session(), greedy(), words());
    let tokens: Vec<_> = session
        .generate(certain(3), &tokenizer, &mut sampler)
        .take(3)
        .map(|new| new.unwrap().token)
        .collect();
    assert_eq!(tokens[0], 3);
    assert_eq!(session.tokens(), &tokens[..2]);
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_an_error() {
    let tokens: Vec<String> = (0..200).map(|id| format!("w{id}")).collect();
    let tokens = tokens.iter().map(String::as_str).collect();
    let vocabulary =
        GgufVocabulary { model: "gpt2", pre: Some("gpt-2"), tokens, ..GgufVocabulary::default() };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    let (mut session, mut sampler) = (session(), greedy());
    let logits = Array1::from_shape_fn(200, |id| id as f32);
    let mut generation = session.generate(logits, &tokenizer, &mut sampler);
    assert_eq!(generation.next().unwrap().unwrap().token, 199);
    let error = generation.next().unwrap().unwrap_err();
    assert!(matches!(error, GenerationError::Model(ModelError::TokenOutOfRange { id: 199, .. })), "{error}");
}
