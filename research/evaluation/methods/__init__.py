"""Methods by name, one file each: an async function `answer(question, tools)` that returns a Trajectory whose
metadata has the `prediction`. To add one, put `<name>.py` with such a function here.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable

from research.episode.trajectory import Trajectory

NOT_METHODS = {"calls"}
Method = Callable[..., Awaitable[Trajectory]]


def method_names() -> list[str]:
    """The names that :func:`get_method` knows, sorted."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - NOT_METHODS)


def get_method(name: str) -> Method:
    """The method of that name, one of `method_names()`."""
    method: Method = importlib.import_module(f"{__name__}.{name}").answer
    return method
