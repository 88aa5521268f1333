//! Safetensors files and the index of their shards.

use std::fs;

use deltallm_models::{ModelError, ModelFile, ModelWeights};
use safetensors::SafeTensorError;
use serde_json::{Value as Json, json};

use crate::common::files::{TooLong, directory};
use crate::measured;

/// One layer of 2 heads of 4 channels.
fn config() -> Json {
    json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 6, "vocab_size": 3, "tie_word_embeddings": true,
    })
}

/// A file of that header and that many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

fn tensor(dtype: &str, shape: &str, offsets: [u64; 2]) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{}]}}"#, offsets[0], offsets[1])
}

/// Opens a model of which this is the only file of tensors.
fn open(name: &str, bytes: &[u8]) -> Result<ModelFile, ModelError> {
    let path = directory(name);
    fs::write(path.join("config.json"), config().to_string()).unwrap();
    fs::write(path.join("model.safetensors"), bytes).unwrap();
    measured(bytes.len(), || ModelFile::open(&path))
}

fn refused(name: &str, bytes: &[u8]) -> SafeTensorError {
    match open(name, bytes) {
        Err(ModelError::Safetensors { source, .. }) => *source.downcast().expect("an error of safetensors"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a file that must be refused"),
    }
}

#[test]
fn a_header_longer_than_the_file() {
    for length in [3, 1 << 40, 1 << 63, u64::MAX] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        let error = refused("long-header", &bytes);
        assert!(
            matches!(error, SafeTensorError::InvalidHeaderLength | SafeTensorError::HeaderTooLarge),
            "{error}"
        );
    }
}

#[test]
fn truncated_anywhere() {
    let bytes = file(&format!(r#"{{"a":{}}}"#, tensor("F32", "[2]", [0, 8])), 8);
    assert!(open("truncated", &bytes).is_ok());
    for length in 0..bytes.len() {
        refused("truncated", &bytes[..length]);
    }
}

#[test]
fn more_data_than_tensors() {
    let bytes = file(&format!(r#"{{"a":{}}}"#, tensor("F32", "[2]", [0, 8])), 9);
    assert!(matches!(refused("more-data", &bytes), SafeTensorError::MetadataIncompleteBuffer));
}

#[test]
fn a_header_that_is_not_utf8() {
    let mut bytes = file(r#"{"__metadata__":{"a":"b"}}"#, 0);
    let place = bytes.iter().position(|byte| *byte == b'b').unwrap();
    bytes[place] = 0xff;
    assert!(matches!(refused("header-utf8", &bytes), SafeTensorError::InvalidHeader(_)));
}

#[test]
fn a_header_that_is_no_object_or_nested_too_deep() {
    for header in ["", "[]", "3", "{\"a\":3}", &"[".repeat(100_000), &"{\"a\":".repeat(100_000)] {
        let error = refused("header-json", &file(header, 0));
        assert!(matches!(error, SafeTensorError::InvalidHeaderDeserialization(_)), "{error}");
    }
}

#[test]
fn duplicate_tensor() {
    // The same place, so that nothing else gives it away.
    let tensor = tensor("F32", "[2]", [0, 8]);
    for header in
        [format!(r#"{{"a":{tensor},"a":{tensor}}}"#), format!(r#"{{"a":{tensor},"\u0061":{tensor}}}"#)]
    {
        let error = refused("duplicate-tensor", &file(&header, 8));
        let SafeTensorError::InvalidHeaderDeserialization(error) = error else { panic!("{error}") };
        assert!(error.to_string().contains("every key once, got `a` twice"), "{error}");
    }
}

#[test]
fn duplicate_field_of_a_tensor() {
    let header = r#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let error = refused("duplicate-field", &file(header, 8));
    assert!(matches!(error, SafeTensorError::InvalidHeaderDeserialization(_)), "{error}");
}

#[test]
fn offsets_past_the_end() {
    for offsets in [[0, 16], [8, 16], [1 << 62, (1 << 62) + 8]] {
        let header = format!(r#"{{"a":{}}}"#, tensor("F32", "[2]", offsets));
        let error = refused("past-the-end", &file(&header, 8));
        assert!(
            matches!(
                error,
                SafeTensorError::TensorInvalidInfo
                    | SafeTensorError::InvalidOffset(_)
                    | SafeTensorError::MetadataIncompleteBuffer
            ),
            "{error}"
        );
    }
}

#[test]
fn offsets_in_the_wrong_order() {
    let header = format!(r#"{{"a":{}}}"#, tensor("F32", "[2]", [8, 0]));
    let error = refused("wrong-order", &file(&header, 8));
    assert!(matches!(error, SafeTensorError::InvalidOffset(_)), "{error}");
}

#[test]
fn overlapping_tensors() {
    let [first, second] = [[0, 8], [4, 12]].map(|offsets| tensor("F32", "[2]", offsets));
    let error = refused("overlapping", &file(&format!(r#"{{"a":{first},"b":{second}}}"#), 12));
    assert!(matches!(error, SafeTensorError::InvalidOffset(_)), "{error}");
}

#[test]
fn a_hole_between_tensors() {
    let [first, second] = [[0, 8], [12, 20]].map(|offsets| tensor("F32", "[2]", offsets));
    let error = refused("hole", &file(&format!(r#"{{"a":{first},"b":{second}}}"#), 20));
    assert!(matches!(error, SafeTensorError::InvalidOffset(_)), "{error}");
}

#[test]
fn overflowing_shapes() {
    // The first product wraps to 0, the second has too many bytes only.
    for shape in
        ["[4294967296,4294967296]", "[9223372036854775807]", "[18446744073709551615,18446744073709551615,2]"]
    {
        let header = format!(r#"{{"a":{}}}"#, tensor("F32", shape, [0, 8]));
        let error = refused("overflow", &file(&header, 8));
        assert!(
            matches!(error, SafeTensorError::ValidationOverflow | SafeTensorError::TensorInvalidInfo),
            "{shape}: {error}"
        );
    }
}

#[test]
fn a_shape_of_another_size_than_the_data() {
    for (dtype, shape) in [("F32", "[3]"), ("F16", "[2]"), ("F32", "[]"), ("F32", "[0]")] {
        let header = format!(r#"{{"a":{}}}"#, tensor(dtype, shape, [0, 8]));
        let error = refused("other-size", &file(&header, 8));
        assert!(matches!(error, SafeTensorError::TensorInvalidInfo), "{error}");
    }
}

#[test]
fn an_unknown_element_type() {
    let header = format!(r#"{{"a":{}}}"#, tensor("F7", "[2]", [0, 8]));
    let error = refused("unknown-type", &file(&header, 8));
    assert!(matches!(error, SafeTensorError::InvalidHeaderDeserialization(_)), "{error}");
}

#[test]
fn dimensions_that_are_zero_or_too_many() {
    for (shape, end) in [("[0,8]", 0), ("[3,0]", 0), ("[1,1,1,3,8]", 96), ("[24]", 96)] {
        let header = format!(r#"{{"model.embed_tokens.weight":{}}}"#, tensor("F32", shape, [0, end]));
        let bytes = file(&header, end as usize);
        let file = open("dimensions", &bytes).unwrap();
        let load = || ModelWeights::load(&file, &file.config()?);
        let error = measured(bytes.len(), load).unwrap_err();
        assert!(
            matches!(error, ModelError::TensorShape { .. } | ModelError::Config { .. }),
            "{shape}: {error}"
        );
    }
}

#[test]
fn an_index_with_a_tensor_twice() {
    let path = directory("index-twice");
    fs::write(path.join("config.json"), config().to_string()).unwrap();
    let index = r#"{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}"#;
    fs::write(path.join("model.safetensors.index.json"), index).unwrap();
    let error = measured(index.len(), || ModelFile::open(&path)).unwrap_err();
    assert!(
        matches!(&error, ModelError::Json { file, .. } if file.ends_with("model.safetensors.index.json"))
    );
    assert!(error.to_string().contains("every key once, got `a` twice"), "{error}");
}

#[test]
fn an_index_larger_than_any_real_one() {
    let path = directory("index-large");
    fs::write(path.join("config.json"), config().to_string()).unwrap();
    let _file = TooLong::new(path.join("model.safetensors.index.json"));
    let error = measured(0, || ModelFile::open(&path)).unwrap_err();
    assert!(matches!(error, ModelError::FileTooLarge { got, .. } if got == TooLong::BYTES), "{error}");
}
