"""What quantisation costs: perplexity over float32 and the KL divergence from it, on the parity gate's fixed texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import TokenIds
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.registry import load_runner
from autoglm_export.parity.gate import teacher_forced
from autoglm_export.parity.reference import Reference
from autoglm_export.parity.text import TEXTS
from tokenizers import Tokenizer

Rows = npt.NDArray[np.float32]
Losses = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """`perplexity_ratio`: over float32. `error`: its standard error, from the differences of single tokens, as if they
    were independent; not-a-number where there is one token only. `divergence`: KL from float32, nats a token."""

    perplexity_ratio: float
    error: float
    divergence: float


@dataclass(frozen=True, slots=True)
class FixedTexts:
    """Each text whole, in one window, and float32's logits `[len(text), vocab_size]` after each of its tokens."""

    texts: tuple[TokenIds, ...]
    reference: tuple[Rows, ...]

    @classmethod
    def load(cls, tokenizer: Tokenizer, checkpoint: Path) -> FixedTexts:
        texts = tuple(np.array(tokenizer.encode(text).ids, np.int32) for text in TEXTS.values())
        model = Reference.load(checkpoint)
        return cls(texts, tuple(model.logits(ids) for ids in texts))

    def compare(self, actual: Sequence[Rows]) -> Fidelity:
        """`actual`: like `reference`. Raises ValueError where shapes differ."""
        excess, divergence = list[Losses](), list[Losses]()
        for ids, mine, theirs in zip(self.texts, actual, self.reference, strict=True):
            if mine.shape != theirs.shape:
                raise ValueError(f"the logits have the shape {mine.shape} instead of {theirs.shape}")
            ours, expected = log_probabilities(mine[:-1]), log_probabilities(theirs[:-1])
            excess.append((expected - ours)[np.arange(len(ids) - 1), ids[1:]])
            divergence.append((np.exp(expected) * (expected - ours)).sum(axis=1))
        return _fidelity(np.concatenate(excess), np.concatenate(divergence))


def _fidelity(excess: Losses, divergence: Losses) -> Fidelity:
    """Of each predicted token: by how many nats its loss is above float32's, and the divergence there."""
    ratio = float(np.exp(excess.mean()))
    error = ratio * float(excess.std(ddof=1)) / len(excess) ** 0.5 if len(excess) > 1 else float("nan")
    return Fidelity(ratio, error, float(divergence.mean()))


def log_probabilities(logits: Rows) -> Losses:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def artifact_logits(artifact: Path, texts: Sequence[TokenIds], num_threads: int) -> list[Rows]:
    """Token by token, as the artifact decodes."""
    runner = load_runner(artifact, Manifest.load(artifact), num_threads=num_threads)
    try:
        return teacher_forced(runner, list(texts))
    finally:
        runner.close()
