"""Parts of a reference's checkout by themselves: its files import an old veRL, an old vLLM, or a model."""

import ast
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


def definitions(path: Path, names: set[str], **namespace: Any) -> types.SimpleNamespace:
    """The functions, classes and constants of these names, run in a module of their own with `namespace`.

    Raises:
        ValueError: the file lacks one: it is of another version.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    chosen = [node for node in tree.body if _names(node) & names]
    if missing := names - {name for node in chosen for name in _names(node)}:
        raise ValueError(f"{path}: has no {', '.join(sorted(missing))}")
    exec(compile(ast.Module(chosen, []), str(path), "exec"), namespace)
    return types.SimpleNamespace(**{name: namespace[name] for name in names})


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.name} if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else set()


def module(package: str, name: str, path: Path) -> Any:
    """A file as ``package.name``: its relative imports work, and the checkout is not on the path."""
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(f"{package}.{name}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


class Answer:
    """What ``requests.post`` gives."""

    status_code = 200

    def __init__(self, value: Any) -> None:
        self._value = value

    def json(self) -> Any:
        return self._value
