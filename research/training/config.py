"""The ``research`` section of the configuration as typed objects. The keys are documented in
research/config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from research.environments import BaseEnvironment, EpisodeSettings, environment_class, make_environment
from research.environments.headline import Headline
from research.episode.loop import Limits
from research.episode.prompts import load_prompt
from research.episode.protocol import Protocol
from research.tools.search import RetrieverConfig
from research.training.values import check_research
from research.training.watch.guards import GuardConfig
from research.training.watch.validations import KEEP
from research.values import check_protocol

Section = TypeVar("Section")


@dataclass(frozen=True)
class ResearchConfig:
    """The section as objects; see research/config for each key, common.yaml first."""

    run_dir: Path
    prompt: str
    reward: str | dict[str, Any]
    protocol: Protocol
    limits: Limits
    retriever: RetrieverConfig
    guards: GuardConfig
    repeatable_sampling: bool
    generate_timeout: float
    max_steps_without_retriever: int
    weight_update_timeout: float
    keep: str
    early_stop: int | None
    environment: BaseEnvironment
    tools: Any = "search"
    train_hops: tuple[int, ...] = ()
    controls: tuple[str, ...] = ()


def read_research_config(section: DictConfig) -> ResearchConfig:
    """The section as objects.

    Raises:
        ValueError: a key is unknown or missing, or a value has no meaning; the message names it.
    """
    values: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    check_research(values)
    nested = {"protocol": Protocol, "limits": Limits, "retriever": RetrieverConfig, "guards": GuardConfig}
    own_section = environment_class(values).section
    for key, cls in nested.items():
        values[key] = _build(cls, values.get(key), f"research.{key}")
    values["run_dir"] = Path(values["run_dir"])
    for name in {"train_hops", "controls"} & values.keys():
        values[name] = tuple(values[name])
    values["environment"] = make_environment(values, _settings(values))
    values.pop(own_section, None)
    config: ResearchConfig = _build(ResearchConfig, values, "research")
    check_protocol(config.environment.protocol, "research.")
    load_prompt(config.prompt)
    if config.keep not in KEEP:
        raise ValueError(f"research.keep: {config.keep!r}; it is one of: {', '.join(KEEP)}")
    return config


def _settings(values: Mapping[str, Any]) -> EpisodeSettings:
    return EpisodeSettings(
        **{each.name: values[each.name] for each in fields(EpisodeSettings) if each.name in values}
    )


def headline_of(run_dir: Path) -> Headline:
    """By the environment of the run; a folder without a configuration is taken for a search agent's."""
    path = run_dir / "config.yaml"
    section = OmegaConf.to_container(load_config(path).research) if path.exists() else {}
    return environment_class(dict(section)).headline  # type: ignore[arg-type]


def load_config(path: Path) -> DictConfig:
    """The configuration that was saved with a run.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no configuration; names the file.
    """
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError:
        raise
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("research"), DictConfig):
        raise ValueError(f"{path} is no configuration of a run: it has no section research")
    return config


def read_section(cls: type[Section], values: DictConfig | dict[str, Any]) -> Section:
    """One nested section, of a saved configuration whose others may be of another version.

    Raises:
        ValueError: a key is unknown or missing, or a value has no meaning.
    """
    plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    section: Section = _build(cls, plain, cls.__name__)
    return section


def _build(cls: type, values: Any, where: str) -> Any:
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {str(error).replace('.__init__()', '')}") from error
