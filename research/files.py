"""Folders that appear whole or not at all, and files that lose the line which a kill cut off."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from research.errors import DataError


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files become those of `folder` if the block ends well.

    A new folder appears whole; in an old one file after file is replaced. Raises DataError if that fails.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside, prefix = folder.parent, f".{folder.name}."
        with tempfile.TemporaryDirectory(prefix=prefix, dir=beside, ignore_cleanup_errors=True) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # made for its owner alone
            yield scratch
            if folder.exists():
                for file in scratch.iterdir():
                    os.replace(file, folder / file.name)
            else:
                scratch.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error


def cut_half_line(path: Path) -> None:
    """Take off a last line that was not written to its end: the next would be appended to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read() in (b"", b"\n"):
            return
        file.seek(0)
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
