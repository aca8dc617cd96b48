"""Iter-RetGen (arXiv 2305.15294): rounds of retrieval and generation, each of which searches with the
question and the last answer.
"""

from research.episode.trajectory import Trajectory
from research.evaluation.methods import Tools
from research.evaluation.methods.calls import Calls


async def answer(question: str, tools: Tools) -> Trajectory:
    """As many rounds as `baselines.iter_retgen_rounds`; the last answer counts."""
    calls, said = Calls(question, tools), ""
    for _ in range(tools.config.baselines.iter_retgen_rounds):
        passages = await calls.search(f"{question} {said}".strip())
        said = await calls.ask("naive_rag", passages=calls.shown(passages))
    return calls.finish(said)
