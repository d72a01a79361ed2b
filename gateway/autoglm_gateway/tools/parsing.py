"""An answer's text, whole or in pieces, to what was said and what was called."""

from __future__ import annotations

from collections.abc import Sequence

from .call_form import CallForm
from .calls import read_calls
from .events import Arguments, Called, Event, Functions, Said
from .reader import Reader


class CallParser:
    """Of one answer. What it tells, joined, does not depend on how the text is cut.

    Text that is no call of one of `functions` is said. Space beside a call is layout, and dropped. `max_calls`: what
    is called beyond is dropped; None: all are told.
    """

    def __init__(self, forms: Sequence[CallForm], functions: Functions, max_calls: int | None = None) -> None:
        self._reader = Reader()
        self._steps = read_calls(self._reader, forms, functions)
        self._max_calls = max_calls
        self._space = ""  # not said yet: a call may follow
        self._after_call = False
        self.num_calls = 0

    def push(self, text: str) -> list[Event]:
        self._reader.text += text
        return self._events()

    def close(self) -> list[Event]:
        """The text has ended."""
        self._reader.ended = True
        events = self._events()
        return [*events, Said(self._space)] if self._space else events

    def _events(self) -> list[Event]:
        found: list[Event] = []
        for step in self._steps:
            if step is None:
                break
            found.extend(self._tidied(step))
        return found

    def _tidied(self, event: Event) -> list[Event]:
        if isinstance(event, Said):
            return self._said(event.text)
        if isinstance(event, Called):
            self._space, self._after_call = "", True
            self.num_calls += 1
        is_dropped = self._max_calls is not None and self.num_calls > self._max_calls
        return [] if is_dropped or event == Arguments("") else [event]

    def _said(self, text: str) -> list[Event]:
        text = self._space + text
        if self._after_call:
            text = text.lstrip()
        said = text.rstrip()
        self._space = text[len(said) :]
        if not said:
            return []
        self._after_call = False
        return [Said(said)]
