"""The parity gate: does the exported artifact compute what transformers computes from the same checkpoint?

Three fixed texts go through both, every token at its place (teacher-forced), and both continue the texts greedily. In
fp32 the logits must agree within a relative L2 distance and the greedy tokens be identical; in fp16 logits and
perplexity are bounded, because near-ties between tokens may fall either way; any other artifact must keep the
perplexity within a bound. What has no bound is reported. torch and transformers are needed only here.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Span, StepBatch, TokenIds
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner

from autoglm_export.errors import ParityError
from autoglm_export.runtimes import Progress, no_progress
from autoglm_export.vision_artifact import feature_rotation

from .images import ImageReport, compare_images
from .reference import Reference
from .text import TEXTS

GREEDY_TOKENS = 64
GREEDY_PROMPT = 24  # tokens of each text that the greedy continuation starts from
# What a precision may cost. relative_l2: |logits - reference| / |reference|, of a text's logits and of a prompt's.
# fp32 computes the same function; in fp16, with every weight, cache and product rounded, tiny models of all families
# and SmolLM2 are 1.3e-3 to 1.9e-3 off, the worst single row 6e-3; an overflow or a weight out of place is far beyond.
# The others were chosen: what an answer may lose. A checkpoint whose weights had 4 bits already, on another grid, loses
# more than that in int4 and is refused.
BOUNDS: dict[str, dict[str, float]] = {
    "fp32": {"relative_l2": 1e-3, "greedy_tokens": GREEDY_TOKENS},
    "fp16": {"relative_l2": 1e-2, "perplexity_ratio": 1.005},
    "bf16": {"relative_l2": 3e-2, "perplexity_ratio": 1.01},
    "int8": {"perplexity_ratio": 1.02},
    "fp8": {"perplexity_ratio": 1.05},
    "int4": {"perplexity_ratio": 1.15},
}
# TensorRT's networks hold in bfloat16 what float16 might not: SmolLM2 is up to 1.3e-2 off then.
TENSORRT_BOUNDS = {**BOUNDS, "fp16": {"relative_l2": 2e-2, "perplexity_ratio": 1.005}}

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextReport:
    tokens: int
    relative_l2: float  # of all teacher-forced logits
    prefill_relative_l2: float  # of the last token's, computed in chunks rather than one by one
    top1_agreement: float
    cosine_mean: float
    cosine_min: float
    loss: float  # mean negative log-likelihood a token, nats
    reference_loss: float
    greedy_agreement: float  # share of the greedy tokens before the first that differs


@dataclass(frozen=True, slots=True)
class ParityReport:
    """`images`: of an artifact that takes some."""

    reference: str
    precision: str
    texts: dict[str, TextReport]
    runtime: str = ""
    images: dict[str, ImageReport] = dataclasses.field(default_factory=dict)

    @property
    def bounds(self) -> dict[str, float]:
        return (TENSORRT_BOUNDS if self.runtime.startswith("tensorrt") else BOUNDS)[self.precision]

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity over all texts, divided by the reference's."""
        total = sum(text.tokens - 1 for text in self.texts.values())
        excess = sum((text.loss - text.reference_loss) * (text.tokens - 1) for text in self.texts.values())
        return float(np.exp(excess / total))

    @property
    def failures(self) -> tuple[str, ...]:
        bounds = self.bounds
        failures = [failure for name, text in self.texts.items() for failure in _text_failures(name, text, bounds)]
        most = bounds.get("perplexity_ratio")
        if most is not None and not self.perplexity_ratio <= most:  # also true of NaN
            failures.append(f"perplexity is {self.perplexity_ratio:.4f} times the reference's, above {most}")
        return (*failures, *(failure for name, image in self.images.items() for failure in image.failures(name)))

    def as_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "passed": not self.failures,
            "failures": list(self.failures),
            "perplexity_ratio": self.perplexity_ratio,
            "bounds": self.bounds,
            "texts": {name: dataclasses.asdict(text) for name, text in self.texts.items()},
            **(
                {"images": {name: dataclasses.asdict(image) for name, image in self.images.items()}}
                if self.images
                else {}
            ),
        }

    def enforce(self) -> None:
        if self.failures:
            raise ParityError(f"the artifact does not compute what the checkpoint does: {'; '.join(self.failures)}")


def _text_failures(name: str, text: TextReport, bounds: dict[str, float]) -> list[str]:
    failures = []
    most = bounds.get("relative_l2")
    for kind, distance in (("logits", text.relative_l2), ("prefill logits", text.prefill_relative_l2)):
        if most is not None and not distance <= most:  # also true of NaN
            failures.append(f"the {kind} of the {name} text are {distance:.2e} off, above {most:g}")
    if "greedy_tokens" in bounds and text.greedy_agreement < 1.0:
        failures.append(f"the greedy tokens of the {name} text differ after {text.greedy_agreement:.0%}")
    return failures


def compare(artifact: Path, checkpoint: Path, *, progress: Progress = no_progress) -> ParityReport:
    """Run the gate; `enforce` of the result says whether it passed. Raises ExportError where it cannot run."""
    manifest = Manifest.load(artifact)
    texts = _encode(artifact, manifest.max_length)
    progress("parity: load reference", 0.0)
    reference = Reference.load(checkpoint)
    progress("parity: load reference", 1.0)
    runner = load_runner(artifact, manifest, num_threads=os.cpu_count() or 1)
    try:
        reports = compare_texts(runner, reference, texts, progress)
        rotation = feature_rotation(manifest.spec, manifest.runtime, manifest.precision)
        images = compare_images(artifact, manifest, runner, reference, texts["english"], rotation, progress)
    finally:
        runner.close()
    return ParityReport(reference.version, manifest.precision, reports, runtime=manifest.runtime, images=images)


def _encode(artifact: Path, max_length: int) -> dict[str, TokenIds]:
    """Token ids of each text, cut so that the greedy continuation still fits into a slot."""
    from tokenizers import Tokenizer

    if max_length <= GREEDY_TOKENS:
        raise ParityError(f"the parity gate needs a max_length above {GREEDY_TOKENS}; this artifact has {max_length}")
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    return {name: np.array(tokenizer.encode(text).ids[:max_length], dtype=np.int32) for name, text in TEXTS.items()}


def compare_texts(
    runner: Runner, reference: Reference, texts: dict[str, TokenIds], progress: Progress = no_progress
) -> dict[str, TextReport]:
    rows = teacher_forced(runner, list(texts.values()), progress)
    prompt_len = min(GREEDY_PROMPT, runner.limits.max_length - GREEDY_TOKENS)
    prompts = [ids[:prompt_len] for ids in texts.values()]
    answers = greedy(runner, prompts, GREEDY_TOKENS)
    reports = {}
    for index, (name, ids) in enumerate(texts.items()):
        progress("parity: compare", index / len(texts))
        agreement = greedy_agreement(reference, prompts[index], answers[index])
        reports[name] = _compare_text(runner, reference, ids, rows[index], agreement)
    progress("parity: compare", 1.0)
    return reports


def _compare_text(runner: Runner, reference: Reference, ids: TokenIds, actual: Rows, agreement: float) -> TextReport:
    """All figures for one text, whose teacher-forced logits are `actual`."""
    expected = reference.logits(ids)
    last = prefill(runner, ids, slot=runner.limits.num_slots - 1)
    cosine = _cosine(actual, expected)
    return TextReport(
        tokens=len(ids),
        relative_l2=_relative_l2(actual, expected),
        prefill_relative_l2=_relative_l2(last, expected[-1]),
        top1_agreement=float(np.mean(actual.argmax(axis=1) == expected.argmax(axis=1))),
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        loss=_loss(actual, ids),
        reference_loss=_loss(expected, ids),
        greedy_agreement=agreement,
    )


def teacher_forced(runner: Runner, texts: list[TokenIds], progress: Progress = no_progress) -> list[Rows]:
    """For each text the logits `[len(ids), vocab_size]` after each token. One token a step; a slot for each text."""
    rows = [np.empty((len(ids), runner.limits.vocab_size), dtype=np.float32) for ids in texts]
    for first in range(0, len(texts), runner.limits.num_slots):
        group = range(first, min(first + runner.limits.num_slots, len(texts)))
        longest = max(len(texts[index]) for index in group)
        for position in range(longest):
            progress("parity: decode", (first + len(group) * position / longest) / len(texts))
            active = [index for index in group if position < len(texts[index])]
            logits = run_step(
                runner,
                StepBatch(tuple(_one_token(index - first, position, texts[index][position]) for index in active)),
            )
            for index, row in zip(active, logits, strict=True):
                rows[index][position] = row
    return rows


def _one_token(slot: int, position: int, token_id: int) -> Span:
    return Span(slot=slot, start=position, token_ids=np.array([token_id], dtype=np.int32), wants_logits=True)


def prefill(runner: Runner, ids: TokenIds, slot: int, chunk: int | None = None) -> Rows:
    """Logits `[vocab_size]` after the last token, computed in chunks of the runner's size."""
    size = chunk or runner.limits.prefill_chunk
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        is_last = start + size >= len(ids)
        logits = run_step(runner, StepBatch((Span(slot=slot, start=start, token_ids=part, wants_logits=is_last),)))
    return np.array(logits[0])


def greedy(runner: Runner, prompts: list[TokenIds], num_tokens: int) -> list[TokenIds]:
    """The best `num_tokens` tokens after each prompt. As many prompts decode together as there are slots."""
    answers: list[TokenIds] = []
    for first in range(0, len(prompts), runner.limits.num_slots):
        answers += _greedy_together(runner, prompts[first : first + runner.limits.num_slots], num_tokens)
    return answers


def _greedy_together(runner: Runner, prompts: list[TokenIds], num_tokens: int) -> list[TokenIds]:
    """Prompt i in slot i."""
    answers = [[int(prefill(runner, prompt, slot).argmax())] for slot, prompt in enumerate(prompts)]
    for step in range(num_tokens - 1):
        spans = [_one_token(slot, len(prompts[slot]) + step, answer[-1]) for slot, answer in enumerate(answers)]
        for answer, row in zip(answers, run_step(runner, StepBatch(tuple(spans))), strict=True):
            answer.append(int(row.argmax()))
    return [np.array(answer, dtype=np.int32) for answer in answers]


def greedy_agreement(reference: Reference, prompt: TokenIds, answer: TokenIds) -> float:
    """The share of `answer` before the first token that the reference's own greedy continuation has otherwise. Up to
    there both continue the same text, so one forward pass over `answer` tells."""
    best = reference.logits(np.concatenate([prompt, answer[:-1]]))[len(prompt) - 1 :].argmax(axis=1)
    others = np.flatnonzero(best != answer)
    return int(others[0] if len(others) else len(answer)) / len(answer)


def _relative_l2(actual: Rows, expected: Rows) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _cosine(actual: Rows, expected: Rows) -> Rows:
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    return np.asarray(np.einsum("ij,ij->i", actual, expected) / norms)


def _loss(logits: Rows, ids: TokenIds) -> float:
    """Mean negative log-likelihood of each token but the first, in nats."""
    rows = logits[:-1].astype(np.float64)
    largest = rows.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(rows - largest).sum(axis=1)) + largest[:, 0]
    return float(np.mean(log_sum - rows[np.arange(len(rows)), ids[1:]]))
