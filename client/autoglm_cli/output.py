"""What commands print: answers and JSON to stdout, everything about them to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autoglm_client.printable import json_text, visible
from autoglm_client.types import Piece, Result
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

STAGE_NAMES = ("queue", "tokenize", "embed", "prefill", "decode", "detokenize", "network")


class SafeConsole(Console):
    """Names and sentences of servers and files command neither the terminal nor this console: no markup is read, unless
    a print asks for it, and whatever is printed is made visible."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def notes() -> Console:
    """Built anew each time, so that it writes to the stderr of now."""
    return SafeConsole(stderr=True)


def print_json(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json_text(value, indent=2) + "\n")


def write_pieces(pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        write_answer(piece.text)
    write_answer("\n")


def write_answer(text: str) -> None:
    """As the model wrote it, but to a terminal nothing that would command it."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def result_json(result: Result) -> dict[str, Any]:
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "cached_tokens": result.usage.cached_tokens,
        },
        "time_to_first_token_ms": result.time_to_first_token_ms,
        "total_ms": result.total_ms,
        "tokens_per_second": result.tokens_per_second,
        "stages_ms": {name: getattr(result.stages, f"{name}_ms") for name in STAGE_NAMES},
        "cache_hit": result.cache_hit,
        "cache_age_ms": result.cache_age_ms,
        "request_id": result.request_id,
        "endpoint": result.endpoint,
    }


def summary_line(result: Result) -> str:
    usage = result.usage
    first = f"first token {result.time_to_first_token_ms:.0f} ms, " if result.time_to_first_token_ms is not None else ""
    hits = {"exact": f", from the cache ({result.cache_age_ms / 1e3:.0f} s old)", "coalesced": ", shared with another"}
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    return (
        f"{first}{result.tokens_per_second:.1f} tokens/s, "
        f"{usage.prompt_tokens} prompt{cached} + {usage.completion_tokens} new tokens, ended by {result.finish_reason}"
        f"{hits.get(result.cache_hit, '')}"
    )


def stage_table(result: Result) -> Table:
    table = Table(title="where the time went", title_justify="left")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for name in STAGE_NAMES:
        milliseconds = getattr(result.stages, f"{name}_ms")
        table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds / result.total_ms:.0%}")
    table.add_section()
    table.add_row("total", f"{result.total_ms:.1f}", "")
    return table
