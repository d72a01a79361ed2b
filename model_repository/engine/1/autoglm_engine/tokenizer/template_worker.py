"""The process that compiles a chat template and renders it, under limits of computing time and memory.

It answers each frame (`worker_frames`), JSON both ways, until there are no more: the first one is the template, the
others are what to render. Where it computes for too long the kernel ends it; where it needs too much memory it says so,
and ends.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from autoglm_engine.system.worker_frames import (
    begin_worker,
    computing_limit,
    pack_frame,
    read_frame,
    unpack_frame,
    write_frame,
)

from .chat_template import TooLong, compile_template, render

_MAX_SHOWN = 1000  # characters of what a template complains of

Answer = dict[str, Any]


def main() -> None:
    requests, answers = begin_worker()
    base = _memory_in_use()
    if (first := read_frame(requests)) is None:
        return
    limits = unpack_frame(first)["limits"]
    with _limited(base, limits["memory_bytes"], limits["compile_seconds"]):
        template, answer = _compiled(unpack_frame(first)["source"])
    write_frame(answers, pack_frame(answer))
    while template is not None and (request := read_frame(requests)) is not None:
        memory = limits["memory_bytes"] + len(request) * limits["memory_a_byte"]
        with _limited(base, memory, limits["seconds"] + len(request) * limits["seconds_a_byte"]):
            answer = _answered(partial(_rendered, template, unpack_frame(request)))
        write_frame(answers, pack_frame(answer))
        if "text" not in answer and "refused" not in answer:
            return


def _rendered(template: Any, request: Any) -> str:
    return render(template, request["names"], request["max_characters"])


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
        return {"refused": str(error)[:_MAX_SHOWN]}


@contextlib.contextmanager
def _limited(base: int, memory_bytes: int, seconds: float) -> Iterator[None]:
    """`base`: bytes of memory that are in use without any template."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = base + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        with computing_limit(seconds):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _memory_in_use() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()
