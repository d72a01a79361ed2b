"""A profile: the run, its figures and the verdict, and the same as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .advice import explain
from .bottleneck import Measurements, Verdict, find_bottleneck
from .driving import first_errors
from .figures import Figures, figures_of
from .measuring import measure
from .records import Run, Sample


@dataclass(frozen=True, slots=True)
class Profile:
    run: Run
    figures: Figures
    measured: Measurements
    verdict: Verdict
    explanation: str

    @classmethod
    def of(cls, run: Run) -> Profile:
        figures = figures_of(run)
        measured = measure(run, figures)
        verdict = find_bottleneck(measured)
        return cls(run, figures, measured, verdict, explain(verdict, measured))

    def as_json(self) -> dict[str, Any]:
        """Times in milliseconds, shares 0 ... 1; `samples` in seconds since the run began."""
        return {
            "concurrency": self.run.concurrency,
            "seconds": self.run.seconds,
            **dataclasses.asdict(self.figures),
            "stages": {stage.name: _without_name(stage) for stage in self.figures.stages},
            "errors": dict(first_errors(self.run.requests)),
            "measured": dataclasses.asdict(self.measured),
            "bottleneck": self.verdict.bottleneck.value,
            "also": [resource.value for resource in self.verdict.also],
            "advice": self.explanation,
            "checks": [
                {
                    "resource": c.resource.value,
                    "load": c.load,
                    "observed": c.observed,
                    "mark": c.mark,
                    "saturated": c.saturated,
                }
                for c in self.verdict.checks
            ],
            "host": {name: value for name, value in dataclasses.asdict(self.run.host).items() if name != "processes"},
            "samples": [_sample_json(sample) for sample in self.run.samples],
        }


def _without_name(stage: Any) -> dict[str, float]:
    return {name: value for name, value in dataclasses.asdict(stage).items() if name != "name"}


def _sample_json(sample: Sample) -> dict[str, Any]:
    return {
        "at": sample.at,
        **dataclasses.asdict(sample.engine),
        **dataclasses.asdict(sample.host),
        "gpu_utilisation": sample.gpu_utilisation,
    }
