"""An artifact that sees, opened part by part, and what it says to a given answer, token by token."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Features, Span, StepBatch, TokenIds
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer
from autoglm_engine.tokenizer.prompt import Prompt, Prompter
from autoglm_engine.vision.positions import rope_positions
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.tower import Tower
from tokenizers import Tokenizer

from .asked import Asked

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OpenedArtifact:
    prompter: Prompter
    tokenizer: Tokenizer
    tower: Tower
    runner: Runner
    eos_token_ids: tuple[int, ...]

    @classmethod
    def open(cls, artifact: Path, *, tower: Tower | None = None, runner: Runner | None = None) -> OpenedArtifact:
        """`tower`, `runner`: in place of the artifact's own, for the same checkpoint and limits."""
        manifest, threads = Manifest.load(artifact), os.cpu_count() or 1
        return cls(
            Prompter.load(artifact, manifest),
            load_tokenizer(artifact),
            tower or open_tower(artifact, manifest, num_threads=threads),
            runner or load_runner(artifact, manifest, num_threads=threads),
            manifest.eos_token_ids,
        )

    def prompt(self, asked: Asked) -> Prompt:
        return self.prompter.from_messages(json.dumps(asked.messages).encode(), images=[asked.screenshot])

    def encode(self, file: bytes) -> Features:
        return self.tower.encode(preprocess(file, self.tower.settings))

    def logits(self, asked: Asked, answer: TokenIds) -> Rows:
        """`[len(answer), vocab_size]`: what each token of the answer is chosen from, when those before it were said.
        It uses slot 0 of the runner."""
        prompt = self.prompt(asked)
        features = np.concatenate([self.encode(file) for file in prompt.files])
        ids = np.concatenate([prompt.token_ids, answer[:-1]]).astype(np.int32)
        places = np.concatenate([np.arange(image.offset, image.end) for image in prompt.images])
        ids[places] = -1 - np.arange(len(places), dtype=np.int32)
        known, chunk = len(prompt.token_ids), self.runner.limits.prefill_chunk
        cuts = [*range(0, known, chunk), *range(known, len(ids) + 1)]
        rows = []
        for start, end in pairwise(cuts):
            first, last = np.searchsorted(places, [start, end])
            span = Span(
                *(0, start, ids[start:end], end >= known),
                positions=rope_positions(prompt.images, start, end - start),
                features=features[first:last] if first < last else None,
            )
            rows.append(run_step(self.runner, StepBatch((span,))).copy())
        return np.concatenate(rows)

    def close(self) -> None:
        self.tower.close()
        self.runner.close()
        self.prompter.close()
