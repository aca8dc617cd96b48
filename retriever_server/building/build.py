"""Build: from a corpus to an index directory; an interrupted build resumes.

The target is a whole index or not there (see folder.py). What ctrl-C, SIGKILL or a full disk interrupts stays
in the building folder, and the same command encodes the rest. A target that already holds this very index is
left alone.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retriever_server.building.folder import IndexTarget, remove
from retriever_server.building.store import MANIFEST_FILE, FileMark, Manifest, check_rows, library_versions
from retriever_server.corpus import (
    Corpus,
    CorpusSummary,
    replace_surrogates,
    row_chunks,
    scan_corpus,
    write_corpus,
)
from retriever_server.errors import RetrieverError
from retriever_server.indexes import IndexSources, Needs, Settings, index_class, open_index
from retriever_server.indexes.flat import FlatIndex, FlatWriter
from retriever_server.indexes.options import IndexOptions, options_of, parse_options, require_serving
from retriever_server.memory import GB, require_memory
from retriever_server.models.encoder import Backend, Encoder, set_threads, stored_name

CHUNK_ROWS = 512  # encoded together: enough for sorting by length to save padding
SAMPLE_ROWS = 32
ADOPTED_FILE = "index.faiss"
VECTORS_FILE = "vectors.faiss"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class BuildOptions:
    """What to build. Prompts left None are the encoder's own; `index_options` are given as key=value.

    With `faiss_index` nothing is encoded and that index is adopted; with `vectors`, a flat index file,
    another kind is built from its vectors.
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
    backend: Backend = "auto"
    faiss_index: Path | None = None
    vectors: Path | None = None
    force: bool = False

    def given_options(self) -> dict[str, Any]:
        """The index options that were given, parsed; RetrieverError for one that the kind does not have."""
        return parse_options(self.kind, self.index_options)

    def kind_options(self) -> IndexOptions:
        """All options of the kind, with its defaults."""
        return options_of(self.kind).model_validate(self.given_options())


def create_index(options: BuildOptions) -> tuple[Manifest, bool]:
    """Build the index directory `options.target`; returns its manifest, and False if it was already there.

    Raises RetrieverError for a malformed corpus, a target that holds something else, too little disk space or
    memory, an unknown option of the kind, another build of the same target, or an adopted index or vectors
    that do not fit the corpus.
    """
    _check_options(options)
    target = IndexTarget(options.target)
    target.restore_old()
    target.check()
    summary = scan_corpus(options.corpus)
    existing = None if options.force else _existing(options, summary)
    if existing:
        return existing, False
    if options.threads:
        set_threads(options.threads)
    encoder = _load_encoder(options)
    plan = _plan(options, summary, encoder)
    needed = _needs(options, plan.count, plan.dimension).memory
    require_memory(needed, f'building the index kind "{options.kind}"', "choose one that needs less: flat")
    options.target.parent.mkdir(parents=True, exist_ok=True)
    with target.building() as folder:
        if published := _just_published(options, target, plan):
            return published, True
        manifest = _complete(options, folder, plan)
        if manifest is None:
            _prepare(options, folder, plan, summary)
            manifest = _write_manifest(folder, plan, _write_index(options, folder, encoder))
        for name in (VECTORS_FILE, PLAN_FILE):  # needed until there is a manifest, should the build be killed
            (folder / name).unlink(missing_ok=True)
        target.publish()
    return manifest, True


def _check_options(options: BuildOptions) -> None:
    """Raise RetrieverError for options that are malformed or exclude each other."""
    for text in (options.encoder, options.query_prompt, options.passage_prompt):
        if text and replace_surrogates(text) != text:
            raise RetrieverError(f"the encoder's name and the prompts must be UTF-8, {text!r} is not")
    dense, given = index_class(options.kind).dense, options.given_options()
    if options.vectors and (options.faiss_index or not dense or options.kind == "flat"):
        raise RetrieverError("--vectors is for dense kinds other than flat, and excludes --faiss-index")
    if options.faiss_index:
        require_serving(options.kind, given, "the adopted index determines it")


def _needs(options: BuildOptions, count: int, dimension: int | None) -> Needs:
    """What building takes in addition to the corpus; an adopted index takes nothing."""
    if options.faiss_index:
        return Needs(disk=0, memory=0)
    index = index_class(options.kind).needs(count, dimension, options.kind_options())
    vectors = 0 if options.vectors else count * (dimension or 0) * 4
    return Needs(disk=index.disk + vectors, memory=index.memory)


def check_free_space(options: BuildOptions, summary: CorpusSummary, dimension: int | None) -> None:
    """Raise RetrieverError when the target's disk has less room than building the index will take."""
    offsets = (summary.count + 1) * 8
    folder = options.target.parent
    needed = summary.bytes + offsets + _needs(options, summary.count, dimension).disk
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RetrieverError(
            f"not enough disk space in {folder}: {needed / GB:.3f} GB needed, {free / GB:.3f} GB free"
        )


def _load_encoder(options: BuildOptions) -> Encoder | None:
    if not index_class(options.kind).dense:
        return None
    return Encoder(
        options.encoder,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
        device=options.device,
        batch_size=options.batch_size,
        backend=options.backend,
    )


def _plan(options: BuildOptions, summary: CorpusSummary, encoder: Encoder | None) -> Manifest:
    # How an adopted index was built is not known.
    known = set(options_of(options.kind).at_serving) if options.faiss_index else None
    plan = Manifest(
        kind=options.kind,
        options=options.kind_options().model_dump(include=known),
        count=summary.count,
        corpus=FileMark(bytes=summary.bytes, sha256=summary.sha256),
        files={},
        versions={},
    )
    if encoder:
        plan.encoder, plan.dimension = stored_name(encoder.name), encoder.dimension
        plan.query_prompt, plan.passage_prompt = encoder.prompts
    return plan


def _existing(options: BuildOptions, summary: CorpusSummary) -> Manifest | None:
    """The manifest of the target if it holds the wanted index; RetrieverError if it holds another one."""
    if not (options.target / MANIFEST_FILE).is_file():
        return None
    manifest = Manifest.read(options.target)
    compared = {
        "corpus": (summary.sha256, manifest.corpus.sha256),
        "kind": (options.kind, manifest.kind),
        "index option": (manifest.options | options.given_options(), manifest.options),
        "encoder": (manifest.encoder and stored_name(options.encoder), manifest.encoder),
        "query prompt": (options.query_prompt, manifest.query_prompt),
        "passage prompt": (options.passage_prompt, manifest.passage_prompt),
    }
    different = [what for what, (wanted, present) in compared.items() if wanted not in (None, present)]
    if different:
        raise RetrieverError(
            f"{options.target} holds an index with another {' and '.join(different)}; --force replaces it"
        )
    manifest.check_files(options.target, contents=False)
    return manifest


def _just_published(options: BuildOptions, target: IndexTarget, plan: Manifest) -> Manifest | None:
    """The target's manifest, if a build of this very index was killed before it removed the old one."""
    manifest = _complete(options, target.path, plan) if target.old.exists() else None
    if manifest:
        remove(target.old)
        remove(target.folder)
    return manifest


def _complete(options: BuildOptions, folder: Path, plan: Manifest) -> Manifest | None:
    """The manifest of the index in `folder` if it is complete and of this very plan."""
    if options.faiss_index or options.vectors:  # that file may have changed, and nothing is encoded
        return None
    try:
        manifest = Manifest.read(folder)
        manifest.check_files(folder, contents=True)
    except RetrieverError:
        return None
    return manifest if manifest.model_copy(update={"files": {}, "versions": {}}) == plan else None


def _prepare(options: BuildOptions, folder: Path, plan: Manifest, summary: CorpusSummary) -> None:
    """Put corpus and plan into `folder`, the plan last, unless they are there; empty it of another plan."""
    file = folder / PLAN_FILE
    if file.is_file() and file.read_text() == plan.model_dump_json():
        return
    for entry in folder.iterdir():
        remove(entry)
    check_free_space(options, summary, plan.dimension)
    write_corpus(options.corpus, folder, summary)
    file.write_text(plan.model_dump_json())


def _write_index(options: BuildOptions, folder: Path, encoder: Encoder | None) -> dict[str, FileMark]:
    corpus, typed = Corpus(folder), options.kind_options()
    if options.faiss_index:
        names = [_link(folder / ADOPTED_FILE, options.faiss_index).name]
    else:
        sources = IndexSources(corpus, _vectors(options, corpus, encoder, folder), typed)
        names = index_class(options.kind).build(sources, folder)
    check_rows(open_index(options.kind, folder, Settings(typed)), corpus, encoder, _sample(corpus))
    return {name: FileMark.of(folder / name) for name in names}


def _link(link: Path, target: Path) -> Path:
    """Make `link` a symbolic link, not a copy: public indexes have tens of GB."""
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
    return link


def _sample(corpus: Corpus) -> np.ndarray:
    """Rows to check, in order."""
    size = min(SAMPLE_ROWS, len(corpus))
    return np.sort(np.random.default_rng().choice(len(corpus), size=size, replace=False))


def _vectors(options: BuildOptions, corpus: Corpus, encoder: Encoder | None, folder: Path) -> Path | None:
    """The flat index file to build from: newly encoded, or a link to the given one, which must fit."""
    if encoder is None:
        return None
    if options.vectors is None:
        return _encode(corpus, encoder, folder)
    link = _link(folder / VECTORS_FILE, options.vectors)
    check_rows(FlatIndex(folder, file=VECTORS_FILE), corpus, encoder, _sample(corpus))
    return link


def _encode(corpus: Corpus, encoder: Encoder, folder: Path) -> Path:
    """The flat index file of the corpus, in row order; rows that it already has are not encoded again."""
    path = folder / VECTORS_FILE
    with FlatWriter(path, len(corpus), encoder.dimension) as file:
        for rows in row_chunks(len(corpus), CHUNK_ROWS, "encoding", done=file.rows):
            file.append(encoder.encode_passages([corpus[row].contents for row in rows]))
    return path


def _write_manifest(folder: Path, plan: Manifest, files: dict[str, FileMark]) -> Manifest:
    """Write the manifest atomically: a folder that has one holds a complete index."""
    manifest = plan.model_copy(update={"files": files, "versions": library_versions()})
    partial = folder / f"{MANIFEST_FILE}.partial"
    partial.write_text(manifest.model_dump_json(indent=2) + "\n")
    os.replace(partial, folder / MANIFEST_FILE)
    return manifest
