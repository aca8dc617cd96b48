"""The shape that docs/architecture.md tells of: arrows between packages go down, and no import goes round."""

import ast
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "viewer",
    {"training", "evaluation"},
    "environments",
    "rewards",
    {"tools", "judge"},
    {"datasets", "metrics"},
    {"model_server", "model_folder"},
    "values",
    "episode",
    {"doors", "report", "errors", "files", "overrides", "places", "processes", "validation"},
)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("research", "retriever_server")


def test_arrows_go_down(graph: grimp.ImportGraph) -> None:
    layers = [grimp.Layer(*layer, independent=False) if isinstance(layer, set) else layer for layer in LAYERS]
    layers[1] = grimp.Layer("training", "evaluation", independent=True)  # so they cannot lean on one another
    found = graph.find_illegal_dependencies_for_layers(layers=layers, containers={"research"})
    assert sorted((each.importer, each.imported) for each in found) == []
    named = {name for layer in LAYERS for name in ([layer] if isinstance(layer, str) else layer)}
    files = [path.relative_to(ROOT / "research") for path in (ROOT / "research").rglob("*.py")]
    assert {path.parts[0].removesuffix(".py") for path in files} - {"__init__"} == named


def test_the_retriever_knows_nothing_of_the_research(graph: grimp.ImportGraph) -> None:
    assert graph.find_illegal_dependencies_for_layers(layers=("research", "retriever_server")) == set()


def test_no_import_goes_round(graph: grimp.ImportGraph) -> None:
    """Imports for types alone count as well."""
    circles = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            if back := graph.find_shortest_chain(importer=imported, imported=importer):
                circles.add(tuple(sorted(set(back))))
    assert sorted(circles) == []


@pytest.mark.parametrize("package", ["research", "retriever_server"])
def test_folders_files_and_functions_are_small(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 400
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 40, f"{path}: {node.name} has over 40 lines"
    folders = {path.parent for path in files}
    assert [folder for folder in folders if len(list(folder.glob("*.py"))) > 12] == []


def test_a_docstring_begins_with_a_summary_of_one_line() -> None:
    spilling = []
    for path in (
        each for package in ("research", "retriever_server") for each in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
                if "\n" in summary:
                    spilling.append(f"{path.relative_to(ROOT)}: {summary[:60]}")
    assert not spilling
