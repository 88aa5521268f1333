//! Log-likelihoods and answers of SmolLM2-135M-Instruct against `transformers` (`tools/goldens/tasks.py`), with weights as f32 numbers.
//!
//! Neither the model nor the task files are in the repository: `tools/fetch-smollm2` brings the model, and the task files
//! belong into `../shared/data/tasks`. Then `cargo test --release -p deltallm-cli --test goldens -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use deltallm::models::LinearForm;
use deltallm_cli::{
    Dataset, Examples, KernelArgs, LastWordExample, LikelihoodExample, LoadedModel, Scorer, Setup, TaskKind,
    answer_questions, read_dataset, score_examples,
};
use serde::Deserialize;

const TOLERANCE: f64 = 1e-3;
/// Unless `DELTALLM_TEST_MODEL` names another file.
const MODEL: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

#[derive(Deserialize)]
struct Goldens {
    /// By file: per example and request, log-likelihood and whether greedy decoding writes the continuation.
    tasks: BTreeMap<String, Vec<Vec<(f64, u8)>>>,
    squad: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    smallest_lead: f64,
    gold: String,
    gold_log_likelihood: f64,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn goldens() -> Goldens {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks.json");
    serde_json::from_slice(&std::fs::read(path).expect("the fixture")).expect("JSON")
}

fn model() -> LoadedModel {
    let path = std::env::var_os("DELTALLM_TEST_MODEL").map_or(root().join(MODEL), PathBuf::from);
    LoadedModel::open_as(Some(&path), LinearForm::F32).expect("a model: tools/fetch-smollm2 brings it")
}

fn data(name: &str) -> PathBuf {
    root().join("../shared/data/tasks").join(name)
}

/// Exact attention on an f32 cache.
fn setup(model: &LoadedModel) -> Setup<'_> {
    let kernel = KernelArgs::parse(["--kernel", "dense", "--kv", "f32"]).expect("settings");
    let kernel = kernel.resolve(&model.graph).expect("settings that fit");
    Setup {
        model,
        kernel,
        dense: None,
        beginning: String::new(),
        delimiter: " ".into(),
        decode: false,
        context: 8192,
    }
}

/// The largest difference in log-likelihood.
fn check<E: LikelihoodExample>(
    setup: &Setup,
    name: &str,
    examples: &[E],
    expected: &[Vec<(f64, u8)>],
) -> f64 {
    let mut worst = 0.0_f64;
    let results = score_examples(
        &mut Scorer::new(setup).expect("a scorer"),
        0,
        &examples[..expected.len()],
        &mut |_| {},
    )
    .expect("scores");
    for (index, (result, expected)) in results.iter().zip(expected).enumerate() {
        let result = result.as_ref().expect("a score");
        assert_eq!(result.run.log_likelihoods.len(), expected.len());
        for (got, (expected, _)) in result.run.log_likelihoods.iter().zip(expected) {
            let off = (got - expected).abs();
            worst = worst.max(off);
            assert!(off <= TOLERANCE, "{name}, example {index}: {got} instead of {expected}");
        }
    }
    worst
}

#[test]
#[ignore = "needs the SmolLM2 model file and the task files"]
fn log_likelihoods_equal_transformers() {
    let model = model();
    let setup = setup(&model);
    for (name, expected) in &goldens().tasks {
        let task = match name.as_str() {
            "winogrande" => TaskKind::Schema,
            "lambada_openai" | "gsm8k" => TaskKind::LastWord,
            _ => TaskKind::Choices,
        };
        let Dataset { examples, .. } =
            read_dataset("--data", &data(&format!("{name}.jsonl")), task).expect("records");
        let worst = match &examples {
            Examples::Choices(examples) => check(&setup, name, examples, expected),
            Examples::LastWord(examples) => {
                let results = score_examples(
                    &mut Scorer::new(&setup).expect("a scorer"),
                    0,
                    &examples[..expected.len()],
                    &mut |_| {},
                )
                .expect("scores");
                for (result, expected) in results.iter().flatten().zip(expected) {
                    assert_eq!(result.run.metrics[0], f64::from(expected[0].1), "{name}");
                }
                check(&setup, name, examples, expected)
            }
            Examples::Squad(_) => unreachable!("not among the tasks"),
        };
        println!("{name}: {} examples, log-likelihoods off by at most {worst:.1e}", expected.len());
    }
}

#[test]
#[ignore = "needs the SmolLM2 model file and the task files"]
fn answers_equal_transformers() {
    let model = model();
    let setup = setup(&model);
    let expected = goldens().squad;
    let Dataset { examples, .. } =
        read_dataset("--data", &data("squad_v2_dev.json"), TaskKind::Squad).expect("questions");
    let Examples::Squad(questions) = examples else { panic!("expected questions") };
    let questions = &questions[..expected.len()];

    let golds: Vec<_> = questions
        .iter()
        .zip(&expected)
        .map(|(q, e)| LastWordExample::new(q.prompt(), e.gold.clone()))
        .collect();
    let scores: Vec<_> = expected.iter().map(|answer| vec![(answer.gold_log_likelihood, 0)]).collect();
    let worst = check(&setup, "squad", &golds, &scores);
    println!("squad: {} gold answers, log-likelihoods off by at most {worst:.1e}", expected.len());

    let mut answers = Vec::new();
    for batch in questions.chunks(16) {
        answers.extend(answer_questions(&setup, batch, &mut |_| {}).expect("answers"));
    }
    for (answer, expected) in answers.iter().flatten().zip(&expected) {
        // A lead smaller than the error of the logits can go either way.
        assert!(
            answer.run.prediction == expected.text || expected.smallest_lead < TOLERANCE,
            "{:?} instead of {:?}",
            answer.run.prediction,
            expected.text
        );
    }
}
