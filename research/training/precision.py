"""Which numbers a model is computed in: bfloat16 where the processor multiplies it, float32 elsewhere."""

from contextlib import AbstractContextManager

import torch


def has_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there."""
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_bf16_supported()


def autocast(device: str) -> AbstractContextManager[object]:
    """Compute in bfloat16 over float32 weights where that pays."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=has_bfloat16(device))
