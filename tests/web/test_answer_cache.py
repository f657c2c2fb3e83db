"""The cache holds one value for each visitor, within its byte limit."""

from cancernet.web.answer_cache import AnswerCache


def test_a_value_is_found_by_visitor_and_key():
    cache = AnswerCache(100)
    assert cache.get("ann", "files") is None
    cache.put("ann", "files", [1], 10)
    assert cache.get("ann", "files") == [1]
    assert cache.get("ann", "other files") is None
    cache.put("ann", "other files", [2], 10)
    assert cache.get("ann", "files") is None


def test_the_least_recently_used_value_is_evicted():
    cache = AnswerCache(100)
    for visitor in ("ann", "bob", "cem"):
        cache.put(visitor, 1, visitor.upper(), 33)
    assert cache.get("ann", 1) == "ANN"
    cache.put("dia", 1, "DIA", 33)  # 132 bytes: one is evicted
    assert [cache.get(visitor, 1) for visitor in ("ann", "bob", "cem", "dia")] == ["ANN", None, "CEM", "DIA"]


def test_the_newest_is_kept_however_large():
    cache = AnswerCache(100)
    cache.put("ann", 1, "small", 10)
    cache.put("bob", 1, "large", 1000)
    assert (cache.get("ann", 1), cache.get("bob", 1)) == (None, "large")
    cache.put("bob", 2, "small", 10)  # the replaced value does not count
    cache.put("ann", 1, "small", 90)
    assert (cache.get("ann", 1), cache.get("bob", 2)) == ("small", "small")


def test_nothing_is_kept_of_a_visitor_who_left():
    cache = AnswerCache(100)
    cache.put("ann", 1, "large", 80)
    cache.put("bob", 1, "small", 10)
    cache.drop("ann")
    cache.drop("ann")  # nothing is left of her
    assert cache.get("ann", 1) is None
    cache.put("cem", 1, "large", 80)  # there is room for it now
    assert cache.get("bob", 1) == "small"
