"""Store: what an index directory holds, and how it is opened; its parts must match before anything is served.

Files:
    manifest.json   describes the rest, with sizes and SHA-256
    corpus.jsonl    the passages, canonical (see corpus.py)
    offsets.npy     where each row begins
    and the files of its kind of index (indexes/), for most kinds index.faiss, or a link to an adopted one
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from pydantic import BaseModel, ValidationError

from retriever_server.corpus import CORPUS_FILE, Corpus
from retriever_server.errors import BUILD_AGAIN, RetrieverError
from retriever_server.indexes import Device, Index, Settings, open_index
from retriever_server.indexes.options import options_of, parse_options, require_serving
from retriever_server.models.encoder import Backend, Dtype, Encoder

MANIFEST_FILE = "manifest.json"
MOST_DIFFERENT = 0.25  # of the checked rows: published indexes cut long passages earlier than models do
CHECKED_ROWS = 8


class FileMark(BaseModel):
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileMark":
        """The mark of a file, which is read as a whole."""
        with path.open("rb") as file:
            return cls(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class Manifest(BaseModel):
    """The description of an index directory; `corpus.sha256` is the fingerprint of the corpus.

    Kinds without an encoder have None for it and its dimension. `files` are those of the index, by name; a
    planned index has no files and no `versions` yet.
    """

    kind: str
    options: dict[str, int | float | str] = {}
    encoder: str | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    dimension: int | None = None
    count: int
    corpus: FileMark
    format: Literal[2] = 2
    files: dict[str, FileMark]
    versions: dict[str, str]

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """The manifest of an index directory; RetrieverError when this version understands none there."""
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise RetrieverError(
                f"{directory} is not an index directory (no {MANIFEST_FILE}); see build --help"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "content"
            raise RetrieverError(f"{path}: {where}: {first['msg']}; {BUILD_AGAIN}") from error

    def check_files(self, directory: Path, *, contents: bool) -> None:
        """Raise RetrieverError if files are not as described: by size, and with `contents` by SHA-256."""
        for name, mark in {CORPUS_FILE: self.corpus, **self.files}.items():
            path = directory / name
            if not path.is_file():
                raise RetrieverError(f"{path} is missing; {BUILD_AGAIN}")
            if path.stat().st_size != mark.bytes or (contents and FileMark.of(path) != mark):
                raise RetrieverError(f"{path} is not the file this index was built with; {BUILD_AGAIN}")


@dataclass(frozen=True)
class Store:
    """An opened index directory whose parts belong together."""

    manifest: Manifest
    corpus: Corpus
    index: Index
    encoder: Encoder | None
    release: Callable[[], None] = lambda: None
    """Releases what the index holds in other processes, once it is no longer searched."""


def library_versions() -> dict[str, str]:
    """The versions that vectors and scores depend on."""
    libraries = ("sentence-transformers", "torch", "transformers")
    return {"faiss": faiss.__version__} | {name: version(name) for name in libraries}


def check_rows(index: Index, corpus: Corpus, encoder: Encoder | None, rows: np.ndarray) -> None:
    """Encode the passages of `rows` again and compare: reveals another encoder, corpus or row order.

    Raises RetrieverError with the first row that differs when more than MOST_DIFFERENT of them do.
    """
    if index.count != len(corpus):
        raise RetrieverError(f"the index has {index.count} rows, but the corpus has {len(corpus)}")
    texts = [corpus[row].contents for row in rows]
    [different] = np.nonzero(~index.check(rows, texts, encoder.encode_passages(texts) if encoder else None))
    if len(different) > MOST_DIFFERENT * len(rows):
        row, encoded_by = rows[different[0]], f' encoded by "{encoder.name}"' if encoder else ""
        raise RetrieverError(
            f'row {row} of the index is not passage "{corpus[row].id}"{encoded_by} ({len(different)} of '
            f"{len(rows)} rows checked are not): another row order, encoder or prompt"
        )


def open_store(
    directory: Path,
    *,
    encoder: str | None = None,
    device: str | None = None,
    dtype: Dtype = "float32",
    backend: Backend = "auto",
    check_contents: bool = True,
    index_options: Iterable[str] = (),
    index_device: Device = "cpu",
    report: Callable[[str], None] = lambda stage: None,
) -> Store:
    """Open and check an index directory, and pass each stage to `report`.

    `encoder` replaces the manifest's, for a model that has moved, and `index_options`, each key=value, those
    that may change after the build. Sizes, counts and a few rows are always checked, whole files only with
    `check_contents`. Raises RetrieverError at the first mismatch.
    """
    manifest = Manifest.read(directory)
    report("checking files")
    manifest.check_files(directory, contents=check_contents)
    report("opening the index")
    changed = parse_options(manifest.kind, index_options)
    require_serving(manifest.kind, changed, "it was decided when the index was built")
    options = options_of(manifest.kind).model_validate(manifest.options | changed)
    corpus, index = Corpus(directory), open_index(manifest.kind, directory, Settings(options, index_device))
    report("loading the encoder")
    model = manifest.encoder and Encoder(
        encoder or manifest.encoder,
        query_prompt=manifest.query_prompt,
        passage_prompt=manifest.passage_prompt,
        device=device,
        dtype=dtype,
        backend=backend,
    )
    report("checking rows")
    rows = np.linspace(0, len(corpus) - 1, num=min(CHECKED_ROWS, len(corpus)), dtype=np.int64)
    check_rows(index, corpus, model or None, rows)
    return Store(manifest, corpus, index, model or None)
