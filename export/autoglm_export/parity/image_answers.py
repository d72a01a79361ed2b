"""Does the decoder answer about an image as transformers does? Text, an image and text again: the logits after each
token behind the image, which the artifact's own tower saw."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Features, ImageSpan, Span, StepBatch, TokenIds
from autoglm_engine.manifest import VisionSettings
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.vision.positions import rope_positions

from .reference import Reference

NUM_BEFORE, NUM_BEHIND = 8, 16  # tokens of the text
# |logits - reference| / |reference|. Rounding to 8 bits has a price; tokens in the wrong places cost more than that.
BOUNDS = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.25}
# On TensorRT the tower rounds, too, to 16 bits, and so does what float16 might not hold to bfloat16. Both networks of a
# small model of random weights, computed with their types, are 2.1e-2, 5.1e-2, 0.19 and 0.42 off, and with the image's
# tokens in the places of text 0.52 or more; no card has shown its own figures yet.
TENSORRT_BOUNDS = {"fp16": 4e-2, "bf16": 1e-1, "fp8": 0.25, "int4": 0.5}

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: TokenIds  # as a tokenizer writes them
    image: ImageSpan

    @classmethod
    def around(cls, grid: tuple[int, int], text: TokenIds, settings: VisionSettings) -> Prompt:
        image = ImageSpan(NUM_BEFORE + 1, grid, b"")
        begin, end = settings.begin_image_token_id, settings.end_image_token_id
        seen = [begin, *[settings.image_token_id] * image.num_tokens, end]
        before, behind = text[:NUM_BEFORE], text[NUM_BEFORE : NUM_BEFORE + NUM_BEHIND]
        return cls(np.concatenate([before, seen, behind], dtype=np.int32), image)


@dataclass(frozen=True, slots=True)
class AnswerReport:
    precision: str
    relative_l2: float
    top1_agreement: float
    runtime: str = ""

    @property
    def failures(self) -> list[str]:
        bounds = TENSORRT_BOUNDS if self.runtime.startswith("tensorrt") else BOUNDS
        if self.relative_l2 <= (most := bounds[self.precision]):  # not of NaN
            return []
        return [f"logits behind it are {self.relative_l2:.2e} off, above {most:g}"]


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the images of an artifact are asked of. `text`: at least NUM_BEFORE + NUM_BEHIND tokens."""

    runner: Runner
    reference: Reference
    settings: VisionSettings
    precision: str
    text: TokenIds
    runtime: str = ""

    def compare(self, content: bytes, grid: tuple[int, int], features: Features) -> AnswerReport | None:
        """`content`: an image's file; `features` [rows * columns, hidden_size]: what the artifact's tower sees in it.
        None for an image that does not fit into a slot."""
        prompt, settings = Prompt.around(grid, self.text, self.settings), self.settings
        if len(prompt.ids) > self.runner.limits.max_length:
            return None
        edges = settings.min_pixels, settings.max_pixels
        expected = self.reference.image_logits(prompt.ids, settings.image_token_id, content, *edges)
        actual = _logits_behind(self.runner, prompt, features)
        return _report(actual, expected[prompt.image.end :], self.precision, self.runtime)


def _report(actual: Rows, expected: Rows, precision: str, runtime: str) -> AnswerReport:
    return AnswerReport(
        precision=precision,
        relative_l2=float(np.linalg.norm(actual - expected) / np.linalg.norm(expected)),
        top1_agreement=float(np.mean(actual.argmax(axis=1) == expected.argmax(axis=1))),
        runtime=runtime,
    )


def _logits_behind(runner: Runner, prompt: Prompt, features: Features) -> Rows:
    """[tokens behind the image, vocab_size]: up to its end in chunks, then one token a step."""
    image, ids = prompt.image, prompt.ids.copy()
    ids[image.offset : image.end] = -1 - np.arange(image.num_tokens)
    cuts = [*range(0, image.end, runner.limits.prefill_chunk), *range(image.end, len(ids) + 1)]
    rows = []
    for start, end in pairwise(cuts):
        first, last = np.clip(np.array([start, end]) - image.offset, 0, image.num_tokens)
        span = Span(
            *(0, start, ids[start:end], start >= image.end),
            positions=rope_positions([image], start, end - start),
            features=features[first:last] if first < last else None,
        )
        rows.append(run_step(runner, StepBatch((span,))).copy())
    return np.concatenate(rows)
