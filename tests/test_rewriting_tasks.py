"""Files of rewriting tasks: both forms give back what was written, and faults are placed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.datasets.rewriting_tasks import RewritingTask, read_tasks, write_tasks
from research.errors import DataError

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
TASK = st.builds(
    RewritingTask, id=TEXT, question=TEXT, positives=TEXTS, gold_ids=TEXTS, excluded_ids=TEXTS, source=TEXT
).filter(lambda task: not {*task.gold_ids} & {*task.excluded_ids})


@settings(max_examples=30)
@given(tasks=st.lists(TASK, min_size=1, max_size=4, unique_by=lambda task: task.id))
@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.parquet"])
def test_tasks_come_back_as_written(tmp_path_factory, name, tasks):
    path = tmp_path_factory.mktemp("tasks") / name
    write_tasks(path, tasks)
    assert read_tasks(path) == tasks


def test_only_id_and_question_are_needed_and_integers_are_ids(tmp_path: Path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"id": 7, "question": "why?", "gold_ids": [1, "b"]}\n')
    assert read_tasks(path) == [RewritingTask("7", "why?", gold_ids=("1", "b"))]


def test_what_a_row_repeats_is_there_once(tmp_path: Path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(
        '{"id": "a", "question": "q", "gold_ids": [1, "b c", "1", "b c"], "positives": ["p", "p"]}\n'
    )
    (task,) = read_tasks(path)
    assert (task.gold_ids, task.positives) == (("1", "b c"), ("p",))


@pytest.mark.parametrize(
    "row, fault",
    [
        ('{"data": []}', 'an object with "data" is no task.* each line must be one JSON object'),
        ('{"id": "a"}', '"question" must be'),
        ('{"question": "q"}', '"id" must be'),
        ('{"id": "a", "question": "q", "positives": "text"}', '"positives" must be a list'),
        ('{"id": "a", "question": "q", "gold_ids": [null]}', '"gold_ids" must be a list'),
        ('{"id": "a", "question": "q", "gold_ids": ["b", " "]}', "none of them empty"),
        ('{"id": "a", "question": "q", "gold_ids": [["b"]]}', '"gold_ids" must be a list'),
        ('{"id": "a", "question": "q", "gold_ids": [1.0]}', '"gold_ids" must be a list'),
        (
            '{"id": "a", "question": "q", "gold_ids": ["b", 1], "excluded_ids": ["1"]}',
            '\'1\' is in "gold_ids" and in "excluded_ids"',
        ),
        ('{"id": "first", "question": "q"}', "was given already"),
        ("[1", "not valid JSON"),
    ],
)
def test_faults_are_placed(tmp_path: Path, row: str, fault: str):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"id": "first", "question": "q"}\n' + row + "\n")
    with pytest.raises(DataError, match="tasks.jsonl:2.*" + fault):
        read_tasks(path)
