"""Folders that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import DataError


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
