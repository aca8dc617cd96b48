"""What a training takes of memory, and the settings that let it fit a machine."""

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from test_recipe_options import compose, options
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    MambaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from research.training.sizes.fit import ASSUMED_CARD, STREAMED, fit_to_model, set_for_card
from research.training.sizes.memory import (
    adapter_parameters,
    as_table,
    logits,
    on_cpu,
    on_gpus,
    token_budget,
    total,
)
from research.training.sizes.model import QWEN, ModelSizes, adapter_faults, model_sizes, packing_faults

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


def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path) -> None:
    """Of a model whose heads together are wider than its vectors, as Qwen3's are."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3ForCausalLM

    config = Qwen3Config(**SMALL | {"head_dim": 32})
    config.save_pretrained(tmp_path)
    adapted = get_peft_model(Qwen3ForCausalLM(config), LoraConfig(r=4, target_modules="all-linear"))
    assert adapter_parameters(model_sizes(str(tmp_path)), 4) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("hardware", ["cpu", "rehearsal"])
def test_a_reference_policy_takes_memory(tmp_path: Path, hardware: str) -> None:
    config, sizes = compose(tmp_path, hardware), sizes_of("0.5B")
    config.actor_rollout_ref.actor.use_kl_loss = False
    without = total(on_cpu(config, sizes), "main")
    config.actor_rollout_ref.actor.use_kl_loss = True
    assert total(on_cpu(config, sizes), "main") == without + 4 * sizes.parameters


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
        ("1.5B", 24, {"rank": 32}, 1, False),
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


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        # Sequences do not get shorter on more GPUs, nor by adapters; states do.
        (["data.max_response_length=100000"], ["use a larger card"]),
        ([f"{STREAMED}=false"], ["use more GPUs", f"give {STREAMED}=true", "give --lora-rank 32"]),
        (
            ["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=900000"],
            ["lower actor_rollout_ref.actor.ppo_max"],
        ),
    ],
)
def test_what_helps_where_learning_does_not_fit(
    tmp_path: Path, words: list[str], remedies: list[str]
) -> None:
    config = compose(tmp_path, "gpu", *words, gpus=1)
    asked = options(tmp_path, "gpu", gpus=1, gpu_memory=24, overrides=tuple(words))
    (fault,) = [each for each in fit_to_model(asked, "Qwen/Qwen2.5-3B", config).faults if "learning" in each]
    said = fault.partition(": use" if "use" in remedies[0] else ": lower")
    parts = (said[1].removeprefix(": ") + said[2]).split("; or ")
    assert len(parts) == len(remedies) + (len(remedies) > 1 or "lower" in remedies[0])
    assert all(part.startswith(remedy) for part, remedy in zip(parts, remedies, strict=False))


@pytest.mark.parametrize(
    "damage",
    [
        "[1]",
        '{"model_type": "qwen2", "intermediate_size": "a"}',
        '{"model_type": "qwen2", "num_attention_heads": 0}',
        '{"model_type": "qwen2", "hidden_size": null}',
        '{"model_type": 7}',
    ],
)
def test_a_damaged_description_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(ValueError, match=f"^--model: {re.escape(str(tmp_path))}: [^\n]+$"):
        model_sizes(str(tmp_path))


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 50}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Qwen2Config(**SMALL), ""),
        (Gemma3TextConfig(**SMALL), ""),
        (Gemma2Config(**SMALL), "caps the logits of its attention"),
        (Qwen3NextConfig(**SMALL), "layers with a state"),
        (MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50), "packed_sdpa"),
        (Qwen2Config(**SMALL, quantization_config={"quant_method": "awq", "bits": 4}), "quantised"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_models_that_cannot_be_packed_are_named(tmp_path: Path, settings: Any, said: str) -> None:
    settings.save_pretrained(tmp_path)
    faults = list(packing_faults(str(tmp_path), "packed_sdpa"))
    assert said in faults[0] if said else not faults


@pytest.mark.parametrize(
    ("config", "targets", "said"),
    [
        (MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50), "all-linear", "incompatible with"),
        (Qwen2Config(**SMALL), ["nosuch"], "Target modules {'nosuch'} not found"),
        (Qwen2Config(**SMALL), "all-linear", ""),
        (Qwen2Config(**SMALL), ["q_proj"], ""),
    ],
)
def test_a_model_that_takes_no_adapters_is_named(
    tmp_path: Path, config: Any, targets: Any, said: str
) -> None:
    config.save_pretrained(tmp_path)
    found = [*adapter_faults(str(tmp_path), targets)]
    assert len(found) == bool(said) and said in "".join(found)


def test_an_attention_that_is_not_installed_is_named(tmp_path: Path) -> None:
    Qwen2Config(**SMALL).save_pretrained(tmp_path)
    if importlib.util.find_spec("flash_attn") is None:
        assert "attn_implementation=flash_attention_2" in next(
            packing_faults(str(tmp_path), "flash_attention_2")
        )


def test_what_vllm_cannot_split_is_refused_and_not_chosen(tmp_path: Path, profile: DictConfig) -> None:
    """14B has 40 heads, which 5 divides, and 8 key-value heads, which it does not."""
    assert (
        fitted(profile, sizes_of("14B"), 24, gpus=5).actor_rollout_ref.rollout.tensor_model_parallel_size == 1
    )
    words = ["actor_rollout_ref.rollout.tensor_model_parallel_size=5", "data.train_batch_size=250"]
    config, asked = compose(tmp_path, "gpu", *words, gpus=5), options(tmp_path, "gpu", overrides=tuple(words))
    faults = fit_to_model(asked, "Qwen/Qwen2.5-14B", config).faults
    assert any("does not divide the 5 GPUs of a node, the 40 heads" in fault for fault in faults)


def test_sequence_parallelism_needs_an_attention_that_knows_of_it(tmp_path: Path) -> None:
    config = compose(tmp_path, "gpu", "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", gpus=2)
    faults = fit_to_model(options(tmp_path, "gpu", gpus=2), "Qwen/Qwen2.5-3B", config).faults
    assert any("ulysses_sequence_parallel_size: packed_sdpa" in fault for fault in faults)


def test_logits_are_kept_where_verl_does_not_fuse_them(profile: DictConfig) -> None:
    sizes = sizes_of("7B")
    whole = copy.deepcopy(profile)
    whole.actor_rollout_ref.model.use_fused_kernels = False
    (fused, _), (kept, _) = logits(profile, sizes), logits(whole, sizes)
    whole.actor_rollout_ref.actor.entropy_coeff = 0
    assert fused == 0 and kept > logits(whole, sizes)[0] > 0


def test_what_the_user_sets_stays(profile: DictConfig) -> None:
    key = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
    before = token_budget(profile)
    assert token_budget(fitted(profile, sizes_of("3B"), 80, given={key})) == before


def test_the_table_adds_up_and_a_card_that_is_too_small_is_told(tmp_path: Path, profile: DictConfig) -> None:
    small = options(tmp_path, "gpu", gpus=1, gpu_memory=8)
    fit = fit_to_model(small, "Qwen/Qwen2.5-7B", copy.deepcopy(profile))
    assert fit.card == 8 * GB
    (fault,) = [each for each in fit.faults if "learning" in each]
    assert "GPU memory: learning with Qwen/Qwen2.5-7B" in fault and "\n" not in fault
    lines = as_table(fit.parts, fit.card, 64 * GB).splitlines()
    assert len(lines) == len(fit.parts) + 3 and lines[-1].endswith("8.0 GB        64.0 GB")
    assert ASSUMED_CARD == 80
