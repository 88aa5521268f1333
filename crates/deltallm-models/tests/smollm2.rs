//! SmolLM2-135M-Instruct against `transformers` (`tools/goldens/smollm2.py`), with weights as f32 numbers; and with packed ones.
//!
//! The model is not in the repository: `tools/fetch-smollm2` brings it, and `.ci/model` runs this.

mod common;

use common::{
    files::fixture,
    models::{argmax, dense_kernels, load_model},
    published::{Case, assert_cases},
};
use deltallm_models::{LinearForm, LogitRows, Model, ModelFile};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    /// Logits are given for every so many ids.
    stride: usize,
    cases: Vec<Case>,
}

fn goldens() -> Goldens {
    serde_json::from_slice(&std::fs::read(fixture("smollm2.json")).unwrap()).unwrap()
}

/// The model in that form.
fn model(form: LinearForm) -> Model {
    let path = std::env::var_os("DELTALLM_TEST_MODEL").expect("DELTALLM_TEST_MODEL names the model");
    load_model(ModelFile::open(path).unwrap().with_linear_form(form)).unwrap()
}

#[test]
#[ignore = "needs a model: DELTALLM_TEST_MODEL names the SmolLM2 file that tools/fetch-smollm2 brings"]
fn logits_and_greedy_text_equal_transformers() {
    let model = model(LinearForm::F32);
    let goldens = goldens();
    assert_cases("SmolLM2", &model, goldens.stride, &goldens.cases);
}

/// With packed weights the inputs of all linear layers are rounded to 8 bits. The text may part from the exact one only where
/// two tokens are as good as equal: closer than what the rounding moves logits by.
#[test]
#[ignore = "needs a model: DELTALLM_TEST_MODEL names the SmolLM2 file that tools/fetch-smollm2 brings"]
fn packed_weights_give_nearly_the_same_logits_and_text() {
    let model = model(LinearForm::Packed);
    let goldens = goldens();
    let (mut squares, mut count, mut parted) = (0.0, 0, 0);
    for case in &goldens.cases {
        let mut kernels = dense_kernels(&model);
        let mut logits = model.forward(&case.tokens, &mut kernels, LogitRows::Last).unwrap();
        let off = case.logits.iter().zip(logits.iter().step_by(goldens.stride));
        let off: Vec<f32> = off.map(|(a, b)| (a - b).abs()).collect();
        let worst = off.iter().fold(0.0, |most: f32, off| most.max(*off));
        squares += off.iter().map(|off| off * off).sum::<f32>();
        count += off.len();
        let mut same = 0;
        for expected in &case.greedy {
            let next = argmax(logits.row(0));
            if next != *expected {
                let lead = logits[[0, next as usize]] - logits[[0, *expected as usize]];
                println!("token {same}: {next} leads {expected} by {lead:.3}");
                assert!(lead <= 1.0, "{next} instead of {expected}, by {lead}");
                parted += 1;
                break;
            }
            same += 1;
            logits = model.forward(&[next], &mut kernels, LogitRows::Last).unwrap();
        }
        println!(
            "{} tokens: logits off by at most {worst:.3}, {same} of {} tokens the same",
            case.tokens.len(),
            case.greedy.len()
        );
        assert!(worst <= 1.0, "logits off by {worst}");
    }
    let off = (squares / count as f32).sqrt();
    println!("logits off by {off:.3} (root mean square), {parted} of {} texts part", goldens.cases.len());
    assert!(off <= 0.25, "logits off by {off}");
}
