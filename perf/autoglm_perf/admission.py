"""Who is admitted next, measured: `python -m autoglm_perf.admission ARTIFACT`.

The engine is driven directly, with scarce slots. Every round serves the same requests under every policy, in turn, and
the ratios are those of one round; medians over the rounds are shown, with the range of the ratio.

`prefixes`: several system prompts, more than slots, in random order: fifo, features (also with a tighter bound of ageing),
static. `lengths`: answers of 8 to 256 tokens: in flight against static, where a static batch either lets finished rows go
or computes them until its longest answer ends, as `generate` of a batch does. `waiting`: whether it pays to wait for
company, in a trough and in a peak.
"""

from __future__ import annotations

import os
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from autoglm_engine.admission import AdmissionPolicy
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.sequence import Sequence as Running
from autoglm_engine.sequence import Waiting
from autoglm_engine.settings import EngineSettings
from rich.console import Console
from rich.table import Table

from .driving import Arrival, Model, Outcome

_TOKENS = (1000, 40_000)  # ids of ordinary words: any will do, the prompts need no sense


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve an experiment's requests; the first of an experiment is what the others are compared with."""

    name: str
    settings: EngineSettings
    policy: Callable[[], AdmissionPolicy | None] = lambda: None
    is_padded: bool = False


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str
    num_slots: int
    arrivals: Callable[[int], list[Arrival]]  # of a round
    variants: tuple[Variant, ...]


class Gathering:
    """First come, first served, but only once `count` wait or the oldest has waited for `wait_ms`."""

    def __init__(self, count: int, wait_ms: float) -> None:
        self._count = count
        self._wait_s = wait_ms / 1e3
        self._room = 0

    def choose(self, queue: deque[Waiting], running: Sequence[Running], now: float) -> int | None:
        if not self._room and (len(queue) >= self._count or now - queue[0].queued_at >= self._wait_s):
            self._room = len(queue)
        if not self._room:
            return None
        self._room -= 1
        return 0


def ask(name: str, prompt: Sequence[int], max_tokens: int) -> Request:
    return Request(name, np.array(prompt, np.int32), SamplingOptions(max_tokens=max_tokens, ignore_eos=True))


def words(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(*_TOKENS) for _ in range(count)]


def shared_prefixes(num_prefixes: int, prefix_tokens: int, num_requests: int) -> Callable[[int], list[Arrival]]:
    """All at once: prompts that begin with one of the prefixes, drawn at random, and end with 16 to 48 words of their own;
    16 to 32 tokens are asked for."""

    def arrivals(seed: int) -> list[Arrival]:
        draw = random.Random(seed)
        prefixes = [words(draw, prefix_tokens) for _ in range(num_prefixes)]
        prompts = [draw.choice(prefixes) + words(draw, draw.randint(16, 48)) for _ in range(num_requests)]
        return [Arrival(0.0, ask(f"{i}", prompt, draw.randint(16, 32))) for i, prompt in enumerate(prompts)]

    return arrivals


def many_lengths(num_requests: int, *, is_skewed: bool) -> Callable[[int], list[Arrival]]:
    """All at once: 32 words each, and 8 to 256 tokens asked for, uniform, or (skewed) uniform in their logarithm."""

    def length(draw: random.Random) -> int:
        return round(8 * 32 ** draw.random()) if is_skewed else draw.randint(8, 256)

    def arrivals(seed: int) -> list[Arrival]:
        draw = random.Random(seed)
        return [Arrival(0.0, ask(f"{i}", words(draw, 32), length(draw))) for i in range(num_requests)]

    return arrivals


def poisson(rate: float, num_requests: int) -> Callable[[int], list[Arrival]]:
    """`rate` requests a second, 32 words each, 16 tokens asked for."""

    def arrivals(seed: int) -> list[Arrival]:
        draw, now, found = random.Random(seed), 0.0, list[Arrival]()
        for i in range(num_requests):
            now += draw.expovariate(rate)
            found.append(Arrival(now, ask(f"{i}", words(draw, 32), 16)))
        return found

    return arrivals


FIFO = Variant("fifo", EngineSettings())
STATIC = Variant("static", EngineSettings(admission="static"))
PADDED = Variant("static, padded", EngineSettings(admission="static"), is_padded=True)
FEATURES = Variant("features", EngineSettings(admission="features"))
HURRIED = Variant("features, 1 s", EngineSettings(admission="features", admission_max_delay_ms=1_000))
WAITING = (
    FIFO,
    Variant("wait for 2, 10 ms", EngineSettings(), lambda: Gathering(2, 10)),
    Variant("wait for 4, 20 ms", EngineSettings(), lambda: Gathering(4, 20)),
    Variant("wait for 4, 100 ms", EngineSettings(), lambda: Gathering(4, 100)),
)
POLICIES = (FIFO, FEATURES, HURRIED, STATIC)
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("prefixes", 4, shared_prefixes(8, 192, 64), POLICIES),
        Experiment("few-prefixes", 16, shared_prefixes(2, 384, 48), POLICIES),
        Experiment("no-prefixes", 4, shared_prefixes(64, 32, 48), POLICIES),
        Experiment("lengths", 16, many_lengths(64, is_skewed=False), (FIFO, STATIC, PADDED)),
        Experiment("skewed-lengths", 16, many_lengths(64, is_skewed=True), (FIFO, STATIC, PADDED)),
        Experiment("trough", 16, poisson(5, 30), WAITING),
        Experiment("busy", 16, poisson(25, 100), WAITING),
        Experiment("peak", 16, poisson(200, 200), WAITING),
    )
}


def padded(arrivals: Sequence[Arrival], size: int) -> list[Arrival]:
    """Each batch of `size` computes as many tokens for each request as its longest answer has."""
    found = []
    for begin in range(0, len(arrivals), size):
        batch = arrivals[begin : begin + size]
        longest = max(arrival.request.sampling.max_tokens for arrival in batch)
        options = SamplingOptions(max_tokens=longest, ignore_eos=True)
        found += [Arrival(arrival.at, replace(arrival.request, sampling=options)) for arrival in batch]
    return found


def serve(model: Model, experiment: Experiment, variant: Variant, number: int) -> Outcome:
    arrivals = experiment.arrivals(number)
    if variant.is_padded:
        arrivals = padded(arrivals, experiment.num_slots)
    return model.drive(arrivals, variant.settings, num_slots=experiment.num_slots, policy=variant.policy())


def measure(model: Model, experiment: Experiment, rounds: int) -> dict[str, list[Outcome]]:
    """Outcomes by variant, one a round; the order of the variants turns from round to round."""
    serve(model, experiment, experiment.variants[0], -1)  # threads and memory are warm
    found: dict[str, list[Outcome]] = {variant.name: [] for variant in experiment.variants}
    for number in range(rounds):
        turned = deque(experiment.variants)
        turned.rotate(-number)
        for variant in turned:
            found[variant.name].append(serve(model, experiment, variant, number))
    return found


def table(experiment: Experiment, found: dict[str, list[Outcome]]) -> Table:
    shown = Table(title=f"{experiment.name}: {experiment.num_slots} slots, {len(found['fifo'])} rounds")
    for heading in ("policy", "requests/s", "of fifo's", "cached", "p50 ms", "p95 ms", "p50 of fifo's", "steps"):
        shown.add_column(heading, justify="left" if heading == "policy" else "right")
    for name, outcomes in found.items():
        rates = [o.requests_per_second / f.requests_per_second for o, f in zip(outcomes, found["fifo"], strict=True)]
        p50s = [o.p50_ms / f.p50_ms for o, f in zip(outcomes, found["fifo"], strict=True)]
        shown.add_row(
            name,
            f"{statistics.median(o.requests_per_second for o in outcomes):.1f}",
            f"{statistics.median(rates):.2f} ({min(rates):.2f} ... {max(rates):.2f})",
            f"{statistics.median(o.cached_share for o in outcomes):.0%}",
            f"{statistics.median(o.p50_ms for o in outcomes):.0f}",
            f"{statistics.median(o.p95_ms for o in outcomes):.0f}",
            f"{statistics.median(p50s):.2f}",
            f"{statistics.median(o.num_steps for o in outcomes):.0f}",
        )
    return shown


def main(
    artifact: Annotated[Path, typer.Argument(help="An exported model.")],
    experiment: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(EXPERIMENTS)}; all of them.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each policy serves each experiment so often.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="Compute threads; 0: all cores.")] = 0,
) -> None:
    """Serve the same requests under every admission policy and show the ratios."""
    model = Model.load(artifact, threads or len(os.sched_getaffinity(0)))
    console = Console()
    for name in experiment or EXPERIMENTS:
        console.print(table(EXPERIMENTS[name], measure(model, EXPERIMENTS[name], rounds)))
    model.runner.close()


if __name__ == "__main__":
    typer.run(main)
