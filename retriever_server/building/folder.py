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


def siblings(target: Path) -> tuple[Path, Path]:
    """Where `target` is built, and where an old index waits meanwhile."""
    return target.with_name(f".{target.name}.building"), target.with_name(f".{target.name}.building.old")


def check_target(target: Path) -> None:
    """Raise RetrieverError if `target` holds anything but an index: --force would delete it."""
    is_index = (target / MANIFEST_FILE).is_file()
    is_empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not is_index and not is_empty:
        raise RetrieverError(f"{target} exists and is not an index directory; choose another path")


@contextmanager
def building_folder(target: Path) -> Iterator[Path]:
    """The folder to build `target` in, locked for this process.

    A mistake of the user's removes it; anything else keeps it, so that what is encoded is not lost.
    """
    folder, _ = siblings(target)
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    except BlockingIOError as error:
        raise RetrieverError(f"{target} is being built by another process; wait for it") from error
    except TooLittleMemory:
        raise
    except RetrieverError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def restore_old_index(target: Path) -> None:
    """Put the old index back after a build that was killed between its two renames: the target is missing."""
    _, old = siblings(target)
    if (old / MANIFEST_FILE).is_file() and not target.exists():
        with building_folder(target):  # locked: nobody is about to rename the new one
            if not target.exists():
                os.rename(old, target)


def publish(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; an old target is moved aside first and removed last."""
    _, old = siblings(target)
    if target.exists():
        remove(old)  # left by a build that was killed after publishing
        os.rename(target, old)
    os.rename(folder, target)
    with suppress(OSError):  # the new index is in place; the next build tries again
        remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link, or a whole directory."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
