"""Weights & Biases and MLflow: refused in time, curves, guards and tables of episodes, a run that goes on.

W&B is the real package in its offline mode. MLflow is not part of the locks: a module that writes down how it
is called stands in for it, and where the package is installed, its file store is tested as well.
"""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from run_folder import episode, make_run, step_row, write_episodes
from test_recipe_options import compose, options, run_main

from research.training.run.options import RecipeOptions
from research.training.verl import tracking
from research.training.verl.tracking import COLUMNS, SENDERS, TrajectoryTable, chosen, faults, loggers

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("WANDB_", "MLFLOW_")
# As a training logs, without the training: veRL's loggers and ours, of two steps.
LOGGING = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from verl.utils.tracking import Tracking
from research.training.verl import tracking

config, run_dir, resumes = OmegaConf.load(sys.argv[1]), Path(sys.argv[2]), bool(int(sys.argv[3]))
tracking.prepare(config, run_dir, resumes)
values = OmegaConf.to_container(config, resolve=True)
logs = Tracking("research", "exp", list(config.trainer.logger), config=values)
tracking.require(config, logs.logger)
logs.logger["table"] = tracking.TrajectoryTable(run_dir, tracking.loggers(config), 2, 3)
for step in ((3,) if resumes else (1, 2)):
    logs.log({"critic/score/mean": 0.5 * step, "guard/entropy_collapse": 1.0}, step=step)
logs.finish()
"""
# What of MLflow is called, by veRL and by us, and what of it answers.
STAND_IN = """
import json, os, types
def record(name, *arguments, **named):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(json.dumps([name, [*arguments], named], default=str) + "\\n")
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *arguments, **named: record(name, *arguments, **named)
def set_experiment(name):
    record("set_experiment", name)
    return types.SimpleNamespace(experiment_id="7")
"""


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path, monkeypatch):
    for name in [each for each in os.environ if each.startswith(NAMES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")


def of(*names):
    return OmegaConf.create({"trainer": {"logger": list(names), "project_name": "research"}})


def run_with_episodes(tmp_path):
    run_dir = make_run(tmp_path / "run")
    for split, step in (("train", 1), ("train", 2), ("validation", 2)):
        write_episodes(run_dir, split, step, *(episode(number, number % 2, step=step) for number in range(9)))
    return run_dir


def log(run_dir, config, resumes=False, **environment):
    """Log two steps, or the one that follows, in a process of its own, as trackers are."""
    path = run_dir / "composed.yaml"
    OmegaConf.save(config, path)
    return subprocess.run(
        [sys.executable, "-c", LOGGING, path, run_dir, str(int(resumes))],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=run_dir,
    )


# ------------------------------------------------------------------------------------- options and refusals


def test_track_adds_to_the_loggers(tmp_path):
    config = compose(tmp_path, track=("wandb", "mlflow"))
    assert loggers(config) == ["console", "tensorboard", "wandb", "mlflow"]
    assert loggers(compose(tmp_path, "cpu", "trainer.logger=wandb", track=("wandb",))) == ["wandb"]
    assert loggers(compose(tmp_path)) == ["console", "tensorboard"]


def test_track_is_kept_with_the_run(tmp_path):
    options(tmp_path, track=("wandb",)).save(tmp_path / "recipe.json")
    assert RecipeOptions.load(tmp_path / "recipe.json").track == ("wandb",)


@pytest.mark.parametrize("words", [["--track", "wandb"], ["trainer.logger=[console,wandb]"]])
def test_without_a_login_nothing_starts(tmp_path, words):
    result = run_main("--hardware", "cpu", "--run-dir", tmp_path / "run", *words)
    assert result.exit_code == 1 and "cannot start:" in result.output
    line = next(line for line in result.output.splitlines() if "trainer.logger" in line)
    assert line.strip() == "trainer.logger: wandb: No API key configured. Use `wandb login` to log in."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("WANDB_API_KEY", "short", "WANDB_API_KEY invalid"), ("WANDB_API_KEY", "0123456789" * 4, "127.0.0.1")],
)
def test_a_key_that_is_not_accepted_is_one_line(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    (line,) = faults(of("wandb"))
    assert said in line and "\n" not in line


def test_offline_needs_no_login(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert list(faults(of("console", "tensorboard", "wandb"))) == []


@pytest.mark.parametrize(
    ("logger", "package"), [("mlflow", "mlflow"), ("vemlp_wandb", "volcengine_ml_platform")]
)
def test_a_missing_package_is_one_line(monkeypatch, logger, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = f"trainer.logger: {logger}: the package is not installed: pip install {package}"
    assert list(faults(of("console", logger))) == [message]


def test_a_tracker_that_verl_goes_on_without_ends_the_run():
    with pytest.raises(RuntimeError, match=r"mlflow could not be started.*train\.log"):
        tracking.require(of("console", "mlflow", "wandb"), {"wandb": None, "console": None})
    tracking.require(of("console", "tensorboard"), {"console": None})


def test_keys_go_to_the_workers_of_all_nodes_where_they_are_used(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "other")
    assert tracking.secrets(of("console")) == {}
    assert tracking.secrets(of("wandb"))["WANDB_API_KEY"] == "secret"
    assert "MLFLOW_TRACKING_TOKEN" not in tracking.secrets(of("wandb"))


# ------------------------------------------------------------------------------------------ what is logged


def test_wandb_gets_curves_guards_and_tables_and_a_resumed_run_goes_on(tmp_path):
    run_dir = run_with_episodes(tmp_path)
    config = compose(tmp_path / "other", track=("wandb",))
    config.trainer.logger = ["wandb"]
    done = log(run_dir, config, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    (stored,) = folder.glob("*.wandb")
    for name in (b"critic/score/mean", b"guard/entropy_collapse", b"trajectories/train", b"train_batch_size"):
        assert name in stored.read_bytes()
    tables = {path.name.split("_")[0]: path for path in folder.rglob("*.table.json")}
    assert tables.keys() == {"train", "validation"} and not list(folder.rglob("train_1_*"))
    table = json.loads(tables["train"].read_text())
    assert table["columns"] == list(COLUMNS)
    assert [row[0] for row in table["data"]] == ["q0", "q3", "q6"]
    assert (
        table["data"][1][3:6] == ['["x", "y & z"]', 1.0, "right answer"]
        and "<search>who" in table["data"][1][-1]
    )
    assert log(run_dir, config, resumes=True, WANDB_MODE="offline").returncode == 0
    names = {path.name.rpartition("-")[2] for path in (run_dir / "wandb").glob("offline-run-*")}
    assert names == {(run_dir / "wandb" / "run_id.txt").read_text()}, "both are parts of one run"
    assert log(run_dir, config, WANDB_MODE="offline").returncode == 0
    assert len({path.name.rpartition("-")[2] for path in (run_dir / "wandb").glob("offline-run-*")}) == 2


def test_mlflow_gets_curves_guards_and_tables(tmp_path):
    """Against a stand-in that records the calls: MLflow is in neither lock."""
    run_dir = run_with_episodes(tmp_path)
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "mlflow.py").write_text(STAND_IN)
    config = compose(tmp_path / "other", track=("mlflow",))
    config.trainer.logger = ["mlflow"]
    calls = tmp_path / "calls.jsonl"
    done = log(run_dir, config, CALLS=str(calls), PYTHONPATH=f"{tmp_path / 'stand_in'}:{ROOT}")
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in calls.read_text().splitlines()]
    assert ["create_experiment", ["research", f"file://{run_dir}/mlflow"], {}] in made
    assert ["set_tracking_uri", [f"sqlite:///{run_dir}/mlflow.db"], {}] in made
    metrics = [named["metrics"] for name, _, named in made if name == "log_metrics"]
    assert metrics == [{"critic/score/mean": 0.5 * step, "guard/entropy_collapse": 1.0} for step in (1, 2)]
    tables = {arguments[1]: arguments[0] for name, arguments, _ in made if name == "log_table"}
    assert tables.keys() == {"trajectories/train_step_2.json", "trajectories/validation_step_2.json"}
    assert tables["trajectories/train_step_2.json"]["id"] == ["q0", "q3", "q6"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflows_file_store_holds_them(tmp_path):
    run_dir = run_with_episodes(tmp_path)
    config = compose(tmp_path / "other", track=("mlflow",))
    config.trainer.logger = ["mlflow"]
    store = tmp_path / "store"
    done = log(run_dir, config, MLFLOW_TRACKING_URI=f"file://{store}", MLFLOW_ALLOW_FILE_STORE="true")
    assert done.returncode == 0, done.stderr
    (guard,) = store.rglob("metrics/guard/entropy_collapse")
    assert [line.split()[1:] for line in guard.read_text().splitlines()] == [["1.0", "1"], ["1.0", "2"]]
    (table,) = store.rglob("artifacts/trajectories/train_step_2.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == ["q0", "q3", "q6"]


def test_tables_are_of_every_so_many_steps_and_of_the_last(tmp_path, monkeypatch):
    run_dir, sent = run_with_episodes(tmp_path), []
    write_episodes(run_dir, "train", 3, episode(1, 1.0), episode(2, 0.0, control="shuffled"))
    write_episodes(run_dir, "test", 2, episode(5, 1.0))
    monkeypatch.setitem(SENDERS, "wandb", lambda split, step, rows: sent.append((split, step, len(rows))))
    table = TrajectoryTable(run_dir, ["wandb"], every=2, episodes=4)
    table.log(step_row(1), 1)
    assert not sent
    table.log(step_row(2), 2)
    assert sent == [("train", 2, 4), ("validation", 2, 4), ("test", 2, 1)]
    sent.clear()
    table.log({"validation/evaluated_step": 2.0}, 3)
    assert sent == [("train", 3, 1), ("test", 3, 1)], "the test of the policy that is kept, without controls"


def test_a_table_that_cannot_be_sent_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no route\nto host")

    monkeypatch.setitem(SENDERS, "mlflow", fail)
    with caplog.at_level(logging.WARNING):
        TrajectoryTable(run_with_episodes(tmp_path), ["mlflow"], 2, 4).log({}, 2)
    assert "WARNING step 2: no table for mlflow: OSError: no route to host" in caplog.text


def test_rows_are_taken_evenly():
    rows = [[f"q{number // 2}", number % 2] for number in range(8)]
    assert chosen(reversed(rows), 4) == rows[::2] and chosen(rows, 100) == rows


@pytest.mark.parametrize("reached", [True, False])
def test_a_run_that_fails_is_not_shown_as_finished(tmp_path, monkeypatch, reached):
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from research.training.verl.trainer import SearchTrainer

    codes = []

    class Loggers:
        def finish(self, exit_code):
            codes.append(exit_code)

    def fit(self, manager):
        if reached:
            self.logger = Loggers()
        raise ValueError("it failed")

    monkeypatch.setattr(PPOTrainerSync, "fit", fit)
    trainer = SearchTrainer.__new__(SearchTrainer)
    trainer.config, trainer.global_steps = compose(tmp_path), 0
    trainer.replay_buffer = type("Buffer", (), {"watch": lambda *_: None})()
    with pytest.raises(ValueError, match="it failed"):
        trainer.fit(type("Manager", (), {"agent_loop_workers": []})())
    assert codes == [1] * reached
