"""A BitNet as a Hugging Face directory, and what its GGUF file holds as transformers' model."""

from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BitNetConfig, BitNetForCausalLM

from model import Config, Model
from names import gguf_name, transformers_name


def bitnet_config(c: Config, mode: str) -> BitNetConfig:
    """`mode` is "online" for trained weights, quantised as the model runs, and "offline" for codes and scales."""
    return BitNetConfig(
        architectures=["BitNetForCausalLM"],
        vocab_size=c.vocab,
        hidden_size=c.hidden,
        intermediate_size=c.ffn,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        hidden_act="relu2",
        max_position_embeddings=c.context,
        rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        quantization_config={"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode},
    )


def write_directory(path: Path, model: Model):
    """Trained weights as bf16, as they stand in the directory of the official model."""
    path.mkdir(exist_ok=True)
    weights = {transformers_name(name): p.detach().bfloat16() for name, p in model.named_parameters()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(bitnet_config(model.c, "online").to_json_string() + "\n", encoding="utf-8")


def from_gguf(path: Path, model: Model):
    """The weights of the file in transformers' offline form; every ternary weight must be a code times its matrix's one scale."""
    read = {t.name: t for t in gguf.GGUFReader(path).tensors}
    state = {}
    for name in model.state_dict():
        tensor = read[gguf_name(name)]
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type == gguf.GGMLQuantizationType.TQ2_0:
            scale = np.abs(weight).max()
            codes = np.round(weight / scale)
            if not np.array_equal(codes * scale, weight):
                raise SystemExit(f"{tensor.name} has more than one scale")
            state[transformers_name(name) + "_scale"] = torch.tensor([scale])
            weight = codes
        state[transformers_name(name)] = torch.from_numpy(weight)
    return BitNetForCausalLM.from_pretrained(None, config=bitnet_config(model.c, "offline"), state_dict=state, dtype=torch.float32).eval()
