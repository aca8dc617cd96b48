"""Flat vectors on GPUs: in half precision, sharded over all of them, when they fit.

No more than torch is needed (FAISS's own GPU build does not go with the pinned set of packages).
"""

from collections.abc import Sequence
from typing import NamedTuple

import click
import numpy as np
import torch

from retriever_server.errors import RetrieverError
from retriever_server.indexes import Device
from retriever_server.indexes.screen import Screen

GB = 1e9
RESERVE = 2 * 10**9  # bytes of each GPU: for scores, and the encoder that grows with its batches
CHUNK_ROWS = 1 << 16  # copied at once


class Card(NamedTuple):
    """A GPU by torch's name, and its free bytes."""

    device: str
    free: int


def cards() -> list[Card]:
    """The GPUs that torch can use."""
    numbers = range(torch.cuda.device_count())
    return [Card(f"cuda:{number}", torch.cuda.mem_get_info(number)[0]) for number in numbers]


def gpu_screen(vectors: np.ndarray, asked: Device) -> Screen | None:
    """The vectors [count, dimension] on GPUs; None when they are to be searched on the CPU.

    Raises RetrieverError when a GPU was asked for and there is none, or they do not fit.
    """
    if asked == "cpu":
        return None
    found = cards()
    problem = what_lacks(2 * vectors.size, found)
    if problem and asked == "gpu":
        raise RetrieverError(f"--index-device gpu: {problem}; --index-device cpu searches without")
    if problem:
        click.echo(f"WARNING: the index is searched on the CPU: {problem}", err=True)
        return None
    click.echo(f"the index goes to {', '.join(card.device for card in found)}", err=True)
    return Screen(load(vectors, shares(len(vectors), found)))


def what_lacks(needed: int, found: Sequence[Card]) -> str:
    """Why `needed` bytes do not fit onto the GPUs, in words; empty when they do."""
    if not found:
        return "torch finds no GPU"
    room = sum(_room(card) for card in found)
    if needed <= room:
        return ""
    of_each = f"{RESERVE / GB:.0f} GB of each of {len(found)} kept back"
    return f"the vectors take {needed / GB:.1f} GB of GPU memory, {room / GB:.1f} GB are free ({of_each})"


def shares(count: int, found: Sequence[Card]) -> list[tuple[str, int]]:
    """(device, rows) for each GPU: of `count` rows as many as its free memory is of all."""
    ends = np.cumsum([_room(card) for card in found], dtype=np.float64)
    rows = np.diff(np.rint(count * ends / ends[-1]), prepend=0).astype(int)
    return [(card.device, int(share)) for card, share in zip(found, rows, strict=True) if share]


def load(vectors: np.ndarray, parts: Sequence[tuple[str, int]]) -> list[torch.Tensor]:
    """Consecutive rows of `vectors` [count, dimension], as many as each (device, rows) says, as float16
    there.
    """
    shards, start = [], 0
    for device, share in parts:
        shard = torch.empty((share, vectors.shape[1]), dtype=torch.float16, device=device)
        for done in range(0, share, CHUNK_ROWS):
            chunk = vectors[start + done : start + min(done + CHUNK_ROWS, share)]
            shard[done : done + len(chunk)] = torch.from_numpy(chunk).to(torch.float16)
        shards.append(shard)
        start += share
    return shards


def _room(card: Card) -> int:
    return max(0, card.free - RESERVE)
