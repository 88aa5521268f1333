"""Small BitNet models and what `transformers` computes with them: fixtures for the tests of the BitNet graph.

    python bitnet.py --out ../../crates/deltallm-models/tests/fixtures/bitnet

The weights are not random numbers of torch but of SplitMix64, in steps that every 16-bit type holds, so that the tests make
them again and write them in forms that `transformers` does not write (`tests/common/bitnet.rs` is the other half of `masters`).
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the plain arithmetic, without a compiler

import argparse
import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BitNetForCausalLM
from transformers.integrations import bitnet

from families import golden

TOKENS, GREEDY = 16, 4
MARGIN = 3e-5
PROJECTIONS = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
FORMS = {
    "autobitlinear": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    "bitlinear": {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"},
}


def config(hidden, heads, kv_heads, ffn, layers, vocab, dtype, **more) -> dict:
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
        "quantization_config": ONLINE,
        **more,
    }


# Sizes of the first and last are multiples of 256, as TQ1_0 and TQ2_0 need them.
CASES = {
    "gqa2-d64": config(256, 4, 2, 512, 2, 80, "bfloat16", tie_word_embeddings=True),
    "gqa4-d32": config(128, 4, 1, 96, 2, 61, "float32", tie_word_embeddings=False),
    "gqa2-d128-bias": config(256, 2, 1, 256, 1, 64, "float16", tie_word_embeddings=True, attention_bias=True),
}
# Cases of which the packed files are kept too, as `transformers` packs them.
PACKED = ["gqa4-d32"]
# Chosen so that no weight stands in the middle between two codes (`main` checks it).
SEEDS = {"gqa2-d64": 1, "gqa4-d32": 2, "gqa2-d128-bias": 1}


def splitmix(seed: int, count: int) -> np.ndarray:
    """The highest bytes of `count` numbers of SplitMix64 as integers from -128 to 127."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed << 32) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(56)).astype(np.uint8).view(np.int8)


def masters(c: dict, seed: int) -> dict[str, torch.Tensor]:
    """The weights of training. Tensor number i, in this order, comes from the seed 100 `seed` + i."""
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    q, kv = hidden, hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    bias = c.get("attention_bias", False)
    shapes = [("model.embed_tokens.weight", (c["vocab_size"], hidden)), ("model.norm.weight", (hidden,))]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes.append((f"{layer}input_layernorm.weight", (hidden,)))
        for name, rows, columns in [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]:
            shapes.append((f"{layer}self_attn.{name}.weight", (rows, columns)))
            if bias:
                shapes.append((f"{layer}self_attn.{name}.bias", (rows,)))
        shapes.append((f"{layer}self_attn.attn_sub_norm.weight", (q,)))
        shapes.append((f"{layer}post_attention_layernorm.weight", (hidden,)))
        for name, rows, columns in [("gate_proj", ffn, hidden), ("up_proj", ffn, hidden), ("down_proj", hidden, ffn)]:
            shapes.append((f"{layer}mlp.{name}.weight", (rows, columns)))
        shapes.append((f"{layer}mlp.ffn_sub_norm.weight", (ffn,)))
    if not c["tie_word_embeddings"]:
        shapes.append(("lm_head.weight", (c["vocab_size"], hidden)))
    tensors = {}
    for number, (name, shape) in enumerate(shapes):
        integers = splitmix(100 * seed + number, int(np.prod(shape))).astype(np.float32).reshape(shape)
        if "norm" in name:
            values = 1 + np.floor(integers / 4) / 128
        else:
            # Attention scores then have a standard deviation of 2 or 3, so that a wrong rotation shows.
            values = integers / (1024 if "v_proj" in name or "o_proj" in name or "mlp" in name else 512)
        tensors[name] = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, c["torch_dtype"]))
    return tensors


def packed(tensors: dict[str, torch.Tensor], linear_class: str) -> dict[str, torch.Tensor]:
    """The weights as published: codes in two bits, and a scale that is multiplied with or, in the older form, divided by."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and name.split(".")[-2] in PROJECTIONS:
            ternary = bitnet.WeightQuant.apply(tensor)
            scale = ternary.abs().max()
            out[name] = bitnet.pack_weights(torch.sign(ternary.float()))
            out[name + "_scale"] = (scale if linear_class == "autobitlinear" else 1 / scale.float()).reshape(1)
        else:
            out[name] = tensor
    return out


def write(folder: Path, c: dict, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> BitNetForCausalLM:
    return BitNetForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def in_type_of_masters(dtype: torch.dtype):
    """Ternary weights are numbers of the masters' type, though everything else is computed in f32."""
    quantise = bitnet.WeightQuant.apply
    return type("WeightQuant", (), {"apply": staticmethod(lambda weight: quantise(weight.to(dtype)).to(weight.dtype))})


class Margin:
    """How near an activation, as the model rounds it to 8 bits, comes to the middle between two steps. Where it is on another
    side for another order of a sum, everything after it changes by a step and soon by many."""

    def __init__(self):
        self.least = 0.5

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
        steps = x * scale
        self.least = min(self.least, ((steps - steps.floor()) - 0.5).abs().min().item())
        return steps.round().clamp(-128, 127) / scale


@torch.no_grad()
def is_stable(model, expected: dict) -> bool:
    """Whether no rounding along the tokens and their continuation hangs on the arithmetic: asked in f64."""
    ids = torch.tensor(expected["tokens"] + expected["greedy"])[None]
    margin, plain = Margin(), bitnet.ActQuant
    bitnet.ActQuant = margin
    logits = model(ids, use_cache=False).logits[0, : len(expected["tokens"])]
    bitnet.ActQuant = plain
    rows = np.array(expected["logits"])
    off = np.abs(logits[-len(rows) :].numpy() - rows).max() / spread(rows)
    return margin.least > MARGIN and off < 1e-4


def spread(logits) -> float:
    return float(np.std(np.array(logits)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    plain = bitnet.WeightQuant
    for name, c in CASES.items():
        seed = SEEDS[name]
        tensors = masters(c, seed)
        for key, tensor in tensors.items():
            if key.split(".")[-2] in PROJECTIONS and key.endswith(".weight"):
                # No weight stands so near the middle between two codes that the order of a sum decides.
                share = tensor.float().abs() / tensor.float().abs().mean()
                assert (share - 0.5).abs().min() > 1e-5, key
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
        with tempfile.TemporaryDirectory() as temporary:
            write(Path(temporary), c, tensors)
            model = load(Path(temporary))
        assert all(type(m) is bitnet.AutoBitLinear for n, m in model.named_modules() if n.split(".")[-1] in PROJECTIONS)
        bitnet.WeightQuant = in_type_of_masters(getattr(torch, c["torch_dtype"]))
        generator = torch.Generator().manual_seed(seed)
        exact = copy.deepcopy(model).double()
        while (expected := golden(model, c["vocab_size"], generator, TOKENS, GREEDY)) is None or not is_stable(exact, expected):
            print(".", end="", flush=True)
        bitnet.WeightQuant = plain
        (folder / "golden.json").write_text(json.dumps(expected) + "\n")
        print(name, "spread of logits", spread(expected["logits"]))
        for form, quantization in FORMS.items():
            if form == "autobitlinear" and c.get("attention_bias"):
                continue  # transformers multiplies the bias with the scale of the weights: the loader refuses such files
            # In f32 throughout: the packed layers of transformers compute in the type that the file has.
            c_form = {**c, "quantization_config": quantization, "torch_dtype": "float32"}
            with tempfile.TemporaryDirectory() as temporary:
                target = folder / form if name in PACKED else Path(temporary)
                write(target, c_form, {k: t if t.dtype == torch.uint8 else t.float() for k, t in packed(tensors, form).items()})
                model = load(target)
            kind = bitnet.AutoBitLinear if form == "autobitlinear" else bitnet.BitLinear
            assert all(type(m) is kind for n, m in model.named_modules() if n.split(".")[-1] in PROJECTIONS)
            with torch.no_grad():
                logits = model(torch.tensor(expected["tokens"])[None], use_cache=False).logits[0]
            rows = np.array(expected["logits"])
            print(name, form, "off by", np.abs(logits[-len(rows) :].numpy() - rows).max() / spread(rows), "of the spread")
    print({str(f.relative_to(out)): f.stat().st_size for f in sorted(out.rglob("*")) if f.is_file()})


if __name__ == "__main__":
    main()
