"""Build: corpus in, index directory out; all or nothing.

Everything is written into a sibling of the target and renamed when it is complete, so neither ctrl-C nor a
full disk leaves half an index. A target that already holds this very index is left as it is.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from retriever_server.corpus import Corpus, CorpusSummary, scan_corpus, write_corpus
from retriever_server.encoder import Encoder, set_threads, stored_name
from retriever_server.errors import RetrieverError
from retriever_server.indexes.flat import FlatIndex, write_flat
from retriever_server.store import (
    INDEX_FILE,
    MANIFEST_FILE,
    FileMark,
    Manifest,
    check_files,
    check_rows,
    library_versions,
    mark_file,
    read_manifest,
)

CHUNK_ROWS = 512  # encoded together: long enough that sorting by length saves padding
SAMPLE_ROWS = 32
GB = 1e9


@dataclass(frozen=True)
class BuildOptions:
    """What to build. Prompts left None are the encoder's own; `faiss_index` is adopted, nothing encoded."""

    corpus: Path
    target: Path
    encoder: str
    query_prompt: str | None = None
    passage_prompt: str | None = None
    device: str | None = None
    threads: int | None = None
    batch_size: int = 64
    faiss_index: Path | None = None
    force: bool = False


def build(options: BuildOptions) -> tuple[Manifest, bool]:
    """Build the index directory `options.target`; returns its manifest, and False when it was there already.

    Raises RetrieverError for a malformed corpus, a target that holds something else, too little disk space,
    or an adopted index that does not fit the corpus.
    """
    _refuse_foreign_directory(options.target)
    summary = scan_corpus(options.corpus)
    existing = None if options.force else _existing(options, summary)
    if existing:
        return existing, False
    if options.threads:
        set_threads(options.threads)
    encoder = Encoder(
        options.encoder,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
        device=options.device,
        batch_size=options.batch_size,
    )
    options.target.parent.mkdir(parents=True, exist_ok=True)
    check_free_space(options, summary, encoder.dimension)
    with _staging(options.target) as staging:
        write_corpus(options.corpus, staging, summary)
        _write_index(options, staging, encoder)
        manifest = _write_manifest(staging, summary, encoder)
        _publish(staging, options.target)
    return manifest, True


def _refuse_foreign_directory(target: Path) -> None:
    # --force deletes the old target: never a folder that holds something other than an index.
    is_index = (target / MANIFEST_FILE).is_file()
    is_empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not is_index and not is_empty:
        raise RetrieverError(f"{target} exists and is not an index directory; choose another path")


def _existing(options: BuildOptions, summary: CorpusSummary) -> Manifest | None:
    """The manifest of the target when it holds what is asked for; an error when it holds something else."""
    if not (options.target / MANIFEST_FILE).is_file():
        return None
    manifest = read_manifest(options.target)
    asked = {
        "corpus": (summary.sha256, manifest.corpus.sha256),
        "encoder": (stored_name(options.encoder), manifest.encoder),
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


def check_free_space(options: BuildOptions, summary: CorpusSummary, dimension: int) -> None:
    """Raises RetrieverError when the target's disk has less room than the index will take."""
    vectors = 0 if options.faiss_index else summary.count * dimension * 4
    offsets = (summary.count + 1) * 8
    folder = options.target.parent
    needed, free = summary.bytes + offsets + vectors, shutil.disk_usage(folder).free
    if needed > free:
        raise RetrieverError(
            f"not enough disk space in {folder}: {needed / GB:.3f} GB needed, {free / GB:.3f} GB free"
        )


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A sibling of `target` to build in; whatever happens, it is gone afterwards."""
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
    staging.chmod(0o755)  # mkdtemp makes it private, but the finished index is for other users too
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_index(options: BuildOptions, staging: Path, encoder: Encoder) -> None:
    corpus, path = Corpus(staging), staging / INDEX_FILE
    if options.faiss_index:
        path.symlink_to(options.faiss_index.resolve())  # a link: the public indexes are tens of GB
    else:
        with tqdm(total=len(corpus), desc="encoding", unit=" passages", mininterval=1) as progress:
            write_flat(path, _encode(corpus, encoder, progress), len(corpus), encoder.dimension)
    sample = np.random.default_rng().choice(len(corpus), size=min(SAMPLE_ROWS, len(corpus)), replace=False)
    check_rows(FlatIndex(path), corpus, encoder, np.sort(sample))


def _encode(corpus: Corpus, encoder: Encoder, progress: tqdm) -> Iterator[np.ndarray]:
    """Vectors of the corpus in row order, float32 [<= CHUNK_ROWS, dimension] at a time."""
    for start in range(0, len(corpus), CHUNK_ROWS):
        rows = range(start, min(start + CHUNK_ROWS, len(corpus)))
        yield encoder.encode_passages([corpus[row].contents for row in rows])
        progress.update(len(rows))


def _write_manifest(staging: Path, summary: CorpusSummary, encoder: Encoder) -> Manifest:
    manifest = Manifest(
        encoder=stored_name(encoder.name),
        query_prompt=encoder.prompts.query,
        passage_prompt=encoder.prompts.passage,
        dimension=encoder.dimension,
        count=summary.count,
        corpus=FileMark(bytes=summary.bytes, sha256=summary.sha256),
        index=mark_file(staging / INDEX_FILE),
        versions=library_versions(),
    )
    (staging / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _publish(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; an old target steps aside first and is removed last."""
    old = staging.with_name(staging.name + ".old")
    if target.exists():
        os.rename(target, old)
    os.rename(staging, target)
    shutil.rmtree(old, ignore_errors=True)
