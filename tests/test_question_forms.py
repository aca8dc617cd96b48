"""question_forms.py: the forms in which question sets are published, from every kind of file, whole and
damaged.
"""

import datetime
import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_questions import MUSIQUE, ROW, fault, write_rows

from research.datasets.questions import Question, read_questions, training_rows, write_questions
from research.datasets.questions import write_rows as write_parquet
from research.errors import DataError
from research.metrics.answers import score_answer

HOTPOT = {
    "_id": "5a8b",
    "question": "Where?",
    "answer": "Rome",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Rome", 0], ["Italy", 1], ["Rome", 3]],
    "context": [["Rome", ["A city.", "Old."]], ["Oslo", ["A city."]], ["Italy", ["A land.", "South."]]],
}
TWO_WIKI = HOTPOT | {"type": "comparison", "evidences": [["Rome", "country", "Italy"]], "entity_ids": "Q1_Q2"}
HUB_FACTS = {"title": ["Rome", "Italy", "Rome"], "sent_id": [0, 1, 3]}  # as columns, so the hub has them
HUB_HOTPOT = {**HOTPOT, "id": "5a8b", "supporting_facts": HUB_FACTS}
del HUB_HOTPOT["_id"], HUB_HOTPOT["context"]
HUB_TWO_WIKI = TWO_WIKI | {name: json.dumps(TWO_WIKI[name]) for name in ("supporting_facts", "context")}
FLASHRAG = {
    "id": "dev_0",
    "question": "Where?",
    "golden_answers": ["Rome"],
    "metadata": {"type": "bridge", "supporting_facts": HUB_FACTS},
}
FLASHRAG_MUSIQUE = FLASHRAG | {
    "metadata": {
        "question_decomposition": [
            {"question": "step", "support_paragraph": {"title": title, "is_supporting": True}}
            for title in ("Rome", "Italy")
        ]
    }
}
TRUTH = {"style": "rule", "ground_truth": {"target": ["Rome", "Roma"]}}
SEARCH_R1 = {
    "id": "test_0",
    "question": "Where?",
    "golden_answers": ["Rome", "Roma"],
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Search first.\nExample: Beijing. Question: Where?\n"}],
    "ability": "fact-reasoning",
    "reward_model": TRUTH,
    "extra_info": {"index": 0, "split": "test"},
    "metadata": None,
}
VERL = {name: SEARCH_R1[name] for name in ("data_source", "prompt", "reward_model", "extra_info")}
FORMS = {
    "ours": ROW,
    "musique": MUSIQUE,
    "hotpotqa": HOTPOT,
    "2wiki": TWO_WIKI,
    "hotpotqa of the hub": HUB_HOTPOT,
    "2wiki of the hub": HUB_TWO_WIKI,
    "flashrag": FLASHRAG,
    "flashrag's musique": FLASHRAG_MUSIQUE,
    "search-r1": SEARCH_R1,
    "verl": VERL,
}


def write_as(path: Path, rows: list[Any]) -> Path:
    """The rows as the file's name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=schema_of(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def schema_of(rows: list[Any]) -> pa.Schema:
    """With the columns of all rows; Arrow itself takes those of the first."""
    return pa.unify_schemas(
        [pa.Table.from_pylist([row]).schema for row in rows], promote_options="permissive"
    )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples of a property test."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


CASES = [(form, name) for form in FORMS for name in ("q.json", "q.jsonl.gz", "q.parquet")]
# Lists that hold a text and a number cannot be in a parquet file.
CASES = [each for each in CASES if each not in (("hotpotqa", "q.parquet"), ("2wiki", "q.parquet"))]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_published_forms_are_read_from_every_kind_of_file(tmp_path: Path, form: str, name: str) -> None:
    [question] = read_questions(write_as(tmp_path / name, [FORMS[form]]))
    names = {"hotpotqa": "5a8b", "2wiki": "5a8b", "musique": "3hop1__1_2_3", "search-r1": "test_0"}
    if form in names:
        assert question.id == names[form]
    if form == "ours":
        assert (question.question, question.golden_answers) == ("Who?", ("He",))
        return
    assert (question.question, question.golden_answers[0]) == ("Where?", "Rome")
    gold = [] if form in ("search-r1", "verl") else ["Rome"] if form == "musique" else ["Rome", "Italy"]
    assert question.supporting_titles == gold
    assert "context" not in question.metadata and "paragraphs" not in question.metadata


def test_rows_of_verl_need_no_id_and_number_each_data_set_from_nought(tmp_path: Path) -> None:
    others = [VERL | {"data_source": name} for name in ("hotpotqa", "musique")]
    read = read_questions(write_as(tmp_path / "test.parquet", [VERL, *others]))
    assert [each.id for each in read] == ["test_0", "hotpotqa_test_0", "musique_test_0"]
    assert {each.golden_answers for each in read} == {("Rome", "Roma")}
    bare = {name: VERL[name] for name in ("prompt", "reward_model")}
    bare |= {"reward_model": {"ground_truth": "Rome"}, "prompt": [{"role": "user", "content": "Where?"}]}
    assert read_questions(write_as(tmp_path / "bare.parquet", [bare] * 2))[1] == Question(
        "row_2", "Where?", ("Rome",)
    )
    assert "was given on line 1 already" in fault(
        write_rows(tmp_path / "same.jsonl", [SEARCH_R1] * 2 + [VERL])
    )


def test_our_own_training_rows_read_back(tmp_path: Path) -> None:
    asked = [
        Question("2hop__1", "Who?", ("x", "y"), {"hops": 2, "supporting_ids": ["p1"]}),
        Question("b", "?", ("z",)),
    ]
    write_parquet(training_rows(asked, "train", "musique", by_hops=True), tmp_path / "train.parquet")
    assert read_questions(tmp_path / "train.parquet") == asked


def test_no_parquet_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    path.write_text(json.dumps(ROW))
    assert fault(path).startswith(f"{path}: cannot be read as parquet")
    whole = write_as(path, [SEARCH_R1] * 3).read_bytes()
    for broken in (whole[:-20], whole[:80], b"", b"PAR1" + b"x" * 100 + b"PAR1"):
        path.write_bytes(broken)
        assert fault(path).startswith(f"{path}: cannot be read as parquet")
    path.with_suffix(".jsonl").write_bytes(whole)
    assert "one JSON array, both also as .gz, or .parquet" in fault(path.with_suffix(".jsonl"))
    dated = ROW | {"metadata": {"day": datetime.date(2024, 1, 1)}}
    assert '"metadata" holds what JSON cannot' in fault(write_as(path, [dated]))


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "contents": "a passage"},
        {"id": "a", "question": "Who?"},
        {"id": "a", "question": "Who?", "answers": {"text": ["He"]}},
        {"question": "Who?", "answer": "He"},
        HOTPOT | {"answer": None},
        VERL | {"reward_model": None},
        VERL | {"prompt": [{"role": "user"}]},
    ],
)
def test_another_form_is_refused_with_those_that_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    told = fault(write_rows(tmp_path / "q.jsonl", [row]))
    assert told.startswith(f"{tmp_path / 'q.jsonl'}:1: ")
    assert all(form in told for form in ("FlashRAG", "MuSiQue", "HotpotQA", "2Wiki", "Search-R1"))


def test_gold_passages_of_another_form_are_refused_not_counted_in_part(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"

    def told(row: dict[str, Any], **changes: Any) -> str:
        return fault(write_rows(path, [row | changes]))

    for facts in (5, ["Rome"], [["Rome", 0], []], [["Rome", 0], [None, 1]], {"title": "Rome"}, "[", "5"):
        assert '"supporting_facts" must have the form' in told(HOTPOT, supporting_facts=facts)
        [free] = read_questions(write_rows(path, [ROW | {"metadata": {"supporting_facts": facts}}]))
        assert free.supporting_titles == []
    for paragraphs in (5, ["Rome"], [{"is_supporting": True}], [{"title": "Rome", "is_supporting": "no"}]):
        assert '"paragraphs" must have the form' in told(MUSIQUE, paragraphs=paragraphs)
    for gold in ({"supporting_ids": [None]}, {"supporting_ids": "p1"}, {"supporting_titles": ["Rome", ""]}):
        assert "none of them empty" in told(ROW, metadata=gold)


JUNK = st.sampled_from(
    [
        None,
        True,
        0,
        -7,
        1.5,
        float("nan"),
        "",
        " ",
        "\u00a0",
        "x",
        "\ud800",
        "Zu\u0308rich",
        [],
        {},
        [[]],
        [None],
    ]
    + [["a", ["b"]], [{}], {"title": 1}, {"target": None}, {"ground_truth": []}, "[1]", "A", "*", ["The The"]]
)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one place in it, at any depth, replaced, taken out, or repeated."""
    inside = isinstance(value, dict | list) and len(value) > 0
    if not inside or draw(st.integers(0, 3)) == 0:
        return draw(JUNK)
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copy = value.copy()
    match draw(st.sampled_from(["change"] * 3 + ["take out", "repeat"])):
        case "take out":
            del copy[place]
        case "repeat" if isinstance(copy, list):
            copy.append(copy[place])
        case _:
            copy[place] = mutated(draw, copy[place])
    return copy


@st.composite
def changed_rows(draw: st.DrawFn) -> Any:
    row: Any = draw(st.sampled_from(list(FORMS.values())))
    for _ in range(draw(st.integers(1, 3))):
        row = mutated(draw, row)
    return row


@settings(max_examples=200)
@given(row=changed_rows(), name=st.sampled_from(["q.json", "q.jsonl", "q.jsonl.gz", "q.parquet"]))
def test_any_change_of_a_published_row_is_read_or_told_in_one_line(folder: Path, row: Any, name: str) -> None:
    path = folder / name
    try:
        write_as(path, [ROW, row])
    except (pa.ArrowException, TypeError, AttributeError, UnicodeError):
        return  # what parquet has no type for
    try:
        read = read_questions(path)
    except DataError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)
        return
    for question in read:
        assert question.question.strip() and question.golden_answers
        assert all(isinstance(each, str) and each.strip() for each in question.golden_answers)
        assert {*question.supporting_titles} <= {"Rome", "Italy"} | {"x", "A", "*", "Zu\u0308rich", "[1]"}
        assert score_answer("", question.golden_answers) == (0, 0, 0)
        assert score_answer(question.golden_answers[-1], question.golden_answers) == (1, 1, 1)
    write_questions(folder / "again.jsonl", read)
    assert repr(read_questions(folder / "again.jsonl")) == repr(read)
    assert write_parquet(training_rows(read, "train", "any"), folder / "rows.parquet") == len(read)


def test_nq_open_and_bamboogles_table_are_read_as_they_come(tmp_path: Path) -> None:
    nq, bamboogle = tmp_path / "NQ-open.dev.jsonl", tmp_path / "bamboogle.csv"
    nq.write_text('{"question": "who sings it", "answer": ["Ann", "Bea"]}\n' * 2)
    bamboogle.write_text('Question,Answer\n"Who ruled, in 1812?",James Madison\n"Two\nlines?",x\n')
    first, second = read_questions(nq)
    assert first.golden_answers == ("Ann", "Bea") and first.id != second.id
    asked = {each.question: each.golden_answers for each in read_questions(bamboogle)}
    assert asked == {"Who ruled, in 1812?": ("James Madison",), "Two\nlines?": ("x",)}
    bamboogle.write_text("Question,Answer\nWho?,\n")
    with pytest.raises(DataError, match="bamboogle.csv:2.*answer"):
        read_questions(bamboogle)
    with pytest.raises(DataError, match="no such file"):
        read_questions(tmp_path / "none.csv")
