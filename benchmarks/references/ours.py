"""Our loop, prompts and rewards under a preset, with the scripted model."""

import asyncio
from functools import cache
from typing import Any

from benchmarks.references.model import Outcome, ScriptedModel
from benchmarks.references.scripts import Script
from research.episode.loop import Generation, run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import Protocol, answer_of
from research.episode.tokens import TokenProtocol
from research.episode.tools import Tool, search_tool
from research.episode.trajectory import Passage
from research.evaluation.config import EvaluationConfig, compose_multihop, read_multihop
from research.rewards import DOOR, Reference
from research.tools.wikipedia_search import wikipedia_tool

# Where a reference's training, which is compared, is not as its evaluation, which a preset is for.
TRAINING = {
    "research": (
        *("limits.total_tokens=null", "limits.response_tokens=8192"),
        *("protocol.empty_query=search", "protocol.retokenise=false"),
    ),
    "recall": (
        *("prompt=recall_training", "protocol.retokenise=false", "protocol.faults=parsed"),
        "limits.response_tokens=6656",
    ),
}


def preset(name: str, *words: str) -> EvaluationConfig:
    """An evaluation's configuration under a preset, with further ``key=value`` words."""
    needed = ("engine.model=scripted", "retriever.url=http://127.0.0.1:1")
    return read_multihop(compose_multihop([*needed, f"preset={name}", *words]))


@cache
def _tokens(tokenizer: Any, protocol: Protocol) -> TokenProtocol:
    return TokenProtocol(tokenizer, protocol)  # no compared prompt names its tools by it


def _tool(script: Script, config: EvaluationConfig) -> Tool:
    async def search(query: str, top_k: int = config.retriever.top_k) -> list[Passage]:
        found = script.search(query, top_k)
        return [Passage(str(rank), each) for rank, each in enumerate(found)]

    return wikipedia_tool(search) if config.tools == "wikipedia_search" else search_tool(search)


def play(script: Script, config: EvaluationConfig, tokenizer: Any, reward: str) -> Outcome:
    """One episode."""
    tool = _tool(script, config)
    tokens = _tokens(tokenizer, config.protocol)
    model = ScriptedModel(script, tokenizer)

    async def generate(context: list[int], most: int) -> Generation:
        sampled, _ = model.sample(context, tokens.stop_strings, most, tokens.stop_token_ids)
        return Generation(sampled, [-1.0] * len(sampled))

    prompt_ids = build_prompt(config.prompt, script.question, tokens)
    episode = run_episode(prompt_ids, generate, [tool], tokens, config.limits)
    trajectory = asyncio.run(episode)
    reference = Reference(script.question, script.golden_answers, config.protocol)
    return Outcome(
        model.contexts,
        trajectory.response_ids,
        trajectory.response_mask,
        answer_of(trajectory, config.protocol),
        DOOR.load(reward)(trajectory, reference).score,
    )
