"""Screened search: half-precision products find the few rows that can be among the best; exact scores decide.

One matrix product in half precision over all vectors is several times as fast as FAISS's own search, on CPUs
with half precision and on GPUs alike. The error of its scores has a known bound, so a margin of twice that
below the k-th best loses no row: scoring the rest exactly gives the answer of an exact search. The vectors
may be in shards on several devices, which are searched at once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn.functional import pad

BLOCK_ROWS = {"cpu": 1 << 14, "cuda": 1 << 18}  # scores of a block stay in the cache, or fill the GPU
GROUP = 16
# Relative error of a number rounded to half precision. For vectors of length 1 the product is off by at most
# once this for the query, once for the stored vector, and once for the score itself, which is rounded too.
ROUNDING = 2.0**-11
MARGIN = 2 * 3 * ROUNDING + ROUNDING  # the last: the threshold is rounded as well


class Screen:
    """Unit vectors in half precision, in shards of consecutive rows. Thread-safe."""

    def __init__(self, shards: Sequence[torch.Tensor]) -> None:
        """Hold `shards`: float16 [rows, dimension] each, on any device."""
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self._pool = ThreadPoolExecutor(len(shards), thread_name_prefix="screen")

    def candidates(self, queries: np.ndarray, top_k: int) -> list[np.ndarray]:
        """For each of the unit vectors `queries` [q, dimension] its candidates: rows int64, in no order.

        Among them are the top_k rows of the largest exact inner products, and all ties with the last.
        """
        halves = torch.from_numpy(queries).to(torch.float16)
        by_shard = list(self._pool.map(lambda shard: near(shard, halves, top_k), self._shards))
        query = np.concatenate([places for places, _ in by_shard])
        rows = np.concatenate(
            [found + start for (_, found), start in zip(by_shard, self._starts, strict=False)]
        )
        return [rows[query == i] for i in range(len(queries))]


def near(shard: torch.Tensor, queries: torch.Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(query, row) pairs, two int64 [n]: the rows of `shard` within MARGIN of a query's top_k-th best."""
    dtype = product_dtype(shard.device)
    queries = queries.to(shard.device, dtype)
    best, kept = queries.new_empty((len(queries), 0)), []
    block_rows = BLOCK_ROWS[shard.device.type]
    for start in range(0, len(shard), block_rows):
        scores = queries @ shard[start : start + block_rows].to(dtype).T
        groups = pad(scores, (0, -scores.shape[1] % GROUP), value=-torch.inf).view(len(queries), GROUP, -1)
        maxima = groups.amax(dim=1)
        # The k-th best of the maxima is at most that of all scores: as good a threshold, found far sooner.
        best = torch.cat([best, maxima], dim=1)
        best = best.topk(min(top_k, best.shape[1]), dim=1).values
        floor = best[:, -1] - MARGIN if best.shape[1] == top_k else torch.full_like(best[:, 0], -torch.inf)
        query, group = (maxima >= floor[:, None]).nonzero(as_tuple=True)
        score = groups[query, :, group]
        pair, member = ((score >= floor[query, None]) & (score > -torch.inf)).nonzero(as_tuple=True)
        kept.append((query[pair], start + member * maxima.shape[1] + group[pair], score[pair, member]))
    query, row, score = (torch.cat(parts) for parts in zip(*kept, strict=True))
    still = score >= floor[query]  # the first blocks were compared with a lower floor
    return query[still].cpu().numpy(), row[still].cpu().numpy()


def product_dtype(device: torch.device) -> torch.dtype:
    """Half precision if the processor multiplies it, else float32, to which each block is converted."""
    has_half = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return torch.float16 if has_half else torch.float32
