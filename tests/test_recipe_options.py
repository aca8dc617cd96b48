"""What the recipe refuses, and what it says: options, dry runs, both hardware profiles. Starts no
training.
"""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from omegaconf import OmegaConf

from research.training.command_line import resolve_options
from research.training.config import read_research_config
from research.training.plan import ConfigurationError, Options, compose_config, make_plan
from research.training.preflight import free_port
from research.training.recipe import main
from research.training.run import RunFailed

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
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


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


def test_several_nodes_join_the_cluster(tmp_path):
    config = compose(tmp_path, "cpu", nodes=2)
    assert config.ray_kwargs.ray_init.address == "auto" and config.trainer.nnodes == 2
    assert "num_gpus" not in config.ray_kwargs.ray_init
    single = compose(tmp_path, "cpu")
    assert single.trainer.nnodes == 1 and single.ray_kwargs.ray_init.address == "local"


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
    ],
)
def test_unknown_keys_and_values_fail(tmp_path, override, message):
    with pytest.raises(ConfigurationError, match=message):
        compose(tmp_path, "cpu", override)


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


def test_a_free_port_is_kept_for_who_is_told_its_number():
    with free_port("127.0.0.1") as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        for _ in range(2):  # a retriever, and the one that is started when it died
            socket.create_server(("127.0.0.1", port)).close()


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
