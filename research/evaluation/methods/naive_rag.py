"""Naive RAG: one search with the question, then one answer."""

from research.episode.trajectory import Trajectory
from research.evaluation.methods.calls import Calls, MethodTools


async def answer(question: str, tools: MethodTools) -> Trajectory:
    """One search, one call."""
    calls = Calls(question, tools)
    passages = await calls.search(question)
    return calls.finish(await calls.ask("naive_rag", passages=calls.shown(passages)))
