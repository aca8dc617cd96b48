"""What the values of a training's configuration may be: a rule for each key of ``research``, and for those of
veRL's that GRPO and the recipe give a meaning to. The keys themselves are documented in research/config.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.values import (
    ABOVE_0,
    AT_LEAST_0,
    ENVIRONMENT,
    FROM_0_TO_1,
    LIMITS,
    PROTOCOL,
    RETRIEVER,
    SECTION,
    SHARE,
    SWITCH,
    TEXT,
    TOOLS,
    Rule,
    check,
    check_limits,
    either,
    flattened,
    integer,
    is_integer,
    is_number,
    list_of,
    one_of,
    or_null,
)

NUMBER = Rule(is_number, "a number")


def _only(only: Any, words: str) -> Rule:
    return Rule(lambda value: type(value) is type(only) and value == only, words)


RESEARCH = {
    **dict.fromkeys(("protocol", "limits", "retriever", "guards"), SECTION),
    "prompt": TEXT,
    "reward": Rule(lambda value: isinstance(value, str | Mapping), "a name, or names with their weights"),
    "environment": ENVIRONMENT,
    "tools": TOOLS,
    "train_hops": list_of(lambda value: is_integer(value, 1), "a list of hop counts like [2, 3]"),
    "controls": list_of(lambda value: isinstance(value, str), "a list like [closed_book]"),
    "repeatable_sampling": SWITCH,
    "generate_timeout": ABOVE_0,
    "weight_update_timeout": ABOVE_0,
    "max_steps_without_retriever": integer(1),
    "early_stop": or_null(integer(1)),
    **PROTOCOL,
    **LIMITS,
    **RETRIEVER,
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
LOGGER_LIST = list_of(lambda value: value in LOGGERS, f"a list of: {', '.join(LOGGERS)}")
SHARES = list_of(lambda value: is_number(value) and 0 <= value < 1, "")
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
    "data.train_batch_size": integer(1),
    "data.val_batch_size": or_null(integer(1)),
    "data.train_max_samples": either(-1, "-1", integer(1)),
    "data.max_prompt_length": integer(1),
    "data.max_response_length": integer(1),
    "data.seed": integer(0),
    "data.shuffle": SWITCH,
    "data.dataloader_num_workers": integer(0),
    "algorithm.adv_estimator": one_of(ESTIMATORS),
    "algorithm.norm_adv_by_std_in_grpo": SWITCH,
    "algorithm.use_kl_in_reward": SWITCH,
    f"{ROLLOUT}.n": integer(1),
    f"{ROLLOUT}.temperature": ABOVE_0,
    f"{ROLLOUT}.top_p": SHARE,
    f"{ROLLOUT}.top_k": either(-1, "-1 for all", integer(1)),
    f"{ROLLOUT}.max_model_len": integer(1),
    f"{ROLLOUT}.max_num_seqs": integer(1),
    f"{ROLLOUT}.max_num_batched_tokens": integer(1),
    f"{ROLLOUT}.gpu_memory_utilization": SHARE,
    f"{ROLLOUT}.tensor_model_parallel_size": integer(1),
    f"{ROLLOUT}.calculate_log_probs": SWITCH,
    f"{ROLLOUT}.agent.num_workers": integer(1),
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": integer(1),
    f"{ROLLOUT}.val_kwargs.temperature": AT_LEAST_0,
    f"{ROLLOUT}.val_kwargs.top_p": SHARE,
    f"{ROLLOUT}.val_kwargs.top_k": either(-1, "-1 for all", integer(1)),
    f"{ROLLOUT}.val_kwargs.do_sample": SWITCH,
    f"{ACTOR}.ppo_mini_batch_size": integer(1),
    f"{ACTOR}.ppo_epochs": integer(1),
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": or_null(integer(1)),
    f"{ACTOR}.ppo_max_token_len_per_gpu": integer(1),
    f"{ACTOR}.use_dynamic_bsz": SWITCH,
    f"{ACTOR}.clip_ratio": ABOVE_0,
    f"{ACTOR}.clip_ratio_low": ABOVE_0,
    f"{ACTOR}.clip_ratio_high": ABOVE_0,
    f"{ACTOR}.clip_ratio_c": Rule(lambda value: is_number(value) and value > 1, "a number above 1"),
    f"{ACTOR}.entropy_coeff": NUMBER,
    f"{ACTOR}.use_kl_loss": SWITCH,
    f"{ACTOR}.kl_loss_coef": AT_LEAST_0,
    f"{ACTOR}.grad_clip": ABOVE_0,
    f"{ACTOR}.optim.lr": ABOVE_0,
    f"{ACTOR}.optim.lr_scheduler_type": one_of(("constant", "cosine")),
    f"{ACTOR}.optim.lr_warmup_steps": either(-1, "-1 for lr_warmup_steps_ratio", integer(0)),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": FROM_0_TO_1,
    f"{ACTOR}.optim.min_lr_ratio": or_null(FROM_0_TO_1),
    f"{ACTOR}.optim.weight_decay": AT_LEAST_0,
    f"{ACTOR}.optim.betas": BETAS,
    "trainer.logger": Rule(lambda value: value in LOGGERS or LOGGER_LIST.holds(value), LOGGER_LIST.words),
    "trainer.nnodes": integer(1),
    "trainer.n_gpus_per_node": integer(1),
    "trainer.total_training_steps": or_null(integer(1)),
    "trainer.total_epochs": integer(1),
    "trainer.val_before_train": SWITCH,
    "trainer.test_freq": either(-1, "-1 for never", integer(1)),
    "trainer.save_freq": either(-1, "-1 for never", integer(1)),
    "trainer.max_actor_ckpt_to_keep": either(None, "null for all", integer(1)),
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
    check({key: _plain(OmegaConf.select(config, key)) for key in TRAINING}, TRAINING)
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
