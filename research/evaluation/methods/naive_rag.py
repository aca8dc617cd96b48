"""Naive RAG: one search with the question, then one answer."""

from research.episode.trajectory import Trajectory
from research.evaluation.methods.calls import Calls


async def answer(calls: Calls) -> Trajectory:
    """One search, one call."""
    passages = await calls.search(calls.question)
    return calls.finish(await calls.ask("naive_rag", passages=calls.shown(passages)))
