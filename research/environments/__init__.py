"""What a policy learns to do: an environment has rows, plays them, and measures the results.

Named in ``research.environment``: built in, one file each, or a class of your own by its import path or an
entry point. Training and evaluation know them only through this door.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from research.datasets.questions import TRAINING_SCHEMA
from research.doors import Door
from research.environments.headline import Headline
from research.episode.loop import Generate, Limits
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Trajectory
from research.errors import DataError, reason_of
from research.tools import read_tools
from research.tools.search import RetrieverConfig

DOOR = Door("environment", "research.environments", "Environment", frozenset({"controls", "headline"}))
Row = dict[str, Any]


@dataclass(frozen=True)
class EpisodeSettings:
    """What an environment is made of, all from the section ``research``; see research/config."""

    prompt: str
    reward: str | Mapping[str, Any]
    protocol: Protocol
    limits: Limits
    retriever: RetrieverConfig
    tools: str | Sequence[str] | Mapping[str, Any] = "search"
    train_hops: tuple[int, ...] = ()
    controls: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What ``research.environment`` gives beside the name, or the environment's own section."""


class BaseEnvironment(ABC):
    """Base of all environments; question_answering.py is the one to start from.

    Attributes:
        headline: how its results are measured and reported.
        schema: that of its rows; types guessed from the rows would differ between files.
        section: a key of ``research`` that holds its parameters; without one they stand beside its name.
    """

    headline: ClassVar[Headline]
    schema: ClassVar[pa.Schema] = TRAINING_SCHEMA
    section: ClassVar[str] = ""

    def __init__(self, settings: EpisodeSettings) -> None:
        """Raises ValueError for an invalid setting. Cheap: it loads nothing and asks no server."""
        self.settings = settings
        self.tools = read_tools(settings.tools, settings.retriever)
        self.protocol = settings.protocol.with_tools([tool.name for tool in self.tools])

    @abstractmethod
    def read(self, path: Path, split: str, final: bool = True) -> list[Any]:
        """The items of a file for ``train``, ``validation`` or ``test``, each with an `id` and a `question`.

        `final`: whether the run will use them as they are, rather than what its preparation makes of them.

        Raises:
            DataError: the file or a row is malformed, or does not fit this split; names file and line.
        """

    @abstractmethod
    def rows(self, splits: dict[str, list[Any]], seed: int, path: Path) -> dict[str, list[Row]]:
        """Rows for veRL's RLHFDataset, of one schema. `path`: of the training items, for messages.

        Each needs ``data_source``, by which veRL reports it apart, ``prompt``, ``agent_name`` and
        ``extra_info`` with ``id``, ``question``, ``split`` and ``control``.
        """

    @abstractmethod
    async def play(self, row: Row, generate: Generate, tokens: TokenProtocol) -> Trajectory:
        """The episode of a row, with its reward, its metrics and its own metadata."""


def environment_class(section: Mapping[str, Any]) -> type[BaseEnvironment]:
    """The class that the section ``research`` of a configuration names. Raises ValueError."""
    return _named(section)[0]


def make_environment(section: Mapping[str, Any], settings: EpisodeSettings) -> BaseEnvironment:
    """The environment of the section ``research``, with its parameters. Raises ValueError."""
    cls, parameters = _named(section)
    try:
        return cls(EpisodeSettings(**{**vars(settings), "parameters": parameters}))
    except Exception as error:  # a user's class may raise anything
        if isinstance(error, ValueError) and cls.__module__.startswith(__name__):
            raise
        message = f"research.environment: {cls.__qualname__} cannot be made: {reason_of(error)}"
        raise ValueError(message) from error


def read_items(environment: BaseEnvironment, path: Path, split: str, final: bool = True) -> list[Any]:
    """The items of a file as the environment reads them, whoever wrote it.

    Raises:
        DataError: it cannot read them, or does not return Items.
    """
    name = type(environment).__qualname__
    try:
        items = environment.read(path, split, final)
    except DataError:
        raise
    except Exception as error:  # a user's class may raise anything
        message = f"{path}: the environment {name} cannot read it: {reason_of(error)}"
        raise DataError(message) from error
    if not isinstance(items, list):
        raise DataError(f"{path}: the environment {name} gave {items!r}, not a list of items")
    for item in items:
        if not all(isinstance(getattr(item, part, None), str) for part in ("id", "question")):
            given = " ".join(repr(item).split())[:100]
            raise DataError(f"{path}: the environment {name} gave {given}: its id and question must be texts")
    return items


def _named(section: Mapping[str, Any]) -> tuple[type[BaseEnvironment], Mapping[str, Any]]:
    # Runs from before there were environments have no such key.
    value = section.get("environment") or (
        "query_rewriting" if "rewriting" in section else "question_answering"
    )
    given = {value: {}} if isinstance(value, str) else value
    if len(given) != 1:
        raise ValueError(f"research.environment names {len(given)} environments, not one: {', '.join(given)}")
    ((name, parameters),) = given.items()
    cls = DOOR.load(str(name))
    if not (isinstance(cls, type) and issubclass(cls, BaseEnvironment)):
        raise ValueError(f"the environment {name!r} is no class made from BaseEnvironment")
    return cls, section.get(cls.section) or {} if cls.section else parameters or {}
