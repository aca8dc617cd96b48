"""Doors for what users bring, found by name, entry point or import path.

A thing is built in, named by an entry point of an installed package, or the user's own,
``my_package.my_module:name``.
"""

import importlib
import operator
import os
import pkgutil
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from research.errors import reason_of


@dataclass(frozen=True)
class Door:
    """Where things of one kind come from.

    Attributes:
        kind: what messages call it, such as "reward".
        package: each of its modules is a built-in one; also the group of the entry points.
        attribute: what to take from a built-in module.
        helpers: modules of the package that are not built-in things.
    """

    kind: str
    package: str
    attribute: str
    helpers: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """The names of those that are built in or installed, sorted."""
        return sorted({*self._built_in(), *entry_points(group=self.package).names})

    def load(self, name: str) -> Any:
        """The callable of that name or import path.

        Raises:
            ValueError: there is none, or it cannot be imported; the message lists the names, or says why.
        """
        if name in self._built_in():
            self._refuse_second(name)
            return getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute)
        if ":" in name:
            return self._checked(name, _import(name, f"the {self.kind} {name!r}"))
        if name not in self.names():
            raise ValueError(
                f"no {self.kind} is called {name!r}; there are: {', '.join(self.names())}; "
                f"one of your own is my_package.my_module:{self.attribute}"
            )
        point, *others = entry_points(group=self.package, name=name)
        if others:
            raise ValueError(f"several installed packages name a {self.kind} {name!r}: give its import path")
        return self._checked(name, _import(point.value, f"the {self.kind} {name!r} ({point.value})"))

    def _refuse_second(self, name: str) -> None:
        for point in entry_points(group=self.package, name=name):
            raise ValueError(
                f"the {self.kind} {name!r} is built in, and an installed package names another: give the "
                f"import path, {self.package}.{name}:{self.attribute} or {point.value}"
            )

    def _built_in(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        names = (module.name for module in pkgutil.iter_modules(path) if not module.ispkg)
        return [name for name in names if name not in self.helpers]

    def _checked(self, name: str, thing: Any) -> Any:
        if not callable(thing):
            raise ValueError(f"the {self.kind} {name!r} is {thing!r}, which cannot be called")
        return thing


def _import(path: str, what: str) -> Any:
    module, _, attribute = path.partition(":")
    if not module.replace(".", "").isidentifier() or module.endswith(".py"):
        written = module.removesuffix(".py").strip("./").replace("/", ".") or "my_module"
        raise ValueError(f"{what}: an import path is module:name, as in {written}:{attribute or 'name'}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a folder of the user's named like a package hides nothing
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        reason = reason_of(error)
        if isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name):
            reason += f": it is neither installed nor on PYTHONPATH nor in {os.getcwd()}"
        raise ValueError(f"{what} cannot be imported: {reason}") from error
