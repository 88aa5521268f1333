//! SmolLM2-135M-Instruct against `transformers` (`tools/goldens/smollm2.py`).
//!
//! The model is not in the repository. `tools/fetch-smollm2` brings it; then
//! `DELTALLM_TEST_MODEL=models/SmolLM2-135M-Instruct.Q4_1.gguf cargo test -p deltallm-models --test smollm2`.

mod common;

use common::{
    files::fixture,
    models::{argmax, dense_kernels},
};
use deltallm_models::{LogitRows, Model, ModelFile};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    /// Logits are given for every so many ids.
    stride: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    tokens: Vec<u32>,
    greedy: Vec<u32>,
    argmax: u32,
    max: f32,
    logits: Vec<f32>,
}

#[test]
fn logits_and_greedy_text_equal_transformers() {
    let Ok(path) = std::env::var("DELTALLM_TEST_MODEL") else {
        println!("skipped: set DELTALLM_TEST_MODEL to the SmolLM2 GGUF (tools/fetch-smollm2)");
        return;
    };
    let goldens: Goldens = serde_json::from_slice(&std::fs::read(fixture("smollm2.json")).unwrap()).unwrap();
    let model = Model::load(&ModelFile::open(path).unwrap(), &mut |_, _| {}).unwrap();
    let mut worst = 0.0_f32;
    for case in &goldens.cases {
        let mut kernels = dense_kernels(&model);
        let logits = model.forward(&case.tokens, &mut kernels, LogitRows::Last).unwrap();
        let off = case.logits.iter().zip(logits.iter().step_by(goldens.stride));
        let off = off.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let start: String = case.prompt.chars().take(30).collect();
        println!("{start:?}...: {} tokens, logits off by at most {off:.1e}", case.tokens.len());
        worst = worst.max(off);
        let mut next = argmax(logits.row(0));
        assert_eq!(next, case.argmax);
        assert!((logits[[0, next as usize]] - case.max).abs() <= 2e-3);
        for expected in &case.greedy {
            assert_eq!(next, *expected);
            next = argmax(model.forward(&[next], &mut kernels, LogitRows::Last).unwrap().row(0));
        }
    }
    assert!(worst <= 2e-3, "logits off by {worst:e}");
}
