"""Who is connected: bounds on all and on each address, under which the silent make room for those who come.

A connection is silent while the gateway waits for its client: in a TLS handshake, for a request or the rest of one, or
for its answer to be read. Silent ones are ended only where there is no room, first those of the address that has the
most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoglm_gateway.errors import ApiError
from autoglm_gateway.settings.model import ConnectionLimits

_EXTRA = 64  # more than all that may be open, of which only questions for the gateway's health are answered


@dataclass(eq=False, slots=True)
class OpenConnection:
    """Of one connection. `end` closes it. `extra`: it is one of more than there is room for."""

    address: str
    end: Callable[[], None]
    extra: bool = False


class ConnectionTable:
    """`exempt`: addresses of which any number may be open, such as a proxy's."""

    def __init__(self, limits: ConnectionLimits, exempt: Callable[[str], bool]) -> None:
        self._limits = limits
        self._exempt = exempt
        self._open = dict[str, set[OpenConnection]]()
        self._silent = dict[str, dict[OpenConnection, None]]()  # of an address, who is silent the longest first
        self.num_open = 0

    def enter(self, address: str, end: Callable[[], None]) -> OpenConnection:
        """Silent at first. Raises ApiError where there is no room."""
        limits, place = self._limits, OpenConnection(address, end)
        if len(self._open.get(address, ())) >= limits.max_connections_per_address and not self._exempt(address):
            self._make_room(address, "too many connections from this address")
        if self.num_open >= limits.max_connections and not self._end_one_of_most():
            place.extra = True
            if self.num_open >= limits.max_connections + _EXTRA:
                raise _no_room("too many connections")
        self._open.setdefault(address, set()).add(place)
        self.num_open += 1
        self.fell_silent(place)
        return place

    def leave(self, place: OpenConnection) -> None:
        """Also of one that left already."""
        of_address = self._open.get(place.address, set())
        if place not in of_address:
            return
        of_address.remove(place)
        self.num_open -= 1
        self.spoke(place)
        if not of_address:
            del self._open[place.address]

    def fell_silent(self, place: OpenConnection) -> None:
        if place in self._open.get(place.address, ()):
            self._silent.setdefault(place.address, {}).setdefault(place)

    def spoke(self, place: OpenConnection) -> None:
        """The gateway has to do for it now."""
        silent = self._silent.get(place.address)
        if silent is not None:
            silent.pop(place, None)
            if not silent:
                del self._silent[place.address]

    def has_room_for(self, place: OpenConnection) -> bool:
        """For more than a question for the gateway's health."""
        place.extra = place.extra and self.num_open > self._limits.max_connections
        return not place.extra

    def _make_room(self, address: str, sentence: str) -> None:
        if address not in self._silent:
            raise _no_room(sentence)
        self._end_oldest(address)

    def _end_one_of_most(self) -> bool:
        if not self._silent:
            return False
        self._end_oldest(max(self._silent, key=lambda address: len(self._open[address])))
        return True

    def _end_oldest(self, address: str) -> None:
        place = next(iter(self._silent[address]))
        self.leave(place)
        place.end()


def _no_room(sentence: str) -> ApiError:
    return ApiError(503, sentence, "server_error", code="overloaded", retry_after=1)
