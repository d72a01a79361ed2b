"""The calibration pass computes the decoder, and shows each layer's inputs in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from autoglm_export.calibration import ActivationMaxima, CalibrationOps, calibrate
from autoglm_export.calibration_text import TEXTS, texts_of
from autoglm_export.decoder import build_decoder
from autoglm_export.errors import InvalidOption
from autoglm_export.parity_text import TEXTS as PARITY_TEXTS
from tiny_decoders import SPECS, Array, expected_logits, random_weights

IDS = np.array([5, 11, 96, 0, 42, 7, 7, 63], np.int32)


@pytest.mark.parametrize("variant", SPECS)
def test_the_pass_computes_the_decoder_for_each_text_alone(variant: str) -> None:
    spec = SPECS[variant]
    weights = random_weights(spec)
    texts = [IDS, IDS[::-1].copy(), IDS[:3]]
    ops = CalibrationOps(spec, weights, texts, ActivationMaxima(weights))
    build_decoder(spec, ops)
    assert ops.final is not None
    logits = ops.final @ weights["embed" if spec.tied_embeddings else "lm_head"].T
    expected = np.concatenate([expected_logits(spec, weights, text) for text in texts])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_every_layer_has_its_maximum() -> None:
    spec = SPECS["glm4"]
    weights = random_weights(spec)
    seen: list[tuple[tuple[str, ...], float]] = []

    class Noting(ActivationMaxima):
        def observe(self, inputs: Array, layers: Sequence[str]) -> list[Array]:
            seen.append((tuple(layers), float(np.abs(inputs).max())))
            return super().observe(inputs, layers)

    maxima = Noting(weights)
    calibrate(spec, weights, [IDS], maxima)
    linears = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    assert set(maxima.of) == linears
    assert maxima.of == {name: largest for layers, largest in seen for name in layers}
    assert maxima.of["layers.0.query"] == maxima.of["layers.0.value"]


def test_a_long_text_is_cut() -> None:
    spec = SPECS["llama"]
    weights = random_weights(spec)
    ids = np.arange(600, dtype=np.int32) % 97
    ops = CalibrationOps(spec, weights, [ids], ActivationMaxima(weights))
    build_decoder(spec, ops)
    assert ops.final is not None
    logits = ops.final[256:260] @ weights["lm_head"].T
    np.testing.assert_allclose(logits, expected_logits(spec, weights, ids[256:260]), rtol=1e-3, atol=1e-3)


def test_the_built_in_text_is_not_what_the_gate_tests_on() -> None:
    lines = {line.strip() for text in TEXTS for line in text.splitlines() if len(line.strip()) > 10}
    tested = "\n".join(PARITY_TEXTS.values())
    assert not [line for line in lines if line in tested and "import" not in line]


def test_a_text_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "text"
    with pytest.raises(InvalidOption, match="cannot be read"):
        texts_of(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidOption, match="cannot be read"):
        texts_of(file)
    file.write_text(" \n")
    with pytest.raises(InvalidOption, match="is empty"):
        texts_of(file)
    file.write_text("你好")
    assert texts_of(file) == ("你好",)
