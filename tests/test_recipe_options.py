"""What the recipe refuses, and what it says: options, dry runs, both hardware profiles. Starts no
training.
"""

import copy
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from research.training.command_line import resolve_options
from research.training.config import read_research_config
from research.training.model_sizes import GIB, fit_to_model, model_sizes, set_sizes
from research.training.plan import ConfigurationError, Options, compose_config, make_plan
from research.training.preflight import problems
from research.training.recipe import main
from research.training.run import RunFailed
from research.training.values import RESEARCH, SERVER_MAXIMUM, check_research, check_training

ROOT = Path(__file__).resolve().parents[1]
URL = "http://127.0.0.1:1"


def options(tmp_path, hardware="cpu", **values):
    return Options(hardware=hardware, run_dir=tmp_path / "run", **values)


def compose(tmp_path, hardware="cpu", *overrides, **values):
    return compose_config(make_plan(options(tmp_path, hardware, overrides=overrides, **values)), URL)


def run_main(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def dry_run(*arguments):
    """In a process of its own: veRL fixes its platform at import."""
    command = [sys.executable, "-m", "research.training.recipe", "--dry-run", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


def test_gpu_profile_passes_verls_own_validation_without_a_gpu(tmp_path):
    done = dry_run("--hardware", "gpu", "--gpus", 8, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "path: Qwen/Qwen2.5-7B-Instruct" in done.stdout
    for command in ("data.musique", "data.wiki18", "retriever_server build", "research.training.launch"):
        assert command in done.stdout
    assert "would not start: GPU" in done.stdout
    assert not (tmp_path / "run").exists()


def test_gpu_profile_has_the_hyper_parameters_of_the_paper(tmp_path):
    config = compose(tmp_path, "gpu", gpus=8)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.algorithm.adv_estimator == "grpo" and rollout.n == 5
    assert config.data.train_batch_size == actor.ppo_mini_batch_size == 256
    assert (actor.ppo_epochs, actor.clip_ratio, actor.grad_clip) == (1, 0.2, 1.0)
    assert (actor.use_kl_loss, actor.kl_loss_type, actor.kl_loss_coef) == (True, "low_var_kl", 0.001)
    assert (actor.optim.lr, actor.optim.weight_decay, actor.optim.lr_scheduler_type) == (
        1e-6,
        1e-2,
        "constant",
    )
    assert (config.data.max_prompt_length, config.data.max_response_length) == (512, 8192)
    assert (rollout.temperature, rollout.top_p, rollout.val_kwargs.temperature) == (1.0, 1.0, 0)
    assert config.research.reward == "exact_match" and config.research.retriever.top_k == 5
    assert config.trainer.total_epochs == 2 and config.trainer.n_gpus_per_node == 8


def test_cpu_dry_run_prints_configuration_and_commands(tmp_path):
    done = dry_run("--run-dir", tmp_path / "run", "--steps", 3)
    assert done.returncode == 0, done.stderr
    assert "total_training_steps: 3" in done.stdout and "data.mini_world" in done.stdout
    assert not (tmp_path / "run").exists()


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
    # 128 sequences of 1,024 tokens, 30 layers, keys and values of 3 heads of 64 numbers.
    assert str(-(-128 * 1024 * 30 * 2 * 3 * 64 * 4 // GIB)) == environment.VLLM_CPU_KVCACHE_SPACE
    assert (rollout.max_model_len, actor.ppo_max_token_len_per_gpu) == (1024, 4096)
    environment.VLLM_CPU_KVCACHE_SPACE = "1"
    set_sizes(config, replace(sizes, vocabulary=151_936), memory=10 * GIB)
    assert environment.VLLM_CPU_KVCACHE_SPACE == "3" and actor.ppo_max_token_len_per_gpu == 1645


def test_a_model_that_cannot_be_trained_here_is_told_before_the_start(tmp_path, llama):
    longer = compose(tmp_path, "cpu", "data.max_response_length=2000", model=llama)
    assert longer.actor_rollout_ref.rollout.max_model_len == 256 + 2000
    (problem,) = fit_to_model(options(tmp_path, model=llama), longer)
    assert "knows 2048 positions" in problem and "come to 2256" in problem
    (Path(llama) / "config.json").write_text("{}")
    (problem,) = fit_to_model(options(tmp_path, model=llama), compose(tmp_path, model=llama))
    assert problem.startswith(f"--model: {llama}: ") and "\n" not in problem


@pytest.mark.parametrize("name", ["./nope", "../nope", "/no/where", "a/b/c", "nope/", "~/nope", "a b", ""])
@pytest.mark.parametrize("option", ["--model", "--encoder"])
def test_a_model_that_is_neither_a_folder_nor_a_name_on_the_hub(tmp_path, option, name):
    result = run_main("--run-dir", tmp_path / "run", option, name)
    assert result.exit_code in (1, 2) and option in result.output and "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-7B-Instruct", "intfloat/e5-base-v2"])
def test_names_on_the_hub_are_allowed(tmp_path, name):
    assert not any("--" in line for line in problems(make_plan(options(tmp_path, model=name, encoder=name))))


def test_several_nodes_join_the_cluster(tmp_path):
    config = compose(tmp_path, "cpu", nodes=2)
    assert config.ray_kwargs.ray_init.address == "auto" and config.trainer.nnodes == 2
    assert "num_gpus" not in config.ray_kwargs.ray_init
    single = compose(tmp_path, "cpu")
    assert single.trainer.nnodes == 1 and single.ray_kwargs.ray_init.address == "local"


def test_epochs_that_are_asked_for_decide_unless_steps_are(tmp_path):
    def steps(*overrides, **values):
        return compose(tmp_path, "cpu", *overrides, **values).trainer.total_training_steps

    assert steps() == 60 and steps("trainer.total_epochs=2") is None
    assert steps("trainer.total_epochs=2", steps=6) == 6
    assert steps("trainer.total_epochs=2", "trainer.total_training_steps=9") == 9


def test_search_r1_is_chosen_by_name(tmp_path):
    config = compose(tmp_path, "cpu", "protocol@research.protocol=search_r1", "research.prompt=search_r1")
    research = read_research_config(config.research)
    assert research.protocol.result == "information" and not research.protocol.boxed


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
        ("=1", "a word is key=value"),
        ("+=1", "a word is key=value"),
        ("data=null", "a word is key=value"),
        ("research=1", "a word is key=value"),
        ("", "mismatched input"),
    ],
)
def test_unknown_keys_and_values_fail(tmp_path, override, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)) as raised:
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
    assert SERVER_MAXIMUM == pytest.importorskip("retriever_server.wire").MAX_TOP_K


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
        ("prompt", "no_such", "research_instruct"),
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


@pytest.mark.parametrize("option", ["--questions", "--validation", "--corpus", "--faiss-index"])
def test_wrong_path_is_one_clear_line(tmp_path, option):
    result = run_main("--run-dir", tmp_path / "run", option, tmp_path / "nowhere.jsonl")
    assert result.exit_code == 1 and "nowhere.jsonl" in result.output and option in result.output
    assert "Traceback" not in result.output


def test_model_folder_without_a_model(tmp_path):
    result = run_main("--run-dir", tmp_path / "run", "--model", tmp_path)
    assert result.exit_code == 1 and "config.json" in result.output


def test_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run_main("--run-dir", tmp_path / "run", "--retriever-port", taken.getsockname()[1])
    assert result.exit_code == 1 and "in use" in result.output and "--retriever-port" in result.output


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.8.9.1", "0"])
def test_several_nodes_need_an_address_that_all_of_them_reach(tmp_path, host):
    result = run_main("--run-dir", tmp_path / "run", "--nodes", 2, "--retriever-host", host)
    assert result.exit_code == 1 and "--retriever-host: with --nodes 2" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("host", ["127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "localhost"])
def test_several_nodes_need_a_retriever_that_all_of_them_reach(tmp_path, host):
    plan = make_plan(options(tmp_path, nodes=2, retriever_url=f"http://{host}"))
    assert any("--retriever-url: with --nodes 2" in line for line in problems(plan))
    other = make_plan(options(tmp_path, nodes=2, retriever_url="http://192.0.2.1:80"))
    assert not any("--nodes" in line for line in problems(other))


def test_a_host_that_is_not_this_machine(tmp_path):
    result = run_main("--run-dir", tmp_path / "run", "--retriever-host", "192.0.2.1")
    assert result.exit_code == 1 and "--retriever-host: '192.0.2.1' is no address of this" in result.output


def test_full_disk_is_noticed_before_the_start(tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(10**12, 10**12, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result = run_main("--run-dir", tmp_path / "run")
    assert result.exit_code == 1 and "disk" in result.output


def test_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    result = run_main("--run-dir", tmp_path)
    assert result.exit_code == 1 and "is not a run folder" in result.output
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_nothing_to_resume(tmp_path):
    result = run_main("--resume", "--run-dir", tmp_path / "run")
    assert result.exit_code == 1 and "not a run folder" in result.output


def test_resume_takes_the_saved_options_and_refuses_others(tmp_path):
    saved = options(tmp_path, seed=7, steps=10, overrides=("data.train_batch_size=8",))
    (saved.run_dir / "checkpoints").mkdir(parents=True)
    (saved.run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    saved.save(saved.run_dir / "recipe.json")
    values = {**vars(options(tmp_path)), "steps": 20}
    assert resolve_options(dict(values), {"steps", "run_dir"}, resume=True) == replace(saved, steps=20)
    with pytest.raises(RunFailed, match="seed=7"):
        resolve_options({**values, "seed": 8}, {"seed"}, resume=False)


def test_a_wrong_key_leaves_no_folder(tmp_path):
    result = run_main("--run-dir", tmp_path / "run", "research.reward=exact")
    assert result.exit_code == 1 and "exact_match" in result.output and "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_malformed_rows_are_named_by_file_and_line(tmp_path):
    questions = tmp_path / "mine.jsonl"
    questions.write_text('{"id": 1, "question": "q", "golden_answers": ["a"]}\n{"id": 2, "question": "q"}\n')
    result = subprocess.run(
        [sys.executable, "-m", "data.questions", questions, "--out", tmp_path / "x.parquet"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 1 and "mine.jsonl:2" in result.stderr and "golden_answers" in result.stderr
