//! Models in parts: all are found, they belong together, and the one that is not there is named.

use std::fs;
use std::path::{Path, PathBuf};

use deltallm_models::gguf::{SplitError, Value};
use deltallm_models::quant::TensorType;
use deltallm_models::{LogitRows, Model, ModelError, ModelFile};

use crate::common::files::directory;
use crate::common::gguf_writer::GgufWriter;
use crate::common::models::dense_kernels;
use crate::common::tiny;

/// The tensors of the second layer, which the second part has.
const SECOND: &str = "blk.1.";

fn split(writer: GgufWriter, no: u16, count: u16) -> GgufWriter {
    writer
        .set("split.no", Value::U16(no))
        .set("split.count", Value::U16(count))
        .set("split.tensors.count", Value::I32(20))
}

/// Both parts of a model of two layers.
fn parts() -> [GgufWriter; 2] {
    let whole = tiny::two_layers_of_small_numbers();
    let is_second = |name: &str| name.starts_with(SECOND);
    let [first, second] =
        [false, true].map(|second| whole.clone().only_tensors(|name| is_second(name) == second));
    [split(first, 0, 2), split(second.without_entries(), 1, 2)]
}

fn write(folder: &str, parts: &[GgufWriter]) -> PathBuf {
    let folder = directory(folder);
    for (i, part) in parts.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.gguf", i + 1, parts.len());
        fs::write(folder.join(name), part.finish()).unwrap();
    }
    folder
}

fn logits(file: &ModelFile) -> Vec<f32> {
    let model = Model::load(file).unwrap();
    model.forward(&[1, 2, 4], &mut dense_kernels(&model), LogitRows::All).unwrap().into_iter().collect()
}

fn error(path: &Path) -> (PathBuf, SplitError) {
    match ModelFile::open(path).unwrap_err() {
        ModelError::Split { file, source } => (file, source),
        other => panic!("expected an error about parts, got {other}"),
    }
}

#[test]
fn a_model_in_parts_is_the_whole_one_whichever_part_is_named() {
    let folder = write("parts", &parts());
    let whole = logits(&tiny::open(&tiny::two_layers_of_small_numbers()));
    for no in 1..=2 {
        let file = ModelFile::open(folder.join(format!("model-0000{no}-of-00002.gguf"))).unwrap();
        assert_eq!(logits(&file), whole);
        assert_eq!(file.gguf_files().map(|header| header.tensors().len()).sum::<usize>(), 20);
        assert!(file.gguf().unwrap().metadata().get("general.architecture").is_some());
    }
}

/// As `gguf-split --no-tensor-first-split` writes it.
#[test]
fn the_first_part_may_have_no_tensors() {
    let whole = tiny::two_layers_of_small_numbers();
    let parts =
        [split(whole.clone().only_tensors(|_| false), 0, 2), split(whole.clone().without_entries(), 1, 2)];
    let folder = write("parts-without-tensors", &parts);
    let file = ModelFile::open(folder.join("model-00001-of-00002.gguf")).unwrap();
    assert_eq!(logits(&file), logits(&tiny::open(&whole)));
}

/// Only the first part says that its types are a BitNet model's.
#[test]
fn a_bitnet_model_in_parts_has_its_types_in_all_of_them() {
    let whole = tiny::bitnet();
    let parts = [
        split(whole.clone().only_tensors(|name| !name.starts_with("blk.")), 0, 2),
        split(whole.clone().only_tensors(|name| name.starts_with("blk.")).without_entries(), 1, 2),
    ]
    .map(|part| part.set("split.tensors.count", Value::I32(13)));
    let folder = write("parts-of-bitnet", &parts);
    let file = ModelFile::open(folder.join("model-00001-of-00002.gguf")).unwrap();
    let types = file.gguf_files().flat_map(|header| header.tensors()).map(|tensor| tensor.ty);
    assert!(types.into_iter().any(|ty| ty == TensorType::I2_S));
    assert_eq!(logits(&file), logits(&tiny::open(&whole)));
}

#[test]
fn a_part_that_is_not_there_is_named() {
    let folder = write("missing-part", &parts());
    fs::remove_file(folder.join("model-00002-of-00002.gguf")).unwrap();
    let (file, source) = error(&folder.join("model-00001-of-00002.gguf"));
    assert_eq!(source, SplitError::Missing { part: 2, count: 2 });
    assert_eq!(file, folder.join("model-00002-of-00002.gguf"));

    let folder = write("missing-first-part", &parts());
    fs::remove_file(folder.join("model-00001-of-00002.gguf")).unwrap();
    let (file, source) = error(&folder.join("model-00002-of-00002.gguf"));
    assert_eq!(source, SplitError::Missing { part: 1, count: 2 });
    assert_eq!(file, folder.join("model-00001-of-00002.gguf"));
}

#[test]
fn a_part_with_another_name_cannot_find_the_others() {
    let folder = write("renamed-part", &parts());
    for name in ["model.gguf", "model-00002-of-00002.gguf", "model-00001-of-00003.gguf"] {
        fs::copy(folder.join("model-00001-of-00002.gguf"), folder.join(name)).unwrap();
        let (_, source) = error(&folder.join(name));
        let expected = "-00001-of-00002.gguf".to_owned();
        assert_eq!(source, SplitError::Name { part: 1, count: 2, expected }, "{name}");
    }
}

#[test]
fn parts_of_different_models_are_refused() {
    let [first, second] = parts();
    let broken = |name: &str, second: GgufWriter| {
        let folder = write(name, &[first.clone(), second]);
        error(&folder.join("model-00001-of-00002.gguf")).1
    };
    for (key, value) in [
        ("split.no", Value::U16(0)),
        ("split.count", Value::U16(3)),
        ("split.tensors.count", Value::I32(19)),
        ("general.architecture", Value::String("gemma".into())),
        ("llama.rope.freq_base", Value::F32(1e6)),
    ] {
        let source = broken("other-part", second.clone().set(key, value));
        assert!(matches!(&source, SplitError::Differs { part: 2, key: got, .. } if got == key), "{source}");
    }
    let source = broken("no-part", second.clone().remove("split.no"));
    assert!(matches!(&source, SplitError::Differs { key, .. } if key == "split.no"), "{source}");
    let source = broken("fewer-tensors", second.clone().without_tensor("blk.1.ffn_up.weight"));
    assert_eq!(source, SplitError::Tensors { expected: 20, got: 19 });
    let source = broken("tensor-twice", second.f32_tensor("output_norm.weight", &[8], &[1.0; 8]));
    assert_eq!(source, SplitError::DuplicateTensor { tensor: "output_norm.weight".to_owned() });
}

#[test]
fn a_part_in_memory_is_refused_and_a_whole_model_of_one_part_is_not() {
    let [first, second] = parts();
    for (part, writer) in [(1, &first), (2, &second)] {
        let error = ModelFile::from_gguf_bytes("part", writer.finish()).unwrap_err();
        let alone = SplitError::Alone { part, count: 2 };
        assert!(matches!(&error, ModelError::Split { source, .. } if *source == alone), "{error}");
    }
    assert!(ModelFile::from_gguf_bytes("one", split(tiny::two_layers(), 0, 1).finish()).is_ok());
}

#[test]
fn a_part_that_does_not_say_which_it_is_or_lies_is_refused() {
    let [first, _] = parts();
    let error = ModelFile::from_gguf_bytes("part", first.clone().remove("split.no").finish()).unwrap_err();
    assert!(matches!(error, ModelError::Gguf { .. }), "{error}");
    for (key, value) in [("split.no", Value::U64(u64::MAX)), ("split.count", Value::U64(u64::MAX))] {
        let folder = write("lying-part", &[first.clone().set(key, value)]);
        let (_, source) = error_of_only_file(&folder);
        assert!(matches!(source, SplitError::Name { .. }), "{source}");
    }
}

fn error_of_only_file(folder: &Path) -> (PathBuf, SplitError) {
    error(&folder.join("model-00001-of-00001.gguf"))
}
