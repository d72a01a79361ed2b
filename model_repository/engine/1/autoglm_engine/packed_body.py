"""What of an answer is the same for everybody who gets it, packed once: in pieces, each of which decodes on its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BodyPiece:
    """`token_ids`, `logprobs`: the members of JSON arrays. `text_bytes`: as `Event.text_bytes`, of this piece."""

    token_ids: bytes
    logprobs: bytes  # empty where none were asked for
    num_tokens: int
    text_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """`text_bytes`: as `Event.text_bytes`, of all pieces together. `is_first`: they begin the answer."""

    pieces: tuple[BodyPiece, ...]
    text_bytes: int | None
    is_first: bool

    @property
    def num_bytes(self) -> int:
        return sum(len(piece.token_ids) + len(piece.logprobs) for piece in self.pieces)

    def only(self, number: int) -> Body:
        """A single piece, as a body of its own."""
        piece = self.pieces[number]
        return Body((piece,), piece.text_bytes, self.is_first and number == 0)

    def members(self) -> bytes:
        """Of the JSON object that an event is packed as."""
        parts = [b'"tokens":[%s]' % b",".join(piece.token_ids for piece in self.pieces)]
        if self.text_bytes is not None:
            parts.append(b'"text_bytes":%d' % self.text_bytes)
        if self.is_first:
            parts.append(b'"first":true')
        if self.pieces[0].logprobs:
            parts.append(b'"logprobs":[%s]' % b",".join(piece.logprobs for piece in self.pieces))
        return b",".join(parts)
