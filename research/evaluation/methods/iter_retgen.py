"""Iter-RetGen (arXiv 2305.15294): rounds that search with the question and the last answer, then answer."""

from research.episode.trajectory import Trajectory
from research.evaluation.methods.calls import Calls


async def answer(calls: Calls) -> Trajectory:
    """`baselines.iter_retgen_rounds` rounds; the last answer counts."""
    reply = ""
    for _ in range(calls.config.baselines.iter_retgen_rounds):
        passages = await calls.search(f"{calls.question} {reply}".strip())
        reply = await calls.ask("naive_rag", passages=calls.shown(passages))
    return calls.finish(reply)
