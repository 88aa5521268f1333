"""The linear layer of BitNet b1.58: ternary weights and 8-bit activations, trained with straight-through estimators."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` on the way forward, exactly (the difference is a float); the gradient goes to `x` as if nothing had been rounded."""
    return x + (rounded - x).detach()


def weight_codes(w: Tensor) -> tuple[Tensor, Tensor]:
    """(codes -1, 0, 1; scale): the weight in use is code * scale, one scale a matrix, the mean of |w|."""
    scale = w.detach().abs().mean().clamp(min=1e-5)
    x = w / scale
    return straight_through(x, x.round().clamp(-1, 1)), scale


def activation_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes -128..127, scale [.., 1]): the activation in use is code / scale, one scale a token."""
    scale = 127 / x.detach().abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    x = x * scale
    return straight_through(x, x.round().clamp(-128, 127)), scale


class BitLinear(nn.Linear):
    """The product is one of small integers, so bf16 operands lose nothing of them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        w, weight_scale = weight_codes(self.weight)
        x, scale = activation_codes(x.float())
        return F.linear(x, w).float() * (weight_scale / scale)
