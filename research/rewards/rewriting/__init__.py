"""Rewards of a rewritten query, one file each, found by name: how much better it is than the question.

Each is a class that is made once and then asked, ``await reward(task, text) -> Reward``; one of your own is
named by its import path, ``my_package.my_module:TextReward``. It may search and encode (:class:`Tools`), and
raises ScoringError if it cannot score a text, which does not make the text bad. Weights, length and empty
texts are handled in score.py.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar

import numpy as np

from research.datasets.rewriting_tasks import RewritingTask
from research.doors import Door
from research.episode.tools import SearchError
from research.episode.trajectory import Passage
from research.metrics.ranking import MEASURES
from research.rewards import Reward, read_parts
from research.rewards.rewriting.encoder import BatchingEncoder, EncoderError, TextEncoder
from research.values import (
    AT_LEAST_0,
    SERVER_MAXIMUM,
    SWITCH,
    TEXT,
    check,
    integer,
    one_of,
    or_null,
    rules_of,
)

Search = Callable[[str, int, frozenset[str]], Awaitable[list[Passage]]]
"""(query, how many, ids that are not wanted) -> passages, best first. Raises SearchError."""
TextRewardFunction = Callable[[RewritingTask, str], Awaitable[Reward]]
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
DOOR = Door("reward of rewriting", "research.rewards.rewriting", "TextReward", frozenset({"score"}))


class ScoringError(Exception):
    """A text could not be scored, through no fault of its own: the retriever or the encoder failed."""


@dataclass(frozen=True)
class RewritingConfig:
    """The keys of ``research.rewriting``; see research/config/train_rqr.yaml for each.

    Raises:
        ValueError: a value has no meaning; names the key.
    """

    think: Annotated[bool, SWITCH]
    metric: Annotated[str, one_of(tuple(MEASURES))]
    k: Annotated[int, integer(1, SERVER_MAXIMUM)]
    encoder: Annotated[str, TEXT]
    encoder_device: Annotated[str | None, or_null(TEXT)]
    encoder_batch: Annotated[int, integer(1)]
    free_tokens: Annotated[int, integer(0)]
    length_penalty: Annotated[float, AT_LEAST_0]  # both are taken off the reward
    empty_penalty: Annotated[float, AT_LEAST_0]

    def __post_init__(self) -> None:
        check(vars(self), rules_of(RewritingConfig), "research.rewriting.")


class Tools:
    """The tools of rewards. The encoder is loaded when a reward first asks for it."""

    def __init__(self, config: RewritingConfig, search: Search) -> None:
        self.config, self._search = config, search
        self._originals: dict[tuple[str, tuple[str, ...], int], asyncio.Task[list[str]]] = {}

    @cached_property
    def _encoder(self) -> BatchingEncoder:
        config = self.config
        return BatchingEncoder(TextEncoder(config.encoder, config.encoder_device, config.encoder_batch))

    def load_encoder(self) -> None:
        """Now, not at the first text. Raises EncoderError."""
        _ = self._encoder

    async def encode(self, texts: list[str]) -> np.ndarray:
        """float32 (texts, dimension), rows of length 1. Raises ScoringError."""
        try:
            return await self._encoder(texts)
        except EncoderError as error:
            raise ScoringError(str(error)) from error

    async def ranked(self, task: RewritingTask, text: str, count: int) -> list[str]:
        """Ids of the passages that the text finds, best first, each once, without those the task excludes.

        Raises:
            ScoringError: the search failed.
        """
        try:
            passages = await self._search(text, count, frozenset(task.excluded_ids))
        except SearchError as error:
            raise ScoringError(f"the search failed: {error}") from error
        return list(dict.fromkeys(passage.id for passage in passages))

    async def ranked_original(self, task: RewritingTask, count: int) -> list[str]:
        """The same for the question itself, which is searched with only once. Raises ScoringError."""
        key = task.question, task.excluded_ids, count
        return await once(self._originals, key, lambda: self.ranked(task, task.question, count))


async def once(
    known: dict[Key, asyncio.Task[Value]], key: Key, make: Callable[[], Coroutine[Any, Any, Value]]
) -> Value:
    """What `make` gives for the key, made once: concurrent callers wait for it. A failure is not kept."""

    def forget_failure(task: asyncio.Task[Value]) -> None:
        if task.cancelled() or task.exception():
            del known[key]

    if key not in known:
        known[key] = asyncio.ensure_future(make())
        known[key].add_done_callback(forget_failure)
    return await asyncio.shield(known[key])


def make_text_reward(name: str, tools: Tools) -> TextRewardFunction:
    """The reward of that name or import path. Raises ValueError."""
    reward: TextRewardFunction = DOOR.load(name)(tools)
    return reward


def reward_weights(reward: str | Mapping[str, Any]) -> dict[str, float]:
    """Weights by name of ``research.reward``: one name, or several with their weights.

    Raises:
        ValueError: a name is unknown or a weight is no number.
    """
    parts = read_parts(reward)
    for part in parts:
        _require_tools(part.name, DOOR.load(part.name))
        if part.parameters:
            raise ValueError(f"research.reward: {part.name} takes a weight and no parameters")
    return {part.name: part.weight for part in parts}


def _require_tools(name: str, made: Any) -> None:
    try:
        inspect.signature(made).bind("tools")
    except TypeError as error:
        raise ValueError(
            f"research.reward: {name}: {error}; a reward of rewriting is made with the tools alone, "
            "TextReward(tools), and then called with a task and a text"
        ) from error
