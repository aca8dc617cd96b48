"""Rewriting a query: the search loop without a search, and the text that it is for."""

import asyncio
import re

import pytest
from conftest import LIMITS, ScriptedEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.episode.prompts import asks_for_boxed, load_prompt
from research.episode.rewriting import rewritten_query, run_rewriting


def rewrite(tokens, said, think=False, boxed=False):
    engine = ScriptedEngine(tokens, [said])
    trajectory = asyncio.run(run_rewriting([1, 2, 3], engine.generate, tokens, LIMITS))
    return rewritten_query(trajectory, tokens, think, boxed), trajectory


def test_all_that_is_written_is_the_query_without_the_end_of_sequence(tokens):
    end = tokens.tokenizer.eos_token
    query, trajectory = rewrite(tokens, f" terms of the answer {end}")
    assert query == "terms of the answer"
    assert trajectory.finish_reason == "eos" and trajectory.searches == []


def as_asked(prompt: str, text: str) -> str:
    """A response in the form that the prompt itself describes, whose answer is the text."""
    asked = (load_prompt(prompt).system or "") + load_prompt(prompt).user
    pairs = [name for name in re.findall(r"<(\w+)> and </\1>", asked) if name in ("think", "answer")]
    inside = dict.fromkeys(pairs, "why so") | {"answer": text}
    if example := re.search(r"<answer> ([^<]*\\boxed\{)[^}]*(\}[^<]*)</answer>", asked):
        inside["answer"] = example[1] + text + example[2]
    return "".join(f"<{name}> {inside[name]} </{name}>" for name in pairs)


@pytest.mark.parametrize(
    "prompt", ["rqr_think", "research_base_own", "research_instruct_own", "search_r1_own"]
)
@pytest.mark.parametrize("text", ["the terms", "a {set} of $x_{1}$ and more", "is it <b>bold</b>?"])
def test_with_think_the_query_is_read_in_the_form_that_the_prompt_asks_for(tokens, prompt, text):
    said = as_asked(prompt, text)
    assert "<think>" in said and "</answer>" in said
    query, trajectory = rewrite(tokens, said, think=True, boxed=asks_for_boxed(prompt))
    assert query == text and trajectory.finish_reason == "answer"


def test_a_box_that_was_not_asked_for_is_taken_off_where_it_is_around_all(tokens):
    assert rewrite(tokens, "<answer> \\boxed{the terms} </answer>", think=True)[0] == "the terms"
    draft = "the sum of terms, that is \\boxed{5}"
    assert rewrite(tokens, f"<answer>{draft}</answer>", think=True)[0] == draft
    assert rewrite(tokens, "<answer>no box</answer>", think=True, boxed=True)[0] == ""
    assert rewrite(tokens, "no tags at all", think=True)[0] == ""


def test_a_search_ends_the_rewriting_and_is_never_made(tokens):
    _, trajectory = rewrite(tokens, "<search> x </search> and more")
    assert trajectory.finish_reason == "search_limit" and trajectory.searches == []
    assert trajectory.text.strip().endswith("</search>")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="ascii", categories=("L", "Nd", "Zs")), min_size=1))
def test_any_plain_text_comes_through(tag_tokens, text):
    assert rewrite(tag_tokens, text)[0] == text.strip()
