"""Question files: read them, check every row, write them as rows for training.

    python -m research.datasets.questions musique.questions.jsonl --out train.parquet

Files may be .jsonl, JSON arrays, both also as .gz, or .parquet; question_forms.py has the forms of rows.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import pyarrow as pa
import pyarrow.parquet as pq

from research.datasets.json_rows import check_storable, read_objects, write_json_rows
from research.datasets.question_forms import Question, Row, question_of
from research.errors import DataError
from research.files import atomic_path

Item = TypeVar("Item")

AGENT_NAME = "search_agent"
TEXTS = pa.list_(pa.string())
# Explicit: types inferred from the rows differ between files (empty lists, missing hops), and veRL cannot
# concatenate such files.
TRAINING_SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.struct({"target": TEXTS})}),
        "extra_info": pa.struct(
            {
                "index": pa.int64(),
                "id": pa.string(),
                "question": pa.string(),
                "golden_answers": TEXTS,
                "split": pa.string(),
                "hops": pa.int64(),
                "supporting_ids": TEXTS,
                "control": pa.string(),
                "decoys": TEXTS,
                "metadata": pa.string(),  # JSON: each file has other keys
            }
        ),
        "agent_name": pa.string(),
    }
)


class QuestionFile(NamedTuple):
    """The questions of a file in order, and the number of rows that were skipped as unanswerable."""

    questions: list[Question]
    unanswerable: int


def read_questions(path: str | Path) -> list[Question]:
    """The answerable questions of a file, in its order. Raises DataError naming file, line and field."""
    return read_question_file(path).questions


def read_question_file(
    path: str | Path, form: Callable[[Row, str], Question | None] = question_of
) -> QuestionFile:
    """Like `read_questions`, for rows that `form` understands, with the number of unanswerable ones.

    An id that a row of another `data_source` already has is prefixed with the row's `data_source`:
    Search-R1's files number each of their data sets from 0.
    """
    questions: dict[str, Question] = {}
    origins: dict[str, tuple[str, Any]] = {}
    unanswerable = 0
    for where, row in read_objects(Path(path), "question"):
        question = form(row, where)
        if question is None:
            unanswerable += 1
            continue
        source = row.get("data_source")
        if isinstance(source, str) and origins.get(question.id, ("", source))[1] != source:
            question = replace(question, id=f"{source}_{question.id}")
        if question.id in questions:
            first = origins[question.id][0].rpartition(":")[2]
            raise DataError(f'{where}: "id" {question.id!r} was given on line {first} already')
        check_storable(vars(question), where)
        questions[question.id], origins[question.id] = question, (where, source)
    if not questions:
        raise DataError(f"{path}: holds no {'answerable ' if unanswerable else ''}questions")
    return QuestionFile(list(questions.values()), unanswerable)


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write JSONL rows `{"id", "question", "golden_answers", "metadata"}`, gzipped if named .gz."""
    write_json_rows(Path(path), map(vars, questions))


def split_questions(questions: Sequence[Item], validation: int, seed: int) -> tuple[list[Item], list[Item]]:
    """(the rest, `validation` questions or tasks drawn by the seed), both in the given order and disjoint."""
    if not 0 <= validation <= len(questions):
        raise DataError(f"{validation} validation questions cannot be drawn from {len(questions)}")
    drawn = set(random.Random(seed).sample(range(len(questions)), validation))
    rest = [each for place, each in enumerate(questions) if place not in drawn]
    return rest, [questions[place] for place in sorted(drawn)]


def held_out(
    questions: Sequence[Item], validation: int, test: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """(validation, test): two disjoint draws, the second of at most as many as are left."""
    rest, validating = split_questions(questions, validation, seed)
    return validating, split_questions(rest, min(test, len(rest)), seed)[1]


def training_rows(
    questions: Iterable[Question], split: str, data_source: str, by_hops: bool = False, first_index: int = 0
) -> list[Row]:
    """Rows for veRL's RLHFDataset, see TRAINING_SCHEMA; `extra_info.index` starts at `first_index`.

    veRL reports each `data_source` separately; that of the question's own row is appended to ours; with
    `by_hops` a two-hop question has `{data_source}_2hop`.
    """
    rows = []
    for index, each in enumerate(questions, first_index):
        answers = list(each.golden_answers)
        hops = f"{each.hops}hop" if by_hops and each.hops is not None else ""
        source = "_".join(filter(None, (data_source, each.data_source, hops)))
        info = {
            "index": index,
            "id": each.id,
            "question": each.question,
            "golden_answers": answers,
            "split": split,
            "hops": each.hops,
            "supporting_ids": each.supporting_ids,
            "control": "",
            "decoys": [],
            "metadata": json.dumps(each.metadata, default=str),
        }
        truth = {"style": "rule", "ground_truth": {"target": answers}}
        rows.append({**training_row(source, each.question, "qa", info), "reward_model": truth})
    return rows


def training_row(data_source: str, question: str, ability: str, info: Row) -> Row:
    """A row for veRL's RLHFDataset that asks a question."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": question}],
        "ability": ability,
        "extra_info": info,
        "agent_name": AGENT_NAME,
    }


def write_rows(rows: Sequence[Row], path: str | Path, schema: pa.Schema = TRAINING_SCHEMA) -> int:
    """Write rows as a parquet file and return their number. Raises DataError if there are none."""
    if not rows:
        raise DataError(f"{path}: there are no questions to write")
    with atomic_path(Path(path)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
    return len(rows)


def hop_counts(questions: Iterable[Question]) -> str:
    """For people: `2 hops: 52, 3 hops: 30, hops unknown: 18`."""
    counts = Counter(each.hops for each in questions)
    known = [f"{hops} hops: {counts[hops]}" for hops in sorted(hops for hops in counts if hops is not None)]
    return ", ".join(known + [f"hops unknown: {counts[None]}"] * (None in counts))


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Parquet file to write.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take only the first N questions.")
@click.option("--split", default="train", show_default=True, help="Name stored with every row.")
@click.option("--data-source", help="Name in veRL's metrics.  [default: the file's name up to a dot]")
@click.option("--by-hops", is_flag=True, help="Add the hops to that name: NAME_2hop, NAME_3hop.")
def main(
    files: tuple[Path, ...], out: Path, limit: int | None, split: str, data_source: str | None, by_hops: bool
) -> None:
    """Convert question files into one parquet file that veRL trains or validates on.

    Example: python -m research.datasets.questions musique.questions.jsonl --out train.parquet --limit 1000
    """
    rows: list[Row] = []
    for file in files:
        questions, unanswerable = read_question_file(file)
        click.echo(f"{file}: {len(questions)} questions ({hop_counts(questions)})")
        if unanswerable:
            click.echo(f"{file}: {unanswerable} unanswerable rows left out")
        source = data_source or file.name.split(".")[0]
        # Numbered across all files: rows that shared an index would end up in one GRPO group.
        rows += training_rows(questions, split, source, by_hops, first_index=len(rows))
    click.echo(f"{out}: {write_rows(rows[:limit], out)} rows")


if __name__ == "__main__":
    main()
