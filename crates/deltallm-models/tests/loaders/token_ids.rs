//! Ids that a model knows and its tokenizer does not, and those that end a text.

use std::fs;
use std::path::PathBuf;

use deltallm_attn::KernelSpec;
use deltallm_models::gguf::{Array, Value};
use deltallm_models::ndarray::Array1;
use deltallm_models::{
    Model, ModelFile, Sampler, SamplerConfig, Session, StreamDecoder, Tokenizer, TokenizerError,
};

use crate::common::files::{directory, fixture};
use crate::common::tiny;

/// Ids 0 to 4 but for 2, which no token has.
const TOKENIZER: &str = r#"{"added_tokens":[{"id":3,"content":"<end>","special":true},{"id":4,"content":"<turn>","special":true}],
"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}"#;

/// The fixture's model of 97 rows with that tokenizer and those files.
fn model(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let (source, target) = (fixture("llama/gqa1-d32"), directory(name));
    for file in ["config.json", "model.safetensors"] {
        fs::copy(source.join(file), target.join(file)).unwrap();
    }
    for (file, text) in [("tokenizer.json", TOKENIZER)].iter().chain(files) {
        fs::write(target.join(file), text).unwrap();
    }
    target
}

#[test]
fn ids_of_the_model_that_no_token_has_have_no_text() {
    let strings = |tokens: [&str; 3]| Value::Array(Array::String(tokens.map(str::to_owned).to_vec()));
    let gguf = tiny::llama()
        .set("tokenizer.ggml.model", Value::String("gpt2".into()))
        .set("tokenizer.ggml.pre", Value::String("gpt-2".into()))
        .set("tokenizer.ggml.tokens", strings(["a", "b", "c"]))
        .set("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
    let directory = ModelFile::open(model("padded", &[])).unwrap();
    for (file, padding, rows) in [(tiny::open(&gguf), [3, 4], tiny::VOCAB as u32), (directory, [2, 96], 97)] {
        let tokenizer = Tokenizer::from_model(&file).unwrap();
        let mut decoder = StreamDecoder::new(&tokenizer);
        for id in padding {
            assert_eq!(tokenizer.decode(&[0, id, 1]).unwrap(), "ab");
            assert_eq!(tokenizer.token_text(id).unwrap(), "");
            assert_eq!(decoder.push(id).unwrap(), None);
        }
        // Those that the model does not know are a mistake of the caller.
        assert!(matches!(tokenizer.decode(&[0, rows]), Err(TokenizerError::IdOutOfRange { .. })));
        assert!(tokenizer.vocab_size() < rows as usize);
    }
}

#[test]
fn a_text_goes_on_after_an_id_that_no_token_has() {
    let file = ModelFile::open(model("padded-generation", &[])).unwrap();
    let tokenizer = Tokenizer::from_model(&file).unwrap();
    let mut session = Session::with_spec(Model::load(&file).unwrap(), &KernelSpec::default()).unwrap();
    let mut sampler = Sampler::new(SamplerConfig::default()).unwrap();
    let padding = Array1::from_shape_fn(97, |id| if id == 96 { 1.0 } else { 0.0 });
    let mut generation = session.generate(padding, &tokenizer, &mut sampler);
    let first = generation.next().unwrap().unwrap();
    assert_eq!((first.token, first.text.as_str()), (96, ""));
    assert!(generation.next().unwrap().is_ok());
}

/// The ids that end a text, of a model whose config.json says 0.
fn ends(name: &str, generation: Option<&str>, eos: &str) -> Vec<u32> {
    let path = model(name, &[]);
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    let config = config.replace("\"eos_token_id\": 1", &format!("\"eos_token_id\": {eos}"));
    fs::write(path.join("config.json"), config).unwrap();
    if let Some(generation) = generation {
        fs::write(path.join("generation_config.json"), generation).unwrap();
    }
    Tokenizer::from_model(&ModelFile::open(path).unwrap()).unwrap().eos_ids().to_vec()
}

#[test]
fn config_json_says_what_ends_a_text_where_generation_config_json_does_not() {
    assert_eq!(ends("eos-number", None, "4"), [4]);
    assert_eq!(ends("eos-list", None, "[3, 4]"), [3, 4]);
    assert!(ends("eos-null", None, "null").is_empty());
    assert_eq!(ends("eos-both", Some(r#"{"eos_token_id": [4]}"#), "3"), [4]);
    assert_eq!(ends("eos-elsewhere", Some(r#"{"temperature": 0.6}"#), "3"), [3]);
}

#[test]
fn ids_left_over_from_another_model_are_passed_over() {
    let stale = r#"{"bos_token_id": 50256, "eos_token_id": [50256, 4]}"#;
    assert_eq!(ends("stale-some", Some(stale), "3"), [4]);
    assert_eq!(ends("stale-all", Some(r#"{"bos_token_id": 50256, "eos_token_id": 50256}"#), "3"), [3]);
    assert!(ends("stale-config", None, "[-1, 128001, 4294967299]").is_empty());
}
