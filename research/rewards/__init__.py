"""Rewards of answers, one file each, found by name: a function (trajectory, golden answers, protocol) ->
Reward. Those of rewritten queries stand in research/rewards/rewriting.

A reward reads what the model wrote (``Trajectory.model_turns``) and nothing else: no passage and no prompt
can change it. To add one, put ``research/rewards/<name>.py`` with a function ``score`` here.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from research.protocol import Protocol
from research.trajectory import Trajectory


@dataclass(frozen=True)
class Reward:
    """A score and, in plain words, why."""

    score: float
    reason: str


RewardFunction = Callable[[Trajectory, Sequence[str], Protocol], Reward]


def reward_names() -> list[str]:
    """The names that :func:`get_reward` knows, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def get_reward(name: str) -> RewardFunction:
    """The reward of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in reward_names():
        raise ValueError(f"no reward is called {name!r}; there are: {', '.join(reward_names())}")
    return importlib.import_module(f"{__name__}.{name}").score


def ended(trajectory: Trajectory) -> bool:
    """Whether the model ended the episode itself, by its answer or its end-of-sequence token."""
    return trajectory.finish_reason in ("answer", "eos")
