"""datasets/questions.py: every form is read, every malformed row is named by file and line, rows fit veRL."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from research.datasets.questions import (
    Question,
    main,
    read_question_file,
    read_questions,
    split_questions,
    training_rows,
    write_questions,
)
from research.datasets.questions import write_rows as write_parquet
from research.errors import DataError

ROW = {"id": "a", "question": "Who?", "golden_answers": ["He"]}
quick = settings(max_examples=40)
MUSIQUE = {
    "id": "3hop1__1_2_3",
    "question": "Where?",
    "answer": "Rome",
    "answer_aliases": ["Roma", "Rome", ""],
    "answerable": True,
    "question_decomposition": [{"question": "step"}],
    "paragraphs": [
        {"idx": 0, "title": "Rome", "paragraph_text": "x", "is_supporting": True},
        {"idx": 1, "title": "Oslo", "paragraph_text": "y", "is_supporting": False},
        {"idx": 2, "title": "Rome", "paragraph_text": "z", "is_supporting": True},
    ],
}

words = st.text(min_size=1).filter(str.strip)
CHECKED = ("supporting_ids", "supporting_titles")  # hypothesis draws constants of the code, these names too
metadata = st.dictionaries(
    st.text().filter(lambda name: name not in CHECKED),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()),
)
questions = st.lists(
    st.builds(
        Question,
        id=words,
        question=words,
        golden_answers=st.lists(words, min_size=1).map(tuple),
        metadata=metadata.filter(lambda given: given.get("answerable") is not False),
    ),
    min_size=1,
    unique_by=lambda question: question.id,
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples of a property test."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fault(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_questions(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@quick
@given(given=questions)
def test_what_is_written_is_read_again(folder: Path, given: list[Question]) -> None:
    for name in ("q.jsonl", "q.jsonl.gz"):
        write_questions(folder / name, given)
        assert read_questions(folder / name) == given


@quick
@given(given=questions, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), bom=st.booleans())
def test_an_array_reads_like_lines(
    folder: Path, given: list[Question], indent: int | None, ascii_only: bool, bom: bool
) -> None:
    rows = [vars(question) for question in given]
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    (folder / "q.json").write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    assert read_questions(folder / "q.json") == given


ABSENT = object()


def changed(**changes: Any) -> bytes:
    """ROW as JSON with some fields changed or absent."""
    return json.dumps(
        {name: value for name, value in (ROW | changes).items() if value is not ABSENT}
    ).encode()


ANSWERS = '"golden_answers" must be a non-empty list of strings'
FAULTS = [
    (b"{", "not valid JSON"),
    (b"nonsense", "not valid JSON"),
    (b"\xff\xfe", "not UTF-8"),
    (b"1" * 5000, "not valid JSON"),
    (b'{"a":' * 100_000, "not valid JSON"),
    (b'"a string"', "a question must be a JSON object"),
    (b"null", "a question must be a JSON object"),
    (changed(id=ABSENT), '"id" must be a non-empty string or an integer'),
    (changed(id=True), '"id" must be a non-empty string or an integer'),
    (changed(id=" "), '"id" must be a non-empty string or an integer'),
    (changed(question=ABSENT), '"question" must be a non-empty string'),
    (changed(question=""), '"question" must be a non-empty string'),
    (changed(question=["Who?"]), '"question" must be a non-empty string'),
    (changed(golden_answers=ABSENT), ANSWERS),
    (changed(golden_answers=[]), ANSWERS),
    (changed(golden_answers="He"), ANSWERS),
    (changed(golden_answers=["He", 1990]), '"golden_answers" holds 1990, which is not a string'),
    (changed(golden_answers=[["He"]]), "\"golden_answers\" holds ['He'], which is not a string"),
    (changed(golden_answers=["He", " "]), '"golden_answers" holds an empty answer'),
    (changed(golden_answers=["\ud800"]), '"golden_answers" holds half a surrogate pair'),
    (changed(metadata=1), '"metadata" must be an object'),
    (changed(metadata={"\ud800": 1}), '"metadata" holds half a surrogate pair'),
    (changed(golden_answers=ABSENT, answer=""), '"answer" holds an empty answer'),
    (changed(golden_answers=ABSENT, answer=1990), '"answer" must be a non-empty string'),
    (changed(golden_answers=ABSENT, answer=[1990]), '"answer" holds 1990, which is not a string'),
    (b'{"data": []}', 'an object with "data" is no question: each line must be one JSON object, or the file'),
    (b'{"\\ud800\\n": 1}', 'an object with "\\ud800\\n" is no question'),
    (b"{}", "an object with no fields is no question"),
    (
        changed(golden_answers=ABSENT, answer="x", answer_aliases="y"),
        '"answer_aliases" must be a list of strings',
    ),
    (changed(id="good 0"), "\"id\" 'good 0' was given on line 1 already"),
]


@pytest.mark.parametrize(("row", "reason"), FAULTS)
@pytest.mark.parametrize("form", ["lines", "array"])
@quick
@given(before=st.integers(1, 5), after=st.integers(0, 3))
def test_a_malformed_row_is_named_by_its_line(
    folder: Path, row: bytes, reason: str, form: str, before: int, after: int
) -> None:
    rows = [json.dumps(ROW | {"id": f"good {place}"}).encode() for place in range(before + after)]
    rows.insert(before, row)
    path = folder / "train.jsonl"
    path.write_bytes(b"\n".join(rows) if form == "lines" else b"[" + b",\n".join(rows) + b"]")
    assert fault(path).startswith(f"{path}:{before + 1}: {reason}")


@quick
@given(content=st.binary(max_size=200), prefix=st.sampled_from([b"", b"[", b"{", b'{"id": "a", ']))
def test_any_bytes_give_questions_or_one_line(folder: Path, content: bytes, prefix: bytes) -> None:
    for name in ("any.jsonl", "any.jsonl.gz"):
        (folder / name).write_bytes(prefix + content)
        fault(folder / name)


@pytest.mark.parametrize("wrapped", [ROW, {"data": [ROW]}])
def test_pretty_printed_objects_and_wrapped_lists_are_told_the_forms_that_are_read(
    tmp_path: Path, wrapped: Any
) -> None:
    path = tmp_path / "q.jsonl"
    for indent in (None, 2):
        path.write_text(json.dumps(wrapped, indent=indent))
        if wrapped is not ROW or indent:
            assert "each line must be one JSON object, or the file one JSON array" in fault(path)


@pytest.mark.parametrize("ending", ["", "]]", "] x", ",]", ", , {}]", "{}]"])
def test_an_array_must_end_well(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "q.json"
    path.write_text("[\n" + json.dumps(ROW) + ending)
    assert fault(path).startswith(f"{path}:2: not valid JSON")


def test_blank_lines_windows_lines_and_integer_ids(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\r\n".join(["", json.dumps(ROW | {"id": 7}), "   ", json.dumps(ROW | {"id": 8}), ""]))
    assert [question.id for question in read_questions(path)] == ["7", "8"]
    path.write_text(f"{json.dumps(ROW | {'id': 7})}\n\n{json.dumps(ROW | {'id': '7'})}")
    assert fault(path) == f"{path}:3: \"id\" '7' was given on line 1 already"


def test_official_musique_rows(tmp_path: Path) -> None:
    unanswerable = MUSIQUE | {"answerable": False, "answer": ""}
    flashrag = ROW | {"id": "b", "metadata": {"answerable": False}}
    read = read_question_file(write_rows(tmp_path / "q.jsonl", [unanswerable, MUSIQUE, flashrag, ROW]))
    assert read.unanswerable == 2
    question = read.questions[0]
    assert question.golden_answers == ("Rome", "Roma")
    assert question.metadata == {
        "hops": 3,
        "question_decomposition": [{"question": "step"}],
        "supporting_titles": ["Rome"],
    }


def test_hops_come_from_metadata_id_or_decomposition() -> None:
    steps: dict[str, Any] = {"question_decomposition": [{}, {}]}
    assert Question("2hop__1", "?", ("x",), {"hops": 4}).hops == 4
    assert Question("2hop__1", "?", ("x",), {"hops": "4"}).hops == 2
    assert Question("dev_0", "?", ("x",), steps).hops == 2
    assert Question("dev_0", "?", ("x",)).hops is None


def test_supporting_ids_count_once() -> None:
    assert Question("a", "?", ("x",), {"supporting_ids": [1, "p", "1"]}).supporting_ids == ["1", "p"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory, not a file"),
        (lambda path: path.write_text(""), "holds no questions"),
        (lambda path: path.write_text("\n \n"), "holds no questions"),
        (lambda path: path.write_text("[ ]"), "holds no questions"),
        (lambda path: write_rows(path, [MUSIQUE | {"answerable": False}]), "holds no answerable questions"),
    ],
)
def test_files_without_questions_are_one_line(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "q.jsonl"
    make(path)
    assert fault(path) == f"{path}: {reason}"


def test_broken_gzip_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps(ROW | {"id": str(n)}) + "\n" for n in range(500)).encode())
    path = tmp_path / "q.jsonl.gz"
    for content in (b"plain text", whole[:-20], whole[:40] + b"xxxx" + whole[44:]):
        path.write_bytes(content)
        assert fault(path).startswith(f"{path}: not a whole gzip file")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_questions(path, [Question("a", "?", ("x",), {"not JSON": object()})])
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("q.jsonl", "old")]
    with pytest.raises(DataError, match="cannot be written"):
        write_questions(path / "below.jsonl", [])


@quick
@given(given=questions, data=st.data(), seed=st.integers())
def test_a_split_is_disjoint_whole_and_repeatable(
    given: list[Question], data: st.DataObject, seed: int
) -> None:
    size = data.draw(st.integers(0, len(given)))
    rest, validation = split_questions(given, size, seed)
    assert len(validation) == size
    assert sorted(rest + validation, key=given.index) == given
    assert (rest, validation) == split_questions(given, size, seed)


def test_a_split_cannot_be_larger_than_its_set() -> None:
    with pytest.raises(DataError, match="3 validation questions cannot be drawn from 2"):
        split_questions([Question("a", "?", ("x",)), Question("b", "?", ("x",))], 3, 0)


@quick
@given(given=questions)
def test_training_rows_keep_everything_and_never_share_an_index(folder: Path, given: list[Question]) -> None:
    path = folder / "train.parquet"
    assert write_parquet(training_rows(given, "train", "world"), path) == len(given)
    rows = pq.read_table(path).to_pylist()
    assert rows == training_rows(given, "train", "world")
    assert [row["extra_info"]["index"] for row in rows] == list(range(len(given)))
    for row, question in zip(rows, given, strict=True):
        assert row["prompt"] == [{"role": "user", "content": question.question}]
        assert row["reward_model"] == {
            "style": "rule",
            "ground_truth": {"target": list(question.golden_answers)},
        }
        assert (row["extra_info"]["id"], row["extra_info"]["hops"]) == (question.id, question.hops)


def test_hops_in_the_data_source() -> None:
    rows = training_rows(
        [Question("2hop__1", "?", ("x",)), Question("a", "?", ("x",))], "train", "musique", True
    )
    assert [row["data_source"] for row in rows] == ["musique_2hop", "musique"]


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train.parquet: there are no questions to write"):
        write_parquet(training_rows([], "train", "x"), tmp_path / "train.parquet")
    assert list(tmp_path.iterdir()) == []


def test_verl_reads_files_of_different_kinds_together(tmp_path: Path) -> None:
    """One file without hops and gold passages, one with them: veRL joins both and finds its fields."""
    rl_dataset = pytest.importorskip("verl.utils.dataset.rl_dataset")
    from omegaconf import OmegaConf

    bare = [Question(f"b{n}", "Who?", ("x",)) for n in range(3)]
    full = [Question(f"2hop__{n}", "Who?", ("x", "y"), {"supporting_ids": ["p", 1]}) for n in range(3)]
    paths = [str(tmp_path / name) for name in ("bare.parquet", "full.parquet")]
    write_parquet(training_rows(bare, "train", "bare"), paths[0])
    write_parquet(training_rows(full, "train", "full", by_hops=True), paths[1])
    config = OmegaConf.create({"filter_overlong_prompts": False, "cache_dir": str(tmp_path)})
    dataset = rl_dataset.RLHFDataset(paths, tokenizer=None, config=config)
    batch = rl_dataset.collate_fn([dataset[place] for place in range(len(dataset))])
    assert list(batch["index"]) == [0, 1, 2, 0, 1, 2]
    assert list(batch["data_source"]) == ["bare"] * 3 + ["full_2hop"] * 3
    assert list(batch["agent_name"]) == ["search_agent"] * 6
    assert [info["hops"] for info in batch["extra_info"]] == [None] * 3 + [2] * 3
    assert [info["supporting_ids"] for info in batch["extra_info"]] == [[]] * 3 + [["p", "1"]] * 3
    assert batch["reward_model"][5]["ground_truth"]["target"] == ["x", "y"]
    assert batch["raw_prompt"][0] == [{"role": "user", "content": "Who?"}]


def test_the_command_joins_files_under_one_count(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "one.train.jsonl", [ROW, MUSIQUE, MUSIQUE | {"answerable": False}])
    second = write_rows(tmp_path / "two.jsonl", [ROW, ROW | {"id": "c"}])
    out = tmp_path / "new" / "train.parquet"
    arguments = [str(first), str(second), "--out", str(out), "--limit", "3", "--split", "dev", "--by-hops"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"{first}: 2 questions (3 hops: 1, hops unknown: 1)\n" in result.output
    assert f"{first}: 1 unanswerable rows left out\n" in result.output
    assert result.output.endswith(f"{out}: 3 rows\n")
    rows = pq.read_table(out).to_pylist()
    assert [(row["data_source"], row["extra_info"]["index"]) for row in rows] == [
        ("one", 0),
        ("one_3hop", 1),
        ("two", 2),
    ]
    assert {row["extra_info"]["split"] for row in rows} == {"dev"}


def test_the_command_tells_faults_in_one_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [ROW, ROW | {"id": "b", "golden_answers": []}])
    command = [
        sys.executable,
        "-m",
        "research.datasets.questions",
        str(path),
        "--out",
        str(tmp_path / "x.parquet"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 1
    assert result.stderr == f'Error: {path}:2: "golden_answers" must be a non-empty list of strings\n'
    assert "Example: python -m research.datasets.questions" in CliRunner().invoke(main, ["--help"]).output


REAL = {"musique": 100, "hotpotqa": 197, "2wiki": 82, "bamboogle": 63}
REAL |= {"musique_train": 100, "hotpotqa_train": 100, "2wiki_train": 500}


def test_questions_of_the_shared_form(tmp_path: Path, shared_rows: Path) -> None:
    for name, count in (REAL if shared_rows == SHARED else {"musique": 3}).items():
        questions = read_questions(shared_rows / f"{name}.questions.jsonl")
        assert len(questions) == count and all(question.hops in (2, 3, 4) for question in questions)
        assert all(question.supporting_titles or name == "bamboogle" for question in questions)
        write_questions(tmp_path / "again.jsonl", questions)
        assert read_questions(tmp_path / "again.jsonl") == questions
        rows = write_parquet(training_rows(questions, "train", name), tmp_path / f"{name}.parquet")
        assert rows == len({question.id for question in questions})
    # BRIGHT is for retrieval: some of its queries have no answer.
    line = 359 if shared_rows == SHARED else 18
    with pytest.raises(DataError, match=re.escape(f'bright.questions.jsonl:{line}: "golden_answers"')):
        read_questions(shared_rows / "bright.questions.jsonl")
