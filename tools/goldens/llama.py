"""Small random Llama models and what `transformers` computes with them: fixtures for the tests of the Llama graph.

    python llama.py --out ../../crates/deltallm-models/tests/fixtures/llama
"""

import argparse
import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

TOKENS, LOGITS, GREEDY = 40, 8, 8
# A short original length, so that forty tokens reach all three ranges of the scaling.
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def config(hidden, heads, kv_heads, ffn, vocab, dtype, **more) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 2,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
        **more,
    }


CASES = {
    "gqa1-d32": config(12, 2, 2, 20, 97, "float32", head_dim=32, rope_theta=10000.0, tie_word_embeddings=True),
    "gqa2-d32-derived": config(64, 2, 1, 16, 64, "float16", rope_theta=500.0, tie_word_embeddings=True),
    "gqa3-d64-llama3": config(18, 3, 1, 32, 80, "float16", head_dim=64, rope_theta=10000.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
    "gqa4-d80-bias": config(12, 4, 1, 24, 97, "bfloat16", head_dim=80, rope_theta=10000.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "gqa2-d128-llama3": config(16, 2, 1, 24, 101, "bfloat16", head_dim=128, rope_parameters={"rope_theta": 1000.0, **LLAMA3}, tie_word_embeddings=True),
    "gqa8-d32": config(16, 8, 1, 24, 128, "bfloat16", head_dim=32, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, tie_word_embeddings=False),
}
GGUF = {"gqa1-d32": gguf.GGMLQuantizationType.F32, "gqa3-d64-llama3": gguf.GGMLQuantizationType.F16}


def weights(c: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights whose attention scores have a standard deviation of about 2, so that a wrong rotation shows."""
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    head_dim = c.get("head_dim", hidden // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    random = lambda *shape, std: torch.randn(*shape, generator=generator) * std
    tensors = {"model.embed_tokens.weight": random(c["vocab_size"], hidden, std=2 * hidden**-0.5), "model.norm.weight": 1 + random(hidden, std=0.2)}
    if not c["tie_word_embeddings"]:
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
            if c.get("attention_bias" if "attn" in name else "mlp_bias"):
                tensors[f"{layer}{name}.bias"] = random(rows, std=0.3)
        for name in "input_layernorm", "post_attention_layernorm":
            tensors[f"{layer}{name}.weight"] = 1 + random(hidden, std=0.2)
    return {k: v.to(getattr(torch, c["torch_dtype"])).contiguous() for k, v in tensors.items()}


@torch.no_grad()
def golden(model, vocab: int, generator: torch.Generator, count: int = TOKENS, more: int = GREEDY) -> dict | None:
    """Random tokens and the model's answers; None where a greedy choice hangs on rounding."""
    tokens = torch.randint(vocab, (count,), generator=generator)
    rows, greedy, ids = None, [], tokens
    for _ in range(more):
        logits = model(ids[None], use_cache=False).logits[0]
        rows = logits[-LOGITS:] if rows is None else rows
        best = logits[-1].topk(2)
        if best.values[0] - best.values[1] < 1e-2:
            return None
        greedy.append(best.indices[0].item())
        ids = torch.cat([ids, best.indices[:1]])
    # "logits" are those of the last positions of "tokens"; "greedy" continues "tokens".
    return {"tokens": tokens.tolist(), "logits": [[float(f"{x:.7g}") for x in row] for row in rows.tolist()], "greedy": greedy}


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


def write_gguf(path: Path, c: dict, tensors: dict[str, torch.Tensor], kind: gguf.GGMLQuantizationType):
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_rope_dimension_count(c["head_dim"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    if "rope_scaling" in c:
        w.add_tensor("rope_freqs.weight", rope_factors(c, c["rope_scaling"]))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c["num_hidden_layers"])
    for name, tensor in tensors.items():
        a = tensor.float().numpy()
        if "q_proj" in name:
            a = interleave(a, c["num_attention_heads"])
        if "k_proj" in name:
            a = interleave(a, c["num_key_value_heads"])
        t = kind if a.ndim == 2 else gguf.GGMLQuantizationType.F32
        w.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), gguf.quants.quantize(a, t), raw_dtype=t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for seed, (name, c) in enumerate(CASES.items(), start=100):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        tensors = weights(c, generator)
        (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        # Read back from the files: the golden belongs to what they hold.
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        assert model.config.tie_word_embeddings == c["tie_word_embeddings"]
        while (expected := golden(model, c["vocab_size"], generator)) is None:
            pass
        (folder / "golden.json").write_text(json.dumps(expected) + "\n")
        if name in GGUF:
            write_gguf(folder / "model.gguf", c, load_file(folder / "model.safetensors"), GGUF[name])
        print(name, model.config.rope_parameters, {f.name: f.stat().st_size for f in folder.iterdir()})


if __name__ == "__main__":
    main()
