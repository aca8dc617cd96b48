"""Texts to lists of passages, by the retrieval service over HTTP."""

from collections.abc import Iterable

from tqdm import tqdm

from research.episode.tools import SearchError
from research.episode.trajectory import Passage
from research.evaluation.at_once import at_once
from research.evaluation.bright.config import BrightConfig
from research.evaluation.bright.fusion import fused
from research.evaluation.bright.queries import BrightQuery
from research.evaluation.config import EvaluationError
from research.tools.search import RetrieverClient, RetrieverConfig


async def retrieve_all(
    url: str, queries: list[BrightQuery], config: BrightConfig
) -> dict[str, dict[str, float]]:
    """The best passages for each question, id -> score, best first; none for a question without texts.

    Raises EvaluationError when the service fails for good.
    """
    settings = config.retriever
    timeout, deadline, connections = settings.timeout, settings.deadline, settings.in_flight
    client = RetrieverClient(
        RetrieverConfig(url, "research", settings.top_k, timeout, deadline, connections, contents=False)
    )
    run: dict[str, dict[str, float]] = {query.question.id: {} for query in queries}

    async def search(query: BrightQuery) -> None:
        excluded = frozenset(query.question.excluded_ids)
        lists = [
            scores_of(await client(text, exclude_ids=excluded)) if text.strip() else {}
            for text in query.texts
        ]
        if lists:
            found = fused(lists, query.weights, config.fusion, settings.top_k, config.rrf_k)
            run[query.question.id] = found
        bar.update()

    try:
        with tqdm(total=len(queries), unit="question", delay=2) as bar:
            await at_once(queries, settings.in_flight, search)
    except SearchError as error:
        raise EvaluationError(f"the retriever failed: {error}; run again to resume") from error
    finally:
        await client.close()
    return run


def scores_of(passages: Iterable[Passage]) -> dict[str, float]:
    """id -> score of one answer, best first; for a passage that the server repeats, its best."""
    scores: dict[str, float] = {}
    for passage in passages:
        score = passage.score or 0.0
        scores[passage.id] = max(score, scores.get(passage.id, score))
    return scores
