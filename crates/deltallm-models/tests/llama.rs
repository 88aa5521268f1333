//! The Llama graph against `transformers`: small random models, made by `tools/goldens/families.py`.

mod common;

use std::sync::Arc;

use common::{
    files::fixture,
    models::{argmax, dense_kernels, harmless_kernels, load_model, options},
};
use deltallm_attn::{
    AttentionError, AttentionKernel, DenseAttention, ExactWindow, HybridAttention, HybridConfig,
    MemoryBudget, ThresholdPolicy,
};
use deltallm_core::CoreError;
use deltallm_models::{AttentionInput, LogitRows, Model, ModelError, ModelFile, Sequence, Session};
use ndarray::aview1;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    /// Of the last tokens, `[rows, vocab_size]`.
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn golden(case: &str) -> Golden {
    let path = fixture("llama").join(case).join("golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn load(file: &str) -> Arc<Model> {
    let file = ModelFile::open(fixture("llama").join(file)).unwrap();
    Arc::new(load_model(file).unwrap())
}

/// Logits of the last tokens agree to 1e-4 of their largest magnitude, and greedy continuation is the same.
fn check(model: &Model, golden: &Golden) {
    let mut kernels = dense_kernels(model);
    let logits = model.forward(&golden.tokens, &mut kernels, LogitRows::All).unwrap();
    let first = golden.tokens.len() - golden.logits.len();
    let largest = golden.logits.iter().flatten().fold(0.0_f32, |m, x| m.max(x.abs()));
    for (row, expected) in golden.logits.iter().enumerate() {
        for (column, expected) in expected.iter().enumerate() {
            let got = logits[[first + row, column]];
            assert!(
                (got - expected).abs() <= 1e-4 * largest,
                "row {row}, id {column}: {got}, expected {expected}"
            );
        }
    }
    let mut next = argmax(logits.row(golden.tokens.len() - 1));
    for expected in &golden.greedy {
        assert_eq!(next, *expected);
        next = argmax(model.forward(&[next], &mut kernels, LogitRows::Last).unwrap().row(0));
    }
}

const CASES: [&str; 6] =
    ["gqa1-d32", "gqa2-d128-llama3", "gqa2-d32-derived", "gqa3-d64-llama3", "gqa4-d80-bias", "gqa8-d32"];

#[test]
fn safetensors_models_equal_transformers() {
    for case in CASES {
        println!("{case}");
        check(&load(case), &golden(case));
    }
}

#[test]
fn gguf_models_with_permuted_rows_equal_transformers() {
    for case in ["gqa1-d32", "gqa3-d64-llama3"] {
        println!("{case}");
        check(&load(&format!("{case}/model.gguf")), &golden(case));
    }
}

#[test]
fn theta_zero_and_a_full_window_leave_the_logits_alone() {
    for case in CASES {
        let (model, golden) = (load(case), golden(case));
        let expected = model.forward(&golden.tokens, &mut dense_kernels(&model), LogitRows::Last).unwrap();
        let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for mut kernels in harmless_kernels(&model) {
            let got = model.forward(&golden.tokens, &mut kernels, LogitRows::Last).unwrap();
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() <= 1e-5 * largest, "{case}: {got}, expected {expected}");
            }
        }
    }
}

fn session(model: &Arc<Model>) -> Session {
    let (shape, options) = (model.attention_shape(), options());
    Session::new(model.clone(), |_| Ok(Box::new(DenseAttention::new(shape, options.clone())?))).unwrap()
}

#[test]
fn chunks_rewinding_and_reuse_do_not_show() {
    let (model, golden) = (load("gqa3-d64-llama3"), golden("gqa3-d64-llama3"));
    let mut whole = session(&model);
    let expected = whole.prefill(&golden.tokens).unwrap();

    let mut chunked = session(&model);
    chunked.set_chunk(7);
    let mut progress = Vec::new();
    let got = chunked.prefill_with(&golden.tokens, |done| progress.push(done)).unwrap();
    assert_eq!(progress, [7, 14, 21, 28, 35, 40]);
    let close = |a: &ndarray::Array1<f32>, b: &ndarray::Array1<f32>| {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    };
    assert!(close(&got, &expected));

    chunked.rewind(13).unwrap();
    assert_eq!(chunked.tokens(), &golden.tokens[..13]);
    let again = chunked.prefill(&golden.tokens[13..]).unwrap();
    assert!(close(&again, &expected));
    assert_eq!(chunked.footprint(), whole.footprint());

    chunked.rewind(0).unwrap();
    let mut last = None;
    for token in &golden.tokens {
        last = Some(chunked.decode(*token).unwrap());
    }
    assert!(close(&last.unwrap(), &expected), "token by token");
}

#[test]
fn a_prompt_in_chunks_is_one_prompt_for_the_kernels() {
    let (model, golden) = (load("gqa3-d64-llama3"), golden("gqa3-d64-llama3"));
    let config = HybridConfig::default().options(options()).exact_sinks(0);
    for config in [
        // Chunks end within the length that is attended exactly, and the prompt does not.
        config.clone().exact_window(ExactWindow::Sliding(8)).exact_prompt(30),
        // The blocks are a share of the prompt, and not of a chunk.
        config.exact_window(ExactWindow::Block { scale: 0.3 }),
    ] {
        let exact_pairs = |chunk| {
            let kernel = |_| -> Result<Box<dyn AttentionKernel>, _> {
                Ok(Box::new(HybridAttention::new(model.attention_shape(), config.clone())?))
            };
            let mut session = Session::new(model.clone(), kernel).unwrap();
            session.set_chunk(chunk);
            session.prefill(&golden.tokens).unwrap();
            session.stats().total().exact_pairs
        };
        assert_eq!(exact_pairs(7), exact_pairs(golden.tokens.len()), "{:?}", config.exact_window);
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_at_once() {
    let model = load("gqa1-d32");
    let mut session = session(&model);
    let error = session.prefill_with(&vec![1; 257], |_| panic!("nothing must be computed")).unwrap_err();
    assert_eq!(error.to_string(), "expected at most 256 tokens of context, got 257");
    assert!(session.tokens().is_empty());
    session.prefill(&[1; 256]).unwrap();
    assert!(matches!(session.decode(1), Err(ModelError::ContextFull { context_length: 256, got: 257 })));
    assert_eq!(session.tokens().len(), 256);
}

#[test]
fn no_tokens_and_unknown_tokens_are_refused() {
    let model = load("gqa1-d32");
    let mut session = session(&model);
    assert!(matches!(session.prefill(&[]), Err(ModelError::NoTokens)));
    assert!(matches!(session.decode(97), Err(ModelError::TokenOutOfRange { vocab_size: 97, id: 97 })));
    assert!(matches!(session.rewind(1), Err(ModelError::Attention { layer: 0, .. })));
    assert!(session.tokens().is_empty());
}

#[test]
fn wrong_kernels_are_refused() {
    let model = load("gqa1-d32");
    let mut kernels = dense_kernels(&model);
    let one = &mut kernels[..1];
    assert!(matches!(
        model.forward(&[1], one, LogitRows::Last),
        Err(ModelError::KernelCount { expected: 2, got: 1 })
    ));
    model.forward(&[1, 2], &mut kernels, LogitRows::None).unwrap();
    kernels[1].truncate(1).unwrap();
    let error = model.forward(&[1], &mut kernels, LogitRows::Last).unwrap_err();
    assert!(matches!(error, ModelError::KernelLength { layer: 1, expected: 2, got: 1 }), "{error}");
}

#[test]
fn an_exhausted_budget_leaves_every_layer_as_it_was() {
    let (model, golden) = (load("gqa3-d64-llama3"), golden("gqa3-d64-llama3"));
    // The first layer's cache fits, the second's does not.
    let one_layer = {
        let mut session = session(&model);
        session.prefill(&golden.tokens).unwrap();
        session.footprint().total() / 2
    };
    let budget = MemoryBudget::new(one_layer + one_layer / 2);
    let options = options().budget(budget.clone());
    let mut session = Session::new(model.clone(), |_| {
        Ok(Box::new(DenseAttention::new(model.attention_shape(), options.clone())?))
    })
    .unwrap();
    let error = session.prefill(&golden.tokens).unwrap_err();
    match error {
        ModelError::Attention {
            layer: 1,
            source: AttentionError::Core(CoreError::BudgetExhausted { .. }),
        } => {}
        other => panic!("{other}"),
    }
    assert!(session.tokens().is_empty());
    assert!(session.kernels().iter().all(|kernel| kernel.is_empty()));
    assert_eq!(session.footprint().total(), budget.used());
}

#[test]
fn a_prompt_that_fails_after_some_chunks_leaves_nothing_of_itself() {
    let model = load("gqa3-d64-llama3");
    // One page of every layer, which is 64 tokens.
    let page = {
        let mut session = session(&model);
        session.prefill(&[1; 64]).unwrap();
        session.footprint().total()
    };
    let budget = MemoryBudget::new(page);
    let (shape, options) = (model.attention_shape(), options().budget(budget.clone()));
    let mut session =
        Session::new(model, |_| Ok(Box::new(DenseAttention::new(shape, options.clone())?))).unwrap();
    session.set_chunk(30);
    session.prefill(&[1, 2, 3]).unwrap();
    let mut done = 0;
    let error = session.prefill_with(&[5; 80], |tokens| done = tokens).unwrap_err();
    assert!(error.is_budget_exhausted() && done == 60, "{error}");
    assert_eq!(session.tokens(), [1, 2, 3]);
    assert!(session.kernels().iter().all(|kernel| kernel.len() == 3));
    session.decode(4).unwrap();
}

#[test]
fn a_batch_gives_each_sequence_what_it_gets_alone() {
    let (model, golden) = (load("gqa3-d64-llama3"), golden("gqa3-d64-llama3"));
    let parts = [&golden.tokens[..7], &golden.tokens[7..8], &golden.tokens[8..]];
    let rows = [LogitRows::Tail(3), LogitRows::All, LogitRows::None];
    // The first sequence has cached tokens already.
    let fresh = || {
        let mut kernels: Vec<_> = parts.iter().map(|_| dense_kernels(&model)).collect();
        model.forward(&golden.tokens[20..25], &mut kernels[0], LogitRows::None).unwrap();
        kernels
    };
    let mut together = fresh();
    let mut batch: Vec<_> = parts
        .iter()
        .zip(&mut together)
        .zip(rows)
        .map(|((tokens, kernels), rows)| Sequence { tokens, kernels: &mut kernels[..], rows })
        .collect();
    let got = model.forward_batch(&mut batch).unwrap();
    for (((tokens, kernels), rows), got) in parts.iter().zip(&mut fresh()).zip(rows).zip(&got) {
        let expected = model.forward(tokens, kernels, rows).unwrap();
        assert_eq!(got.dim(), expected.dim());
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
    }
    assert_eq!(got.iter().map(|logits| logits.nrows()).collect::<Vec<_>>(), [3, 1, 0]);
    assert_eq!(together.iter().map(|kernels| kernels[1].len()).collect::<Vec<_>>(), [12, 1, 32]);
}

#[test]
fn sessions_of_packed_weights_decode_together_as_they_do_alone() {
    let file = ModelFile::open("../deltallm-cli/assets/fairy-tales.gguf").unwrap();
    let model = Arc::new(load_model(file).unwrap());
    let options = options();
    let config = HybridConfig::new(ThresholdPolicy::Uniform(0.3));
    // Prompts of different lengths, and kernels of different kinds.
    let sessions = || -> Vec<(Session, Vec<f32>)> {
        let prompts = [&[5, 9, 300][..], &[8; 70], &[70], &[1, 2], &[400, 20, 7, 7, 90]];
        let prefilled = |(index, prompt): (usize, &[u32])| {
            let kernel = |_| -> Result<Box<dyn AttentionKernel>, _> {
                match index % 2 {
                    0 => Ok(Box::new(DenseAttention::new(model.attention_shape(), options.clone())?)),
                    _ => Ok(Box::new(HybridAttention::new(
                        model.attention_shape(),
                        config.clone().options(options.clone()),
                    )?)),
                }
            };
            let mut session = Session::new(model.clone(), kernel).unwrap();
            let logits = session.prefill(prompt).unwrap().to_vec();
            (session, logits)
        };
        prompts.into_iter().enumerate().map(prefilled).collect()
    };
    let (mut together, mut alone) = (sessions(), sessions());
    for _ in 0..24 {
        let mut batch: Vec<_> =
            together.iter_mut().map(|(session, logits)| (session, argmax(aview1(logits)))).collect();
        let answers = Session::decode_together(&mut batch).unwrap();
        for ((_, logits), answer) in together.iter_mut().zip(answers) {
            *logits = answer.to_vec();
        }
        for (session, logits) in &mut alone {
            *logits = session.decode(argmax(aview1(logits))).unwrap().to_vec();
        }
        for ((together, a), (alone, b)) in together.iter().zip(&alone) {
            assert_eq!((together.tokens(), a), (alone.tokens(), b));
        }
    }
}

#[test]
fn sessions_that_cannot_decode_together_stay_where_they_are() {
    let (model, other) = (load("gqa3-d64-llama3"), load("gqa3-d64-llama3"));
    let (mut a, mut b, mut c) = (session(&model), session(&model), session(&other));
    let wrong = Session::decode_together(&mut [(&mut a, 1), (&mut b, 1), (&mut c, 1)]);
    assert!(matches!(wrong, Err(ModelError::OtherModel { index: 2 })));
    let wrong = Session::decode_together(&mut [(&mut a, 1), (&mut b, u32::MAX)]);
    assert!(matches!(wrong, Err(ModelError::TokenOutOfRange { id: u32::MAX, .. })));
    assert!(a.tokens().is_empty() && a.kernels().iter().all(|kernel| kernel.is_empty()));
    assert!(Session::decode_together(&mut []).unwrap().is_empty());
}

#[test]
fn a_failing_sequence_leaves_the_whole_batch_where_it_was() {
    let model = load("gqa3-d64-llama3");
    let options = options().budget(MemoryBudget::new(1));
    let starved = || {
        Box::new(DenseAttention::new(model.attention_shape(), options.clone()).unwrap())
            as Box<dyn AttentionKernel>
    };
    let (mut good, mut bad) = (dense_kernels(&model), dense_kernels(&model));
    *bad.last_mut().unwrap() = starved();
    let mut batch = [
        Sequence { tokens: &[1, 2], kernels: &mut good[..], rows: LogitRows::Last },
        Sequence { tokens: &[3], kernels: &mut bad[..], rows: LogitRows::Last },
    ];
    assert!(matches!(model.forward_batch(&mut batch), Err(ModelError::Attention { layer: 1, .. })));
    assert!(good.iter().chain(&bad).all(|kernel| kernel.is_empty()));
}

/// From outside of the pool every product would be handed over and waited for: a token took twice as long, and at times seconds.
#[test]
fn a_call_from_outside_of_the_pool_is_done_in_it() {
    let model = load("gqa3-d64-llama3");
    assert_eq!(rayon::current_thread_index(), None);
    let mut inside = None;
    let observer = |_: AttentionInput| inside = rayon::current_thread_index();
    model.forward_observed(&[1], &mut dense_kernels(&model), LogitRows::Last, observer).unwrap();
    assert_eq!(inside.is_some(), rayon::current_num_threads() > 1);
}

#[test]
fn an_observer_sees_what_every_layer_attends() {
    let (model, golden) = (load("gqa3-d64-llama3"), golden("gqa3-d64-llama3"));
    let (mut seen, mut outputs) = (Vec::new(), Vec::new());
    let mut kernels = dense_kernels(&model);
    let logits = model.forward_observed(&golden.tokens, &mut kernels, LogitRows::Last, |input| {
        assert_eq!(input.residual.dim(), (golden.tokens.len(), model.config().hidden_size));
        assert_eq!(input.q.len_of(ndarray::Axis(1)), model.config().heads);
        // The embedding, and then something else in every layer.
        outputs.push(input.residual.to_owned());
        seen.push((input.layer, input.k.dim(), input.v.dim()));
    });
    let kv = (golden.tokens.len(), model.config().kv_heads, model.config().head_dim);
    assert_eq!(seen, [(0, kv, kv), (1, kv, kv)]);
    assert_ne!(outputs[0], outputs[1]);
    let expected = model.forward(&golden.tokens, &mut dense_kernels(&model), LogitRows::Last).unwrap();
    assert_eq!(logits.unwrap(), expected);
}
