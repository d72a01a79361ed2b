"""The figures of the semantic cache: what counts as precision and recall, and what is written down."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from autoglm_engine.settings.model import EngineSettings
from autoglm_perf.semantic.plot import curves_svg
from autoglm_perf.semantic.precision import PAIRS_FILE, THRESHOLDS, Pair, Scored, curves, document, score

ROOT = Path(__file__).parents[2]


def scored(same: bool, cosine: float, *rules: str, kind: str = "number", language: str = "en") -> Scored:
    return Scored(Pair(same, language, kind, "a", "b", False), cosine, rules)


SCORED = [
    scored(True, 0.95),
    scored(True, 0.7),
    scored(True, 0.92, "order"),
    scored(False, 0.96),
    scored(False, 0.99, "numbers"),
]


@pytest.mark.parametrize(
    ("threshold", "guards", "taken", "false", "precision", "recall"),
    [
        (0.9, False, 4, 2, 0.5, 2 / 3),
        (0.9, True, 2, 1, 0.5, 1 / 3),
        (0.6, True, 3, 1, 2 / 3, 2 / 3),
        (1.0, True, 0, 0, None, 0),
    ],
)
def test_precision_is_of_those_taken_and_recall_of_those_that_are_the_same(
    threshold: float, guards: bool, taken: int, false: int, precision: float | None, recall: float
) -> None:
    found = score(SCORED, threshold, guards=guards)
    assert (found.taken, found.false, found.same) == (taken, false, 3)
    assert found.precision == precision and found.recall == pytest.approx(recall)


def test_the_document_shows_what_was_counted_and_the_plot_is_an_image() -> None:
    text = document(SCORED, 0.9)
    assert "| 0.9 | 0.50 | 0.67 | 2 | 0.50 | 0.33 | 1 |" in text
    assert "| number | 5 | 2 | 1 |" in text
    root = ElementTree.fromstring(curves_svg("All", curves(SCORED), 0.9))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 4


def test_the_document_in_the_docs_is_of_the_default_threshold() -> None:
    text = (ROOT / "docs" / "semantic.md").read_text(encoding="utf-8")
    assert f"The default threshold is {EngineSettings().semantic_threshold:g}." in text
    assert EngineSettings().semantic_threshold in THRESHOLDS
    count = len(PAIRS_FILE.read_text(encoding="utf-8").splitlines())
    numbers = re.search(r"(\d+) pairs that mean the same and (\d+) that only", text)
    assert numbers is not None and sum(map(int, numbers.groups())) == count
