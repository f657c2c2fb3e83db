"""What the page keeps of all its visitors together, within a limit of bytes."""

import ctypes
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Shelf(Generic[Value]):
    """One value for each visitor. Where all together are too much, those that were not asked for longest are given up.

    Safe to use from many threads.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, tuple[Hashable, Value, int]] = OrderedDict()  # the newest last
        self._lock = threading.Lock()

    def get(self, visitor: Hashable, made_of: Hashable) -> Value | None:
        """The visitor's value if it was made of this; else None, and it must be made again."""
        with self._lock:
            if visitor not in self._kept or self._kept[visitor][0] != made_of:
                return None
            self._kept.move_to_end(visitor)
            return self._kept[visitor][1]

    def put(self, visitor: Hashable, made_of: Hashable, value: Value, size: int) -> None:
        """Keep a value of so many bytes in place of the visitor's last one; the newest is kept however large it is."""
        with self._lock:
            self._kept.pop(visitor, None)
            self._kept[visitor] = (made_of, value, size)
            while len(self._kept) > 1 and sum(each[2] for each in self._kept.values()) > self.most_bytes:
                self._kept.popitem(last=False)
        _give_back()

    def drop(self, visitor: Hashable) -> None:
        """Keep nothing of a visitor any more."""
        with self._lock:
            self._kept.pop(visitor, None)
        _give_back()


def _give_back() -> None:
    """Hand freed memory back to the system: glibc keeps what lies between pieces in use, 280 MB of twenty slides."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
