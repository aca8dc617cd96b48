"""What building has in common: a sample to train on, and the vectors in chunks, with progress."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

CHUNK_ROWS = 1 << 14


def training_sample(vectors: np.ndarray, rows: int) -> np.ndarray:
    """At most `rows` of the memory-mapped vectors [count, dimension], drawn by a fixed seed: float32."""
    if rows >= len(vectors):
        return np.array(vectors)
    drawn = np.random.default_rng(0).choice(len(vectors), size=rows, replace=False)
    return np.array(vectors[np.sort(drawn)])


def chunks(vectors: np.ndarray, what: str) -> Iterator[np.ndarray]:
    """All vectors in order, float32 [<= CHUNK_ROWS, dimension] at a time; `what` is said to be done."""
    with tqdm(total=len(vectors), desc=what, unit=" passages", mininterval=1, delay=1) as progress:
        for start in range(0, len(vectors), CHUNK_ROWS):
            chunk = np.array(vectors[start : start + CHUNK_ROWS])
            yield chunk
            progress.update(len(chunk))
