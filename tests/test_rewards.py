"""Rewards by name, on model text alone, each with its reason; and the answer metrics against official
scores.
"""

import json
import string
import unicodedata
from collections import Counter

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from research import metrics
from research.protocol import Protocol
from research.rewards import Reward, get_reward, reward_names
from research.trajectory import Segment, Trajectory

PROTOCOL = Protocol()


def trajectory(*turns, finish_reason="answer"):
    segments = []
    for turn in turns:
        segments += [
            Segment("model", [1], [-1.0], turn),
            Segment("environment", [2], [0.0], " <result>\nx\n</result>"),
        ]
    return Trajectory([0], segments[:-1], finish_reason=finish_reason)


def answered(answer, valid=True):
    think = "<think>t</think>" if valid else "<think>t"
    return trajectory("<think>s</think><search>q</search>", f"{think}<answer>\\boxed{{{answer}}}</answer>")


GOLDEN = ["Alan Turing", "Turing"]


@pytest.mark.parametrize(
    ("name", "trajectory", "score"),
    [
        ("exact_match", answered("the Alan Turing"), 1.0),
        ("exact_match", answered("Alan Turing", valid=False), 1.0),
        ("exact_match", answered("Alan"), 0.0),
        ("exact_match", trajectory("<think>t</think>", finish_reason="length"), 0.0),
        ("f1_format", answered("Alan Turing"), 1.0),
        ("f1_format", answered("Alan"), 2 / 3),
        ("f1_format", answered("Bob"), 0.1),
        ("f1_format", answered("Alan Turing", valid=False), 0.0),
        ("f1_format", trajectory("<think>t</think><answer>\\boxed{Turing}", finish_reason="length"), 0.0),
        ("em_format", answered("Turing"), 1.0),
        ("em_format", answered("Turing", valid=False), 0.8),
        ("em_format", answered("Bob"), 0.2),
        ("em_format", answered("Bob", valid=False), 0.1),
        ("em_format", trajectory("<think>t</think>", finish_reason="eos"), 0.0),
    ],
)
def test_scores(name, trajectory, score):
    reward = get_reward(name)(trajectory, GOLDEN, PROTOCOL)
    assert reward.score == pytest.approx(score) and reward.reason


@pytest.mark.parametrize("name", reward_names())
@pytest.mark.parametrize("golden", ["Turing", "A", "The The", "*"])
def test_an_empty_answer_earns_nothing(name, golden):
    empty = trajectory("<think>t</think><answer>\\boxed{ }</answer>")
    assert get_reward(name)(empty, [golden], PROTOCOL) == Reward(0.0, "no answer")
    assert get_reward(name)(answered(golden), [golden], PROTOCOL).score == 1.0


def test_a_self_written_result_is_a_format_fault():
    cheat = trajectory("<think>t</think><result>Turing</result><answer>\\boxed{Turing}</answer>")
    assert get_reward("f1_format")(cheat, GOLDEN, PROTOCOL).score == 0.0


def test_f1_reward_never_falls_as_the_answer_gets_better():
    long_golden = [" ".join(f"w{i}" for i in range(60))]
    answers = ["nothing", *(" ".join(f"w{i}" for i in range(n)) for n in (1, 2, 5, 20, 60))]
    scores = [get_reward("f1_format")(answered(answer), long_golden, PROTOCOL).score for answer in answers]
    assert scores == sorted(scores) and scores[0] == pytest.approx(0.1)


def test_unknown_name_lists_those_there_are():
    assert reward_names() == ["em_format", "exact_match", "f1_format"]
    with pytest.raises(ValueError, match="exact_match"):
        get_reward("exactmatch")


@pytest.mark.parametrize(
    ("prediction", "golden", "f1"), [("yes", "yes", 1.0), ("yes sir", "yes", 0.0), ("no", "noanswer", 0.0)]
)
def test_yes_and_no_must_match_exactly_for_f1(prediction, golden, f1):
    assert metrics.token_f1(prediction, [golden]) == f1


WORDS = st.lists(st.sampled_from(["a", "The", "an", "then", "No.", "x-ray", "Zürich", "\t", "a\u2013b", "1"]))


@given(st.text() | WORDS.map(" ".join))
def test_the_fast_way_for_ascii_text_is_the_same(text):
    assert metrics.normalize_answer(text) == metrics.normalize_any(text)


@given(WORDS, WORDS)
def test_f1_counts_each_shared_word_as_often_as_both_have_it(prediction, golden):
    texts = [metrics.normalize_answer(" ".join(words)) for words in (prediction, golden)]
    first, second = (text.split() for text in texts)
    common = sum((Counter(first) & Counter(second)).values())
    expected = 2 * common / (len(first) + len(second)) if common else 0.0
    if "no" not in texts and texts[0] != texts[1]:
        assert metrics.token_f1(" ".join(prediction), [" ".join(golden)]) == pytest.approx(expected)


NORMALISED_AWAY = ["a", "A", "The", "an", *string.punctuation]
NOTHING_LEFT = st.lists(st.sampled_from(NORMALISED_AWAY), min_size=1).map(" ".join)


@given(NOTHING_LEFT, st.text() | NOTHING_LEFT | st.just(""))
def test_a_golden_answer_of_which_normalisation_leaves_nothing_is_matched_as_a_whole(golden, prediction):
    same = prediction.lower().split() == golden.lower().split()
    assert metrics.score_answer(prediction, [golden]) == (same, same, same)
    assert metrics.score_answer(f"  {golden.upper()}\n", ["other", golden]) == (1, 1, 1)
    assert metrics.score_answer(f"{golden} Turing", [golden]) == (0, 0, 0)


@given(st.text(" \n\t\u00a0\u3000"), st.lists(st.text()))
def test_no_answer_is_never_right(blank, golden):
    assert metrics.score_answer(blank, [*golden, blank]) == (0, 0, 0)
    assert metrics.score_answer("Turing", []) == (0, 0, 0)


@given(st.text(min_size=1).filter(str.strip))
def test_composed_and_decomposed_letters_are_the_same(text):
    for form in ("NFC", "NFD"):
        assert metrics.score_answer(unicodedata.normalize(form, text), [text]) == (1, 1, 1)


def test_metrics_equal_the_official_scripts(shared_rows):
    """EM, F1 and contained answer of HotpotQA's, MuSiQue's and FlashRAG's own code, really on 1,784 cases."""
    cases = shared_rows / "crosscheck" / "metric_cases.jsonl"
    rows = [json.loads(line) for line in cases.open(encoding="utf-8")]
    assert len(rows) == (1784 if shared_rows == SHARED else 14)
    functions = {"em": metrics.exact_match, "f1": metrics.token_f1, "acc": metrics.contained_answer}
    official = [
        "hotpot_em",
        "hotpot_f1",
        "2wiki_em",
        "musique_em",
        "musique_f1",
        "flashrag_f1",
        "flashrag_acc",
    ]
    for row in rows:
        for name in official:
            ours = functions[name.split("_")[1]](row["pred"], row["golden_answers"])
            assert ours == pytest.approx(row["scores"][name], abs=1e-9), (row["id"], name)
