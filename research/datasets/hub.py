"""Downloads from dataset repositories on the Hugging Face hub that resume where they stopped.

    from research.datasets.hub import download
    download("PeterJinGo/wiki-18-corpus", ["wiki-18.jsonl.gz"], Path("wiki18/wiki-18.jsonl.gz"))

The library's own download starts over in the next process (huggingface_hub 1.33 removes what a failed one
leaves), which is unusable for 64 GB, and joining its parts would take the space of one of them again. Here,
what has arrived stays in TARGET.XXXXXXXX.partial. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as
usual.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from huggingface_hub import (
    constants,
    errors,
    get_hf_file_metadata,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from research.errors import DataError

DATASET = constants.REPO_TYPE_DATASET
# Data sets may change after figures are measured, as BRIGHT's judgements did: these commits are fetched.
PINNED = {
    "RUC-NLPIR/FlashRAG_datasets": "bcafb8dd07d453be3cbeeeb3f78be1841bddf92c",
    "xlangai/BRIGHT": "3066d29c9651a576c8aba4832d249807b181ecae",
    "PeterJinGo/wiki-18-corpus": "69c1c00ffe7c5554c68d8548355cb22e46aabc51",
    "PeterJinGo/wiki-18-e5-index": "a4d31160a035f30764604f4827cd8f1d0315eb86",
}
BLOCK = 1 << 24
SHA256 = re.compile("[0-9a-f]{64}")
# One line per ten seconds in a log file; the library's own bars would leave it silent for hours.
ByteBar = functools.partial(
    tqdm,
    unit="B",
    unit_scale=True,
    mininterval=0.1 if sys.stderr.isatty() else 10,
    disable=bool(constants.HF_HUB_DISABLE_PROGRESS_BARS),
)
# The first type that fits gives the reason: a gated repository is also "not found", and all are HTTP errors.
REASONS: dict[type[Exception], str] = {
    errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set and the file is not in the local cache",
    errors.GatedRepoError: "access must be granted: accept the terms on the dataset's page and set HF_TOKEN",
    errors.RepositoryNotFoundError: "the hub has no such dataset, or it is private and HF_TOKEN does not "
    "open it",
    errors.RevisionNotFoundError: "the dataset has no such revision, which --revision names",
    errors.EntryNotFoundError: "the dataset has no such file",
}


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset repository: `size` in bytes, `etag` (a large file's SHA-256), its cached copy."""

    repo: str
    name: str
    url: str
    size: int
    etag: str
    cached: Path | None


def revision_of(repo: str, named: str | None = None) -> str:
    """The branch, tag or commit to fetch: the named one, or else the pinned one."""
    return named or PINNED.get(repo, constants.DEFAULT_REVISION)


def locate(repo: str, name: str, revision: str | None = None) -> HubFile:
    """Ask the hub, or its cache under HF_HUB_OFFLINE, about a file of a revision (see `revision_of`)."""
    revision = revision_of(repo, revision)
    with plain_errors(f"{repo}/{name}"):
        url = hf_hub_url(repo, name, repo_type=DATASET, revision=revision)
        if is_offline_mode():
            cached = _cached(repo, name, revision)
            if cached is None:
                raise errors.OfflineModeIsEnabled
            # The cache names its blobs by their etags.
            return HubFile(repo, name, url, cached.stat().st_size, cached.resolve().name, cached)
        file = get_hf_file_metadata(url)
        if file.size is None or file.etag is None or file.commit_hash is None:
            raise DataError(f"{repo}/{name}: {constants.ENDPOINT} is no hub; check HF_ENDPOINT")
        # By its commit: a branch may move while 64 GB arrive.
        url = hf_hub_url(repo, name, repo_type=DATASET, revision=file.commit_hash)
        return HubFile(repo, name, url, file.size, file.etag, _cached(repo, name, file.commit_hash))


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    path = try_to_load_from_cache(repo, name, repo_type=DATASET, revision=revision)
    return Path(path) if isinstance(path, str) else None


def download(repo: str, names: Sequence[str], target: Path, revision: str | None = None) -> Path:
    """Fetch files of a dataset, one after another into the one file `target`, which appears when complete.

    An interrupted download, even a killed one, resumes where it stopped. Large files are checked against the
    hub's SHA-256 sums. A `target` of the right size is kept. Raises DataError: offline, missing, no space,
    interrupted, damaged.
    """
    if target.is_file() and is_offline_mode():
        return target
    parts = [locate(repo, name, revision) for name in names]
    total = sum(part.size for part in parts)
    if target.is_file():
        if target.stat().st_size != total:
            raise DataError(f"{target}: is not the hub's file ({total:,} bytes); move it away to fetch that")
        return target
    version = hashlib.sha256(" ".join(part.etag for part in parts).encode()).hexdigest()[:8]
    partial = target.with_name(f"{target.name}.{version}.partial")
    require_space(target.parent, total - (partial.stat().st_size if partial.exists() else 0))
    with plain_errors(f"{repo}/{names[0]}"), exclusive(partial) as file:
        start = 0
        for part in parts:
            _append(part, file, start)
            if not _is_intact(part, file, start):
                file.truncate(start)
                raise DataError(f"{repo}/{part.name}: arrived damaged and was removed; run again")
            start += part.size
        file.truncate(total)
        os.replace(partial, target)
    return target


def _append(part: HubFile, file: BinaryIO, start: int) -> None:
    """Fill `file`, whatever length it has, to the end of the part that begins at `start`."""
    # A compressed transfer could not resume at a byte of the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    bar: Any = ByteBar
    while (end := file.seek(0, os.SEEK_END)) < start + part.size:
        done = end - start
        try:
            if part.cached:
                with part.cached.open("rb") as cached:
                    cached.seek(done)
                    shutil.copyfileobj(cached, file, BLOCK)
            else:
                expected = {"expected_size": part.size, "displayed_filename": part.name, "tqdm_class": bar}
                http_get(part.url, file, resume_size=done, headers=headers, **expected)
        except httpx.TransportError:  # what has arrived stays
            if file.tell() <= end:
                raise
        if file.tell() <= end:
            raise DataError(f"{part.repo}/{part.name}: interrupted; run again to resume")


def _is_intact(part: HubFile, file: BinaryIO, start: int) -> bool:
    """Compare the SHA-256 of the part at `start` with the hub's, which has none for small files."""
    if not SHA256.fullmatch(part.etag):
        return True
    digest, end = hashlib.sha256(), start + part.size
    file.seek(start)
    with ByteBar(total=part.size, desc=f"checking {part.name}") as bar:
        while block := file.read(min(BLOCK, end - file.tell())):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest() == part.etag


def require_space(folder: Path, needed: int) -> None:
    """Raises DataError unless `needed` bytes are free where `folder` is, or will be."""
    free = free_space(folder)
    if needed > free:
        raise DataError(f"{folder}: no space: {size_text(needed)} more needed, {size_text(free)} free")


def free_space(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(each for each in (absolute, *absolute.parents) if each.exists())


def size_text(size: int) -> str:
    """Bytes for people, in powers of 1000: `64.6 GB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def exclusive(path: Path) -> Iterator[BinaryIO]:
    """`path` open for reading and appending, locked. Raises DataError if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{path}: another process is writing it") from None
        yield file


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn what the library and the disk raise into a DataError of one line that starts with `what`."""
    try:
        yield
    except (
        errors.EntryNotFoundError,
        errors.HFValidationError,
        httpx.HTTPError,
        httpx.InvalidURL,
        OSError,
    ) as error:
        raise DataError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if reason := next((reason for kind, reason in REASONS.items() if isinstance(error, kind)), None):
        return reason
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answered with status {error.response.status_code}; run again to resume"
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return f"no connection to {constants.ENDPOINT} ({error}); run again when there is one"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error).splitlines()[0]
