"""Main memory: check that there is enough before taking it, so that the kernel does not kill the process."""

import psutil

from retriever_server.errors import TooLittleMemory

GB = 1e9


def require_memory(needed: int, what: str, advice: str, free: int | None = None) -> None:
    """Raise TooLittleMemory if `what` takes more than `free` bytes (None: what the system has available)."""
    free = psutil.virtual_memory().available if free is None else free
    if needed > free:
        raise TooLittleMemory(
            f"{what} takes {needed / GB:.1f} GB of main memory, {free / GB:.1f} GB are free: {advice}"
        )
