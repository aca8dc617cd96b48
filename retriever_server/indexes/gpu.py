"""Flat vectors on GPUs, in half precision, sharded over all of them if they fit.

Needs nothing but torch (FAISS's own GPU build does not fit the pinned set of packages).
"""

from collections.abc import Sequence
from typing import NamedTuple

import click
import numpy as np
import torch

from retriever_server.errors import RetrieverError
from retriever_server.indexes import Device
from retriever_server.indexes.screen import Screen
from retriever_server.memory import GB

RESERVE = 2 * 10**9  # bytes of each GPU: for scores, and the encoder, which grows with its batches
CHUNK_ROWS = 1 << 16  # copied at once


class Card(NamedTuple):
    """A GPU by torch's name, and its free bytes."""

    device: str
    free: int

    @property
    def room(self) -> int:
        """Bytes for vectors."""
        return max(0, self.free - RESERVE)


def cards() -> list[Card]:
    """The GPUs that torch can use."""
    numbers = range(torch.cuda.device_count())
    return [Card(f"cuda:{number}", torch.cuda.mem_get_info(number)[0]) for number in numbers]


def gpu_screen(vectors: np.ndarray, device: Device) -> Screen | None:
    """The vectors [count, dimension] on GPUs; None when they are to be searched on the CPU.

    Raises RetrieverError when a GPU was requested and there is none, or the vectors do not fit.
    """
    if device == "cpu":
        return None
    available = cards()
    problem = what_lacks(2 * vectors.size, available)
    if problem and device == "gpu":
        raise RetrieverError(f"--index-device gpu: {problem}; --index-device cpu searches without")
    if problem:
        click.echo(f"WARNING: the index is searched on the CPU: {problem}", err=True)
        return None
    click.echo(f"the index goes to {', '.join(card.device for card in available)}", err=True)
    return Screen(load(vectors, shares(len(vectors), available)))


def what_lacks(needed: int, available: Sequence[Card]) -> str:
    """Why `needed` bytes do not fit onto the GPUs, in words; empty if they fit."""
    if not available:
        return "torch finds no GPU"
    room = sum(card.room for card in available)
    if needed <= room:
        return ""
    kept = f"{RESERVE / GB:.0f} GB of each of {len(available)} kept back"
    return f"the vectors take {needed / GB:.1f} GB of GPU memory, {room / GB:.1f} GB are free ({kept})"


def shares(count: int, available: Sequence[Card]) -> list[tuple[str, int]]:
    """(device, rows) for each GPU: `count` rows in proportion to the free memory."""
    ends = np.cumsum([card.room for card in available], dtype=np.float64)
    rows = np.diff(np.rint(count * ends / ends[-1]), prepend=0).astype(int)
    return [(card.device, int(share)) for card, share in zip(available, rows, strict=True) if share]


def load(vectors: np.ndarray, parts: Sequence[tuple[str, int]]) -> list[torch.Tensor]:
    """Consecutive rows of `vectors` [count, dimension] as float16 on each (device, number of rows)."""
    shards = []
    sources = torch.from_numpy(vectors).split([share for _, share in parts])
    for (device, _), source in zip(parts, sources, strict=True):
        shards.append(torch.empty(source.shape, dtype=torch.float16, device=device))
        # In chunks: the host never holds a second copy.
        for chunk, place in zip(source.split(CHUNK_ROWS), shards[-1].split(CHUNK_ROWS), strict=True):
            place.copy_(chunk.to(torch.float16))
    return shards
