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


def _from(least: float, most: float, words: str) -> Rule:
    return Rule(lambda value: _is_number(value) and least <= value <= most, words)


def _one_of(*names: str) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}")


def _only(only: Any, words: str) -> Rule:
    return Rule(lambda value: type(value) is type(only) and value == only, words)


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
NUMBER = Rule(_is_number, "a number")
SHARE = _from(0, 1, "a number from 0 to 1")
PART = Rule(lambda value: ABOVE_0.holds(value) and value <= 1, "a number above 0 and at most 1")
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
    "early_stop": _or(None, "null", _integer(1)),
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
# Of veRL's estimators those that its synchronous trainer computes.
ESTIMATORS = (
    *("grpo", "grpo_passk", "grpo_vectorized", "gdpo", "gpg", "opo", "rloo", "rloo_vectorized", "gae"),
    *("reinforce_plus_plus", "reinforce_plus_plus_baseline"),
    *("optimal_token_baseline", "tir_optimal_token_baseline"),
)
LOGGERS = (
    *("console", "tensorboard", "wandb", "file", "mlflow", "swanlab", "vemlp_wandb", "clearml"),
    *("trackio", "rl_insight"),
)
STATES = ["model", "optimizer", "extra"]
LOGGER_LIST = _list_of(lambda value: value in LOGGERS, f"a list of: {', '.join(LOGGERS)}")
SHARES = _list_of(lambda value: _is_number(value) and 0 <= value < 1, "")
BETAS = Rule(lambda value: SHARES.holds(value) and len(value) == 2, "two numbers of at least 0 and below 1")
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
# Where another value would part the run from what the recipe does with it.
FIXED = {
    "trainer.val_only": _only(False, "false: recipes/eval_multihop.sh evaluates"),
    "trainer.resume_mode": _only("auto", "auto: a run goes on; another --run-dir starts anew"),
    "trainer.default_hdfs_dir": _only(None, "null: checkpoints are kept in the run folder, see --run-dir"),
    "trainer.del_local_ckpt_after_load": _only(False, "false: --resume and research.keep need them"),
    "trainer.use_v1": _only(True, "true: the recipe trains by that trainer"),
    "trainer.v1.trainer_mode": _only("sync", "sync: the recipe trains by that trainer"),
    f"{ACTOR}.checkpoint.async_save": _only(False, "false: --resume needs to know which ones are whole"),
    f"{ACTOR}.checkpoint.save_contents": Rule(
        lambda value: isinstance(value, list) and all(each in value for each in STATES),
        f"a list with {', '.join(STATES)}: --resume and --export need them",
    ),
    f"{ROLLOUT}.name": _only("vllm", "vllm: the recipe samples by it"),
    f"{ROLLOUT}.mode": _only("async", "async: episodes search while others are sampled"),
    f"{ROLLOUT}.agent.default_agent_loop": _only("search_agent", "search_agent: the recipe's episodes"),
    f"{ROLLOUT}.val_kwargs.n": _only(1, "1: a validation question has one answer"),
}
TRAINING = {
    **FIXED,
    "data.train_batch_size": _integer(1),
    "data.val_batch_size": _or(None, "null", _integer(1)),
    "data.train_max_samples": _or(-1, "-1", _integer(1)),
    "data.max_prompt_length": _integer(1),
    "data.max_response_length": _integer(1),
    "data.seed": _integer(0),
    "data.shuffle": SWITCH,
    "data.dataloader_num_workers": _integer(0),
    "algorithm.adv_estimator": _one_of(*ESTIMATORS),
    "algorithm.norm_adv_by_std_in_grpo": SWITCH,
    "algorithm.use_kl_in_reward": SWITCH,
    f"{ROLLOUT}.n": _integer(1),
    f"{ROLLOUT}.temperature": ABOVE_0,
    f"{ROLLOUT}.top_p": PART,
    f"{ROLLOUT}.top_k": _or(-1, "-1 for all", _integer(1)),
    f"{ROLLOUT}.max_model_len": _integer(1),
    f"{ROLLOUT}.max_num_seqs": _integer(1),
    f"{ROLLOUT}.max_num_batched_tokens": _integer(1),
    f"{ROLLOUT}.gpu_memory_utilization": PART,
    f"{ROLLOUT}.tensor_model_parallel_size": _integer(1),
    f"{ROLLOUT}.calculate_log_probs": SWITCH,
    f"{ROLLOUT}.agent.num_workers": _integer(1),
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": _integer(1),
    f"{ROLLOUT}.val_kwargs.temperature": AT_LEAST_0,
    f"{ROLLOUT}.val_kwargs.top_p": PART,
    f"{ROLLOUT}.val_kwargs.top_k": _or(-1, "-1 for all", _integer(1)),
    f"{ROLLOUT}.val_kwargs.do_sample": SWITCH,
    f"{ACTOR}.ppo_mini_batch_size": _integer(1),
    f"{ACTOR}.ppo_epochs": _integer(1),
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": _or(None, "null", _integer(1)),
    f"{ACTOR}.ppo_max_token_len_per_gpu": _integer(1),
    f"{ACTOR}.use_dynamic_bsz": SWITCH,
    f"{ACTOR}.clip_ratio": ABOVE_0,
    f"{ACTOR}.clip_ratio_low": ABOVE_0,
    f"{ACTOR}.clip_ratio_high": ABOVE_0,
    f"{ACTOR}.clip_ratio_c": Rule(lambda value: _is_number(value) and value > 1, "a number above 1"),
    f"{ACTOR}.entropy_coeff": NUMBER,
    f"{ACTOR}.use_kl_loss": SWITCH,
    f"{ACTOR}.kl_loss_coef": AT_LEAST_0,
    f"{ACTOR}.grad_clip": ABOVE_0,
    f"{ACTOR}.optim.lr": ABOVE_0,
    f"{ACTOR}.optim.lr_scheduler_type": _one_of("constant", "cosine"),
    f"{ACTOR}.optim.lr_warmup_steps": _or(-1, "-1 for lr_warmup_steps_ratio", _integer(0)),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": SHARE,
    f"{ACTOR}.optim.min_lr_ratio": _or(None, "null", SHARE),
    f"{ACTOR}.optim.weight_decay": AT_LEAST_0,
    f"{ACTOR}.optim.betas": BETAS,
    "trainer.logger": Rule(lambda value: value in LOGGERS or LOGGER_LIST.holds(value), LOGGER_LIST.words),
    "trainer.nnodes": _integer(1),
    "trainer.n_gpus_per_node": _integer(1),
    "trainer.total_training_steps": _or(None, "null", _integer(1)),
    "trainer.total_epochs": _integer(1),
    "trainer.val_before_train": SWITCH,
    "trainer.test_freq": _or(-1, "-1 for never", _integer(1)),
    "trainer.save_freq": _or(-1, "-1 for never", _integer(1)),
    "trainer.max_actor_ckpt_to_keep": _or(None, "null for all", _integer(1)),
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
    _check({key: _plain(OmegaConf.select(config, key)) for key in TRAINING}, TRAINING, "")
    samples, grpo = config.actor_rollout_ref.rollout.n, config.algorithm.adv_estimator == "grpo"
    if grpo and samples < 2:
        raise ValueError("actor_rollout_ref.rollout.n must be at least 2: GRPO compares a question's samples")
    most, batch = config.data.train_max_samples, config.data.train_batch_size
    if 0 < most < batch:
        raise ValueError(f"data.train_max_samples, {most}, is less than data.train_batch_size, {batch}")
    mini = config.actor_rollout_ref.actor.ppo_mini_batch_size
    if batch % mini:
        raise ValueError(
            f"{ACTOR}.ppo_mini_batch_size, {mini}, does not divide data.train_batch_size, {batch}, evenly"
        )
    room, response = config.data.max_response_length, config.research.limits.response_tokens
    if response > room:
        raise ValueError(
            f"research.limits.response_tokens, {response}, is more than data.max_response_length, {room}"
        )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _check(values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str) -> None:
    for key, value in values.items():
        if not rules[key].holds(value):
            raise ValueError(f"{prefix}{key} must be {rules[key].words}, not {value!r}")
