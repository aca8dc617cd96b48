"""Compute the common parts of samples once: a micro-batch as the tree of its prefixes.

The samples of a question share its prompt, usually their first query too, and then the passages that it
finds. veRL computes all of that again for every sample. Here tokens that follow the same tokens are one
node: layers run over the nodes, and attention follows each sample's path from the root. Log-probabilities and
gradients are those of the single sequences (tests/test_prefix_tree.py), in 1.5 to 3 times fewer tokens.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "prefix_tree"
LENGTH_STEP = 32  # nodes are padded to a multiple: libraries keep memory for each shape that they saw

Run = tuple[int, int]
"""A row, and how many of the nodes that it added are on a path."""


class PrefixTree:
    """The prefixes of sequences in lexicographic order.

    Attributes:
        ids, positions: (nodes,) a token and its place in its sequences; each row adds its new nodes in order.
        paths: of each row, its tokens' nodes.
        added: how many nodes each row adds, then how many pad.
        before: of each row, the runs of nodes in front of those that it adds.
    """

    def __init__(self, rows: Sequence[Tensor], length_step: int = LENGTH_STEP) -> None:
        shared = [0, *map(common_prefix, rows, rows[1:])]
        ids = [row[count:] for row, count in zip(rows, shared, strict=True)]
        places = [torch.arange(count, len(row)) for row, count in zip(rows, shared, strict=True)]
        self.added = [len(each) for each in ids]
        starts = [0, *torch.tensor(self.added).cumsum(0).tolist()]
        padding = torch.zeros(-starts[-1] % length_step, dtype=rows[0].dtype)
        self.added.append(len(padding))
        self.ids, self.positions = torch.cat([*ids, padding]), torch.cat([*places, padding])
        self.paths: list[Tensor] = []
        self.before: list[list[Run]] = []
        for row, (count, (start, stop)) in enumerate(zip(shared, pairwise(starts), strict=True)):
            path = self.paths[-1][:count] if row else torch.arange(0)
            self.paths.append(torch.cat([path, torch.arange(start, stop)]))
            whole = [*self.before[-1], (row - 1, self.added[row - 1])] if row else []
            self.before.append(_first(whole, count))
        self.masks = [_seen(new, old) for new, old in zip(self.added[:-1], shared, strict=True)]

    def inputs(self) -> dict[str, Any]:
        """What a model takes; the mask keeps transformers from making its own."""
        return {
            "input_ids": self.ids[None],
            "position_ids": self.positions[None],
            "attention_mask": torch.zeros(1, 1, 1, 1),
            "prefix_tree": self,
        }

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention of each node to the path that leads to it; all (1, heads, nodes, head size)."""
        queries, keys, values = (each.split(self.added, 2) for each in (query, key, value))
        found = []
        for row, mask in enumerate(self.masks):
            if not self.added[row]:
                continue
            of, said = (
                torch.cat([*(parts[at][:, :, :count] for at, count in self.before[row]), parts[row]], 2)
                for parts in (keys, values)
            )
            found.append(scaled_dot_product_attention(queries[row], of, said, attn_mask=mask, scale=scaling))
        return torch.cat([*found, torch.zeros_like(queries[-1])], 2)


def common_prefix(one: Tensor, other: Tensor) -> int:
    """The number of equal tokens with which two sequences begin."""
    length = min(len(one), len(other))
    different = (one[:length] != other[:length]).nonzero()
    return int(different[0]) if len(different) else length


def _first(runs: list[Run], count: int) -> list[Run]:
    """The first `count` nodes of a path."""
    kept = []
    for row, nodes in runs:
        if (taken := min(nodes, count)) > 0:
            kept.append((row, taken))
        count -= taken
    return kept


def _seen(new: int, old: int) -> Tensor:
    """Which nodes of a path its last ones see: those before them, and themselves."""
    return torch.ones(new, old + new, dtype=torch.bool).tril(old)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix_tree: PrefixTree | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: along a tree where the model is given one."""
    if prefix_tree is None:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return found, None
    copies = query.shape[1] // key.shape[1]
    found = prefix_tree.attend(query, repeat_kv(key, copies), repeat_kv(value, copies), scaling)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def takes_trees(module: Any) -> bool:
    """Let a model take trees if it can: every layer sees all tokens before, and nothing else mixes tokens."""
    config = module.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
    plain = set(kinds) == {"full_attention"} and not window and not getattr(config, "attention_dropout", 0)
    if plain and config._attn_implementation == "sdpa":
        module.set_attn_implementation(NAME)
    return config._attn_implementation == NAME
