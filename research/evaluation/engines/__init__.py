"""Engines: what samples tokens. vLLM in this process, or any OpenAI-compatible server.

An engine is used from one event loop, by thousands of questions at once; it batches them itself.
"""

import itertools
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from research.episode.loop import Generate, Generation
from research.episode.prompts import build_prompt
from research.episode.protocol import Protocol as AgentProtocol
from research.episode.tokens import TokenProtocol
from research.episode.tools import Tool
from research.evaluation.config import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EngineError(Exception):
    """A call that failed for good, after the engine's own retries; it costs one question."""


@dataclass(frozen=True)
class Stops:
    """Where sampling ends before its maximum; the stop itself is part of the sampled tokens."""

    token_ids: tuple[int, ...]
    strings: tuple[str, ...] = ()


Sample = Callable[[list[int], int, Stops], Awaitable[list[int]]]
"""(token ids, a maximum of new tokens, stops) -> new tokens"""


class Engine(Protocol):
    """What a method samples with."""

    tokenizer: "PreTrainedTokenizerBase"
    max_model_len: int
    """Tokens of prompt and sampled text together."""

    async def generate(self, token_ids: list[int], max_tokens: int, stops: Stops, seed: int) -> list[int]:
        """At most `max_tokens` sampled tokens. Raises EngineError."""
        ...

    async def close(self) -> None:
        """Release what the engine holds."""
        ...


def tokens_of(engine: Engine, form: AgentProtocol, prompt: str, tools: Sequence[Tool] = ()) -> TokenProtocol:
    """The protocol bound to the engine's tokenizer. Raises EvaluationError for unsuitable model files."""
    try:
        tokens = TokenProtocol(engine.tokenizer, form, tools)
        build_prompt(prompt, "", tokens)  # a chat template that fails would fail for every question
    except (OSError, ValueError) as error:
        raise EvaluationError(" ".join(str(error).split())) from error
    return tokens


def sampler(engine: Engine, first_seed: int) -> Sample:
    """The engine for one question; each call takes the next seed, so no call depends on other questions."""
    seeds = itertools.count(first_seed)

    async def sample(token_ids: list[int], max_tokens: int, stops: Stops) -> list[int]:
        return await engine.generate(token_ids, max_tokens, stops, next(seeds))

    return sample


def seed_of(*parts: Any) -> int:
    """A seed that depends on the parts alone."""
    return zlib.crc32(repr(parts).encode())


def turn_generator(sample: Sample, tokens: TokenProtocol) -> Generate:
    """`sample` as the search loop calls it: a turn ends at the tags of the protocol."""
    stops = Stops(tuple(tokens.stop_token_ids), tuple(tokens.stop_strings))

    async def generate(token_ids: list[int], max_tokens: int) -> Generation:
        sampled = await sample(token_ids, max_tokens, stops)
        return Generation(sampled, [0.0] * len(sampled))  # nothing is trained on them

    return generate


def room_for(engine_max: int, prompt: int, wanted: int) -> int:
    """How many of the `wanted` tokens fit behind `prompt` tokens. Raises EngineError for none."""
    room = min(wanted, engine_max - prompt)
    if room < 1:
        raise EngineError(f"a prompt of {prompt} tokens leaves no room in the model's {engine_max}")
    return room
