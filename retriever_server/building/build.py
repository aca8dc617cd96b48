"""Build: corpus in, index directory out; goes on where it was stopped.

Everything is written into a sibling of the target, `.NAME.building`, and renamed when it is complete: the
target is a whole index or not there. What ctrl-C, SIGKILL or a full disk interrupts stays in that sibling,
and the same command encodes the rest. A target that already holds this very index is left as it is. An old
index steps aside as `.NAME.building.old` while a new one takes its place.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from retriever_server.building.store import (
    MANIFEST_FILE,
    FileMark,
    Manifest,
    check_files,
    check_rows,
    library_versions,
    mark_file,
    read_manifest,
)
from retriever_server.corpus import Corpus, CorpusSummary, scan_corpus, well_formed, write_corpus
from retriever_server.errors import RetrieverError, TooLittleMemory
from retriever_server.indexes import Needs, Settings, Sources, index_class, open_index
from retriever_server.indexes.flat import FlatIndex, FlatWriter
from retriever_server.indexes.options import Options, only_serving, options_of, parse_options
from retriever_server.memory import GB, require_memory
from retriever_server.models.encoder import Backend, Encoder, set_threads, stored_name

CHUNK_ROWS = 512  # encoded together: long enough that sorting by length saves padding
SAMPLE_ROWS = 32
ADOPTED_FILE = "index.faiss"
VECTORS_FILE = "vectors.faiss"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class BuildOptions:
    """What to build. Prompts left None are the encoder's own; `index_options` are words key=value.

    With `faiss_index` nothing is encoded, that index is adopted; with `vectors`, a flat index file, another
    kind is built from what is in it.
    """

    corpus: Path
    target: Path
    encoder: str
    kind: str = "flat"
    index_options: tuple[str, ...] = ()
    query_prompt: str | None = None
    passage_prompt: str | None = None
    device: str | None = None
    threads: int | None = None
    batch_size: int = 64
    encoder_backend: Backend = "auto"
    faiss_index: Path | None = None
    vectors: Path | None = None
    force: bool = False


class Plan(BaseModel):
    """What a building folder is for; one that was left is gone on with if it is for the same."""

    kind: str
    options: dict[str, int | float | str]
    encoder: str | None
    query_prompt: str
    passage_prompt: str
    dimension: int | None
    count: int
    corpus: FileMark


def build(options: BuildOptions) -> tuple[Manifest, bool]:
    """Build the index directory `options.target`; returns its manifest, and False when it was there already.

    Raises RetrieverError for a malformed corpus, a target that holds something else, too little disk space or
    memory, an option that the kind does not have, another build of the same target, or an adopted index or
    vectors that do not fit the corpus.
    """
    given = _given_options(options)
    _put_old_index_back(options.target)
    _refuse_foreign_directory(options.target)
    summary = scan_corpus(options.corpus)
    existing = None if options.force else _existing(options, summary, given)
    if existing:
        return existing, False
    if options.threads:
        set_threads(options.threads)
    encoder = _load_encoder(options)
    plan = _plan(options, summary, encoder)
    needed = _needs(options, plan.count, plan.dimension).memory
    require_memory(
        needed, f'building the index kind "{options.kind}"', "take one that is built in less: flat"
    )
    options.target.parent.mkdir(parents=True, exist_ok=True)
    with _building_folder(options.target) as folder:
        if published := _just_published(options, plan):
            return published, True
        manifest = _complete(options, folder, plan)
        if manifest is None:
            _prepare(options, folder, plan, summary)
            manifest = _write_manifest(folder, _write_index(options, folder, encoder))
        _publish(folder, options.target)
    return manifest, True


def _given_options(options: BuildOptions) -> dict[str, Any]:
    """The index options that were given, checked, after checking what cannot go together."""
    dense = index_class(options.kind).dense
    for text in (options.encoder, options.query_prompt, options.passage_prompt):
        if text and well_formed(text) != text:
            raise RetrieverError(f"the encoder's name and the prompts must be UTF-8, {text!r} is not")
    given = parse_options(options.kind, options.index_options)
    if options.vectors and (options.faiss_index or not dense or options.kind == "flat"):
        raise RetrieverError("--vectors is for other dense kinds than flat, and goes without --faiss-index")
    return only_serving(options.kind, given, "the adopted index decides it") if options.faiss_index else given


def _kind_options(options: BuildOptions) -> Options:
    return options_of(options.kind).model_validate(_given_options(options))


def _needs(options: BuildOptions, count: int, dimension: int | None) -> Needs:
    """What building takes beside the corpus; an adopted index takes nothing."""
    if options.faiss_index:
        return Needs(disk=0, memory=0)
    index = index_class(options.kind).needs(count, dimension, _kind_options(options))
    vectors = 0 if options.vectors else count * (dimension or 0) * 4
    return Needs(disk=index.disk + vectors, memory=index.memory)


def _load_encoder(options: BuildOptions) -> Encoder | None:
    if not index_class(options.kind).dense:
        return None
    return Encoder(
        options.encoder,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
        device=options.device,
        batch_size=options.batch_size,
        backend=options.encoder_backend,
    )


def _plan(options: BuildOptions, summary: CorpusSummary, encoder: Encoder | None) -> Plan:
    return Plan(
        kind=options.kind,
        # Of an adopted index it is not known how it was built.
        options=_kind_options(options).model_dump(
            include=set(options_of(options.kind).at_serving) if options.faiss_index else None
        ),
        encoder=stored_name(encoder.name) if encoder else None,
        query_prompt=encoder.prompts.query if encoder else "",
        passage_prompt=encoder.prompts.passage if encoder else "",
        dimension=encoder.dimension if encoder else None,
        count=summary.count,
        corpus=FileMark(bytes=summary.bytes, sha256=summary.sha256),
    )


def _refuse_foreign_directory(target: Path) -> None:
    # --force deletes the old target: never a folder that holds something other than an index.
    is_index = (target / MANIFEST_FILE).is_file()
    is_empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not is_index and not is_empty:
        raise RetrieverError(f"{target} exists and is not an index directory; choose another path")


def _existing(options: BuildOptions, summary: CorpusSummary, given: dict[str, Any]) -> Manifest | None:
    """The manifest of the target when it holds what is asked for; an error when it holds something else."""
    if not (options.target / MANIFEST_FILE).is_file():
        return None
    manifest = read_manifest(options.target)
    asked = {
        "corpus": (summary.sha256, manifest.corpus.sha256),
        "kind": (options.kind, manifest.kind),
        "index option": (manifest.options | given, manifest.options),
        "encoder": (manifest.encoder and stored_name(options.encoder), manifest.encoder),
        "query prompt": (options.query_prompt, manifest.query_prompt),
        "passage prompt": (options.passage_prompt, manifest.passage_prompt),
    }
    different = [what for what, (wanted, found) in asked.items() if wanted is not None and wanted != found]
    if different:
        raise RetrieverError(
            f"{options.target} holds an index with another {' and '.join(different)}; --force replaces it"
        )
    check_files(options.target, manifest, contents=False)
    return manifest


def check_free_space(options: BuildOptions, summary: CorpusSummary, dimension: int | None) -> None:
    """Raises RetrieverError when the target's disk has less room than building the index will take."""
    offsets = (summary.count + 1) * 8
    folder = options.target.parent
    needed = summary.bytes + offsets + _needs(options, summary.count, dimension).disk
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RetrieverError(
            f"not enough disk space in {folder}: {needed / GB:.3f} GB needed, {free / GB:.3f} GB free"
        )


@contextmanager
def _building_folder(target: Path) -> Iterator[Path]:
    """The sibling of `target` to build in, held by this process alone. Gone after a mistake of the user's,
    kept after anything else: what is encoded is not lost.
    """
    folder, _ = _siblings(target)
    folder.mkdir(exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    except BlockingIOError as error:
        raise RetrieverError(f"{target} is being built by another process; wait for it") from error
    except TooLittleMemory:
        raise
    except RetrieverError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _siblings(target: Path) -> tuple[Path, Path]:
    """Where `target` is built, and where an old index steps aside."""
    return target.with_name(f".{target.name}.building"), target.with_name(f".{target.name}.building.old")


def _put_old_index_back(target: Path) -> None:
    """What a build leaves to do that was killed between its renames: the target is not there."""
    _, old = _siblings(target)
    if (old / MANIFEST_FILE).is_file() and not target.exists():
        with _building_folder(target):  # held: nobody is just about to rename the new one
            if not target.exists():
                os.rename(old, target)


def _just_published(options: BuildOptions, plan: Plan) -> Manifest | None:
    """The manifest of the target, if a build of this very index was killed before it removed the old one."""
    folder, old = _siblings(options.target)
    manifest = _complete(options, options.target, plan) if old.exists() else None
    if manifest:
        _remove(old)
        _remove(folder)
    return manifest


def _complete(options: BuildOptions, folder: Path, plan: Plan) -> Manifest | None:
    """The manifest of the index in `folder` if it is the very one that is asked for, and whole."""
    if options.faiss_index or options.vectors:  # a file that may be another one now; nothing is encoded
        return None
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest, contents=True)
    except RetrieverError:
        return None
    made_for = Plan(**manifest.model_dump(include=set(Plan.model_fields)))
    return manifest if made_for == plan else None


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _prepare(options: BuildOptions, folder: Path, plan: Plan, summary: CorpusSummary) -> None:
    """Let `folder` hold the corpus and the plan, which is written last; empty it if it was for another
    plan.
    """
    file = folder / PLAN_FILE
    if file.is_file() and file.read_text() == plan.model_dump_json():
        return
    for entry in folder.iterdir():
        _remove(entry)
    check_free_space(options, summary, plan.dimension)
    write_corpus(options.corpus, folder, summary)
    file.write_text(plan.model_dump_json())


def _write_index(options: BuildOptions, folder: Path, encoder: Encoder | None) -> dict[str, FileMark]:
    corpus, kind = Corpus(folder), index_class(options.kind)
    typed = _kind_options(options)
    if options.faiss_index:
        link = folder / ADOPTED_FILE
        link.unlink(missing_ok=True)
        link.symlink_to(options.faiss_index.resolve())  # a link: the public indexes are tens of GB
        names = [ADOPTED_FILE]
    else:
        names = kind.build(Sources(corpus, _vectors(options, corpus, encoder, folder), typed), folder)
    check_rows(open_index(options.kind, folder, Settings(typed)), corpus, encoder, _sample(corpus))
    return {name: mark_file(folder / name) for name in names}


def _sample(corpus: Corpus) -> np.ndarray:
    """Rows to look at, in order."""
    size = min(SAMPLE_ROWS, len(corpus))
    return np.sort(np.random.default_rng().choice(len(corpus), size=size, replace=False))


def _vectors(options: BuildOptions, corpus: Corpus, encoder: Encoder | None, folder: Path) -> Path | None:
    """The flat index file to build from: encoded, or a link to the one given, which must fit the corpus."""
    if encoder is None:
        return None
    if options.vectors is None:
        return _encode(corpus, encoder, folder)
    link = folder / VECTORS_FILE
    link.unlink(missing_ok=True)
    link.symlink_to(options.vectors.resolve())
    check_rows(FlatIndex(folder, file=VECTORS_FILE), corpus, encoder, _sample(corpus))
    return link


def _encode(corpus: Corpus, encoder: Encoder, folder: Path) -> Path:
    """The flat index file of the corpus, in row order; the rows that are in it already are not encoded
    again.
    """
    with (
        FlatWriter(folder / VECTORS_FILE, len(corpus), encoder.dimension) as file,
        tqdm(
            total=len(corpus), initial=file.rows, desc="encoding", unit=" passages", mininterval=1
        ) as progress,
    ):
        for start in range(file.rows, len(corpus), CHUNK_ROWS):
            rows = range(start, min(start + CHUNK_ROWS, len(corpus)))
            file.append(encoder.encode_passages([corpus[row].contents for row in rows]))
            progress.update(len(rows))
    return folder / VECTORS_FILE


def _write_manifest(folder: Path, files: dict[str, FileMark]) -> Manifest:
    """Write the manifest at one stroke: a folder that has one holds a complete index."""
    plan = Plan.model_validate_json((folder / PLAN_FILE).read_bytes())
    manifest = Manifest(**plan.model_dump(), files=files, versions=library_versions())
    partial = folder / f"{MANIFEST_FILE}.partial"
    partial.write_text(manifest.model_dump_json(indent=2) + "\n")
    os.replace(partial, folder / MANIFEST_FILE)
    return manifest


def _publish(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; an old target steps aside first and is removed last."""
    for name in (VECTORS_FILE, PLAN_FILE):  # not before: a build that is killed needs them until there is a
        (folder / name).unlink(missing_ok=True)  # manifest
    _, old = _siblings(target)
    if target.exists():
        _remove(old)  # left by a build that was killed when it had published
        os.rename(target, old)
    os.rename(folder, target)
    with suppress(OSError):  # the new index is there; the next build tries again
        _remove(old)
