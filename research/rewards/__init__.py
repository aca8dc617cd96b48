"""Rewards of answers, named in ``research.reward``: built in, one file each, or a function of your own.

A reward is a function ``score(trajectory, reference, **parameters)``, plain or async, that returns a number
or a Reward. It reads what the model wrote (``Trajectory.model_turns``): a built-in one reads nothing else, so
no passage and no prompt can change it. Rewards of rewritten queries are in research/rewards/rewriting.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

from research.doors import Door
from research.episode.protocol import Protocol, format_fault
from research.episode.trajectory import Trajectory

DOOR = Door("reward", "research.rewards", "score")


@dataclass(frozen=True)
class Reward:
    """A score, the reason in plain words, and figures by name to log beside it."""

    score: float
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What a reward compares with; `metadata` is the question row's own."""

    question: str
    golden_answers: tuple[str, ...]
    protocol: Protocol
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Part(NamedTuple):
    """One reward of ``research.reward``: its name or import path, its weight, and its parameters."""

    name: str
    weight: float
    parameters: Mapping[str, Any]


def read_parts(reward: str | Mapping[str, Any]) -> list[Part]:
    """The rewards with a weight: of ``name``, ``{name: weight}``, or ``{name: {weight, parameter: value}}``.

    Raises:
        ValueError: a weight is no number, or no reward has one.
    """
    given = {reward: 1.0} if isinstance(reward, str) else reward
    parts = []
    for name, value in given.items():
        parameters = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = parameters.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"research.reward: the weight of {name} must be a number, not {weight!r}")
        parts.append(Part(str(name), float(weight), parameters))
    if not any(part.weight for part in parts):
        raise ValueError("research.reward names no reward with a weight")
    return [part for part in parts if part.weight]


class AnswerReward:
    """The rewards of ``research.reward``, added up by weight. Serves any number of episodes at once."""

    def __init__(self, reward: str | Mapping[str, Any]) -> None:
        """Raises ValueError for an invalid name, weight or parameter."""
        self._parts = [(part, _bound(part)) for part in read_parts(reward)]
        self._metrics: Set[str] | None = None

    async def __call__(self, trajectory: Trajectory, reference: Reference) -> Reward:
        """Raises what a reward raises; ValueError if it returns no reward, or other metrics than before."""
        parts = [
            (part, await _score(part.name, function, trajectory, reference)) for part, function in self._parts
        ]
        metrics = {name: value for _, reward in parts for name, value in reward.metrics.items()}
        if len(metrics) < sum(len(reward.metrics) for _, reward in parts):
            raise ValueError(f"two rewards report a metric of the same name: {sorted(metrics)}")
        self._metrics = metrics.keys() if self._metrics is None else self._metrics
        if metrics.keys() != self._metrics:
            # veRL takes the mean of each over a batch.
            raise ValueError(
                f"the rewards reported the metrics {sorted(metrics)}, and {sorted(self._metrics)} before: "
                "report the same for every trajectory"
            )
        if len(parts) == 1 and parts[0][0].weight == 1:
            return parts[0][1]
        reasons = [f"{part.name} {reward.score:+.3f} ({reward.reason})" for part, reward in parts]
        total = sum(part.weight * reward.score for part, reward in parts)
        if not math.isfinite(total):
            raise ValueError(f"the rewards add up to {total}: {'; '.join(reasons)}")
        return Reward(total, "; ".join(reasons), metrics)


def _bound(part: Part) -> Callable[..., Any]:
    function: Callable[..., Any] = DOOR.load(part.name)
    try:
        if "weight" in inspect.signature(function).parameters:
            raise TypeError("it has a parameter 'weight', which is a mixture's own word: call it otherwise")
        inspect.signature(function).bind("trajectory", "reference", **part.parameters)
    except TypeError as error:
        raise ValueError(f"research.reward: {part.name}(trajectory, reference, ...): {error}") from error
    return partial(function, **part.parameters)


async def _score(
    name: str, function: Callable[..., Any], trajectory: Trajectory, reference: Reference
) -> Reward:
    # A copy: what a reward does to it must not change what is trained on.
    given = function(copy.deepcopy(trajectory), reference)
    given = await given if inspect.isawaitable(given) else given
    reward = given if isinstance(given, Reward) else Reward(given)
    named = isinstance(reward.metrics, Mapping) and all(
        isinstance(key, str) and key for key in reward.metrics
    )
    numbers = (reward.score, *reward.metrics.values()) if named else ()
    if not (numbers and isinstance(reward.reason, str) and all(map(_is_finite, numbers))):
        raise ValueError(
            f"the reward {name} gave {given!r}: neither a finite number nor a Reward of one, with a text as "
            "its reason and finite numbers by name as its metrics"
        )
    metrics = {name: float(value) for name, value in reward.metrics.items()}
    return Reward(float(reward.score), reward.reason, metrics)  # NumPy's numbers are no JSON


def _is_finite(value: Any) -> bool:
    try:
        value = value.item() if hasattr(value, "item") else value  # a scalar of NumPy or torch
        return isinstance(value, Real) and math.isfinite(value)
    except (OverflowError, ValueError, RuntimeError):  # an integer beyond all floats, several values
        return False


def ended(trajectory: Trajectory) -> bool:
    """Whether the model ended the episode itself, by its answer or its end-of-sequence token."""
    return trajectory.finish_reason in ("answer", "eos")


def no_answer(trajectory: Trajectory, protocol: Protocol) -> Reward:
    """A reward of 0, with what cut the episode off or what its answer lacks."""
    if not ended(trajectory):
        return Reward(0.0, f"no answer: ended by {trajectory.finish_reason}")
    fault = format_fault(trajectory.model_turns, protocol) if protocol.boxed else None
    return Reward(0.0, f"no answer: {fault}" if fault else "no answer")
