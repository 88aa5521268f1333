"""The corpus: books of one paragraph a line -> cleaned text -> tokens -> batches."""

import re
import string
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def is_title(line: str, following: str) -> bool:
    """Titles stand in capitals in most books; in the others they are short, end in a letter and precede a long paragraph."""
    if sum(map(str.isalpha, line)) <= 4 or len(line) >= 80 or not line[0].isalnum():
        return False
    words = [w for w in line.split() if len(w) > 4]
    return line.isupper() or len(line) < 50 and line[-1].isalpha() and len(following) > 120 and all(w[0].isupper() for w in words)


def stories(path: Path) -> list[str]:
    """The stories of one book, each a title line and its paragraphs, without front matter, notes and footnotes."""
    lines = [" ".join(re.sub(r"[(\[]\d+[)\]]", "", line).split()) for line in path.read_text(encoding="utf-8").splitlines()]
    upper = [line.upper() for line in lines]
    # Editors' prefaces end with the table of contents, which is one line; notes, where there are any, close the book.
    start = upper.index("CONTENTS") + 2 if "CONTENTS" in upper[:100] else 0
    end = upper.index("NOTES AND REFERENCES", 100) if "NOTES AND REFERENCES" in upper[100:] else len(lines)
    lines = [line for line in lines[start:end] if line and not re.match(r"\*|\[Illustration|(CHAPTER )?[IVXL]+\.?$", line)]
    found: list[list[str]] = [[]]
    for line, following in zip(lines, [*lines[1:], ""]):
        if is_title(line, following):
            found.append([string.capwords(line.rstrip("."))])
        else:
            # The first word of many stories is in capitals: "ONCE upon a time".
            found[-1].append(re.sub(r"^[A-Z]{2,}\b", lambda m: m[0].capitalize(), line))
    # What is shorter is a list of plates or a dedication.
    return [text for text in ("\n".join(story) + "\n" for story in found) if len(text) > 1200]


def load(corpus: Path, held_out: str) -> tuple[list[str], list[str]]:
    """(training stories, held-out stories)."""
    train, held = [], []
    for path in sorted(corpus.glob("*.txt")):
        (held if path.stem == held_out else train).extend(stories(path))
    if not held:
        raise SystemExit(f"no book named {held_out} in {corpus}")
    return train, held


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """GPT-2 style byte-level BPE; the end-of-text token has id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One stream of ids: every story is preceded by the end-of-text token, and one closes the stream."""
    end = tokenizer.token_to_id(END)
    ids = [np.array([end, *e.ids], dtype=np.int64) for e in tokenizer.encode_batch(texts)]
    return np.concatenate([*ids, np.array([end])])


def batch(stream: np.ndarray, length: int, size: int, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Batch `index` of `size` sequences: every pass over the stream visits each chunk once, shuffled, from a new offset.

    It depends on its arguments only, so an interrupted run continues with the batches it would have seen."""
    chunks = (len(stream) - 1) // length - 1
    per_pass = chunks // size
    rng = np.random.default_rng([seed, length, index // per_pass])
    offset, order = rng.integers(length), rng.permutation(chunks)
    picked = order[(index % per_pass) * size :][:size]
    rows = offset + picked[:, None] * length + np.arange(length + 1)
    return stream[rows[:, :-1]], stream[rows[:, 1:]]
