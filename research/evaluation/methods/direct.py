"""Direct generation: the question alone, no passages."""

from research.episode.trajectory import Trajectory
from research.evaluation.methods.calls import Calls, MethodTools


async def answer(question: str, tools: MethodTools) -> Trajectory:
    """One call."""
    calls = Calls(question, tools)
    return calls.finish(await calls.ask("direct"))
