"""Micro-batches of sequences that begin alike, or of similar length.

veRL balances tokens, which mixes both, so most of its work is repeated or padding. It has no hook for another
division, so its function is replaced where its engine looks it up.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp import transformer_impl

from research.training.verl.cpu.prefix_tree import common_prefix

TREES = "prefix_trees"  # whether micro-batches are trees of prefixes
verls = transformer_impl.prepare_micro_batches


def prepare_micro_batches(data: TensorDict, dp_group: Any = None, **others: Any) -> Any:
    """(micro-batches, the rows of each): within the configured tokens, as many on all ranks."""
    trees = tu.get_non_tensor_data(data=data, key=TREES, default=None)
    if trees is None or not tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True):
        return verls(data, dp_group=dp_group, **others)
    rows, most = data["input_ids"].unbind(), int(data["max_token_len_per_gpu"])
    groups = grown(rows, most) if trees else padded(rows, most)
    count = torch.tensor([len(groups)])
    torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=dp_group)
    while len(groups) < count:
        largest = groups.pop(max(range(len(groups)), key=lambda at: len(groups[at])))
        groups += [largest[::2], largest[1::2]]
    return [tu.index_select_tensor_dict(data, torch.tensor(group)) for group in groups], groups


def grown(rows: tuple[Tensor, ...], most: int) -> list[list[int]]:
    """Rows in lexicographic order, in trees of at most so many nodes, or of one row."""
    order = sorted(range(len(rows)), key=[row.tolist() for row in rows].__getitem__)
    groups, nodes = [[order[0]]], len(rows[order[0]])
    for before, row in zip(order, order[1:], strict=False):
        nodes += len(rows[row]) - common_prefix(rows[before], rows[row])
        if nodes > most:
            groups.append([])
            nodes = len(rows[row])
        groups[-1].append(row)
    return groups


def padded(rows: tuple[Tensor, ...], most: int) -> list[list[int]]:
    """Rows by length, padded to the longest of their group to at most so many tokens, or one row."""
    groups: list[list[int]] = [[]]
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if groups[-1] and (len(groups[-1]) + 1) * len(rows[row]) > most:
            groups.append([])
        groups[-1].append(row)
    return groups


transformer_impl.prepare_micro_batches = prepare_micro_batches
