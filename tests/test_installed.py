"""The package as it is installed: whole without its checkout, and nothing in it called `data`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from stack import ROOT, RecipeRun

from research.training.run_files import read_trajectories, trajectory_path

COMMANDS = ("research-train", "research-eval", "research-eval-bright", "research-view", "retriever-server")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds ours as its wheel has it."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("research", "retriever_server"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    words = ["wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder, source]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    return folder


def environment(site: Path, home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(site),
        "PYTHONSAFEPATH": "1",
        "XDG_CACHE_HOME": str(home / "cache"),
    }


def test_it_holds_our_packages_alone(site: Path) -> None:
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {
        "research",
        "retriever_server",
    }
    (points,) = site.glob("*.dist-info/entry_points.txt")
    assert all(f"{name} = " in points.read_text() for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ("research.training", "musique", "--help"),
        ("research.training", "musique", "--dry-run", "--hardware", "gpu", "--gpus", "8"),
        ("research.training", "rqr", "--dry-run", "--steps", "3"),
        ("research.evaluation", "run", "--help"),
        ("research.evaluation.bright", "run", "--help"),
        ("research.viewer", "--help"),
        ("retriever_server", "build", "--help"),
    ],
)
def test_its_commands_work_elsewhere(site: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(site, tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(ROOT) not in done.stdout.replace(sys.executable, "")


@pytest.mark.launch
def test_it_trains_with_what_a_user_brings(site: Path, policy: str, tmp_path: Path) -> None:
    """An environment, a tool, a reward and a prompt of the user's, from a folder without a checkout."""
    words = [
        "--model",
        policy,
        "--questions",
        "choices.csv",
        "--corpus",
        "choices.corpus.jsonl",
        "--index",
        "bm25",
    ]
    words += ["--steps", "2", "trainer.val_before_train=false"]
    words += ["research.environment=multiple_choice:MultipleChoice"]
    words += ['research.tools={search: {}, "calculator:calculate": {digits: 6}}']
    words += ["research.prompt=calculator.txt"]
    words += ['research.reward={exact_match: 1.0, "few_searches:score": {weight: 0.2, most: 6}}']
    with RecipeRun(tmp_path / "run", *words, installed=environment(site, tmp_path)) as run:
        assert run.wait() == 0, run.text()
        run.assert_nothing_left()
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "policy").is_dir()
    trained = list(read_trajectories(trajectory_path(tmp_path / "run", 2, "train")))
    assert len(trained) == 16
    assert all(
        {"is_letter", "calculate_calls", "reward/searches_saved"} <= each.metrics.keys() for each in trained
    )
    assert all("few_searches:score" in each.reward_reason for each in trained)
    assert not (tmp_path / "of_the_user" / "runs").exists()
