"""Files and folders that appear whole or not at all, and files that end in the line a kill cut off."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from research.errors import DataError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary neighbour to write: it becomes `path` if the block ends well, else it is removed.

    Raises DataError if `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all. Raises DataError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files become those of `folder` if the block ends well.

    A new folder appears whole; in an existing one the files are replaced one by one. Raises DataError if
    that fails.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside, prefix = folder.parent, f".{folder.name}."
        with tempfile.TemporaryDirectory(prefix=prefix, dir=beside, ignore_cleanup_errors=True) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # tempfile makes it readable for its owner alone
            yield scratch
            if folder.exists():
                for file in scratch.iterdir():
                    os.replace(file, folder / file.name)
            else:
                scratch.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    except Exception as error:  # safetensors has an error of its own
        if (full := os.strerror(errno.ENOSPC)) not in str(error):
            raise
        raise DataError(f"{folder}: cannot be written ({full})") from error


def check_writable(folder: Path) -> None:
    """Raises OSError if it is not, which it tries: permissions do not show it (/proc, a read-only disk).

    Leaves nothing behind.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for each in missing:
            with suppress(OSError):
                each.rmdir()


def require_new(folder: Path) -> None:
    """Raises DataError for a folder that exists and holds something, or a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already: remove it or choose another folder")


def link_or_copy(source: str, target: str) -> None:
    """A hard link, which takes no disk space, or a copy on a file system without them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, so that several processes may append to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = memoryview(line.encode() + b"\n")
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file, with their line ends, without a half line that a kill left at the end."""
    if path.exists():
        with path.open("rb") as lines:  # a kill may also have cut a character
            yield from (line.decode(errors="replace") for line in lines if line.endswith(b"\n"))


def cut_half_line(path: Path) -> None:
    """Remove an unfinished last line, which the next line would be appended to."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read() in (b"", b"\n"):
            return
        file.seek(0)
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
