"""Question files: read them, check every row, write them as rows for training.

    python -m data.questions musique.questions.jsonl --out train.parquet

Read are .jsonl, .jsonl.gz and JSON arrays, whose rows have one of two forms:
  ours and FlashRAG's  {"id", "question", "golden_answers": [...], "metadata": {...}}, metadata may be absent
  official MuSiQue     {"id", "question", "answer", "answer_aliases", "answerable", "question_decomposition"}
"""

import gzip
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import click
import pyarrow as pa
import pyarrow.parquet as pq

from data import DataError
from data.json_rows import read_json_rows

Row = dict[str, Any]
Item = TypeVar("Item")

AGENT_NAME = "search_agent"
TEXTS = pa.list_(pa.string())
# Spelled out: types guessed from the rows differ between files (empty lists, missing hops), and veRL cannot
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
            }
        ),
        "agent_name": pa.string(),
    }
)


@dataclass(frozen=True)
class Question:
    """A question and every string that counts as its answer; `metadata` is whatever the data set adds."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def hops(self) -> int | None:
        """Passages to chain, from the metadata or a MuSiQue id (`3hop1__...`); None where nothing tells."""
        hops = self.metadata.get("hops")
        if type(hops) is int and 0 < hops < 100:
            return hops
        if named := re.match("([1-9])hop", self.id):
            return int(named[1])
        steps = self.metadata.get("question_decomposition")
        return len(steps) if isinstance(steps, list) and steps else None

    @property
    def supporting_ids(self) -> list[str]:
        """Ids of the gold passages in the data set's own corpus; empty where it has none."""
        ids = self.metadata.get("supporting_ids")
        return list(dict.fromkeys(map(str, ids))) if isinstance(ids, list) else []


class QuestionFile(NamedTuple):
    """What a file held: its questions in order, and how many rows were passed over as unanswerable."""

    questions: list[Question]
    unanswerable: int


def read_questions(path: str | Path) -> list[Question]:
    """The answerable questions of a file, in its order. Raises DataError naming file, line and field."""
    return read_question_file(path).questions


def read_question_file(path: str | Path) -> QuestionFile:
    """Like `read_questions`, with the count of rows that the data set itself marks as unanswerable."""
    questions: list[Question] = []
    line_of: dict[str, int] = {}
    unanswerable = 0
    for line, row in read_json_rows(Path(path)):
        where = f"{path}:{line}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: a question must be a JSON object")
        question = _question(row, where)
        if question is None:
            unanswerable += 1
            continue
        if question.id in line_of:
            raise DataError(f'{where}: "id" {question.id!r} was given on line {line_of[question.id]} already')
        line_of[question.id] = line
        questions.append(question)
    if not questions:
        raise DataError(f"{path}: holds no {'answerable ' if unanswerable else ''}questions")
    return QuestionFile(questions, unanswerable)


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write JSONL rows `{"id", "question", "golden_answers", "metadata"}`, gzipped if named .gz."""
    with atomic_path(Path(path)) as temporary:
        opener = gzip.open if Path(path).suffix == ".gz" else open
        with cast(BinaryIO, opener(temporary, "wb")) as file:
            for each in questions:
                row = {
                    "id": each.id,
                    "question": each.question,
                    "golden_answers": list(each.golden_answers),
                    "metadata": each.metadata,
                }
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def split_questions(questions: Sequence[Item], validation: int, seed: int) -> tuple[list[Item], list[Item]]:
    """(the rest, `validation` questions or tasks drawn by the seed), both in the given order and disjoint."""
    if not 0 <= validation <= len(questions):
        raise DataError(f"{validation} validation questions cannot be drawn from {len(questions)}")
    drawn = set(random.Random(seed).sample(range(len(questions)), validation))
    rest = [each for place, each in enumerate(questions) if place not in drawn]
    return rest, [questions[place] for place in sorted(drawn)]


def training_rows(
    questions: Iterable[Question], split: str, data_source: str, by_hops: bool = False, first_index: int = 0
) -> list[Row]:
    """Rows for veRL's RLHFDataset, see TRAINING_SCHEMA; `extra_info.index` counts up from `first_index`.

    veRL reports each `data_source` apart; with `by_hops`, that of a two-hop question is `{data_source}_2hop`.
    """
    rows = []
    for index, each in enumerate(questions, first_index):
        answers = list(each.golden_answers)
        source = f"{data_source}_{each.hops}hop" if by_hops and each.hops is not None else data_source
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
        }
        row = {
            "data_source": source,
            "prompt": [{"role": "user", "content": each.question}],
            "ability": "qa",
            "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
            "extra_info": info,
            "agent_name": AGENT_NAME,
        }
        rows.append(row)
    return rows


def write_rows(rows: Sequence[Row], path: str | Path, schema: pa.Schema = TRAINING_SCHEMA) -> int:
    """Write what `training_rows` made, or rows of another schema, as a parquet file and return its length.
    Raises DataError for none.
    """
    if not rows:
        raise DataError(f"{path}: there are no questions to write")
    with atomic_path(Path(path)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
    return len(rows)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary neighbour to write: it becomes `path` when the block ends well, else it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def hop_counts(questions: Iterable[Question]) -> str:
    """For people: `2 hops: 52, 3 hops: 30, hops unknown: 18`."""
    counts = Counter(each.hops for each in questions)
    known = [f"{hops} hops: {counts[hops]}" for hops in sorted(hops for hops in counts if hops is not None)]
    return ", ".join(known + [f"hops unknown: {counts[None]}"] * (None in counts))


def _question(row: Row, where: str) -> Question | None:
    """The question of one row, None for one that has no answer; every field is checked."""
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DataError(f'{where}: "metadata" must be an object')
    if row.get("answerable") is False or metadata.get("answerable") is False:
        return None
    name = _id(row, where)
    if "golden_answers" in row or "answer" not in row:
        answers = _golden_answers(row, where)
    else:
        answers, metadata = _musique_answers(row, where), _musique_metadata(row, name)
    question = Question(name, _text(row, "question", where), answers, metadata)
    _check_unicode(question, where)
    return question


def _id(row: Row, where: str) -> str:
    value = row.get("id")
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return str(value)
    raise DataError(f'{where}: "id" must be a non-empty string or an integer')


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        return value
    raise DataError(f'{where}: "{name}" must be a non-empty string')


def _golden_answers(row: Row, where: str) -> tuple[str, ...]:
    value = row.get("golden_answers")
    if isinstance(value, list) and value and all(isinstance(each, str) and each.strip() for each in value):
        return tuple(value)
    raise DataError(f'{where}: "golden_answers" must be a non-empty list of strings')


def _musique_answers(row: Row, where: str) -> tuple[str, ...]:
    aliases = row.get("answer_aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(each, str) for each in aliases):
        raise DataError(f'{where}: "answer_aliases" must be a list of strings')
    named = [each for each in aliases if each.strip()]
    return tuple(dict.fromkeys([_text(row, "answer", where), *named]))


def _musique_metadata(row: Row, id_: str) -> dict[str, Any]:
    """Hops and decomposition; the paragraphs, nine tenths of the file, stay behind."""
    metadata = {name: row[name] for name in ("question_decomposition",) if name in row}
    hops = Question(id_, "", (), metadata).hops
    return metadata if hops is None else {"hops": hops, **metadata}


def _check_unicode(question: Question, where: str) -> None:
    """JSON can spell half a surrogate pair, which no UTF-8 file, parquet file or tokenizer can hold."""
    for name in ("id", "question", "golden_answers", "metadata"):
        try:
            json.dumps(getattr(question, name), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(f'{where}: "{name}" holds half a surrogate pair') from error


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Parquet file to write.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take only the first N questions.")
@click.option("--split", default="train", show_default=True, help="Name stored with every row.")
@click.option("--data-source", help="Name in veRL's metrics.  [default: the file's name up to a dot]")
@click.option("--by-hops", is_flag=True, help="Add the hops to that name: NAME_2hop, NAME_3hop.")
def main(
    files: tuple[Path, ...], out: Path, limit: int | None, split: str, data_source: str | None, by_hops: bool
) -> None:
    """Convert question files into one parquet file that veRL trains or validates on.

    Example: python -m data.questions musique.questions.jsonl --out train.parquet --limit 1000
    """
    rows: list[Row] = []
    for file in files:
        questions, unanswerable = read_question_file(file)
        click.echo(f"{file}: {len(questions)} questions ({hop_counts(questions)})")
        if unanswerable:
            click.echo(f"{file}: {unanswerable} unanswerable rows left out")
        source = data_source or file.name.split(".")[0]
        # One count over all files: rows that shared an index would end up in one GRPO group.
        rows += training_rows(questions, split, source, by_hops, first_index=len(rows))
    click.echo(f"{out}: {write_rows(rows[:limit], out)} rows")


if __name__ == "__main__":
    main()
