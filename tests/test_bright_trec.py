"""Run files and judgements of BRIGHT: read back, with blanks in ids, and scored as trec_eval does."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from research.datasets.bright import question_file
from research.evaluation.bright.score import score_run
from research.evaluation.bright.trec import read_qrels, read_run, trec_scores, write_run
from research.evaluation.config import EvaluationError

NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x85"), min_size=1, max_size=5
)
RUNS = st.dictionaries(
    NAMES.filter(lambda name: name == "".join(name.split())),
    st.dictionaries(
        NAMES.filter(lambda name: name == "".join(name.split())), st.floats(-1e9, 1e9), min_size=1
    ),
    max_size=3,
)


@examples(max_examples=50)
@given(RUNS)
def test_a_run_reads_back_with_every_digit(tmp_path_factory: pytest.TempPathFactory, run: dict) -> None:
    path = tmp_path_factory.mktemp("run") / "x.trec"
    write_run(path, run, "test")
    assert read_run(path) == run


def test_lines_stand_in_trec_evals_order(tmp_path: Path) -> None:
    # The last two differ by less than 32 bits can tell: the higher id comes first, as in trec_eval.
    run = {"q": {"b": 1.0, "with blank": 2.0, "a": 1.0 + 1e-12}}
    write_run(tmp_path / "x.trec", run, "test")
    lines = [line.split() for line in (tmp_path / "x.trec").read_text().splitlines()]
    assert [(line[2], line[3]) for line in lines] == [("with%20blank", "1"), ("b", "2"), ("a", "3")]
    figures = trec_scores(run, {"q": {"a": 1}})
    assert figures == trec_scores(read_run(tmp_path / "x.trec"), {"q": {"a": 1}})
    assert figures["q"]["ndcg@10"] == pytest.approx(1 / math.log2(4))
    assert trec_scores(run, {"q": {"with blank": 1}})["q"]["ndcg@10"] == 1.0


@pytest.mark.parametrize(
    ("line", "query", "passage"),
    [
        ("7 Q0 Snowflake/a b c.txt 1 0.5 x", "7", "Snowflake/a b c.txt"),
        ("7\tQ0\ta  b\t1\t0.5\tx\r", "7", "a  b"),
        ("7 0 a b 1 0.5 x", "7", "a b"),
        ("my question Q0 a 1 0.5 x", "my question", "a"),
        ("7 Q0 a Q0 b 1 0.5 x", "7", "a Q0 b"),
        ("7 Q0 a\u00a0b\u2028c\x0bd 1 0.5 x", "7", "a\u00a0b\u2028c\x0bd"),
        ("7 Q0 1 2 0.3 1 0.5 x", "7", "1 2 0.3"),
    ],
)
def test_blanks_inside_ids_of_others_files_are_read_from_both_ends(
    tmp_path: Path, line: str, query: str, passage: str
) -> None:
    (tmp_path / "x.trec").write_text(f"{line}\n7 Q0 other 2 0.4 x\n")
    run = read_run(tmp_path / "x.trec")
    assert trec_scores(run, {query: {passage: 1}})[query]["ndcg@10"] == 1.0
    write_run(tmp_path / "again.trec", run, "test")
    assert read_run(tmp_path / "again.trec") == run
    if " " not in query:
        (tmp_path / "qrels").write_text(f"{query} 0 {passage} 1\n")
        assert "questions present | 1         | 1.00000" in score_run(tmp_path / "x.trec", tmp_path / "qrels")


def test_a_judgement_given_twice_counts_once_and_two_different_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("1 0 a 1\n1 0 a 1\n1 0 b 0\n")
    assert read_qrels(path) == {"1": {"a": 1, "b": 0}}
    path.write_text("1 0 a 1\n1 0 a 0\n")
    with pytest.raises(EvaluationError, match="qrels:2: a has two gains for question 1"):
        read_qrels(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("1 Q0 a 1 0.5", "x.trec:2: 5 fields instead of 6"),
        ("1 Q0 a 1 high x", "x.trec:2: 'high' is not a number"),
        ("1 Q0 a 1 nan x", "x.trec:2: 'nan' is not a number"),
        ("1 Q0 first 1 0.5 x", "x.trec:2: first is there twice for question 1"),
    ],
)
def test_a_malformed_run_is_named_by_line(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "x.trec").write_text(f"1 Q0 first 1 0.9 x\n{line}\n")
    with pytest.raises(EvaluationError, match=complaint):
        read_run(tmp_path / "x.trec")


def test_a_question_that_the_run_lacks_counts_as_nothing_and_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "x.trec", {"1": {"a": 1.0}, "9": {"a": 1.0}}, "test")
    (tmp_path / "qrels").write_text("1 0 a 1\n2 0 a 1\n")
    told = score_run(tmp_path / "x.trec", tmp_path / "qrels")
    assert "Missing in the run, 1: 2." in told and "without judgement, 1: 9." in told
    assert (
        "questions present | 1         | 1.00000" in told
        and "missing as 0      | 2         | 0.50000" in told
    )


PUBLISHED = {"biology": 0.43493, "pony": 0.19552}


@pytest.mark.parametrize("task", PUBLISHED)
def test_runs_score_as_trec_eval_says(task: str, shared_rows: Path) -> None:
    """The real rows are about half of the questions; the figures of both halves are known."""
    run = read_run(shared_rows / "crosscheck" / f"bright_{task}.reasonir_gpt4cot_top100.trec")
    questions = question_file(shared_rows / "bright.questions.jsonl", task)
    rows = trec_scores(
        run, {each.id: dict.fromkeys(each.gold_ids, 1) for each in questions if each.id in run}
    )
    figures = json.loads((shared_rows / "crosscheck" / "bright_reasonir_ndcg.json").read_text())[task]
    ours, whole = np.mean([row["ndcg@10"] for row in rows.values()]), figures["queries"]
    assert round(float(ours), 5) == figures["ndcg@10" if len(rows) == whole else "ndcg@10_shared"]
    if shared_rows == SHARED:
        both = len(rows) * ours + (whole - len(rows)) * figures["ndcg@10_heldout"]
        assert figures["ndcg@10"] == PUBLISHED[task]
        assert both / whole == pytest.approx(PUBLISHED[task], abs=1e-5)
