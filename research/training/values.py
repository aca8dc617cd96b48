"""What the values of a configuration may be: a rule for each key of ``research``, and for those of veRL's
that GRPO and the recipe give a meaning to. The keys themselves are documented in recipes/config.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from research.protocol import Protocol, render_passage
from research.trajectory import Passage

SERVER_MAXIMUM = 1000  # passages of a search, at the retrieval server
NAMES = ("think", "search", "result", "answer")


class Rule(NamedTuple):
    """Whether a value has a meaning, and in words which do."""

    holds: Callable[[Any], bool]
    words: str


def _is_integer(value: Any, least: float, most: float = math.inf) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(least: int, most: float = math.inf) -> Rule:
    words = f"an integer of at least {least}" if most == math.inf else f"an integer from {least} to {most}"
    return Rule(lambda value: _is_integer(value, least, most), words)


def _or(also: Any, word: str, rule: Rule) -> Rule:
    return Rule(lambda value: value == also or rule.holds(value), f"{rule.words}, or {word}")


def _list_of(holds: Callable[[Any], bool], words: str) -> Rule:
    return Rule(lambda value: isinstance(value, list) and all(map(holds, value)), words)


def is_url(value: Any) -> bool:
    """Whether it is an http(s) address, with a port that can be one."""
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, TypeError, AttributeError):  # a port that is no number; no text at all
        return False


ABOVE_0 = Rule(lambda value: _is_number(value) and value > 0, "a number above 0")
AT_LEAST_0 = Rule(lambda value: _is_number(value) and value >= 0, "a number of at least 0")
SWITCH = Rule(lambda value: isinstance(value, bool), "true or false")
TEXT = Rule(lambda value: isinstance(value, str) and bool(value.strip()), "a text")
TAG = Rule(lambda value: isinstance(value, str) and value.isidentifier(), "the name of a tag")
URL = Rule(is_url, "an address like http://127.0.0.1:8000")
SECTION = Rule(lambda value: isinstance(value, Mapping), "a section with keys of its own")

RESEARCH = {
    **dict.fromkeys(("protocol", "limits", "retriever", "guards", "rewriting"), SECTION),
    "prompt": TEXT,
    "reward": Rule(lambda value: isinstance(value, str | Mapping), "a name, or names with their weights"),
    "train_hops": _list_of(lambda value: _is_integer(value, 1), "a list of hop counts like [2, 3]"),
    "controls": _list_of(lambda value: isinstance(value, str), "a list like [closed_book]"),
    "repeatable_sampling": SWITCH,
    "generate_timeout": ABOVE_0,
    "weight_update_timeout": ABOVE_0,
    "max_steps_without_retriever": _integer(1),
    **{f"protocol.{name}": TAG for name in NAMES},
    "protocol.boxed": SWITCH,
    "limits.searches": _integer(0),
    "limits.turn_tokens": _integer(1),
    "limits.response_tokens": _integer(1),
    "limits.passage_tokens": _integer(0),
    "retriever.url": URL,
    "retriever.wire": TEXT,
    "retriever.top_k": _integer(1, SERVER_MAXIMUM),
    "retriever.timeout": ABOVE_0,
    "retriever.deadline": ABOVE_0,
    "retriever.connections": _integer(1),
    "retriever.cache_size": _integer(0),
    "retriever.contents": SWITCH,
    "rewriting.think": SWITCH,
    "rewriting.metric": TEXT,
    "rewriting.k": _integer(1, SERVER_MAXIMUM),
    "rewriting.encoder": TEXT,
    "rewriting.encoder_device": _or(None, "null", TEXT),
    "rewriting.encoder_batch": _integer(1),
    "rewriting.free_tokens": _integer(0),
    "rewriting.length_penalty": AT_LEAST_0,
    "rewriting.empty_penalty": AT_LEAST_0,
}
TRAINING = {
    "data.train_batch_size": _integer(1),
    "data.val_batch_size": _or(None, "null", _integer(1)),
    "data.train_max_samples": _or(-1, "-1", _integer(1)),
    "data.max_prompt_length": _integer(1),
    "data.max_response_length": _integer(1),
    "data.seed": _integer(0),
    "actor_rollout_ref.rollout.n": _integer(1),
    "actor_rollout_ref.rollout.temperature": ABOVE_0,
    "actor_rollout_ref.rollout.max_model_len": _integer(1),
    "actor_rollout_ref.rollout.val_kwargs.n": _integer(1),
    "actor_rollout_ref.rollout.val_kwargs.temperature": AT_LEAST_0,
    "actor_rollout_ref.actor.optim.lr": ABOVE_0,
    "actor_rollout_ref.actor.grad_clip": ABOVE_0,
    "trainer.total_training_steps": _or(None, "null", _integer(1)),
    "trainer.total_epochs": _integer(1),
    "trainer.test_freq": _or(-1, "-1 for never", _integer(1)),
    "trainer.save_freq": _or(-1, "-1 for never", _integer(1)),
    "trainer.val_only": Rule(lambda value: value is False, "false: recipes/eval_multihop.sh evaluates"),
}


def check_research(values: Mapping[str, Any]) -> None:
    """The values of the ``research`` section; a key that is missing is left to who needs it.

    Raises:
        ValueError: a value has no meaning; names key, reason and value.
    """
    flat = {f"{name}.{key}": value for name in values for key, value in _items(values[name])} | dict(values)
    _check({key: flat[key] for key in RESEARCH if key in flat}, RESEARCH, "research.")
    if flat.get("limits.searches") and flat.get("limits.passage_tokens") == 0:
        raise ValueError("research.limits.passage_tokens must be at least 1 where searches are made")


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def check_protocol(protocol: Protocol) -> None:
    """Raises ValueError where two tags have one name, or a passage cannot be put into its template."""
    if len(set(protocol.names)) < len(NAMES):
        raise ValueError(f"research.protocol: {', '.join(NAMES)} must have different names")
    try:
        render_passage(Passage("1", "title\ntext", 1.0), 1, protocol)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            "research.protocol.passage_template may hold {rank}, {title}, {text} and {contents}, not "
            f"{protocol.passage_template!r}"
        ) from error


def check_training(config: DictConfig) -> None:
    """The keys of veRL's, and what they have to do with one another.

    Raises:
        ValueError: a value has no meaning; names key, reason and value.
    """
    _check({key: OmegaConf.select(config, key) for key in TRAINING}, TRAINING, "")
    samples, grpo = config.actor_rollout_ref.rollout.n, config.algorithm.adv_estimator == "grpo"
    if grpo and samples < 2:
        raise ValueError("actor_rollout_ref.rollout.n must be at least 2: GRPO compares a question's samples")
    most, batch = config.data.train_max_samples, config.data.train_batch_size
    if 0 < most < batch:
        raise ValueError(f"data.train_max_samples, {most}, is less than data.train_batch_size, {batch}")
    room, response = config.data.max_response_length, config.research.limits.response_tokens
    if response > room:
        raise ValueError(
            f"research.limits.response_tokens, {response}, is more than data.max_response_length, {room}"
        )


def _check(values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str) -> None:
    for key, value in values.items():
        if not rules[key].holds(value):
            raise ValueError(f"{prefix}{key} must be {rules[key].words}, not {value!r}")
