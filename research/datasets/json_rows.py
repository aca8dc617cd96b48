"""Rows of files with their places, .jsonl, .jsonl.gz, JSON arrays, parquet, csv; checks of their fields."""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from research.errors import DataError
from research.files import atomic_path, filling

Rows = Iterable[Mapping[str, Any]]
BATCH = 256
BLANK = re.compile(r"\s*")
KINDS = "each line must be one JSON object, or the file one JSON array, both also as .gz, or .parquet"


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(line, row) of any such file, in little memory; rows of .parquet, limited to `columns`, count from 1.

    Raises DataError as `read_json_rows`.
    """
    if path.suffix != ".parquet":
        yield from _table_rows(path) if path.suffix == ".csv" else read_json_rows(path)
        return
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(BATCH, columns=columns))
            for number, row in enumerate(chain.from_iterable(batches), 1):
                yield number, row
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as parquet after row {number} ({reason})") from error


def unpacked(value: Any) -> Any:
    """The value of a JSON text, which rows on the hub have instead of lists; other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _table_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of a table whose first line names its columns, in small letters here."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            for row in rows:
                if None in row:  # the cells that have no column, of an unquoted comma
                    raise DataError(
                        f"{path}:{rows.line_num}: has more cells than columns; quote what holds a comma"
                    )
                yield rows.line_num, {str(name).lower(): value for name, value in row.items()}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error


def read_objects(
    path: Path, what: str, columns: list[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE:LINE`, row) of any such file. Raises DataError, also for a row (a `what`) that is no object."""
    for line, row in read_rows(path, columns):
        if not isinstance(row, dict):
            raise DataError(f"{path}:{line}: a {what} must be a JSON object")
        yield f"{path}:{line}", row


def read_json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, parsed JSON) of each row; a row of an array is on the line where it starts.

    Raises DataError naming file and line: not JSON, not UTF-8, cut short, or unreadable.
    """
    with _opened(path) as file:
        is_first = True
        for line, raw in enumerate(file, 1):
            content = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
            if not content.strip():
                continue
            if is_first and content.lstrip().startswith(b"["):
                yield from _array_rows(content + file.read(), path, line)
                return
            is_first = False
            text = _decoded(content, path, line)
            with _json_faults(f"{path}:{line}"):
                row = json.loads(text)
            yield line, row


def _array_rows(content: bytes, path: Path, line: int) -> Iterator[tuple[int, Any]]:
    """(line, row) of a JSON array that starts on `line`; parsed row by row, to name the line of a fault."""
    text = _decoded(content, path, line)
    decode = json.JSONDecoder().raw_decode
    counted, at = 0, _next(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        return
    mark = ","
    while mark == ",":
        line += text.count("\n", counted, at)
        counted, where = at, f"{path}:{line}"
        with _json_faults(where):
            row, at = decode(text, at)
        yield line, row
        at = _next(text, at)
        mark, at = text[at : at + 1], _next(text, at + 1)
    if mark != "]" or at < len(text):
        raise DataError(f"{where}: not valid JSON after this row")


def _next(text: str, at: int) -> int:
    """The place of the first character from `at` on that is not blank."""
    match = BLANK.match(text, at)
    return match.end() if match else len(text)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.is_dir():
        raise DataError(f"{path}: is a directory, not a file")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield cast(BinaryIO, file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


@contextmanager
def _json_faults(where: str) -> Iterator[None]:
    """Name the place of JSON that is malformed, nested too deeply, or has a number with too many digits."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}); {KINDS}") from error


def _decoded(content: bytes, path: Path, line: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: not UTF-8; {KINDS}") from error


def write_json_rows(path: Path, rows: Rows) -> int:
    """Write one JSON object per line, .gz or not, whole or not at all; returns how many. Raises DataError."""
    opener = gzip.open if path.suffix == ".gz" else open
    with atomic_path(path) as temporary, opener(temporary, "wt", encoding="utf-8") as file:
        return sum(1 for row in rows if file.write(json.dumps(row, ensure_ascii=False) + "\n"))


def write_splits(folder: Path, kind: str, splits: Mapping[str, Rows], corpus: Rows) -> None:
    """Write a SPLIT.KIND.jsonl per split, and then corpus.jsonl; all or none. Raises DataError."""
    with filling(folder) as scratch:
        for split, rows in splits.items():
            write_json_rows(scratch / f"{split}.{kind}.jsonl", rows)
        write_json_rows(scratch / "corpus.jsonl", corpus)


def id_of(value: Any, where: str, hint: str = "") -> str:
    """An id as text. Raises DataError, with the hint if there is none, unless it is a text or an integer."""
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return str(value)
    raise DataError(f'{where}: "id" must be a non-empty string or an integer{hint * (value is None)}')


def text_of(value: Any, name: str, where: str, hint: str = "") -> str:
    """The text of the field `name`. Raises DataError, with the hint if there is none, if it is blank."""
    if isinstance(value, str) and value.strip():
        return value
    raise DataError(f'{where}: "{name}" must be a non-empty string{hint * (value is None)}')


def texts_of(value: Any, name: str, where: str, kinds: tuple[type, ...] = (str, int)) -> tuple[str, ...]:
    """The list of the field `name` as texts; none for null. Raises DataError, also for blank ones."""
    values = [] if value is None else value
    if not isinstance(values, list) or any(type(e) not in kinds or not str(e).strip() for e in values):
        raise DataError(f'{where}: "{name}" must be a list of strings, none of them empty')
    return tuple(map(str, values))


def check_storable(values: Mapping[str, Any], where: str) -> None:
    """Raise DataError for values that JSON files cannot hold: half a surrogate pair, dates, bytes."""
    for name, value in values.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(f'{where}: "{name}" holds half a surrogate pair') from error
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f'{where}: "{name}" holds what JSON cannot ({error})') from error
