//! What `transformers` computes with a published model.

use deltallm_models::{LogitRows, Model};
use serde::Deserialize;

use super::models::{argmax, dense_kernels};

/// A prompt, its tokens, and what comes after it.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) prompt: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
    /// The most probable token, and its logit.
    pub(crate) argmax: u32,
    pub(crate) max: f32,
    /// Of every so many ids.
    pub(crate) logits: Vec<f32>,
}

/// Logits of every `stride`-th id agree to 2e-3, and the greedy text is the same.
pub(crate) fn assert_cases(name: &str, model: &Model, stride: usize, cases: &[Case]) {
    let mut worst = 0.0_f32;
    for case in cases {
        let mut kernels = dense_kernels(model);
        let logits = model.forward(&case.tokens, &mut kernels, LogitRows::Last).unwrap();
        let off = case.logits.iter().zip(logits.iter().step_by(stride));
        let off = off.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let start: String = case.prompt.chars().take(30).collect();
        println!("{name}, {start:?}...: {} tokens, logits off by at most {off:.1e}", case.tokens.len());
        worst = worst.max(off);
        let mut next = argmax(logits.row(0));
        assert_eq!(next, case.argmax);
        assert!((logits[[0, next as usize]] - case.max).abs() <= 2e-3);
        for expected in &case.greedy {
            assert_eq!(next, *expected, "{name}");
            next = argmax(model.forward(&[next], &mut kernels, LogitRows::Last).unwrap().row(0));
        }
    }
    assert!(worst <= 2e-3, "{name}: logits off by {worst:e}");
}
