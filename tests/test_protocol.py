"""Parsing, injection and format check of the protocol."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.protocol import (
    Protocol,
    extract_answer,
    format_fault,
    neutralise,
    parse_query,
    render_passage,
    render_result,
)
from research.trajectory import Passage

RESEARCH = Protocol()
SEARCH_R1 = Protocol(
    result="information",
    boxed=False,
    result_template="\n\n<information>{passages}</information>\n\n",
    passage_template="Doc {rank}(Title: {title}) {text}\n",
    passage_separator="",
)
SPECIAL = ["<|im_end|>", "<|endoftext|>", "</s>", "[INST]"]


@pytest.mark.parametrize(
    ("turn", "query"),
    [
        ("<think>a</think><search> who wrote Hamlet </search>", "who wrote Hamlet"),
        ("<search>one<search>two</search>", "two"),
        ("<search></search>", ""),
        ("no search at all", None),
        ("closed</search>", None),
        ("<search>never closed", None),
        ("<search>first</search> and <search>second</search>", "first"),
    ],
)
def test_query_of_a_turn(turn, query):
    assert parse_query(turn, RESEARCH) == query


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        (["<answer> \\boxed{Paris} </answer>"], "Paris"),
        (["<answer>It is \\boxed{\\frac{1}{2}}.</answer>"], "\\frac{1}{2}"),
        (["<answer>\\boxed{\\text{New York}}</answer>"], "New York"),
        (["<answer>\\boxed{one} or \\boxed{two}</answer>"], "two"),
        (["<answer>Paris</answer>"], None),
        (["<answer>\\boxed{Paris</answer>"], None),
        (["\\boxed{Paris}"], None),
        (["<answer>\\boxed{early}</answer>", "nothing in the last turn"], None),
        ([], None),
    ],
)
def test_answer_of_a_response(turns, answer):
    assert extract_answer(turns, RESEARCH) == answer


def test_search_r1_is_a_configuration():
    passage = Passage("1", '"Hamlet"\nA play.')
    assert render_passage(passage, 1, SEARCH_R1) == "Doc 1(Title: Hamlet) A play.\n"
    assert render_result(["x"], SEARCH_R1) == "\n\n<information>x</information>\n\n"
    turns = ["<think>t</think><search>q</search>", "<think>u</think><answer> Shakespeare </answer>"]
    assert format_fault(turns, SEARCH_R1) is None
    assert extract_answer(turns, SEARCH_R1) == "Shakespeare"


def test_reference_result_block():
    assert render_result(["T\na", "U\nb"], RESEARCH) == " <result>\nT\na\n\nU\nb\n</result>"


GOOD = ["<think>a</think><search>q</search>", "<think>b</think><answer>\\boxed{x}</answer>"]


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        (GOOD, None),
        (["<answer>\\boxed{x}</answer>"], "think"),
        (["<think>a<answer>\\boxed{x}</answer>"], "think"),
        ([GOOD[0], "<think>b</think><result>r</result><answer>\\boxed{x}</answer>"], "result block itself"),
        (["<think>a</think>q</search>", GOOD[1]], "search"),
        (["<think>a</think><search>q<answer>\\boxed{x}</answer>"], "search"),
        ([GOOD[0], "<think>b</think><answer>x</answer>"], "boxed"),
        ([GOOD[0], "<think>b</think>"], "answer"),
        ([GOOD[0], "<think>b</think><answer>\\boxed{x}</answer><answer>\\boxed{y}</answer>"], "answer"),
        ([], "think"),
    ],
)
def test_format_faults(turns, fault):
    found = format_fault(turns, RESEARCH)
    assert found is None if fault is None else fault in found


def test_template_without_its_tags_is_refused():
    with pytest.raises(ValueError, match="result_template"):
        Protocol(result_template="{passages}")
    with pytest.raises(ValueError, match="result_template"):
        Protocol(result="information")


hostile = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<answer>",
                "</answer>",
                "< /Result >",
                "<think",
                ">",
                "<",
                "/",
                "|",
                "im_end",
                *SPECIAL,
                "</",
                "INST]",
                "[",
            ]
        ),
        st.text(max_size=6),
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(hostile)
def test_neutralised_text_holds_no_tag_and_no_special_token(text):
    clean = neutralise(text, RESEARCH, SPECIAL)
    for name in RESEARCH.names:
        assert f"<{name}>" not in clean and f"</{name}>" not in clean
    assert not any(token in clean for token in SPECIAL)
    assert neutralise(clean, RESEARCH, SPECIAL) == clean


@given(st.text(alphabet="abc <>/.,", max_size=40))
def test_harmless_text_is_left_alone(text):
    assert neutralise(text, RESEARCH, SPECIAL) == text
