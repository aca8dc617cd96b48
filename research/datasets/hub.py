"""Files of dataset repositories on the Hugging Face hub: sizes, and downloads that go on where they stopped.

    from research.datasets.hub import download
    download("PeterJinGo/wiki-18-corpus", ["wiki-18.jsonl.gz"], Path("wiki18/wiki-18.jsonl.gz"))

The library's own download starts a broken-off file anew in the next process, which will not do
for 64 GB: here, what has come so far stays in TARGET.XXXXXXXX.partial.
HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as ever.
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
from typing import Any, BinaryIO, cast

import httpx
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from research.errors import DataError

DATASET = constants.REPO_TYPE_DATASET
BLOCK = 1 << 24
SHA256 = re.compile("[0-9a-f]{64}")
# In a log file a line every ten seconds; the library's own bars would leave it silent for hours.
ByteBar = functools.partial(
    tqdm,
    unit="B",
    unit_scale=True,
    mininterval=0.1 if sys.stderr.isatty() else 10,
    disable=bool(constants.HF_HUB_DISABLE_PROGRESS_BARS),
)
# The first type that fits gives the reason; gated is also "not found", and all of them are HTTP errors.
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set and the file is not in the local cache"),
    (GatedRepoError, "access must be granted: accept the terms on the dataset's page and set HF_TOKEN"),
    (RepositoryNotFoundError, "the hub has no such dataset, or it is private and HF_TOKEN does not open it"),
    (RevisionNotFoundError, "the dataset has no such revision"),
    (EntryNotFoundError, "the dataset has no such file"),
)


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset repository: `size` in bytes, `etag` (a large file's SHA-256), its cached copy."""

    repo: str
    name: str
    url: str
    size: int
    etag: str
    cached: Path | None


def remote_size(repo: str, name: str, revision: str | None = None) -> int:
    """Bytes of a file on the hub, from its metadata alone. Raises DataError."""
    return locate(repo, name, revision).size


def locate(repo: str, name: str, revision: str | None = None) -> HubFile:
    """Ask the hub, or its cache under HF_HUB_OFFLINE, about a file; `revision` is a branch, tag or commit."""
    with plain_errors(f"{repo}/{name}"):
        url = hf_hub_url(repo, name, repo_type=DATASET, revision=revision)
        if is_offline_mode():
            return _cached_file(repo, name, url, revision)
        found = get_hf_file_metadata(url)
        if found.size is None or found.etag is None or found.commit_hash is None:
            raise DataError(f"{repo}/{name}: {constants.ENDPOINT} is no hub; check HF_ENDPOINT")
        # By its commit: a branch may move on while 64 GB come.
        url = hf_hub_url(repo, name, repo_type=DATASET, revision=found.commit_hash)
        cached = _cache_path(repo, name, found.commit_hash)
        return HubFile(repo, name, url, found.size, found.etag, cached)


def download(repo: str, names: Sequence[str], target: Path, revision: str | None = None) -> Path:
    """Fetch files of a dataset, one after another into the one file `target`, which appears when complete.

    A download broken off, even by a kill, goes on where it stopped. Large files are checked against the hub's
    SHA-256 sums. A `target` of the right size is kept. Raises DataError: offline, missing, no space, broken.
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
    with plain_errors(f"{repo}/{names[0]}"):
        with exclusive(partial) as file:
            _append(parts, file)
        _check(partial, parts)
        os.replace(partial, target)
    return target


def require_space(folder: Path, needed: int) -> None:
    """Raises DataError unless `needed` bytes are free where `folder` is, or will be."""
    free = free_space(folder)
    if needed > free:
        raise DataError(f"{folder}: no space: {size_text(needed)} more needed, {size_text(free)} free")


def free_space(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    absolute = folder.absolute()
    return shutil.disk_usage(next(each for each in (absolute, *absolute.parents) if each.exists())).free


def size_text(size: int) -> str:
    """Bytes for people, in powers of 1000: `64.6 GB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def exclusive(path: Path) -> Iterator[BinaryIO]:
    """`path` open for appending, and for no other process. Raises DataError when another one has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{path}: another process is writing it") from None
        yield file


def _cached_file(repo: str, name: str, url: str, revision: str | None) -> HubFile:
    cached = _cache_path(repo, name, revision)
    if cached is None:
        raise OfflineModeIsEnabled
    # The cache names its blobs by their etags.
    return HubFile(repo, name, url, cached.stat().st_size, cached.resolve().name, cached)


def _cache_path(repo: str, name: str, revision: str | None) -> Path | None:
    found = try_to_load_from_cache(repo, name, repo_type=DATASET, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _append(parts: Sequence[HubFile], file: BinaryIO) -> None:
    """Bring `file` to the length of all parts, whatever length it has."""
    end = 0
    for part in parts:
        start, end = end, end + part.size
        while (here := file.seek(0, os.SEEK_END)) < end:
            if part.cached:
                _copy(part.cached, file, here - start)
            else:
                _fetch(part, file, here - start)
            if file.tell() <= here:
                raise DataError(f"{part.repo}/{part.name}: broken off; run again to go on")


def _copy(source: Path, file: BinaryIO, done: int) -> None:
    with source.open("rb") as cached:
        cached.seek(done)
        shutil.copyfileobj(cached, file, BLOCK)


def _fetch(part: HubFile, file: BinaryIO, done: int) -> None:
    """Append what lies after `done` bytes, or the part of it that came before the connection broke."""
    before = file.tell()
    # A compressed transfer could not go on from a byte of the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    try:
        http_get(
            part.url,
            file,
            resume_size=done,
            headers=headers,
            expected_size=part.size,
            displayed_filename=part.name,
            tqdm_class=cast(Any, ByteBar),
        )
    except httpx.TransportError:
        if file.tell() <= before:
            raise


def _check(partial: Path, parts: Sequence[HubFile]) -> None:
    """Compare SHA-256 sums with the hub's; a part that differs goes, and all after it."""
    good = 0
    with partial.open("rb+") as file:
        for part in parts:
            if not _sum_fits(file, part):
                file.truncate(good)
                raise DataError(f"{part.repo}/{part.name}: came damaged and was removed; run again")
            good += part.size
        file.truncate(good)


def _sum_fits(file: BinaryIO, part: HubFile) -> bool:
    """Read the next `part.size` bytes; small files have no SHA-256 on the hub and pass."""
    if not SHA256.fullmatch(part.etag):
        file.seek(part.size, os.SEEK_CUR)
        return True
    digest, left = hashlib.sha256(), part.size
    with ByteBar(total=part.size, desc=f"checking {part.name}") as bar:
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
            bar.update(len(block))
    return digest.hexdigest() == part.etag


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turns what the library and the disk raise into a DataError of one line that starts with `what`."""
    try:
        yield
    except (EntryNotFoundError, HFValidationError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise DataError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return reason
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered with status {error.response.status_code}; run again to go on"
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return f"no connection to {constants.ENDPOINT} ({error}); run again when there is one"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error).splitlines()[0]
