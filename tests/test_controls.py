"""research/environments/controls.py: searches that cannot help."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from research.environments import EpisodeSettings
from research.environments.controls import CONTROLS, controlled
from research.environments.question_answering import Environment
from research.episode.loop import Limits
from research.episode.protocol import Protocol
from research.episode.tools import Tool, search_tool
from research.episode.trajectory import Passage
from research.tools.search import RetrieverConfig
from research.tools.wikipedia_search import wikipedia_tool


async def echo(query: str) -> list[Passage]:
    return [Passage("1", f"about\n{query}")]


async def with_count(query: str, count: int = 1) -> list[Passage]:
    return (await echo(query)) * min(count, 1)


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


@pytest.mark.parametrize("make", [search_tool, wikipedia_tool])
def test_the_call_of_any_tool_that_searches_is_controlled(make: Callable[[Any], Tool]) -> None:
    tool = make(with_count)
    arguments = tool.checked({"query": "a"})
    for control, found in (("", "about\na"), ("shuffled", "about\nx"), ("closed_book", None)):
        changed = replace(tool, function=controlled(tool.function, control, ["x"]))
        result = asyncio.run(changed(arguments))
        assert [each.contents for each in result.passages] == ([found] if found else [])
    assert tool.searches


def test_controls_need_a_tool_that_searches() -> None:
    settings = EpisodeSettings(
        "question",
        "exact_match",
        Protocol(),
        Limits(searches=1, turn_tokens=1, response_tokens=1, passage_tokens=1),
        RetrieverConfig("http://127.0.0.1:1"),
        tools="test_controls:add",
        controls=("closed_book",),
    )
    with pytest.raises(ValueError, match="none of research.tools searches"):
        Environment(settings)


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


@pytest.mark.parametrize(("control", "decoys"), [("open_book", ["x"]), ("shuffled", [])])
def test_a_control_that_means_nothing_is_refused(control: str, decoys: list[str]) -> None:
    with pytest.raises(ValueError, match=", ".join(CONTROLS)):
        ask(control, decoys, "a")
