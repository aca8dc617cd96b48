"""Folder: where an index is built, and how it takes the place of an old one without ever being half there.

An index is built in `.NAME.building`, a sibling of its target, and renamed when it is complete. An old index
waits as `.NAME.building.old` until the new one is in place.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retriever_server.building.store import MANIFEST_FILE
from retriever_server.errors import RetrieverError, TooLittleMemory


class IndexTarget:
    """The path of an index, the `folder` in which it is built, and where an `old` one waits meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(f".{path.name}.building")
        self.old = path.with_name(f".{path.name}.building.old")

    def check(self) -> None:
        """Raise RetrieverError if the target holds anything but an index, which --force would delete."""
        is_index = (self.path / MANIFEST_FILE).is_file()
        is_empty = self.path.is_dir() and not any(self.path.iterdir())
        if self.path.exists() and not is_index and not is_empty:
            raise RetrieverError(f"{self.path} exists and is not an index directory; choose another path")

    @contextmanager
    def building(self) -> Iterator[Path]:
        """The folder to build in, locked for this process.

        A mistake of the user's removes it; anything else keeps it, so that what is encoded is not lost.
        """
        self.folder.mkdir(exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield self.folder
        except BlockingIOError as error:
            raise RetrieverError(f"{self.path} is being built by another process; wait for it") from error
        except TooLittleMemory:
            raise
        except RetrieverError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)

    def restore_old(self) -> None:
        """Put the old index back after a build that was killed between its two renames: none is in place."""
        if (self.old / MANIFEST_FILE).is_file() and not self.path.exists():
            with self.building():  # locked: nobody is about to rename the new one
                if not self.path.exists():
                    os.rename(self.old, self.path)

    def publish(self) -> None:
        """Rename the folder to the target; an old target is moved aside first and removed last."""
        if self.path.exists():
            remove(self.old)  # left by a build that was killed after publishing
            os.rename(self.path, self.old)
        os.rename(self.folder, self.path)
        with suppress(OSError):  # the new index is in place; the next build tries again
            remove(self.old)


def remove(path: Path) -> None:
    """Remove a file, a link, or a whole directory."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
