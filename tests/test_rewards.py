"""Rewards by name, on model text alone, each with its reason; and the answer metrics against official
scores.
"""

import asyncio
import json
import string
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import SHARED
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given
from hypothesis import strategies as st

from research.episode.protocol import Protocol
from research.episode.trajectory import Segment, Trajectory
from research.metrics import answers as metrics
from research.overrides import as_hydra_word
from research.rewards import DOOR, AnswerReward, Reference, Reward

PROTOCOL = Protocol()


def scored(reward, trajectory, golden_answers, **metadata):
    reference = Reference("Who?", tuple(golden_answers), PROTOCOL, metadata)
    return asyncio.run(AnswerReward(reward)(trajectory, reference))


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
    reward = scored(name, trajectory, GOLDEN)
    assert reward.score == pytest.approx(score) and reward.reason


# Those to the letter of a reference (tests/test_fidelity.py) give an empty answer what it gives.
OWN_REWARDS = sorted(each for each in DOOR.names() if each != "llm_judge" and not each.endswith("_reference"))


@pytest.mark.parametrize("name", OWN_REWARDS)
@pytest.mark.parametrize("golden", ["Turing", "A", "The The", "*"])
def test_an_empty_answer_earns_nothing(name, golden):
    empty = trajectory("<think>t</think><answer>\\boxed{ }</answer>")
    assert scored(name, empty, [golden]) == Reward(0.0, "no answer")
    assert scored(name, answered(golden), [golden]).score == 1.0


@pytest.mark.parametrize("name", ["exact_match", "em_format"])
def test_an_answer_without_its_box_is_told_from_none(name):
    unboxed = scored(name, trajectory("<think>t</think><answer>Turing</answer>"), GOLDEN)
    assert unboxed == Reward(0.0, "no answer: the answer holds no \\boxed{}")


def test_a_self_written_result_is_a_format_fault():
    cheat = trajectory("<think>t</think><result>Turing</result><answer>\\boxed{Turing}</answer>")
    assert scored("f1_format", cheat, GOLDEN).score == 0.0


def test_f1_reward_never_falls_as_the_answer_gets_better():
    long_golden = [" ".join(f"w{i}" for i in range(60))]
    answers = ["nothing", *(" ".join(f"w{i}" for i in range(n)) for n in (1, 2, 5, 20, 60))]
    scores = [scored("f1_format", answered(answer), long_golden).score for answer in answers]
    assert scores == sorted(scores) and scores[0] == pytest.approx(0.1)


def test_the_built_in_ones_are_there_by_name():
    assert {"em_format", "exact_match", "f1_format"} <= set(DOOR.names())


MINE = """
import numpy
from research.rewards import Reward

limit = 3

async def brief(trajectory, reference, most=10):
    left = max(0, most - sum(map(len, trajectory.model_turns)))
    return Reward(left / most, "brevity", {"left": left})

class Rewards:
    brief = brief

def half(trajectory, reference):
    return 0.5

def hops(trajectory, reference):
    return reference.metadata["hops"]

def nothing(trajectory, reference):
    return None

def given(trajectory, reference):
    return reference.metadata["score"]

def heavy(trajectory, reference, weight=1):
    return weight

def not_finite(trajectory, reference):
    return float("nan")

def meddling(trajectory, reference):
    trajectory.segments.clear()
    return 10**400 if reference.metadata.get("huge") else 1

def no_reason(trajectory, reference):
    return Reward(1.0, None)

def no_metrics(trajectory, reference):
    return Reward(1.0, "", None)

def of_numpy(trajectory, reference):
    return Reward(numpy.float32(0.5), "", {"count": numpy.int64(3)})

def fickle(trajectory, reference):
    return Reward(0, "", {trajectory.finish_reason: 1})
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of a user's own, on the path, and an installed package that names one of its functions."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("def score(trajectory, reference)\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    package = tmp_path / "mine-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[research.rewards]\nhalf_of_it = mine:half\nem_format = mine:half\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


def test_a_reward_of_ones_own_comes_by_path_or_by_entry_point(mine):
    assert (
        scored("mine:half", answered("x"), GOLDEN)
        == scored("half_of_it", answered("x"), GOLDEN)
        == Reward(0.5)
    )
    assert scored("mine:hops", answered("x"), GOLDEN, hops=3).score == 3
    brief = scored({"mine:brief": {"most": 1000}}, trajectory("a" * 900), GOLDEN)
    assert brief == Reward(0.1, "brevity", {"left": 100})
    reward = scored("mine:of_numpy", answered("x"), GOLDEN)
    assert json.dumps([reward.score, reward.metrics]) == '[0.5, {"count": 3.0}]'


def test_rewards_are_added_up_by_weight_with_their_reasons_and_metrics(mine):
    mixture = {"exact_match": 1.0, "mine:brief": {"weight": -0.5, "most": 1000}, "mine:half": 0}
    reward = scored(mixture, answered("Turing"), GOLDEN)
    brief = scored({"mine:brief": {"most": 1000}}, answered("Turing"), GOLDEN)
    assert 0 < brief.score < 1 and reward.score == pytest.approx(1 - 0.5 * brief.score)
    assert "exact_match +1.000 (right answer); mine:brief" in reward.reason
    assert reward.metrics == brief.metrics


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("exactmatch", "no reward is called 'exactmatch'; there are: em_format, exact_match"),
        (
            "nowhere:score",
            "'nowhere:score' cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("mine:absent", "'mine:absent' cannot be imported: AttributeError"),
        ("mine:limit", "'mine:limit' is 3, which cannot be called"),
        ("broken:score", "'broken:score' cannot be imported: SyntaxError"),
        ("leaving:score", "'leaving:score' cannot be imported: SystemExit: 3"),
        (":score", "':score': an import path is module:name, as in my_module:score"),
        ({"mine:brief": {"weight": 1, "longest": 3}}, "mine:brief.*unexpected keyword argument 'longest'"),
        ({"mine:brief": {"weight": "much"}}, "the weight of mine:brief must be a number, not 'much'"),
        ({"exact_match": float("inf")}, "must be a number, not inf"),
        ("em_format", "is built in, and an installed package names another: .* or mine:half"),
        ("mine:heavy", "mine:heavy.*: it has a parameter 'weight'"),
        ({"exact_match": 0}, "names no reward with a weight"),
        ({}, "names no reward with a weight"),
    ],
)
def test_what_names_no_reward_is_refused_in_one_line(mine, reward, message):
    with pytest.raises(ValueError, match=message) as refused:
        AnswerReward(reward)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nothing", "not_finite", "no_reason", "no_metrics"])
def test_what_is_no_score_is_an_error_that_names_the_reward(mine, name):
    with pytest.raises(ValueError, match=f"the reward mine:{name} gave"):
        scored(f"mine:{name}", answered("x"), GOLDEN)


def test_a_reward_cannot_change_what_is_trained_on(mine):
    episode = answered("x")
    assert scored("mine:meddling", episode, GOLDEN).score == 1.0
    assert episode == answered("x")
    with pytest.raises(ValueError, match="the reward mine:meddling gave 1000"):
        scored("mine:meddling", episode, GOLDEN, huge=True)


def test_a_sum_beyond_all_numbers_and_a_metric_of_two_rewards_are_errors(mine):
    with pytest.raises(ValueError, match="add up to inf"):
        scored({"mine:half": 1.7e308, "half_of_it": 1.7e308, "mine:meddling": 1.7e308}, answered("x"), GOLDEN)
    with pytest.raises(ValueError, match="a metric of the same name: .*left"):
        scored({"mine:brief": 1, "mine:Rewards.brief": 1}, answered("x"), GOLDEN)


@pytest.mark.parametrize(
    ("word", "parsed"),
    [
        ('x={a: 1, "m:f": {w: 0.1, n: [1, 2]}}', {"a": 1, "m:f": {"w": 0.1, "n": [1, 2]}}),
        ("x={'m:f' : 1}", {"m:f": 1}),
        ('x={"m:f": {words: ["a", ":b"]}}', {"m:f": {"words": ["a", ":b"]}}),
        ('x={"m:f": {words: "say \\"x\\": y"}}', {"m:f": {"words": 'say "x": y'}}),
        ("x={d: \"'x': y\"}", {"d": "'x': y"}),
        ("x=plain", "plain"),
    ],
)
def test_keys_may_be_quoted_and_values_stay_as_they_are(word, parsed):
    override = OverridesParser.create().parse_override(as_hydra_word(word))
    value = override.value()
    assert json.loads(json.dumps(value, default=str)) == parsed


def test_metrics_that_come_and_go_are_an_error(mine):
    reward, reference = AnswerReward("mine:fickle"), Reference("Who?", ("x",), PROTOCOL)
    asyncio.run(reward(trajectory("t"), reference))
    with pytest.raises(ValueError, match=r"\['eos'\], and \['answer'\] before"):
        asyncio.run(reward(trajectory("t", finish_reason="eos"), reference))


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
    functions = {
        "em": metrics.exact_match,
        "f1": metrics.token_f1,
        "acc": lambda *given: metrics.score_answer(*given).acc,
    }
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


TEXTS = st.text(st.sampled_from("ab {}[]()'\"\\:,=#~$\n<>é"), min_size=1)


@given(TEXTS)
@example("Question: {question}\nIt's \\'odd\\\\")
def test_the_text_of_a_prompt_needs_no_quotes_of_hydra(text):
    assume(text.strip() == text and text != "null" and not (text[0] == text[-1] and text[0] in "'\""))
    override = OverridesParser.create().parse_override(as_hydra_word(f"research.prompt={text}"))
    assert override.value() == text


def test_a_prompt_in_hydras_own_quotes_stays():
    override = OverridesParser.create().parse_override(as_hydra_word("prompt='a: {question}'"))
    assert override.value() == "a: {question}"


@pytest.mark.parametrize("score", [np.bool_(True), np.float32(1), torch.tensor(1.0), torch.tensor([1])])
def test_scalars_of_numpy_and_torch_are_numbers(mine, score):
    assert scored("mine:given", answered("x"), GOLDEN, score=score).score == 1.0


@pytest.mark.parametrize("score", [torch.tensor([1, 2]), np.array([]), "1", np.nan])
def test_what_is_no_scalar_is_no_reward(mine, score):
    with pytest.raises(ValueError, match="neither a finite number nor a Reward"):
        scored("mine:given", answered("x"), GOLDEN, score=score)
