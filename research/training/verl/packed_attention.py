"""Attention for packed sequences with PyTorch alone: ``attn_implementation: packed_sdpa``.

veRL packs a micro-batch into one row without padding (``use_remove_padding``), in which positions start again
with each sequence. flash-attn takes that, but has no wheel; transformers' own sdpa makes a mask of all tokens
by all tokens, which costs time and memory by their square. Here each sequence is attended by itself, with
PyTorch's fast kernels, which take no mask.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed_sdpa"


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; batches of several rows, or with a mask, are left to its sdpa.

    Raises ValueError for a model that caps the logits of its attention, which PyTorch's kernels do not.
    """
    if others.get("softcap") is not None:
        raise ValueError(f"{NAME} does not cap the logits of attention: attn_implementation=eager does")
    if attention_mask is not None or position_ids is None or len(query) > 1:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
        return found, None
    lengths = sequence_lengths(position_ids)
    parts = zip(*(each.split(lengths, 2) for each in (query, key, value)), strict=True)
    found = [
        sdpa_attention_forward(module, *part, _window(part[0], sliding_window), **others)[0] for part in parts
    ]
    return torch.cat(found, 1), None


def sequence_lengths(position_ids: Tensor) -> list[int]:
    """Lengths of the sequences in (1, tokens): a new one begins where positions do not continue.

    Kept with the tensor, which all layers are given: to read it waits for the GPU.
    """
    if not hasattr(position_ids, "_lengths"):
        starts = (position_ids[0].diff() != 1).nonzero()[:, 0] + 1
        bounds = [0, *starts.tolist(), position_ids.shape[1]]
        position_ids._lengths = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]  # type: ignore[attr-defined]
    lengths: list[int] = position_ids._lengths  # type: ignore[attr-defined]
    return lengths


def _window(query: Tensor, size: int | None) -> Tensor | None:
    """The mask of a layer that sees the last `size` tokens, if the sequence is longer."""
    length = query.shape[2]
    if size is None or length <= size:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - size)[None, None]


def _mask(*arguments: Any, attention_mask: Tensor | None = None, **others: Any) -> Tensor | None:
    """None for packed rows, whose sequences are found by their positions."""
    return None if attention_mask is None else sdpa_mask(*arguments, attention_mask=attention_mask, **others)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
