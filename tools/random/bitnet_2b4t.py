"""A GGUF file with the shape of BitNet b1.58 2B4T and random weights: for timing, and for tests of memory.

    python bitnet_2b4t.py --out ../../models/bitnet-2b4t-random.gguf

1.2 GB: ternary matrices in I2_S, the embedding (and head) in f16, norms in f32; the same bytes for the same seed. The scales keep activations
and logits in the range of trained models, but what it says means nothing. Its vocabulary is bytes, filler, and Llama 3's special tokens.
"""

import argparse
import os
import struct
from pathlib import Path

import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCAB, CONTEXT = 2560, 30, 20, 5, 6912, 128256, 4096
ARCHITECTURE = "bitnet-b1.58"
ALIGNMENT = 32
F32, F16, I2_S = 0, 1, 36
BOS, EOS, EOT = 128000, 128001, 128009
# The four codes of a byte, each 0, 1 or 2, from a number below 81.
CODES = np.array([sum((n // 3**i % 3) << (2 * i) for i in range(4)) for n in range(81)], dtype=np.uint8)


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value) -> bytes:
    """A metadata entry: u32, f32, bool, string, or an array of strings or i32."""
    head = string(key)
    if isinstance(value, bool):
        return head + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return head + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return head + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return head + struct.pack("<I", 8) + string(value)
    if value and isinstance(value[0], int):
        return head + struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    return head + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))


def byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes in byte-level vocabularies, in GPT-2's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary() -> tuple[list[str], list[int]]:
    tokens = byte_characters() + ["he", "in", "the"]
    tokens += [f"filler{i}" for i in range(len(tokens), BOS)]
    tokens += [f"<|reserved_{i}|>" for i in range(BOS, VOCAB)]
    tokens[BOS], tokens[EOS], tokens[EOT] = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
    return tokens, [3 if i >= BOS else 1 for i in range(VOCAB)]


def metadata(layers: int) -> list[bytes]:
    tokens, types = vocabulary()
    of_model = {
        "embedding_length": HIDDEN,
        "block_count": layers,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "feed_forward_length": FFN,
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "rope.dimension_count": HIDDEN // HEADS,
        "rope.freq_base": 500000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    rest = {
        "general.architecture": ARCHITECTURE,
        "general.name": "random weights in the shape of BitNet b1.58 2B4T",
        "general.alignment": ALIGNMENT,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["h e", "i n", "t he"],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.add_bos_token": True,
    }
    return [entry(key, value) for key, value in rest.items()] + [entry(f"{ARCHITECTURE}.{key}", value) for key, value in of_model.items()]


def tensors(layers: int):
    """(name, shape outermost first, type, standard deviation of what it makes of inputs of deviation 1)."""
    kv = HIDDEN // HEADS * KV_HEADS
    yield "token_embd.weight", (VOCAB, HIDDEN), F16, 2.5
    for i in range(layers):
        for name, length in ("attn_norm", HIDDEN), ("attn_sub_norm", HIDDEN), ("ffn_norm", HIDDEN), ("ffn_sub_norm", FFN):
            yield f"blk.{i}.{name}.weight", (length,), F32, None
        for name, rows, columns, deviation in [
            ("attn_q", HIDDEN, HIDDEN, 1.2),
            ("attn_k", kv, HIDDEN, 1.2),
            ("attn_v", kv, HIDDEN, 1.0),
            ("attn_output", HIDDEN, HIDDEN, 0.2),
            ("ffn_gate", FFN, HIDDEN, 1.0),
            ("ffn_up", FFN, HIDDEN, 1.0),
            ("ffn_down", HIDDEN, FFN, 0.2),
        ]:
            yield f"blk.{i}.{name}.weight", (rows, columns), I2_S, deviation
    yield "output_norm.weight", (HIDDEN,), F32, None


def size(shape, kind) -> int:
    count = int(np.prod(shape))
    return {F32: 4 * count, F16: 2 * count, I2_S: count // 4 + 32}[kind]


def write(file, rng: np.random.Generator, shape, kind, deviation):
    if kind == F32:
        file.write((1 + 0.1 * rng.standard_normal(shape)).astype("<f4").tobytes())
    elif kind == F16:
        for start in range(0, shape[0], 4096):
            rows = rng.standard_normal((min(4096, shape[0] - start), shape[1]), dtype=np.float32)
            file.write((rows * deviation / shape[1] ** 0.5).astype("<f2").tobytes())
    else:
        file.write(CODES[rng.integers(0, 81, int(np.prod(shape)) // 4, dtype=np.uint8)].tobytes())
        # Two thirds of the weights are not 0.
        file.write(struct.pack("<f28x", deviation / (2 / 3 * shape[1]) ** 0.5))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer, for a smaller file")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    entries, described, offset = metadata(args.layers), [], 0
    for name, shape, kind, _ in tensors(args.layers):
        dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        described.append(string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset))
        offset += -(-size(shape, kind) // ALIGNMENT) * ALIGNMENT
    temporary = args.out.with_name(args.out.name + ".part")
    rng = np.random.default_rng(args.seed)
    with open(temporary, "wb") as file:
        pad = lambda: file.write(bytes(-file.tell() % ALIGNMENT))
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(described), len(entries)) + b"".join(entries) + b"".join(described))
        pad()
        for _, shape, kind, deviation in tensors(args.layers):
            write(file, rng, shape, kind, deviation)
            pad()
    os.replace(temporary, args.out)


if __name__ == "__main__":
    main()
