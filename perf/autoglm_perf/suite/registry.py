"""The experiments, in the order of the report. A new one is a module below `experiments/` and a name here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from .experiment import Description, Experiment

MODULES = (
    "whole_system",
    "connections",
    "calls",
    "analyzer_sweep",
    "cache_zipf",
    "cache_hits",
    "coalescing",
    "service_targets",
    "static_batching",
    "admission",
    "waiting",
    "redis_outage",
    "semantic_cache",
    "prefix_reuse",
    "prompt_lookup",
    "ensemble_overhead",
    "gateway_overhead",
    "structured_output",
    "scheduler_overhead",
    "memory_flat",
    "peers",
    "soak",
)
APART = ("soak",)  # so long that only a run that names it does it; it has a page of its own


class UnknownExperiment(ValueError):
    """Names what was asked for and what there is."""


def load(names: Sequence[str] = ()) -> list[Experiment]:
    """All but those apart, or those named, in the registry's order. Raises UnknownExperiment."""
    by_name = {experiment.description.name: experiment for experiment in load_all()}
    if unknown := sorted(set(names) - by_name.keys()):
        raise UnknownExperiment(f"there is no experiment {unknown[0]!r}; there are {', '.join(by_name)}")
    return [experiment for name, experiment in by_name.items() if (name in names if names else name not in APART)]


def load_all() -> list[Experiment]:
    known = [_load(module) for module in MODULES]
    assert len({experiment.description.name for experiment in known}) == len(known), (
        "two experiments have the same name"
    )
    return known


def _load(module: str) -> Experiment:
    loaded = importlib.import_module(f"autoglm_perf.experiments.{module}")
    description: Description = loaded.DESCRIPTION
    return Experiment(description, loaded.run)
