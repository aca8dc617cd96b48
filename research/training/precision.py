"""The precision of a model's computations: bfloat16 if the processor multiplies it, else float32."""

from contextlib import AbstractContextManager

import torch


def has_bfloat16(device: str) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 there."""
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_bf16_supported()


def autocast(device: str) -> AbstractContextManager[object]:
    """Compute in bfloat16 over float32 weights where that pays."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=has_bfloat16(device))
