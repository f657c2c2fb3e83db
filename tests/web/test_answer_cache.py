"""The shelf holds one value for each visitor, and no more bytes than it may."""

from cancernet.web.answer_cache import Shelf


def test_a_value_is_kept_while_it_is_made_of_the_same():
    shelf = Shelf(100)
    assert shelf.get("ann", "files") is None
    shelf.put("ann", "files", [1], 10)
    assert shelf.get("ann", "files") == [1]
    assert shelf.get("ann", "other files") is None
    shelf.put("ann", "other files", [2], 10)
    assert shelf.get("ann", "files") is None


def test_those_not_asked_for_longest_are_given_up():
    shelf = Shelf(100)
    for visitor in ("ann", "bob", "cem"):
        shelf.put(visitor, 1, visitor.upper(), 33)
    assert shelf.get("ann", 1) == "ANN"
    shelf.put("dia", 1, "DIA", 33)  # 132 bytes: one has to go
    assert [shelf.get(visitor, 1) for visitor in ("ann", "bob", "cem", "dia")] == ["ANN", None, "CEM", "DIA"]


def test_the_newest_is_kept_however_large():
    shelf = Shelf(100)
    shelf.put("ann", 1, "small", 10)
    shelf.put("bob", 1, "large", 1000)
    assert (shelf.get("ann", 1), shelf.get("bob", 1)) == (None, "large")
    shelf.put("bob", 2, "small", 10)  # what it replaces does not count
    shelf.put("ann", 1, "small", 90)
    assert (shelf.get("ann", 1), shelf.get("bob", 2)) == ("small", "small")


def test_nothing_is_kept_of_a_visitor_who_left():
    shelf = Shelf(100)
    shelf.put("ann", 1, "large", 80)
    shelf.put("bob", 1, "small", 10)
    shelf.drop("ann")
    shelf.drop("ann")  # nothing is left of her
    assert shelf.get("ann", 1) is None
    shelf.put("cem", 1, "large", 80)  # there is room for it now
    assert shelf.get("bob", 1) == "small"
