"""Rows that another implementation rounded stand in for the same rows, and for no others."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.tensorrt.recorded_rows import RecordedRows, Rows
from tests.support.tensorrt.trt_interpreter.network import Layer

RECORDED = np.random.default_rng(0).standard_normal((6, 40), np.float32)


@pytest.fixture
def known() -> RecordedRows:
    rows = RecordedRows()
    rows.record(RECORDED[None, :4])
    rows.record(RECORDED[None, 3:])
    return rows


def moved(rows: Rows, by: float) -> Rows:
    """By a part of each row's largest number, up or down."""
    signs = np.random.default_rng(1).choice([-1, 1], rows.shape).astype(np.float32)
    return np.asarray(rows + np.float32(by) * signs * np.abs(rows).max(axis=-1, keepdims=True), np.float32)


def test_the_same_rows_are_the_recorded_ones(known: RecordedRows) -> None:
    noisy = moved(RECORDED, 3e-6)[[5, 0, 3, 3]].reshape(2, 2, 40)
    np.testing.assert_array_equal(known.in_place_of(noisy), RECORDED[[5, 0, 3, 3]].reshape(2, 2, 40))


@pytest.mark.parametrize("by", [3e-5, 1e-3, 1.0])
def test_other_rows_stay_as_they_are(known: RecordedRows, by: float) -> None:
    others = np.concatenate([moved(RECORDED[:2], by), np.zeros((1, 40), np.float32), RECORDED[2:] * np.float32(-1)])
    np.testing.assert_array_equal(known.in_place_of(others), others)


def test_one_number_that_differs_makes_another_row(known: RecordedRows) -> None:
    row = RECORDED[2].copy()
    row[17] += np.float32(1e-4) * np.abs(row).max()
    np.testing.assert_array_equal(known.in_place_of(row), row)


def test_rows_of_a_width_that_was_not_recorded_stay_as_they_are(known: RecordedRows) -> None:
    np.testing.assert_array_equal(known.in_place_of(RECORDED[:, :30]), RECORDED[:, :30])
    np.testing.assert_array_equal(RecordedRows().in_place_of(RECORDED), RECORDED)


def test_only_layers_that_quantise_get_them(known: RecordedRows) -> None:
    noisy, scale = moved(RECORDED, 3e-6), np.float32(0.1).reshape(())
    for kind, expected in (("QUANTIZE", RECORDED), ("DEQUANTIZE", noisy)):
        rows, given = known.intercept(Layer("layer", kind, (), (), {}), (noisy, scale))
        assert rows is not None and given is scale
        np.testing.assert_array_equal(rows, expected)


def test_nothing_is_recorded_once_it_was_used(known: RecordedRows) -> None:
    known.in_place_of(RECORDED)
    with pytest.raises(AssertionError, match="used already"):
        known.record(RECORDED)
