"""Positions are those that transformers computes, for any images, and for any part of a sequence by itself."""

from __future__ import annotations

from types import MethodType, SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import ImageSpan
from autoglm_engine.vision.positions import rope_positions
from hypothesis import given
from hypothesis import strategies as st

MERGE = 2
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))
GAPS = st.integers(1, 6)  # tokens of text before an image; transformers cannot tell images apart that touch
PIECES = st.lists(st.tuples(GAPS, GRIDS), max_size=5)


def images_of(pieces: list[tuple[int, tuple[int, int]]]) -> tuple[list[ImageSpan], int]:
    """And the place behind the last one."""
    images, place = [], 0
    for gap, grid in pieces:
        images.append(ImageSpan(place + gap, grid, bytes(32)))
        place = images[-1].end
    return images, place


def positions_of_transformers(images: list[ImageSpan], length: int, family: str) -> npt.NDArray[np.int64]:
    torch = pytest.importorskip("torch")
    from transformers.models.glm4v.modeling_glm4v import Glm4vModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    kind = {"glm4v": Glm4vModel, "qwen3_vl": Qwen3VLModel}[family]
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE)))
    model.get_vision_position_ids = MethodType(kind.get_vision_position_ids, model)
    kinds = torch.zeros(1, length, dtype=torch.int32)
    for image in images:
        kinds[0, image.offset : image.end] = 1
    grids = torch.tensor([[1, image.grid[0] * MERGE, image.grid[1] * MERGE] for image in images]).reshape(-1, 3)
    ids = torch.zeros(1, length, dtype=torch.int64)
    found, _ = kind.get_rope_index(model, ids, mm_token_type_ids=kinds, image_grid_thw=grids)
    return np.asarray(found[:, 0])


@pytest.mark.parity
@pytest.mark.parametrize("family", ["glm4v", "qwen3_vl"])
@given(PIECES, st.integers(1, 6))
def test_positions_are_those_of_transformers(family: str, pieces: list[tuple[int, tuple[int, int]]], tail: int) -> None:
    images, end = images_of(pieces)
    positions = rope_positions(images, 0, end + tail)
    assert positions.dtype == np.int32
    np.testing.assert_array_equal(positions, positions_of_transformers(images, end + tail, family))


@given(st.lists(st.tuples(st.integers(0, 3), GRIDS), max_size=5), st.data())
def test_a_part_has_the_positions_that_it_has_in_the_whole(
    pieces: list[tuple[int, tuple[int, int]]], data: st.DataObject
) -> None:
    images, end = images_of(pieces)
    whole = rope_positions(images, 0, end + 20)
    start = data.draw(st.integers(0, end + 19))
    count = data.draw(st.integers(1, end + 20 - start))
    np.testing.assert_array_equal(rope_positions(images, start, count), whole[:, start : start + count])


def test_text_goes_on_behind_the_larger_side() -> None:
    positions = rope_positions([ImageSpan(1, (2, 3), bytes(32))], 0, 9)
    np.testing.assert_array_equal(
        positions,
        [
            [0, 1, 1, 1, 1, 1, 1, 4, 5],
            [0, 1, 1, 1, 2, 2, 2, 4, 5],
            [0, 1, 2, 3, 1, 2, 3, 4, 5],
        ],
    )
