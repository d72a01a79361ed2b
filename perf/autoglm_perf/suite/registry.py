"""The experiments, in the order of the report. A new one is a module below `experiments/` and a name here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from .experiment import Description, Experiment

MODULES = (
    "system.whole_system",
    "overhead.connections",
    "overhead.calls",
    "system.analyzer_sweep",
    "caching.cache_zipf",
    "caching.cache_hits",
    "caching.coalescing",
    "system.service_targets",
    "scheduling.static_batching",
    "scheduling.admission",
    "scheduling.waiting",
    "caching.redis_outage",
    "caching.semantic_cache",
    "caching.prefix_reuse",
    "scheduling.prompt_lookup",
    "overhead.ensemble_overhead",
    "overhead.gateway_overhead",
    "overhead.structured_output",
    "overhead.scheduler_overhead",
    "system.memory_flat",
    "system.peers",
    "system.vision",
    "system.soak",
)
APART = ("vision", "soak")  # so long that only a run that names it does it; it has a page of its own


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
