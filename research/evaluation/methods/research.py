"""The search loop itself (ReSearch, Search-R1, ...): the very code that training runs."""

from research.episode.loop import Generation, run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import extract_answer
from research.episode.tools import search_tool
from research.episode.trajectory import Trajectory
from research.evaluation.engines import Stops
from research.evaluation.methods import Tools


async def answer(question: str, tools: Tools) -> Trajectory:
    """Think, search and answer by the protocol of the configuration."""
    tokens, config = tools.tokens, tools.config
    stops = Stops(tuple(tokens.stop_token_ids), tuple(tokens.stop_strings))

    async def generate(token_ids: list[int], max_tokens: int) -> Generation:
        sampled = await tools.sample(token_ids, max_tokens, stops)
        return Generation(sampled, [0.0] * len(sampled))  # nothing is trained on them

    prompt_ids = build_prompt(config.prompt, question, tokens)
    trajectory = await run_episode(prompt_ids, generate, [search_tool(tools.search)], tokens, config.limits)
    prediction = extract_answer(trajectory.model_turns, config.protocol)
    trajectory.metadata["prediction"] = prediction or ""
    return trajectory
