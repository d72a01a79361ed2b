"""`make held-out-screens`: how often a tap on a held-out screen is inside the asked button, and how far an answer's
logits are from float32's: transformers and ours, in every precision that a CPU computes.

KL is that of transformers' distribution from ours, in nats a token, over the tokens of transformers' answer, each after
those before it were said.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_export.export import export
from autoglm_export.screens.checkpoint import CHECKPOINT

from autoglm_perf.in_process.fidelity import log_probabilities

from .answering import Answer, EngineAnswers, TransformersAnswers
from .asked import Asked, held_out, is_inside
from .opened import OpenedArtifact, Rows

AT_ONCE = 50  # screenshots in memory
LIMITS: dict[str, Any] = {"max_slots": 8, "max_length": 512}
HEAD = "| | taps inside | equal to transformers' answer | KL, mean | KL, worst token | seconds |\n" + "|---" * 6 + "|"

Open = Callable[[Path, Path], OpenedArtifact]  # of a checkpoint, in a folder


def exported(runtime: str, precision: str, checkpoint: Path, folder: Path) -> OpenedArtifact:
    artifact = folder / f"{runtime}-{precision}"
    export(checkpoint, artifact, runtime=runtime, precision=precision, **LIMITS)
    return OpenedArtifact.open(artifact)


EXPORTS: Mapping[str, Open] = {
    f"{runtime}, {precision}": partial(exported, runtime, precision)
    for runtime, precision in (("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("native", "int8"))
}


@dataclass(frozen=True, slots=True)
class Row:
    """`divergences`: of each token of all answers."""

    name: str
    inside: int
    equal: int
    divergences: Rows
    seconds: float

    def line(self, num_screens: int) -> str:
        rate, mean, worst = 100 * self.inside / num_screens, self.divergences.mean(), self.divergences.max()
        counts = f"{self.inside:,} ({rate:.1f}%) | {self.equal:,}"
        return f"| {self.name} | {counts} | {mean:.1e} | {worst:.1e} | {self.seconds:.0f} |"


def measure(checkpoint: Path, asked: Sequence[Asked], contenders: Mapping[str, Open], folder: Path) -> Iterator[Row]:
    reference, started = TransformersAnswers(checkpoint), time.monotonic()
    expected = [reference.answer(one) for one in asked]
    inside = sum(is_inside(one, answer.text) for one, answer in zip(asked, expected, strict=True))
    yield Row("transformers, fp32", inside, len(asked), np.zeros(1, np.float32), time.monotonic() - started)
    for name, opened_by in contenders.items():
        yield contend(name, opened_by(checkpoint, folder), asked, expected)


def contend(name: str, opened: OpenedArtifact, asked: Sequence[Asked], expected: Sequence[Answer]) -> Row:
    """`seconds`: of the answers, without those of the divergence."""
    divergences = [divergence(opened, *pair) for pair in zip(asked, expected, strict=True)]
    started = time.monotonic()
    with closing(EngineAnswers(opened)) as engine:
        parts = [asked[start : start + AT_ONCE] for start in range(0, len(asked), AT_ONCE)]
        said = [answer for part in parts for answer in engine.answers(part)]
    seconds, equal = time.monotonic() - started, sum(map(str.__eq__, said, [answer.text for answer in expected]))
    return Row(name, sum(map(is_inside, asked, said)), equal, np.concatenate(divergences), seconds)


def divergence(opened: OpenedArtifact, asked: Asked, expected: Answer) -> Rows:
    """[tokens of the answer]"""
    theirs = log_probabilities(expected.logits)
    ours = log_probabilities(opened.logits(asked, expected.token_ids))
    return np.asarray((np.exp(theirs) * (theirs - ours)).sum(axis=1), np.float32)


def main(contenders: Mapping[str, Open] = EXPORTS) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--screens", type=int, default=1000, metavar="N")
    parser.add_argument("--only", action="append", choices=contenders, help="of ours; repeatable")
    options = parser.parse_args()
    chosen = {name: contenders[name] for name in options.only or contenders}
    asked = [held_out(number) for number in range(options.screens)]
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(options.checkpoint, asked, chosen, Path(folder)):
            print(row.line(options.screens), flush=True)


if __name__ == "__main__":
    main()
