//! Token ids against the reference implementations: `tokenizers` for byte-level vocabularies, SentencePiece for the other.

use crate::vocabulary::{Case, VocabularyFile, fixture, read};
use deltallm_models::{ModelFile, StreamDecoder, Tokenizer};
use serde::Deserialize;

fn assert_cases(tokenizer: &Tokenizer, cases: &[Case]) {
    assert!(cases.len() > 40, "expected the whole fixture, got {} cases", cases.len());
    for Case { text, ids } in cases {
        assert_eq!(&tokenizer.encode_prompt(text, false).unwrap(), ids, "{text:?}");
        let mut stream = StreamDecoder::new(tokenizer);
        let mut streamed = String::new();
        for &id in ids {
            streamed.extend(stream.push(id).unwrap());
        }
        streamed.extend(stream.finish());
        assert_eq!(streamed, tokenizer.decode(ids).unwrap(), "{text:?}");
    }
}

#[test]
fn llama_bpe_vocabulary() {
    let file: VocabularyFile = read(&fixture("llama-bpe.json"));
    let tokenizer = Tokenizer::from_gguf_vocabulary(&file.as_gguf()).unwrap();
    assert_cases(&tokenizer, &file.cases);
    for case in &file.cases {
        // The alphabet is complete, so plain text comes back whole.
        let ids = tokenizer.encode(&case.text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), case.text);
    }
    assert_eq!(tokenizer.eos_ids()[0], file.eos_token_id.unwrap());
}

/// Qwen's own tokenizer composes characters first (NFC), which no GGUF file says.
#[test]
fn qwen2_vocabulary() {
    let file: VocabularyFile = read(&fixture("qwen2.json"));
    let tokenizer = Tokenizer::from_gguf_vocabulary(&file.as_gguf()).unwrap();
    assert_cases(&tokenizer, &file.cases);
    assert_eq!(tokenizer.eos_ids()[0], file.eos_token_id.unwrap());
    let ids = tokenizer.encode("cafe\u{301} \u{212b}", true).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "caf\u{e9} \u{c5}");
}

/// Mistral's vocabularies from Nemo on.
#[test]
fn tekken_vocabulary() {
    let file: VocabularyFile = read(&fixture("tekken.json"));
    let tokenizer = Tokenizer::from_gguf_vocabulary(&file.as_gguf()).unwrap();
    assert_cases(&tokenizer, &file.cases);
    assert_eq!(tokenizer.encode_beginning("").unwrap(), [file.bos_token_id.unwrap()]);
}

/// SmolLM3's files name another pre-tokenizer than Llama 3's, with the same rule, but no begin-of-text token.
#[test]
fn smaug_bpe_is_llama_bpe_without_a_beginning() {
    let file: VocabularyFile = read(&fixture("llama-bpe.json"));
    let mut vocabulary = file.as_gguf();
    vocabulary.pre = Some("smaug-bpe");
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    assert_cases(&tokenizer, &file.cases);
    assert!(tokenizer.encode_beginning("").unwrap().is_empty());
}

#[test]
fn sentencepiece_vocabulary() {
    let file: VocabularyFile = read(&fixture("spm.json"));
    let tokenizer = Tokenizer::from_gguf_vocabulary(&file.as_gguf()).unwrap();
    assert_cases(&tokenizer, &file.cases);
    for case in &file.cases {
        let ids = tokenizer.encode(&case.text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), case.text);
    }
    assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
}

/// `smollm.json` has no vocabulary of its own: it is for that of SmolLM2.
#[test]
#[ignore = "needs a model: DELTALLM_TEST_MODEL names the SmolLM2 file that tools/fetch-smollm2 brings"]
fn smollm_vocabulary() {
    #[derive(Deserialize)]
    struct Cases {
        cases: Vec<Case>,
    }
    let path = std::env::var_os("DELTALLM_TEST_MODEL").expect("DELTALLM_TEST_MODEL names the model");
    let tokenizer = Tokenizer::from_model(&ModelFile::open(path).unwrap()).unwrap();
    assert_cases(&tokenizer, &read::<Cases>(&fixture("smollm.json")).cases);
    // `<|im_end|>`, `<|endoftext|>` and, as in llama.cpp, `<reponame>`.
    assert_eq!(tokenizer.eos_ids(), [2, 0, 4]);
}
