"""The folder of one evaluation, which belongs to one configuration."""

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from research.evaluation.config import EvaluationError
from research.files import check_writable, write_atomically
from research.values import flattened

CONFIG, IDENTITY = "config.yaml", "identity.json"
LOCK = ".lock"  # of research.processes.alone_in


# Keys that may differ when a run is resumed: how it is carried out, not what is asked.
RUNTIME_KEYS = {"concurrency", "question_timeout"} | {
    f"engine.{key}"
    for key in ("api_key_variable", "timeout", "deadline", "gpu_memory_utilization", "tensor_parallel_size")
}


def own_folder(run_dir: Path) -> None:
    """Raise EvaluationError for a folder that holds anything but an evaluation, or cannot be written."""
    if run_dir.exists() and not run_dir.is_dir():
        raise EvaluationError(f"{run_dir} is not a folder: choose another --out")
    files = sorted({path.name for path in run_dir.iterdir()} - {LOCK}) if run_dir.exists() else []
    if files and IDENTITY not in files:
        raise EvaluationError(f"{run_dir} is not an evaluation, and holds {files[0]}: choose another --out")
    try:
        check_writable(run_dir)
    except OSError as error:
        reason = error.strerror or error
        raise EvaluationError(f"{run_dir} cannot be written ({reason}): choose another --out") from error


def check_same(run_dir: Path, config: DictConfig, identity: dict[str, Any], free: Set[str]) -> None:
    """Save the configuration, and the `identity` of what it names: models, files, servers.

    Raises EvaluationError if the folder was begun with others; the `free` keys and sections may differ.
    """
    path, identity_path = run_dir / CONFIG, run_dir / IDENTITY
    values: Any = OmegaConf.to_container(config)
    if path.exists() and (key := _first_difference(read_record(path), _flat(values), free)):
        raise EvaluationError(f"{run_dir} holds an evaluation with another {key}: choose another --out")
    old = read_record(identity_path) if identity_path.exists() else _flat(identity)
    if key := _first_difference(old, _flat(identity)):
        # A folder from before the key was recorded: its figures may be of something else.
        message = f"{identity_path} does not record {key}, so it may differ"
        if key in old:
            message = f"{run_dir} was begun with another {key}, see {identity_path}"
        raise EvaluationError(f"{message}: choose another --out")
    write_atomically(identity_path, json.dumps(identity, indent=1))
    write_atomically(path, OmegaConf.to_yaml(config))


def read_record(path: Path) -> dict[str, Any]:
    """The contents of one of our YAML or JSON files, nested keys as `section.key`. Raises EvaluationError."""
    try:
        if path.name == IDENTITY:
            return _flat(json.loads(path.read_text(encoding="utf-8")))
        return _flat(OmegaConf.to_container(OmegaConf.load(path)))
    except (ValueError, TypeError, AttributeError, OSError, YAMLError, OmegaConfBaseException) as error:
        raise EvaluationError(f"{path} cannot be read and may be damaged: choose another folder") from error


def _flat(values: Any) -> dict[str, Any]:
    """Flattened, without the sections themselves. Raises TypeError or ValueError for other than objects."""
    items = flattened(dict(values)).items()
    return {key: value for key, value in items if not isinstance(values.get(key), Mapping)}


def _first_difference(old: dict[str, Any], new: dict[str, Any], free: Set[str] = frozenset()) -> str | None:
    keys = (key for key in sorted({*old, *new}) if not free & {key, key.partition(".")[0]})
    return next((key for key in keys if old.get(key) != new.get(key)), None)
