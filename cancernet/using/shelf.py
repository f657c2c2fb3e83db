"""What the page keeps of all its visitors together, within a limit of bytes."""

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Value = TypeVar("Value")


class Visitor:
    """One session of the page. What is kept of it goes when the session does."""


class Shelf(Generic[Value]):
    """One value for each visitor. Where all together are too much, those that were not asked for longest are given up.

    Safe to use from many threads.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self._kept: WeakKeyDictionary[Visitor, tuple[Hashable, Value, int]] = WeakKeyDictionary()  # the newest last
        self._lock = threading.Lock()

    def get(self, visitor: Visitor, made_of: Hashable) -> Value | None:
        """The visitor's value if it was made of this; else None, and it must be made again."""
        with self._lock:
            kept = self._kept.get(visitor)
            if kept is None or kept[0] != made_of:
                return None
            self._kept[visitor] = self._kept.pop(visitor)
            return kept[1]

    def put(self, visitor: Visitor, made_of: Hashable, value: Value, size: int) -> None:
        """Keep a value of so many bytes in place of the visitor's last one; the newest is kept however large it is."""
        with self._lock:
            self._kept.pop(visitor, None)
            self._kept[visitor] = (made_of, value, size)
            others = [each for each in self._kept if each is not visitor]  # no session ends while this list is there
            while others and sum(each[2] for each in self._kept.values()) > self.most_bytes:
                del self._kept[others.pop(0)]
