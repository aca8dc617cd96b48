"""Methods by name, one file each: an async function `answer(question, tools)` that gives a Trajectory whose
metadata has the `prediction`. To add one, put `<name>.py` with such a function here.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from research.episode.tokens import TokenProtocol
from research.episode.tools import SearchFunction
from research.episode.trajectory import Trajectory

if TYPE_CHECKING:
    from research.evaluation.config import EvaluationConfig
    from research.evaluation.engines import Stops

NOT_METHODS = {"calls"}


@dataclass(frozen=True)
class Tools:
    """What a method answers a question with. `sample` takes token ids, a maximum of new tokens, and stops."""

    sample: "Callable[[list[int], int, Stops], Awaitable[list[int]]]"
    search: SearchFunction
    tokens: TokenProtocol
    config: "EvaluationConfig"


Method = Callable[[str, Tools], Awaitable[Trajectory]]


def method_names() -> list[str]:
    """The names that :func:`get_method` knows, sorted."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - NOT_METHODS)


def get_method(name: str) -> Method:
    """The method of that name, one of `method_names()`."""
    method: Method = importlib.import_module(f"{__name__}.{name}").answer
    return method
