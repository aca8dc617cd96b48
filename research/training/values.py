"""What the values of a training's configuration may be: a rule for each key of ``research``, and for those of
veRL's that GRPO and the recipe give a meaning to. The keys themselves are documented in recipes/config.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.values import (
    ABOVE_0,
    AT_LEAST_0,
    LIMITS,
    PROTOCOL,
    RETRIEVER,
    SECTION,
    SERVER_MAXIMUM,
    SWITCH,
    TEXT,
    Rule,
    check,
    check_limits,
    either,
    flattened,
    integer,
    is_integer,
    list_of,
    or_null,
)

RESEARCH = {
    **dict.fromkeys(("protocol", "limits", "retriever", "guards", "rewriting"), SECTION),
    "prompt": TEXT,
    "reward": Rule(lambda value: isinstance(value, str | Mapping), "a name, or names with their weights"),
    "train_hops": list_of(lambda value: is_integer(value, 1), "a list of hop counts like [2, 3]"),
    "controls": list_of(lambda value: isinstance(value, str), "a list like [closed_book]"),
    "repeatable_sampling": SWITCH,
    "generate_timeout": ABOVE_0,
    "weight_update_timeout": ABOVE_0,
    "max_steps_without_retriever": integer(1),
    **PROTOCOL,
    **LIMITS,
    **RETRIEVER,
    "rewriting.think": SWITCH,
    "rewriting.metric": TEXT,
    "rewriting.k": integer(1, SERVER_MAXIMUM),
    "rewriting.encoder": TEXT,
    "rewriting.encoder_device": or_null(TEXT),
    "rewriting.encoder_batch": integer(1),
    "rewriting.free_tokens": integer(0),
    "rewriting.length_penalty": AT_LEAST_0,
    "rewriting.empty_penalty": AT_LEAST_0,
}
TRAINING = {
    "data.train_batch_size": integer(1),
    "data.val_batch_size": or_null(integer(1)),
    "data.train_max_samples": either(-1, "-1", integer(1)),
    "data.max_prompt_length": integer(1),
    "data.max_response_length": integer(1),
    "data.seed": integer(0),
    "actor_rollout_ref.rollout.n": integer(1),
    "actor_rollout_ref.rollout.temperature": ABOVE_0,
    "actor_rollout_ref.rollout.max_model_len": integer(1),
    "actor_rollout_ref.rollout.val_kwargs.n": integer(1),
    "actor_rollout_ref.rollout.val_kwargs.temperature": AT_LEAST_0,
    "actor_rollout_ref.actor.optim.lr": ABOVE_0,
    "actor_rollout_ref.actor.grad_clip": ABOVE_0,
    "trainer.total_training_steps": or_null(integer(1)),
    "trainer.total_epochs": integer(1),
    "trainer.test_freq": either(-1, "-1 for never", integer(1)),
    "trainer.save_freq": either(-1, "-1 for never", integer(1)),
    "trainer.val_only": Rule(lambda value: value is False, "false: recipes/eval_multihop.sh evaluates"),
}


def check_research(values: Mapping[str, Any]) -> None:
    """The values of the ``research`` section; a key that is missing is left to who needs it.

    Raises:
        ValueError: a value has no meaning; names key, reason and value.
    """
    flat = flattened(values)
    check(flat, RESEARCH, "research.")
    check_limits(flat, "research.")


def check_training(config: DictConfig) -> None:
    """The keys of veRL's, and what they have to do with one another.

    Raises:
        ValueError: a value has no meaning; names key, reason and value.
    """
    check({key: OmegaConf.select(config, key) for key in TRAINING}, TRAINING)
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
