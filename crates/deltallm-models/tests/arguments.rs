//! Values that no caller means: each is an error, or does what it says, and none panics.
#![cfg(all(feature = "gguf", feature = "safetensors"))]

mod common;

use std::fmt::Debug;
use std::sync::Arc;

use common::files::fixture;
use common::models::{dense_kernels, load_model};
use deltallm_attn::{
    AttentionError, AttentionKernel, HeadsView, HeadsViewMut, KernelSpec, LayerSpec, SparsityStats,
};
use deltallm_core::Footprint;
use deltallm_models::quant::TensorType;
use deltallm_models::{
    ConfigError, Generation, HalfLinear, LayerTensor, LayerWeights, Linear, LinearError, LogitRows, Matrix,
    Model, ModelConfig, ModelError, ModelFile, ModelWeights, QuantisedError, QuantisedLinear, RopeScaling,
    Sampler, SamplerConfig, Sequence, Session, TensorId, TernaryError, TernaryLinear,
};
use ndarray::{Array1, Array2};

const FILES: [&str; 3] =
    ["llama/gqa3-d64-llama3/model.gguf", "llama/gqa3-d64-llama3", "bitnet/gqa4-d32/autobitlinear"];

fn model() -> Arc<Model> {
    Arc::new(load_model(ModelFile::open(fixture(FILES[0])).unwrap()).unwrap())
}

/// A matrix in every form, of 2 outputs and 256 inputs.
fn matrices() -> Vec<Matrix> {
    let dense = Array2::from_shape_fn((2, 256), |(row, column)| ((row + column) % 3) as f32 - 1.0);
    let block = vec![0; TensorType::Q8_0.block_bytes() * 8];
    let ternary = TernaryLinear::from_rows::<TernaryError>(2, 256, 1.0, |_, _| Ok(()));
    vec![
        Matrix::F16(HalfLinear::new(dense.mapv(half::f16::from_f32))),
        Matrix::Bf16(HalfLinear::new(dense.mapv(half::bf16::from_f32))),
        Matrix::F32(dense),
        Matrix::Ternary(ternary.unwrap()),
        Matrix::Quantised(QuantisedLinear::from_rows(TensorType::Q8_0, 2, 256, |_| &block).unwrap()),
    ]
}

/// Parameters that were changed after they had been read: each size in turn is 0, 1 or far too large.
fn changed(config: &ModelConfig) -> Vec<ModelConfig> {
    let fields: [fn(&mut ModelConfig) -> &mut usize; 8] = [
        |config| &mut config.hidden_size,
        |config| &mut config.layers,
        |config| &mut config.heads,
        |config| &mut config.kv_heads,
        |config| &mut config.head_dim,
        |config| &mut config.intermediate_size,
        |config| &mut config.vocab_size,
        |config| &mut config.context_length,
    ];
    let values = [0, usize::MAX, usize::MAX / 2 + 1, 1 << 18, 1];
    let all = fields.iter().flat_map(|field| values.map(|value| (field, value)));
    all.map(|(field, value)| {
        let mut config = config.clone();
        *field(&mut config) = value;
        config
    })
    .collect()
}

#[test]
fn parameters_that_no_model_has_are_refused_by_every_reader() {
    let tensors = [
        LayerTensor::AttentionNorm,
        LayerTensor::Query,
        LayerTensor::Value,
        LayerTensor::AttentionOutput,
        LayerTensor::Gate,
        LayerTensor::Down,
    ];
    let layers =
        [0, usize::MAX].into_iter().flat_map(|layer| tensors.map(|tensor| TensorId::Layer(layer, tensor)));
    let ids: Vec<_> = layers.chain([TensorId::TokenEmbedding, TensorId::FinalNorm, TensorId::Head]).collect();
    for path in FILES {
        let file = ModelFile::open(fixture(path)).unwrap();
        let good = file.config().unwrap();
        for mut config in changed(&good) {
            let valid = config.validate().is_ok();
            config.attention_bias = true;
            for id in &ids {
                let results = [
                    file.matrix(&config, *id).err(),
                    file.weight(&config, *id).err(),
                    file.linear(&config, *id).err(),
                    file.norm(&config, *id).err(),
                    file.ternary(&config, *id).err(),
                    file.bias(&config, *id).err(),
                ];
                for error in results.into_iter().take(if valid { 0 } else { 5 }) {
                    assert!(matches!(error, Some(ModelError::Config { .. })), "{path} {id:?} {config:?}");
                }
            }
            let loaded = ModelWeights::load(&file, &config);
            assert!(valid || matches!(loaded, Err(ModelError::Config { .. })), "{config:?}");
            let _ = LayerWeights::load(&file, &config, 0);
            let _ = config.fingerprint();
        }
        let beyond = LayerWeights::load(&file, &good, usize::MAX);
        assert!(matches!(beyond, Err(ModelError::MissingTensor { .. })));
    }
}

#[test]
fn heads_that_no_model_has_have_no_frequencies() {
    let mut config = model().config().clone();
    for head_dim in [0, usize::MAX, 1 << 40] {
        assert!(matches!(config.rope.frequencies(head_dim), Err(ConfigError::Size { .. })));
    }
    for scaling in [
        RopeScaling::Factors(vec![]),
        RopeScaling::Factors(vec![0.0, f32::NAN]),
        RopeScaling::Linear { factor: 0.0 },
        RopeScaling::Llama3 {
            factor: f32::NAN,
            low_freq_factor: f32::INFINITY,
            high_freq_factor: f32::INFINITY,
            original_context: usize::MAX,
        },
    ] {
        config.rope.scaling = scaling;
        assert!(config.validate().is_err());
        assert_eq!(config.rope.frequencies(64).unwrap().len(), 32);
        let _ = config.fingerprint();
    }
}

#[test]
fn text_that_is_no_configuration_is_refused() {
    for text in ["", "{", "[]", "null", r#"{"model_type": "llama", "model_type": "llama"}"#, "\u{0}"] {
        assert!(ModelConfig::from_json(text).is_err(), "{text:?}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(ModelConfig::from_json(&deep), Err(ConfigError::Json { .. })));
}

#[test]
fn matrices_of_any_size_are_made_or_refused() {
    let ternary = |rows, columns| {
        TernaryLinear::from_rows::<TernaryError>(rows, columns, 1.0, |_, _| unreachable!("no memory"))
    };
    for rows in [usize::MAX, usize::MAX - 15, 1 << 60, 1 << 55] {
        let wide = ternary(rows, TernaryLinear::MAX_COLUMNS);
        assert!(matches!(wide, Err(TernaryError::Memory { .. })), "{rows}");
    }
    for columns in [0, TernaryLinear::MAX_COLUMNS + 1, usize::MAX] {
        assert!(matches!(ternary(1, columns), Err(TernaryError::Shape { .. })), "{columns}");
    }
    for scale in [f32::NAN, f32::INFINITY] {
        let ternary = TernaryLinear::from_rows::<TernaryError>(1, 1, scale, |_, _| Ok(()));
        assert!(matches!(ternary, Err(TernaryError::Scale { .. })));
    }
    for ty in TensorType::ALL {
        let row = vec![0; ty.block_bytes()];
        let columns = ty.block_elements();
        let linear = |rows, columns| QuantisedLinear::from_rows(ty, rows, columns, |_| &row);
        let results = [
            linear(usize::MAX, columns),
            linear(1 << 60, columns),
            linear(1, usize::MAX / columns * columns),
            linear(1, usize::MAX),
            linear(0, columns),
            linear(1, 0),
        ];
        for (case, result) in results.iter().enumerate() {
            match (case, result) {
                _ if !QuantisedLinear::supports(ty) => {
                    assert!(matches!(result, Err(QuantisedError::Type { .. })));
                }
                (0 | 1, result) => assert!(matches!(result, Err(QuantisedError::Memory { .. })), "{ty}"),
                (2, result) => {
                    assert!(matches!(result, Err(QuantisedError::RowBytes { row: 0, .. })), "{ty}")
                }
                (_, result) => assert!(matches!(result, Err(QuantisedError::Shape { .. })), "{ty} {case}"),
            }
        }
    }
}

#[test]
fn inputs_and_rows_that_do_not_fit_a_matrix_are_refused() {
    for matrix in matrices() {
        for columns in [0, 1, 255, 257] {
            let refused = matrix.apply(&Array2::zeros((3, columns)).view());
            assert_eq!(refused, Err(LinearError::Columns { expected: 256, got: columns }));
        }
        assert_eq!(matrix.apply(&Array2::zeros((0, 256)).view()).unwrap().dim(), (0, 2));
        for row in [2, usize::MAX] {
            assert_eq!(matrix.row(row), Err(LinearError::Row { rows: 2, got: row }));
            assert_eq!(matrix.rows(&[0, row]), Err(LinearError::Row { rows: 2, got: row }));
        }
        assert_eq!(matrix.rows(&[]).unwrap().dim(), (0, 256));
        match &matrix {
            Matrix::Ternary(linear) => {
                assert!(linear.row(usize::MAX, &mut [0; 256]).is_err());
                assert!(linear.row(0, &mut [0; 255]).is_err());
                assert!(linear.apply(&Array2::zeros((1, 9)).view()).is_err());
            }
            Matrix::Quantised(linear) => {
                assert!(linear.row(usize::MAX, &mut [0.0; 256]).is_err());
                assert!(linear.row(0, &mut [0.0; 257]).is_err());
                assert!(linear.apply(&Array2::zeros((1, 9)).view()).is_err());
            }
            _ => {}
        }
        let linear = Linear { weight: matrix, bias: Some(Array1::zeros(3)) };
        let refused = linear.apply(&Array2::zeros((1, 256)).view());
        assert_eq!(refused, Err(LinearError::Bias { expected: 2, got: 3 }));
    }
}

#[test]
fn matrices_without_weights_give_what_there_is() {
    for (rows, columns) in [(0, 0), (0, 5), (4, 0)] {
        let dense = Array2::<f32>::zeros((rows, columns));
        let half = HalfLinear::new(dense.mapv(half::f16::from_f32));
        for matrix in [Matrix::F32(dense), Matrix::F16(half)] {
            let y = matrix.apply(&Array2::zeros((3, columns)).view()).unwrap();
            assert_eq!(y, Array2::<f32>::zeros((3, rows)));
            assert_eq!(matrix.to_dense().dim(), (rows, columns));
        }
    }
}

#[test]
fn calls_without_sequences_or_with_rows_without_end() {
    let model = model();
    let none: &mut [Sequence<Box<dyn AttentionKernel>>] = &mut [];
    assert!(model.forward_batch(none).unwrap().is_empty());
    let logits = model.forward(&[1, 2], &mut dense_kernels(&model), LogitRows::Tail(usize::MAX)).unwrap();
    assert_eq!(logits.nrows(), 2);
    let none = model.forward(&[1, 2], &mut dense_kernels(&model), LogitRows::Tail(0)).unwrap();
    assert_eq!(none.nrows(), 0);
    let unknown = model.forward(&[u32::MAX], &mut dense_kernels(&model), LogitRows::Last);
    assert!(matches!(unknown, Err(ModelError::TokenOutOfRange { id: u32::MAX, .. })));
    let no_kernels: &mut [Box<dyn AttentionKernel>] = &mut [];
    assert!(matches!(model.forward(&[1], no_kernels, LogitRows::All), Err(ModelError::KernelCount { .. })));
}

#[test]
fn chunks_and_lengths_of_a_session_without_end() {
    let mut session = Session::with_spec(model(), &KernelSpec::default()).unwrap();
    for chunk in [usize::MAX, 0, 1] {
        session.set_chunk(chunk);
        session.prefill(&[1, 2, 3]).unwrap();
    }
    assert!(session.rewind(usize::MAX).is_err() && session.rewind(10).is_err());
    assert_eq!(session.tokens().len(), 9);
    assert!(session.decode(u32::MAX).is_err());
    session.score(&[], |_, _| {}).unwrap_err();
    session.rewind(0).unwrap();
    assert!(session.tokens().is_empty());
}

/// Says that it holds as many tokens as there can be.
struct Endless;

impl AttentionKernel for Endless {
    fn forward_heads(
        &mut self,
        _: HeadsView,
        _: HeadsView,
        _: HeadsView,
        _: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        Ok(())
    }

    fn begin_prompt(&mut self, _: usize) {}

    fn len(&self) -> usize {
        usize::MAX
    }

    fn truncate(&mut self, _: usize) -> Result<(), AttentionError> {
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn stats(&self) -> SparsityStats {
        SparsityStats::default()
    }

    fn growth(&self, _: usize) -> Option<usize> {
        Some(usize::MAX)
    }

    fn narrow(&mut self) -> Result<usize, AttentionError> {
        Ok(0)
    }
}

#[test]
fn a_kernel_that_holds_usize_max_tokens_leaves_no_room() {
    let mut session = Session::new(model(), |_| Ok(Box::new(Endless))).unwrap();
    let full = |result: Result<Array1<f32>, ModelError>| {
        assert!(matches!(result, Err(ModelError::ContextFull { got: usize::MAX, .. })));
    };
    full(session.prefill(&[1, 2]));
    full(session.decode(1));
    assert!(Session::decode_together(&mut [(&mut session, 1)]).is_err());
}

#[test]
fn a_spec_for_another_model_is_refused_by_its_field() {
    let spec = KernelSpec::default().layers(vec![LayerSpec::default(); 99]);
    let error = Session::with_spec(model(), &spec).unwrap_err();
    assert!(matches!(&error, ModelError::Spec(error) if error.field == "layers"), "{error}");
    assert_eq!(
        error.to_string(),
        "attention settings: layers: expected none, or 2, one for each layer of the model, got 99"
    );
}

#[test]
fn samplers_choose_from_logits_of_any_size() {
    let extreme = [f32::MAX, -f32::MAX, f32::MIN_POSITIVE, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-45];
    let configs = [
        SamplerConfig::default(),
        SamplerConfig::default().with_temperature(f32::MIN_POSITIVE),
        SamplerConfig::default().with_temperature(1e-45).with_top_k(usize::MAX),
        SamplerConfig::default().with_temperature(f32::MAX).with_top_p(1e-45).with_seed(u64::MAX),
        SamplerConfig::default().with_temperature(1.0).with_min_p(1.0).with_repetition_penalty(1e-45),
        SamplerConfig::default().with_temperature(1.0).with_repetition_penalty(f32::MAX),
    ];
    for config in configs {
        let mut sampler = Sampler::new(config).unwrap();
        for len in 1..=extreme.len() {
            let history: Vec<u32> = (0..len as u32).collect();
            assert!((sampler.sample_after(&extreme[..len], &history).unwrap() as usize) < len);
        }
    }
}

#[test]
fn what_is_shared_among_threads_can_be_and_everything_can_be_shown() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    fn shown<T: Debug>() {}
    shared::<Model>();
    sent::<Session>();
    shown::<Session>();
    shown::<Generation<'_>>();
    shown::<Sequence<'_, Box<dyn AttentionKernel>>>();
    let session = Session::with_spec(model(), &KernelSpec::default()).unwrap();
    assert!(format!("{session:?}").contains("tokens: 0"));
}
