"""Our loop, prompts and rewards under a preset, with the scripted model."""

import asyncio
from typing import Any

from benchmarks.references.model import Outcome, ScriptedModel
from benchmarks.references.scripts import Script
from research.episode.loop import Generation, run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import answer_of
from research.episode.tokens import TokenProtocol
from research.episode.tools import search_tool
from research.episode.trajectory import Passage
from research.evaluation.config import EvaluationConfig, compose_multihop, read_multihop
from research.rewards import DOOR, Reference


def preset(name: str, *words: str) -> EvaluationConfig:
    """An evaluation's configuration under a preset, with further ``key=value`` words."""
    needed = ("engine.model=scripted", "retriever.url=http://127.0.0.1:1")
    return read_multihop(compose_multihop([*needed, f"preset={name}", *words]))


def play(script: Script, config: EvaluationConfig, tokenizer: Any, reward: str) -> Outcome:
    """One episode."""
    tokens = TokenProtocol(tokenizer, config.protocol)
    model = ScriptedModel(script, tokenizer)

    async def generate(context: list[int], most: int) -> Generation:
        sampled, _ = model.sample(context, tokens.stop_strings, most)
        return Generation(sampled, [-1.0] * len(sampled))

    async def search(query: str) -> list[Passage]:
        found = script.search(query, config.retriever.top_k)
        return [Passage(str(rank), each) for rank, each in enumerate(found)]

    prompt_ids = build_prompt(config.prompt, script.question, tokens)
    episode = run_episode(prompt_ids, generate, [search_tool(search)], tokens, config.limits)
    trajectory = asyncio.run(episode)
    reference = Reference(script.question, script.golden_answers, config.protocol)
    return Outcome(
        model.contexts,
        trajectory.response_ids,
        trajectory.response_mask,
        answer_of(trajectory, config.protocol),
        DOOR.load(reward)(trajectory, reference).score,
    )
