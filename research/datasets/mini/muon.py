"""Muon in float32, for the cold starts.

torch.optim.Muon orthogonalises in bfloat16. On CPUs without bfloat16 instructions that takes seven times as
long as float32, which would be most of a tiny model's step. The formula is Keller Jordan's
(kellerjordan.github.io/posts/muon).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose iteration takes singular values near 1
ITERATIONS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised before they are added; for parameters of two dimensions."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update all parameters by their gradients."""
        for group in self.param_groups:
            for weights in group["params"]:
                mean = self.state[weights].setdefault("mean", torch.zeros_like(weights))
                mean.lerp_(weights.grad, 1 - MOMENTUM)
                update = orthogonal(weights.grad.lerp(mean, MOMENTUM))
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                tall = math.sqrt(max(1.0, weights.shape[0] / weights.shape[1]))
                weights.add_(update, alpha=-group["lr"] * tall)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V' of the matrix's singular value decomposition U S V': singular values from 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    turned = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if turned else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if turned else x
