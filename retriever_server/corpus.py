"""Corpus: reads JSON Lines, checked row by row, and keeps a canonical copy with row offsets, memory-mapped.

A source row is `{"id": ..., "contents": ...}`, or BEIR's `{"_id": ..., "title": ..., "text": ...}`; further
keys are dropped. The canonical copy has exactly id and contents, so its SHA-256, as shown by
`sha256sum corpus.jsonl` in an index directory, is the fingerprint of the corpus.
"""

import gzip
import hashlib
import json
import mmap
import sys
import tarfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as shortened
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from retriever_server.errors import BUILD_AGAIN, RetrieverError

CORPUS_FILE = "corpus.jsonl"
OFFSETS_FILE = "offsets.npy"
ACCEPTED = (
    'a corpus is JSON Lines, plain, .gz or .tar.gz, of rows {"id", "contents"} or {"_id", "title", "text"}'
)
OTHER_FORMATS = {
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ\x00": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
}
"""First bytes of a file -> its format."""
_AFTER_ID = b'", "contents": '  # in a row of the canonical copy


class Document(NamedTuple):
    """One passage. `id` is always a string, even if the source has an integer."""

    id: str
    contents: str

    def line(self) -> bytes:
        """The canonical row, with its line feed."""
        return json.dumps(self._asdict(), ensure_ascii=False).encode() + b"\n"


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which neither UTF-8 nor tokenizers accept."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class CorpusSummary:
    """Identifies a corpus: its number of rows, and size and SHA-256 of its canonical copy."""

    count: int
    bytes: int
    sha256: str


def read_documents(path: Path, repaired: list[int] | None = None) -> Iterator[tuple[int, Document]]:
    """Yield (line number from 1, document) for each row, skipping blank lines.

    Half surrogate pairs become U+FFFD, and the lines with any are appended to `repaired`. Raises
    RetrieverError with file and line at the first malformed row.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                raw = _parse(line)
                document = Document(*map(replace_surrogates, raw))
                if repaired is not None and document != raw:
                    repaired.append(number)
                yield number, document
    except ValueError as error:
        raise RetrieverError(f"{path}:{max(number, 1)}: {error}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise RetrieverError(f"{path}:{number + 1}: broken gzip or tar file: {error}") from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of the corpus, by content, not by name: the hub's wiki-18.jsonl.gz is a gzipped tar."""
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(file) as unpacked:
            yield from _lines(unpacked)  # type: ignore[arg-type]
    elif head[257:262] == b"ustar":
        yield from _lines_of_tar(file)
    elif kind := next((kind for magic, kind in OTHER_FORMATS.items() if head.startswith(magic)), None):
        raise ValueError(f"it is {kind}; {ACCEPTED}")
    else:
        yield from file


def _lines_of_tar(file: BinaryIO) -> Iterator[bytes]:
    corpus = None
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            path = PurePosixPath(member.name)
            hidden = path.name.startswith(".")  # macOS adds ._NAME
            if content is None or hidden or path.suffix not in (".jsonl", ".json"):
                continue
            if corpus:
                raise ValueError(
                    f"the archive holds more than one corpus, {corpus} and {member.name}; unpack it"
                )
            corpus = member.name
            yield from content
    if not corpus:
        raise ValueError(f"the archive holds no .jsonl file; {ACCEPTED}")


def _parse(line: bytes) -> Document:
    """Check one row; raises ValueError with what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}; {ACCEPTED}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object, this one is {type(row).__name__}; {ACCEPTED}")
    return Document(_id_of(row), _contents_of(row))


def _id_of(row: dict[str, Any]) -> str:
    field = next((field for field in ("id", "_id") if field in row), None)
    if field is None:
        raise ValueError(f'"id" is missing; {ACCEPTED}')
    value = row[field]
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer and not (isinstance(value, str) and value):
        raise ValueError(f'"{field}" must be an integer or a non-empty string, not {shortened(value)}')
    return str(value)


def _contents_of(row: dict[str, Any]) -> str:
    """The contents, or title and text joined into contents."""
    if "contents" in row:
        fields = {"contents": row["contents"]}
    elif "text" in row:
        fields = {"title": row.get("title") or "", "text": row["text"]}
    else:
        raise ValueError(f'"contents" is missing; {ACCEPTED}')
    for field, value in fields.items():
        if not isinstance(value, str):
            raise ValueError(f'"{field}" must be a string, not {type(value).__name__}')
    contents = "\n".join(value for value in fields.values() if value.strip())
    if not contents:
        raise ValueError(f'"{next(reversed(fields))}" is empty')
    return contents


def scan_corpus(path: Path) -> CorpusSummary:
    """Read the whole source once: check every row and that ids are unique, and take the fingerprint.

    Memory: 8 bytes per row. Raises RetrieverError at a malformed row, a repeated id, or a corpus without
    rows.
    """
    digest, size, id_hashes = hashlib.sha256(), 0, array("q")
    repaired: list[int] = []
    for document in _with_progress(path, "checking the corpus", repaired=repaired):
        line = document.line()
        digest.update(line)
        size += len(line)
        id_hashes.append(hash(document.id))
    if not id_hashes:
        raise RetrieverError(f"{path}: the corpus has no rows")
    _refuse_repeated_ids(path, id_hashes)
    if repaired:
        rows = f"read as U+FFFD (rows with any: {len(repaired):,})"
        print(f"{path}:{repaired[0]}: half a surrogate pair, {rows}", file=sys.stderr)
    return CorpusSummary(len(id_hashes), size, digest.hexdigest())


def _refuse_repeated_ids(path: Path, id_hashes: array) -> None:
    ordered = np.sort(np.frombuffer(id_hashes, dtype=np.int64))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    lines: dict[str, int] = {}  # ids may share a hash by chance, so the ids themselves are compared
    for number, (name, _) in read_documents(path):
        if name in lines:
            raise RetrieverError(f'{path}:{number}: id "{name[:200]}" is already in line {lines[name]}')
        if hash(name) in suspects:
            lines[name] = number


def write_corpus(source: Path, directory: Path, expected: CorpusSummary) -> None:
    """Write the canonical copy and its row offsets (int64 [count + 1]) into `directory`.

    Raises RetrieverError when the source has changed since `expected` was taken from it.
    """
    path, shape = directory / OFFSETS_FILE, (expected.count + 1,)
    offsets = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=shape)
    digest, written = hashlib.sha256(), 0
    with (directory / CORPUS_FILE).open("wb") as copy:
        for row, document in enumerate(_with_progress(source, "copying the corpus", expected.count)):
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
    path: Path, what: str, count: int | None = None, repaired: list[int] | None = None
) -> Iterator[Document]:
    rows = read_documents(path, repaired)
    for _, document in tqdm(rows, desc=what, total=count, unit=" rows", mininterval=1, delay=2, leave=False):
        yield document


def row_chunks(count: int, size: int, what: str, done: int = 0) -> Iterator[range]:
    """Ranges of at most `size` rows that cover `done` to `count`, with a progress bar titled `what`."""
    with tqdm(total=count, initial=done, desc=what, unit=" passages", mininterval=1, delay=1) as progress:
        for start in range(done, count, size):
            rows = range(start, min(start + size, count))
            yield rows
            progress.update(len(rows))


class Corpus:
    """The canonical copy in an index directory, memory-mapped; `corpus[row]` is a Document. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Raise RetrieverError when the offsets do not belong to the copy, OSError when a file is absent."""
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
        """The row as in the copy: a JSON object in UTF-8, without its line feed."""
        start, end = self._offsets[row : row + 2].tolist()
        return self._text[start : end - 1]

    def id_line(self, row: int) -> bytes:
        """The row without its contents, still JSON, at a cost that does not depend on their length."""
        start, end = self._offsets[row : row + 2].tolist()
        # Within an id, quotation marks are escaped, so this is where the id ends.
        return self._text[start : self._text.find(_AFTER_ID, start, end)] + b'"}'

    def id(self, row: int) -> str:
        """The id of the row."""
        return json.loads(self.id_line(row))["id"]
