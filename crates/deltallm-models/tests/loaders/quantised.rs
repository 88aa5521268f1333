//! Quantised weights that stay packed.

use deltallm_models::quant::TensorType::{self, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use deltallm_models::{LayerTensor, LinearForm, LogitRows, Matrix, Model, ModelError, ModelFile, TensorId};
use ndarray::Array2;

use crate::common::gguf_writer::GgufWriter;
use crate::common::models::{dense_kernels, load_model};
use crate::common::tiny;

/// A projection each, `[out, in]`, and its type.
const PROJECTIONS: [(LayerTensor, &str, [usize; 2], TensorType); 7] = [
    (LayerTensor::Query, "attn_q", [256, 256], Q4_1),
    (LayerTensor::Key, "attn_k", [128, 256], Q8_0),
    (LayerTensor::Value, "attn_v", [128, 256], Q5_0),
    (LayerTensor::AttentionOutput, "attn_output", [256, 256], Q5_K),
    (LayerTensor::Gate, "ffn_gate", [512, 256], Q4_0),
    (LayerTensor::Up, "ffn_up", [512, 256], Q4_K),
    (LayerTensor::Down, "ffn_down", [256, 512], Q6_K),
];

/// Blocks that look random, with weights of a few hundredths.
fn blocks(ty: TensorType, [rows, columns]: [usize; 2], seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (rows as u64 * 7 + columns as u64);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut bytes: Vec<u8> =
        (0..rows * columns / ty.block_elements() * ty.block_bytes()).map(|_| next()).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        let (scale, at, minimum): (u16, usize, Option<u16>) = match ty {
            Q4_0 => (0x1c00, 0, None),
            Q4_1 => (0x1c00, 0, Some(0xa800)),
            Q5_0 => (0x1800, 0, None),
            Q5_1 => (0x1800, 0, Some(0xa800)),
            Q8_0 => (0x0c00, 0, None),
            Q6_K => (0x0200, 208, None),
            _ => (0x0800, 0, Some(0x0800)),
        };
        block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        if let Some(minimum) = minimum {
            block[2..4].copy_from_slice(&minimum.to_le_bytes());
        }
    }
    bytes
}

/// A Llama of one layer and 5 tokens, with an embedding of type Q5_1 that is its head too.
fn llama(seed: u64) -> GgufWriter {
    let mut writer = tiny::parameters("llama", 5);
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        writer = writer.f32_tensor(&format!("{name}.weight"), &[256], &[1.0; 256]);
    }
    writer = writer.tensor("token_embd.weight", &[5, 256], Q5_1, &blocks(Q5_1, [5, 256], seed));
    for (_, name, shape, ty) in PROJECTIONS {
        writer = writer.tensor(&format!("blk.0.{name}.weight"), &shape, ty, &blocks(ty, shape, seed));
    }
    writer
}

#[test]
fn packed_weights_are_those_of_the_file_with_rows_in_half_split_order() {
    let file = tiny::open(&llama(0));
    let config = file.config().unwrap();
    for (tensor, name, shape, ty) in PROJECTIONS {
        let id = TensorId::Layer(0, tensor);
        let (weight, expected) =
            (file.linear(&config, id).unwrap().weight, file.matrix(&config, id).unwrap());
        let Matrix::Quantised(packed) = &weight else { panic!("{name} is not packed") };
        assert_eq!(([packed.rows(), packed.columns()], packed.tensor_type()), (shape, ty));
        let dense = weight.to_dense();
        // The factors of K-quants are rounded to 11 bits.
        let precision = if ty.block_elements() == 256 { 0.002 } else { 0.0 };
        for (got, expected) in dense.iter().zip(&expected) {
            assert!((got - expected).abs() <= precision * 0.2, "{name}: {got} {expected}");
        }
        assert_eq!(weight.row(3).unwrap(), dense.row(3));
    }
    let table = file.weight(&config, TensorId::TokenEmbedding).unwrap();
    assert!(matches!(table, Matrix::Quantised(_)) && table.dim() == (5, 256));
    assert_eq!(
        table.rows(&[0, 1, 2, 3, 4]).unwrap(),
        file.matrix(&config, TensorId::TokenEmbedding).unwrap()
    );
}

#[test]
fn the_form_f32_leaves_nothing_packed() {
    let file = tiny::open(&llama(0)).with_linear_form(LinearForm::F32);
    let config = file.config().unwrap();
    for (tensor, name, ..) in PROJECTIONS {
        let weight = file.linear(&config, TensorId::Layer(0, tensor)).unwrap().weight;
        assert!(matches!(weight, Matrix::F32(_)), "{name}");
    }
    let table = file.weight(&config, TensorId::TokenEmbedding).unwrap();
    assert!(matches!(table, Matrix::F32(_)));
}

/// What packing does to the logits: inputs of linear maps are rounded to 8 bits, block by block.
///
/// Blocks of 32 numbers are rounded in steps of `most / 127`, where `most` is the largest of the block and at most sqrt(32)
/// times its root mean square. Errors within half a step have a root mean square of `step / sqrt(12)`, so a map is given, and
/// answers, at most this share of noise. The noises of maps do not depend on each other, and what lies between maps (norms,
/// sums with the residual) passes a share on: squares add up over the seven projections and the head. This holds for the
/// mean of squares, so it is taken over many models.
#[test]
fn logits_of_both_forms_differ_by_the_rounding_of_eight_maps_at_most() {
    const MODELS: u64 = 20;
    let share = (32.0_f32 / 12.0).sqrt() / 127.0;
    let bound = 8.0_f32.sqrt() * share;
    let squares = |x: &Array2<f32>| x.iter().map(|x| x * x).sum::<f32>();
    let off = |seed| {
        let logits = |file: ModelFile| {
            let model = load_model(file).unwrap();
            model.forward(&[1, 0, 4, 2, 3], &mut dense_kernels(&model), LogitRows::All).unwrap()
        };
        let packed = logits(tiny::open(&llama(seed)));
        let exact = logits(tiny::open(&llama(seed)).with_linear_form(LinearForm::F32));
        squares(&(&packed - &exact)) / squares(&exact)
    };
    let off: Vec<f32> = (0..MODELS).map(off).collect();
    assert!(off.iter().all(|off| *off > 0.0), "{off:?}");
    let mean = (off.iter().sum::<f32>() / MODELS as f32).sqrt();
    assert!(mean <= bound, "{mean}, at most {bound}");
}

#[test]
fn scales_that_are_not_finite_are_refused_by_their_row_in_the_file() {
    for (name, shape, ty) in [("attn_q", [256, 256], Q4_1), ("ffn_up", [512, 256], Q4_K)] {
        for (at, float) in [(0, 0x7e00_u16), (2, 0xfc00)] {
            let mut bytes = blocks(ty, shape, 0);
            let place = 9 * bytes.len() / shape[0] + at;
            bytes[place..place + 2].copy_from_slice(&float.to_le_bytes());
            let file = tiny::open(&llama(0).tensor(&format!("blk.0.{name}.weight"), &shape, ty, &bytes));
            match Model::load(&file) {
                Err(ModelError::NonFiniteWeight { tensor, row: 9, column: 0, got, .. }) => {
                    assert!(tensor.contains(name) && !got.is_finite());
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_matrix_with_a_scale_beyond_16_bits_is_held_as_f32() {
    let mut bytes = blocks(Q4_K, [512, 256], 0);
    // The largest 16-bit float, times 2.
    bytes[..2].copy_from_slice(&0x7bff_u16.to_le_bytes());
    bytes[4] = 2;
    let file = tiny::open(&llama(0).tensor("blk.0.ffn_up.weight", &[512, 256], Q4_K, &bytes));
    let weight = file.linear(&file.config().unwrap(), TensorId::Layer(0, LayerTensor::Up)).unwrap().weight;
    assert!(matches!(weight, Matrix::F32(_)));
}
