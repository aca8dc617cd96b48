"""Values of veRL's keys that have no meaning, or that would part the run from the recipe, are refused."""

import copy
import importlib.util
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_recipe_options import compose

from research.training.config import GuardConfig, read_research_config
from research.training.run.options import RunFailed
from research.training.values import ESTIMATORS, LOGGERS, TRAINING, check_training

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """A configuration; not to be changed."""
    return compose(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.val_before_train", "abc", "true or false"),
        ("trainer.max_actor_ckpt_to_keep", 0, "an integer of at least 1, or null for all"),
        ("trainer.logger", ["foo"], "a list of: console, tensorboard"),
        ("trainer.logger", None, "a list of: console, tensorboard"),
        ("trainer.n_gpus_per_node", 0, "an integer of at least 1"),
        ("trainer.resume_mode", "disable", "auto: "),
        ("research.early_stop", True, "an integer of at least 1, or null"),
        ("algorithm.adv_estimator", "nope", "one of grpo"),
        (f"{ACTOR}.ppo_epochs", 0, "an integer of at least 1"),
        (f"{ACTOR}.ppo_mini_batch_size", 0, "an integer of at least 1"),
        (f"{ACTOR}.ppo_mini_batch_size", 7, "7, does not divide data.train_batch_size, 16, evenly"),
        (f"{ACTOR}.ppo_mini_batch_size", 32, "32, does not divide"),
        (
            f"{ROLLOUT}.n",
            7,
            "16, times actor_rollout_ref.rollout.n, 7, cannot be divided evenly among 3 GPUs",
        ),
        (f"{ACTOR}.use_dynamic_bsz", False, "needs actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"),
        (f"{ACTOR}.fsdp_config.offload_policy", 7, "true or false"),
        ("actor_rollout_ref.model.lora_alpha", 0, "a number above 0"),
        (f"{ACTOR}.clip_ratio", -1, "a number above 0"),
        (f"{ACTOR}.kl_loss_coef", "abc", "a number of at least 0"),
        (f"{ACTOR}.optim.weight_decay", float("nan"), "a number of at least 0"),
        (f"{ACTOR}.optim.lr_warmup_steps", "abc", "an integer of at least 0, or -1"),
        (f"{ACTOR}.optim.betas", [0.9, 1.0], "two numbers"),
        (f"{ACTOR}.checkpoint.save_contents", ["hf_model"], "a list with model, optimizer, extra"),
        (f"{ACTOR}.checkpoint.async_save", True, "false: --resume"),
        (f"{ROLLOUT}.name", "sglang", "vllm: "),
        (f"{ROLLOUT}.agent.default_agent_loop", "single_turn_agent", "search_agent: "),
        (f"{ROLLOUT}.top_p", 7, "a number above 0 and at most 1"),
        (f"{ROLLOUT}.top_p", -1, "a number above 0 and at most 1"),
        (f"{ROLLOUT}.agent.num_workers", -3, "an integer of at least 1"),
        (f"{ROLLOUT}.gpu_memory_utilization", 5, "a number above 0 and at most 1"),
        (f"{ROLLOUT}.val_kwargs.n", 2, "1: a validation question has one answer"),
        (f"{ROLLOUT}.val_kwargs.temperature", -1, "a number of at least 0"),
        (f"{ROLLOUT}.val_kwargs.top_p", 7, "a number above 0 and at most 1"),
        *(
            (f"research.guards.{name}", value, f"research.guards.{name} must be an integer")
            for name, value in (("recent_steps", 2.5), ("reward_steps", 3.7), ("reward_zero_steps", 2.5))
        ),
    ],
)
def test_a_value_without_a_meaning_is_refused(composed, key, value, message):
    config = copy.deepcopy(composed)
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, key, value, merge=False)
    if "GPUs" in message:
        config.trainer.n_gpus_per_node = 3
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_research_config(config.research)
        check_training(config)
    assert key in str(raised.value) and "\n" not in str(raised.value)


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(st.sampled_from(sorted(TRAINING)), SIMPLE | st.lists(SIMPLE, max_size=2))
def test_a_rule_takes_or_refuses_any_value(key, value):
    assert TRAINING[key].holds(value) in (True, False)


def test_every_count_of_a_guard_is_an_integer():
    assert {name for name, kind in get_type_hints(GuardConfig).items() if kind is int} == {
        "recent_steps",
        "reward_steps",
        "reward_zero_steps",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.default_local_dir=/elsewhere", "give --run-dir"),
        ("data.train_files=other.parquet", "give --questions"),
        ("data.val_files=[other.parquet]", "give --validation and --test"),
        ("data.seed=7", "give --seed"),
        (f"{ROLLOUT}.seed=7", "give --seed"),
        (f"{ROLLOUT}.agent.agent_loop_config_path=other.yaml", "the recipe has its own episodes"),
        ("trainer.n_gpus_per_node=2", "give --gpus"),
    ],
)
def test_a_key_that_the_recipe_sets_is_refused_with_its_option(tmp_path, override, message):
    with pytest.raises(RunFailed, match=message) as raised:
        compose(tmp_path, "cpu", override, gpus=1)
    assert override.split("=")[0] in str(raised.value) and "\n" not in str(raised.value)


def test_the_questions_of_the_other_recipe_have_its_option(tmp_path):
    with pytest.raises(RunFailed, match="give --tasks"):
        compose(tmp_path, "cpu", "data.train_files=other.parquet", recipe="rqr")


def test_estimators_and_loggers_are_verls():
    folder = Path(_verl().submodule_search_locations[0])
    algorithms = (folder / "trainer" / "ppo" / "core_algos.py").read_text()
    names = set(re.findall(r'^    [A-Z_]+ = "(\w+)"$', algorithms, re.MULTILINE))
    assert set(ESTIMATORS) == names - {"remax"}, "which the synchronous trainer does not compute"
    tracking = (folder / "utils" / "tracking.py").read_text().partition("supported_backend = [")[2]
    assert set(LOGGERS) == set(re.findall(r'"(\w+)"', tracking.partition("]")[0]))


def _verl():
    spec = importlib.util.find_spec("verl")  # found, not imported: that takes ten seconds
    return spec or pytest.skip("veRL is not installed")
