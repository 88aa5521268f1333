"""Small random models of every family and what `transformers` computes with them: fixtures for the tests of the graph. (Those of BitNet
are made by `bitnet.py`, which takes the golden from here.)

    python families.py --out ../../crates/deltallm-models/tests/fixtures [CASE ...]
"""

import argparse
import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

TOKENS, LOGITS, GREEDY = 40, 8, 8
# Of the cases with long texts: beyond every window, and around the ends of pages and blocks of tokens.
LONG = 140
POSITIONS = [0, 14, 15, 16, 19, 20, 23, 24, 62, 63, 64, 65, 126, 127, 128, 139]
# A short original length, so that forty tokens reach all three ranges of the scaling.
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40, "beta_fast": 8.0, "beta_slow": 0.5}


def config(hidden, heads, kv_heads, ffn, vocab, dtype, model_type="llama", name="Llama", layers=2, **more) -> dict:
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
        **more,
    }


def mistral(*sizes, **more) -> dict:
    return config(*sizes, model_type="mistral", name="Mistral", **more)


def qwen2(*sizes, **more) -> dict:
    return config(*sizes, model_type="qwen2", name="Qwen2", **{"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, **more})


def qwen3(*sizes, **more) -> dict:
    return config(*sizes, model_type="qwen3", name="Qwen3", **{"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, **more})


def smollm3(*sizes, **more) -> dict:
    return config(*sizes, model_type="smollm3", name="SmolLM3", pad_token_id=0, **{"rms_norm_eps": 1e-6, "rope_theta": 5000.0, **more})


def gemma3(*sizes, **more) -> dict:
    c = config(*sizes, model_type="gemma3_text", name="Gemma3", **{"rms_norm_eps": 1e-6, "tie_word_embeddings": True, **more})
    c["hidden_activation"] = c.pop("hidden_act").replace("silu", "gelu_pytorch_tanh")
    return c


CASES = {
    "llama/gqa1-d32": config(12, 2, 2, 20, 97, "float32", head_dim=32, rope_theta=10000.0, tie_word_embeddings=True),
    "llama/gqa2-d32-derived": config(64, 2, 1, 16, 64, "float16", rope_theta=500.0, tie_word_embeddings=True),
    "llama/gqa3-d64-llama3": config(18, 3, 1, 32, 80, "float16", head_dim=64, rope_theta=10000.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
    "llama/gqa4-d80-bias": config(12, 4, 1, 24, 97, "bfloat16", head_dim=80, rope_theta=10000.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "llama/gqa2-d128-llama3": config(16, 2, 1, 24, 101, "bfloat16", head_dim=128, rope_parameters={"rope_theta": 1000.0, **LLAMA3}, tie_word_embeddings=True),
    "llama/gqa8-d32": config(16, 8, 1, 24, 128, "bfloat16", head_dim=32, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, tie_word_embeddings=False),
    "mistral/window": mistral(32, 4, 2, 24, 61, "bfloat16", rope_theta=10000.0, sliding_window=20, tie_word_embeddings=False),
    "qwen2/untied": qwen2(32, 4, 2, 24, 61, "bfloat16", tie_word_embeddings=False),
    "qwen2/window": qwen2(32, 2, 1, 24, 61, "float16", layers=3, use_sliding_window=True, sliding_window=24, max_window_layers=1, tie_word_embeddings=True),
    "qwen3/d32": qwen3(24, 3, 1, 24, 61, "bfloat16", head_dim=32, tie_word_embeddings=True),
    "qwen3/yarn": qwen3(24, 2, 1, 24, 61, "bfloat16", head_dim=64, rope_theta=10000.0, rope_scaling=YARN, tie_word_embeddings=False),
    "smollm3/every-fourth": smollm3(32, 4, 1, 24, 61, "bfloat16", layers=4),
    "smollm3/listed": smollm3(32, 4, 2, 24, 61, "bfloat16", layers=3, no_rope_layers=[0, 1, 1], use_sliding_window=True, sliding_window=20),
    "gemma3/every-sixth": gemma3(12, 2, 1, 24, 61, "bfloat16", layers=6, head_dim=32, query_pre_attn_scalar=32, sliding_window=24, rope_theta=1000000.0, rope_local_base_freq=1000.0),
    "gemma3/listed": gemma3(
        20, 4, 2, 24, 61, "bfloat16", layers=3, head_dim=32, query_pre_attn_scalar=20, sliding_window=20, final_logit_softcapping=6.0, use_bidirectional_attention=False,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}},
    ),
}  # fmt: skip
GGUF = {
    "llama/gqa1-d32": (MODEL_ARCH.LLAMA, GGMLQuantizationType.F32),
    "llama/gqa3-d64-llama3": (MODEL_ARCH.LLAMA, GGMLQuantizationType.F16),
    "mistral/window": (MODEL_ARCH.LLAMA, GGMLQuantizationType.BF16),
    "qwen2/untied": (MODEL_ARCH.QWEN2, GGMLQuantizationType.BF16),
    "qwen3/d32": (MODEL_ARCH.QWEN3, GGMLQuantizationType.BF16),
    "qwen3/yarn": (MODEL_ARCH.QWEN3, GGMLQuantizationType.BF16),
    "smollm3/every-fourth": (MODEL_ARCH.SMOLLM3, GGMLQuantizationType.BF16),
    "gemma3/every-sixth": (MODEL_ARCH.GEMMA3, GGMLQuantizationType.BF16),
}
INTERLEAVED = MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3

# Rotations whose frequencies and factor are kept: of heads of 16 channels and 256 positions.
ROPES = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {**LLAMA3, "factor": 8.0},
    {"rope_type": "yarn", "factor": 4.0},
    YARN,
    {**YARN, "truncate": False},
    {**YARN, "attention_factor": 1.5},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
    {**YARN, "mscale": 0.7},
    {**YARN, "factor": 1.0, "beta_fast": 32.0},
    {**YARN, "beta_fast": 0.5, "beta_slow": 0.5, "original_max_position_embeddings": 4096},
]


def weights(c: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights whose attention scores have a standard deviation of about 2, so that a wrong rotation shows."""
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    head_dim = c.get("head_dim", hidden // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    random = lambda *shape, std: torch.randn(*shape, generator=generator) * std
    tensors = {"model.embed_tokens.weight": random(c["vocab_size"], hidden, std=2 * hidden**-0.5), "model.norm.weight": 1 + random(hidden, std=0.2)}
    family = c["model_type"]
    if not c.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = random(c["vocab_size"], hidden, std=2 * hidden**-0.5)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows, cols, std in [
            ("self_attn.q_proj", q, hidden, (2 / hidden) ** 0.5),
            ("self_attn.k_proj", kv, hidden, (2 / hidden) ** 0.5),
            ("self_attn.v_proj", kv, hidden, hidden**-0.5),
            ("self_attn.o_proj", hidden, q, q**-0.5),
            ("mlp.gate_proj", ffn, hidden, hidden**-0.5),
            ("mlp.up_proj", ffn, hidden, hidden**-0.5),
            ("mlp.down_proj", hidden, ffn, ffn**-0.5),
        ]:
            tensors[f"{layer}{name}.weight"] = random(rows, cols, std=std)
            if c.get("attention_bias" if "attn" in name else "mlp_bias") or (family == "qwen2" and name[-6] in "qkv"):
                tensors[f"{layer}{name}.bias"] = random(rows, std=0.3)
            if family == "qwen2" and "k_proj" in name:
                tensors[f"{layer}{name}.bias"][::5] *= 20  # keys of trained models have such channels
        for name in "input_layernorm", "post_attention_layernorm":
            tensors[f"{layer}{name}.weight"] = 1 + random(hidden, std=0.2)
        if family in ("qwen3", "gemma3_text"):
            for name in "q_norm", "k_norm":
                tensors[f"{layer}self_attn.{name}.weight"] = 1.2 + random(head_dim, std=0.2)
        if family == "gemma3_text":
            for name in "pre_feedforward_layernorm", "post_feedforward_layernorm":
                tensors[f"{layer}{name}.weight"] = 1 + random(hidden, std=0.2)
    if family == "gemma3_text":
        for name, tensor in tensors.items():
            if "norm" in name:
                tensor -= 1
    return {k: v.to(getattr(torch, c["torch_dtype"])).contiguous() for k, v in tensors.items()}


@torch.no_grad()
def golden(model, vocab: int, generator: torch.Generator, count: int = TOKENS, more: int = GREEDY, positions: list[int] | None = None) -> dict | None:
    """Random tokens and the model's answers, at the last positions if not at those; None where a greedy choice hangs on rounding."""
    tokens = torch.randint(vocab, (count,), generator=generator)
    rows, greedy, ids = None, [], tokens
    for _ in range(more):
        logits = model(ids[None], use_cache=False).logits[0]
        rows = logits[positions or slice(-LOGITS, None)] if rows is None else rows
        best = logits[-1].topk(2)
        if best.values[0] - best.values[1] < 1e-2:
            return None
        greedy.append(best.indices[0].item())
        ids = torch.cat([ids, best.indices[:1]])
    # "greedy" continues "tokens".
    return ({"positions": positions} if positions else {}) | {"tokens": tokens.tolist(), "logits": [[float(f"{x:.7g}") for x in row] for row in rows.tolist()], "greedy": greedy}


def interleave(tensor: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's Llama rotates neighbouring rows, Hugging Face's the two halves of a head: reorder the rows of q and k."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def rope_factors(c: dict, scaling: dict) -> np.ndarray:
    """The llama3 scaling as the divisors of the frequencies that GGUF stores in `rope_freqs.weight`."""
    theta, dim = c["rope_theta"], c["head_dim"]
    low, high = (scaling["original_max_position_embeddings"] / scaling[k] for k in ("low_freq_factor", "high_freq_factor"))
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * theta ** (i / dim)
        smooth = (scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
        factors.append(1.0 if wavelength < high else scaling["factor"] if wavelength > low else 1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def write_gguf(path: Path, c: dict, tensors: dict[str, torch.Tensor], arch: MODEL_ARCH, kind: GGMLQuantizationType):
    """As llama.cpp's converter writes the family."""
    w = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    if "head_dim" in c:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if arch in INTERLEAVED:
        w.add_rope_dimension_count(head_dim)
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if arch in INTERLEAVED:
        w.add_vocab_size(c["vocab_size"])
    scaling = c.get("rope_scaling", {}).get("rope_type")
    if scaling == "llama3":
        w.add_tensor("rope_freqs.weight", rope_factors(c, c["rope_scaling"]))
    if scaling == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(c["rope_scaling"]["factor"])
        w.add_rope_scaling_orig_ctx_len(c["rope_scaling"]["original_max_position_embeddings"])
        w.add_rope_scaling_yarn_beta_fast(c["rope_scaling"]["beta_fast"])
        w.add_rope_scaling_yarn_beta_slow(c["rope_scaling"]["beta_slow"])
    if "sliding_window" in c:
        w.add_sliding_window(c["sliding_window"])
    if "rope_local_base_freq" in c:
        w.add_float32(gguf.Keys.Rope.FREQ_BASE_SWA.format(arch=gguf.MODEL_ARCH_NAMES[arch]), c["rope_local_base_freq"])
    names = gguf.get_tensor_name_map(arch, c["num_hidden_layers"])
    for name, tensor in tensors.items():
        a = tensor.float().numpy()
        if "q_proj" in name and arch in INTERLEAVED:
            a = interleave(a, c["num_attention_heads"])
        if "k_proj" in name and arch in INTERLEAVED:
            a = interleave(a, c["num_key_value_heads"])
        if "norm" in name and arch == MODEL_ARCH.GEMMA3:
            a = a + 1
        t = kind if a.ndim == 2 else GGMLQuantizationType.F32
        w.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), gguf.quants.quantize(a, t), raw_dtype=t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def rope(parameters: dict) -> dict:
    """The frequencies and the factor of a rotation."""
    c = config(32, 2, 2, 8, 8, "float32", rope_parameters={"rope_theta": 10000.0, **parameters})
    c = AutoConfig.for_model(**c)
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](c)
    return {"parameters": parameters, "frequencies": [float(f"{x:.7g}") for x in frequencies.tolist()], "factor": float(f"{factor:.7g}")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ",\n".join(json.dumps(rope(parameters)) for parameters in ROPES)
    (args.out / "rope.json").write_text(f"[\n{lines}\n]\n")
    for seed, (name, c) in enumerate(CASES.items(), start=100):
        if name not in args.cases:
            continue
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        tensors = weights(c, generator)
        (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        # Read back from the files: the golden belongs to what they hold.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        assert model.config.tie_word_embeddings == c.get("tie_word_embeddings", True)
        long = {} if c["model_type"] == "llama" else {"count": LONG, "positions": POSITIONS}
        while (expected := golden(model, c["vocab_size"], generator, **long)) is None:
            pass
        (folder / "golden.json").write_text(json.dumps(expected) + "\n")
        if name in GGUF:
            write_gguf(folder / "model.gguf", c, load_file(folder / "model.safetensors"), *GGUF[name])
        print(name, model.config.rope_parameters, {f.name: f.stat().st_size for f in folder.iterdir()})


if __name__ == "__main__":
    main()
