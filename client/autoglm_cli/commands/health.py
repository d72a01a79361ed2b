"""`autoglm health`"""

from __future__ import annotations

import dataclasses
from typing import Any

import typer
from autoglm_client.types import Health, Stats
from rich.text import Text

from autoglm_cli.errors import fail, with_advice
from autoglm_cli.options import shared
from autoglm_cli.options.connection import ConnectionOptions
from autoglm_cli.options.groups import grouped
from autoglm_cli.output import notes, print_json


@grouped
def health(json: shared.Json = False, *, server: ConnectionOptions) -> None:
    """Show whether the server, each step of the model and the engine answer, and what the engine is doing.

    The exit code is 0 when everything is ready, otherwise 1.

    \b
    Examples:
      autoglm health
      autoglm health --url gpu-box:8001 --json
      until autoglm health; do sleep 1; done
    """
    with server.connection().client() as client:
        state = client.health()
        stats = client.stats() if state.ready else None
    if json:
        print_json(_as_json(state, stats))
    else:
        _show(state, stats)
    if not state.ready:
        if not json:
            fail(state.detail if state.live else with_advice(state.detail))
        raise typer.Exit(1)


def _as_json(state: Health, stats: Stats | None) -> dict[str, Any]:
    return {**dataclasses.asdict(state), "engine": stats.engine if stats else None}


def _show(state: Health, stats: Stats | None) -> None:
    console = notes()
    width = max(12, *map(len, state.models)) if state.models else 12
    console.print(_row("server", width, state.live, "live", "not reachable"))
    for name, ready in state.models.items():
        console.print(_row(name, width, ready, "ready", "not ready"))
    if stats is not None:
        counters = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in stats.engine.items())
        console.print(f"{'engine now':<{width}} {counters}")


def _row(name: str, width: int, good: bool, yes: str, no: str) -> Text:
    return Text.assemble(f"{name:<{width}} ", (yes, "green") if good else (no, "red"))
