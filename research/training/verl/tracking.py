"""Weights & Biases and MLflow: checks before the start, where they write, and tables of trajectories.

Curves and guards need nothing here: veRL sends the metrics of each step to all of trainer.logger.
"""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.episode.trajectory import Trajectory
from research.errors import reason_of
from research.files import write_atomically
from research.training.run_files import read_step
from research.training.watch.validations import EVALUATED_STEP

logger = logging.getLogger(__name__)

TRACKERS = ("wandb", "mlflow")
# What veRL imports for a logger.
PACKAGES = {name: name for name in (*TRACKERS, "swanlab", "clearml", "trackio", "rl_insight")}
PACKAGES |= {"vemlp_wandb": "volcengine_ml_platform"}
# Run in their own process: what they start must not stay, and without a terminal they do not ask.
LOCAL_MLFLOW = "import mlflow, sqlalchemy"
CHECKS = {"wandb": "import wandb; wandb.login()", "mlflow": "import mlflow; mlflow.search_experiments()"}
CHECK_S = 120.0
FEW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
URI = "MLFLOW_TRACKING_URI"
COLUMNS = (
    *("id", "sample", "question", "golden answers", "reward", "reason", "searches", "tokens", "ended by"),
    "episode",
)


def loggers(config: Any) -> list[str]:
    """The names in ``trainer.logger``, which may also be one."""
    named = config.trainer.logger
    return [named] if isinstance(named, str) else list(named)


def faults(config: Any) -> Iterator[str]:
    """Why a logger cannot be used, one line each: no package, no login, no answer at its address."""
    for name in loggers(config):
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            yield f"trainer.logger: {name}: the package is not installed: pip install {package}"
        elif name in CHECKS and (reason := _refusal(name)):
            yield f"trainer.logger: {name}: {reason}"


def _refusal(name: str) -> str:
    """Why the tracker itself refuses to be logged to; empty if it does not."""
    check = LOCAL_MLFLOW if name == "mlflow" and URI not in os.environ else CHECKS[name]
    command, environment = [sys.executable, "-c", check], {**FEW_RETRIES, **os.environ}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"it did not answer within {CHECK_S:.0f} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1]) if lines else "it ended without a message"
    return said if done.returncode else ""


def secrets(config: Any) -> dict[str, str]:
    """The variables of the trackers that are used: keys and addresses, for the workers of all nodes."""
    prefixes = tuple(f"{name.upper()}_" for name in loggers(config) if name in TRACKERS)
    return {name: value for name, value in os.environ.items() if prefixes and name.startswith(prefixes)}


def prepare(config: Any, run_dir: Path, resumes: bool) -> None:
    """Make the trackers write into the run folder, unless the environment says where, and continue their run.

    MLflow cannot continue a run: a resumed one becomes another run of the same name.
    """
    named = loggers(config)
    if "wandb" in named:
        os.environ.setdefault("WANDB_DIR", str(run_dir))
        os.environ.setdefault("WANDB_RUN_ID", _run_id(run_dir / "wandb" / "run_id.txt", resumes))
        os.environ.setdefault("WANDB_RESUME", "allow")
    if "mlflow" in named and URI not in os.environ:
        os.environ[URI] = f"sqlite:///{run_dir}/mlflow.db"
        import mlflow

        if mlflow.get_experiment_by_name(config.trainer.project_name) is None:
            mlflow.create_experiment(config.trainer.project_name, f"file://{run_dir}/mlflow")


def _run_id(path: Path, resumes: bool) -> str:
    """The id of the run at Weights & Biases, whose steps cannot be logged again: a new one starts anew."""
    if not (resumes and path.exists()):
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def require(config: Any, made: Mapping[str, Any]) -> None:
    """Raises RuntimeError if veRL continued without a tracker."""
    if missing := sorted({*loggers(config)} & {*TRACKERS} - made.keys()):
        raise RuntimeError(f"{', '.join(missing)} could not be started; the reasons are in logs/train.log")


class TrajectoryTable:
    """One more logger of veRL's: episodes of every so many steps, and of the last, as tables of the trackers.

    A table that cannot be sent costs a warning: the trajectories are in the run folder.
    """

    def __init__(self, run_dir: Path, trackers: Sequence[str], every: int, episodes: int) -> None:
        self.run_dir, self.trackers, self.every, self.episodes = run_dir, trackers, every, episodes

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Send the tables of the step, if it is one of those; behind the trackers' own ``log``."""
        last = EVALUATED_STEP in data
        if step % self.every and not last:
            return
        steps = {"train": step, "validation": step, "test": int(data.get(EVALUATED_STEP, step))}
        for split, of_step in steps.items():
            rows = chosen(map(_row, _played(self.run_dir, of_step, split)), self.episodes)
            for tracker in self.trackers if rows else ():
                try:
                    SENDERS[tracker](split, step, rows)
                except Exception as error:  # whatever the tracker raises, the training goes on
                    logger.warning("WARNING step %d: no table for %s: %s", step, tracker, reason_of(error))


def _played(run_dir: Path, step: int, split: str) -> Iterator[Trajectory]:
    return (each for each in read_step(run_dir, step, split) if not each.metadata.get("control"))


def chosen(rows: Iterable[list[Any]], most: int) -> list[list[Any]]:
    """At most so many of them, spread evenly over the questions; the first ones are the shortest."""
    ordered = sorted(rows)
    return (
        [ordered[place * len(ordered) // most] for place in range(most)] if len(ordered) > most else ordered
    )


def _row(each: Trajectory) -> list[Any]:
    """Its values of COLUMNS."""
    told = each.metadata
    golden = json.dumps(told.get("golden_answers", []), ensure_ascii=False)
    asked = [str(told.get("id")), int(told.get("sample", 0)), str(told.get("question")), golden]
    earned = [float(each.reward or 0.0), each.reward_reason, len(each.searches), each.response_length]
    return [*asked, *earned, str(each.finish_reason), each.text]


def _to_wandb(split: str, step: int, rows: list[list[Any]]) -> None:
    import wandb

    wandb.log({f"trajectories/{split}": wandb.Table(columns=list(COLUMNS), data=rows)}, step=step)


def _to_mlflow(split: str, step: int, rows: list[list[Any]]) -> None:
    import mlflow

    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    mlflow.log_table(columns, f"trajectories/{split}_step_{step}.json")


SENDERS = {"wandb": _to_wandb, "mlflow": _to_mlflow}
