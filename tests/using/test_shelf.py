"""The shelf holds one value for each visitor, and no more bytes than it may."""

import gc
import sys

import pytest

from cancernet.using.shelf import Shelf, Visitor


@pytest.fixture
def visitors():
    return {name: Visitor() for name in ("ann", "bob", "cem", "dia")}


def test_a_value_is_kept_while_it_is_made_of_the_same(visitors):
    shelf = Shelf(100)
    assert shelf.get(visitors["ann"], "files") is None
    shelf.put(visitors["ann"], "files", [1], 10)
    assert shelf.get(visitors["ann"], "files") == [1]
    assert shelf.get(visitors["ann"], "other files") is None
    shelf.put(visitors["ann"], "other files", [2], 10)
    assert shelf.get(visitors["ann"], "files") is None


def test_those_not_asked_for_longest_are_given_up(visitors):
    shelf = Shelf(100)
    for visitor in ("ann", "bob", "cem"):
        shelf.put(visitors[visitor], 1, visitor.upper(), 33)
    assert shelf.get(visitors["ann"], 1) == "ANN"
    shelf.put(visitors["dia"], 1, "DIA", 33)  # 132 bytes: one has to go
    assert [shelf.get(visitors[visitor], 1) for visitor in ("ann", "bob", "cem", "dia")] == ["ANN", None, "CEM", "DIA"]


def test_the_newest_is_kept_however_large(visitors):
    shelf = Shelf(100)
    shelf.put(visitors["ann"], 1, "small", 10)
    shelf.put(visitors["bob"], 1, "large", 1000)
    assert (shelf.get(visitors["ann"], 1), shelf.get(visitors["bob"], 1)) == (None, "large")
    shelf.put(visitors["bob"], 2, "small", 10)  # what it replaces does not count
    shelf.put(visitors["ann"], 1, "small", 90)
    assert (shelf.get(visitors["ann"], 1), shelf.get(visitors["bob"], 2)) == ("small", "small")


def test_nothing_is_kept_of_a_visitor_who_left(visitors):
    shelf = Shelf(100)
    kept = Visitor()  # stands for a value that is large
    shelf.put(visitors["ann"], 1, kept, 10)
    shelf.put(visitors["bob"], 1, "small", 80)
    assert sys.getrefcount(kept) == 3
    del visitors["ann"]
    gc.collect()
    assert sys.getrefcount(kept) == 2  # here, and as the argument
    shelf.put(visitors["cem"], 1, "small", 20)  # there is room for it now
    assert shelf.get(visitors["bob"], 1) == "small"
