"""Rewriting a query: the search loop without a search, and the text that it is for."""

import asyncio

from conftest import LIMITS, ScriptedEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.rewriting import rewritten_query, run_rewriting


def rewrite(tokens, said, think=False):
    engine = ScriptedEngine(tokens, [said])
    trajectory = asyncio.run(run_rewriting([1, 2, 3], engine.generate, tokens, LIMITS))
    return rewritten_query(trajectory, tokens, think), trajectory


def test_all_that_is_written_is_the_query_without_the_end_of_sequence(tokens):
    end = tokens.tokenizer.eos_token
    query, trajectory = rewrite(tokens, f" terms of the answer {end}")
    assert query == "terms of the answer"
    assert trajectory.finish_reason == "eos" and trajectory.searches == []


def test_with_think_the_answer_tags_hold_the_query(tokens):
    query, trajectory = rewrite(
        tokens, "<think> why </think><answer> \\boxed{the terms} </answer>", think=True
    )
    assert query == "the terms" and trajectory.finish_reason == "answer"
    assert rewrite(tokens, "no tags at all", think=True)[0] == ""


def test_a_search_ends_the_rewriting_and_is_never_made(tokens):
    _, trajectory = rewrite(tokens, "<search> x </search> and more")
    assert trajectory.finish_reason == "search_limit" and trajectory.searches == []
    assert trajectory.text.strip().endswith("</search>")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="ascii", categories=("L", "Nd", "Zs")), min_size=1))
def test_any_plain_text_comes_through(tag_tokens, text):
    assert rewrite(tag_tokens, text)[0] == text.strip()
