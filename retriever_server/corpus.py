"""Corpus: JSON Lines in, checked row by row; out a canonical copy with row offsets, read by memory map.

A source row is `{"id": ..., "contents": ...}`; further keys are dropped. The canonical copy keeps exactly
these two, so its SHA-256 is the corpus fingerprint, as `sha256sum corpus.jsonl` in an index directory shows.
"""

import gzip
import hashlib
import json
import mmap
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from retriever_server.errors import BUILD_AGAIN, RetrieverError

CORPUS_FILE = "corpus.jsonl"
OFFSETS_FILE = "offsets.npy"
_AFTER_ID = b'", "contents": '  # in a row of the canonical copy


class Document(NamedTuple):
    """One passage. `id` is always a string, also where the source gives an integer."""

    id: str
    contents: str

    def line(self) -> bytes:
        """The canonical row, with its line feed."""
        return json.dumps(self._asdict(), ensure_ascii=False).encode() + b"\n"


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair: no UTF-8 and no tokenizer takes those."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class CorpusSummary:
    """What identifies a corpus: number of rows, size and SHA-256 of its canonical copy."""

    count: int
    bytes: int
    sha256: str


def read_documents(path: Path) -> Iterator[tuple[int, Document]]:
    """Yield (line number from 1, document) for each row; blank lines are passed over, `.gz` is unpacked.

    Raises RetrieverError that names file and line at the first malformed row.
    """
    with _open(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parse(line)
        except ValueError as error:
            raise RetrieverError(f"{path}:{number}: {error}") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RetrieverError(f"{path}:{number + 1}: broken gzip file: {error}") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _parse(line: bytes) -> Document:
    """Check one row; a ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object, this one is {type(row).__name__}")
    for field in Document._fields:
        if field not in row:
            raise ValueError(f'"{field}" is missing')
    return Document(_parse_id(row["id"]), _parse_contents(row["contents"]))


def _parse_id(value: object) -> str:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer and not (isinstance(value, str) and value):
        raise ValueError(f'"id" must be an integer or a non-empty string, not {value!r}')
    return _encodable("id", str(value))


def _parse_contents(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'"contents" must be a string, not {type(value).__name__}')
    if not value.strip():
        raise ValueError('"contents" is empty')
    return _encodable("contents", value)


def _encodable(field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer takes
        raise ValueError(f'"{field}" holds a broken Unicode character: {error.reason}') from error
    return text


def scan_corpus(path: Path) -> CorpusSummary:
    """Read the whole source once: check every row and that no id stands twice, and take the fingerprint.

    Memory: 8 bytes a row. Raises RetrieverError at a malformed row, a repeated id, or a corpus without rows.
    """
    digest, size, id_hashes = hashlib.sha256(), 0, array("q")
    for _, document in _with_progress(read_documents(path), "checking the corpus"):
        line = document.line()
        digest.update(line)
        size += len(line)
        id_hashes.append(hash(document.id))
    if not id_hashes:
        raise RetrieverError(f"{path}: the corpus has no rows")
    _refuse_repeated_ids(path, id_hashes)
    return CorpusSummary(len(id_hashes), size, digest.hexdigest())


def _refuse_repeated_ids(path: Path, id_hashes: array) -> None:
    ordered = np.sort(np.frombuffer(id_hashes, dtype=np.int64))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    lines: dict[str, int] = {}  # two ids may share a hash by chance: only a second look at the ids can tell
    for number, (name, _) in read_documents(path):
        if name in lines:
            raise RetrieverError(f'{path}:{number}: id "{name}" already stands in line {lines[name]}')
        if hash(name) in suspects:
            lines[name] = number


def write_corpus(source: Path, directory: Path, expected: CorpusSummary) -> None:
    """Write the canonical copy and its row offsets (int64 [count + 1]) into `directory`.

    Raises RetrieverError when the source is no longer the one that `expected` was taken from.
    """
    offsets = np.lib.format.open_memmap(
        directory / OFFSETS_FILE, mode="w+", dtype=np.int64, shape=(expected.count + 1,)
    )
    digest, written = hashlib.sha256(), 0
    with (directory / CORPUS_FILE).open("wb") as copy:
        documents = _with_progress(read_documents(source), "copying the corpus", expected.count)
        for row, (_, document) in enumerate(documents):
            line = document.line()
            copy.write(line)
            digest.update(line)
            written += len(line)
            if row < expected.count:
                offsets[row + 1] = written
    offsets.flush()
    if digest.hexdigest() != expected.sha256:
        raise RetrieverError(f"{source}: changed while it was being read; build again")


def _with_progress(
    documents: Iterator[tuple[int, Document]], what: str, count: int | None = None
) -> "tqdm[tuple[int, Document]]":
    return tqdm(documents, desc=what, total=count, unit=" rows", mininterval=1, delay=2, leave=False)


class Corpus:
    """The canonical copy in an index directory: `corpus[row]` is a Document, read through a memory map.

    Safe to read from many threads.
    """

    def __init__(self, directory: Path) -> None:
        """Raises RetrieverError when the offsets do not belong to the copy, OSError when a file is absent."""
        with (directory / CORPUS_FILE).open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offsets = directory / OFFSETS_FILE
        try:
            self._offsets = np.load(offsets, mmap_mode="r").view(np.ndarray)  # a memmap slices slowly
        except ValueError as error:
            raise RetrieverError(f"{offsets}: damaged ({error}); {BUILD_AGAIN}") from error
        if int(self._offsets[-1]) != len(self._text):
            raise RetrieverError(f"{offsets} does not belong to {CORPUS_FILE}; {BUILD_AGAIN}")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Document:
        return Document(**json.loads(self.line(row)))

    def line(self, row: int) -> bytes:
        """The row as it stands in the copy, a JSON object in UTF-8, without its line feed."""
        start, end = self._offsets[row : row + 2].tolist()
        return self._text[start : end - 1]

    def id_line(self, row: int) -> bytes:
        """The row without its contents, a JSON object still; what it costs does not hang on their length."""
        start, end = self._offsets[row : row + 2].tolist()
        # Inside an id the quotation marks would be escaped, so this is where it ends.
        return self._text[start : self._text.find(_AFTER_ID, start, end)] + b'"}'

    def id(self, row: int) -> str:
        """The id of the row."""
        name: str = json.loads(self.id_line(row))["id"]
        return name
