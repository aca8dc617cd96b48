"""The folder of one evaluation: one configuration for good."""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.evaluation.config import EvaluationError

CONFIG, IDENTITY = "config.yaml", "identity.json"


@dataclass(frozen=True)
class Free:
    """What of a configuration may differ when a run goes on, how it is carried out and not what is asked:
    whole `keys`, and keys `within` a section.
    """

    keys: Set[str] = frozenset()
    within: Mapping[str, Set[str]] = field(default_factory=dict)


def check_same(run_dir: Path, config: DictConfig, identity: dict[str, Any], free: Free) -> None:
    """Save the configuration and `identity`, which says what it does not: what a file or a server held.

    Raises EvaluationError for a folder that was begun with others.
    """
    path, identity_path = run_dir / CONFIG, run_dir / IDENTITY
    if path.exists():
        old, new = (OmegaConf.to_container(each) for each in (OmegaConf.load(path), config))
        if key := _first_difference(_tied(old, free), _tied(new, free)):
            raise EvaluationError(f"{run_dir} holds an evaluation with another {key}: choose another --out")
        if identity_path.exists() and json.loads(identity_path.read_text()) != identity:
            raise EvaluationError(
                f"{run_dir} was begun with another retriever or other questions: {identity_path}"
            )
    OmegaConf.save(config, path)
    identity_path.write_text(json.dumps(identity, indent=1), encoding="utf-8")


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
