//! The whole path on a published model, which the environment names.

use std::time::Instant;

use deltallm_models::{ModelFile, ModelWeights};

/// Any model will do; run with `--nocapture` to see the time.
#[test]
#[ignore = "needs a model: DELTALLM_TEST_MODEL names the file"]
fn a_published_model_loads() {
    let path = std::env::var_os("DELTALLM_TEST_MODEL").expect("DELTALLM_TEST_MODEL names the model");
    let start = Instant::now();
    let file = ModelFile::open(&path).unwrap();
    let config = file.config().unwrap();
    let opened = start.elapsed();
    let weights = ModelWeights::load(&file, &config).unwrap();
    eprintln!("opened in {opened:?}, opened and converted in {:?}: {config:?}", start.elapsed());

    assert_eq!(weights.layers.len(), config.layers);
    assert_eq!(weights.token_embedding.dim(), (config.vocab_size, config.hidden_size));
    // Trained weights are spread around zero, whatever the model; a wrong block layout is not.
    for layer in &weights.layers {
        for linear in [&layer.query, &layer.key, &layer.value, &layer.gate, &layer.up, &layer.down] {
            let weight = linear.weight.to_dense();
            let count = weight.len() as f32;
            let mean = weight.sum() / count;
            let deviation = (weight.mapv(|x| (x - mean).powi(2)).sum() / count).sqrt();
            assert!(deviation > 1e-4 && mean.abs() < 0.05 * deviation, "mean {mean}, deviation {deviation}");
        }
    }
}
