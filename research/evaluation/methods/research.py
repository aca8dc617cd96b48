"""The search loop itself (ReSearch, Search-R1, ...): the very code that training runs."""

from research.episode.loop import run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import extract_answer
from research.episode.trajectory import Trajectory
from research.evaluation.engines import turn_generator
from research.evaluation.methods.calls import MethodTools


async def answer(question: str, tools: MethodTools) -> Trajectory:
    """Think, search and answer by the protocol of the configuration."""
    tokens, config = tools.tokens, tools.config
    generate = turn_generator(tools.sample, tokens)
    prompt_ids = build_prompt(config.prompt, question, tokens)
    trajectory = await run_episode(prompt_ids, generate, tools.callable, tokens, config.limits)
    trajectory.metadata["prediction"] = extract_answer(trajectory.model_turns, config.protocol) or ""
    return trajectory
