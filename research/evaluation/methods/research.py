"""The episode of the environment, by default the search loop (ReSearch, Search-R1, ...), as in training."""

from research.episode.protocol import extract_answer
from research.episode.trajectory import Trajectory
from research.evaluation.engines import turn_generator
from research.evaluation.methods.calls import MethodTools


async def answer(question: str, tools: MethodTools) -> Trajectory:
    """Whatever the environment plays, which also measures it."""
    generate = turn_generator(tools.sample, tools.tokens)
    trajectory = await tools.environment.play(tools.row, generate, tools.tokens)
    trajectory.reward, trajectory.reward_reason = None, ""  # of a training; an evaluation has figures
    trajectory.metadata["prediction"] = extract_answer(trajectory.model_turns, tools.tokens.protocol) or ""
    return trajectory
