"""Weights of 4 bits: layout, scales, and what GPTQ gains over rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from autoglm_export.errors import UnsupportedModel
from autoglm_export.quantize.int4 import best_scales, block_of, fitted, nearest, pack_int4, title_of
from autoglm_export.quantize.rounding import feedback_of
from autoglm_export.reproducible import kernels
from hypothesis import given, settings
from hypothesis import strategies as st

RANDOM = np.random.default_rng(0)


def correlated_inputs(num_tokens: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width)) * np.geomspace(1, 0.05, width)
    return (random.standard_normal((num_tokens, width)) @ mixing).astype(np.float32)


@given(st.integers(1, 9), st.integers(1, 6), st.data())
@settings(max_examples=50, deadline=None)
def test_packed_values_read_back(rows: int, pairs: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(-8, 7), min_size=rows * pairs * 2, max_size=rows * pairs * 2))
    values = np.array(numbers, np.int8).reshape(rows, 2 * pairs)
    packed = pack_int4(values)
    low, high = (packed & 0xF).astype(np.int8), (packed >> 4).astype(np.int8)
    read = np.stack([np.where(half > 7, half - 16, half) for half in (low, high)], axis=1).reshape(values.shape)
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(("width", "block"), [(4096, 128), (13696, 128), (576, 64), (96, 32), (48, 16), (16, 16)])
def test_blocks_divide_the_inputs(width: int, block: int) -> None:
    assert block_of(width, "layer") == block


def test_inputs_that_no_block_divides() -> None:
    with pytest.raises(
        UnsupportedModel, match=r"int4: layers\.0\.gate has 40 inputs, which no block of 16 \.\.\. 128 divides"
    ):
        block_of(40, "layers.0.gate")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_values_are_on_their_blocks_grid(dtype: type) -> None:
    weight = RANDOM.standard_normal((24, 96)).astype(np.float32)
    inputs = correlated_inputs(200, 96)
    made = fitted(weight, inputs, dtype, "layer")
    assert made.values.shape == (96, 24)
    assert made.scales.shape == (3, 24)
    assert made.scales.dtype == dtype
    assert np.abs(made.values).max() <= 7
    by_hand = np.array(
        [[float(made.values[i, o]) * float(made.scales[i // 32, o]) for i in range(96)] for o in range(24)], np.float32
    )
    np.testing.assert_allclose(made.restored(), by_hand, rtol=1e-6)


def test_weights_on_the_grid_stay_as_they_are() -> None:
    steps = RANDOM.integers(-7, 8, (8, 64)).astype(np.float32)
    steps[:, 0], steps[:, 32] = 7, -7  # each block of 32 reaches its scale's end
    weight = steps * np.float32(0.125)
    made = fitted(weight, np.eye(64, dtype=np.float32), np.float16, "layer")
    np.testing.assert_array_equal(made.restored(), weight)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_compensation_beats_rounding(seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((16, 64)).astype(np.float32)
    inputs = correlated_inputs(256, 64, seed)
    gram = inputs.T @ inputs
    scales = best_scales(weight, np.diag(gram), 64, np.float32)
    rounded = np.clip(np.rint(weight / scales[0][:, None]), -7, 7) * scales[0][:, None]
    made = fitted(weight, inputs, np.float32, "layer").restored()
    error, plain = (float(np.square(inputs @ (w - weight).T).sum()) for w in (made, rounded))
    assert error < 0.8 * plain


@pytest.mark.slow
def test_compensation_is_that_of_the_inverse() -> None:
    """One input after another on the inverse of what is left of the Gram matrix, as the OBQ and GPTQ papers have it.

    Each number is rounded to a step that is nearest to what the papers have left of it there. The steps taken are
    followed, not compared: between two steps the last bit decides, and all that comes after depends on it.
    """
    weight = RANDOM.standard_normal((5, 150)).astype(np.float32)
    inputs = correlated_inputs(400, 150, 3).astype(np.float32)
    scales, scale_rows = np.full((1, 5), 0.3, np.float32), np.zeros(150, np.int32)
    made = kernels().round_columns(weight, scales, scale_rows, 127, feedback_of(inputs, 0.01))
    gram = inputs.T @ inputs
    damped = gram.astype(np.float64) + 0.01 * np.diag(gram).mean() * np.eye(150)
    rest, left = weight.astype(np.float64).copy(), list(range(149, -1, -1))
    while left:
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        error = rest[:, left[0]] - made[:, left[0]] * 0.3
        assert np.abs(error).max() < 0.5002 * 0.3, f"input {left[0]} is rounded away from the nearest step"
        rest[:, left] -= (error / inverse[0, 0])[:, None] * inverse[0]
        left.pop(0)


def test_inputs_that_are_never_seen() -> None:
    weight = RANDOM.standard_normal((4, 32)).astype(np.float32)
    made = fitted(weight, np.zeros((3, 32), np.float32), np.float16, "layer").restored()
    assert np.isfinite(made).all()
    assert np.abs(made - weight).max() < 0.5


def test_rounding_to_the_nearest_is_the_best_without_knowledge_of_the_inputs() -> None:
    weight = RANDOM.standard_normal((8, 64)).astype(np.float32)
    made = nearest(weight, np.float16, "layer")
    steps = np.arange(-7, 8)[:, None, None] * np.repeat(made.scales.astype(np.float32), 64, axis=0).T
    np.testing.assert_allclose(np.abs(made.restored() - weight), np.abs(steps - weight).min(axis=0), atol=1e-6)


def test_titles_name_their_layers() -> None:
    assert title_of(["layers.7.query", "layers.7.key", "layers.7.value"]) == "layers.7.query+key+value"
    assert title_of(["layers.7.down"]) == "layers.7.down"
