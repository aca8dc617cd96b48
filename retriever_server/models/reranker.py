"""Reranker: orders an index's passages by a cross-encoder, which reads query and passage together."""

from typing import TYPE_CHECKING

import numpy as np

from retriever_server.errors import RetrieverError
from retriever_server.models.encoder import loading

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

BATCH_SIZE = 32
SCORE_DECIMALS = 4  # of a float32 logit, these do not depend on the batch that it was computed in


class Reranker:
    """A sentence-transformers CrossEncoder with one output. One thread at a time, like the encoder."""

    def __init__(self, name: str, device: str | None = None, batch_size: int = BATCH_SIZE) -> None:
        """Load the model `name`, a hub name or a directory; device None takes an accelerator if there is one.

        Its tokenizer cuts what is longer than the model reads. Raises RetrieverError when the model cannot be
        loaded, or has more than one output.
        """
        self.name = name
        self._batch_size = batch_size
        self._model = _load_model(name, device)

    def rank(self, queries: list[str], passages: list[list[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query, the places of its `passages`, int64 [n], best first, and their scores, float64 [n].

        Equal scores keep their order. A score is the model's logit, before any sigmoid, which is 1.0 for
        many.
        """
        pairs = [(query, text) for query, texts in zip(queries, passages, strict=True) for text in texts]
        ranking = []
        scores = self._scores(pairs)
        for texts in passages:
            of_query, scores = np.split(scores, [len(texts)])
            order = np.argsort(-of_query, kind="stable")
            ranking.append((order, of_query[order]))
        return ranking

    def _scores(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        from torch.nn import Identity

        if not pairs:
            return np.zeros(0)
        logits = self._model.predict(
            pairs, batch_size=self._batch_size, show_progress_bar=False, activation_fn=Identity()
        )
        return np.asarray(logits, dtype=np.float64).round(SCORE_DECIMALS)


def _load_model(name: str, device: str | None) -> "CrossEncoder":
    from sentence_transformers import CrossEncoder  # takes seconds, which only `--reranker` should cost

    with loading(f'the reranker "{name}"'):
        model = CrossEncoder(name, device=device)
    if model.num_labels != 1:
        raise RetrieverError(
            f'the reranker "{name}" has {model.num_labels} outputs; it must have one, a score'
        )
    return model
