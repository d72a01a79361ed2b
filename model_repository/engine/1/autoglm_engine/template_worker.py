"""The process that compiles a chat template and renders it, under limits of computing time and memory.

It reads frames from its standard input and answers each on its standard output, until there are no more: the first one is
the template, the others are what to render. A frame is 8 bytes of length, big endian, and JSON.
Where it computes for too long the kernel ends it; where it needs too much memory it says so, and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from .jinja_template import TooLong, compile_template, render

LENGTH_BYTES = 8
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_MOST_SHOWN = 1000  # characters of what a template complains of

Answer = dict[str, Any]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent,
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)  # also where it is stopped, or computes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = os.fdopen(0, "rb"), os.fdopen(1, "wb")
    base = _memory_in_use()
    if (first := _read(requests)) is None:
        return
    limits = unpack_frame(first)["limits"]
    with _limited(base, limits["memory_bytes"], limits["compile_seconds"]):
        template, answer = _compiled(unpack_frame(first)["source"])
    write_frame(answers, answer)
    while template is not None and (request := _read(requests)) is not None:
        memory = limits["memory_bytes"] + len(request) * limits["memory_a_byte"]
        with _limited(base, memory, limits["seconds"] + len(request) * limits["seconds_a_byte"]):
            answer = _answered(partial(_rendered, template, unpack_frame(request)))
        write_frame(answers, answer)
        if "text" not in answer and "refused" not in answer:
            return


def _rendered(template: Any, request: Any) -> str:
    return render(template, request["names"], request["most_characters"])


def pack_frame(content: Any) -> bytes:
    """Half of a surrogate pair, which JSON can hold, travels too."""
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(LENGTH_BYTES, "big") + text


def unpack_frame(content: bytes) -> Any:
    return json.loads(content.decode("utf-8", "surrogatepass"))


def _read(stream: BinaryIO) -> bytes | None:
    """A frame's content; None at the end."""
    head = stream.read(LENGTH_BYTES)
    length = int.from_bytes(head, "big")
    content = stream.read(length)
    return content if len(head) == LENGTH_BYTES and len(content) == length else None


def write_frame(stream: BinaryIO, content: Any) -> None:
    stream.write(pack_frame(content))
    stream.flush()


def _compiled(source: str) -> tuple[Any, Answer]:
    made: list[Any] = []

    def compile_it() -> str:
        made.append(compile_template(source))
        return ""

    answer = _answered(compile_it)
    return (made[0] if made else None), answer


def _answered(work: Callable[[], str]) -> Answer:
    try:
        return {"text": work()}
    except MemoryError:
        return {"memory": True}
    except TooLong:
        return {"long": True}
    except Exception as error:  # a template may raise whatever Python does
        return {"refused": str(error)[:_MOST_SHOWN]}


@contextlib.contextmanager
def _limited(base: int, memory_bytes: int, seconds: float) -> Iterator[None]:
    """`base`: bytes of memory that are in use without any template."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = base + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _memory_in_use() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()
