"""Run the recipe as a user does, in a process of its own, and find every process it leaves behind."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from research.training.run_files import read_trajectories, trajectory_path

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 900  # whatever else the machine does meanwhile
# Small batches: these tests are about the machinery, not about learning.
SMALL = ("data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", "data.max_response_length=384")


def command_of(process: psutil.Process) -> str:
    """Command line and name; empty for a process that has ended, which one that was just listed may have."""
    try:
        return " ".join([*process.cmdline(), process.name()])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


class RecipeRun:
    """A started recipe, stopped at the end of its ``with`` block with all that belongs to it.

    ``args`` are those of recipes/train_`recipe`.sh; a new run gets SMALL sizes, one that goes on has them
    saved. It is started from a folder of the user's, with a ``data`` of theirs and the examples' files.
    ``installed`` is the environment of an installed package, whose command is run instead. ``alone`` waits
    until no other test's run is left, and keeps others waiting: for runs that fill half of a laptop's
    memory.
    """

    def __init__(
        self,
        run_dir: Path,
        *args: str,
        recipe: str = "musique",
        installed: dict[str, str] | None = None,
        alone: bool = False,
    ) -> None:
        self.run_dir = run_dir
        self._turn = (ROOT / "tests" / "stack.py").open()
        fcntl.flock(self._turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        self.mark = uuid.uuid4().hex
        environment = {**(installed or os.environ), "RESEARCH_TEST_MARK": self.mark}
        script = ["bash", str(ROOT / "recipes" / f"train_{recipe}.sh")]
        module = [sys.executable, "-m", "research.training", recipe]
        command = [*(module if installed else script), "--hardware", "cpu", "--run-dir", str(run_dir), *args]
        command += () if (run_dir / "recipe.json").exists() else SMALL
        self.output = run_dir.with_name(run_dir.name + f"-{self.mark[:6]}.out")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                cwd=self._folder(),
            )

    def _folder(self) -> Path:
        folder = self.run_dir.with_name("of_the_user")
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for file in (ROOT / "examples").glob("*/*"):
            if file.is_file():
                shutil.copy(file, folder)
        return folder

    def __enter__(self) -> "RecipeRun":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(DEADLINE_S)
        for process in self.processes():
            process.kill()
        self._turn.close()

    def wait(self, timeout: float = DEADLINE_S) -> int:
        """The exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the recipe did not end in {timeout} s:\n{self.text()}") from None

    def wait_for(self, condition: Callable[[], object], timeout: float = DEADLINE_S) -> None:
        """Until the condition holds; an error if the recipe ends before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"the recipe ended early:\n{self.text()}"
            assert time.monotonic() < deadline, f"waited {timeout} s in vain:\n{self.text()}"
            time.sleep(0.2)

    def end_by(self, number: signal.Signals) -> int:
        """Send a signal, and wait until the recipe and all that it started are gone; its exit code."""
        self.process.send_signal(number)
        code = self.wait()
        self.assert_nothing_left()
        return code

    def text(self) -> str:
        """What the terminal showed, and the end of the training log."""
        log = self.run_dir / "logs" / "train.log"
        end = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        return self.output.read_text(errors="replace") + "\n--- train.log\n" + end

    def metrics(self) -> list[dict[str, float]]:
        path = self.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def step_rows(self) -> dict[int, dict[str, float]]:
        """Training metrics by step."""
        return {int(row["step"]): row for row in self.metrics() if "timing_s/step" in row}

    def question_ids(self, step: int) -> list[str]:
        """Sorted ids of the questions trained on in a step."""
        trajectories = read_trajectories(trajectory_path(self.run_dir, step, "train"))
        return sorted({trajectory.metadata["id"] for trajectory in trajectories})

    def processes(self, *words: str) -> list[psutil.Process]:
        """Living processes of this run whose command line holds all words."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RESEARCH_TEST_MARK") != self.mark:
                    continue
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if (line := command_of(process)) and all(word in line for word in words):
                found.append(process)
        return found

    def assert_nothing_left(self, patience: float = 120) -> None:
        """Every process of the run is gone."""
        deadline = time.monotonic() + patience
        while left := self.processes():
            assert time.monotonic() < deadline, f"left behind: {[process.pid for process in left]}"
            time.sleep(0.5)
