"""setup.py declares every distribution that the packages import, not only those that bring them along."""

import ast
import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("research", "retriever_server")


def imported() -> dict[str, str]:
    """The top name of each import of another distribution, with a file that has it."""
    found: dict[str, str] = {}
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], str(path.relative_to(ROOT)))
    return {name: file for name, file in found.items() if name not in {*sys.stdlib_module_names, *PACKAGES}}


def declared(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What setup.py asks for; an extra like that of verl[vllm] is named for what it brings."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    extras = given["extras_require"]
    named = [each for name in ("cpu", "gpu", "trackers") for each in extras[name]]
    asked = map(Requirement, [*given["install_requires"], *named])
    return {canonicalize_name(name) for each in asked for name in (each.name, *each.extras)}


def test_every_import_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    known, distributions, found = declared(monkeypatch), packages_distributions(), imported()
    assert {"verl", "numpy", "click"} <= found.keys()
    missing = {
        name: file
        for name, file in found.items()
        if not {canonicalize_name(each) for each in distributions.get(name, [name])} & known
    }
    assert missing == {}
