"""What an experiment says before it runs (frozen), and what it found.

An experiment is one module of `experiments/` with `DESCRIPTION` and `run(context) -> Found`, named in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .context import Context
from .plot import Panel
from .spread import Spread


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    higher_is_better: bool = True
    decimals: int | None = None  # shown always; None: as many as the size of a value asks for


@dataclass(frozen=True, slots=True)
class Published:
    """A figure that others published, as they wrote it; empty where there is none for that side."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Description:
    """`metrics`: the first one is plotted and compared first."""

    name: str
    title: str
    claim: str
    metrics: tuple[Metric, ...]
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, slots=True)
class Arm:
    """One side: the values of each metric, one a repeat."""

    label: str
    values: Mapping[str, tuple[float, ...]]

    def spread(self, metric: Metric) -> Spread | None:
        values = self.values.get(metric.name)
        return Spread.of(values) if values else None


@dataclass(frozen=True, slots=True)
class Found:
    """`arms`: every ratio is of an arm to the first one, or to `baselines[label]` where that is named.

    `settings`: what a reader needs to do it again; `samples`: how many requests or steps each repeat measured;
    `remarks`: what was left out and why, and whatever the figures alone do not say; `unmet`: what should have been
    shown and was not, a sentence each; `panels`: what happened over time."""

    arms: tuple[Arm, ...]
    settings: Mapping[str, str]
    samples: str
    remarks: tuple[str, ...] = ()
    baselines: Mapping[str, str] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()

    def baseline_of(self, arm: Arm) -> Arm | None:
        """None for a baseline itself."""
        wanted = self.baselines.get(arm.label, self.arms[0].label)
        return None if wanted == arm.label else next(other for other in self.arms if other.label == wanted)


@dataclass(frozen=True, slots=True)
class Experiment:
    description: Description
    run: Callable[[Context], Found]
