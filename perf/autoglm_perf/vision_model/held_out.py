"""`make held-out-screens`: how often a tap on a held-out screen is inside the asked button: transformers and ours.

python -m autoglm_perf.vision_model.held_out --screens 1000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from autoglm_export.export import export
from autoglm_export.screens.checkpoint import CHECKPOINT
from autoglm_export.screens.questions import tapped

from .answering import Asked, EngineAnswers, TransformersAnswers, held_out

AT_ONCE = 50  # screenshots in memory
EXPORTS = {"ours, fp32": ("onnx", "fp32"), "ours, int8": ("native", "int8")}
MAX_SLOTS, MAX_LENGTH = 8, 512


def is_inside(asked: Asked, answer: str) -> bool:
    point = tapped(answer)
    return point is not None and asked.target.contains(point)


def measure(checkpoint: Path, num_screens: int, folder: Path) -> Iterator[tuple[str, int, int, float]]:
    """(who, taps inside, answers equal to transformers', seconds)."""
    reference = TransformersAnswers(checkpoint)
    asked = [held_out(number) for number in range(num_screens)]
    started = time.monotonic()
    expected = [reference.answer(one) for one in asked]
    yield _row("transformers, fp32", asked, expected, expected, started)
    for name, (runtime, precision) in EXPORTS.items():
        artifact = folder / precision
        export(checkpoint, artifact, runtime=runtime, precision=precision, max_slots=MAX_SLOTS, max_length=MAX_LENGTH)
        started = time.monotonic()
        with closing(EngineAnswers(artifact)) as engine:
            parts = [asked[start : start + AT_ONCE] for start in range(0, num_screens, AT_ONCE)]
            said = [answer for part in parts for answer in engine.answers(part)]
        yield _row(name, asked, said, expected, started)


def _row(
    name: str, asked: Sequence[Asked], said: Sequence[str], expected: Sequence[str], started: float
) -> tuple[str, int, int, float]:
    inside = sum(map(is_inside, asked, said))
    return name, inside, sum(map(str.__eq__, said, expected)), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--screens", type=int, default=1000, metavar="N")
    options = parser.parse_args()
    print("| | taps inside | equal to transformers' answer | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, inside, equal, seconds in measure(options.checkpoint, options.screens, Path(folder)):
            rate = 100 * inside / options.screens
            print(f"| {name} | {inside:,} ({rate:.1f}%) | {equal:,} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
