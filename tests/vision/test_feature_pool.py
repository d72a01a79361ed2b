"""Rows of features: of one image each, for those who use it, and taken from nobody."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.engine.images.feature_pool import FeaturePool, ImageFeatures, ImageKey
from autoglm_engine.errors import EngineError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine.images import HIDDEN, features_of


def key(name: str, rows: int = 2, columns: int = 2) -> ImageKey:
    return "", name.encode(), (rows, columns)


def ready(pool: FeaturePool, found: ImageFeatures) -> None:
    pool.store(found, features_of(found.key[1], found.key[2]))
    found.is_ready = True


def reserved(pool: FeaturePool, *names: str) -> list[ImageFeatures]:
    found = pool.reserve([key(name) for name in names])
    assert found is not None
    return found


def test_what_was_used_least_recently_makes_room() -> None:
    pool = FeaturePool(8, HIDDEN)
    for found in reserved(pool, "a", "b"):
        ready(pool, found)
        pool.release(found)
    pool.release(reserved(pool, "a")[0])
    (new,) = reserved(pool, "c")
    assert not new.is_ready and reserved(pool, "a")[0].is_ready
    assert pool.usage == 1
    pool.check()


def test_all_or_nothing_is_reserved() -> None:
    pool = FeaturePool(8, HIDDEN)
    (held,) = reserved(pool, "a")
    assert pool.reserve([key("b"), key("c")]) is None
    assert pool.usage == 0.5 and len(reserved(pool, "a", "b")) == 2
    assert held.num_users == 2
    pool.check()


def test_rows_that_are_being_written_are_not_given_away() -> None:
    """Nobody wants the image any more; its encode goes on."""
    pool = FeaturePool(4, HIDDEN)
    (found,) = reserved(pool, "a")
    pool.release(found)
    assert pool.reserve([key("b")]) is None
    ready(pool, found)
    assert pool.reserve([key("b")]) is not None


def test_an_image_twice_in_a_request_has_its_rows_once() -> None:
    pool = FeaturePool(4, HIDDEN)
    first, second = reserved(pool, "a", "a")
    assert first is second and first.num_users == 2
    pool.release(first)
    assert pool.usage == 1
    pool.release(second)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(second)


def test_what_failed_is_free_and_tried_again() -> None:
    pool = FeaturePool(4, HIDDEN)
    (found,) = reserved(pool, "a")
    pool.fail(found, EngineError("no"))
    assert reserved(pool, "a")[0] is not found
    pool.release(found)
    pool.check()


def test_a_damaged_pool_is_found() -> None:
    pool = FeaturePool(8, HIDDEN)
    reserved(pool, "a")[0].rows[0] = 7
    with pytest.raises(EngineError, match="the memory of image features is damaged"):
        pool.check()


@given(st.data())
def test_whatever_comes_each_has_its_own_features(data: st.DataObject) -> None:
    pool = FeaturePool(12, HIDDEN)
    held: list[ImageFeatures] = []
    for _ in range(30):
        names = data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=2))
        shapes = {"a": (1, 1), "b": (2, 2), "c": (1, 5)}
        found = pool.reserve([key(name, *shapes.get(name, (2, 1))) for name in names])
        for one in found or ():
            if not one.is_ready and data.draw(st.booleans()):
                ready(pool, one)
        held += found or ()
        while held and data.draw(st.booleans()):
            pool.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        pool.check()
        for one in held:
            if one.is_ready:
                expected = features_of(one.key[1], one.key[2])
                np.testing.assert_array_equal(pool.gather(one, 0, len(one.rows)), expected)
