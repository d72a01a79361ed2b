"""Token ids of images: the same ones for the same image of a tenant alone, also when all were given once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from autoglm_engine.core import Request, TokenIds
from autoglm_engine.engine.images.image_ids import ImageIds
from autoglm_engine.errors import Unavailable
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.engine_bench import Bench
from tests.support.engine.fakes import answers, request
from tests.support.engine.images import Picture, with_images
from tests.vision.test_image_engine import CAT, DOG, asked, bench, expected


def number(ids: ImageIds, *parts: int | Picture, tenant: str = "", in_use: Iterable[TokenIds] = ()) -> list[int]:
    found: list[int] = ids.number(replace(with_images(request(), *parts), tenant=tenant), lambda: in_use).tolist()
    return found


def test_equal_images_have_equal_ids_and_others_have_others() -> None:
    ids = ImageIds(lambda: None)
    prompt = number(ids, 5, CAT, 6, DOG)
    assert prompt == [5, *range(-1, -7, -1), 6, *range(-7, -13, -1)]
    assert number(ids, DOG, CAT) == [*range(-7, -13, -1), *range(-1, -7, -1)]
    assert number(ids, Picture(CAT.file, (3, 2))) == [*range(-13, -19, -1)]
    assert number(ids, CAT, tenant="other") == [*range(-19, -25, -1)]


def test_an_image_that_is_forgotten_gets_new_ids() -> None:
    ids = ImageIds(lambda: None, max_images=2)
    first, other = number(ids, CAT), number(ids, DOG)
    number(ids, CAT)
    number(ids, Picture(b"third"))
    assert number(ids, CAT) == first
    assert number(ids, DOG) != other


def test_ids_that_are_used_up_are_given_anew_once_the_slots_forget() -> None:
    forgotten: list[int] = []
    ids = ImageIds(lambda: forgotten.append(1), half=8)
    assert number(ids, CAT)[0] == -1 and not forgotten
    in_use = np.array(number(ids, DOG), np.int32)
    assert in_use.tolist() == [*range(-9, -15, -1)] and len(forgotten) == 1
    assert number(ids, Picture(b"third"), in_use=[]) == [*range(-1, -7, -1)] and len(forgotten) == 2
    assert number(ids, CAT, in_use=[])[0] == -9, "ids that were given anew are its own no more"
    in_use = np.array(number(ids, CAT), np.int32)
    number(ids, Picture(b"fifth"), in_use=[])
    with pytest.raises(Unavailable, match="all ids of image tokens were given since a request came"):
        number(ids, Picture(b"fourth"), in_use=[in_use])


def test_the_last_id_is_the_least_int32() -> None:
    ids = ImageIds(lambda: None)
    ids._is_second, ids._num_taken = True, (1 << 30) - 6
    assert number(ids, CAT)[-1] == -(2**31)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_no_two_images_share_an_id_while_anybody_has_it(data: st.DataObject) -> None:
    """Of those alive: in use, or kept in a slot that was not made to forget."""
    owners: dict[int, tuple[object, int]] = {}
    kept: list[TokenIds] = []
    in_use: list[TokenIds] = []
    ids = ImageIds(kept.clear, half=20, max_images=3)
    for _ in range(40):
        picture = Picture(bytes([data.draw(st.integers(0, 6))]), data.draw(st.sampled_from([(1, 1), (2, 3), (3, 2)])))
        try:
            tokens = np.array(number(ids, picture, in_use=in_use), np.int32)
        except Unavailable:
            in_use.clear()
            continue
        alive = {token for other in (*kept, *in_use) for token in other.tolist()}
        for place, token in enumerate(tokens.tolist()):
            assert token not in alive or owners[token] == (picture, place)
            owners[token] = picture, place
        (in_use if data.draw(st.booleans()) else kept).append(tokens)
        if len(in_use) > 2:
            kept.append(in_use.pop(0))


@pytest.mark.parametrize("num_slots", [1, 3])
def test_an_engine_whose_ids_are_used_up_time_and_again(num_slots: int) -> None:
    one: Bench = bench(num_slots=num_slots)
    assert one.images
    one.images.ids._half = 20
    prompts = [[place % 3, Picture(bytes([place % 7])), 1, Picture(bytes([place % 5, 1]))] for place in range(60)]
    for start in range(0, 60, 2):
        one.run(*(asked(f"r{place}", prompts[place]) for place in (start, start + 1)))  # type: ignore[arg-type]
    found = answers(one.events)
    failed = [answer for answer in found.values() if answer.last.error]
    assert all("all ids of image tokens" in str(answer.last.error) for answer in failed) and len(failed) < 20
    for place, parts in enumerate(prompts):
        if not (answer := found[f"r{place}"]).last.error:
            assert answer.token_ids == expected(parts)  # type: ignore[arg-type]


def test_the_request_keeps_the_models_ids() -> None:
    made: Request = with_images(request(), 5, CAT)
    before = made.prompt_ids.copy()
    ImageIds(lambda: None).number(made, lambda: ())
    np.testing.assert_array_equal(made.prompt_ids, before)
