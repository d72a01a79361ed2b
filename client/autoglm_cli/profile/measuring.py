"""From a run to the measurements that the rule of `bottleneck` reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .bottleneck import Measurements
from .figures import Figures, cores_used, gauge, loaded_part, mean, mean_rate, traffic
from .records import Run, Sample

OTHERS = "others"


def measure(run: Run, figures: Figures) -> Measurements:
    samples, host = loaded_part(run), run.host
    interface = host.interface
    longest = max(figures.stages, key=lambda stage: stage.share, default=None)
    return Measurements(
        concurrency=run.concurrency,
        cores=host.cores,
        cpu_cores=mean_cores(samples, list(host.processes)),
        memory_bytes=host.memory_bytes,
        memory_used=mean(gauge(samples, lambda sample: sample.host.memory_used)),
        interface=interface.name if interface else None,
        is_loopback=interface is not None and interface.is_loopback,
        network_bytes_per_second=mean_rate(samples, traffic),
        interface_bytes_per_second=interface.bytes_per_second if interface else None,
        gpu=host.gpu,
        gpu_utilisation=mean(gauge(samples, lambda sample: sample.gpu_utilisation)),
        slots=max((sample.engine.slots_total or 0 for sample in samples), default=0) or None,
        slots_busy=mean(gauge(samples, lambda sample: sample.engine.slots_busy)),
        waiting=mean(gauge(samples, lambda sample: sample.engine.waiting)),
        blocked_share=mean(gauge(samples, is_blocked)),
        queue_share=next((stage.share for stage in figures.stages if stage.name == "queue"), 0.0),
        longest_stage=longest.name if longest else "",
    )


def mean_cores(samples: Sequence[Sample], processes: Sequence[str]) -> dict[str, float]:
    """By process, with what the rest of the machine used where that is known."""
    found = {name: mean_rate(samples, cores_used(name)) for name in processes}
    known = {name: used for name, used in found.items() if used is not None}
    machine = mean_rate(samples, lambda sample: sample.host.machine_cpu_seconds)
    return known if machine is None else {**known, OTHERS: max(machine - sum(known.values()), 0.0)}


def is_blocked(sample: Sample) -> float | None:
    """1 where requests wait while all slots are busy."""
    engine = sample.engine
    if engine.waiting is None or engine.slots_busy is None or not engine.slots_total:
        return None
    return float(engine.waiting > 0 and engine.slots_busy >= engine.slots_total)
