"""The inputs that weights are fitted to are those that the decoder's layers read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Span, StepBatch
from autoglm_export.errors import InvalidOption
from autoglm_export.parity import text as parity_text
from autoglm_export.quantize import calibration_text
from autoglm_export.quantize.calibration import FIRST_TOKEN_WEIGHT, Calibration, Inputs

from tests.runners.test_native import BASE, SPECS, VOCAB_SIZE, random_weights
from tests.support.export.numpy_runner import NumpyRunner


def token_ids(length: int) -> Any:
    return np.random.default_rng(length).integers(0, VOCAB_SIZE, length).astype(np.int32)


TEXTS = [token_ids(20), token_ids(1), token_ids(33)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_the_head_reads_what_gives_the_logits(name: str) -> None:
    """Of every token of every text, as if each text were alone; products there take operands of 12 bits."""
    spec, weights = SPECS[name], random_weights(SPECS[name])
    runner = NumpyRunner(spec, weights)
    expected = [
        runner.forward(StepBatch((Span(0, 0, text[: end + 1], True),)))[0] for text in TEXTS for end in range(len(text))
    ]
    head = "embed" if spec.tied_embeddings else "lm_head"
    rows = Calibration(spec, weights, TEXTS).inputs(head).rows
    errors = np.linalg.norm(rows @ weights[head].T - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 2**-8


def test_every_layer_is_seen_once_in_order() -> None:
    calibration = Calibration(BASE, random_weights(BASE), TEXTS)
    widths = {"query": BASE.hidden_size, "output": 96, "gate": BASE.hidden_size, "down": BASE.intermediate_size}
    for layer in range(BASE.num_layers):
        for kind, width in widths.items():
            assert calibration.inputs(f"layers.{layer}.{kind}").rows.shape == (54, width)
    with pytest.raises(AssertionError, match=r"layers\.0\.query is not ahead"):
        calibration.inputs("layers.0.query")


def test_an_error_counts_by_the_stream_it_is_added_to() -> None:
    weights = random_weights(BASE)
    larger = {**weights, "layers.0.output.weight": weights["layers.0.output.weight"] * 100}
    plain, loud = (Calibration(BASE, each, TEXTS).inputs("layers.0.output") for each in (weights, larger))
    np.testing.assert_array_equal(plain.rows, loud.rows)
    assert (loud.importance < plain.importance / 10).all()


def test_first_tokens_weigh_more_and_are_not_in_the_mean() -> None:
    rows = np.array([[8, 8], [1, 2], [3, 2]], np.float32)
    inputs = Inputs(rows, np.ones((3, 1), np.float32), np.array([True, False, False]))
    np.testing.assert_allclose(inputs.mean(), [2, 2])
    np.testing.assert_allclose(inputs.weighted(inputs.mean())[0], np.sqrt(FIRST_TOKEN_WEIGHT) * np.array([6, 6]))
    np.testing.assert_allclose(inputs.weighted(inputs.mean())[1:], [[-1, 0], [1, 0]])


def test_the_gate_measures_on_other_text() -> None:
    lines = {line for text in calibration_text.TEXTS for line in text.splitlines() if len(line) > 30}
    assert lines and not lines & {line for text in parity_text.TEXTS.values() for line in text.splitlines()}


def test_a_text_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "text"
    with pytest.raises(InvalidOption, match="cannot be read"):
        calibration_text.texts_of(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidOption, match="cannot be read"):
        calibration_text.texts_of(file)
    file.write_text(" \n")
    with pytest.raises(InvalidOption, match="is empty"):
        calibration_text.texts_of(file)
    file.write_text("你好")
    assert calibration_text.texts_of(file) == ("你好",)
