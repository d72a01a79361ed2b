"""Stop strings, matched on text, across the boundaries of tokens.

Text that may be the beginning of a stop string is held back until that is decided, so nothing of a stop string is
ever sent. The first stop string that is complete ends the text, at the earliest place where one begins.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .incremental import Piece


@dataclass(frozen=True, slots=True)
class Release:
    """`token_ids` may be sent. Where a stop string was found, they are all that is left, and `text` is what is kept of
    their text; otherwise `text` is their whole text."""

    token_ids: tuple[int, ...]
    text: str
    matched: bool = False


class StopMatcher:
    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._overlaps = [0] * len(self._stops)  # of each, the length of its beginning that the text ends with
        self._held: deque[Piece] = deque()
        self._text = ""  # of the held pieces; a later match can begin nowhere before
        self._begin = 0  # in `_text`, and nowhere before this place

    def push(self, piece: Piece, num_exempt: int = 0) -> Release:
        """No stop string begins in the first `num_exempt` characters of the piece, nor before it."""
        if num_exempt:
            self._begin = len(self._text) + num_exempt
        self._held.append(piece)
        self._text += piece.text
        if (start := self._earliest_match()) is not None:
            return self._take_all(self._text[:start], matched=True)
        return self._take(len(self._text) - self._num_undecided(len(piece.text)))

    def flush(self) -> Release:
        """The text ended: what was held back is no stop string."""
        return self._take_all(self._text, matched=False)

    def _earliest_match(self) -> int | None:
        return min((at for stop in self._stops if (at := self._text.find(stop, self._begin)) >= 0), default=None)

    def _num_undecided(self, num_new: int) -> int:
        """Length of the longest end of the text, of which the last `num_new` characters are new, that begins a stop
        string. None has grown by more than these, so what is tried is in proportion to them, however much is held
        back."""
        text = self._text[self._begin :]
        pairs = zip(self._stops, self._overlaps, strict=True)
        self._overlaps = [_overlap(text, stop, before + num_new) for stop, before in pairs]
        return max(self._overlaps)

    def _take(self, num_decided: int) -> Release:
        token_ids: list[int] = []
        num_taken = 0
        while self._held and num_taken + len(self._held[0].text) <= num_decided:
            piece = self._held.popleft()
            token_ids += piece.token_ids
            num_taken += len(piece.text)
        text, self._text = self._text[:num_taken], self._text[num_taken:]
        self._begin = max(0, self._begin - num_taken)
        return Release(tuple(token_ids), text)

    def _take_all(self, text: str, *, matched: bool) -> Release:
        token_ids = tuple(token_id for piece in self._held for token_id in piece.token_ids)
        self._held.clear()
        self._text, self._begin = "", 0
        return Release(token_ids, text, matched)


def _overlap(text: str, stop: str, most: int) -> int:
    for length in range(min(len(text), len(stop) - 1, most), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
