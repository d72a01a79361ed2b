"""`autoglm profile`: where the time of a run goes, and what limits it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from autoglm_cli.errors import CommandError
from autoglm_cli.options import shared
from autoglm_cli.options.connection import Connection, ConnectionOptions
from autoglm_cli.options.groups import grouped
from autoglm_cli.output import SafeConsole, notes, print_json

if TYPE_CHECKING:
    from autoglm_cli.profile.driving import Load
    from autoglm_cli.profile.records import Run
    from autoglm_cli.profile.report import Profile
    from autoglm_cli.profile.workload import PromptRequest

_REQUESTS = 64


@grouped
def profile(
    prompts: Annotated[
        Path | None,
        typer.Argument(help="Prompts, one per line, or JSON lines as for `autoglm batch`. \\[default: built in]"),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, help=f"How many. \\[default: {_REQUESTS}; no limit with --duration]"),
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Requests in flight.")] = 16,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Longest answer, in tokens.")] = 64,
    duration: Annotated[
        float | None, typer.Option("--duration", min=0.1, help="Seconds; requests in flight are then finished.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start a server for this run, on free ports.")] = False,
    artifact: shared.Artifact = None,
    repository: shared.Repository = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Write a picture (SVG) to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the picture and the tables to this file.")
    ] = None,
    json: shared.Json = False,
    *,
    server: ConnectionOptions,
) -> None:
    """Put load on a server and show where the time goes, stage by stage; name the bottleneck and what to change.

    CPU, memory and processes are shown for a server on this machine; for another one, what it reports and the network.

    \b
    Examples:
      autoglm profile
      autoglm profile --start --artifact build/model -c 32 --html profile.html
      autoglm profile prompts.txt --duration 30 --max-tokens 200 --svg profile.svg
      autoglm profile --json | jq -r .bottleneck
    """
    from autoglm_cli.profile.driving import Load

    asked = _asked(prompts, max_tokens)
    wanted = requests if requests is not None or duration is not None else _REQUESTS
    load = Load(concurrency, wanted, duration)
    connection = server.connection()
    with _server(start, artifact, repository, server.model) as (started_url, pid):
        target = Connection((started_url,), server.model) if started_url else connection
        run = _run(target, asked, load, pid)
    _report(run, svg, html, json=json)


def _asked(path: Path | None, max_tokens: int) -> Iterator[PromptRequest]:
    from autoglm_client.options import GenerationOptions
    from autoglm_client.types import Message

    from autoglm_cli.profile.workload import PromptRequest, built_in, repeated

    from .batch_files import read_jobs

    options = GenerationOptions(max_tokens=max_tokens, temperature=0.0)
    if path is None:
        return built_in(options)
    if path.suffix in (".jsonl", ".json"):
        found = [PromptRequest(job.prompt, job.options) for job in read_jobs(path, options)]
    else:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise CommandError(f"{path} is not UTF-8 at byte {error.start}") from None
        found = [PromptRequest([Message("user", line.strip())], options) for line in lines if line.strip()]
    if not found:
        raise CommandError(f"{path} has no prompt")
    return repeated(found)


@contextlib.contextmanager
def _server(
    start: bool, artifact: Path | None, repository: Path | None, model: str
) -> Iterator[tuple[str | None, int | None]]:
    """The address and process of a server that lives as long as the run; of none where one is not to be started."""
    if not start:
        yield None, None
        return
    from autoglm_cli.paths import artifact_folder, repository_folder, server_artifact
    from autoglm_cli.server.local_server import LocalServer

    from .serve import ensure_exported, running

    folder = repository_folder(repository, model)
    artifact = server_artifact(artifact, folder)
    ensure_exported(artifact_folder(artifact, folder, model), export_if_missing=False)
    server = LocalServer(folder, artifact=artifact, http=False)
    with running(server):
        yield server.grpc_url, server.pid


def _run(target: Connection, asked: Iterator[PromptRequest], load: Load, server_pid: int | None) -> Run:
    with Progress(console=notes(), transient=True) as bar:
        task = bar.add_task(f"{load.concurrency} in flight", total=load.requests)
        return asyncio.run(_drive(target, asked, load, server_pid, lambda: bar.advance(task)))


async def _drive(
    target: Connection,
    asked: Iterator[PromptRequest],
    load: Load,
    server_pid: int | None,
    advance: Callable[[], None],
) -> Run:
    from autoglm_client.exceptions import CannotConnectError
    from autoglm_client.model_names import ModelNames

    from autoglm_cli.procfs import ProcFs
    from autoglm_cli.profile.driving import Probe, drive
    from autoglm_cli.profile.gpu import find_gpu
    from autoglm_cli.profile.host import find_host

    target = dataclasses.replace(target, urls=target.urls[:1])
    async with target.async_client() as client:
        state = await client.health()
        if not state.live:
            raise CannotConnectError(state.detail)
        if not state.ready:
            raise CommandError(f"the server is not ready: {state.detail}")
        proc = ProcFs()
        host = find_host(proc, target.urls[0], server_pid=server_pid, names=ModelNames.of(target.model))
        gpu = find_gpu() if host.cores else None
        host = dataclasses.replace(host, gpu=gpu.name if gpu else None)
        return await drive(client, asked, load, Probe(client, host, proc, gpu).sample, host, lambda _: advance())


def _report(run: Run, svg: Path | None, html: Path | None, *, json: bool) -> None:
    from autoglm_cli.profile.report import Profile

    made = Profile.of(run)
    if not made.figures.served:
        raise CommandError(f"no request was answered: {run.requests[0].error}")
    _write_pictures(made, svg, html)
    if json:
        print_json(made.as_json())
    else:
        from .profile_view import show

        show(SafeConsole(), made)
    if made.figures.failed:
        raise CommandError(f"{made.figures.failed} of {len(run.requests)} requests failed")


def _write_pictures(made: Profile, svg: Path | None, html: Path | None) -> None:
    if svg is not None:
        from autoglm_cli.profile.svg import draw

        svg.write_text(draw(made), encoding="utf-8")
    if html is not None:
        from autoglm_cli.profile.page import page

        html.write_text(page(made), encoding="utf-8")
    for path in (svg, html):
        if path is not None:
            notes().print(f"wrote {path}")
