"""Texts to lists of passages, by the retrieval service over HTTP, many texts a request."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from research.episode.trajectory import Passage
from research.evaluation.bright.config import RetrieverSettings
from research.evaluation.bright.fusion import fuse
from research.evaluation.bright.queries import Query
from research.evaluation.config import EvaluationError
from research.model_server import JsonServer, ServerError
from research.tools.search import TOKEN_VARIABLE, research_passages

BODY_BYTES = 4_000_000  # of a request: the service takes 8 MiB, and questions of aops exclude 9,206 ids
PASSAGES = 65_536  # of an answer, as the service has it


class Job(NamedTuple):
    """One text to search with, and the ids that are not wanted."""

    text: str
    excluded: tuple[str, ...]


def retrieve(
    url: str, queries: list[Query], settings: RetrieverSettings, fusion: str, k: int
) -> dict[str, Any]:
    """For each question its best passages, id -> score, best first; none for one without texts.

    Raises EvaluationError when the service fails for good.
    """
    jobs = [
        Job(text, query.question.excluded_ids) for query in queries for text in query.texts if text.strip()
    ]
    found = asyncio.run(_Searcher(url, settings).search([*dict.fromkeys(jobs)]))
    run: dict[str, dict[str, float]] = {}
    for query in queries:
        lists = [found.get(Job(text, query.question.excluded_ids), {}) for text in query.texts]
        fused = fuse(lists, query.weights, fusion, settings.top_k, k) if lists else {}
        run[query.question.id] = fused
    return run


class _Searcher:
    def __init__(self, url: str, settings: RetrieverSettings) -> None:
        self._settings = settings
        self._server = JsonServer(url, settings.timeout, settings.deadline, TOKEN_VARIABLE)

    async def search(self, jobs: list[Job]) -> dict[Job, dict[str, float]]:
        found: dict[Job, dict[str, float]] = {}
        waiting = _batches(jobs, min(self._settings.batch, max(1, PASSAGES // self._settings.top_k)))
        try:
            with tqdm(total=len(jobs), unit="text", delay=2) as bar:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._settings.in_flight):
                        group.create_task(self._worker(waiting, found, bar))
        except* (ServerError, TypeError, ValueError) as group_error:
            error = group_error.exceptions[0]
            raise EvaluationError(f"the retriever failed: {error}; run again to go on") from error
        finally:
            await self._server.close()
        return found

    async def _worker(
        self, waiting: Iterator[list[Job]], found: dict[Job, dict[str, float]], bar: tqdm
    ) -> None:
        for batch in waiting:  # shared: each worker takes the next
            body = {
                "query": [job.text for job in batch],
                "top_n": self._settings.top_k,
                "exclude_ids": [job.excluded for job in batch],
                "return_score": True,
                "return_contents": False,
            }
            documents, scores = await self._server.call("/batch_search", body)
            for job, *answer in zip(batch, documents, scores, strict=True):
                found[job] = scores_of(research_passages(answer, contents=False))
            bar.update(len(batch))


def scores_of(passages: list[Passage]) -> dict[str, float]:
    """id -> score of one answer, best first; of a passage that the server repeats, its best."""
    found: dict[str, float] = {}
    for passage in passages:
        score = passage.score or 0.0
        found[passage.id] = max(score, found.get(passage.id, score))
    return found


def _batches(jobs: list[Job], most: int) -> Iterator[list[Job]]:
    """Jobs in order, at most so many together, and no more than a request can hold."""
    batch: list[Job] = []
    size = 0
    for job in jobs:
        needed = len(json.dumps(job))
        if batch and (len(batch) == most or size + needed > BODY_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += needed
    if batch:
        yield batch
