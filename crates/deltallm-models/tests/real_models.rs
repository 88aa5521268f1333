//! Published models of other families against `transformers` (`tools/goldens/real.py`), with weights as f32 numbers.
//!
//! The models are not in the repository. A folder that has them is named like this:
//! `DELTALLM_TEST_MODELS=FOLDER cargo test -p deltallm-models --test real_models -- --ignored --nocapture`

mod common;

use std::path::Path;

use common::{
    files::fixture,
    models::{dense_kernels, load_model},
    published::{Case, assert_cases},
};
use deltallm_models::{LinearForm, LogitRows, Model, ModelFile, Tokenizer};
use serde::Deserialize;

/// The fixture of a model, and its file.
const MODELS: [(&str, &str); 3] = [
    ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
    ("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
    ("gemma-3-270m", "gemma-3-270m-q4_k_m.gguf"),
];

#[derive(Deserialize)]
struct Goldens {
    /// Logits are given for every so many ids.
    stride: usize,
    cases: Vec<Case>,
    windows: Vec<Window>,
    texts: Vec<Text>,
}

/// Tokens, and the mean over all but the first of the negative logarithm of their probability.
#[derive(Deserialize)]
struct Window {
    tokens: Vec<u32>,
    mean_nll: f64,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

fn files() -> impl Iterator<Item = (&'static str, ModelFile, Goldens)> {
    let folder = std::env::var_os("DELTALLM_TEST_MODELS").expect("DELTALLM_TEST_MODELS names a folder");
    MODELS.into_iter().map(move |(name, file)| {
        let goldens = std::fs::read(fixture("real").join(format!("{name}.json"))).unwrap();
        let file = ModelFile::open(Path::new(&folder).join(file)).unwrap();
        (name, file.with_linear_form(LinearForm::F32), serde_json::from_slice(&goldens).unwrap())
    })
}

#[test]
#[ignore = "needs models: DELTALLM_TEST_MODELS names the folder"]
fn logits_greedy_text_and_perplexity_equal_transformers() {
    for (name, file, goldens) in files() {
        let model = load_model(file).unwrap();
        assert_cases(name, &model, goldens.stride, &goldens.cases);
        for window in &goldens.windows {
            let got = mean_nll(&model, &window.tokens);
            let off = (got - window.mean_nll).exp() - 1.0;
            println!("{name}: perplexity {:.4}, off by {:.4} %", got.exp(), 100.0 * off);
            assert!(off.abs() <= 1e-3, "{name}: {got}, expected {}", window.mean_nll);
        }
    }
}

fn mean_nll(model: &Model, tokens: &[u32]) -> f64 {
    let mut kernels = dense_kernels(model);
    let (mut sum, mut done) = (0.0, 0);
    // Logits of a few tokens at a time: vocabularies are large.
    for part in tokens[..tokens.len() - 1].chunks(64) {
        let logits = model.forward(part, &mut kernels, LogitRows::All).unwrap();
        for (row, next) in logits.outer_iter().zip(&tokens[done + 1..]) {
            let most = row.fold(f32::MIN, |most, x| most.max(*x));
            let total: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            sum += total.ln() - f64::from(row[*next as usize] - most);
        }
        done += part.len();
    }
    sum / done as f64
}

#[test]
#[ignore = "needs models: DELTALLM_TEST_MODELS names the folder"]
fn tokens_equal_those_of_transformers() {
    for (name, file, goldens) in files() {
        let tokenizer = Tokenizer::from_model(&file).unwrap();
        assert!(goldens.texts.len() > 40, "{name}");
        for Text { text, ids } in &goldens.texts {
            assert_eq!(&tokenizer.encode_prompt(text, false).unwrap(), ids, "{name}: {text:?}");
        }
        for Case { prompt, tokens, .. } in &goldens.cases {
            assert_eq!(&tokenizer.encode_prompt(prompt, true).unwrap(), tokens, "{name}: {prompt:?}");
        }
    }
}
