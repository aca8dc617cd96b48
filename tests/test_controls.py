"""research/environments/controls.py: searches that cannot help."""

import asyncio

import pytest

from research.environments.controls import CONTROLS, controlled
from research.episode.trajectory import Passage


async def echo(query: str) -> list[Passage]:
    return [Passage("1", f"about\n{query}")]


def ask(control: str, decoys: list[str], *queries: str) -> list[list[str]]:
    async def run() -> list[list[str]]:
        search = controlled(echo, control, decoys)
        return [[passage.contents for passage in await search(query)] for query in queries]

    return asyncio.run(run())


def test_no_control_leaves_the_search_alone() -> None:
    assert ask("", [], "a", "b") == [["about\na"], ["about\nb"]]


def test_closed_book_finds_nothing() -> None:
    assert ask("closed_book", ["x"], "a") == [[]]


def test_shuffled_finds_what_the_decoys_would_find_in_turn() -> None:
    assert ask("shuffled", ["x", "y"], "a", "b", "c") == [["about\nx"], ["about\ny"], ["about\nx"]]


@pytest.mark.parametrize(("control", "decoys"), [("open_book", ["x"]), ("shuffled", [])])
def test_a_control_that_means_nothing_is_refused(control: str, decoys: list[str]) -> None:
    with pytest.raises(ValueError, match=", ".join(CONTROLS)):
        ask(control, decoys, "a")
