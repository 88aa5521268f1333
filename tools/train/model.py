"""Three architectures in plain PyTorch: RMSNorm, rotary grouped-query attention, gated feed-forward, tied head.

Llama has SwiGLU, SmolLM3 the same with every fourth layer unrotated; BitNet b1.58 has ternary matrices, squared ReLU, and a norm before
each of the two matrices that end a residual branch."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet import BitLinear


@dataclass
class Config:
    architecture: str = "llama"
    vocab: int = 2048
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ffn: int = 512
    context: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-5

    @property
    def ternary(self) -> bool:
        return self.architecture == "bitnet"

    def rotated(self, layer: int) -> bool:
        return self.architecture != "smollm3" or (layer + 1) % 4 != 0


def rope_tables(c: Config) -> tuple[Tensor, Tensor]:
    """cos and sin, [context, head_dim]; the two halves of a head form the rotated pairs (the Hugging Face order)."""
    inv = c.rope_theta ** (-torch.arange(0, c.head_dim, 2).double() / c.head_dim)
    angles = torch.outer(torch.arange(c.context).double(), inv).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Layer(nn.Module):
    def __init__(self, c: Config, rotated: bool):
        super().__init__()
        self.c, self.rotated = c, rotated
        linear = BitLinear if c.ternary else partial(nn.Linear, bias=False)
        sub_norm = nn.RMSNorm if c.ternary else nn.Identity
        self.attn_norm = nn.RMSNorm(c.hidden, c.eps)
        self.q = linear(c.hidden, c.heads * c.head_dim)
        self.k = linear(c.hidden, c.kv_heads * c.head_dim)
        self.v = linear(c.hidden, c.kv_heads * c.head_dim)
        self.attn_sub_norm = sub_norm(c.heads * c.head_dim, c.eps)
        self.o = linear(c.heads * c.head_dim, c.hidden)
        self.ffn_norm = nn.RMSNorm(c.hidden, c.eps)
        self.gate = linear(c.hidden, c.ffn)
        self.up = linear(c.hidden, c.ffn)
        self.ffn_sub_norm = sub_norm(c.ffn, c.eps)
        self.down = linear(c.ffn, c.hidden)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, (batch, tokens, _) = self.c, x.shape
        q = self.q(x).view(batch, tokens, c.heads, c.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, c.kv_heads, c.head_dim).transpose(1, 2)
        if self.rotated:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        v = self.v(x).view(batch, tokens, c.kv_heads, c.head_dim).transpose(1, 2)
        k, v = (t.repeat_interleave(c.heads // c.kv_heads, dim=1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(self.attn_sub_norm(out.transpose(1, 2).reshape(batch, tokens, -1)))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cos, sin)
        h = self.ffn_norm(x)
        gate = F.relu(self.gate(h)).square() if self.c.ternary else F.silu(self.gate(h))
        return x + self.down(self.ffn_sub_norm(gate * self.up(h)))


class Model(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c, c.rotated(i)) for i in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, c.eps)
        cos, sin = rope_tables(c)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # Residual branches start at zero, so that depth does not change the scale of the first steps.
                nn.init.zeros_(p) if name.endswith(("o.weight", "down.weight")) else nn.init.normal_(p, std=0.02 if "embed" in name else c.hidden**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, tokens, vocab] of ids [batch, tokens]."""
        x, n = self.embed(ids), ids.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:n], self.sin[:n])
        return F.linear(self.norm(x), self.embed.weight)
