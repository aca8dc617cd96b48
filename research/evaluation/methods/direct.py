"""Direct generation: the question alone, no passages."""

from research.episode.trajectory import Trajectory
from research.evaluation.methods.calls import Calls


async def answer(calls: Calls) -> Trajectory:
    """One call."""
    return calls.finish(await calls.ask("direct"))
