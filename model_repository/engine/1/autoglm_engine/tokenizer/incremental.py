"""Which tokens can be sent together, so that the texts of all groups joined equal the one-shot decode.

A token's text may depend on its neighbours: a character's bytes are spread over several tokens, or the decoder treats
the first token differently. `TextStream` cuts a token sequence into groups at the places where that is over;
`TokenText.decode` decodes one group. The invariant, for every sequence, also an invalid one:

    "".join(text.decode(group, i == 0) for i, group in enumerate(groups)) == t.decode(ids, skip_special_tokens=True)

Two kinds of decoder (formats as in the tokenizers library, `decoder` of tokenizer.json):

- byte level: each token is bytes, the text is their lossy UTF-8 decode. A group ends where no character is open: lossy
  decoding replaces maximal subparts (Unicode 15, section 3.9, U+FFFD substitution), so it is in its start state there.
- by token (Metaspace, WordPiece, byte fallback, none): a token's text depends on whether it is the first one, and with
  byte fallback on the whole run of byte tokens around it. A group ends after a token that is not a byte; what follows
  decodes as it would after any ordinary token, the anchor.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from autoglm_engine.errors import ArtifactError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BY_TOKEN = {"Metaspace", "WordPiece", "ByteFallback", "Replace", "Fuse", "Strip"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that decode on their own, and their text."""

    token_ids: tuple[int, ...]
    text: str


class TextStream(Protocol):
    """Cuts one sequence into groups. The first group always has a token with text, but for `flush`."""

    def push(self, token_id: int) -> tuple[int, ...]:
        """The tokens that can go now, this one included; empty while they must wait for the next."""
        ...

    def flush(self) -> tuple[int, ...]:
        """The sequence ended: the tokens that still waited."""
        ...


class TokenText:
    """What a tokenizer's tokens look like, read once; it makes a `TextStream` a request.

    Raises ArtifactError for a decoder whose text cannot be cut.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        steps = _decoder_steps(tokenizer)
        self._tokenizer = tokenizer
        self._bytes: list[bytes] = []
        self._closes: list[bool] = []
        if _is_byte_level(steps):
            self._bytes = _byte_table(tokenizer)
        else:
            _check_by_token(steps)
            self._anchor = _find_anchor(tokenizer)
            self._closes = _closing_tokens(tokenizer, byte_fallback=any(s["type"] == "ByteFallback" for s in steps))

    def stream(self) -> TextStream:
        return ByteLevelStream(self._bytes) if self._bytes else ByTokenStream(self._closes)

    def decode(self, token_ids: Sequence[int], is_first: bool) -> str:
        """The text of one group. `is_first`: it is the sequence's first group."""
        if self._bytes:
            known = len(self._bytes)
            return b"".join(self._bytes[i] for i in token_ids if i < known).decode("utf-8", "replace")
        if is_first:
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
        return _decode_after(self._tokenizer, self._anchor, token_ids)


class ByteLevelStream:
    """A group ends where no character is open. `spelling[id]`: the token's bytes, none for one that is skipped."""

    def __init__(self, spelling: list[bytes]) -> None:
        self._spelling = spelling
        self._waiting: list[int] = []
        self._tail = b""  # the last bytes, at most 3: as many as an open character can have

    def push(self, token_id: int) -> tuple[int, ...]:
        self._waiting.append(token_id)
        spelled = self._spelling[token_id] if token_id < len(self._spelling) else b""
        if not spelled:
            return ()
        if spelled[-1] >= 0x80:
            self._tail = (self._tail + spelled)[-3:]
            if _is_open(self._tail):
                return ()
        else:
            self._tail = b""
        return self.flush()

    def flush(self) -> tuple[int, ...]:
        group = tuple(self._waiting)
        self._waiting.clear()
        return group


class ByTokenStream:
    """`closes[id]`: after this token nothing before it can change. A byte token does not close: byte fallback turns
    the whole run of them into replacement characters when one byte of it is wrong."""

    def __init__(self, closes: list[bool]) -> None:
        self._closes = closes
        self._waiting: list[int] = []

    def push(self, token_id: int) -> tuple[int, ...]:
        self._waiting.append(token_id)
        return self.flush() if token_id < len(self._closes) and self._closes[token_id] else ()

    def flush(self) -> tuple[int, ...]:
        group = tuple(self._waiting)
        self._waiting.clear()
        return group


def _is_open(tail: bytes) -> bool:
    """Whether a UTF-8 character began in `tail` and can still be completed (Unicode 15, table 3-7).

    A lead byte always begins a character, whatever stands before it, so the last bytes decide.
    """
    for begin in range(len(tail) - 1, -1, -1):
        lead = tail[begin]
        if lead >= 0xC0:
            return _is_prefix(lead, tail[begin + 1 :])
        if lead < 0x80:
            return False
    return False


def _is_prefix(lead: int, rest: bytes) -> bool:
    if 0xC2 <= lead <= 0xDF:
        length = 2
    elif 0xE0 <= lead <= 0xEF:
        length = 3
    elif 0xF0 <= lead <= 0xF4:
        length = 4
    else:
        return False
    if not rest:
        return True
    low = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
    high = {0xED: 0x9F, 0xF4: 0x8F}.get(lead, 0xBF)
    return len(rest) < length - 1 and low <= rest[0] <= high


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if tokenizer.decoder is None:
        return []
    decoder = json.loads(tokenizer.decoder.__getstate__())
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _is_byte_level(steps: list[dict[str, Any]]) -> bool:
    names = {step["type"] for step in steps}
    return "ByteLevel" in names and names <= {"ByteLevel", "Fuse"}


def _check_by_token(steps: list[dict[str, Any]]) -> None:
    fused = False
    for step in steps:
        name = step["type"]
        if name not in _BY_TOKEN or (fused and name not in ("Fuse", "Strip")):
            raise ArtifactError(f"the tokenizer's decoder has the step {name} in a place where text cannot be streamed")
        if name == "Strip" and (step["stop"] > 0 or step["start"] > 1):
            raise ArtifactError(
                f"the tokenizer's decoder strips {step['start']} characters from the start and {step['stop']} from "
                "the end of the text; only one from the start can be streamed"
            )
        fused = fused or name == "Fuse"


def _skipped_ids(tokenizer: Tokenizer) -> set[int]:
    return {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def _spellings(tokenizer: Tokenizer) -> list[str | None]:
    """Each id's token; None for one that leaves no text: unused, or special."""
    skipped = _skipped_ids(tokenizer)
    num_ids = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return [None if i in skipped else tokenizer.id_to_token(i) for i in range(num_ids)]


def _byte_table(tokenizer: Tokenizer) -> list[bytes]:
    """GPT-2's alphabet: a printable Latin-1 character stands for its own byte, the others are shifted to U+0100 on.
    A token with any other character (an added one) stands for its own UTF-8 bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [byte for byte in range(256) if byte not in printable]
    alphabet = {0x100 + i: byte for i, byte in enumerate(shifted)} | dict.fromkeys(shifted, 0xFFFD)

    def spell(token: str) -> bytes:
        try:
            return token.translate(alphabet).encode("latin-1")
        except UnicodeEncodeError:
            return token.encode("utf-8")

    return [spell(token) if token else b"" for token in _spellings(tokenizer)]


def _closing_tokens(tokenizer: Tokenizer, *, byte_fallback: bool) -> list[bool]:
    def is_byte(token: str) -> bool:
        return byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    return [token is not None and not is_byte(token) for token in _spellings(tokenizer)]


def _find_anchor(tokenizer: Tokenizer) -> int:
    """An ordinary token with text: what follows it decodes as it does in the middle of a sequence."""
    skipped = _skipped_ids(tokenizer)
    letters = (tokenizer.token_to_id(letter) for letter in string.ascii_letters + string.digits)
    words = (i for token, i in tokenizer.get_vocab(with_added_tokens=False).items() if token.isalnum())
    for candidates in (letters, words):
        for token_id in candidates:
            if token_id is not None and token_id not in skipped and tokenizer.decode([token_id]):
                return int(token_id)
    raise ArtifactError("the tokenizer has no token that is a plain word: its text cannot be streamed")


def _decode_after(tokenizer: Tokenizer, anchor: int, token_ids: Sequence[int]) -> str:
    before = str(tokenizer.decode([anchor], skip_special_tokens=True))
    text = str(tokenizer.decode([anchor, *token_ids], skip_special_tokens=True))
    assert text.startswith(before), f"token {anchor} decodes differently before other tokens"
    return text[len(before) :]
