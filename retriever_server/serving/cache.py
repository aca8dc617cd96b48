"""Cache: the most recently used values, as many as fit into a number of bytes.

By hand, because cachetools' LRUCache would have to measure an entry's bytes from its value alone.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

ENTRY_BYTES = 400  # overhead per entry, measured for short tuples and small arrays


class Cache:
    """Evicts the least recently used first. Not locked: the owner does that."""

    def __init__(self, max_bytes: int) -> None:
        """Keep nothing if `max_bytes` is 0."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any | None:
        """The value of `key`, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: Any, value_bytes: int) -> None:
        """Keep `value`, which takes `value_bytes` with its key, unless it is larger than the whole cache."""
        size = value_bytes + ENTRY_BYTES
        self.bytes -= self._entries.pop(key, (None, 0))[1]
        if size > self._max_bytes:
            return
        self._entries[key] = (value, size)
        self.bytes += size
        while self.bytes > self._max_bytes:
            self.bytes -= self._entries.popitem(last=False)[1][1]
