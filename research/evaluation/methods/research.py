"""The episode of the environment, by default the search loop (ReSearch, Search-R1, ...), as in training."""

from research.episode.protocol import answer_of
from research.episode.trajectory import Trajectory
from research.evaluation.engines import turn_generator
from research.evaluation.methods.calls import Calls


async def answer(calls: Calls) -> Trajectory:
    """The episode that the environment plays and measures."""
    tokens, generate = calls.tokens, turn_generator(calls.sample, calls.tokens)
    trajectory = await calls.environment.play(calls.row, generate, tokens)
    trajectory.reward, trajectory.reward_reason = None, ""  # of a training; an evaluation has figures
    trajectory.metadata["prediction"] = answer_of(trajectory, tokens.protocol) or ""
    return trajectory
