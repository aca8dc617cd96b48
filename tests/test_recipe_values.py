"""Values of keys and options: each has a meaning or is refused by name; and sizes that follow the model."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_recipe_options import compose, options, run_main

from research.training.config import RESEARCH, check_research, read_research_config
from research.training.run.options import RunFailed
from research.training.run.plan import make_plan
from research.training.run.preflight import problems
from research.training.sizes.fit import GIB, fit_to_model, set_sizes
from research.training.sizes.model import model_sizes
from research.training.values import check_training
from research.values import SERVER_MAXIMUM


@pytest.fixture
def llama(tmp_path):
    """The configuration of a model of 135 M parameters; its weights are not there and not needed."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048}
    transformers = pytest.importorskip("transformers")
    transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True).save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


def test_sizes_of_the_cpu_profile_follow_the_model(tmp_path, llama):
    sizes = model_sizes(llama)
    assert 134_000_000 < sizes.parameters < 135_000_000 and sizes.largest == 49152 * 576
    config = compose(tmp_path, "cpu", model=llama)
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    set_sizes(config, sizes, memory=64 * GIB)
    assert rollout.checkpoint_engine.update_weights_bucket_megabytes == 108
    # 128 sequences of 1,408 tokens, 30 layers, keys and values of 3 heads of 64 numbers.
    assert str(-(-128 * 1408 * 30 * 2 * 3 * 64 * 4 // GIB)) == environment.VLLM_CPU_KVCACHE_SPACE
    assert (rollout.max_model_len, actor.ppo_max_token_len_per_gpu) == (1408, 4096)
    environment.VLLM_CPU_KVCACHE_SPACE = "1"
    # Half of what is left: 6 GB are the processes', 4 the logits', 2.2 the actor's states, 1.7 activations.
    set_sizes(config, replace(sizes, vocabulary=151_936), memory=20 * GIB)
    assert environment.VLLM_CPU_KVCACHE_SPACE == "4" and actor.ppo_max_token_len_per_gpu == 1645


def test_a_model_that_cannot_be_trained_here_is_told_before_the_start(tmp_path, llama):
    longer = compose(tmp_path, "cpu", "data.max_response_length=2000", model=llama)
    assert longer.actor_rollout_ref.rollout.max_model_len == 640 + 2000
    (problem,) = fit_to_model(options(tmp_path, model=llama), llama, longer).faults
    assert "knows 2048 positions" in problem and "come to 2640" in problem
    (Path(llama) / "config.json").write_text("{}")
    (problem,) = fit_to_model(options(tmp_path, model=llama), llama, compose(tmp_path, model=llama)).faults
    assert problem.startswith(f"--model: {llama}: ") and "\n" not in problem


@pytest.mark.parametrize("name", ["./nope", "../nope", "/no/where", "a/b/c", "nope/", "~/nope", "a b", ""])
@pytest.mark.parametrize("option", ["--model", "--encoder"])
def test_a_model_that_is_neither_a_folder_nor_a_name_on_the_hub(tmp_path, option, name):
    result = run_main("--run-dir", tmp_path / "run", option, name)
    assert result.exit_code in (1, 2) and option in result.output and "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-7B-Instruct", "intfloat/e5-base-v2"])
def test_names_on_the_hub_are_allowed(tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not any("--" in line for line in problems(make_plan(options(tmp_path, model=name, encoder=name))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("research.rewrad=exact_match", "rewrad"),
        ("trainer.total_training_step=5", "total_training_step"),
        ("protocol@research.protocol=none", "none"),
        ("research.limits.searches", "searches"),
        ("research.retriever.url=http://other", "give --retriever-url"),
        ("trainer.nnodes=2", "give --nodes"),
        ("hardware=gpu", "give --hardware"),
        ("=1", "an override is key=value"),
        ("+=1", "an override is key=value"),
        ("data=null", "an override is key=value"),
        ("research=1", "an override is key=value"),
        ("", "mismatched input"),
    ],
)
def test_unknown_keys_and_values_fail(tmp_path, override, message):
    with pytest.raises(RunFailed, match=re.escape(message)) as raised:
        compose(tmp_path, "cpu", override)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """The configurations of both recipes; not to be changed."""
    return {name: compose(tmp_path_factory.mktemp(name), recipe=name) for name in ("musique", "rqr")}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("research.limits.searches", -1, "research.limits.searches must be an integer of at least 0, not -1"),
        ("research.limits.searches", "abc", "integer of at least 0, not 'abc'"),
        ("research.limits.searches", True, "integer of at least 0, not True"),
        ("research.limits.turn_tokens", 0, "integer of at least 1"),
        ("research.limits.passage_tokens", -5, "passage_tokens must be an integer"),
        ("research.limits.passage_tokens", 0, "at least 1 where searches are made"),
        ("research.limits.response_tokens", 769, "more than data.max_response_length, 768"),
        ("research.limits", 5, "research.limits must be a section"),
        ("research.retriever.top_k", 0, "integer from 1 to 1000"),
        ("research.retriever.top_k", 2000, "integer from 1 to 1000"),
        ("research.retriever.timeout", math.nan, "number above 0"),
        ("research.generate_timeout", 0, "number above 0"),
        ("research.train_hops", 2, "list of hop counts"),
        ("research.controls", "shuffled", "a list like"),
        ("research.repeatable_sampling", "maybe", "true or false"),
        ("research.reward", None, "a name"),
        ("research.protocol.answer", "search", "different names"),
        ("research.protocol.passage_template", "{nr}", "may hold {rank}"),
        ("data.train_batch_size", 0, "integer of at least 1, not 0"),
        ("data.train_max_samples", 3, "less than data.train_batch_size"),
        ("actor_rollout_ref.rollout.n", 1, "GRPO compares"),
        ("actor_rollout_ref.rollout.temperature", 0, "number above 0"),
        ("trainer.test_freq", 0, "integer of at least 1, or -1 for never, not 0"),
        ("trainer.total_training_steps", 0, "integer of at least 1"),
        ("trainer.val_only", True, "eval_multihop"),
        ("research.rewriting.k", 2000, "research.rewriting.k must be an integer from 1 to 1000"),
        ("research.rewriting.length_penalty", "abc", "number of at least 0, not 'abc'"),
        ("research.rewriting.think", "no", "true or false"),
        ("research.rewriting.encoder", "", "a text"),
    ],
)
def test_values_without_a_meaning_are_named_with_their_key(composed, key, value, message):
    config = copy.deepcopy(composed["rqr" if "rewriting" in key else "musique"])
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_research_config(config.research)
        check_training(config)


def test_the_largest_top_k_is_the_servers():
    assert SERVER_MAXIMUM == pytest.importorskip("retriever_server.http.wire").MAX_TOP_K


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--retriever-url", url) for url in ("", "http://127.0.0.1:abc", "ftp://h", "http://", "h:80")),
        *(("--retriever-url", url) for url in ("http://h:99999", "http://[::1", "http://h:0")),
        *((option, "") for option in ("--retriever-host", "--model", "--encoder")),
        ("--seed", "-1"),
        ("--seed", str(2**40)),
    ],
)
def test_values_of_options_without_a_meaning_fail(tmp_path, option, value):
    for dry in ((), ("--dry-run",)):
        result = run_main("--run-dir", tmp_path / "run", *dry, option, value)
        assert result.exit_code == 2 and f"Invalid value for '{option}'" in result.output


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(st.sampled_from(sorted(RESEARCH)), ANYTHING)
def test_any_value_is_taken_or_refused_by_its_key(key, value):
    section, _, name = key.rpartition(".")
    try:
        check_research({section: {name: value}} if section else {name: value})
    except ValueError as error:
        assert str(error).startswith(f"research.{key} must be ")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("reward", "exact", "exact_match"),
        ("prompt", "no_such", "research_instruct_own"),
        ("retriever.wire", "soap", "search_r1"),
        ("limits.turns", 3, "turns"),
        ("protocol.result", "information", "result_template"),
    ],
)
def test_bad_values_of_our_section_are_named(tmp_path, key, value, message):
    section = compose(tmp_path).research
    OmegaConf.set_struct(section, False)
    OmegaConf.update(section, key, value)
    with pytest.raises(ValueError, match=message):
        read_research_config(section)
