"""The folder of one evaluation: one configuration for good."""

import json
import tempfile
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from research.evaluation.config import EvaluationError
from research.files import write_atomically

CONFIG, IDENTITY = "config.yaml", "identity.json"
LOCK = ".lock"  # of research.processes.alone_in


@dataclass(frozen=True)
class Free:
    """What of a configuration may differ when a run goes on, how it is carried out and not what is asked:
    whole `keys`, and keys `within` a section.
    """

    keys: Set[str] = frozenset()
    within: Mapping[str, Set[str]] = field(default_factory=dict)


def own_folder(run_dir: Path) -> None:
    """Raise EvaluationError for a folder that holds anything but an evaluation, or cannot be written."""
    if run_dir.exists() and not run_dir.is_dir():
        raise EvaluationError(f"{run_dir} is no folder: choose another --out")
    found = sorted({path.name for path in run_dir.iterdir()} - {LOCK}) if run_dir.exists() else []
    if found and IDENTITY not in found:
        raise EvaluationError(f"{run_dir} is no evaluation, but holds {found[0]}: choose another --out")
    _check_writable(run_dir)


def _check_writable(folder: Path) -> None:
    """By trying, for permissions alone do not tell (/proc, a read-only disk); nothing of it stays."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise EvaluationError(f"{folder} cannot be written ({reason}): choose another --out") from error
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def check_same(run_dir: Path, config: DictConfig, identity: dict[str, Any], free: Free) -> None:
    """Save the configuration and `identity`, which says what it does not: what a file or a server held.

    Raises EvaluationError for a folder that was begun with others.
    """
    path, identity_path = run_dir / CONFIG, run_dir / IDENTITY
    if path.exists():
        old, new = _read(path), OmegaConf.to_container(config)
        if key := _first_difference(_tied(old, free), _tied(new, free)):
            raise EvaluationError(f"{run_dir} holds an evaluation with another {key}: choose another --out")
    if identity_path.exists():
        _check_identity(identity_path, identity)
    for target, text in ((identity_path, json.dumps(identity, indent=1)), (path, OmegaConf.to_yaml(config))):
        write_atomically(target, text)


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    old, new = _tied(_read(path), Free()), _tied(identity, Free())
    key = _first_difference(old, new)
    if key is None:
        return
    # A folder of before the key was noted: its figures may be of something else, so it does not go on.
    message = f"{path} does not say {key}, so it may be of another: choose another --out"
    if key in old:
        message = f"{path.parent} was begun with another {key}, see {path}: choose another --out"
    raise EvaluationError(message)


def _read(path: Path) -> Any:
    """The object that a YAML or JSON file of ours holds. Raises EvaluationError."""
    try:
        if path.name == IDENTITY:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        return dict(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    except (ValueError, TypeError, OSError, YAMLError, OmegaConfBaseException) as error:
        raise EvaluationError(f"{path} cannot be read: choose another --out") from error


def _tied(values: Any, free: Free) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in free.keys:
            continue
        if isinstance(value, dict):
            within = free.within.get(key, ())
            flat |= {f"{key}.{name}": each for name, each in value.items() if name not in within}
        else:
            flat[key] = value
    return flat


def _first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    return next((key for key in sorted({*old, *new}) if old.get(key) != new.get(key)), None)
