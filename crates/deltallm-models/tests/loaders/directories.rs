//! Opening paths: recognition by content, model directories, shards, and what can be wrong with them.

use std::fs;
use std::path::Path;

use deltallm_models::{ModelError, ModelFile, ModelWeights};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};

use crate::common::files::{TooLong, directory, fixture};
use crate::common::tiny;

/// Copies a fixture's `config.json`.
fn with_config(name: &str) -> std::path::PathBuf {
    let target = directory(name);
    fs::copy(fixture("llama/gqa1-d32/config.json"), target.join("config.json")).unwrap();
    target
}

fn write_shard(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn write_index(directory: &Path, map: Json) {
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn open_error(path: &Path) -> ModelError {
    ModelFile::open(path).expect_err("a path that must be refused")
}

#[test]
fn gguf_is_recognised_by_content() {
    let path = directory("gguf-content").join("model.bin");
    fs::write(&path, tiny::llama().finish()).unwrap();
    let file = ModelFile::open(&path).unwrap();
    assert!(file.gguf().is_some() && file.safetensors().is_none());
    assert_eq!(file.path(), path);
}

#[test]
fn a_safetensors_file_finds_its_config() {
    let path = fixture("llama/gqa1-d32/model.safetensors");
    let file = ModelFile::open(&path).unwrap();
    assert!(file.gguf().is_none());
    assert_eq!(Some(file.safetensors().unwrap().directory()), path.parent());
    assert!(file.config().is_ok());
}

#[test]
fn absent_path() {
    let error = open_error(Path::new("no/such/model.gguf"));
    assert!(matches!(error, ModelError::Io { .. }));
    assert!(error.to_string().starts_with("no/such/model.gguf: "));
}

#[test]
fn files_of_no_known_format() {
    let directory = directory("unknown-format");
    for (name, content) in [("empty.gguf", ""), ("notes.gguf", "hello"), ("short", "GG")] {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        let expected: Vec<u8> = content.bytes().take(4).collect();
        assert!(matches!(open_error(&path), ModelError::UnknownFormat { start, .. } if start == expected));
    }
}

#[test]
fn damaged_gguf_names_the_file() {
    let path = directory("damaged-gguf").join("model.gguf");
    let bytes = tiny::llama().finish();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = open_error(&path);
    assert!(matches!(error, ModelError::Gguf { .. }));
    assert!(error.to_string().contains("model.gguf: "));
}

#[test]
fn directory_without_config_or_tensors() {
    let empty = directory("empty-directory");
    assert!(matches!(
        open_error(&empty),
        ModelError::IncompleteDirectory { expected: "model.safetensors", .. }
    ));
    fs::copy(fixture("llama/gqa1-d32/model.safetensors"), empty.join("model.safetensors")).unwrap();
    assert!(matches!(open_error(&empty), ModelError::IncompleteDirectory { expected: "config.json", .. }));
}

#[test]
fn malformed_config() {
    let path = directory("malformed-config");
    fs::copy(fixture("llama/gqa1-d32/model.safetensors"), path.join("model.safetensors")).unwrap();
    for text in ["", "{", "{\"hidden_size\": 1e999}", "\u{0}"] {
        fs::write(path.join("config.json"), text).unwrap();
        assert!(matches!(open_error(&path), ModelError::Json { .. }), "{text:?}");
    }
    fs::write(path.join("config.json"), "[".repeat(100_000)).unwrap();
    assert!(matches!(open_error(&path), ModelError::Json { .. }));
}

#[test]
fn config_of_another_model() {
    let path = directory("other-config");
    fs::copy(fixture("llama/gqa1-d32/model.safetensors"), path.join("model.safetensors")).unwrap();
    let text = fs::read_to_string(fixture("llama/gqa1-d32/config.json")).unwrap();
    let mut json: Json = serde_json::from_str(&text).unwrap();
    json["vocab_size"] = json!(96);
    fs::write(path.join("config.json"), json.to_string()).unwrap();
    let error = ModelFile::open(&path).unwrap().config().unwrap_err();
    assert!(
        error.to_string().ends_with("vocabulary: expected 97 as the embedding has rows, got 96"),
        "{error}"
    );
}

#[test]
fn malformed_safetensors() {
    let path = with_config("malformed-safetensors");
    let valid = fs::read(fixture("llama/gqa1-d32/model.safetensors")).unwrap();
    let huge_header = [u64::MAX.to_le_bytes().as_slice(), &valid[8..]].concat();
    for bytes in [&b""[..], &valid[..4], &valid[..100], &valid[..valid.len() - 1], &huge_header] {
        fs::write(path.join("model.safetensors"), bytes).unwrap();
        assert!(matches!(open_error(&path), ModelError::Safetensors { .. }), "{} bytes", bytes.len());
    }
}

#[test]
fn shards_give_the_same_weights_as_one_file() {
    let target = with_config("shards");
    let bytes = fs::read(fixture("llama/gqa1-d32/model.safetensors")).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (mut map, mut shards) = (json!({}), [Vec::new(), Vec::new()]);
    for (i, (name, view)) in whole.tensors().into_iter().enumerate() {
        map[&name] = json!(format!("model-{}.safetensors", i % 2));
        shards[i % 2].push((name, view));
    }
    for (i, shard) in shards.into_iter().enumerate() {
        let bytes = safetensors::serialize(shard, None).unwrap();
        fs::write(target.join(format!("model-{i}.safetensors")), bytes).unwrap();
    }
    write_index(&target, map.clone());
    let load = |path: &Path| {
        let file = ModelFile::open(path).unwrap();
        ModelWeights::load(&file, &file.config().unwrap()).unwrap()
    };
    let (one, two) = (load(&fixture("llama/gqa1-d32")), load(&target));
    assert_eq!(one.token_embedding, two.token_embedding);
    for (one, two) in one.layers.iter().zip(&two.layers) {
        for (one, two) in [(&one.key, &two.key), (&one.down, &two.down)] {
            assert_eq!(one.weight.to_dense(), two.weight.to_dense());
        }
    }

    // Whoever names a shard means the model.
    assert_eq!(load(&target.join("model-1.safetensors")).token_embedding, one.token_embedding);

    // A tensor that the index promises and the shard lacks.
    map["model.layers.9.mlp.up_proj.weight"] = json!("model-0.safetensors");
    write_index(&target, map);
    let error = open_error(&target);
    assert!(matches!(error, ModelError::MissingTensor { tensor, .. } if tensor.contains("layers.9")));
}

#[test]
fn a_tensor_that_the_index_does_not_list_is_not_left_out() {
    let target = with_config("unlisted");
    let bytes = fs::read(fixture("llama/gqa1-d32/model.safetensors")).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let map = whole.names().into_iter().map(|name| (name.to_owned(), json!("model-1.safetensors"))).collect();
    let ones = 1.0_f32.to_le_bytes().repeat(64);
    let bias = TensorView::new(Dtype::F32, vec![64], &ones).unwrap();
    let name = "model.layers.0.self_attn.q_proj.bias".to_owned();
    let tensors = whole.tensors().into_iter().chain([(name.clone(), bias)]);
    fs::write(target.join("model-1.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    write_index(&target, Json::Object(map));
    let error = ModelFile::open(&target).unwrap().config().unwrap_err();
    assert!(matches!(&error, ModelError::UnknownTensor { tensor, .. } if *tensor == name), "{error}");
}

#[test]
fn shard_names_that_leave_the_directory() {
    let parent = with_config("shard-names");
    write_shard(&parent.join("outside.safetensors"), &[("a", Dtype::F32, vec![1], vec![0; 4])]);
    let path = parent.join("model");
    fs::create_dir(&path).unwrap();
    fs::copy(parent.join("config.json"), path.join("config.json")).unwrap();
    let absolute = parent.join("outside.safetensors").to_string_lossy().into_owned();
    for name in
        ["../outside.safetensors", "./../outside.safetensors", "..", ".", "", "a/b", "a\\b", "x/", &absolute]
    {
        write_index(&path, json!({"a": name}));
        let error = open_error(&path);
        assert!(matches!(error, ModelError::ShardName { ref got, .. } if got == name), "{name}: {error}");
    }
}

#[test]
fn absent_shard_and_malformed_index() {
    let path = with_config("absent-shard");
    write_index(&path, json!({"a": "model-1.safetensors"}));
    let error = open_error(&path);
    let shard = path.join("model-1.safetensors");
    assert!(matches!(&error, ModelError::MissingShard { file, .. } if *file == shard), "{error}");
    assert!(error.to_string().starts_with(&shard.display().to_string()), "{error}");
    for index in ["[]", "{}", "{\"weight_map\": {\"a\": 3}}"] {
        fs::write(path.join("model.safetensors.index.json"), index).unwrap();
        assert!(matches!(open_error(&path), ModelError::Json { .. }), "{index}");
    }
}

#[test]
fn element_types_that_cannot_be_read() {
    let path = with_config("element-types");
    let embedding = ("model.embed_tokens.weight", Dtype::I64, vec![97, 12], vec![0; 97 * 12 * 8]);
    write_shard(&path.join("model.safetensors"), &[embedding]);
    let error = ModelFile::open(&path).unwrap().config().unwrap_err();
    assert!(matches!(error, ModelError::ElementType { ref got, .. } if got == "I64"), "{error}");
}

#[test]
fn nan_in_safetensors() {
    let path = with_config("nan-safetensors");
    let mut values = vec![0u8; 97 * 12 * 2];
    // Element 13, that is row 1, column 1, of a BF16 matrix.
    values[26..28].copy_from_slice(&0x7fc0u16.to_le_bytes());
    let embedding = ("model.embed_tokens.weight", Dtype::BF16, vec![97, 12], values);
    write_shard(&path.join("model.safetensors"), &[embedding]);
    let file = ModelFile::open(&path).unwrap();
    let error = ModelWeights::load(&file, &file.config().unwrap()).unwrap_err();
    assert!(matches!(error, ModelError::NonFiniteWeight { row: 1, column: 1, .. }), "{error}");
}

#[test]
fn config_larger_than_any_real_one() {
    let path = directory("large-config");
    fs::copy(fixture("llama/gqa1-d32/model.safetensors"), path.join("model.safetensors")).unwrap();
    let _file = TooLong::new(path.join("config.json"));
    assert!(matches!(open_error(&path), ModelError::FileTooLarge { got, .. } if got == TooLong::BYTES));
}
