"""Direct generation: the question alone, no passages."""

from research.episode.trajectory import Trajectory
from research.evaluation.methods.calls import Calls, Tools


async def answer(question: str, tools: Tools) -> Trajectory:
    """One call."""
    calls = Calls(question, tools)
    return calls.finish(await calls.ask("direct"))
