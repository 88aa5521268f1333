"""Packed blocks of every tensor type that the loaders read, and the values that gguf-py unpacks from them.

    python quants.py --out ../../crates/deltallm-models/tests/fixtures/quants.json
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

QUANTISED = [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1]
TERNARY = [T.TQ1_0, T.TQ2_0]
# gguf-py unpacks K-quants only: (type, offsets of the f16 scales in a block).
RANDOM = [(T.Q4_K, [0, 2]), (T.Q5_K, [0, 2]), (T.Q6_K, [208])]


def entry(kind: T, data: np.ndarray) -> dict:
    values = dequantize(data, kind).flatten()
    assert values.dtype == np.float32 and np.isfinite(values).all()
    # The shortest decimals that read back as the same f32.
    return {"bytes": data.tobytes().hex(), "values": [float(str(v)) for v in values]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    rng = np.random.default_rng(7)
    out = {}
    for kind in QUANTISED:
        # Four blocks of different magnitudes, one of them all zeros.
        values = rng.standard_normal((4, 32)).astype(np.float32) * np.array([[1.0], [0.01], [0.0], [30.0]], dtype=np.float32)
        packed = quantize(values, kind)
        out[kind.name] = entry(kind, packed.view(np.uint8).reshape(4, -1) if kind != T.F16 else packed)
    for kind, scales in RANDOM:
        block = rng.integers(0, 256, (2, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        for offset in scales:
            block[:, offset : offset + 2] = (rng.uniform(-0.02, 0.02, 2).astype(np.float16)[:, None]).view(np.uint8)
        out[kind.name] = entry(kind, block)
    for kind in TERNARY:
        # Three blocks, one of them all zeros.
        values = rng.integers(-1, 2, (3, 256)).astype(np.float32) * np.array([[1.0], [0.0], [0.03]], dtype=np.float32)
        out[kind.name] = entry(kind, quantize(values, kind))
    text = ",\n".join(f'"{name}": {json.dumps(e)}' for name, e in out.items())
    parser.parse_args().out.write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
