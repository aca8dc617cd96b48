"""Main memory: is there enough, said before it is taken instead of by the kernel's killer afterwards."""

import psutil

from retriever_server.errors import TooLittleMemory

GB = 1e9


def require_memory(needed: int, what: str, advice: str, free: int | None = None) -> None:
    """Raises TooLittleMemory when `what` takes more than the `free` bytes (None: what the system has)."""
    free = psutil.virtual_memory().available if free is None else free
    if needed > free:
        raise TooLittleMemory(
            f"{what} takes {needed / GB:.1f} GB of main memory, {free / GB:.1f} GB are free: {advice}"
        )
