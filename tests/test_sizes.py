"""What a training takes of memory, and the settings that let it fit a machine."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from test_recipe_options import compose, options

from research.training.sizes.fit import ASSUMED_CARD, fit_to_model, set_for_card
from research.training.sizes.memory import as_table, on_gpus, token_budget
from research.training.sizes.model import QWEN, ModelSizes, model_sizes

GB = 10**9
# Parameters in billions, as the models' cards have them.
CARDS = {"0.5B": 0.49, "1.5B": 1.54, "3B": 3.09, "7B": 7.61, "14B": 14.7, "32B": 32.5}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """The composed gpu profile."""
    return compose(tmp_path_factory.mktemp("profile"), "gpu", gpus=1)


def sizes_of(name: str) -> ModelSizes:
    return model_sizes(f"Qwen/Qwen2.5-{name}-Instruct")


@pytest.mark.parametrize("name", QWEN)
def test_well_known_models_have_their_published_sizes(name: str) -> None:
    assert sizes_of(name).parameters / GB == pytest.approx(CARDS[name], rel=0.01)


def test_an_unknown_model_without_a_hub_has_no_estimate(tmp_path: Path, profile: DictConfig) -> None:
    fit = fit_to_model(options(tmp_path, "gpu"), "Qwen/Qwen9-1B", copy.deepcopy(profile))
    assert not fit.parts and "not to be found on the hub" in fit.faults[0]


def fitted(profile: DictConfig, sizes: ModelSizes, card: int, **changes: Any) -> DictConfig:
    config = copy.deepcopy(profile)
    config.trainer.n_gpus_per_node, config.trainer.nnodes = changes.get("gpus", 1), changes.get("nodes", 1)
    config.actor_rollout_ref.model.lora_rank = changes.get("rank", 0)
    set_for_card(config, sizes, card * GB, changes.get("given", ()))
    return config


@pytest.mark.parametrize(
    ("name", "card", "machine", "split", "streamed"),
    [
        ("1.5B", 24, {"rank": 32}, 1, True),
        ("1.5B", 24, {}, 1, True),
        ("3B", 80, {}, 1, False),
        ("7B", 80, {"rank": 32}, 1, False),
        ("7B", 80, {"gpus": 8}, 1, False),
        ("32B", 80, {"gpus": 8, "nodes": 8}, 2, False),
    ],
)
def test_what_people_have_is_enough(
    profile: DictConfig, name: str, card: int, machine: dict[str, int], split: int, streamed: bool
) -> None:
    sizes = sizes_of(name)
    config = fitted(profile, sizes, card, **machine)
    parts = on_gpus(config, sizes, card * GB)
    assert max(sum(part.update for part in parts), sum(part.rollout for part in parts)) <= card * GB
    assert config.actor_rollout_ref.rollout.tensor_model_parallel_size == split
    assert config.actor_rollout_ref.actor.fsdp_config.offload_policy is streamed
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert token_budget(config) >= longest


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(QWEN)),
    card=st.sampled_from([8, 16, 24, 40, 80, 141]),
    gpus=st.sampled_from([1, 2, 8]),
    rank=st.sampled_from([0, 16]),
)
def test_chosen_settings_fit_the_card_or_the_shortest_budget_does_not(
    profile: DictConfig, name: str, card: int, gpus: int, rank: int
) -> None:
    sizes = sizes_of(name)
    config = fitted(profile, sizes, card, gpus=gpus, rank=rank)
    split = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    assert gpus % split == 0 and sizes.heads % split == 0, "vLLM would start no server, or refuse"
    learning = sum(part.update for part in on_gpus(config, sizes, card * GB))
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert learning <= card * GB or token_budget(config) == longest
    more = copy.deepcopy(config)
    more.actor_rollout_ref.actor.ppo_max_token_len_per_gpu += 1024
    assert sum(part.update for part in on_gpus(more, sizes, card * GB)) > learning


@pytest.mark.parametrize(
    ("name", "gpus", "rank", "card", "said"),
    [
        ("7B", 1, 32, 24, "vLLM's weights"),
        ("32B", 2, 32, 24, "loading"),
        ("7B", 1, None, 16, "learning"),
    ],
)
def test_a_card_that_is_too_small_is_told_what_for(
    tmp_path: Path, profile: DictConfig, name: str, gpus: int, rank: int | None, card: int, said: str
) -> None:
    config = copy.deepcopy(profile)
    config.trainer.n_gpus_per_node, config.actor_rollout_ref.model.lora_rank = gpus, rank or 0
    asked = options(tmp_path, "gpu", gpus=gpus, gpu_memory=card, lora_rank=rank)
    faults = fit_to_model(asked, f"Qwen/Qwen2.5-{name}", config).faults
    (fault,) = [each for each in faults if said in each]
    assert fault.startswith("GPU memory: ") and "use more GPUs" in fault
    assert ("--lora-rank" in fault) == (rank is None)


def test_what_the_user_sets_stays(profile: DictConfig) -> None:
    key = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
    before = token_budget(profile)
    assert token_budget(fitted(profile, sizes_of("3B"), 80, given={key})) == before


def test_the_table_adds_up_and_a_card_that_is_too_small_is_told(tmp_path: Path, profile: DictConfig) -> None:
    small = options(tmp_path, "gpu", gpus=1, gpu_memory=16)
    fit = fit_to_model(small, "Qwen/Qwen2.5-7B", copy.deepcopy(profile))
    assert fit.card == 16 * GB
    (fault,) = [each for each in fit.faults if "learning" in each]
    assert "GPU memory: learning with Qwen/Qwen2.5-7B" in fault and "\n" not in fault
    lines = as_table(fit.parts, fit.card, 64 * GB).splitlines()
    assert len(lines) == len(fit.parts) + 3 and lines[-1].endswith("16.0 GB        64.0 GB")
    assert ASSUMED_CARD == 80
