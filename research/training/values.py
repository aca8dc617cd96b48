"""Rules for the values of veRL's keys to which GRPO and the recipe give a meaning."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research import values as rules
from research.values import (
    ABOVE_0,
    AT_LEAST_0,
    SHARE,
    SWITCH,
    Rule,
    either,
    integer,
    is_number,
    list_of,
    or_null,
)

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
NUMBER = Rule(is_number, "a number")
ABOVE_1 = Rule(lambda value: is_number(value) and value > 1, "a number above 1")
LOGGER_LIST = list_of(lambda value: value in LOGGERS, f"a list of: {', '.join(LOGGERS)}")
LOGGING = Rule(lambda value: value in LOGGERS or LOGGER_LIST.holds(value), LOGGER_LIST.meaning)
DECAYS = list_of(lambda value: is_number(value) and 0 <= value < 1, "")
BETAS = Rule(lambda value: DECAYS.holds(value) and len(value) == 2, "two numbers of at least 0 and below 1")
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def _only(only: Any, reason: str) -> Rule:
    return Rule(lambda value: type(value) is type(only) and value == only, reason)


# Keys whose other values would break what the recipe does with the run.
FIXED = {
    "trainer.val_only": _only(False, "false: recipes/eval_multihop.sh evaluates"),
    "trainer.resume_mode": _only("auto", "auto: a run resumes; another --run-dir starts anew"),
    "data.apply_chat_template_kwargs": _only({}, "{}: give research.protocol.template_options"),
    "trainer.default_hdfs_dir": _only(None, "null: checkpoints are kept in the run folder, see --run-dir"),
    "trainer.del_local_ckpt_after_load": _only(False, "false: --resume and research.keep need them"),
    "trainer.use_v1": _only(True, "true: the recipe uses that trainer"),
    "trainer.v1.trainer_mode": _only("sync", "sync: the recipe uses that trainer"),
    f"{ACTOR}.checkpoint.async_save": _only(False, "false: --resume must know which ones are whole"),
    f"{ACTOR}.checkpoint.save_contents": Rule(
        lambda value: isinstance(value, list) and all(each in value for each in STATES),
        f"a list with {', '.join(STATES)}: --resume and --export need them",
    ),
    f"{ACTOR}.strategy": _only("fsdp2", "fsdp2: what is trained and exported here"),
    f"{ROLLOUT}.name": _only("vllm", "vllm: the recipe samples with it"),
    f"{ROLLOUT}.mode": _only("async", "async: episodes search while others are sampled"),
    f"{ROLLOUT}.agent.default_agent_loop": _only("search_agent", "search_agent: the recipe's episodes"),
    f"{ROLLOUT}.calculate_log_probs": _only(True, "true: an episode keeps them"),
    f"{ROLLOUT}.val_kwargs.n": _only(1, "1: a validation question has one answer"),
}
# (rule, section, its keys)
RULES_OF_KEYS: tuple[tuple[Rule, str, str], ...] = (
    (integer(1), "data", "train_batch_size max_prompt_length max_response_length"),
    (or_null(integer(1)), "data", "val_batch_size"),
    (either(-1, "-1", integer(1)), "data", "train_max_samples"),
    (integer(0), "data", "seed dataloader_num_workers"),
    (SWITCH, "data", "shuffle"),
    (rules.one_of(ESTIMATORS), "algorithm", "adv_estimator"),
    (SWITCH, "algorithm", "norm_adv_by_std_in_grpo use_kl_in_reward"),
    (integer(1), ROLLOUT, "n max_model_len max_num_seqs max_num_batched_tokens tensor_model_parallel_size"),
    (integer(1), ROLLOUT, "agent.num_workers checkpoint_engine.update_weights_bucket_megabytes"),
    (SHARE, ROLLOUT, "top_p gpu_memory_utilization val_kwargs.top_p"),
    (either(-1, "-1 for all", integer(1)), ROLLOUT, "top_k val_kwargs.top_k"),
    (ABOVE_0, ROLLOUT, "temperature"),
    (AT_LEAST_0, ROLLOUT, "val_kwargs.temperature"),
    (SWITCH, ROLLOUT, "val_kwargs.do_sample"),
    (integer(1), ACTOR, "ppo_mini_batch_size ppo_epochs ppo_max_token_len_per_gpu"),
    (or_null(integer(1)), ACTOR, "ppo_micro_batch_size_per_gpu"),
    (SWITCH, ACTOR, "use_dynamic_bsz use_kl_loss"),
    (SWITCH, ACTOR, "fsdp_config.offload_policy fsdp_config.param_offload fsdp_config.optimizer_offload"),
    (SWITCH, "actor_rollout_ref.model", "enable_gradient_checkpointing use_remove_padding"),
    (ABOVE_0, "actor_rollout_ref.model", "lora_alpha"),
    (ABOVE_0, ACTOR, "clip_ratio clip_ratio_low clip_ratio_high grad_clip optim.lr"),
    (ABOVE_1, ACTOR, "clip_ratio_c"),
    (NUMBER, ACTOR, "entropy_coeff"),
    (AT_LEAST_0, ACTOR, "kl_loss_coef optim.weight_decay"),
    (rules.one_of(("constant", "cosine")), ACTOR, "optim.lr_scheduler_type"),
    (either(-1, "-1 for lr_warmup_steps_ratio", integer(0)), ACTOR, "optim.lr_warmup_steps"),
    (rules.FROM_0_TO_1, ACTOR, "optim.lr_warmup_steps_ratio"),
    (or_null(rules.FROM_0_TO_1), ACTOR, "optim.min_lr_ratio"),
    (BETAS, ACTOR, "optim.betas"),
    (LOGGING, "trainer", "logger"),
    (integer(1), "trainer", "nnodes n_gpus_per_node total_epochs"),
    (or_null(integer(1)), "trainer", "total_training_steps"),
    (SWITCH, "trainer", "val_before_train"),
    (either(-1, "-1 for never", integer(1)), "trainer", "test_freq save_freq"),
    (either(None, "null for all", integer(1)), "trainer", "max_actor_ckpt_to_keep"),
)
TRAINING: Mapping[str, Rule] = FIXED | {
    f"{section}.{key}": rule for rule, section, keys in RULES_OF_KEYS for key in keys.split()
}


def check_training(config: DictConfig) -> None:
    """Check veRL's keys, each by its rule, and against one another.

    Raises:
        ValueError: a value has no meaning; names key, reason and value.
    """
    rules.check({key: _plain(OmegaConf.select(config, key)) for key in TRAINING}, TRAINING)
    rollout, data = config.actor_rollout_ref.rollout, config.data
    if config.algorithm.adv_estimator == "grpo" and rollout.n < 2:
        raise ValueError(f"{ROLLOUT}.n must be at least 2: GRPO compares a question's samples")
    batch, samples = data.train_batch_size, data.train_max_samples
    if 0 < samples < batch:
        raise ValueError(f"data.train_max_samples, {samples}, is less than data.train_batch_size, {batch}")
    mini = config.actor_rollout_ref.actor.ppo_mini_batch_size
    if batch % mini:
        raise ValueError(
            f"{ACTOR}.ppo_mini_batch_size, {mini}, does not divide data.train_batch_size, {batch}, evenly"
        )
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    if not actor.use_dynamic_bsz and actor.ppo_micro_batch_size_per_gpu is None:
        raise ValueError(f"{ACTOR}.use_dynamic_bsz=false needs {ACTOR}.ppo_micro_batch_size_per_gpu")
    ranks = trainer.n_gpus_per_node * trainer.nnodes
    if mini * rollout.n % ranks:
        raise ValueError(
            f"{ACTOR}.ppo_mini_batch_size, {mini}, times {ROLLOUT}.n, {rollout.n}, cannot be divided evenly "
            f"among {ranks} GPUs (--nodes times --gpus): choose another number of GPUs, or both it and "
            "data.train_batch_size such that it can"
        )
    room, response = data.max_response_length, config.research.limits.response_tokens
    if response > room:
        raise ValueError(
            f"research.limits.response_tokens, {response}, is more than data.max_response_length, {room}"
        )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
