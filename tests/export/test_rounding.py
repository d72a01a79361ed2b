"""Rounding of weights: alone, and fitted to what a layer reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autoglm_export.quantize.rounding import LARGEST, round_columns
from hypothesis import given, settings
from hypothesis import strategies as st


def correlated(tokens: int, inputs: int, seed: int = 0) -> Any:
    """Rows that vary mostly within a tenth of their dimensions."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((tokens, max(1, inputs // 10))) @ random.standard_normal(
        (max(1, inputs // 10), inputs)
    )
    return (common + 0.1 * random.standard_normal((tokens, inputs))).astype(np.float32)


def random_weight(columns: int, inputs: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((columns, inputs)).astype(np.float32)


def product_error(weight: Any, inputs: Any, fitted_to: Any) -> float:
    values, scales = round_columns(weight, fitted_to)
    return float(np.linalg.norm(inputs @ (values * scales[:, None] - weight).T))


def test_fitted_weights_keep_products_they_were_not_fitted_to() -> None:
    rows, weight = correlated(600, 150), random_weight(40, 150)
    assert product_error(weight, rows[300:], rows[:300]) < 0.4 * product_error(weight, rows[300:], None)


@settings(deadline=None, max_examples=30)
@given(columns=st.integers(1, 5), inputs=st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
def test_alone_every_weight_is_within_half_a_step(columns: int, inputs: int, seed: int) -> None:
    weight = random_weight(columns, inputs, seed)
    values, scales = round_columns(weight)
    assert (np.abs(values * scales[:, None] - weight) <= scales[:, None] * 0.5001).all()


@settings(deadline=None, max_examples=30)
@given(columns=st.integers(1, 5), inputs=st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
def test_fitting_changes_neither_scales_nor_range(columns: int, inputs: int, seed: int) -> None:
    weight = random_weight(columns, inputs, seed)
    values, scales = round_columns(weight, correlated(20, inputs, seed))
    assert values.dtype == np.int8 and np.abs(values.astype(int)).max() <= LARGEST
    np.testing.assert_array_equal(scales, round_columns(weight)[1])


def test_inputs_that_are_not_correlated_leave_nothing_to_make_up_for() -> None:
    weight = random_weight(8, 64)
    np.testing.assert_array_equal(round_columns(weight, np.eye(64, dtype=np.float32))[0], round_columns(weight)[0])


@pytest.mark.parametrize("inputs", [None, np.zeros((5, 32), np.float32), correlated(40, 32)])
def test_columns_and_inputs_of_zeros(inputs: Any) -> None:
    weight = random_weight(3, 32)
    weight[1] = 0
    values, scales = round_columns(weight, inputs)
    assert scales[1] == 0 and not values[1].any() and values[0].any()
