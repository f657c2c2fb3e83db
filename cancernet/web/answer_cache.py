"""Results for all visitors of the page, kept within one memory limit."""

import ctypes
import sys
import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class AnswerCache(Generic[Value]):
    """Keep the latest value of each visitor; evict the least recently used ones above the byte limit. Thread-safe."""

    def __init__(self, max_bytes: int):
        # An entry is key, value and size. The newest is kept however large it is: at most, it evicts all others.
        self._entries: LRUCache[Hashable, tuple[Hashable, Value, int]]
        self._entries = LRUCache(max_bytes, getsizeof=lambda entry: min(entry[2], max_bytes))
        self._lock = threading.Lock()

    def get(self, visitor: Hashable, key: Hashable) -> Value | None:
        """Return the visitor's value, or None if there is none or it was computed from something else."""
        with self._lock:
            entry = self._entries.get(visitor)
            return entry[1] if entry and entry[0] == key else None

    def put(self, visitor: Hashable, key: Hashable, value: Value, size: int) -> None:
        """Replace the visitor's value by one of `size` bytes."""
        with self._lock:
            self._entries[visitor] = (key, value, size)
        _release_memory()

    def drop(self, visitor: Hashable) -> None:
        """Remove the visitor's value, if any."""
        with self._lock:
            self._entries.pop(visitor, None)
        _release_memory()


def _release_memory() -> None:
    """Return freed memory to the system: glibc keeps free blocks that lie between used ones, 280 MB of 20 slides."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
