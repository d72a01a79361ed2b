"""`make vision-model`: trains the small model that sees drawn screens, and writes its checkpoint.

    python -m autoglm_perf.vision_model.train --output build/vision-model

First the tower with heads of its own, then the decoder on what the tower says, then both. The same seeds give the same
screens and questions; sums differ between CPUs, so the weights do too. The committed weights took these stages one
command at a time, by two processes that shared each step. Where other work shares the CPU, one thread a process is many
times faster than two that wait for each other (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from autoglm_export.screens.questions import COLOURS_IN_CHINESE
from autoglm_export.screens.screen import crowded_screen, random_screen
from torch import Tensor, nn

from .architecture import HIDDEN_SIZE, new_model, new_tokenizer, write_checkpoint
from .decoder import Batch, early_heads
from .texts import conversation, corpus
from .tower import GRIDS, batch, features_of, heads_loss, next_grid, tower_heads

_WARM_UP = 1 / 12  # of a stage's steps
_TOLD_EVERY = 20
_ANSWERS_WEIGH = 4.0  # beside the heads' losses
_MUON = 5.0  # its rate beside AdamW's
_INNER = re.compile(r"^(blocks|merger|layers)\.")
_HISTORY = 0.25  # of conversations have the question in an earlier step of the agent


@dataclass(frozen=True, slots=True)
class Stage:
    """`tower_rate`, `decoder_rate`: learning rates; 0 leaves that part as it is. `screens`: of a step; `crowded`:
    beside them, full of small buttons, from which the tower learns digits. `questions`: of each screen, `by_number` of
    them by the button's number."""

    name: str
    num_steps: int
    tower_rate: float
    decoder_rate: float
    screens: int
    crowded: int = 0
    questions: int = 4
    by_number: float = 0.5


STAGES = (
    Stage("places", 600, 2e-3, 0.0, screens=24),
    Stage("digits", 1200, 2e-3, 0.0, screens=10, crowded=14),
    Stage("choice", 600, 0.0, 2e-3, screens=12, questions=6, by_number=0.0),
    Stage("both", 500, 1e-3, 1e-3, screens=20),
    Stage("the rest", 350, 8e-4, 8e-4, screens=20, crowded=8),
)


class Trained:
    """The model, and the heads that judge its tower."""

    def __init__(self) -> None:
        self.model = new_model(seed=0)
        self.tokenizer = new_tokenizer(corpus(), COLOURS_IN_CHINESE.values())
        self.heads, self.early = tower_heads(HIDDEN_SIZE), early_heads()

    @property
    def tower(self) -> Any:
        return self.model.model.visual

    def run(self, stage: Stage) -> Iterator[dict[str, float]]:
        """What each step says of itself."""
        optimizers = [
            *_optimizers([self.tower, self.heads], stage.tower_rate),
            *_optimizers([self.model.model.language_model, self.model.lm_head, self.early], stage.decoder_rate),
        ]
        parameters = [one for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]]
        rng = Random(stage.name)
        for step in range(stage.num_steps):
            _schedule(optimizers, step, stage.num_steps)
            loss, told = self._loss(stage, step, rng)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            yield {"loss": loss.item(), **told}

    def _loss(self, stage: Stage, step: int, rng: Random) -> tuple[Tensor, dict[str, float]]:
        grid = next_grid(rng)
        seeds = [f"{stage.name} {step} {place}" for place in range(stage.screens + stage.crowded)]
        asked = [random_screen(seed, size=GRIDS[grid]) for seed in seeds[: stage.screens]]
        crowded = [crowded_screen(seed, size=GRIDS[grid]) for seed in seeds[stage.screens :]]
        patches, labels = batch(grid, [*asked, *crowded])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(stage.tower_rate > 0):
                features = features_of(self.tower, patches, grid)
                loss, told = heads_loss(self.heads, features, labels)
            if not stage.decoder_rate:
                return loss, told
            ask = partial(conversation, num_questions=stage.questions, history=_HISTORY, by_number=stage.by_number)
            talks = Batch(self.tokenizer, [ask(rng, screen) for screen in asked], grid)
            answers, found, right = talks.losses(self.model, self.early, features[: stage.screens])
        return loss + found + answers * _ANSWERS_WEIGH, told | right


def _optimizers(modules: list[Any], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between layers, AdamW for embeddings, convolutions, norms and heads."""
    if not rate:
        return []
    named = [item for module in modules for item in module.named_parameters()]
    between = [one for name, one in named if one.ndim == 2 and _INNER.search(name)]
    chosen = set(map(id, between))
    rest = [one for _, one in named if id(one) not in chosen]
    return [
        torch.optim.Muon(between, lr=_MUON * rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _schedule(optimizers: list[torch.optim.Optimizer], step: int, num_steps: int) -> None:
    """Up to the rate, then down along a cosine."""
    factor = min(1.0, (step + 1) / (_WARM_UP * num_steps)) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    trained, started = Trained(), time.monotonic()
    for stage in STAGES:
        for step, told in enumerate(trained.run(stage), 1):
            if step % _TOLD_EVERY == 0 or step == stage.num_steps:
                figures = "  ".join(f"{name} {value:.3f}" for name, value in told.items())
                print(f"{time.monotonic() - started:6.0f} s  {stage.name} {step}: {figures}", flush=True)
        write_checkpoint(options.output, trained.model, trained.tokenizer)


if __name__ == "__main__":
    main()
