"""The process that encodes what a pattern of a tokenizer may take for ever with, under a limit of computing time.

It answers each frame (`worker_frames`) until there are no more. The first one is JSON: the path of a tokenizer.json and
the limits; the answer is empty, or why it cannot be read. In the others stands a byte, whether special tokens are
added, and UTF-8; the answer is a byte, whether it was encoded, and the ids (int32, of this machine's byte order) or why
it was not.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from autoglm_engine.system.worker_frames import (
    begin_worker,
    computing_limit,
    frame_of,
    read_frame,
    unpack_frame,
    write_frame,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_SHOWN = 1000  # characters of what the library complains of


def main() -> None:
    requests, answers = begin_worker()
    if (first := read_frame(requests)) is None:
        return
    asked = unpack_frame(first)
    limits = asked["limits"]
    with computing_limit(limits["load_seconds"]):
        try:
            tokenizer = _loaded(asked["path"])
        except Exception as error:  # the library raises plain Exception
            write_frame(answers, frame_of(str(error)[:_MAX_SHOWN].encode() or b"?"))
            return
    write_frame(answers, frame_of(b""))
    while (request := read_frame(requests)) is not None:
        with computing_limit(limits["seconds"] + len(request) * limits["seconds_a_byte"]):
            answer = _encoded(tokenizer, request)
        write_frame(answers, frame_of(answer))


def _loaded(path: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encoded(tokenizer: Tokenizer, request: bytes) -> bytes:
    try:
        ids = tokenizer.encode(request[1:].decode(), add_special_tokens=request[0] == 1).ids
    except BaseException as error:  # a panic of the library is no Exception
        return b"\0" + f"{type(error).__name__}: {error}"[:_MAX_SHOWN].encode()
    return b"\1" + array("i", ids).tobytes()
