"""What a profile is made of. Times are seconds since the run began, unless a name says milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as its client saw it. `stages_ms` has every stage of `STAGES`; empty where the request failed."""

    started: float
    finished: float
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    longest_gap_ms: float = 0.0  # between two arrivals
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine's own counters at one moment; None: this server does not tell."""

    waiting: int | None = None
    slots_busy: int | None = None
    slots_total: int | None = None


@dataclass(frozen=True, slots=True)
class HostState:
    """The machine at one moment. Counters grow from an unknown start, so only their differences mean something.

    `cpu_seconds` and `resident_bytes`: by process, the server's and `client`, which is this one. `machine_cpu_seconds`:
    of all processes, None in a container that sees another machine's. `network_bytes`: received plus sent, per way the
    larger of the two counts.
    """

    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    resident_bytes: Mapping[str, int] = field(default_factory=dict)
    machine_cpu_seconds: float | None = None
    memory_used: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    engine: EngineState = EngineState()
    host: HostState = HostState()
    gpu_utilisation: float | None = None  # 0 ... 1


@dataclass(frozen=True, slots=True)
class Interface:
    """The way to the server. `bytes_per_second` of one direction; None: the driver does not tell, or loopback."""

    name: str
    is_loopback: bool
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """What does not change during a run. `cores` and `memory_bytes` are what the server may use: the container's share
    where there is a limit. None, and no `processes`, where the server runs elsewhere or is not visible from here."""

    processes: Mapping[str, int] = field(default_factory=dict)  # name -> pid
    cores: float | None = None
    memory_bytes: int | None = None
    interface: Interface | None = None
    gpu: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. `drain_at`: when the last request was sent; from then on the load falls."""

    concurrency: int
    seconds: float
    drain_at: float
    requests: tuple[RequestRecord, ...]
    samples: tuple[Sample, ...]
    host: Host
