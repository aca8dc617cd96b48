"""The ``research`` section of a training's configuration as objects; research/config documents the keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from research import values as rules
from research.environments import BaseEnvironment, EpisodeSettings, environment_class, make_environment
from research.environments.headline import Headline
from research.episode.loop import Limits
from research.episode.prompts import load_prompt
from research.episode.protocol import Protocol
from research.tools.search import RetrieverConfig
from research.values import ABOVE_0, AT_LEAST_0, Rule, integer, is_integer, list_of

Section = TypeVar("Section")

BEST, LAST = "best", "last"
SECTIONS = {"protocol": Protocol, "limits": Limits, "retriever": RetrieverConfig}
# Of the keys that EpisodeSettings holds.
EPISODE = {
    "prompt": rules.TEXT,
    "reward": Rule(lambda value: isinstance(value, str | Mapping), "a name, or names with their weights"),
    "tools": rules.TOOLS,
    "train_hops": list_of(lambda value: is_integer(value, 1), "a list of hop counts like [2, 3]"),
    "controls": list_of(lambda value: isinstance(value, str), "a list like [closed_book]"),
    **dict.fromkeys(SECTIONS, rules.SECTION),
}


@dataclass(frozen=True)
class GuardConfig:
    """Thresholds, the keys of ``research.guards``; see research/config/common.yaml for each.

    Raises:
        ValueError: a value is not a number, negative, too few steps for a slope, or a fraction of a step.
    """

    recent_steps: Annotated[int, integer(1)] = 5
    entropy_share: Annotated[float, AT_LEAST_0] = 0.2
    entropy_low: Annotated[float, AT_LEAST_0] = 0.05
    reward_steps: Annotated[int, integer(3)] = 80
    reward_noise: Annotated[float, AT_LEAST_0] = 2.0
    reward_ceiling: Annotated[float, AT_LEAST_0] = 0.95
    reward_zero_steps: Annotated[int, integer(1)] = 10
    format_drop: Annotated[float, AT_LEAST_0] = 0.3
    equal_groups: Annotated[float, AT_LEAST_0] = 0.9
    cut_share: Annotated[float, AT_LEAST_0] = 0.2
    cut_rise: Annotated[float, AT_LEAST_0] = 0.1
    rollout_difference: Annotated[float, AT_LEAST_0] = 1e-3
    few_searches: Annotated[float, AT_LEAST_0] = 0.1

    def __post_init__(self) -> None:
        rules.check(vars(self), rules.rules_of(GuardConfig), "research.guards.")


@dataclass(frozen=True)
class ResearchConfig:
    """The section as objects, see research/config; keys about episodes are in ``environment.settings``."""

    run_dir: Path
    guards: GuardConfig
    repeatable_sampling: Annotated[bool, rules.SWITCH]
    generate_timeout: Annotated[float, ABOVE_0]
    max_steps_without_retriever: Annotated[int, integer(1)]
    skip_equal_groups: Annotated[bool, rules.SWITCH]
    weight_update_timeout: Annotated[float, ABOVE_0]
    keep: Annotated[str, rules.one_of((BEST, LAST))]
    early_stop: Annotated[int | None, rules.or_null(integer(1))]
    environment: Annotated[BaseEnvironment, rules.ENVIRONMENT]
    table_steps: Annotated[int, integer(1)] = 10
    table_episodes: Annotated[int, integer(1)] = 16


RESEARCH = rules.rules_of(ResearchConfig) | EPISODE | rules.PROTOCOL | rules.LIMITS | rules.RETRIEVER


def check_research(values: Mapping[str, Any]) -> None:
    """Check the values of the section; a missing key is left to whatever needs it.

    Raises:
        ValueError: a value has no meaning; names key, reason and value.
    """
    flat = rules.flattened(values)
    rules.check(flat, RESEARCH, "research.")
    rules.check_limits(flat, "research.")


def read_research_config(section: DictConfig) -> ResearchConfig:
    """The section as objects.

    Raises:
        ValueError: a key is unknown or missing, or a value has no meaning; the message names it.
    """
    values: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    check_research(values)
    own_section = environment_class(values).section
    for key, cls in {**SECTIONS, "guards": GuardConfig}.items():
        values[key] = _build(cls, values.get(key), f"research.{key}")
    values["run_dir"] = Path(values["run_dir"])
    for name in {"train_hops", "controls"} & values.keys():
        values[name] = tuple(values[name])
    settings = {name: values.pop(name) for name in EPISODE if name in values}
    values["environment"] = make_environment(values, _build(EpisodeSettings, settings, "research"))
    values.pop(own_section, None)
    config: ResearchConfig = _build(ResearchConfig, values, "research")
    rules.check_protocol(config.environment.protocol, "research.")
    load_prompt(config.environment.settings.prompt)
    if config.environment.protocol.retokenise:
        raise ValueError(
            "research.protocol.retokenise must be false: trained tokens are those that were sampled"
        )
    return config


def headline_of(run_dir: Path) -> Headline:
    """The headline of the run's environment; a folder without a configuration counts as a search agent's."""
    path = run_dir / "config.yaml"
    section = OmegaConf.to_container(load_config(path).research) if path.exists() else {}
    return environment_class(dict(section)).headline  # type: ignore[arg-type]


def load_config(path: Path) -> DictConfig:
    """The configuration saved with a run. Raises ValueError if the file is missing or is none."""
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("research"), DictConfig):
        raise ValueError(f"{path} is no configuration of a run: it has no section research")
    return config


def read_section(cls: type[Section], values: DictConfig | dict[str, Any]) -> Section:
    """One nested section of a saved configuration, whose other sections may be of another version.

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
