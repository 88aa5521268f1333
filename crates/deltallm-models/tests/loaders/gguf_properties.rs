//! Properties of the GGUF reader: what is written is read, and no bytes make it panic.

use std::collections::BTreeMap;

use deltallm_models::gguf::{Array, GgufFile, Value};
use deltallm_models::quant::TensorType;
use deltallm_models::{ModelFile, ModelWeights};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::common::gguf_writer::GgufWriter;
use crate::common::tiny;

/// Floats are compared with `==`, so no NaN.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        array().prop_map(Value::Array),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(any::<f32>(), 0..9).prop_map(Array::F32),
        vec(any::<f64>(), 0..9).prop_map(Array::F64),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(any::<String>(), 0..9).prop_map(Array::String),
    ];
    flat.prop_recursive(3, 16, 3, |inner| vec(inner, 0..3).prop_map(Array::Array))
}

/// A shape of up to 4 dimensions whose rows are whole blocks, and data for it.
fn tensor() -> impl Strategy<Value = (TensorType, Vec<usize>, Vec<u8>)> {
    (0..TensorType::ALL.len(), vec(1usize..4, 0..4), 1usize..3).prop_flat_map(|(ty, outer, blocks)| {
        let ty = TensorType::ALL[ty];
        let mut shape = outer;
        shape.push(blocks * ty.block_elements());
        let bytes = ty.bytes_for(shape.iter().product::<usize>() as u64).unwrap();
        (Just(ty), Just(shape), vec(any::<u8>(), bytes as usize))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(128)))]

    #[test]
    fn what_is_written_is_read(
        version in 2u32..4,
        alignment in 0u32..8,
        entries in btree_map("[a-z.]{1,12}", value(), 0..8),
        tensors in btree_map(any::<String>(), tensor(), 0..6),
    ) {
        // Only files of BitNet models have tensors of type `I2_S`.
        let architecture = Value::String("bitnet".into());
        let mut writer = GgufWriter::new().align(1 << alignment).set("general.architecture", architecture);
        writer.version = version;
        for (key, value) in &entries {
            writer = writer.set(key, value.clone());
        }
        for (name, (ty, shape, bytes)) in &tensors {
            writer = writer.tensor(name, shape, *ty, bytes);
        }
        let bytes = writer.finish();
        let file = GgufFile::parse(&bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;

        prop_assert_eq!(file.version(), version);
        let read: BTreeMap<_, _> = file
            .metadata()
            .iter()
            .filter(|(key, _)| !key.starts_with("general."))
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect();
        prop_assert_eq!(read, entries);
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, (ty, shape, data)) in &tensors {
            let info = file.tensor(name).ok_or_else(|| TestCaseError::fail("missing"))?;
            prop_assert_eq!((&info.ty, &info.shape), (ty, shape));
            prop_assert_eq!(&bytes[info.range.clone()], &data[..]);
        }
    }
}

/// Parses and, if that works, loads everything: whatever happens, no panic.
fn load(bytes: Vec<u8>) -> bool {
    let Ok(file) = ModelFile::from_gguf_bytes("mutated", bytes) else { return false };
    let Ok(config) = file.config() else { return false };
    ModelWeights::load(&file, &config).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(2048)))]

    #[test]
    fn flipped_bits_and_truncation_never_panic(
        flips in vec((any::<prop::sample::Index>(), 0u32..8), 1..6),
        length in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = tiny::llama().set("general.tags", Value::Array(Array::String(vec!["a".into()]))).finish();
        for (position, bit) in flips {
            let position = position.index(bytes.len());
            bytes[position] ^= 1 << bit;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len()));
        }
        load(bytes);
    }

    #[test]
    fn overwritten_words_in_the_header_never_panic(
        words in vec((0usize..1400, prop_oneof![
            any::<u64>(),
            Just(u64::MAX),
            (0u32..64).prop_map(|bit| 1 << bit),
            0u64..64,
        ]), 1..4),
    ) {
        let mut bytes = tiny::llama().finish();
        for (position, word) in words {
            bytes[position..position + 8].copy_from_slice(&word.to_le_bytes());
        }
        load(bytes);
    }

    #[test]
    fn any_bytes_after_the_magic_never_panic(tail in vec(any::<u8>(), 0..256)) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tail].concat();
        prop_assert!(!load(bytes));
    }
}

proptest! {
    // The model is larger.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(128)))]

    #[test]
    fn flipped_bits_in_ternary_weights_never_panic(
        flips in vec((any::<prop::sample::Index>(), 0u32..8), 1..6),
        in_header in any::<bool>(),
    ) {
        let mut bytes = tiny::bitnet().finish();
        let range = if in_header { 2000 } else { bytes.len() };
        for (position, bit) in flips {
            bytes[position.index(range)] ^= 1 << bit;
        }
        load(bytes);
    }
}

#[test]
fn the_unmutated_files_load() {
    assert!(load(tiny::llama().finish()));
    assert!(load(tiny::bitnet().finish()));
}
