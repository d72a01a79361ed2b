"""Names what a run was limited by, from its measurements. Pure: the rule is this file, and its marks are these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

CPU_MARK = 0.80  # of the cores that the server may use
MEMORY_MARK = 0.75  # of the machine's memory, or the container's
NETWORK_MARK = 0.90  # of one direction of the interface
GPU_MARK = 0.90
QUEUE_MARK = 0.50  # of the time: requests wait while all slots are busy
CLIENT_MARK = 0.90  # of one core, since this client is one thread
_EPSILON = 1e-9


class Resource(Enum):
    """In the order in which equally loaded ones are named."""

    MEMORY = "memory"
    GPU = "GPU"
    CPU = "CPU"
    NETWORK = "network"
    SLOTS = "slots"
    QUEUE = "queue"
    CLIENT = "client"
    NOTHING = "nothing"


_HARDWARE = (Resource.MEMORY, Resource.GPU, Resource.CPU, Resource.NETWORK)


@dataclass(frozen=True, slots=True)
class Measurements:
    """Of the part of a run under full load. None: it could not be measured from here.

    `cpu_cores`: mean cores in use, by process, of the server, this client and `others`. `waiting`: mean requests in the
    queue. `blocked_share`: of the time in which requests waited while all slots were busy. `queue_share`: of the
    requests' time spent in the queue.
    """

    concurrency: int
    cores: float | None = None
    cpu_cores: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    memory_used: float | None = None
    interface: str | None = None
    is_loopback: bool = False
    network_bytes_per_second: float | None = None
    interface_bytes_per_second: float | None = None
    gpu: str | None = None
    gpu_utilisation: float | None = None
    slots: int | None = None
    slots_busy: float | None = None
    waiting: float | None = None
    blocked_share: float | None = None
    queue_share: float = 0.0
    longest_stage: str = "decode"

    @property
    def cpu_share(self) -> float | None:
        return sum(self.cpu_cores.values()) / self.cores if self.cores and self.cpu_cores else None

    @property
    def memory_share(self) -> float | None:
        known = self.memory_used is not None and self.memory_bytes
        return self.memory_used / self.memory_bytes if known and self.memory_used and self.memory_bytes else None

    @property
    def network_share(self) -> float | None:
        """None on loopback, whatever passes: it has no line to fill."""
        if self.is_loopback or self.network_bytes_per_second is None or not self.interface_bytes_per_second:
            return None
        return self.network_bytes_per_second / self.interface_bytes_per_second

    @property
    def client_cores(self) -> float | None:
        return self.cpu_cores.get("client")


@dataclass(frozen=True, slots=True)
class Check:
    """`load` is in units of the mark: 1 is at the mark. None: not known, or it does not apply; `observed` says why."""

    resource: Resource
    load: float | None
    observed: str
    mark: str

    @property
    def saturated(self) -> bool:
        return self.load is not None and self.load >= 1 - _EPSILON


@dataclass(frozen=True, slots=True)
class Verdict:
    """`also`: what else was at its mark, the most loaded first. `level` are those of `also` that were loaded as
    much."""

    bottleneck: Resource
    checks: tuple[Check, ...]
    also: tuple[Resource, ...] = ()
    level: tuple[Resource, ...] = ()


def find_bottleneck(measured: Measurements) -> Verdict:
    """Hardware at its mark comes first, by how far it is over it: more slots or a shorter queue would not help there.
    Then slots (requests wait and the CPU has room), the queue (they wait, and the CPU cannot be seen), this client."""
    checks = _checks(measured)
    full = [check for check in checks if check.saturated]
    hardware = sorted((check for check in full if check.resource in _HARDWARE), key=_max_loaded_first)
    ordered = hardware + [check for check in full if check.resource not in _HARDWARE]
    if not ordered:
        return Verdict(Resource.NOTHING, checks)
    first, *others = ordered
    level = (c.resource for c in others if c in hardware and abs((c.load or 0) - (first.load or 0)) < _EPSILON)
    return Verdict(first.resource, checks, tuple(check.resource for check in others), tuple(level))


def _max_loaded_first(check: Check) -> tuple[float, int]:
    return -round(check.load or 0.0, 9), _HARDWARE.index(check.resource)


def _checks(m: Measurements) -> tuple[Check, ...]:
    return (_memory(m), _gpu(m), _cpu(m), _network(m), _slots(m), _queue(m), _client(m))


def _cpu(m: Measurements) -> Check:
    mark = f"{CPU_MARK:.0%} of the cores"
    if m.cpu_share is None or m.cores is None:
        return Check(Resource.CPU, None, "the server's processes cannot be seen from here", mark)
    observed = f"{m.cpu_share:.0%} of {m.cores:g} cores ({_by_process(m.cpu_cores)})"
    return Check(Resource.CPU, m.cpu_share / CPU_MARK, observed, mark)


def _memory(m: Measurements) -> Check:
    mark = f"{MEMORY_MARK:.0%} of the memory"
    if m.memory_share is None or m.memory_bytes is None:
        return Check(Resource.MEMORY, None, "the server's machine cannot be seen from here", mark)
    observed = f"{m.memory_share:.0%} of {m.memory_bytes / 2**30:.1f} GiB"
    return Check(Resource.MEMORY, m.memory_share / MEMORY_MARK, observed, mark)


def _network(m: Measurements) -> Check:
    mark = f"{NETWORK_MARK:.0%} of the line"
    passing = (
        "traffic unknown" if m.network_bytes_per_second is None else f"{m.network_bytes_per_second / 1e6:.2f} MB/s"
    )
    if m.is_loopback:
        return Check(
            Resource.NETWORK, None, f"{passing} over loopback, which has no line to fill: it costs CPU alone", mark
        )
    if m.network_share is None:
        return Check(
            Resource.NETWORK,
            None,
            f"{passing} on {m.interface or 'an unknown interface'}, whose speed is unknown",
            mark,
        )
    observed = f"{m.network_share:.0%} of {m.interface} ({passing})"
    return Check(Resource.NETWORK, m.network_share / NETWORK_MARK, observed, mark)


def _gpu(m: Measurements) -> Check:
    mark = f"{GPU_MARK:.0%} busy"
    if m.gpu_utilisation is None:
        return Check(Resource.GPU, None, "this machine has none that NVML shows", mark)
    return Check(Resource.GPU, m.gpu_utilisation / GPU_MARK, f"{m.gpu_utilisation:.0%} busy ({m.gpu})", mark)


def _slots(m: Measurements) -> Check:
    mark = "requests wait, CPU below its mark"
    if m.slots is None or m.slots_busy is None or m.blocked_share is None:
        return Check(Resource.SLOTS, None, "the server does not tell", mark)
    observed = f"{m.slots_busy:.1f} of {m.slots} busy"
    if m.cpu_share is None:
        return Check(Resource.SLOTS, None, f"{observed}; whether more would help depends on its CPU", mark)
    has_room = m.cpu_share < CPU_MARK - _EPSILON
    return Check(Resource.SLOTS, m.blocked_share / QUEUE_MARK if has_room else 0.0, observed, mark)


def _queue(m: Measurements) -> Check:
    mark = f"requests wait, slots all busy {QUEUE_MARK:.0%} of the time"
    if m.waiting is None or m.blocked_share is None:
        return Check(Resource.QUEUE, m.queue_share / QUEUE_MARK, f"{m.queue_share:.0%} of the requests' time", mark)
    observed = f"{m.waiting:.1f} waiting; slots all busy meanwhile {m.blocked_share:.0%} of the time"
    return Check(Resource.QUEUE, m.blocked_share / QUEUE_MARK, observed, mark)


def _client(m: Measurements) -> Check:
    mark = f"{CLIENT_MARK:.0%} of one core"
    if m.client_cores is None:
        return Check(Resource.CLIENT, None, "unknown", mark)
    return Check(Resource.CLIENT, m.client_cores / CLIENT_MARK, f"{m.client_cores:.0%} of one core", mark)


def _by_process(cores: Mapping[str, float]) -> str:
    ordered = sorted(cores.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {used:.2f}" for name, used in ordered if used >= 0.005) or "all idle"
