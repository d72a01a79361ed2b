"""From a request's tokens to what may be sent of them: whole characters, and nothing of a stop string."""

from __future__ import annotations

from .incremental import Piece, TextStream, TokenText
from .stop_strings import Release, StopMatcher


class Output:
    """`ready` holds the tokens that may be sent and were not taken yet.

    `text_bytes` is set once a stop string was found (or an end-of-sequence token that has text): how much of the text
    of the tokens not yet taken is kept. The text of the first `min_tokens` tokens takes no part in stop strings.
    """

    def __init__(self, token_text: TokenText, stops: tuple[str, ...], min_tokens: int = 0) -> None:
        self._token_text = token_text
        self._stream: TextStream = token_text.stream()
        self._matcher = StopMatcher(stops) if stops else None
        self._num_exempt = min_tokens  # of the tokens to be added
        self._added_any = False
        self._taken_any = False
        self.ready: list[int] = []
        self.text_bytes: int | None = None

    def push(self, token_id: int) -> bool:
        """Whether the text ends here with a stop string."""
        group = self._stream.push(token_id)
        return bool(group) and self._add(group)

    def flush(self) -> bool:
        """The text ends, whatever the reason: make everything ready that waited for more. Whether that completes a stop
        string, which tokens that waited for their text to be decided may spell."""
        group = self._stream.flush()
        if group and self._add(group):
            return True
        if self._matcher:
            self._release(self._matcher.flush())
        return False

    def end_with(self, token_id: int) -> None:
        """Add an end-of-sequence token without its text."""
        kept = len(self._ready_text().encode())
        self.ready.append(token_id)
        if len(self._ready_text().encode()) != kept:
            self.text_bytes = kept

    def take(self) -> tuple[tuple[int, ...], bool]:
        """(the tokens that are ready, whether they are the first ones taken)."""
        token_ids = tuple(self.ready)
        self.ready.clear()
        is_first = bool(token_ids) and not self._taken_any
        self._taken_any = self._taken_any or is_first
        return token_ids, is_first

    def _add(self, group: tuple[int, ...]) -> bool:
        is_first, self._added_any = not self._added_any, True
        num_exempt = min(self._num_exempt, len(group))
        self._num_exempt -= num_exempt
        if not self._matcher or num_exempt == len(group):
            self.ready += group
            return False
        piece = Piece(group, self._token_text.decode(group, is_first))
        release = self._matcher.push(piece, self._length_of_first(num_exempt, piece, is_first))
        self._release(release)
        return release.matched

    def _length_of_first(self, count: int, piece: Piece, is_first: bool) -> int:
        """Characters of the piece that its first `count` tokens decide: those that it begins with whatever follows."""
        texts = (self._token_text.decode(piece.token_ids[:end], is_first) for end in range(count, 0, -1))
        return next((len(text) for text in texts if piece.text.startswith(text)), 0)

    def _release(self, release: Release) -> None:
        if release.matched:
            self.text_bytes = len(self._ready_text().encode()) + len(release.text.encode())
        self.ready += release.token_ids

    def _ready_text(self) -> str:
        return self._token_text.decode(self.ready, not self._taken_any)
