"""Which of several endpoints a request goes to: the first in the caller's order that did not just fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoglm_client.transport.transport import Transport

from .cancelling import Canceller


@dataclass(slots=True)
class Endpoint:
    address: str
    transport: Transport
    canceller: Canceller
    avoid_until: float = field(default=float("-inf"))
    knows_heartbeats: bool = True  # until it says otherwise


class EndpointPool:
    """An endpoint that failed is avoided for `cooldown_s`, unless all of them failed: then the longest recovered one
    is tried. `clock` gives monotonic seconds.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float], cooldown_s: float = 5.0) -> None:
        assert endpoints, "a client needs an endpoint"
        self.endpoints = list(endpoints)
        self._clock = clock
        self._cooldown_s = cooldown_s

    def pick(self) -> Endpoint:
        now = self._clock()
        usable = next((endpoint for endpoint in self.endpoints if endpoint.avoid_until <= now), None)
        return usable or min(self.endpoints, key=lambda endpoint: endpoint.avoid_until)

    def failed(self, endpoint: Endpoint) -> None:
        endpoint.avoid_until = self._clock() + self._cooldown_s

    def answered(self, endpoint: Endpoint) -> None:
        endpoint.avoid_until = float("-inf")
