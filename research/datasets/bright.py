"""BRIGHT: questions whose passages take reasoning to find, with their gold and excluded passages.

    python -m research.datasets.bright --out cache/bright --tasks biology,pony

Writes for each task DIR/TASK.questions.jsonl (rewriting_tasks.py) and the passages beside it, from the hub's
xlangai/BRIGHT (arXiv 2407.12883). Evaluation reads the same from local folders, see `local_task`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click

from research.datasets.hub import download
from research.datasets.json_rows import id_of, read_objects, texts_of, write_json_rows
from research.datasets.questions import Row
from research.datasets.rewriting_tasks import RewritingTask, distinct, read_tasks, task_of_row, write_tasks
from research.errors import DataError, warn

REPO = "xlangai/BRIGHT"
# The published sizes: questions and passages (the short form).
SIZES = {
    "biology": (103, 57_359),
    "earth_science": (116, 121_249),
    "economics": (103, 50_220),
    "psychology": (101, 52_835),
    "robotics": (101, 61_961),
    "stackoverflow": (117, 107_081),
    "sustainable_living": (108, 60_792),
    "leetcode": (142, 413_932),
    "pony": (112, 7_894),
    "aops": (111, 188_002),
    "theoremqa_questions": (194, 188_002),
    "theoremqa_theorems": (76, 23_839),
}
PROXY = "bright_answers"
NONE = "N/A"
PARTS = (("examples", "documents"), ("examples", "long_documents"))  # of the short form, of the long one
KINDS = (".parquet", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class BrightTask:
    """One task: its questions with gold and excluded ids, and its passages, {"id", "contents"} a line."""

    name: str
    questions: tuple[RewritingTask, ...]
    corpus: Path


def hub_task(name: str, folder: Path, long: bool = False, revision: str | None = None) -> BrightTask:
    """A task of the hub, fetched into `folder` if it is not there. Raises DataError."""
    if name not in SIZES:
        raise DataError(f"BRIGHT has no task {name}; there are: {', '.join(SIZES)}")
    files = folder / revision.replace("/", "_") if revision else folder
    examples, documents = (
        download(REPO, [f"{part}/{name}-00000-of-00001.parquet"], files / part / f"{name}.parquet", revision)
        for part in PARTS[long]
    )
    questions = _questions([examples], name, long)
    expected = SIZES[name][0]
    if len(questions) != expected:
        warn(f"{name}: {len(questions)} questions; the published set has {expected}.")
    return BrightTask(name, questions, _corpus([documents], folder))


def local_task(name: str, source: Path, folder: Path, long: bool = False) -> BrightTask:
    """A task of the folder `source`; files that must be written go to `folder`. Raises DataError.

    It reads, as .parquet, .jsonl or .jsonl.gz: NAME.examples and NAME.documents or NAME.long_documents in
    BRIGHT's form, or examples/NAME-* and documents/NAME-* as the hub has them; NAME.questions.jsonl
    (rewriting tasks) with NAME.corpus.jsonl; and the proxy task bright_answers, from bright.questions.jsonl
    and bright_answers.corpus.jsonl.
    """
    if name == PROXY:
        answered = _proxy_questions(source / "bright.questions.jsonl")
        return BrightTask(name, answered, _present(source / f"{PROXY}.corpus.jsonl"))
    if (questions := source / f"{name}.questions.jsonl").exists():
        return BrightTask(name, tuple(read_tasks(questions)), _present(source / f"{name}.corpus.jsonl"))
    examples, documents = (_local(source, part, name) for part in PARTS[long])
    return BrightTask(name, _questions(examples, name, long), _corpus(documents, folder))


def question_file(path: Path, task: str | None = None, long: bool = False) -> tuple[RewritingTask, ...]:
    """The questions of one file with their gold ids, of one `task` if it holds several. Raises DataError.

    Its rows are BRIGHT's examples, rewriting tasks, or questions with a task and gold ids in their metadata.
    """
    if task == PROXY:
        return _proxy_questions(path)
    rows = [(where, {**row, **(row.get("metadata") or {})}) for where, row in _rows([path])]
    names = {str(row["task"]) for _, row in rows if "task" in row}
    if names and task not in names and (task or len(names) > 1):
        raise DataError(f"{path}: holds several tasks, name one: {', '.join(sorted(names))}")
    placed = []
    for where, row in rows:
        if task is None or row.get("task", task) == task:
            name = row.get("bright_id", row.get("id"))
            filled = {"query": row.get("question"), "excluded_ids": [], **row, "id": name}
            placed.append((where, _question(filled, where, task or path.name, long)))
    return tuple(distinct(path, placed))


def _local(source: Path, part: str, name: str) -> list[Path]:
    """The file of one part of a task, or its pieces in their order."""
    for kind in KINDS:
        if (path := source / f"{name}.{part}{kind}").exists():
            return [path]
    if pieces := sorted((source / part).glob(f"{name}-*.parquet")):
        return pieces
    raise DataError(f"{source}: has neither {name}.{part}.jsonl or .parquet nor {part}/{name}-*.parquet")


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path


def _questions(paths: list[Path], name: str, long: bool) -> tuple[RewritingTask, ...]:
    placed = ((where, _question(row, where, name, long)) for where, row in _rows(paths))
    return tuple(distinct(paths[0], placed))


def _question(row: Row, where: str, name: str, long: bool) -> RewritingTask:
    """The task of an example; its lists must be there, and hold N/A if they are empty."""
    fields = {"gold_ids": "gold_ids_long" if long else "gold_ids", "excluded_ids": "excluded_ids"}
    lists = {to: texts_of(row.get(field, ""), field, where) for to, field in fields.items()}
    ids = {to: [each for each in texts if each != NONE] for to, texts in lists.items()}
    if not ids["gold_ids"]:
        raise DataError(f"{where}: " + (f"{name} has no long form" if long else '"gold_ids" is empty'))
    return task_of_row({**row, **ids, "source": name}, where, "query")


def _proxy_questions(path: Path) -> tuple[RewritingTask, ...]:
    """The questions whose accepted answer is known, which is their only relevant passage."""
    placed = []
    for where, row in _rows([path]):
        if answer := (row.get("metadata") or {}).get("answer_doc_id"):
            task = {**row, "gold_ids": [answer], "source": PROXY}
            placed.append((where, task_of_row(task, where)))
    return tuple(distinct(path, placed))


def _corpus(paths: list[Path], folder: Path) -> Path:
    """The documents as a corpus of the retrieval service, written once for the same files."""
    marks = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(repr(marks).encode()).hexdigest()[:12]
    name = paths[0].name.split(".")[0].split("-0")[0]
    target = folder / "corpora" / f"{name}-{key}.jsonl"
    if target.exists():
        return target
    names = [id_of(row.get("id"), where) for where, row in _rows(paths, ["id"])]
    last = {name: place for place, name in enumerate(names)}

    def passages() -> Iterator[dict[str, str]]:
        for place, (where, row) in enumerate(_rows(paths)):
            contents = row.get("content", row.get("contents"))
            if not isinstance(contents, str):
                raise DataError(f'{where}: "content" must be a string')
            # As in BRIGHT's own evaluation the last of equal ids counts. Blank ones cannot be found at all.
            if contents.strip() and last[names[place]] == place:
                yield {"id": names[place], "contents": contents}

    if dropped := len(names) - write_json_rows(target, passages()):
        warn(
            f"{paths[0]}: {dropped} of {len(names):,} documents are blank or repeat an id, and are left out."
        )
    return target


def _rows(paths: list[Path], columns: list[str] | None = None) -> Iterator[tuple[str, Row]]:
    return chain.from_iterable(read_objects(path, "row", columns) for path in paths)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--tasks", default=",".join(SIZES), help="Names, separated by commas.  [default: all 12]")
@click.option("--long", is_flag=True, help="Whole pages instead of passages.")
@click.option("--revision", help="Branch, tag or commit of the hub's dataset.  [default: a pinned commit]")
def main(out: Path, tasks: str, long: bool, revision: str | None) -> None:
    """Fetch tasks of BRIGHT.

    Example: python -m research.datasets.bright --out cache/bright --tasks biology,pony
    """
    for name in tasks.split(","):
        task = hub_task(name, out, long, revision)
        write_tasks(out / f"{name}{'.long' * long}.questions.jsonl", task.questions)
        click.echo(f"{name}: {len(task.questions)} questions; passages: {task.corpus}")


if __name__ == "__main__":
    main()
