//! The rule of Gemma's vocabularies: pieces by score, no space in front, bytes for the rest, and runs of spaces and line ends that are tokens.

use deltallm_models::{GgufVocabulary, Tokenizer};

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Ids: special tokens 0 to 6, the bytes from 7 on, pieces from 263 on.
fn encode(add_bos: Option<bool>, text: &str) -> (Vec<u32>, String) {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut tokens = vec!["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", "▁▁"];
    tokens.extend(bytes.iter().map(String::as_str));
    // The best first.
    let pieces = ["ab", "▁ab", "▁a", "a", "b", "▁", "<", "i", ">"];
    tokens.extend(pieces);
    let mut types = vec![CONTROL, CONTROL, CONTROL, 2, USER_DEFINED, USER_DEFINED, USER_DEFINED];
    types.extend([BYTE; 256]);
    types.extend([1; 9]);
    let mut scores = vec![-1000.0; 7];
    scores.extend([0.0; 256]);
    scores.extend((0..9).map(|rank| -(rank as f32)));
    let tokenizer = Tokenizer::from_gguf_vocabulary(&GgufVocabulary {
        model: "llama",
        pre: Some("default"),
        tokens,
        scores: &scores,
        token_types: &types,
        bos: Some(2),
        eos: Some(1),
        unk: Some(3),
        add_bos,
        add_space_prefix: Some(false),
        ..GgufVocabulary::default()
    })
    .unwrap();
    let ids = tokenizer.encode(text, true).unwrap();
    let text = tokenizer.decode(&ids).unwrap();
    (ids, text)
}

#[test]
fn a_vocabulary_like_gemmas_cuts_by_score_and_puts_no_space_in_front() {
    let (ab, space_ab, a, b, space) = (263, 264, 266, 267, 268);
    for (text, expected) in [
        ("ab", vec![ab]),
        (" ab", vec![space_ab]),
        ("ab ab", vec![ab, space_ab]),
        // Runs are tokens of their own, the longest first.
        ("a  b", vec![a, 6, b]),
        ("a   b", vec![a, 6, space, b]),
        ("\n\n\na", vec![5, 4, a]),
        ("é", vec![7 + 0xC3, 7 + 0xA9]),
        ("\t", vec![7 + 0x09]),
        ("", vec![]),
    ] {
        let (ids, decoded) = encode(Some(false), text);
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(decoded, text);
    }
}

#[test]
fn a_vocabulary_like_gemmas_begins_a_text_with_bos_unless_the_file_says_no() {
    assert_eq!(encode(Some(true), "ab").0, [2, 263]);
    assert_eq!(encode(None, "ab").0, [2, 263]);
    assert_eq!(encode(Some(false), "ab").0, [263]);
}
