"""What the parts of a model are called in GGUF files and in transformers."""

# ours: (GGUF, transformers)
OUTER = {"embed": ("token_embd", "model.embed_tokens"), "norm": ("output_norm", "model.norm")}
LAYER = {
    "attn_norm": ("attn_norm", "input_layernorm"),
    "q": ("attn_q", "self_attn.q_proj"),
    "k": ("attn_k", "self_attn.k_proj"),
    "v": ("attn_v", "self_attn.v_proj"),
    "attn_sub_norm": ("attn_sub_norm", "self_attn.attn_sub_norm"),
    "o": ("attn_output", "self_attn.o_proj"),
    "ffn_norm": ("ffn_norm", "post_attention_layernorm"),
    "gate": ("ffn_gate", "mlp.gate_proj"),
    "up": ("ffn_up", "mlp.up_proj"),
    "ffn_sub_norm": ("ffn_sub_norm", "mlp.ffn_sub_norm"),
    "down": ("ffn_down", "mlp.down_proj"),
}


def gguf_name(ours: str) -> str:
    """`layers.0.q.weight` -> `blk.0.attn_q.weight`."""
    part, *rest = ours.removesuffix(".weight").split(".")
    return f"blk.{rest[0]}.{LAYER[rest[1]][0]}.weight" if rest else f"{OUTER[part][0]}.weight"


def transformers_name(ours: str) -> str:
    """`layers.0.q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    part, *rest = ours.removesuffix(".weight").split(".")
    return f"model.layers.{rest[0]}.{LAYER[rest[1]][1]}.weight" if rest else f"{OUTER[part][1]}.weight"
