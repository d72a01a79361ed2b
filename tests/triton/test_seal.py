"""What one model of a server sealed, another one opens; anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.triton.board.seal import SEAL_BYTES, Kind, Seal, board_id_of
from hypothesis import given
from hypothesis import strategies as st

SEAL = Seal(b"board--1", b"k" * 32)
IDS = np.array([1, 2, 3], dtype=np.int32)
CONTENT = np.frombuffer(b'{"stream": true}', dtype=np.uint8)


@given(st.binary(max_size=50), st.sampled_from(Kind), st.lists(st.integers(0, 9), max_size=3))
def test_what_was_sealed_is_opened(content: bytes, kind: Kind, beside: list[int]) -> None:
    ids = np.array(beside, dtype=np.int32)
    sealed = SEAL.close(kind, np.frombuffer(content, dtype=np.uint8), ids)
    assert sealed.dtype == np.uint8 and len(sealed) == SEAL_BYTES + len(content)
    assert SEAL.open(kind, sealed, ids).tobytes() == content
    assert SEAL.open(kind, sealed[np.newaxis], ids).tobytes() == content  # as Triton hands it over
    assert board_id_of(sealed) == board_id_of(sealed[np.newaxis]) == b"board--1"


@given(st.integers(0, SEAL_BYTES + len(CONTENT) - 1), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_refused(place: int, change: int) -> None:
    sealed = SEAL.close(Kind.REQUEST, CONTENT, IDS).copy()
    sealed[place] ^= change
    with pytest.raises(InvalidRequest, match="request has no valid seal"):
        SEAL.open(Kind.REQUEST, sealed, IDS)


@given(st.binary(max_size=2 * SEAL_BYTES))
def test_bytes_of_strangers_are_refused(raw: bytes) -> None:
    sealed = np.frombuffer(raw, dtype=np.uint8)
    with pytest.raises(InvalidRequest, match="event has no valid seal"):
        SEAL.open(Kind.EVENT, sealed)
    assert len(board_id_of(sealed)) in (0, 8)


def test_a_seal_belongs_to_one_kind_one_key_one_board_and_what_goes_with_it() -> None:
    sealed = SEAL.close(Kind.REQUEST, CONTENT, IDS)
    with pytest.raises(InvalidRequest):
        SEAL.open(Kind.EVENT, sealed, IDS)
    for other in (Seal(b"board--1", b"K" * 32), Seal(b"board--2", b"k" * 32)):
        with pytest.raises(InvalidRequest):
            other.open(Kind.REQUEST, sealed, IDS)
    for beside in (None, IDS[:2], IDS[::-1], np.array([1, 2, 4], dtype=np.int32)):
        with pytest.raises(InvalidRequest):
            SEAL.open(Kind.REQUEST, sealed, beside)


def test_nothing_moves_between_the_content_and_what_goes_with_it() -> None:
    content, beside = np.frombuffer(b"12345678", dtype=np.uint8), np.frombuffer(b"abcd", dtype=np.uint8)
    sealed = SEAL.close(Kind.REQUEST, content, beside)
    moved = np.concatenate([sealed[:SEAL_BYTES], beside[2:], content])
    with pytest.raises(InvalidRequest):
        SEAL.open(Kind.REQUEST, moved, beside[:2])
