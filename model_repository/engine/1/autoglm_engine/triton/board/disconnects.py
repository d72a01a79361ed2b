"""Frees what clients left behind: asks the gate whose client is gone, and has their requests cancelled; so are those
whose cancel another engine passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autoglm_engine.core import Event, Stages, Usage
from autoglm_engine.messages import Ack, Packed
from autoglm_engine.system.periodic import Periodic

from .acks import AckGate

_POLL_SECONDS = 0.04


class DisconnectWatch:
    """A thread. `cancel` takes engine request ids; `ask` has the detokenizer handle an event, and blocks meanwhile;
    `look_too` is called in each round. Nothing is asked before the first request came: between the end of a model's
    `initialize` and the server's hearing of it, a call to another model ends tritonserver 2.51 (SIGSEGV)."""

    def __init__(
        self,
        gate: AckGate,
        cancel: Callable[[Iterable[str]], object],
        ask: Callable[[Packed], object],
        look_too: Callable[[], object] = lambda: None,
    ) -> None:
        self._gate = gate
        self._cancel = cancel
        self._ask = ask
        self._look_too = look_too
        self._is_known = False
        self._thread = Periodic("disconnect-watch", _POLL_SECONDS, self._look, "vanished clients cannot be looked for")

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._thread.close(timeout)

    def _look(self) -> None:
        if not self._is_known and self._gate.was_asked:
            self._is_known = self._greet()
        self._look_too()
        if lost := self._gate.lost():
            self._cancel(lost)
        if ack := self._gate.probe():
            self._ask(self._probe(ack))

    def _greet(self) -> bool:
        """So that the detokenizer reads the engine's artifact, where it has another one, while the first request is
        computed, and has the board open: it can then read the last answers of an engine that ends and takes the board
        with it."""
        try:
            self._ask(self._probe(self._gate.greeting()))
        except Exception:
            return False
        return True

    def _probe(self, ack: Ack) -> Packed:
        return self._gate.sealed(Event("", (), Usage(0, 0, 0), Stages()), ack)
