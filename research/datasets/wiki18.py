"""The 2018 Wikipedia, 21 million passages of 100 words, and its prebuilt FAISS index of E5-base-v2 vectors.

    python -m research.datasets.wiki18 --out DIR --dry-run  what is there, what is missing, what disk it needs
    python -m research.datasets.wiki18 --out DIR            fetch it: DIR/wiki-18.jsonl and DIR/e5_Flat.index

After an interruption run it again: downloads resume, and a file has its name only when it is whole. The disk
never holds more than the two files, 79 GB: the archive of the corpus is removed before the index is fetched,
and the two parts in which the hub keeps the index are downloaded into one file.
"""

import gzip
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, cast

import click
from tqdm.utils import CallbackIOWrapper

from research.datasets.hub import (
    ByteBar,
    download,
    exclusive,
    free_space,
    plain_errors,
    require_space,
    size_text,
)
from research.errors import DataError

CORPUS, INDEX, ARCHIVE = "wiki-18.jsonl", "e5_Flat.index", "wiki-18.jsonl.gz"
CORPUS_REPO, INDEX_REPO = "PeterJinGo/wiki-18-corpus", "PeterJinGo/wiki-18-e5-index"
INDEX_PARTS = ("part_aa", "part_ab")
PASSAGES, DIMENSION = 21_015_324, 768
# So that a plan needs no network; a download relies on the sizes that the hub reports.
BYTES = {ARCHIVE: 5_123_307_260, CORPUS: 14_393_573_105, INDEX: 64_559_075_373}
# FAISS's header of an IndexFlatIP: name, dimension, count, two unused numbers, trained, metric, floats.
INDEX_HEADER = struct.Struct("<4siqqq?iQ")
BLOCK = 1 << 20


class RequiredFile(NamedTuple):
    """A file that training with this corpus reads; `size` in bytes, `present` if it is in its folder."""

    name: str
    size: int
    present: bool


def required_files(target: Path, names: tuple[str, ...] = (CORPUS, INDEX)) -> list[RequiredFile]:
    """The corpus and the index, and whether they are in `target`; needs no network."""
    return [RequiredFile(name, BYTES[name], (target / name).is_file()) for name in names]


def space_needed(target: Path, names: tuple[str, ...] = (CORPUS, INDEX)) -> int:
    """Bytes that the disk of `target` must have free before `names` are fetched, at the fullest moment."""
    missing = {file.name: file.size for file in required_files(target, names) if not file.present}
    corpus, index = missing.get(CORPUS, 0), missing.get(INDEX, 0)
    archive = BYTES[ARCHIVE] - _fetched(target, ARCHIVE) if corpus else 0
    return corpus + max(archive, index - _fetched(target, INDEX) if index else 0)


def plan(target: Path, names: tuple[str, ...] = (CORPUS, INDEX)) -> str:
    """What is there and what is missing, as text for people."""
    lines = [f"2018 Wikipedia in {target}"]
    for name, size, present in required_files(target, names):
        file = ARCHIVE if name == CORPUS else INDEX
        missing = f"missing, {size_text(_fetched(target, file))} of {size_text(BYTES[file])} downloaded"
        lines.append(f"  {name:15} {size_text(size):>8}  {'present' if present else missing}")
    needed, free = space_needed(target, names), free_space(target)
    verdict = "" if needed <= free else ", NOT ENOUGH"
    lines.append(f"disk: {size_text(needed)} more needed, {size_text(free)} free{verdict}")
    return "\n".join(lines)


def fetch_corpus(target: Path, revision: str | None = None) -> Path:
    """Download and unpack the passages, remove the archive, return the path. Raises DataError."""
    corpus, archive = target / CORPUS, target / ARCHIVE
    if not corpus.is_file():
        download(CORPUS_REPO, [ARCHIVE], archive, revision)
        require_space(target, BYTES[CORPUS])
        unpack(archive, corpus)
        archive.unlink()
    check_corpus(corpus)
    return corpus


def fetch_index(target: Path, revision: str | None = None) -> Path:
    """Download the parts of the index into one file and return its path. Raises DataError."""
    index = target / INDEX
    if not index.is_file():
        download(INDEX_REPO, INDEX_PARTS, index, revision)
    check_index(index)
    return index


def unpack(archive: Path, corpus: Path) -> None:
    """Unpack the archive as a stream; `corpus` appears when all passages are there. Raises DataError."""
    partial = corpus.with_name(f"{corpus.name}.unpacking")
    with plain_errors(str(corpus)), exclusive(partial) as file, _unpacked(archive) as source:
        file.truncate(0)
        passages = sum(1 for line in source if file.write(line))
    if passages != PASSAGES:
        partial.unlink()
        raise DataError(f"{archive}: holds {passages:,} passages, not {PASSAGES:,}; remove it and run again")
    os.replace(partial, corpus)


def check_corpus(corpus: Path) -> None:
    """Raise DataError unless the file starts with a passage; after a bare gunzip it is a tar header."""
    with corpus.open("rb") as file:
        first = file.readline(BLOCK)
    with suppress(ValueError, TypeError):
        if {"id", "contents"} <= set(json.loads(first)):
            return
    raise DataError(f"{corpus}: does not start with a passage; remove it and run again")


def check_index(index: Path) -> None:
    """Raise DataError unless the header announces a vector per passage and the file is as long as that."""
    with index.open("rb") as file:
        header = file.read(INDEX_HEADER.size)
    if len(header) < INDEX_HEADER.size or not header.startswith(b"IxFI"):
        raise DataError(f"{index}: is not a FAISS flat inner-product index; remove it and run again")
    _, dimension, vectors, *_ = INDEX_HEADER.unpack(header)
    if (vectors, dimension) != (PASSAGES, DIMENSION):
        raise DataError(f"{index}: holds {vectors:,} vectors of {dimension}, not {PASSAGES:,} of {DIMENSION}")
    if index.stat().st_size != INDEX_HEADER.size + 4 * vectors * dimension:
        raise DataError(f"{index}: is cut short or too long; remove it and run again")


def _fetched(target: Path, name: str) -> int:
    """Bytes of a download that are on the disk already, whole or in part."""
    files = [target / name, *target.glob(f"{name}.*.partial")]
    return sum(path.stat().st_size for path in files if path.is_file())


@contextmanager
def _unpacked(archive: Path) -> Iterator[IO[bytes]]:
    """The passages in the archive: a gzipped tar of one file, as on the hub, or the gzipped file itself."""
    try:
        size, desc = archive.stat().st_size, f"unpacking {archive.name}"
        with archive.open("rb") as file, ByteBar(total=size, desc=desc) as bar:
            stream = gzip.GzipFile(fileobj=CallbackIOWrapper(bar.update, file, "read"))
            if stream.peek(512)[257:262] == b"ustar":
                with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as tar:
                    if (content := next(filter(None, map(tar.extractfile, tar)), None)) is None:
                        raise tarfile.ReadError("no file in the tar")
                    yield content
            else:
                yield cast(IO[bytes], stream)
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive}: is damaged ({error}); remove it and run again") from error


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the two files.")
@click.option("--only", type=click.Choice(["corpus", "index"]), help="Fetch one of them.  [default: both]")
@click.option("--dry-run", is_flag=True, help="Print what is missing and what it takes; no network.")
@click.option("--corpus-revision", help="Branch, tag or commit of the corpus.  [default: a pinned commit]")
@click.option("--index-revision", help="Branch, tag or commit of the index.  [default: a pinned commit]")
def main(
    out: Path, only: str | None, dry_run: bool, corpus_revision: str | None, index_revision: str | None
) -> None:
    """Fetch the 2018 Wikipedia corpus (14 GB) and its E5 index (65 GB).

    Example: python -m research.datasets.wiki18 --out data/wiki18 --dry-run
    """
    names = {"corpus": (CORPUS,), "index": (INDEX,)}.get(only or "", (CORPUS, INDEX))
    click.echo(plan(out, names))
    if dry_run:
        return
    require_space(out, space_needed(out, names))
    if CORPUS in names:
        click.echo(f"ready: {fetch_corpus(out, corpus_revision)}")
    if INDEX in names:
        click.echo(f"ready: {fetch_index(out, index_revision)}")


if __name__ == "__main__":
    main()
