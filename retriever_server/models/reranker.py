"""Reranker: the passages that an index found, put in order by a cross-encoder that reads query and passage
together.
"""

from typing import TYPE_CHECKING

import numpy as np

from retriever_server.errors import RetrieverError

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from retriever_server.serving.service import Hit

BATCH_SIZE = 32
SCORE_DECIMALS = 4  # what a float32 logit keeps whatever else is in the batch that it was computed in


class Reranker:
    """A sentence-transformers CrossEncoder with one output. One thread at a time, like the encoder."""

    def __init__(self, name: str, device: str | None = None, batch_size: int = BATCH_SIZE) -> None:
        """Load the model `name`, a hub name or a directory; device None takes an accelerator where there is
        one. What is longer than the model reads is cut by its tokenizer.

        Raises RetrieverError when the model cannot be loaded, or has more outputs than one.
        """
        self.name = name
        self._batch_size = batch_size
        self._model = _load_model(name, device)

    def rerank(self, queries: list[str], hits: "list[list[Hit]]", top_k: int) -> "list[list[Hit]]":
        """For each query its min(top_k, found) best hits, best first; equal scores keep the order they had.

        A hit's score becomes the model's logit, before any sigmoid: that one is 1.0 for many a passage.
        """
        pairs = [(query, hit.contents) for query, found in zip(queries, hits, strict=True) for hit in found]
        scores = iter(self._scores(pairs).tolist())
        return [_best([hit._replace(score=next(scores)) for hit in found], top_k) for found in hits]

    def _scores(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        from torch.nn import Identity

        if not pairs:
            return np.zeros(0)
        logits = self._model.predict(
            pairs, batch_size=self._batch_size, show_progress_bar=False, activation_fn=Identity()
        )
        return np.asarray(logits, dtype=np.float64).round(SCORE_DECIMALS)


def _best(hits: "list[Hit]", top_k: int) -> "list[Hit]":
    return sorted(hits, key=lambda hit: -hit.score)[:top_k]  # stable


def _load_model(name: str, device: str | None) -> "CrossEncoder":
    # Imported here, not above, for the seconds it takes.
    from safetensors import SafetensorError
    from sentence_transformers import CrossEncoder
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = CrossEncoder(name, device=device)
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RetrieverError(f'cannot load the reranker "{name}": {reason}') from error
    if model.num_labels != 1:
        raise RetrieverError(
            f'the reranker "{name}" has {model.num_labels} outputs; it must have one, a score'
        )
    return model
