//! Conversion of tensor types against gguf-py's (`tools/goldens/quants.py`) and its edges.

use std::collections::BTreeMap;
use std::fs;

use deltallm_models::quant::{QuantError, TensorType, dequantize};
use serde::Deserialize;

use crate::common::files::fixture;

#[derive(Deserialize)]
struct Golden {
    /// Hexadecimal.
    bytes: String,
    values: Vec<f32>,
}

#[test]
fn every_type_equals_gguf_py_bit_for_bit() {
    let text = fs::read_to_string(fixture("quants.json")).unwrap();
    let mut goldens: BTreeMap<String, Golden> = serde_json::from_str(&text).unwrap();
    for ty in TensorType::ALL {
        let Some(golden) = goldens.remove(ty.name()) else {
            // gguf-py does not know the second.
            assert!([TensorType::F32, TensorType::I2_S].contains(&ty), "no golden for {ty}");
            continue;
        };
        let bytes: Vec<u8> = (0..golden.bytes.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&golden.bytes[i..i + 2], 16).unwrap())
            .collect();
        let mut values = vec![0.0; golden.values.len()];
        dequantize(ty, &bytes, &mut values).unwrap();
        assert_eq!(values, golden.values, "{ty}");
    }
    assert!(goldens.is_empty(), "goldens of types that cannot be read: {:?}", goldens.keys());
}

#[test]
fn f32_is_copied() {
    let expected = [1.5, -0.0, f32::MIN_POSITIVE, f32::MAX];
    let bytes: Vec<u8> = expected.iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
    let mut values = [0.0; 4];
    dequantize(TensorType::F32, &bytes, &mut values).unwrap();
    assert_eq!(values.map(f32::to_bits), expected.map(f32::to_bits));
}

#[test]
fn i2_s_has_its_elements_32_apart_and_its_scale_in_the_tail() {
    // Element 32 n + m of a block is in bits 7 - 2n and 6 - 2n of byte m.
    let mut bytes = vec![0b01_01_01_01; 64];
    bytes[5] = 0b10_01_00_01;
    bytes[32 + 31] = 0b01_00_01_10;
    bytes.extend(0.75_f32.to_le_bytes());
    bytes.extend([0xff; 28]);
    let mut values = [f32::NAN; 256];
    dequantize(TensorType::I2_S, &bytes, &mut values).unwrap();
    let mut expected = [0.0; 256];
    for (element, value) in [(5, 0.75), (64 + 5, -0.75), (128 + 32 + 31, -0.75), (128 + 96 + 31, 0.75)] {
        expected[element] = value;
    }
    assert_eq!(values, expected);
}

#[test]
fn f16_lengths_around_the_conversion_buffer() {
    for length in [0, 1, 63, 64, 65, 200] {
        let bytes: Vec<u8> = (0..length).flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes()).collect();
        let mut values = vec![-1.0; length];
        dequantize(TensorType::F16, &bytes, &mut values).unwrap();
        assert!(values.iter().enumerate().all(|(i, &x)| x == i as f32), "{length}");
    }
}

#[test]
fn ids_and_names_are_distinct_and_invert() {
    for (i, ty) in TensorType::ALL.into_iter().enumerate() {
        assert_eq!(TensorType::from_id(ty.id()), Some(ty));
        assert!(TensorType::ALL[..i].iter().all(|other| other.name() != ty.name()));
    }
}

#[test]
fn partial_blocks_and_wrong_lengths_are_refused() {
    for ty in TensorType::ALL.into_iter().filter(|ty| ty.block_elements() > 1) {
        let got = ty.block_elements() - 1;
        let bytes = vec![0; ty.block_bytes()];
        assert_eq!(dequantize(ty, &bytes, &mut vec![0.0; got]), Err(QuantError::PartialBlock { ty, got }));
    }
    for ty in TensorType::ALL {
        let mut out = vec![0.0; 2 * ty.block_elements()];
        let expected = ty.bytes_for(out.len() as u64).unwrap();
        for got in [0, ty.block_bytes(), expected as usize - 1, expected as usize + 1] {
            let error = QuantError::ByteLength { ty, expected, got };
            assert_eq!(dequantize(ty, &vec![0; got], &mut out), Err(error));
        }
    }
}

#[test]
fn sizes_that_overflow_are_none() {
    assert_eq!(TensorType::F32.bytes_for(u64::MAX), None);
    assert_eq!(TensorType::Q4_1.bytes_for(33), None);
    assert_eq!(TensorType::Q4_1.bytes_for(64), Some(40));
    assert_eq!(TensorType::I2_S.bytes_for(1 << 63), Some((1 << 61) + 32));
    assert_eq!(TensorType::I2_S.bytes_for(64), None);
}
