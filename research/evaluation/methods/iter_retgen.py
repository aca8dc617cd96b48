"""Iter-RetGen (arXiv 2305.15294): rounds that search with the question and the last answer, then answer."""

from research.episode.trajectory import Trajectory
from research.evaluation.methods.calls import Calls, MethodTools


async def answer(question: str, tools: MethodTools) -> Trajectory:
    """`baselines.iter_retgen_rounds` rounds; the last answer counts."""
    calls, reply = Calls(question, tools), ""
    for _ in range(tools.config.baselines.iter_retgen_rounds):
        passages = await calls.search(f"{question} {reply}".strip())
        reply = await calls.ask("naive_rag", passages=calls.shown(passages))
    return calls.finish(reply)
