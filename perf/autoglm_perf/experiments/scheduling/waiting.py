"""Whether a request should wait for company before it is admitted: in a trough, at a third of capacity, and in a
peak."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.engine.admission import AdmissionPolicy, Fifo
from autoglm_engine.engine.sequence import Sequence as Running
from autoglm_engine.engine.sequence import Waiting
from autoglm_engine.settings.model import plain_settings

from autoglm_perf.in_process.driving import Arrival, Model, Outcome
from autoglm_perf.load.arrivals import poisson_times
from autoglm_perf.suite.arms import LATENCY, LATENCY_95, REQUESTS
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric

_STEPS = Metric("steps", "", higher_is_better=False)
_METRICS = (LATENCY, LATENCY_95, REQUESTS, _STEPS)
_SLOTS, _PROMPT_TOKENS, _MAX_TOKENS = 16, 32, 16
_WORD_IDS = (1000, 40_000)  # ordinary words: the prompts need no sense
_LOADS = {"trough, 5/s": (5.0, 30, 10), "busy, 25/s": (25.0, 100, 30), "peak, 200/s": (200.0, 200, 60)}
DESCRIPTION = Description(
    "waiting",
    "Waiting for company",
    "The batch grows with the load by itself: in a trough nobody waits, and in a peak waiting would gain nothing.",
    _METRICS,
)


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


def run(context: Context) -> Found:
    policies: dict[str, Callable[[], AdmissionPolicy]] = {
        "at once": Fifo,
        "wait for 4, 20 ms": lambda: Gathering(4, 20),
        "wait for 4, 100 ms": lambda: Gathering(4, 100),
    }
    model = Model.load(context.artifact, len(os.sched_getaffinity(0)))
    outcomes: dict[str, list[Outcome]] = {f"{load}: {policy}": [] for load in _LOADS for policy in policies}
    try:
        for _ in context.repeated("waiting"):
            for load, (rate, full, quick) in _LOADS.items():
                arrivals = poisson_requests(rate, context.size(full, quick), next(context.seeds))
                for policy, make in policies.items():
                    served = model.drive(arrivals, plain_settings(), num_slots=_SLOTS, policy=make())
                    outcomes[f"{load}: {policy}"].append(served)
    finally:
        model.runner.close()
    baselines = {label: f"{label.partition(':')[0]}: at once" for label in outcomes}
    settings = {
        "requests": f"Poisson arrivals, {_PROMPT_TOKENS} tokens in, {_MAX_TOKENS} out, {_SLOTS} slots",
        "engine": "driven directly: no policy of the server waits",
    }
    samples = ", ".join(f"{context.size(full, quick)} requests ({load})" for load, (_, full, quick) in _LOADS.items())
    return Found(tuple(_arm(*item) for item in outcomes.items()), settings, samples, baselines=baselines)


def poisson_requests(rate: float, num_requests: int, seed: int) -> list[Arrival]:
    """`rate` requests a second, in the order of their times."""
    draw = random.Random(seed)
    options = SamplingOptions(max_tokens=_MAX_TOKENS, ignore_eos=True)

    def ask(number: int) -> Request:
        prompt = [draw.randrange(*_WORD_IDS) for _ in range(_PROMPT_TOKENS)]
        return Request(str(number), np.array(prompt, np.int32), options)

    return [Arrival(at, ask(number)) for number, at in enumerate(islice(poisson_times(rate, seed), num_requests))]


def _arm(label: str, outcomes: Sequence[Outcome]) -> Arm:
    values = {
        LATENCY.name: tuple(outcome.p50_ms for outcome in outcomes),
        LATENCY_95.name: tuple(outcome.p95_ms for outcome in outcomes),
        REQUESTS.name: tuple(outcome.requests_per_second for outcome in outcomes),
        _STEPS.name: tuple(float(outcome.num_steps) for outcome in outcomes),
    }
    return Arm(label, values)
