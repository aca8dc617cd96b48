"""recipes/serve_retriever.sh, as a user starts it; where this checkout has its environment."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "serve_retriever.sh"
DEADLINE_S = 120
needs_environment = pytest.mark.skipif(
    not (ROOT / ".venv" / ".research-lock").exists(), reason="no .venv here: bash recipes/setup_env.sh cpu"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("my corpus") / "towns.jsonl"
    rows = [{"id": row, "contents": f"Town {row}\nIt lies on river number {row * 7}."} for row in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def recipe(*words: object) -> Iterator[tuple[str, list[str]]]:
    """The server's address, and what the recipe printed until it was ready."""
    command = ["bash", str(RECIPE), *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT.parent) as process:
        lines = []
        try:
            while not (line := process.stdout.readline()).startswith("ready: "):
                assert line, "it ended before it was ready"
                lines.append(line)
            yield line.split()[1], lines
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0


@needs_environment
def test_a_corpus_is_built_once_and_served(corpus: Path) -> None:
    for state in ("built", "already built"):
        with recipe(corpus, "--index", "bm25", "--", "--port", 0, "--die-with-parent") as (url, lines):
            assert f": {state}" in lines[-1] and "30 passages, bm25" in lines[-1]
            found = requests.post(f"{url}/search", json={"query": "river number 77"}, timeout=DEADLINE_S)
            assert found.json()[0]["id"] == "11"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere.jsonl"], "error: no corpus or index at nowhere.jsonl"),
        ([ROOT / "docs"], "is no index: it has no manifest.json"),
    ],
)
def test_wrong_words_end_in_one_line(words: list[object], complaint: str) -> None:
    ended = subprocess.run(["bash", RECIPE, *words], capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 2 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and complaint in ended.stderr


def test_help_shows_the_commands() -> None:
    shown = subprocess.run(["bash", RECIPE, "--help"], capture_output=True, text=True, check=True).stdout
    assert "bash recipes/serve_retriever.sh corpus.jsonl --index bm25" in shown and "set -euo" not in shown
