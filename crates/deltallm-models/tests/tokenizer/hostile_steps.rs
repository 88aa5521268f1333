//! Thousands of tokenizer.json files with every step that the crate `tokenizers` knows and fields that nobody would write: each is an
//! error or a tokenizer that works, and never a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use deltallm_models::{StreamDecoder, Tokenizer};
use deltallm_testing::Random;
use serde_json::{Value, json};

use crate::Folder;
use crate::added_tokens::pieces;

const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    "ab <s> ab<s>",
    " ▁a ▁ b",
    "e\u{301}\u{323}\u{FDFA}İ ﬁ\u{1100}\u{1161}\u{11A8} ǅ",
    "\u{FDD0}<s>\u{0}\r\n\t\u{200B}日本語123 456.7!",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
];

const STRINGS: &[&str] = &[
    "",
    " ",
    "▁",
    "a",
    "ab",
    "é",
    "\u{301}",
    "\u{0}",
    "\u{FDD0}",
    "<s>",
    "A",
    "B",
    "$A",
    "0",
    "\u{10FFFF}",
    "Ġ",
];

const PATTERNS: &[&str] = &[
    "",
    "a",
    "a*",
    "^",
    "$",
    "\\b",
    ".",
    "\\s+",
    "(?=a)",
    "(?<=a)b?",
    "(?!a)",
    "(a+)+$",
    "(a|aa)+$",
    "(a*)*b",
    "((a)|b)*\\2c",
    "[",
    "(",
    "{",
    "x{1000000000}",
    "(?=a){1000000000}",
    "((?=a)b{300}){300}",
    "\\p{L}{0,999}",
    "(?i)ſ",
    "\\p{N}{1,3}",
    "\u{301}",
    "\\X",
    "(?>a+)a",
    "\\G",
    "\\K",
    "a\\Kb",
    "(?:(?:(?:(?:a?)?)?)?)?",
    "'s|'t| ?\\p{L}+|\\s+(?!\\S)|\\s+",
];

struct Writer(Random);

impl Writer {
    fn one_of<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.0.below(items.len())]
    }

    fn often(&mut self) -> bool {
        self.0.below(8) > 0
    }

    fn string(&mut self) -> Value {
        match self.0.below(12) {
            0 => json!("x".repeat(self.0.below(9000))),
            1 => self.anything(),
            _ => json!(self.one_of(STRINGS)),
        }
    }

    fn boolean(&mut self) -> Value {
        if self.often() { json!(self.0.below(2) == 0) } else { self.anything() }
    }

    fn number(&mut self) -> Value {
        match self.0.below(8) {
            0 => json!(u64::MAX),
            1 => json!(-1),
            2 => json!(1e300),
            3 => json!(u32::MAX),
            4 => self.anything(),
            _ => json!(self.0.below(8)),
        }
    }

    fn anything(&mut self) -> Value {
        match self.0.below(6) {
            0 => Value::Null,
            1 => json!([]),
            2 => json!({}),
            3 => json!(self.0.below(3)),
            4 => json!([[["a"]], 1]),
            _ => json!(self.one_of(STRINGS)),
        }
    }

    fn pattern(&mut self) -> Value {
        let pattern = match self.often() {
            true => json!(self.one_of(PATTERNS)),
            false => self.string(),
        };
        match self.0.below(8) {
            0 => pattern,
            1..3 => json!({"String": pattern}),
            _ => json!({"Regex": pattern}),
        }
    }

    /// A step of any component: `sequence` is where this component's sequences have their steps.
    fn step(&mut self, sequence: &str, kinds: &[&str], depth: usize) -> Value {
        let kind = if self.often() { self.one_of(kinds) } else { "Unheard" };
        if kind == "Sequence" || kind == "Unheard" && depth > 0 {
            let count = if depth == 0 { 0 } else { self.0.below(4) };
            let steps: Vec<Value> = (0..count).map(|_| self.step(sequence, kinds, depth - 1)).collect();
            return json!({"type": "Sequence", sequence: steps});
        }
        let mut step = self.fields(kind);
        step["type"] = json!(kind);
        if !self.often() {
            let fields = step.as_object_mut().unwrap();
            let name = fields.keys().nth(self.0.below(fields.len())).unwrap().clone();
            fields.remove(&name);
        }
        step
    }

    fn fields(&mut self, kind: &str) -> Value {
        let behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"];
        let schemes = ["first", "always", "never", "often"];
        match kind {
            "Strip" => {
                json!({"strip_left": self.boolean(), "strip_right": self.boolean(), "content": self.string(),
                "start": self.number(), "stop": self.number()})
            }
            "NormalizerStrip" => json!({"strip_left": self.boolean(), "strip_right": self.boolean()}),
            "Prepend" => json!({"prepend": self.string()}),
            "Replace" => json!({"pattern": self.pattern(), "content": self.string()}),
            "Precompiled" => {
                json!({"precompiled_charsmap": self.one_of(&["", "AAAA", "/////w==", "BAAAAAEAAAA=", "BAAAAP////8="])})
            }
            "BertNormalizer" => {
                json!({"clean_text": self.boolean(), "handle_chinese_chars": true, "strip_accents": null, "lowercase": true})
            }
            "ByteLevel" => {
                json!({"add_prefix_space": self.boolean(), "trim_offsets": self.boolean(), "use_regex": self.boolean()})
            }
            "Metaspace" => {
                json!({"replacement": self.string(), "prepend_scheme": self.one_of(&schemes), "split": self.boolean()})
            }
            "Split" => {
                json!({"pattern": self.pattern(), "behavior": self.one_of(&behaviors), "invert": self.boolean()})
            }
            "Digits" => json!({"individual_digits": self.boolean()}),
            "Punctuation" => json!({"behavior": self.one_of(&behaviors)}),
            "Delimiter" | "CharDelimiterSplit" => json!({"delimiter": self.string()}),
            "FixedLength" => json!({"length": self.number()}),
            "RobertaProcessing" => {
                json!({"sep": ["<s>", self.number()], "cls": ["a", self.number()], "trim_offsets": true, "add_prefix_space": true})
            }
            "BertProcessing" => json!({"sep": [self.string(), self.number()], "cls": self.anything()}),
            "TemplateProcessing" => {
                let pieces: Vec<Value> = (0..self.0.below(4)).map(|_| self.piece()).collect();
                json!({"single": pieces, "pair": self.anything(),
                    "special_tokens": {"<s>": {"id": self.string(), "ids": [self.number()], "tokens": ["<s>", "a"]}}})
            }
            "WordPiece" => json!({"prefix": self.string(), "cleanup": self.boolean()}),
            "BPEDecoder" => json!({"suffix": self.string()}),
            "CTC" => {
                json!({"pad_token": self.string(), "word_delimiter_token": self.string(), "cleanup": true})
            }
            _ => json!({}),
        }
    }

    fn piece(&mut self) -> Value {
        match self.0.below(4) {
            0 => json!({"SpecialToken": {"id": self.one_of(&["<s>", "a", ""]), "type_id": self.number()}}),
            1 => self.anything(),
            _ => json!({"Sequence": {"id": self.one_of(&["A", "A", "B"]), "type_id": 0}}),
        }
    }

    fn file(&mut self) -> Value {
        let mut file = pieces();
        for (field, sequence, kinds) in [
            (
                "normalizer",
                "normalizers",
                &[
                    "Sequence",
                    "NFC",
                    "NFD",
                    "NFKC",
                    "NFKD",
                    "Lowercase",
                    "NormalizerStrip",
                    "Strip",
                    "StripAccents",
                    "Nmt",
                    "Prepend",
                    "Replace",
                    "Replace",
                    "Precompiled",
                    "BertNormalizer",
                    "ByteLevel",
                ][..],
            ),
            (
                "pre_tokenizer",
                "pretokenizers",
                &[
                    "Sequence",
                    "ByteLevel",
                    "Metaspace",
                    "Split",
                    "Split",
                    "Digits",
                    "Punctuation",
                    "Whitespace",
                    "WhitespaceSplit",
                    "Delimiter",
                    "CharDelimiterSplit",
                    "FixedLength",
                    "UnicodeScripts",
                    "BertPreTokenizer",
                ],
            ),
            (
                "post_processor",
                "processors",
                &["Sequence", "TemplateProcessing", "RobertaProcessing", "BertProcessing", "ByteLevel"],
            ),
            (
                "decoder",
                "decoders",
                &[
                    "Sequence",
                    "ByteLevel",
                    "Metaspace",
                    "Replace",
                    "Strip",
                    "Fuse",
                    "ByteFallback",
                    "WordPiece",
                    "BPEDecoder",
                    "CTC",
                ],
            ),
        ] {
            // One or two at a time, or hardly any file would be read.
            if self.0.below(3) == 0 {
                file[field] = self.step(sequence, kinds, 4);
                if file[field]["type"] == "NormalizerStrip" {
                    file[field]["type"] = json!("Strip");
                }
            }
        }
        if self.0.below(4) == 0 {
            for field in [
                "unk_token",
                "fuse_unk",
                "byte_fallback",
                "ignore_merges",
                "dropout",
                "continuing_subword_prefix",
                "truncation",
            ] {
                if self.0.below(6) == 0 {
                    let value = self.anything();
                    match field {
                        "truncation" => file[field] = value,
                        _ => file["model"][field] = value,
                    }
                }
            }
        }
        if self.0.below(3) == 0 {
            let token = json!({"id": self.0.below(9), "content": self.string(), "special": self.boolean(), "lstrip": self.boolean(),
                "rstrip": self.boolean(), "normalized": self.boolean(), "single_word": false});
            file["added_tokens"].as_array_mut().unwrap().push(token);
        }
        file
    }
}

fn use_it(tokenizer: &Tokenizer) {
    for text in TEXTS {
        let escaped = tokenizer.escape(text);
        for ids in
            [tokenizer.encode(text, true), tokenizer.encode_prompt(&escaped, true)].into_iter().flatten()
        {
            let whole = tokenizer.decode(&ids).unwrap();
            let mut stream = StreamDecoder::new(tokenizer);
            let mut text: String = ids.into_iter().filter_map(|id| stream.push(id).unwrap()).collect();
            text.extend(stream.finish());
            assert_eq!(text, whole);
        }
    }
}

#[test]
fn no_step_of_a_tokenizer_file_makes_reading_or_encoding_panic() {
    let folder = Folder::new("steps", &[]);
    let mut read = 0;
    for seed in 0..3000 {
        let file = Writer(Random::scattered(seed)).file().to_string();
        std::fs::write(folder.0.join("tokenizer.json"), &file).unwrap();
        let start = Instant::now();
        let outcome =
            catch_unwind(AssertUnwindSafe(|| folder.load().map(|tokenizer| use_it(&tokenizer)).is_ok()));
        read += usize::from(outcome.unwrap_or_else(|_| panic!("file {seed} panics: {file}")));
        assert!(start.elapsed() < Duration::from_secs(20), "file {seed} took {:?}: {file}", start.elapsed());
    }
    // Most of what is written is refused; not all of it.
    assert!(read > 500, "expected some hundred files that can be read, got {read}");
}

#[test]
fn sequences_in_sequences_are_read_or_refused() {
    for depth in [10, 50, 120, 1000, 100_000] {
        for (field, inner, step) in [
            ("normalizer", "normalizers", r#"{"type":"NFC"}"#),
            ("pre_tokenizer", "pretokenizers", r#"{"type":"Whitespace"}"#),
            (
                "post_processor",
                "processors",
                r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true}"#,
            ),
            ("decoder", "decoders", r#"{"type":"ByteFallback"}"#),
        ] {
            let open = format!(r#"{{"type":"Sequence","{inner}":["#);
            let nested = format!("{}{step}{}", open.repeat(depth), "]}".repeat(depth));
            let mut file = pieces();
            file[field] = json!("@");
            let text = file.to_string().replace("\"@\"", &nested);
            let folder = Folder::new("nested", &[("tokenizer.json", &text)]);
            match folder.load() {
                Ok(tokenizer) => {
                    assert!(depth < 64 && tokenizer.encode("a b", false).is_ok(), "{field} {depth}")
                }
                Err(error) => assert!(depth > 50, "{field} {depth}: {error}"),
            }
        }
    }
}
