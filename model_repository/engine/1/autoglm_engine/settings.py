"""The engine's settings: one frozen object, built whole in one place and checked when it is built."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidRequest

_RANGES: dict[str, tuple[float, float]] = {
    "max_queue": (1, 1_000_000),
    "token_budget": (1, 1_000_000),
    "heartbeat_ms": (1, 3_600_000),
    "max_events_per_second": (0, 1_000_000),
    "admission_window": (1, 4096),
    "admission_path_weight": (0, 1),
    "admission_burst_weight": (0, 1),
    "admission_user_weight": (0, 1),
    "admission_burst_ms": (0, 60_000),
    "admission_max_passed": (0, 1_000_000),
    "admission_max_delay_ms": (0, 3_600_000),
    "static_size": (0, 4096),
    "static_window_ms": (0, 60_000),
}
DEVICES = ("auto", "cpu", "cuda")
POLICIES = ("fifo", "features", "static")
_CHOICES = {"device": DEVICES, "admission": POLICIES}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`InvalidRequest` is raised for a value outside its range, naming both.

    `max_queue`: requests that may wait for a slot; one more is refused with QueueFull.
    `token_budget`: most tokens a step computes, decode and prefill together. More makes prefill faster and the gap
    between two tokens of a running stream longer. Running requests always get their token: the budget counts as the
    number of slots where that is more.
    `prefix_reuse`: keep finished slots, and start a request from the longest prefix that is in a slot already.
    `heartbeat_ms`: a streamed request that was silent for so long gets an empty event.
    `max_events_per_second`: over all streams; 0 sends each token as it comes. Beyond it tokens share an event; the
    first and the last event of a stream never wait.
    `device`: where ONNX Runtime computes; auto is a GPU where this machine and the artifact allow it. Every other runtime
    has a device of its own.

    `admission`: who of those that wait gets the next slot: fifo, the oldest; features, by what a request has in common with
    those that are served (`admission_features`); static, batches that run to their end, to compare with.
    `admission_window`: of the oldest waiting requests so many are looked at.
    `admission_path_weight`, `admission_burst_weight`, `admission_user_weight`: what the share of a prompt that a slot holds,
    having come within `admission_burst_ms` of the oldest, and being of a running request's user count for.
    `admission_max_passed`, `admission_max_delay_ms`: a request that was passed over so often, or for the first time so long
    ago, goes first.
    `static_size`, `static_window_ms`: a static batch is closed when it has so many requests (0: one for each slot), or so
    long after the first of them came.
    """

    max_queue: int = 512
    token_budget: int = 256
    prefix_reuse: bool = True
    heartbeat_ms: float = 300.0
    max_events_per_second: float = 0.0
    device: str = "auto"
    admission: str = "fifo"
    admission_window: int = 64
    admission_path_weight: float = 0.4
    admission_burst_weight: float = 0.3
    admission_user_weight: float = 0.3
    admission_burst_ms: float = 50.0
    admission_max_passed: int = 64
    admission_max_delay_ms: float = 5000.0
    static_size: int = 0
    static_window_ms: float = 50.0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise InvalidRequest(f"the setting {name} is {value}; it must be between {low:g} and {high:g}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidRequest(f"the setting {name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
