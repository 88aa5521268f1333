//! The BitNet graph against `transformers`: small models, made by `tools/goldens/bitnet.py`, in every form of files.
#![cfg(all(feature = "gguf", feature = "safetensors"))]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::bitnet::{Form, Masters};
use common::files::fixture;
use common::models::{argmax, dense_kernels, harmless_kernels, load_model, options};
use deltallm_attn::{
    AttentionKernel, DenseAttention, ExactWindow, HybridAttention, HybridConfig, ThresholdPolicy,
};
use deltallm_core::ModelFingerprint;
use deltallm_models::quant::TensorType;
use deltallm_models::{Architecture, LogitRows, Matrix, Model, ModelFile, Sequence, Session};
use ndarray::{Array2, s};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    /// Of the last tokens, `[rows, vocab_size]`.
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

/// Name and seed, as in the script.
const CASES: [(&str, u64); 3] = [("gqa2-d64", 1), ("gqa4-d32", 2), ("gqa2-d128-bias", 1)];
/// Sizes that are multiples of 256.
const LARGE: [(&str, u64); 2] = [CASES[0], CASES[2]];

fn golden(case: &str) -> Golden {
    let path = fixture("bitnet").join(case).join("golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn load(path: &Path) -> Model {
    load_model(ModelFile::open(path).unwrap()).unwrap()
}

fn model((case, seed): (&str, u64), test: &str, form: Form) -> Model {
    load(&Masters::new(case, seed).write(&format!("{test}-{case}"), form))
}

fn logits(model: &Model, tokens: &[u32]) -> Array2<f32> {
    model.forward(tokens, &mut dense_kernels(model), LogitRows::All).unwrap()
}

fn spread(logits: &Array2<f32>) -> f32 {
    logits.std(0.0)
}

fn largest_difference(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Logits of the last tokens agree to 0.1 % of their spread, the best ids are the same, and so is the greedy continuation.
fn check(what: &str, model: &Model, golden: &Golden) {
    let rows = golden.logits.len();
    let expected = Array2::from_shape_fn((rows, golden.logits[0].len()), |(i, j)| golden.logits[i][j]);
    let mut kernels = dense_kernels(model);
    let got = model.forward(&golden.tokens, &mut kernels, LogitRows::Tail(rows)).unwrap();
    let off = largest_difference(&got, &expected) / spread(&expected);
    println!("{what}: off by {off:.1e} of the spread");
    assert!(off <= 1e-3, "{what}: {off}");
    for (got, expected) in got.outer_iter().zip(expected.outer_iter()) {
        assert_eq!(argmax(got), argmax(expected), "{what}");
    }
    let mut next = argmax(got.row(rows - 1));
    for expected in &golden.greedy {
        assert_eq!(next, *expected, "{what}");
        next = argmax(model.forward(&[next], &mut kernels, LogitRows::Last).unwrap().row(0));
    }
}

#[test]
fn training_weights_quantised_here_equal_transformers() {
    for case in CASES {
        check(case.0, &model(case, "online", Form::Online), &golden(case.0));
    }
}

#[test]
fn files_that_transformers_has_packed_equal_transformers() {
    // One form multiplies with its scale, the other divides by it; the files hold the same model.
    let (golden, folder) = (golden("gqa4-d32"), fixture("bitnet").join("gqa4-d32"));
    let all = ["autobitlinear", "bitlinear"].map(|form| {
        let model = load(&folder.join(form));
        check(form, &model, &golden);
        logits(&model, &golden.tokens)
    });
    assert!(largest_difference(&all[0], &all[1]) <= 1e-4 * spread(&all[0]));
}

#[test]
fn every_form_of_the_same_weights_gives_the_same_logits() {
    for case in LARGE {
        let golden = golden(case.0);
        let online = model(case, "same-online", Form::Online);
        let expected = logits(&online, &golden.tokens);
        let ty = Masters::new(case.0, case.1).ty();
        let mut forms = vec![
            Form::Gguf(TensorType::I2_S),
            // The scales of these models are numbers of f16.
            Form::Gguf(TensorType::TQ1_0),
            Form::Gguf(TensorType::TQ2_0),
            Form::Gguf(ty),
            Form::GgufNumbers(ty),
            Form::GgufNumbers(TensorType::F32),
            Form::GgufScales(TensorType::F16),
            Form::GgufScales(TensorType::BF16),
        ];
        if !case.0.ends_with("bias") {
            forms.push(Form::AutoBitLinear);
        }
        for form in forms {
            let other = model(case, "same-other", form);
            assert_eq!(other.config(), online.config(), "{form:?}");
            assert_eq!(logits(&other, &golden.tokens), expected, "{} {form:?}", case.0);
        }
        // The inverse of the inverse of a scale may be its neighbour.
        let legacy = logits(&model(case, "same-legacy", Form::BitLinear), &golden.tokens);
        assert!(largest_difference(&legacy, &expected) <= 1e-3 * spread(&expected));
    }
}

#[test]
fn masters_of_a_wider_type_have_a_finer_scale() {
    // The same numbers in f32: the mean is not rounded to bf16.
    let (rounded, exact) =
        (model(CASES[0], "bf16", Form::Online), model(CASES[0], "f32", Form::Gguf(TensorType::F32)));
    let scale = |model: &Model| match &model.weights().layers[0].query.weight {
        Matrix::Ternary(weight) => weight.scale(),
        other => panic!("{other:?}"),
    };
    let (rounded, exact) = (scale(&rounded), scale(&exact));
    assert!(rounded != exact && (rounded / exact - 1.0).abs() < 1.0 / 256.0, "{rounded} {exact}");
    assert_eq!(half::bf16::from_f32(exact).to_f32(), rounded);
}

#[test]
fn token_by_token_equals_the_prompt_at_once() {
    let (model, golden) = (model(CASES[0], "decode", Form::Online), golden(CASES[0].0));
    let expected = logits(&model, &golden.tokens);
    let mut kernels = dense_kernels(&model);
    for (row, token) in golden.tokens.iter().enumerate() {
        let got = model.forward(&[*token], &mut kernels, LogitRows::Last).unwrap();
        let expected = expected.slice(s![row..=row, ..]).to_owned();
        assert!(largest_difference(&got, &expected) <= 1e-3 * spread(&expected), "token {row}");
    }
}

#[test]
fn a_batch_gives_each_sequence_what_it_gets_alone() {
    let (model, golden) = (model(CASES[1], "batch", Form::Online), golden(CASES[1].0));
    let parts = [&golden.tokens[..7], &golden.tokens[7..8], &golden.tokens[8..]];
    let mut kernels: Vec<_> = parts.iter().map(|_| dense_kernels(&model)).collect();
    let mut batch: Vec<_> = (parts.iter().zip(&mut kernels))
        .map(|(tokens, kernels)| Sequence { tokens, kernels: &mut kernels[..], rows: LogitRows::All })
        .collect();
    for (got, tokens) in model.forward_batch(&mut batch).unwrap().iter().zip(parts) {
        let expected = logits(&model, tokens);
        assert!(largest_difference(got, &expected) <= 1e-3 * spread(&expected));
    }
}

#[test]
fn theta_zero_and_a_full_window_leave_the_logits_alone() {
    for case in CASES {
        let (model, golden) = (model(case, "kernels", Form::Online), golden(case.0));
        let expected = logits(&model, &golden.tokens);
        for mut kernels in harmless_kernels(&model) {
            let got = model.forward(&golden.tokens, &mut kernels, LogitRows::All).unwrap();
            assert!(largest_difference(&got, &expected) <= 1e-3 * spread(&expected), "{}", case.0);
        }
    }
}

#[test]
fn fingerprints_tell_the_architectures_apart_and_not_the_formats() {
    let bitnet = model(CASES[0], "fingerprint", Form::Online);
    let gguf = model(CASES[0], "fingerprint-gguf", Form::Gguf(TensorType::I2_S));
    let mut llama = bitnet.config().clone();
    llama.architecture = Architecture::Llama;
    assert_eq!(bitnet.config().fingerprint(), gguf.config().fingerprint());
    assert_ne!(bitnet.config().fingerprint(), llama.fingerprint());
    // Profiles that are in use carry this one.
    let old = ModelFile::open(fixture("llama/gqa1-d32")).unwrap().config().unwrap();
    assert_eq!(old.fingerprint(), LLAMA_FINGERPRINT);
}

/// Of `llama/gqa1-d32`, as it was when Llama was the only architecture.
const LLAMA_FINGERPRINT: ModelFingerprint = ModelFingerprint(0x321d_0ba2_6527_6d2b);

/// The published model, as anybody has it: ids and the mean logit after each of them.
#[test]
#[ignore = "set DELTALLM_TEST_BITNET to the BitNet b1.58 2B4T model, GGUF or directory"]
fn the_published_2b4t_model_gives_its_known_answers() {
    const IDS: [u32; 12] = [128000, 128000, 1502, 25, 2650, 527, 499, 30, 128009, 72803, 25, 220];
    const MEANS: [f32; 12] = [
        -1.8665, -1.7681, -1.7043, 3.7446, 2.7730, 4.7133, 0.9768, -3.5018, -12.2812, -8.1477, -10.2571,
        -8.7610,
    ];
    let path = std::env::var_os("DELTALLM_TEST_BITNET").expect("DELTALLM_TEST_BITNET names the model");
    let logits = logits(&load(Path::new(&path)), &IDS);
    for (row, expected) in logits.outer_iter().zip(MEANS) {
        let mean = row.mean().unwrap();
        assert!((mean - expected).abs() <= 1e-2, "{mean}, expected {expected}");
    }
}

#[test]
fn activations_beyond_the_range_of_f16_are_fine() {
    // Gates of a thousand or four thousand, squared, are beyond it; the norm behind takes the factor out again.
    let (case, seed) = CASES[0];
    let masters = Masters::new(case, seed);
    let plain = load(&masters.write("plain-gates", Form::GgufScales(TensorType::F32)));
    let [one, two] = [1024.0, 4096.0].map(|factor| {
        let mut writer = masters.gguf(Form::GgufScales(TensorType::F32));
        for (index, layer) in plain.weights().layers.iter().enumerate() {
            let Matrix::Ternary(gate) = &layer.gate.weight else { panic!("not ternary") };
            writer =
                writer.f32_tensor(&format!("blk.{index}.ffn_gate.scale"), &[1], &[gate.scale() * factor]);
        }
        let file = ModelFile::from_gguf_bytes("large gates", writer.finish()).unwrap();
        logits(&load_model(file).unwrap(), &golden(case).tokens)
    });
    assert!(one.iter().all(|logit| logit.is_finite()));
    assert!(largest_difference(&one, &two) <= 1e-3 * spread(&one));
}

#[test]
fn a_session_decodes_with_hybrid_attention() {
    let (model, golden) = (model(CASES[0], "session", Form::Gguf(TensorType::I2_S)), golden(CASES[0].0));
    let (model, options) = (Arc::new(model), options());
    let config = HybridConfig::new(ThresholdPolicy::Uniform(0.3)).exact_window(ExactWindow::Sliding(8));
    let hybrid = |layer| {
        Ok(Box::new(HybridAttention::new(
            model.attention_shape(),
            config.clone().layer(layer).options(options.clone()),
        )?) as Box<_>)
    };
    let mut session = Session::new(model.clone(), hybrid).unwrap();
    let last = session.prefill(&golden.tokens).unwrap();
    let next = session.decode(argmax(last.view())).unwrap();
    assert!(next.iter().all(|logit| logit.is_finite()));
    assert!(session.kernels().iter().all(|kernel| kernel.stats().total().zero_fraction() > 0.0));
    let mut dense = Session::new(model.clone(), |_| {
        Ok(Box::new(DenseAttention::new(model.attention_shape(), options.clone())?) as Box<_>)
    })
    .unwrap();
    let exact = dense.prefill(&golden.tokens).unwrap();
    assert_ne!(exact, last);
}
