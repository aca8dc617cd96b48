"""A corpus of the paragraphs that question files come with: minutes instead of a download of 79 GB.

    python -m research.training cold-start corpus --out corpus.jsonl train.jsonl dev.jsonl

It reads the official files of MuSiQue (``paragraphs``), HotpotQA and 2Wiki (``context``), and FlashRAG's
rows, which have them in ``metadata``; of its MuSiQue the gold paragraphs alone (``support_paragraph``).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from research.datasets.json_rows import read_objects, unpacked, write_json_rows
from research.errors import DataError

Paragraph = tuple[str, str]
"""Title and text."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", required=True, type=click.Path(path_type=Path), help='JSONL, {"id", "contents"}.')
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def corpus(out: Path, files: tuple[Path, ...]) -> None:
    """Write the paragraphs of FILES, each once."""
    click.echo(f"{out}: {write_corpus(files, out):,} passages")


def write_corpus(files: Iterable[Path], out: Path) -> int:
    """Write the passages of the files, each once, and return their number. Raises DataError for none."""
    files = list(files)
    rows = (row for file in files for _, row in read_objects(file, "question"))
    passages = dict.fromkeys(f"{title}\n{text}" for row in rows for title, text in paragraphs_of(row))
    if not passages:
        raise DataError(
            f"{', '.join(map(str, files))}: the questions come without paragraphs; give a corpus of your "
            "own, or the official files of MuSiQue, HotpotQA or 2Wiki"
        )
    write_json_rows(out, ({"id": str(place), "contents": each} for place, each in enumerate(passages)))
    return len(passages)


def without_paragraphs(file: Path) -> tuple[int, int]:
    """(rows without a paragraph, all rows) of a file of questions."""
    found = [next(paragraphs_of(row), None) for _, row in read_objects(file, "question")]
    return found.count(None), len(found)


def paragraphs_of(row: dict[str, Any]) -> Iterator[Paragraph]:
    """The paragraphs of a row, gold and distracting; none for a row that has none."""
    metadata = row.get("metadata")
    for fields in (row, metadata if isinstance(metadata, dict) else {}):
        yield from _of_paragraphs(fields.get("paragraphs"))
        yield from _of_context(fields.get("context"))
        steps = fields.get("question_decomposition")
        support = [each.get("support_paragraph") for each in _dicts(steps)]
        yield from _of_paragraphs(support)


def _of_paragraphs(paragraphs: Any) -> Iterator[Paragraph]:
    """MuSiQue's: [{"title", "paragraph_text"}]."""
    for each in _dicts(paragraphs):
        title, text = each.get("title"), each.get("paragraph_text", each.get("text"))
        if isinstance(title, str) and isinstance(text, str) and text.strip():
            yield title.strip(), text.strip()


def _of_context(context: Any) -> Iterator[Paragraph]:
    """[[title, [sentence, ...]]], as JSON text too, or the hub's {"title": [...], "sentences": [...]}."""
    context = unpacked(context)
    if isinstance(context, dict):
        texts = context.get("sentences") or context.get("content") or []
        context = list(zip(context.get("title") or [], texts, strict=False))
    for pair in context if isinstance(context, list) else ():
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):
            sentences = pair[1] if isinstance(pair[1], list) else [pair[1]]
            if text := " ".join(str(each).strip() for each in sentences).strip():
                yield pair[0].strip(), text


def _dicts(values: Any) -> list[dict[str, Any]]:
    values = unpacked(values)
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []
