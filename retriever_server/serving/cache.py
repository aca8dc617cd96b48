"""Cache: the values that were used last, as many as fit into a number of bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

ENTRY_BYTES = 400  # of an entry beside its key's and value's own: measured for short tuples and small arrays


class Cache:
    """Least recently used goes first. Not locked: its owner sees to that."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any | None:
        """The value of `key`, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: Any, value_bytes: int) -> None:
        """Keep `value`, which takes `value_bytes` with its key; one larger than the whole cache is not
        kept.
        """
        size = value_bytes + ENTRY_BYTES
        self._drop(key)
        if size > self._max_bytes:
            return
        self._entries[key] = (value, size)
        self.bytes += size
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Hashable) -> None:
        _, size = self._entries.pop(key, (None, 0))
        self.bytes -= size
