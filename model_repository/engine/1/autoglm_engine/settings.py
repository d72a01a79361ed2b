"""The engine's settings: one frozen object, built whole in one place and checked when it is built."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidRequest

_RANGES: dict[str, tuple[float, float]] = {
    "max_queue": (1, 1_000_000),
    "token_budget": (1, 1_000_000),
    "heartbeat_ms": (1, 3_600_000),
    "max_events_per_second": (0, 1_000_000),
}
DEVICES = ("auto", "cpu", "cuda")


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
    """

    max_queue: int = 512
    token_budget: int = 256
    prefix_reuse: bool = True
    heartbeat_ms: float = 300.0
    max_events_per_second: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise InvalidRequest(f"the setting {name} is {value}; it must be between {low:g} and {high:g}")
        if self.device not in DEVICES:
            raise InvalidRequest(f"the setting device is {self.device!r}; allowed are {', '.join(DEVICES)}")
