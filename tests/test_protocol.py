"""Parsing, injection and format check of the protocol."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.episode.pieces import pieces
from research.episode.protocol import (
    Protocol,
    extract_answer,
    format_fault,
    neutralise,
    parse_call,
    render_passage,
    render_result,
)
from research.episode.trajectory import Passage, Segment, Trajectory

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
    assert parse_call(turn, RESEARCH) == (None if query is None else ("search", query))


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        (["<answer> \\boxed{Paris} </answer>"], "Paris"),
        (["<answer>It is \\boxed{\\frac{1}{2}}.</answer>"], "\\frac{1}{2}"),
        (["<answer>\\boxed{\\text{New York}}</answer>"], "New York"),
        (["<answer>\\boxed{one} or \\boxed{two}</answer>"], "two"),
        (["<answer>Paris</answer>"], None),
        (["<answer>\\boxed{Paris</answer>"], None),
        (["<answer>\\boxed{\\text{New York}, \\text{USA}}</answer>"], "New York, USA"),
        (["<answer>\\boxed{\\textbf{\\text{Rock} \\& \\mathrm{Roll}}}</answer>"], "Rock & Roll"),
        (["<answer>\\boxed{\\text {a}\\ \\emph{b} {c} \\$5 \\{d\\}}</answer>"], "a b {c} $5 {d}"),
        (["<answer>\\boxed{\\sqrt{\\text{x}}}</answer>"], "\\sqrt{x}"),
        (["<answer>\\boxed{\\textit}</answer>"], "\\textit"),
        (["<answer>\\boxed{\\}}</answer>"], "}"),
        (["<answer>\\boxed{\\boxed{5}}</answer>"], "5"),
        (["<answer>\\boxed {5}}}</answer>"], "5"),
        (["<answer>$\\boxed 5$, so it is.</answer>"], "5"),
        (["<answer>\\boxed</answer>"], None),
        (["<answer>\\boxedeq{5}</answer>"], None),
        (["<answer>\\boxed{}</answer>"], ""),
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
        (["<THINK>a</think><answer>\\boxed{x}</answer>"], "not spelt as the protocol has it: <THINK>"),
        ([GOOD[0], "<think>b</think>< Result >r<answer>\\boxed{x}</answer>"], "result block itself"),
        ([GOOD[0], "<think>b</think></\u200breſult><answer>\\boxed{x}</answer>"], "result block itself"),
        ([GOOD[0], "<think>b</ Search></think><answer>\\boxed{x}</answer>"], "spelt"),
        ([GOOD[0], "<think>b</think><results><answer>\\boxed{x}</answer>"], None),
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


MARKS = [" ", "\n", "/", "\u200b", "\u00ad", "\ufeff", "\u3000", "-", "x", ">", "<"]


@settings(max_examples=300)
@given(
    st.sampled_from([*RESEARCH.names, "RESULT", "Thin\u212a", "ſearch", "results", "answer2"]),
    st.lists(st.sampled_from(MARKS), max_size=3).map("".join),
    st.lists(st.sampled_from(MARKS), max_size=3).map("".join),
)
def test_what_is_a_tag_in_a_passage_is_one_in_the_models_text(name, before, after):
    """Beside a valid response there is a fault if and only if a passage would have been changed."""
    looks = f"<{before}{name}{after}>"
    turns = [GOOD[0], f"<think>b</think>{looks}<answer>\\boxed{{x}}</answer>"]
    assert (format_fault(turns, RESEARCH) is not None) == (neutralise(looks, RESEARCH) != looks)


def test_special_tokens_of_any_form_are_taken_out():
    awkward = ["aa", "a ", "  ", "\n", "¶", "<a<b>", "(a", "x" * 2000, *(f"<unused{n}>" for n in range(7000))]
    text = "aaaa a  ¶ <a<b> <a \n" + "x" * 4000 + "<unused6999><unused69990"
    clean = neutralise(text, RESEARCH, awkward)
    assert not any(token in clean for token in awkward if token.strip())
    assert "\n" in clean and "(unused6999)<unused69990" in clean


UNITS = [
    "<",
    "< ",
    "<\u200b",
    "</",
    "</ ",
    "<think",
    "<think ",
    "<answer>",
    "</answer>",
    "<|im_end|>",
    "[INST",
]
UNITS += [
    "\\boxed",
    "\\boxed{",
    "\\boxed ",
    "{",
    "}",
    "\\",
    "\\text",
    "\\text{",
    "\\{",
    "<search>",
    "</search>",
    " ",
    "a",
]


@pytest.mark.parametrize("unit", UNITS)
def test_a_megabyte_of_anything_is_read_at_once(unit):
    check_time([unit * (1_000_000 // len(unit)), "x"])


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from([*UNITS, "x", ">"]), st.integers(1, 20_000)), min_size=1, max_size=4)
)
def test_no_text_takes_longer_than_its_length(runs):
    check_time([unit * count for unit, count in runs])


def check_time(parts):
    """Each reader of a text takes two seconds at most; a quadratic one would take minutes."""
    text = "".join(parts)
    boxed = [f"<think></think><answer>\\boxed{{{text}}}</answer>"]
    segment = Segment("model", [], [], text)
    for read in (
        lambda: neutralise(text, RESEARCH, SPECIAL),
        lambda: format_fault([text], RESEARCH),
        lambda: extract_answer(boxed, RESEARCH),
        lambda: parse_call(text, RESEARCH),
        lambda: pieces(Trajectory([], [segment], finish_reason="search_limit"), RESEARCH),
    ):
        began = time.process_time()
        read()
        assert time.process_time() - began < 2


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from([*UNITS, *(f"<{sign}{name}>" for name in RESEARCH.names for sign in ("", "/"))])
        | st.text(st.characters(exclude_categories=()), max_size=4),
        max_size=20,
    ).map("".join)
)
def test_any_turn_can_be_read(text):
    for protocol in (RESEARCH, SEARCH_R1):
        fault = format_fault([text], protocol)
        answer = extract_answer([text], protocol)
        assert (fault is None) <= (answer is not None)
        assert answer is None or answer == answer.strip()
        clean = neutralise(text, protocol, SPECIAL)
        assert parse_call(clean, protocol) is None and extract_answer([clean], protocol) is None
        assert not format_fault([f"<think>{clean}</think><answer>\\boxed{{x}}</answer>"], protocol)


@settings(max_examples=300)
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
