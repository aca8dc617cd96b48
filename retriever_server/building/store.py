"""Store: what an index directory holds, and how it is opened; its parts must match before anything is served.

Files:
    manifest.json   what the rest is, with sizes and SHA-256
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
from retriever_server.indexes.options import Options, only_serving, options_of, parse_options
from retriever_server.models.encoder import Backend, Dtype, Encoder

MANIFEST_FILE = "manifest.json"
MOST_DIFFERENT = 0.25  # of the rows looked at: published indexes cut long passages earlier than models do


class FileMark(BaseModel):
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The description of an index directory. `corpus.sha256` is the fingerprint that names the corpus.

    Kinds without an encoder have None for it and its dimension. `options` are those that the index was built
    with; `files` are those of the index, by name.
    """

    format: Literal[2] = 2
    kind: str
    options: dict[str, int | float | str] = {}
    encoder: str | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    dimension: int | None = None
    count: int
    corpus: FileMark
    files: dict[str, FileMark]
    versions: dict[str, str]


@dataclass(frozen=True)
class Store:
    """An opened index directory whose parts belong together."""

    manifest: Manifest
    corpus: Corpus
    index: Index
    encoder: Encoder | None
    release: Callable[[], None] = lambda: None
    """Gives back what the index holds in other processes, once nobody searches it any more."""


def mark_file(path: Path) -> FileMark:
    """Read the whole file and mark it."""
    with path.open("rb") as file:
        return FileMark(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def library_versions() -> dict[str, str]:
    """The versions that decide which vectors and scores come out."""
    libraries = ("sentence-transformers", "torch", "transformers")
    return {"faiss": faiss.__version__} | {name: version(name) for name in libraries}


def read_manifest(directory: Path) -> Manifest:
    """Raises RetrieverError when `directory` has no manifest or one that this version does not understand."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise RetrieverError(f"{directory} is not an index directory (no {MANIFEST_FILE}); see build --help")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise RetrieverError(f"{path}: {where}: {first['msg']}; {BUILD_AGAIN}") from error


def check_files(directory: Path, manifest: Manifest, *, contents: bool) -> None:
    """Refuse files other than the manifest was written for: by size, and with `contents` by SHA-256."""
    for name, mark in {CORPUS_FILE: manifest.corpus, **manifest.files}.items():
        path = directory / name
        if not path.is_file():
            raise RetrieverError(f"{path} is missing; {BUILD_AGAIN}")
        if path.stat().st_size != mark.bytes or (contents and mark_file(path) != mark):
            raise RetrieverError(f"{path} is not the file this index was built with; {BUILD_AGAIN}")


def check_rows(index: Index, corpus: Corpus, encoder: Encoder | None, rows: np.ndarray) -> None:
    """Encode the passages of `rows` anew and compare: shows another encoder, corpus or row order.

    Raises RetrieverError that names the first row that differs when more than MOST_DIFFERENT of them do.
    """
    if index.count != len(corpus):
        raise RetrieverError(f"the index has {index.count} rows, but the corpus has {len(corpus)}")
    texts = [corpus[row].contents for row in rows]
    [different] = np.nonzero(~index.check(rows, texts, encoder.encode_passages(texts) if encoder else None))
    if len(different) > MOST_DIFFERENT * len(rows):
        row, maker = rows[different[0]], f' encoded by "{encoder.name}"' if encoder else ""
        raise RetrieverError(
            f'row {row} of the index is not passage "{corpus[row].id}"{maker} ({len(different)} of '
            f"{len(rows)} rows looked at are not): another row order, encoder or prompt"
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
    tell: Callable[[str], None] = lambda stage: None,
) -> Store:
    """Open and check an index directory; `encoder` replaces the manifest's, for a model that has moved, and
    `index_options`, each key=value, those of the manifest that can be chosen anew.

    Sizes, counts and a sample of 8 rows are always checked, whole files only with `check_contents`. `tell` is
    told what is being done. Raises RetrieverError at the first thing that does not match.
    """
    manifest = read_manifest(directory)
    tell("checking files")
    check_files(directory, manifest, contents=check_contents)
    tell("opening the index")
    settings = Settings(_options(manifest, index_options), index_device)
    corpus, index = Corpus(directory), open_index(manifest.kind, directory, settings)
    tell("loading the encoder")
    model = _open_encoder(manifest, encoder, device, dtype, backend)
    tell("checking rows")
    check_rows(index, corpus, model, np.linspace(0, len(corpus) - 1, num=min(8, len(corpus)), dtype=np.int64))
    return Store(manifest, corpus, index, model)


def _options(manifest: Manifest, words: Iterable[str]) -> Options:
    fixed = "it was decided when the index was built"
    given = only_serving(manifest.kind, parse_options(manifest.kind, words), fixed)
    return options_of(manifest.kind).model_validate(manifest.options | given)


def _open_encoder(
    manifest: Manifest, name: str | None, device: str | None, dtype: Dtype, backend: Backend
) -> Encoder | None:
    if manifest.encoder is None:
        return None
    return Encoder(
        name or manifest.encoder,
        query_prompt=manifest.query_prompt,
        passage_prompt=manifest.passage_prompt,
        device=device,
        dtype=dtype,
        backend=backend,
    )
