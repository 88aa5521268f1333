"""Tokenizer fixtures: tricky texts and the ids that the reference implementations give them.

    python vocabularies.py --smollm SmolLM2-135M-Instruct.Q4_1.gguf --corpus DIR --out ../../crates/deltallm-models/tests/fixtures/tokenizers

`smollm.json` holds cases alone (the vocabulary is the model file's); `spm.json` (SentencePiece, `tokenizer.ggml.model` "llama") and
`llama-bpe.json`, `qwen2.json` and `tekken.json` (byte-level BPE behind the pre-tokenizers of Llama 3, Qwen 2 and Mistral Nemo) carry small vocabularies of their own in the
fields GGUF has for them.
"""

import argparse
import io
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEXTS = [
    "",
    " ",
    "Hello world",
    " leading and trailing ",
    "Once upon a time there was a king.",
    "two  spaces   three    four",
    "ends in spaces   ",
    "tab\tand\t\ttabs",
    "line\nbreak\n\nparagraph\n",
    "\r\nwindows\r\n\r\nlines",
    "spaces before newline   \n   and after",
    "\n \n  \n   x",
    "I'm you're he's we'll they've I'd can't",
    "I'M YOU'RE HE'S WE'LL",
    "'tis the king's 'own' words'",
    "0",
    "1234567890",
    "a  12 b 345  c6d",
    "3.14159, 1,000,000 and 10^-5",
    "Year 2024: 50% of $99.95",
    "٣٤ Ⅷ ½ ² 一二三",
    "naïve café Ångström",
    "cafe\u0301 n\u0303 o\u0308 (combining)",
    "straße ẞ ﬁ ﬂ İstanbul",
    "中文分词测试，没有空格。",
    "日本語のテキスト カタカナ",
    "한국어 문장입니다",
    "Привет, мир! Ελληνικά",
    "שלום עולם مرحبا بالعالم",
    "हिन्दी ไทย",
    "emoji 😀 👍🏽 👨‍👩‍👧 🇫🇷",
    "zero\u200bwidth\ufeffand\u00a0nbsp\u3000wide",
    "control \x00\x01\x7f bytes",
    "fn main() {\n    println!(\"{}\", x[0]);\n}",
    "if (a != b && c >= 0) return *p++; // comment",
    "def f(x):\n\treturn x**2  # square\n",
    "https://example.com/a_b?c=d&e=f#g",
    "...!!!???---___***",
    "camelCaseIdentifier snake_case_name SCREAMING_CASE",
    "\u2014dash\u2026 \u201cquotes\u201d \u2018single\u2019",
    "<html><b>bold</b></html>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
]


def write(path: Path, fields: dict, cases: list[tuple[str, list[int]]]):
    rows = [f'"{k}": {json.dumps(v)}' for k, v in fields.items()]
    lines = ",\n".join(json.dumps({"text": text, "ids": ids}) for text, ids in cases)
    path.write_text("{\n" + "".join(f"{row},\n" for row in rows) + '"cases": [\n' + lines + "\n]\n}\n")
    print(path.name, len(cases), path.stat().st_size)


def smollm_tokenizer(gguf: Path) -> Tokenizer:
    """SmolLM2's tokenizer: transformers reads vocabulary, merges and special tokens from the file, but gives every GPT-2 style
    vocabulary GPT-2's pre-tokenizer. The model's own splits digits off one by one first."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def smollm(gguf: Path, out: Path):
    tokenizer = smollm_tokenizer(gguf)
    special = [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "a<|endoftext|>b <|im_end|> c",
        "<|im_start|><|im_start|>",
        "<|im_start |> <|im_end",
    ]
    cases = [(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS + special]
    assert all(tokenizer.decode(ids, skip_special_tokens=False) == text for text, ids in cases)
    write(out / "smollm.json", {}, cases)


def spm(sample: str, out: Path):
    import sentencepiece  # the others do without

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.999,
        # As Llama's: nothing is normalised, a space is put before the text.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    p = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(p.vocab_size())
    kinds = [UNKNOWN if p.is_unknown(i) else CONTROL if p.is_control(i) else BYTE if p.is_byte(i) else NORMAL for i in ids]
    fields = {
        "model": "llama",
        "add_space_prefix": True,
        "unknown_token_id": p.unk_id(),
        "bos_token_id": p.bos_id(),
        "eos_token_id": p.eos_id(),
        "tokens": [p.id_to_piece(i) for i in ids],
        "scores": [p.get_score(i) for i in ids],
        "token_types": kinds,
    }
    write(out / "spm.json", fields, [(text, p.encode(text)) for text in TEXTS])


def byte_level(name: str, sample: str, pattern: str, ignore_merges: bool, special: list[str], normalizer, more: list[str], out: Path):
    """A vocabulary of bytes that is cut by `pattern`; `special` begins with the tokens before and after a text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sample.splitlines(), trainer)
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    # Llama 3 takes a piece that is a token as it is ("ignore_merges"): some tokens that no merge makes show whether that is done.
    for piece in ["Ġenchanted", "Ġtime", "123", "Hello"]:
        vocab.setdefault(piece, len(vocab))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    size = tokenizer.get_vocab_size()
    fields = {
        "model": "gpt2",
        "pre": name,
        "bos_token_id": tokenizer.token_to_id(special[0]),
        "eos_token_id": tokenizer.token_to_id(special[1]),
        "tokens": [tokenizer.id_to_token(i) for i in range(size)],
        "token_types": [CONTROL if tokenizer.id_to_token(i) in special else NORMAL for i in range(size)],
        "merges": [" ".join(pair) for pair in state["model"]["merges"]],
    }
    cases = [(text, tokenizer.encode(text).ids) for text in TEXTS + more]
    write(out / f"{name}.json", fields, cases)


def llama_bpe(sample: str, out: Path):
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    more = ["an enchanted castle, 123 1234 12345", "a<|eot_id|>b\n<|begin_of_text|>c", "Hello\n\n\nHello  \n"]
    byte_level("llama-bpe", sample, LLAMA3, True, special, None, more, out)


def qwen2(sample: str, out: Path):
    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    more = ["an enchanted castle, 123 1234 12345", "<|im_start|>user\nHi<|im_end|>\n", "\u212b \u1100\u1161 e\u0301\u0323", "Hello\n\n\nHello  \n"]
    byte_level("qwen2", sample, QWEN2, False, special, normalizers.NFC(), more, out)


def tekken(sample: str, out: Path):
    more = ["an enchanted castle, 123 1234 12345", "camelCase HTTPServer ABCdef Éclair", "a//b/\n/c", "[INST]Hi[/INST]</s>"]
    byte_level("tekken", sample, TEKKEN, True, ["<s>", "</s>", "[INST]", "[/INST]"], None, more, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sample = (args.corpus / "Grimms-Fairy-Tales.txt").read_text(encoding="utf-8")[:200_000]
    smollm(args.smollm, args.out)
    spm(sample, args.out)
    llama_bpe(sample, args.out)
    qwen2(sample, args.out)
    tekken(sample, args.out)


if __name__ == "__main__":
    main()
