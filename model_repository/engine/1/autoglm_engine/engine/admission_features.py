"""Admission by what requests have in common with the batch that is being formed.

With slots scarce and beginnings shared, a slot's content is overwritten soon after its request ends. Requests that
begin alike are therefore served next to each other: the later ones start from what the earlier ones computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Several
from dataclasses import dataclass
from itertools import islice
from weakref import WeakKeyDictionary

from autoglm_engine.core import Request
from autoglm_engine.settings.model import EngineSettings

from .prefix_index import BLOCK, Chain, PrefixIndex, chain_of
from .sequence import Sequence, Waiting
from .slots import SlotTable


@dataclass(slots=True)
class Note:
    """What is remembered of a waiting request."""

    chain: Chain  # of what could be reused of its prompt
    num_passed: int = 0  # requests admitted before it that came after it
    passed_since: float | None = None


class FeaturePolicy:
    """The best of the first `admission_window` waiting requests by the weighted sum of

    - path: the share of its prompt that a slot of its tenant holds already, whether its sequence runs or was retained;
    - burst: 1 if it came within `admission_burst_ms` of the oldest in the window;
    - user: 1 if a running request of its tenant is of the same user; a request may name none.

    Equal ones in the order of arrival. Nobody starves: whoever was passed over `admission_max_passed` times, or
    `admission_max_delay_ms` ago for the first time, goes first. That need not be the oldest one: an older one may have
    waited for its guide meanwhile, where nobody passed it over.
    """

    def __init__(self, settings: EngineSettings, slots: SlotTable) -> None:
        self._settings = settings
        self._index = PrefixIndex(slots)
        self._path_weight = settings.admission_path_weight if settings.prefix_reuse else 0.0
        self._notes: WeakKeyDictionary[Waiting, Note] = WeakKeyDictionary()

    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int:
        window = list(islice(queue, self._settings.admission_window))
        chosen = next((place for place, waiting in enumerate(window) if self._is_due(waiting, now)), None)
        if chosen is None:
            self._index.refresh()
            chosen = self._best(window, running)
        for waiting in window[:chosen]:
            self._passed_over(waiting, now)
        return chosen

    def _best(self, window: list[Waiting], running: Several[Sequence]) -> int:
        users = {_user(sequence.request) for sequence in running if sequence.request.user}
        burst_until = window[0].arrival + self._settings.admission_burst_ms / 1e3
        best, best_score = 0, -1.0
        for place, waiting in enumerate(window):
            num_held = self._index.num_held(self._note(waiting).chain)
            score = self._path_weight * num_held * BLOCK / len(waiting.tokens)
            score += self._settings.admission_burst_weight * (waiting.arrival <= burst_until)
            score += self._settings.admission_user_weight * (_user(waiting.request) in users)
            if score > best_score:
                best, best_score = place, score
        return best

    def _note(self, waiting: Waiting) -> Note:
        if (note := self._notes.get(waiting)) is None:
            note = self._notes[waiting] = Note(chain_of(waiting.tokens[:-1], waiting.request.tenant))
        return note

    def _passed_over(self, waiting: Waiting, now: float) -> None:
        note = self._note(waiting)
        note.num_passed += 1
        note.passed_since = now if note.passed_since is None else note.passed_since

    def _is_due(self, waiting: Waiting, now: float) -> bool:
        note = self._note(waiting)
        if note.num_passed >= self._settings.admission_max_passed:
            return True
        return (
            note.passed_since is not None and (now - note.passed_since) * 1e3 >= self._settings.admission_max_delay_ms
        )


def _user(request: Request) -> tuple[str, str]:
    """Users of different tenants are different ones, whatever their names."""
    return request.tenant, request.user
