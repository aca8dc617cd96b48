"""The ``research`` section of the configuration as typed objects. The keys are documented in
recipes/config.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from research.controls import CONTROLS
from research.prompts import load_prompt
from research.protocol import Protocol
from research.retriever_client import RetrieverConfig
from research.rewards import get_reward
from research.search_loop import Limits
from research.training.guards import GuardConfig

Section = TypeVar("Section")


@dataclass(frozen=True)
class ResearchConfig:
    """What an episode needs to know; see recipes/config/train_musique.yaml for each key."""

    run_dir: Path
    prompt: str
    reward: str
    train_hops: tuple[int, ...]
    controls: tuple[str, ...]
    protocol: Protocol
    limits: Limits
    retriever: RetrieverConfig
    guards: GuardConfig
    repeatable_sampling: bool
    generate_timeout: float
    max_steps_without_retriever: int
    weight_update_timeout: float


def read_research_config(section: DictConfig) -> ResearchConfig:
    """The section as objects.

    Raises:
        ValueError: a key is unknown or missing, or a value has no meaning; the message names it.
    """
    values: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    nested = {"protocol": Protocol, "limits": Limits, "retriever": RetrieverConfig, "guards": GuardConfig}
    for key, cls in nested.items():
        values[key] = _build(cls, values.get(key), f"research.{key}")
    values["run_dir"] = Path(values["run_dir"])
    values["train_hops"], values["controls"] = tuple(values["train_hops"]), tuple(values["controls"])
    config: ResearchConfig = _build(ResearchConfig, values, "research")
    get_reward(config.reward)
    load_prompt(config.prompt)
    unknown = set(config.controls) - set(CONTROLS)
    if unknown:
        raise ValueError(f"research.controls: {', '.join(unknown)}; there are: {', '.join(CONTROLS)}")
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
