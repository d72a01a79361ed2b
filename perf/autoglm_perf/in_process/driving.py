"""An engine driven directly, without Triton: requests come at given times, and what became of them is summed up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoglm_engine.core import Event, Request, StepBatch
from autoglm_engine.engine.admission import AdmissionPolicy
from autoglm_engine.engine.engine import Engine
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Limits, Pending, Runner
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.tokenizer.incremental import TokenText

from autoglm_perf.load.workload import load_tokenizer


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float  # seconds from the beginning
    request: Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """Latencies in milliseconds, from arrival to the last event."""

    requests_per_second: float
    p50_ms: float
    p95_ms: float
    num_steps: int


class FewerSlots:
    """A runner of which only the first `num_slots` slots are used."""

    def __init__(self, runner: Runner, num_slots: int) -> None:
        self._runner = runner
        self.limits: Limits = replace(runner.limits, num_slots=num_slots)

    def issue(self, batch: StepBatch) -> Pending:
        return self._runner.issue(batch)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self._runner.copy_prefix(source, target, length)

    def close(self) -> None:
        self._runner.close()


@dataclass(frozen=True, slots=True)
class Model:
    runner: Runner
    text: TokenText

    @classmethod
    def load(cls, artifact: Path, num_threads: int) -> Model:
        manifest = Manifest.load(artifact)
        runner = load_runner(artifact, manifest, num_threads=num_threads)
        return cls(runner, TokenText(load_tokenizer(artifact)))

    def drive(
        self,
        arrivals: Sequence[Arrival],
        settings: EngineSettings,
        *,
        num_slots: int,
        policy: AdmissionPolicy | None = None,
    ) -> Outcome:
        """Serve `arrivals`, which are in the order of their times, with an engine whose slots hold nothing."""
        engine = Engine(FewerSlots(self.runner, num_slots), self.text, [], settings, policy=policy)
        began = time.monotonic()
        finished, last = {}, {}
        num_submitted = 0
        while num_submitted < len(arrivals) or engine.has_work:
            num_submitted += submit_due(engine, arrivals[num_submitted:], began)
            for event in engine.step():
                if event.is_last:
                    finished[event.request_id], last[event.request_id] = time.monotonic() - began, event
        latencies = [finished[arrival.request.id] - arrival.at for arrival in arrivals]
        return summed_up(latencies, list(last.values()), max(finished.values()), engine.stats.steps)


def submit_due(engine: Engine, arrivals: Sequence[Arrival], began: float) -> int:
    """How many were due; waits for the first one where there is nothing else to do."""
    if arrivals and not engine.has_work:
        time.sleep(max(0.0, began + arrivals[0].at - time.monotonic()))
    now = time.monotonic()
    due = [arrival for arrival in arrivals if began + arrival.at <= now]
    for arrival in due:
        engine.submit(replace(arrival.request, arrival=began + arrival.at))
    return len(due)


def summed_up(latencies: Sequence[float], last: Sequence[Event], seconds: float, num_steps: int) -> Outcome:
    failed = [event.error for event in last if event.error is not None]
    assert not failed, failed[0]
    quantiles = statistics.quantiles(latencies, n=20)
    return Outcome(len(last) / seconds, 1e3 * quantiles[9], 1e3 * quantiles[18], num_steps)
