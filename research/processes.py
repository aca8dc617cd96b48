"""Child processes that never outlive us, and folders for one process at a time. Linux.

The process that calls :func:`adopt_orphans` becomes the parent of every descendant whose own parent dies (Ray
and vLLM start dozens), so :func:`stop_descendants` finds them all without searching by name.
"""

import ctypes
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


@contextmanager
def alone_in(folder: Path, error: type[Exception]) -> Iterator[None]:
    """The folder, created if missing, locked for this process. Raises `error` if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise error(f"another process works in {folder}") from cause
        yield


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends, by SIGKILL too."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Terminated(BaseException):
    """SIGTERM as an exception, so that ``finally`` blocks run; like KeyboardInterrupt not an Exception."""


def raise_on_terminate() -> None:
    """Turn SIGTERM into :class:`Terminated` in the main thread."""

    def handler(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, handler)


def start(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own (ctrl-C reaches us alone), its output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


DEATH_SECONDS = 10.0  # after SIGKILL; longer only in an uninterruptible system call


def stop(process: subprocess.Popen[bytes], patience: float) -> None:
    """End a process: SIGTERM, then SIGKILL after ``patience`` seconds.

    One that SIGKILL does not end is left, and named on standard error.
    """
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            _print_left([process.pid])


def finish(process: subprocess.Popen[bytes], patience: float) -> int:
    """Wait for a child and return its exit code; stop it within `patience` seconds if we end first."""
    try:
        return process.wait()
    finally:
        stop(process, patience)


def _print_left(pids: Iterable[int]) -> None:
    named = ", ".join(map(str, pids))
    print(f"left behind, as SIGKILL does not end it (a system call hangs): process {named}", file=sys.stderr)


def stop_descendants(patience: float = 5.0, death: float = DEATH_SECONDS) -> None:
    """End every descendant: SIGTERM, then SIGKILL after ``patience`` seconds, until there is none.

    Those that SIGKILL has not ended ``death`` seconds later are left, and named on standard error.
    """
    deadline = time.monotonic() + patience
    while children := psutil.Process().children(recursive=True):
        if time.monotonic() > deadline + death:
            return _print_left(child.pid for child in children)
        for child in children:
            try:
                child.kill() if time.monotonic() > deadline else child.terminate()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=0.5)


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, or an empty string."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200 * lines))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
