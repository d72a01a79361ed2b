"""The small model that sees drawn screens, on the networks that TensorRT would run, computed in numpy as they round."""

from __future__ import annotations

from pathlib import Path

import pytest
from autoglm_export.screens.checkpoint import CHECKPOINT
from autoglm_perf.vision_model.answering import TransformersAnswers
from autoglm_perf.vision_model.asked import held_out
from autoglm_perf.vision_model.held_out import contend

from tests.by_hand.held_out_screens import interpreted

pytestmark = pytest.mark.tensorrt
SCREENS = [held_out(number) for number in range(2)]


@pytest.mark.parametrize(("precision", "worst"), [("bf16", 1e-3), ("int4", 5e-2)])
def test_it_answers_as_transformers_does(precision: str, worst: float, tmp_path: Path) -> None:
    """Tower and decoder under the engine: the same taps, and logits as far off as their bits are coarse."""
    reference = TransformersAnswers(CHECKPOINT)
    expected = [reference.answer(asked) for asked in SCREENS]
    row = contend(precision, interpreted(precision, CHECKPOINT, tmp_path), SCREENS, expected)
    assert (row.inside, row.equal) == (2, 2)
    assert worst / 1e4 < row.divergences.max() < worst
