"""Results for all visitors of the page, kept within one memory limit."""

import ctypes
import sys
import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:  # it imports Keras
    from cancernet.web.page import Answer


class AnswerCache:
    """Keep the latest answer of each visitor; evict the least recently used ones above the byte limit. Thread-safe."""

    def __init__(self, max_bytes: int):
        # An entry is key, answer and size. The newest is kept however large it is: at most, it evicts all others.
        self._entries: LRUCache[Hashable, tuple[Hashable, Answer, int]] = LRUCache(
            max_bytes, getsizeof=lambda entry: min(entry[2], max_bytes)
        )
        self._lock = threading.Lock()

    def get(self, visitor: Hashable, key: Hashable) -> "Answer | None":
        """Return the visitor's answer, or None if there is none or it was computed from something else."""
        with self._lock:
            entry = self._entries.get(visitor)
            return entry[1] if entry and entry[0] == key else None

    def put(self, visitor: Hashable, key: Hashable, answer: "Answer", size: int) -> None:
        """Replace the visitor's answer by one of `size` bytes."""
        with self._lock:
            self._entries[visitor] = (key, answer, size)
        _release_memory()

    def drop(self, visitor: Hashable) -> None:
        """Remove the visitor's answer, if any."""
        with self._lock:
            self._entries.pop(visitor, None)
        _release_memory()


def _release_memory() -> None:
    """Return freed memory to the system: glibc keeps free blocks that lie between used ones, 280 MB of 20 slides."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
