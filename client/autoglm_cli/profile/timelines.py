"""What a plot of a run shows over time, whoever draws it: panels of lines in the units that people read."""

from __future__ import annotations

from dataclasses import dataclass

from .bottleneck import CPU_MARK, MEMORY_MARK
from .figures import Series, cores_used, gauge, rate
from .measuring import OTHERS
from .records import Run, Sample


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Series


@dataclass(frozen=True, slots=True)
class Panel:
    """`ceiling`: the top of the axis, where it has a natural one. `mark`: from there on it counts as saturated.
    `stacked`: the lines are parts of one sum."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    ceiling: float | None = None
    mark: float | None = None
    stacked: bool = False

    @property
    def top(self) -> float:
        """The largest value to show, over zero."""
        if self.stacked:
            heights = [
                sum(values) for values in zip(*([v for _, v in line.points] for line in self.lines), strict=False)
            ]
        else:
            heights = [value for line in self.lines for _, value in line.points]
        return max([*heights, self.ceiling or 0.0]) or 1.0


def panels_of(run: Run) -> tuple[Panel, ...]:
    """Only of what was measured."""
    panels = (_slots(run), _waiting(run), _cpu(run), _memory(run), _network(run), _gpu(run))
    return tuple(panel for panel in panels if any(line.points for line in panel.lines))


def _slots(run: Run) -> Panel:
    total = max((sample.engine.slots_total or 0 for sample in run.samples), default=0)
    busy = Line("busy", gauge(run.samples, lambda sample: sample.engine.slots_busy))
    return Panel("slots busy", "slots", (busy,), ceiling=total or None)


def _waiting(run: Run) -> Panel:
    return Panel("requests waiting", "requests", (Line("waiting", gauge(run.samples, lambda s: s.engine.waiting)),))


def _cpu(run: Run) -> Panel:
    lines = [Line(name, rate(run.samples, cores_used(name))) for name in run.host.processes]
    lines = [line for line in lines if line.points]
    if (others := _other_programs(run)) is not None:
        lines.append(others)
    cores = run.host.cores
    return Panel("CPU", "cores", tuple(lines), cores, CPU_MARK * cores if cores else None, stacked=True)


def _other_programs(run: Run) -> Line | None:
    """The machine's cores in use that are none of ours."""

    def used(sample: Sample) -> float | None:
        machine = sample.host.machine_cpu_seconds
        return None if machine is None else machine - sum(sample.host.cpu_seconds.values())

    points = rate(run.samples, used)
    return Line(OTHERS, points) if points else None


def _memory(run: Run) -> Panel:
    limit = run.host.memory_bytes
    top = limit / 2**30 if limit else None
    used = gauge(run.samples, lambda sample: _scaled(sample.host.memory_used, 2**-30))
    server = gauge(run.samples, lambda sample: sum(sample.host.resident_bytes.values()) * 2**-30 if limit else None)
    lines = (Line("in use", used), Line("ours", server))
    return Panel("memory", "GiB", lines, top, MEMORY_MARK * top if top else None)


def _network(run: Run) -> Panel:
    interface = run.host.interface
    received = Line("received", rate(run.samples, lambda sample: _scaled(sample.host.received_bytes, 1e-6)))
    sent = Line("sent", rate(run.samples, lambda sample: _scaled(sample.host.sent_bytes, 1e-6)))
    lines = (received,) if interface and interface.is_loopback else (received, sent)  # there both are the same
    return Panel(f"network ({interface.name})" if interface else "network", "MB/s", lines)


def _gpu(run: Run) -> Panel:
    points = gauge(run.samples, lambda sample: _scaled(sample.gpu_utilisation, 100))
    return Panel("GPU", "%", (Line("busy", points),), ceiling=100.0)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
